//! The RPCs over any stream of connections, until they are told to stop.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tonic::transport::server::Connected;
use tracing::info;

use super::grpc;
use super::kms_v1::KmsV1;
use super::service::Service;
use crate::telemetry::Metrics;

/// How long requests under way may take once the plugin is told to stop, and idle connections stay open.
const GRACE: Duration = Duration::from_millis(1500);

/// Requests at once on one connection. An API server has one connection: with a lower limit its Status would wait until
/// its Decrypts have had their answers.
const STREAMS: u32 = 4096;

const MAX_HEADER_BYTES: u32 = 16 * 1024;

/// Serves until `shutdown`; then until all requests are answered, or 1.5 s is over.
///
/// # Errors
/// When the server ends before `shutdown`.
pub async fn serve<C, E>(
    connections: impl Stream<Item = Result<C, E>>,
    service: Arc<Service>,
    metrics: Arc<Metrics>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error>
where
    C: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (stopping, mut stopped) = watch::channel(false);
    let server = tonic::transport::Server::builder()
        // An API server that starts asks for many seeds over one connection.
        .max_concurrent_streams(STREAMS)
        .http2_max_header_list_size(MAX_HEADER_BYTES)
        .add_service(grpc::server(service, metrics))
        // So that an EncryptionConfiguration with `apiVersion: v1` gets an answer that names the mistake.
        .add_service(KmsV1::default())
        .serve_with_incoming_shutdown(connections, async move {
            let _ = stopped.wait_for(|stopped| *stopped).await;
        });
    tokio::pin!(server);
    tokio::select! {
        ended = &mut server => return ended,
        () = shutdown => info!("stopping"),
    }
    let _ = stopping.send(true);
    // A peer that connected and sends nothing would hold the server open for as long as it likes.
    if tokio::time::timeout(GRACE, server).await.is_err() {
        info!("closing connections that are still open");
    }
    Ok(())
}
