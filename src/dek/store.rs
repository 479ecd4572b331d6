//! Wrapped DEKs that outlive a restart: an index in memory, written to the state folder behind everybody's back.
//!
//! The folder is a cache, which may be lost, and holds no secret; what lies in it sealed ([`super::sealed`]) is not the
//! store's. Nobody who asks or tells the store something waits for a disk: [`DekStore::write_behind`] does, in a task of
//! its own, and tries again for as long as it takes.

mod folder;
mod state_files;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};
use tracing::{error, info, warn};

pub use self::folder::{StateFolder, is_private};
pub use self::state_files::{Name, StateFiles};
use super::history::History;
use crate::crypto::secret::DekId;
use crate::envelope::WrappedDekSet;

/// The most DEKs that are kept. Each node has one for each generation: a hundred nodes may rotate ten times.
pub const MOST_KEPT: usize = 1024;

/// How long a start waits for the folder to be read. Later, what is in it is taken in when it comes.
const READ_WITHIN: Duration = Duration::from_secs(5);

/// What takes longer than this to be written is reported.
const SLOW: Duration = Duration::from_millis(250);

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The wrapped DEKs that are kept, and the history of this node.
#[derive(Debug)]
pub struct DekStore {
    files: Arc<dyn StateFiles>,
    state: Mutex<State>,
    work: Notify,
    /// Ends a pause after a failure: somebody waits.
    hurry: Notify,
    /// Records that are not written yet.
    unwritten: watch::Sender<usize>,
}

#[derive(Debug, Default)]
struct State {
    is_loaded: bool,
    kept: BTreeMap<DekId, Kept>,
    history: History,
    /// The history that a restart would find.
    written: History,
    /// What is to be written, or removed.
    changes: BTreeMap<Name, Option<Vec<u8>>>,
    /// Since when there has been something to write.
    changed: Option<Instant>,
    /// Why writing or reading failed, the last time.
    problem: Option<String>,
    /// Counts what was kept, to know the oldest.
    counter: u64,
}

#[derive(Clone, Debug)]
struct Kept {
    wrapped: Arc<WrappedDekSet>,
    since: u64,
}

