//! The API servers of a cluster: how each is reached, and how many there should be.

use std::net::IpAddr;
use std::path::PathBuf;

use http::{HeaderValue, Uri, header};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde::Deserialize;

use super::RotationError;
use super::api::{Api, null_as_empty};
use super::metrics::key_id_hash;

/// Every API server's certificate holds this name, for clients inside the cluster; by it one server is verified
/// that is reached by address.
const NAME_IN_CERTIFICATES: &str = "kubernetes.default.svc";

/// A Lease is renewed every 10 s; one that lags this much behind the freshest belongs to a server that is gone.
const LEASE_LAG_SECONDS: i64 = 60;

/// How the cluster is reached.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// A kubeconfig; else the usual places, else the service account of a pod.
    pub kubeconfig: Option<PathBuf>,
    /// Context in it.
    pub context: Option<String>,
    /// Addresses of all API servers; else the endpoints of `default/kubernetes`.
    pub servers: Vec<String>,
}

/// A cluster that can be asked.
pub struct Cluster {
    config: kube::Config,
    entry: Api,
    servers: Vec<String>,
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
    metadata: super::api::Metadata,
    spec: LeaseSpec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LeaseSpec {
    renew_time: Option<jiff::Timestamp>,
}

impl Cluster {
    /// Reads the configuration; asks nobody yet.
    pub async fn connect(access: &Access) -> Result<Self, RotationError> {
        let unusable = |error: &dyn std::error::Error| {
            RotationError::Unusable(format!("cannot reach a cluster: {}", super::api::chain(error)))
        };
        let options = KubeConfigOptions { context: access.context.clone(), ..KubeConfigOptions::default() };
        let mut config = if let Some(file) = &access.kubeconfig {
            let kubeconfig = Kubeconfig::read_from(file).map_err(|error| unusable(&error))?;
            kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|error| unusable(&error))?
        } else if access.context.is_some() {
            kube::Config::from_kubeconfig(&options).await.map_err(|error| unusable(&error))?
        } else {
            kube::Config::infer().await.map_err(|error| unusable(&error))?
        };
        // What is tried again, and when, is decided by the rewrite alone.
        config.default_retry = false;
        let agent = concat!("kube-envelope/", env!("CARGO_PKG_VERSION"));
        config.headers.push((header::USER_AGENT, HeaderValue::from_static(agent)));
        let entry = client(config.clone())?;
        Ok(Self { config, entry, servers: access.servers.clone() })
    }

    /// The address that the configuration names; perhaps a balancer.
    pub fn entry(&self) -> &Api {
        &self.entry
    }

    /// The same over connections of its own: a balancer may lead each to another API server.
    pub fn entry_anew(&self) -> Result<Api, RotationError> {
        client(self.config.clone())
    }

    /// Each API server by itself.
    pub async fn servers(&self) -> Result<Vec<Api>, RotationError> {
        let urls = if self.servers.is_empty() { self.endpoints().await? } else { self.servers.clone() };
        if urls.is_empty() {
            // An API server that is not ready is no endpoint, and may be asked all the same.
            return Ok(vec![self.entry.clone()]);
        }
        urls.iter().map(|url| self.server(url)).collect()
    }

    /// Hashes of the identity Leases that are kept fresh, as the servers' metrics name them.
    pub async fn identities(&self) -> Result<Vec<String>, RotationError> {
        let path = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases\
                    ?labelSelector=apiserver.kubernetes.io%2Fidentity%3Dkube-apiserver";
        let leases: Leases =
            self.entry.get_json(path).await.map_err(RotationError::api("list the API servers' identity Leases"))?;
        let renewed = |lease: &Lease| lease.spec.renew_time.map_or(0, jiff::Timestamp::as_second);
        let freshest = leases.items.iter().map(renewed).max().unwrap_or(0);
        Ok(leases
            .items
            .iter()
            .filter(|lease| freshest - renewed(lease) <= LEASE_LAG_SECONDS)
            .map(|lease| key_id_hash(&lease.metadata.name))
            .collect())
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
        urls.sort();
        urls.dedup();
        Ok(urls)
    }

    fn server(&self, url: &str) -> Result<Api, RotationError> {
        let bad = || RotationError::Unusable(format!("{url:?} is no address of an API server"));
        let uri: Uri = url.parse().map_err(|_| bad())?;
        let host = uri.host().ok_or_else(bad)?.trim_matches(['[', ']']).to_owned();
        let mut config = self.config.clone();
        if host.parse::<IpAddr>().is_ok() && config.cluster_url.host() != uri.host() {
            config.tls_server_name = Some(NAME_IN_CERTIFICATES.into());
        }
        config.cluster_url = uri;
        client(config)
    }
}

fn client(config: kube::Config) -> Result<Api, RotationError> {
    let authority = config.cluster_url.authority().map(ToString::to_string).unwrap_or_default();
    let client = kube::Client::try_from(config)
        .map_err(|error| RotationError::Unusable(format!("cannot make a client for {authority}: {error}")))?;
    Ok(Api::new(client, authority))
}
