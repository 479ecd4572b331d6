//! How the KEKs with an HTTP client of their own connect: time limits, trust, no redirects, no proxy but the configured one.

use std::path::Path;
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, ClientBuilder, Proxy};
use url::Url;

use crate::kek::KekError;

/// The time to have a connection.
const CONNECT: Duration = Duration::from_millis(700);
/// How long an idle connection is kept: longer than the pause between two refreshes.
const IDLE: Duration = Duration::from_secs(90);

/// What all have in common. `ca_file` holds the only authorities to trust, instead of the system's.
pub(in crate::key_stores) fn builder(ca_file: Option<&Path>, proxy: Option<&Url>) -> Result<ClientBuilder, KekError> {
    // A redirect would carry the token elsewhere, and a proxy that the environment names is there for other traffic than
    // that of keys.
    let mut builder =
        ClientBuilder::new().connect_timeout(CONNECT).pool_idle_timeout(IDLE).redirect(Policy::none()).no_proxy();
    if let Some(proxy) = proxy {
        // For https alone: a metadata service is asked by http, and is of this machine.
        let proxy = Proxy::https(proxy.clone()).map_err(|error| {
            KekError::misconfigured(format!("proxy {proxy} cannot be used")).with_source(error.without_url())
        })?;
        builder = builder.proxy(proxy);
    }
    Ok(match ca_file {
        // Only these: a caFile is set so that no public authority can vouch for the key store.
        Some(file) => builder.tls_certs_only(certificates(file)?),
        None => builder,
    })
}

/// Makes the client.
pub(in crate::key_stores) fn build(builder: ClientBuilder) -> Result<Client, KekError> {
    builder.build().map_err(|error| {
        KekError::misconfigured("cannot set up TLS; install the system's CA certificates or set caFile")
            .with_source(error)
    })
}

/// Reads the certificates of a caFile.
pub(in crate::key_stores) fn certificates(file: &Path) -> Result<Vec<Certificate>, KekError> {
    let name = file.display();
    let pem = crate::files::read(file, crate::files::MAX_PEM_BYTES)
        .map_err(|error| KekError::unavailable(format!("cannot read caFile {name}")).with_source(error))?;
    let certificates = Certificate::from_pem_bundle(&pem)
        .map_err(|error| KekError::misconfigured(format!("caFile {name} is not PEM")).with_source(error))?;
    if certificates.is_empty() {
        return Err(KekError::misconfigured(format!("caFile {name} contains no certificate")));
    }
    Ok(certificates)
}