impl DekStore {
    /// Reads what `files` hold, and waits for it for a few seconds at most.
    ///
    /// # Errors
    /// Only where another process has these files. Any other fault is reported by [`DekStore::problem`], and put right
    /// in the background.
    pub async fn open(files: Arc<dyn StateFiles>) -> io::Result<Self> {
        let (work, hurry) = (Notify::new(), Notify::new());
        let store = Self { files, state: Mutex::default(), work, hurry, unwritten: watch::Sender::new(0) };
        let loaded = timeout(READ_WITHIN, store.load()).await;
        match loaded.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut))) {
            // Two plugins with one folder would each overwrite the history of the other.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => return Err(error),
            Err(error) => store.failed("cannot be read", &error),
            Ok(()) => {}
        }
        Ok(store)
    }

    /// Keeps a wrapped DEK; one that is kept already is left alone.
    ///
    /// Where too many are kept, the oldest one that was not made here goes. Nothing is lost with it: each object in etcd
    /// carries the same wrapped DEK, and the next Decrypt of one keeps it again.
    pub fn keep(&self, id: DekId, wrapped: &WrappedDekSet) {
        let Ok(record) = wrapped.encode() else { return };
        self.change(|state| {
            if state.kept.contains_key(&id) {
                return;
            }
            state.put(id, wrapped.clone());
            state.changes.insert(Name::Dek(id), Some(record));
            state.prune();
        });
    }

    /// Removes a DEK that nothing unwraps any more.
    pub(crate) fn forget(&self, id: DekId) {
        self.change(|state| {
            state.kept.remove(&id);
            state.changes.insert(Name::Dek(id), None);
        });
    }

    /// Changes the history of this node.
    pub(crate) fn record(&self, change: impl FnOnce(&mut History)) {
        self.change(|state| {
            change(&mut state.history);
            state.changes.insert(Name::History, Some(state.history.encode()));
        });
    }

    /// Every DEK that is kept.
    pub fn kept(&self) -> Vec<(DekId, Arc<WrappedDekSet>)> {
        self.state().kept.iter().map(|(id, kept)| (*id, kept.wrapped.clone())).collect()
    }

    /// The DEK, if it is kept.
    pub fn find(&self, id: DekId) -> Option<Arc<WrappedDekSet>> {
        self.state().kept.get(&id).map(|kept| kept.wrapped.clone())
    }

    /// How many DEKs are kept.
    pub fn count(&self) -> usize {
        self.state().kept.len()
    }

    /// What this node adopted so far.
    pub fn history(&self) -> History {
        self.state().history.clone()
    }

    /// What a restart would find of it.
    pub(crate) fn written_history(&self) -> History {
        self.state().written.clone()
    }

    /// The DEK of a generation that a restart would go on with, if it is kept.
    pub(crate) fn find_written(&self, id: DekId) -> Option<Arc<WrappedDekSet>> {
        let state = self.state();
        state.is_written(id).then(|| state.kept.get(&id).map(|kept| kept.wrapped.clone())).flatten()
    }

    /// Why a restart would not find this DEK here, where it would not, or what else is in memory alone.
    pub(crate) fn problem_of(&self, id: DekId) -> Option<String> {
        let is_alone = || self.find_written(id).is_none();
        self.problem()
            .or_else(|| is_alone().then(|| "the key in use is in memory alone until stateDir takes it".into()))
    }

    /// Why something of this is in memory alone, where it is.
    pub fn problem(&self) -> Option<String> {
        let state = self.state();
        if state.changes.is_empty() && state.is_loaded {
            return None;
        }
        let is_slow = state.changed.is_some_and(|since| since.elapsed() >= SLOW);
        state
            .problem
            .clone()
            .or_else(|| is_slow.then(|| "stateDir is slow; what it should hold is in memory alone".into()))
    }

    /// Waits until everything is written, for `patience` at most; what failed is tried again at once. Whether it is.
    pub(crate) async fn is_written(&self, patience: Duration) -> bool {
        // A caller that waits here has a reason to; the pause between attempts may be half a minute by then.
        self.hurry.notify_one();
        let mut unwritten = self.unwritten.subscribe();
        let written = timeout(patience, unwritten.wait_for(|count| *count == 0)).await;
        written.is_ok_and(|written| written.is_ok())
    }

    /// Writes what is to be written, until it is dropped.
    pub async fn write_behind(self: Arc<Self>) {
        let mut pause = FIRST_PAUSE;
        loop {
            let done = if self.state().is_loaded {
                match self.next() {
                    Some((name, record)) => self.write(name, record).await,
                    None => {
                        self.work.notified().await;
                        continue;
                    }
                }
            } else {
                self.load().await.map_err(|error| ("cannot be read", error))
            };
            match done {
                Ok(()) => pause = FIRST_PAUSE,
                Err((what, error)) => {
                    self.failed(what, &error);
                    let _ = timeout(pause, self.hurry.notified()).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    async fn load(&self) -> io::Result<()> {
        let records = self.files.load().await?;
        let mut deks = Vec::new();
        let mut earlier = History::default();
        for (name, record) in records {
            match name {
                Name::Dek(id) => match WrappedDekSet::decode(&record) {
                    Ok(wrapped) => deks.push((id, wrapped)),
                    Err(error) => warn!(dek_id = %id, %error, "a kept DEK is not readable; going on without it"),
                },
                Name::History => match History::decode(&record) {
                    Some(history) => earlier = history,
                    None => warn!("the record of adoptions is not readable; going on without it"),
                },
            }
        }
        self.change(|state| {
            for (id, wrapped) in deks {
                // What a Decrypt gave back meanwhile need not be written again.
                if state.kept.get(&id).is_some_and(|kept| *kept.wrapped == wrapped) {
                    state.changes.remove(&Name::Dek(id));
                } else if !state.kept.contains_key(&id) {
                    state.put(id, wrapped);
                }
            }
            if !state.is_loaded && state.history != History::default() {
                let history = std::mem::take(&mut state.history).after(earlier.clone());
                state.changes.insert(Name::History, Some(history.encode()));
                state.history = history;
            } else {
                state.history = earlier.clone();
            }
            state.written = earlier;
            state.is_loaded = true;
            state.prune();
        });
        Ok(())
    }

    fn next(&self) -> Option<(Name, Option<Vec<u8>>)> {
        self.state().changes.first_key_value().map(|(name, record)| (*name, record.clone()))
    }

    async fn write(&self, name: Name, record: Option<Vec<u8>>) -> Result<(), (&'static str, io::Error)> {
        let written = match &record {
            Some(record) => self.files.write(name, record).await,
            None => self.files.remove(name).await,
        };
        written.map_err(|error| ("cannot be written to", error))?;
        self.change(|state| {
            // Something newer may have come meanwhile.
            if state.changes.get(&name) == Some(&record) {
                state.changes.remove(&name);
            }
            if name == Name::History {
                state.written = record.as_deref().and_then(History::decode).unwrap_or_default();
            }
            if state.changes.is_empty() && state.problem.take().is_some() {
                info!("stateDir can be written again");
            }
        });
        Ok(())
    }

    fn failed(&self, what: &str, error: &io::Error) {
        let problem = format!("stateDir {what} ({error}); what it should hold is in memory alone");
        let mut state = self.state();
        if state.problem.as_ref() != Some(&problem) {
            error!(problem, "tried again in the background");
            state.problem = Some(problem);
        }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        change(&mut state);
        state.changed = (!state.changes.is_empty()).then(|| state.changed.unwrap_or_else(Instant::now));
        self.unwritten.send_replace(state.changes.len());
        drop(state);
        self.work.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_written(&self, id: DekId) -> bool {
        self.written.deks().any(|written| written == id) && !self.changes.contains_key(&Name::Dek(id))
    }

    fn put(&mut self, id: DekId, wrapped: WrappedDekSet) {
        self.counter += 1;
        self.kept.insert(id, Kept { wrapped: Arc::new(wrapped), since: self.counter });
    }

    fn prune(&mut self) {
        while self.kept.len() > MOST_KEPT {
            let others = self.kept.iter().filter(|(id, _)| self.history.deks().all(|own| own != **id));
            let Some(oldest) = others.min_by_key(|(_, kept)| kept.since).map(|(id, _)| *id) else { return };
            self.kept.remove(&oldest);
            self.changes.insert(Name::Dek(oldest), None);
        }
    }
}

#[cfg(test)]
mod tests;
