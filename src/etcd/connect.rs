//! A channel to one etcd endpoint, over TLS where its URL says so.

use std::path::Path;
use std::time::Duration;

use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::{EtcdAccess, EtcdError};

/// Longer than etcd itself lets a request take, so that its own words arrive.
const TIMEOUT: Duration = Duration::from_secs(30);
/// A member that is down must not delay the others for long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) async fn connect(url: &str, access: &EtcdAccess) -> Result<Channel, EtcdError> {
    let unreachable = |error: tonic::transport::Error| EtcdError::Unreachable(cause(&error));
    let mut endpoint =
        Endpoint::from_shared(url.to_owned()).map_err(unreachable)?.connect_timeout(CONNECT_TIMEOUT).timeout(TIMEOUT);
    if url.starts_with("https:") {
        let mut tls = ClientTlsConfig::new();
        if let Some(ca) = &access.ca {
            tls = tls.ca_certificate(Certificate::from_pem(read(ca)?));
        }
        if let (Some(certificate), Some(key)) = (&access.certificate, &access.key) {
            tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
        }
        endpoint = endpoint.tls_config(tls).map_err(unreachable)?;
    }
    endpoint.connect().await.map_err(unreachable)
}

fn read(file: &Path) -> Result<Vec<u8>, EtcdError> {
    std::fs::read(file).map_err(|source| EtcdError::File { file: file.into(), source })
}

/// The innermost cause: the layers above it say nothing that helps an operator.
pub(super) fn cause(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), cause)
}
