//! What is handed over, whichever way, and the thread that may wait for it.

use std::io;

use crate::dek::handover::Handover;
use crate::plugin::service::Service;

/// What the next process may use of what is in memory now; none where that is nothing.
pub(super) fn held(service: &Service, epoch: u64) -> Option<Handover> {
    let made = service.cache().now();
    let (deks, opened) = service.cache().hand_over();
    (!deks.is_empty()).then(|| Handover { made, cluster: service.cluster().clone(), epoch, deks, opened })
}

/// # Errors
/// Of the work.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}
