//! From a kubeconfig to clients: credentials, authorities, proxies.

use std::path::Path;
use std::sync::Arc;

use http::{HeaderValue, header};
use kube::config::{KubeConfigOptions, Kubeconfig};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::access::Access;
use super::proxy::Environment;
use crate::error_chain::with_known_cause;
use crate::rotation::cluster::api::{Api, Renew, chain};
use crate::rotation::error::RotationError;

/// Reads the configuration from its files. Its proxy is the one that the kubeconfig names, and no other.
pub(super) async fn read(access: &Access) -> Result<kube::Config, RotationError> {
    let options = KubeConfigOptions { context: access.context.clone(), ..KubeConfigOptions::default() };
    let kubeconfig = match &access.kubeconfig {
        Some(file) => Some(Kubeconfig::read_from(file).map_err(|error| unusable(&error))?),
        None => Kubeconfig::read().map_err(|error| unusable(&error)).ok(),
    };
    let (mut config, proxy) = match kubeconfig {
        Some(kubeconfig) => {
            let proxy = proxy_url(&kubeconfig, access.context.as_deref());
            let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await;
            (config.map_err(|error| unusable(&error))?, proxy)
        }
        None if access.context.is_some() => {
            return Err(RotationError::Unusable("--context is given, but there is no kubeconfig".into()));
        }
        None => (kube::Config::infer().await.map_err(|error| unusable(&error))?, None),
    };
    config.proxy_url = Environment::default().proxy(proxy.as_deref(), &config.cluster_url)?;
    if let Some(file) = &access.server_ca {
        config.root_cert.get_or_insert_default().extend(authorities(file)?);
        config.root_cert_file = None;
    }
    // What is tried again, and when, is decided by the rewrite alone.
    config.default_retry = false;
    let agent = concat!("kube-envelope/", env!("CARGO_PKG_VERSION"));
    config.headers.push((header::USER_AGENT, HeaderValue::from_static(agent)));
    Ok(config)
}

/// The `proxy-url` of the cluster that a kubeconfig leads to.
fn proxy_url(kubeconfig: &Kubeconfig, context: Option<&str>) -> Option<String> {
    let name = context.or(kubeconfig.current_context.as_deref())?;
    let context = kubeconfig.contexts.iter().find(|one| one.name == name)?.context.as_ref()?;
    let cluster = kubeconfig.clusters.iter().find(|one| one.name == context.cluster)?;
    cluster.cluster.as_ref()?.proxy_url.clone()
}

/// The certificates in a PEM file, in DER.
fn authorities(file: &Path) -> Result<Vec<Vec<u8>>, RotationError> {
    let bad = |why: String| RotationError::Unusable(format!("--server-ca {}: {why}", file.display()));
    let text = std::fs::read(file).map_err(|error| bad(error.to_string()))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found.iter().map(|certificate| certificate.to_vec()).collect()),
        Ok(_) => Err(bad("it contains no certificate in PEM".into())),
        Err(error) => Err(bad(format!("it is not PEM: {error}"))),
    }
}

/// A client of the address in `config` that reads its credentials again when they are refused.
pub(super) fn client(mut config: kube::Config, access: &Access) -> Result<Api, RotationError> {
    let authority = config.cluster_url.authority().map(ToString::to_string).unwrap_or_default();
    if config.proxy_url.is_none() {
        config.proxy_url = Environment::of_this_process().proxy(None, &config.cluster_url)?;
    }
    let (access, unchanged) = (access.clone(), config.clone());
    let renew: Renew = Arc::new(move || {
        let (access, mut config) = (access.clone(), unchanged.clone());
        Box::pin(async move {
            config.auth_info = read(&access).await.ok()?.auth_info;
            kube::Client::try_from(config).ok()
        })
    });
    let client = kube::Client::try_from(config).map_err(|error| {
        RotationError::Unusable(format!("cannot make a client for {authority}: {}", with_known_cause(chain(&error))))
    })?;
    Ok(Api::new(client, authority, Some(renew)))
}

fn unusable(error: &dyn std::error::Error) -> RotationError {
    RotationError::Unusable(format!("cannot reach a cluster: {}", chain(error)))
}
