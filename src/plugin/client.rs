//! A client of the plugin's own socket: what the API server does, for self-checks and commands.

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::config::SocketAddress;
use crate::kms::v2::key_management_service_client::KeyManagementServiceClient;
use crate::kms::v2::{DecryptRequest, EncryptRequest, StatusRequest};

/// Why a self-check failed.
#[derive(Debug, thiserror::Error)]
pub enum SelfCheckError {
    /// Nobody answers on the socket.
    #[error("cannot connect to {socket}")]
    Connect {
        /// Where the plugin should listen.
        socket: SocketAddress,
        /// What the connector said.
        source: tonic::transport::Error,
    },
    /// An RPC was refused.
    #[error("{rpc} was refused: {}", .status.message())]
    Refused {
        /// `Status`, `Encrypt` or `Decrypt`.
        rpc: &'static str,
        /// gRPC code and message, as the plugin sent them.
        status: Box<tonic::Status>,
    },
    /// What came back is not what went in.
    #[error("Decrypt gave back other bytes than Encrypt was given")]
    Mismatch,
}

/// What a self-check saw.
#[derive(Debug)]
pub struct SelfCheck {
    /// The `key_id` of Status.
    pub key_id: String,
    /// Bytes of the ciphertext of a 32-byte seed.
    pub ciphertext_bytes: usize,
    /// Bytes of annotations, keys and values.
    pub annotation_bytes: usize,
}

/// Connects as kube-apiserver does, with the authority `localhost`.
///
/// # Errors
/// [`SelfCheckError::Connect`].
pub async fn connect(socket: &SocketAddress) -> Result<KeyManagementServiceClient<Channel>, SelfCheckError> {
    channel(socket).await.map(KeyManagementServiceClient::new)
}

/// The connection alone.
///
/// # Errors
/// [`SelfCheckError::Connect`].
pub async fn channel(socket: &SocketAddress) -> Result<Channel, SelfCheckError> {
    let address = socket.clone();
    let dial = move |_: Uri| {
        let address = address.clone();
        async move { open(&address).await.map(TokioIo::new) }
    };
    let channel = Endpoint::from_static("http://localhost").connect_with_connector(tower::service_fn(dial)).await;
    channel.map_err(|source| SelfCheckError::Connect { socket: socket.clone(), source })
}

async fn open(address: &SocketAddress) -> std::io::Result<UnixStream> {
    match address {
        SocketAddress::File(path) => UnixStream::connect(path).await,
        // Tokio and the kernel know an abstract name by its leading zero byte.
        SocketAddress::Abstract(name) => UnixStream::connect(format!("\0{name}")).await,
    }
}

/// Status, Encrypt of random bytes, Decrypt of the result, through the socket.
///
/// # Errors
/// The first of the three calls that failed.
pub async fn self_check(socket: &SocketAddress) -> Result<SelfCheck, SelfCheckError> {
    let refused = |rpc| move |status| SelfCheckError::Refused { rpc, status: Box::new(status) };
    let mut client = connect(socket).await?;
    let status = client.status(StatusRequest {}).await.map_err(refused("Status"))?.into_inner();
    let mut plaintext = vec![0; 32];
    rand::fill(&mut plaintext[..]);
    let request = EncryptRequest { plaintext: plaintext.clone(), uid: "self-check".into() };
    let encrypted = client.encrypt(request).await.map_err(refused("Encrypt"))?.into_inner();
    let annotation_bytes = encrypted.annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
    let ciphertext_bytes = encrypted.ciphertext.len();
    let request = DecryptRequest {
        ciphertext: encrypted.ciphertext,
        uid: "self-check".into(),
        key_id: encrypted.key_id,
        annotations: encrypted.annotations,
    };
    let decrypted = client.decrypt(request).await.map_err(refused("Decrypt"))?.into_inner();
    // Compared here, and not trusted: an API server would notice a wrong seed only when an object does not open.
    if decrypted.plaintext != plaintext {
        return Err(SelfCheckError::Mismatch);
    }
    Ok(SelfCheck { key_id: status.key_id, ciphertext_bytes, annotation_bytes })
}
