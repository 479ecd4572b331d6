//! The API servers of a cluster: how each is reached, and everything that names one.

mod access;
pub mod api;
pub(crate) mod canary;
mod connect;
pub(crate) mod discovery;
pub mod key_id_hash;
pub(crate) mod lease;
pub(crate) mod ledger;
pub(crate) mod listing;
pub mod metrics;
mod proxy;
pub mod resources;
pub(crate) mod roster;
pub(crate) mod webhooks;
pub mod writer;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard};

use http::Uri;
use serde::Deserialize;
use serde_json::Value;

pub use self::access::Access;
use self::connect::{client, read};
use crate::rotation::cluster::api::{Api, null_as_empty};
use crate::rotation::cluster::key_id_hash::hash;
use crate::rotation::cluster::roster::{ControlPlaneNode, IdentityLease, LeaseWatch, Sources};
use crate::rotation::error::RotationError;

/// Every API server's certificate holds this name, for clients inside the cluster; by it one server is verified
/// that is reached by address.
const NAME_IN_CERTIFICATES: &str = "kubernetes.default.svc";

/// A cluster that can be asked.
pub struct Cluster {
    config: kube::Config,
    entry: Api,
    access: Access,
    leases: Mutex<LeaseWatch>,
    met: Mutex<Vec<Api>>,
}

#[derive(Deserialize)]
struct Slices {
    #[serde(deserialize_with = "null_as_empty")]
    items: Vec<Slice>,
}

#[derive(Deserialize)]
struct Slice {
    #[serde(default, deserialize_with = "null_as_empty")]
    endpoints: Vec<Endpoint>,
    #[serde(default, deserialize_with = "null_as_empty")]
    ports: Vec<Port>,
}

#[derive(Deserialize)]
struct Endpoint {
    addresses: Vec<String>,
}

#[derive(Deserialize)]
struct Port {
    port: u16,
}

#[derive(Deserialize)]
struct Leases {
    #[serde(deserialize_with = "null_as_empty")]
    items: Vec<Lease>,
}

#[derive(Deserialize)]
struct Lease {
    metadata: LabelledMetadata,
    spec: LeaseSpec,
}

#[derive(Deserialize)]
struct LabelledMetadata {
    name: String,
    #[serde(default)]
    labels: std::collections::BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LeaseSpec {
    renew_time: Option<jiff::Timestamp>,
}

#[derive(Deserialize)]
struct Nodes {
    #[serde(deserialize_with = "null_as_empty")]
    items: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    metadata: LabelledMetadata,
    #[serde(default)]
    status: NodeStatus,
}

#[derive(Default, Deserialize)]
struct NodeStatus {
    #[serde(default, deserialize_with = "null_as_empty")]
    addresses: Vec<NodeAddress>,
}

#[derive(Deserialize)]
struct NodeAddress {
    address: String,
}

impl Cluster {
    /// Reads the configuration; asks nobody yet.
    ///
    /// # Errors
    /// When there is no kubeconfig, or it cannot be used.
    pub async fn connect(access: &Access) -> Result<Self, RotationError> {
        let config = read(access).await?;
        let entry = client(config.clone(), access)?;
        Ok(Self { config, entry, access: access.clone(), leases: Mutex::default(), met: Mutex::default() })
    }

    /// The address that the configuration names; perhaps a balancer.
    pub fn entry(&self) -> &Api {
        &self.entry
    }

    /// The same over connections of its own: a balancer may lead each to another API server.
    ///
    /// # Errors
    /// The client cannot be set up.
    pub(in crate::rotation) fn entry_anew(&self) -> Result<Api, RotationError> {
        client(self.config.clone(), &self.access)
    }

    /// Which cluster this is: the uid of the namespace `kube-system`, which lives as long as the cluster.
    ///
    /// # Errors
    /// When the namespace cannot be read.
    pub async fn uid(&self) -> Result<String, RotationError> {
        let namespace: Value = self
            .entry
            .patient()
            .get_json("/api/v1/namespaces/kube-system")
            .await
            .map_err(RotationError::api("find out which cluster this is (uid of the namespace kube-system)"))?;
        Ok(namespace["metadata"]["uid"].as_str().unwrap_or_default().to_owned())
    }

    /// Each API server by itself.
    ///
    /// # Errors
    /// No API server is known, or the one that was asked does not answer.
    pub async fn servers(&self) -> Result<Vec<Api>, RotationError> {
        let urls = if self.access.servers.is_empty() { self.endpoints().await? } else { self.access.servers.clone() };
        if urls.is_empty() {
            // An API server that is not ready is not an endpoint, and may be asked all the same.
            return Ok(vec![self.entry.clone()]);
        }
        urls.iter().map(|url| self.server(url)).collect()
    }

    /// Whether the operator named each API server.
    pub(in crate::rotation) fn servers_are_named(&self) -> bool {
        !self.access.servers.is_empty()
    }

