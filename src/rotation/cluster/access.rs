//! How a cluster is reached.

use std::path::PathBuf;

/// How the cluster is reached.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// A kubeconfig; else the usual places, else the service account of a pod.
    pub kubeconfig: Option<PathBuf>,
    /// Context in it.
    pub context: Option<String>,
    /// Addresses of all API servers; else the endpoints of `default/kubernetes`.
    pub servers: Vec<String>,
    /// How many API servers there are, by the operator's word.
    pub server_count: Option<usize>,
    /// More authorities of the API servers' own certificates, where the kubeconfig has that of a balancer alone.
    pub server_ca: Option<PathBuf>,
}
