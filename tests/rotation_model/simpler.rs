//! Two procedures that operators know: the replace loop and the storage migration of Kubernetes. Each is taken at its
//! best: nothing crashes, nothing is refused, and what they are asked to store again is complete.

use crate::run::{Phase, Verdict};
use crate::scenario::{Procedure, Scenario};
use crate::set::{Key, Set};
use crate::world::{Life, World};

impl World {
    /// The next step of a simpler procedure: a value after the other, then the operator takes it for done.
    pub fn simpler_step(&self, at: usize, through: Option<usize>, scenario: &Scenario) -> Option<Self> {
        let mut next = self.clone();
        if next.runs[at].phase == Phase::Start {
            // A migration is created after the API server that it goes through has adopted the new version.
            let waits = scenario.procedure == Procedure::StorageMigration && self.servers[0].writes() != Key::NEXT;
            next.runs[at].phase = Phase::Rewrite;
            next.runs[at].newer = Set::default();
            return (!waits).then_some(next);
        }
        let values = Set::of(0..self.values.len());
        if next.runs[at].phase != Phase::Rewrite {
            return None;
        }
        if let Some(value) = values.without(self.runs[at].done).first() {
            next.store_again(at, value, through.unwrap_or(0), scenario)?;
        } else {
            next.runs[at].phase = Phase::Ended(Verdict::Yes);
            let named = next.runs[at].named(scenario);
            next.faults.false_yes |= next.stored().meets(named);
        }
        Some(next)
    }

    /// A migration skips what was stored since it began, and takes a conflict for success: somebody else stored it.
    fn store_again(&mut self, at: usize, value: usize, through: usize, scenario: &Scenario) -> Option<()> {
        let skips = scenario.procedure == Procedure::StorageMigration && self.runs[at].newer.contains(value);
        if self.servers[through].life != Life::Up {
            return None;
        }
        self.runs[at].done.insert(value);
        if !skips && self.values[value].key != self.writes(through, value, scenario) {
            let key = self.encrypt(through, value, scenario);
            self.store(value, key, scenario);
        }
        Some(())
    }
}
