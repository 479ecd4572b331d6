//! Wrapped DEKs that outlive a restart: an index in memory, written to the state folder behind everybody's back.
//!
//! The folder is a cache, which may be lost, and holds no secret; what lies in it sealed ([`super::sealed`]) is not the
//! store's. Nobody who asks or tells the store something waits for a disk: [`DekStore::write_behind`] does, in a task of
//! its own, and tries again for as long as it takes. What a folder that can be read holds is used, whatever else fails;
//! what is in memory and not in the folder is written there, also when it was there before.

mod folder;
mod problem;
mod state;
mod state_files;

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};
use tracing::{error, info, warn};

pub use self::folder::{StateFolder, is_private};
use self::problem::{Failed, words};
pub use self::state::MOST_KEPT;
use self::state::State;
pub use self::state_files::{Name, Place, StateFiles};
use super::history::History;
use crate::crypto::secret::DekId;
use crate::envelope::WrappedDekSet;

/// How long a start waits for the folder to be read. Later, what is in it is taken in when it comes.
const READ_WITHIN: Duration = Duration::from_secs(5);

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

impl DekStore {
    /// Reads what `files` hold, and waits for it for a few seconds at most.
    ///
    /// # Errors
    /// Only where another process has these files. Any other fault is reported by [`DekStore::problem`], and put right
    /// in the background.
    pub async fn open(files: Arc<dyn StateFiles>) -> io::Result<Self> {
        let (work, hurry) = (Notify::new(), Notify::new());
        let store = Self { files, state: Mutex::default(), work, hurry, unwritten: watch::Sender::new(0) };
        let looked = timeout(READ_WITHIN, store.look()).await;
        match looked.unwrap_or_else(|_| Err((Failed::Read, io::ErrorKind::TimedOut.into()))) {
            // Two plugins with one folder would each overwrite the history of the other.
            Err((_, error)) if error.kind() == io::ErrorKind::ResourceBusy => return Err(error),
            Err((failed, error)) => store.failed(failed, &error),
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

    /// How many DEKs a restart would find.
    pub fn count(&self) -> usize {
        let state = self.state();
        state.kept.keys().filter(|id| !state.changes.contains_key(&Name::Dek(**id))).count()
    }

    /// Has the place looked at soon: somebody may have removed or replaced it, or what is in it.
    pub(crate) fn look_soon(&self) {
        self.state().is_look_due = true;
        self.work.notify_one();
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

    /// Why something of this is in memory alone, or would be, where that is so.
    pub fn problem(&self) -> Option<String> {
        self.state().problem()
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
            let done = match self.next() {
                Task::Look => self.look().await,
                Task::Write(name, record) => self.write(name, record).await.inspect(|()| pause = FIRST_PAUSE),
                Task::Nothing => {
                    pause = FIRST_PAUSE;
                    self.work.notified().await;
                    continue;
                }
            };
            if let Err((failed, error)) = done {
                self.failed(failed, &error);
                let _ = timeout(pause, self.hurry.notified()).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }

    fn next(&self) -> Task {
        let mut state = self.state();
        if std::mem::take(&mut state.is_look_due) || !state.is_loaded || !state.is_taken {
            return Task::Look;
        }
        let change = state.changes.first_key_value();
        change.map_or(Task::Nothing, |(name, record)| Task::Write(*name, record.clone()))
    }

    /// Takes the place, takes in what another one than before holds, and finds out what is missing there.
    async fn look(&self) -> Result<(), Failure> {
        let taken = self.files.take().await.map_err(|error| (Failed::Write, error));
        let is_known = {
            let mut state = self.state();
            state.is_loaded &= !matches!(taken, Ok(Place::Other));
            state.is_loaded
        };
        if !is_known {
            if let Err((_, error)) = &taken
                && error.kind() == io::ErrorKind::ResourceBusy
            {
                return taken.map(drop);
            }
            // Also where it cannot be taken: what is there may be all that a KEK that answers can unwrap.
            self.load().await.map_err(|error| (Failed::Read, error))?;
        }
        let there = self.files.names().await.map_err(|error| (Failed::Read, error));
        let mut missing = 0;
        self.change(|state| {
            state.is_taken = taken.is_ok() && there.is_ok();
            // A restart would find nothing where nothing can be read.
            missing = state.write_missing(there.as_ref().unwrap_or(&BTreeSet::new()));
        });
        if missing > 0 {
            warn!(missing, "what stateDir held is not there any more; it is written again");
        }
        taken.and(there.map(drop))
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
        self.change(|state| state.take_in(deks, earlier));
        Ok(())
    }

    async fn write(&self, name: Name, record: Option<Vec<u8>>) -> Result<(), Failure> {
        let written = match &record {
            Some(record) => self.files.write(name, record).await,
            None => self.files.remove(name).await,
        };
        written.map_err(|error| (Failed::Write, error))?;
        self.change(|state| {
            // Something newer may have come meanwhile.
            if state.changes.get(&name) == Some(&record) {
                state.changes.remove(&name);
            }
            if name == Name::History {
                state.written = record.as_deref().and_then(History::decode).unwrap_or_default();
            }
        });
        Ok(())
    }

    fn failed(&self, failed: Failed, error: &io::Error) {
        let mut state = self.state();
        // Looked at again before anything is written: it may be another place by now.
        state.is_taken = false;
        let problem = words(failed, error);
        if state.problem.as_ref() != Some(&problem) {
            state.problem = Some(problem);
            error!(problem = state.problem(), "tried again in the background");
        }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        change(&mut state);
        state.changed = (!state.changes.is_empty()).then(|| state.changed.unwrap_or_else(Instant::now));
        if state.is_well() && state.problem.take().is_some() {
            info!("stateDir can be written again");
        }
        self.unwritten.send_replace(state.changes.len());
        drop(state);
        self.work.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What could not be done, and why.
type Failure = (Failed, io::Error);

/// What is to be done next with the place.
enum Task {
    Look,
    Write(Name, Option<Vec<u8>>),
    Nothing,
}

#[cfg(test)]
mod tests;
