//! The arguments that lead to etcd.

use std::path::PathBuf;

use clap::Args;

/// How etcd is reached.
#[derive(Debug, Args)]
pub struct EtcdArgs {
    /// URL of an etcd member; may be given several times, also for several clusters (--etcd-servers-overrides of the API
    /// servers). Values are then read from etcd itself.
    #[arg(id = "etcd", long = "etcd", value_name = "URL", value_delimiter = ',')]
    pub endpoints: Vec<String>,
    /// CA that signed etcd's certificates.
    #[arg(id = "etcd_ca", long = "etcd-ca", value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Client certificate for etcd.
    #[arg(id = "etcd_cert", long = "etcd-cert", value_name = "FILE", requires = "etcd_key")]
    pub certificate: Option<PathBuf>,
    /// Key of the client certificate for etcd.
    #[arg(id = "etcd_key", long = "etcd-key", value_name = "FILE", requires = "etcd_cert")]
    pub key: Option<PathBuf>,
}
