//! The SDK's HTTP client where its own is not the right one: with a `caFile` or a `proxy`.

use std::path::Path;

use aws_sdk_kms::config::{RuntimeComponents, SharedHttpClient};
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_http_client::{Builder, Connector};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use url::Url;

use crate::kek::KekError;

/// The client; none where the SDK's own does. Nothing else than the settings makes it use a proxy.
///
/// # Errors
/// A `caFile` that cannot be read, or a proxy that cannot be used.
pub(super) fn client(ca_file: Option<&Path>, proxy: Option<&Url>) -> Result<Option<SharedHttpClient>, KekError> {
    if ca_file.is_none() && proxy.is_none() {
        return Ok(None);
    }
    let tls = match ca_file {
        Some(file) => TlsContext::builder().with_trust_store(trust_store(file)?).build(),
        None => TlsContext::builder().build(),
    };
    let tls = tls.map_err(|error| KekError::misconfigured("TLS cannot be set up").with_source(error))?;
    let Some(proxy) = proxy else {
        let builder = Builder::new().tls_provider(Provider::Rustls(CryptoMode::AwsLc));
        return Ok(Some(builder.tls_context(tls).build_https()));
    };
    // For https alone: the metadata service is asked by http, and is of this machine.
    let proxy = ProxyConfig::https(proxy.as_str())
        .map_err(|error| KekError::misconfigured(format!("proxy {proxy} cannot be used")).with_source(error))?;
    Ok(Some(Builder::new().build_with_connector_fn(move |settings, components| {
        let mut connector = Connector::builder().proxy_config(proxy.clone());
        connector.set_connector_settings(settings.cloned());
        connector.set_sleep_impl(components.and_then(RuntimeComponents::sleep_impl));
        connector.tls_provider(Provider::Rustls(CryptoMode::AwsLc)).tls_context(tls.clone()).build()
    })))
}

/// The certificates of `file`, checked here: the SDK would panic over a bad one.
fn trust_store(file: &Path) -> Result<TrustStore, KekError> {
    let name = file.display();
    let pem = crate::files::read(file, crate::files::MAX_PEM_BYTES)
        .map_err(|error| KekError::unavailable(format!("cannot read caFile {name}")).with_source(error))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate =
            certificate.map_err(|error| KekError::misconfigured(format!("{name} is not PEM")).with_source(error))?;
        roots.add(certificate).map_err(|error| {
            KekError::misconfigured(format!("{name} contains a certificate that is not a CA's")).with_source(error)
        })?;
    }
    if roots.is_empty() {
        return Err(KekError::misconfigured(format!("{name} contains no certificate in PEM form")));
    }
    Ok(TrustStore::empty().with_pem_certificate(pem))
}
