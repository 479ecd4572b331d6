//! A run of `rotate-keys`: what it remembers, and where it stands.

use crate::protection::Protection;
use crate::scenario::{Procedure, Scenario};
use crate::set::{Key, Set};

/// What a run knows. All of it but `alive`, `lapsed` and `checked` is in the journal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Run {
    pub phase: Phase,
    /// Whether its process lives.
    pub alive: bool,
    /// Whether it was stopped for longer than its Lease lasts, and does not know yet.
    pub lapsed: bool,
    /// Whether it has seen that the KEK still has the version that it noted.
    pub checked: bool,
    /// Whether it was told to rotate the KEK.
    pub rotates: bool,
    /// Whether it was told how many servers there are.
    pub counts: bool,
    /// The version that was active before it rotated the KEK.
    pub noted: Option<Key>,
    pub former: Set,
    pub target: Option<Key>,
    /// The servers that were seen to store under the target.
    pub proved: Set,
    /// Those of them whose metrics have shown something else since, or that were started again.
    pub moved: Set,
    /// The state to return to after a crash.
    pub resume_at: Option<Phase>,
    /// Values that were sent through, or etcds that were searched, in the present phase.
    pub done: Set,
    /// Values that were stored since the run began.
    pub newer: Set,
    /// What was superseded in each etcd since it was searched first.
    pub superseded: [Set; 2],
    /// The etcds whose revisions from before the search are compacted.
    pub compacted: Set,
    pub has_snapshot: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    Start,
    Survey,
    Rotate,
    Adopt,
    Drain,
    TryReading,
    Rewrite,
    Search,
    Settle,
    Snapshot,
    SearchAgain,
    Conclude,
    Ended(Verdict),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict {
    /// The versions in the run's `former` may be disabled.
    Yes,
    /// Anything else; all keys are kept.
    NotYes,
}

impl Run {
    pub fn new(scenario: &Scenario) -> Self {
        Self {
            phase: Phase::Start,
            alive: true,
            lapsed: false,
            checked: false,
            rotates: scenario.run_rotates,
            counts: true,
            noted: None,
            former: Set::default(),
            target: None,
            proved: Set::default(),
            moved: Set::default(),
            resume_at: None,
            done: Set::default(),
            newer: Set::default(),
            superseded: [Set::default(); 2],
            compacted: Set::default(),
            has_snapshot: false,
        }
    }

    pub fn has_searched_again(&self) -> bool {
        self.phase > Phase::SearchAgain || (self.phase == Phase::SearchAgain && !self.done.is_empty())
    }

    pub fn says_yes(&self) -> bool {
        self.phase == Phase::Ended(Verdict::Yes)
    }

    pub fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended(_))
    }

    /// What a Yes names, or what the operator takes it to name.
    pub fn named(&self, scenario: &Scenario) -> Set {
        if scenario.procedure == Procedure::RotateKeys && scenario.has(Protection::ClaimsNameKeys) {
            scenario.versions(self.former).without(scenario.versions(self.target_set()))
        } else {
            Set::of([Key::FORMER])
        }
    }

    /// A server that was proven stores a value under `key`: its counters tell.
    pub fn see_count(&mut self, server: usize, key: Key) {
        if self.proved.contains(server) && self.target != Some(key) {
            self.moved.insert(server);
        }
    }

    /// A server that was proven is started: its counters begin again.
    pub fn see_start(&mut self, server: usize, scenario: &Scenario) {
        if scenario.has(Protection::CountersOfOneProcess) && self.proved.contains(server) {
            self.moved.insert(server);
        } else {
            self.moved.remove(server);
        }
    }

    /// A value is stored; the revision before it is now an old one.
    pub fn see_store(&mut self, value: usize, etcd: usize, superseded: Key) {
        self.newer.insert(value);
        if self.phase > Phase::Search || (self.phase == Phase::Search && self.done.contains(etcd)) {
            self.superseded[etcd].insert(superseded);
        }
    }

    pub fn crash(&mut self) {
        (self.alive, self.checked) = (false, false);
    }

    pub fn resume(&mut self, scenario: &Scenario) {
        (self.alive, self.lapsed) = (true, false);
        if !scenario.has(Protection::IntentIsInTheJournal) {
            (self.rotates, self.counts) = (false, false);
            if self.phase == Phase::Rotate {
                self.enter(Phase::Adopt);
            }
        }
        let last = if scenario.has(Protection::SearchAgain) { Phase::Conclude } else { Phase::Settle };
        if self.phase > Phase::Adopt && self.phase <= last {
            self.resume_at = (!scenario.has(Protection::SearchAgain)).then_some(self.phase);
            self.begin_again();
        }
    }

    /// Goes on after a time without a Lease in which no other run has begun.
    pub fn regain(&mut self) {
        (self.lapsed, self.checked) = (false, false);
        if self.phase > Phase::Adopt && !self.has_ended() {
            self.begin_again();
        }
    }

    /// The versions that the proof is about are no longer known to be out of use.
    pub fn begin_again(&mut self) {
        (self.proved, self.moved) = (Set::default(), Set::default());
        self.superseded = [Set::default(); 2];
        self.enter(Phase::Adopt);
    }

    pub fn target_set(&self) -> Set {
        Set::of(self.target)
    }

    pub fn enter(&mut self, phase: Phase) {
        (self.phase, self.done) = (phase, Set::default());
    }

    pub fn end(&mut self, verdict: Verdict) {
        self.enter(Phase::Ended(verdict));
    }
}
