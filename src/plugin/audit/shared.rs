//! What passes between those who record and the thread that writes.

use std::sync::Mutex;
use std::sync::atomic::AtomicU64;

use tokio::sync::oneshot;

use super::chain::Head;
use super::event::Event;

/// What is known of the log at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditState {
    /// The last record that was written.
    pub head: Head,
    /// Why the last attempt to write failed, where it did.
    pub problem: Option<String>,
}

/// What the thread and those who ask it share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) lost: AtomicU64,
    pub(super) state: Mutex<AuditState>,
}

/// One record on its way to the thread.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) time: jiff::Timestamp,
    pub(super) event: Event,
    pub(super) written: Option<oneshot::Sender<Result<(), String>>>,
}
