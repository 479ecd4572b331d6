//! What the store knows: what is kept, what the place holds of it, and what is to be written there. Pure but for the
//! clock that tells a slow disk.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::state_files::Name;
use crate::crypto::secret::DekId;
use crate::dek::history::History;
use crate::envelope::WrappedDekSet;

/// The most DEKs that are kept. Each node has one for each generation: a hundred nodes may rotate ten times.
pub const MOST_KEPT: usize = 1024;

/// What takes longer than this to be written is reported.
const SLOW: Duration = Duration::from_millis(250);

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) is_loaded: bool,
    /// Whether the place was this process's when it was looked at last, and could be written.
    pub(super) is_taken: bool,
    /// Whether somebody wants it to be looked at.
    pub(super) is_look_due: bool,
    pub(super) kept: BTreeMap<DekId, Kept>,
    pub(super) history: History,
    /// The history that a restart would find; that of a place that is away, as it may come back.
    pub(super) written: History,
    /// What is to be written, or removed.
    pub(super) changes: BTreeMap<Name, Option<Vec<u8>>>,
    /// Since when there has been something to write.
    pub(super) changed: Option<Instant>,
    /// Why writing or reading failed, the last time.
    pub(super) problem: Option<String>,
    /// Counts what was kept, to know the oldest.
    pub(super) counter: u64,
}

#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub(super) wrapped: Arc<WrappedDekSet>,
    pub(super) since: u64,
}

impl State {
    pub fn is_well(&self) -> bool {
        self.changes.is_empty() && self.is_loaded && self.is_taken
    }

    pub fn problem(&self) -> Option<String> {
        if self.is_well() {
            return None;
        }
        let is_slow = self.changed.is_some_and(|since| since.elapsed() >= SLOW);
        let problem = self.problem.as_deref().or(is_slow.then_some("stateDir is slow"))?;
        let what =
            if self.changes.is_empty() && self.is_loaded { "what is new will be" } else { "what it should hold is" };
        Some(format!("{problem}; {what} in memory alone"))
    }

    pub fn is_written(&self, id: DekId) -> bool {
        self.written.deks().any(|written| written == id)
            && !(self.is_taken && self.changes.contains_key(&Name::Dek(id)))
    }

    /// Takes in what a place holds that was not known before.
    pub fn take_in(&mut self, deks: Vec<(DekId, WrappedDekSet)>, earlier: History) {
        for (id, wrapped) in deks {
            let name = Name::Dek(id);
            match self.kept.get(&id) {
                // What a Decrypt gave back meanwhile need not be written again.
                Some(kept) if *kept.wrapped == wrapped => drop(self.changes.remove(&name)),
                Some(kept) => drop(kept.wrapped.encode().map(|record| self.changes.insert(name, Some(record)))),
                // Forgotten, and only its file not removed yet.
                None if self.changes.contains_key(&name) => {}
                None => self.put(id, wrapped),
            }
        }
        self.history = std::mem::take(&mut self.history).after(earlier.clone());
        self.changes.remove(&Name::History);
        if self.history != earlier {
            self.changes.insert(Name::History, Some(self.history.encode()));
        }
        self.written = earlier;
        self.is_loaded = true;
        self.prune();
    }

    /// Has everything written that should be in the place and is not. How many records were there before.
    pub fn write_missing(&mut self, there: &BTreeSet<Name>) -> usize {
        let known = self.changes.len();
        for (id, kept) in &self.kept {
            let name = Name::Dek(*id);
            if !there.contains(&name)
                && let Ok(record) = kept.wrapped.encode()
            {
                self.changes.entry(name).or_insert(Some(record));
            }
        }
        if !there.contains(&Name::History) && self.history != History::default() {
            self.changes.entry(Name::History).or_insert_with(|| Some(self.history.encode()));
        }
        self.changes.len().saturating_sub(known)
    }

    pub fn put(&mut self, id: DekId, wrapped: WrappedDekSet) {
        self.counter += 1;
        self.kept.insert(id, Kept { wrapped: Arc::new(wrapped), since: self.counter });
    }

    pub fn prune(&mut self) {
        while self.kept.len() > MOST_KEPT {
            let others = self.kept.iter().filter(|(id, _)| self.history.deks().all(|own| own != **id));
            let Some(oldest) = others.min_by_key(|(_, kept)| kept.since).map(|(id, _)| *id) else { return };
            self.kept.remove(&oldest);
            self.changes.insert(Name::Dek(oldest), None);
        }
    }
}
