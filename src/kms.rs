//! The KMS v2 API on the wire, and a client of a plugin's socket: what an API server does.

pub mod plugins;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use self::v2::key_management_service_client::KeyManagementServiceClient;
use crate::encryption_config::Endpoint as Socket;

/// The generated KMS v2 API.
#[allow(missing_docs, clippy::pedantic, reason = "generated from proto/kms_v2.proto, which documents it")]
pub mod v2 {
    tonic::include_proto!("v2");
}

/// A client of one plugin.
pub type Client = KeyManagementServiceClient<Channel>;

/// Nobody answers on a socket.
#[derive(Debug, thiserror::Error)]
#[error("cannot connect to {socket}")]
pub struct ConnectError {
    /// Path of the socket, or `@` and its abstract name.
    pub socket: String,
    /// What the connector said: no such file, refused, not permitted.
    pub source: tonic::transport::Error,
}

/// Connects as kube-apiserver does, with the authority `localhost`.
///
/// # Errors
/// [`ConnectError`] when nobody listens.
pub async fn connect(socket: &Socket) -> Result<Client, ConnectError> {
    // The kernel knows an abstract name by its leading zero byte.
    let (path, shown) = match socket {
        Socket::Path(path) => (path.as_os_str().to_owned(), path.display().to_string()),
        Socket::Abstract(name) => (format!("\0{name}").into(), format!("@{name}")),
    };
    let dial = move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    };
    let channel = Endpoint::from_static("http://localhost").connect_with_connector(tower::service_fn(dial)).await;
    let channel = channel.map_err(|source| ConnectError { socket: shown, source })?;
    Ok(KeyManagementServiceClient::new(channel))
}