    /// Everything that names API servers. The Leases are watched from the first call on.
    ///
    /// # Errors
    /// When Leases or endpoints cannot be listed. Nodes that may not be listed are left out.
    pub(in crate::rotation) async fn sources(&self) -> Result<Sources, RotationError> {
        let leases = self.identity_leases().await?;
        self.lease_watch().observe(&leases, std::time::Instant::now());
        let endpoints = self.endpoints().await?.iter().map(|url| host_of(url)).collect::<BTreeSet<_>>();
        let nodes = self.control_plane_nodes().await?;
        Ok(Sources { leases, endpoints, nodes, expected: self.access.server_count })
    }

    /// What is known of the Leases' renewals.
    pub(in crate::rotation) fn lease_watch(&self) -> MutexGuard<'_, LeaseWatch> {
        self.leases.lock().expect("nothing panics while it is held")
    }

    /// Connections through a balancer that each led to another API server.
    pub(in crate::rotation) fn met(&self) -> MutexGuard<'_, Vec<Api>> {
        self.met.lock().expect("nothing panics while it is held")
    }

    async fn identity_leases(&self) -> Result<Vec<IdentityLease>, RotationError> {
        let path = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases\
                    ?labelSelector=apiserver.kubernetes.io%2Fidentity%3Dkube-apiserver";
        let leases: Leases =
            self.entry.get_json(path).await.map_err(RotationError::api("list the API servers' identity Leases"))?;
        let lease = |Lease { metadata, spec }: Lease| IdentityLease {
            identity: hash(&metadata.name),
            host: metadata.labels.get("kubernetes.io/hostname").cloned(),
            renewed: spec.renew_time,
            name: metadata.name,
        };
        Ok(leases.items.into_iter().map(lease).collect())
    }

    async fn control_plane_nodes(&self) -> Result<Option<Vec<ControlPlaneNode>>, RotationError> {
        let path = "/api/v1/nodes?labelSelector=node-role.kubernetes.io%2Fcontrol-plane";
        let nodes: Nodes = match self.entry.get_json(path).await {
            Ok(nodes) => nodes,
            // Nodes are one source of several; Leases and endpoints remain.
            Err(error) if error.status() == Some(403) => return Ok(None),
            Err(error) => return Err(RotationError::api("list the control-plane Nodes")(error)),
        };
        let node = |Node { metadata, status }: Node| ControlPlaneNode {
            addresses: status.addresses.into_iter().map(|address| address.address).collect(),
            name: metadata.name,
        };
        Ok(Some(nodes.items.into_iter().map(node).collect()))
    }

    async fn endpoints(&self) -> Result<Vec<String>, RotationError> {
        let path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices\
                    ?labelSelector=kubernetes.io%2Fservice-name%3Dkubernetes";
        let slices: Slices =
            self.entry.get_json(path).await.map_err(RotationError::api("list the API servers' endpoints"))?;
        let mut urls = Vec::new();
        for slice in slices.items {
            let port = slice.ports.first().map_or(6443, |port| port.port);
            for address in slice.endpoints.into_iter().flat_map(|endpoint| endpoint.addresses) {
                let host = if address.contains(':') { format!("[{address}]") } else { address };
                urls.push(format!("https://{host}:{port}"));
            }
        }
        // One address may be in several slices.
        urls.sort();
        urls.dedup();
        Ok(urls)
    }

    fn server(&self, url: &str) -> Result<Api, RotationError> {
        let bad = || RotationError::Unusable(format!("{url:?} is not the address of an API server"));
        let uri: Uri = url.parse().map_err(|_| bad())?;
        let host = uri.host().ok_or_else(bad)?.trim_matches(['[', ']']).to_owned();
        let mut config = self.config.clone();
        // A certificate need not hold the address by which a server is reached from here.
        if host.parse::<IpAddr>().is_ok() && config.cluster_url.host() != uri.host() {
            config.tls_server_name = Some(NAME_IN_CERTIFICATES.into());
        }
        config.cluster_url = uri;
        client(config, &self.access)
    }
}

/// The host in a URL or an authority, without brackets and port.
pub(in crate::rotation) fn host_of(address: &str) -> String {
    let authority = address.split_once("://").map_or(address, |(_, rest)| rest);
    let authority = authority.split('/').next().unwrap_or(authority);
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.chars().all(|letter| letter.is_ascii_digit()) => host,
        _ => authority,
    };
    host.trim_matches(['[', ']']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::host_of;

    #[test]
    fn a_host_is_the_same_in_a_url_and_in_an_authority() {
        assert_eq!(host_of("https://10.99.0.1:6443"), "10.99.0.1");
        assert_eq!(host_of("https://[fd00::1]:6443/prefix"), "fd00::1");
        assert_eq!(host_of("[fd00::1]"), "fd00::1");
        assert_eq!(host_of("localhost:6443"), "localhost");
        assert_eq!(host_of("api.example.com"), "api.example.com");
    }
}
