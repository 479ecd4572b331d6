//! A channel to one etcd endpoint, over TLS where its URL says so.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Uri};
use tonic::{Code, Status};

use crate::error_chain::with_known_cause;

/// How etcd is reached.
#[derive(Clone, Debug, Default)]
pub struct EtcdAccess {
    /// URLs of members, of one cluster or of several; `unix:` and a path is a socket on this machine.
    pub endpoints: Vec<String>,
    /// The authority that signed the members' certificates.
    pub ca: Option<PathBuf>,
    /// Client certificate in PEM, with its chain.
    pub certificate: Option<PathBuf>,
    /// The certificate's private key in PEM.
    pub key: Option<PathBuf>,
    /// How long a request may take; some seconds longer than etcd itself lets it, where this is `None`.
    pub timeout: Option<Duration>,
}

/// Why etcd could not be read.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// A file of the TLS set-up cannot be read.
    #[error("cannot read {}", .file.display())]
    File {
        /// The certificate, key or authority that was named.
        file: PathBuf,
        /// What the system said when it was read.
        source: std::io::Error,
    },
    /// No member answers, with what each of them said.
    #[error("no etcd endpoint answers: {0}")]
    Unreachable(String),
    /// A request failed.
    #[error("etcd answered with an error")]
    Refused(#[source] Box<Status>),
}

impl EtcdError {
    /// Whether it may be otherwise in a moment: no member answers, or the members are electing a leader.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable(_) => true,
            Self::Refused(status) => {
                // `Unknown` is what tonic makes of a connection that broke in the middle of an answer.
                matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Unknown)
            }
            Self::File { .. } => false,
        }
    }
}

/// Whether the revision that was asked for is gone. A revision that is not there yet has the same code, and etcd's own
/// grpc-proxy passes both on as `Unknown`; the text is the same everywhere (etcd, api/v3rpc/rpctypes/error.go).
pub(super) fn says_compacted(status: &Status) -> bool {
    matches!(status.code(), Code::OutOfRange | Code::Unknown)
        && status.message().contains("required revision has been compacted")
}

/// Longer than etcd itself lets a request take, so that its own words arrive.
const TIMEOUT: Duration = Duration::from_secs(30);
/// A member that is down must not delay the others for long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) async fn connect(url: &str, access: &EtcdAccess) -> Result<Channel, EtcdError> {
    let timeout = access.timeout.unwrap_or(TIMEOUT);
    let unreachable = |error: tonic::transport::Error| EtcdError::Unreachable(with_known_cause(cause(&error)));
    if let Some(path) = url.strip_prefix("unix:") {
        let path = PathBuf::from(path);
        let dial = move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        };
        // A URL for the form alone: the connector knows where to go.
        let endpoint = Endpoint::from_static("http://localhost").timeout(timeout);
        return endpoint.connect_with_connector(tower::service_fn(dial)).await.map_err(unreachable);
    }
    let mut endpoint =
        Endpoint::from_shared(url.to_owned()).map_err(unreachable)?.connect_timeout(CONNECT_TIMEOUT).timeout(timeout);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compacted_revision_is_known_through_a_proxy_and_one_that_is_not_there_yet_is_not_taken_for_it() {
        let gone = "etcdserver: mvcc: required revision has been compacted";
        assert!(says_compacted(&Status::out_of_range(gone)) && says_compacted(&Status::unknown(gone)));
        assert!(!says_compacted(&Status::out_of_range("etcdserver: mvcc: required revision is a future revision")));
        assert!(!says_compacted(&Status::unavailable(gone)));
    }
}
