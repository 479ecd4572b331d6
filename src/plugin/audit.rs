//! The audit log: one JSON line for each use of a key, chained by hash so that a change shows.
//!
//! A thread of its own writes it. Nothing waits for it, unless `audit.required` says that no key is used unrecorded.

pub mod chain;
mod event;
mod shared;
pub mod verify;
mod writer;

use std::sync::atomic::Ordering;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

pub use self::event::{Event, Peer, Use};
pub use self::shared::AuditState;
use self::shared::{Entry, Shared};
use self::writer::Writer;
use crate::config::AuditSettings;

/// Records that wait for a slow disk; beyond these they are counted as lost.
const WAITING: usize = 4096;

/// How long a required record may take: a disk that hangs must not use up the API server's patience.
const WRITTEN_WITHIN: Duration = Duration::from_secs(2);

/// How long the last records may take at the end of the process.
const STOPS_WITHIN: Duration = Duration::from_millis(500);

/// A required record that could not be written.
#[derive(Debug, thiserror::Error)]
#[error("the audit log cannot be written, and audit.required is set: {0}")]
pub struct Unrecorded(String);

/// The log. Without settings it records nothing.
#[derive(Debug, Default)]
pub struct Audit {
    log: Option<Log>,
}

#[derive(Debug)]
struct Log {
    required: bool,
    waiting: SyncSender<Entry>,
    shared: Arc<Shared>,
}

impl Audit {
    /// Starts the thread that writes. A file that cannot be opened now is tried again.
    ///
    /// # Errors
    /// When the system has no thread.
    pub fn start(settings: Option<&AuditSettings>) -> std::io::Result<Self> {
        let Some(AuditSettings { file, required }) = settings else { return Ok(Self::default()) };
        let (waiting, entries) = sync_channel(WAITING);
        let shared = Arc::new(Shared::default());
        let writer = Writer::new(file.clone(), *required, shared.clone());
        std::thread::Builder::new().name("audit".into()).spawn(move || writer.run(&entries))?;
        Ok(Self { log: Some(Log { required: *required, waiting, shared }) })
    }

    /// Records what needs no answer.
    pub fn note(&self, event: Event) {
        if let Some(log) = &self.log {
            log.send(event, None);
        }
    }

    /// Records a use of a key.
    ///
    /// # Errors
    /// When the record is required and was not written: the answer must not be given.
    pub async fn record(&self, event: impl FnOnce() -> Event) -> Result<(), Unrecorded> {
        let Some(log) = &self.log else { return Ok(()) };
        // Not waited for: a record that is lost is counted, and the next line tells how many were.
        if !log.required {
            log.send(event(), None);
            return Ok(());
        }
        let (written, answer) = oneshot::channel();
        if !log.send(event(), Some(written)) {
            return Err(Unrecorded("too many records wait for the disk".into()));
        }
        match tokio::time::timeout(WRITTEN_WITHIN, answer).await {
            Ok(Ok(answer)) => answer.map_err(Unrecorded),
            Ok(Err(_)) => Err(Unrecorded("its thread ended".into())),
            Err(_) => Err(Unrecorded(format!("the disk did not answer within {WRITTEN_WITHIN:?}"))),
        }
    }

    /// Records the end, and waits a moment for all that is under way.
    pub async fn stop(&self) {
        let Some(log) = &self.log else { return };
        let (written, answer) = oneshot::channel();
        log.send(Event::Stop, Some(written));
        let _ = tokio::time::timeout(STOPS_WITHIN, answer).await;
    }

    /// Why no key is used just now, where a record is required and cannot be written.
    pub fn refusal(&self) -> Option<String> {
        let log = self.log.as_ref().filter(|log| log.required)?;
        let problem = log.shared.state.lock().unwrap_or_else(PoisonError::into_inner).problem.clone()?;
        Some(Unrecorded(problem).to_string())
    }

    /// How the log stands, where there is one, and how many records are lost and not yet noted in it.
    pub fn state(&self) -> Option<(AuditState, u64)> {
        let log = self.log.as_ref()?;
        let state = log.shared.state.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Some((state, log.shared.lost.load(Ordering::Relaxed)))
    }
}

impl Log {
    /// Whether the record is on its way; one that is not counts as lost.
    fn send(&self, event: Event, written: Option<oneshot::Sender<Result<(), String>>>) -> bool {
        let entry = Entry { time: jiff::Timestamp::now(), event, written };
        // Never waits: a disk that hangs must not hang the RPCs.
        match self.waiting.try_send(entry) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.shared.lost.fetch_add(1, Ordering::Relaxed);
                false
            }
        }
    }
}
