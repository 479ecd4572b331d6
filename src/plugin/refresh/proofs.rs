//! Which proof is due: every KEK version in its rhythm, and every wrap of every kept DEK in turn.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::coverage::Kept;
use super::settings::SOON;
use crate::crypto::secret::DekId;
use crate::dek::contacts::{Contact, Standing};
use crate::kek::{KekCause, KekVersion, Lineage};

/// How often one more wrap, the next in turn, is proven.
const ONE_OF_ALL: Duration = Duration::from_mins(20);

/// Wraps of a version that lost one, proven in one turn.
const LOST_AT_ONCE: usize = 4;

/// How often versions are proven.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rhythm {
    /// Those of the active generation.
    pub(super) active: Duration,
    /// Those of all other generations.
    pub(super) former: Duration,
    /// Those that did not unwrap the last time.
    pub(super) again: Duration,
}

/// Which wraps were proven, and which of them are lost.
#[derive(Debug, Default)]
pub(super) struct Proofs {
    pub(super) turns: BTreeMap<KekVersion, usize>,
    /// The next of all wraps, and when it is due.
    pub(super) next: usize,
    pub(super) next_at: Option<Duration>,
    /// Wraps that their KEK will not unwrap again.
    pub(super) lost: BTreeSet<(DekId, Lineage)>,
    /// What each version said last, to log it once.
    pub(super) said: BTreeMap<KekVersion, (KekCause, String)>,
}

/// One unwrap that is due: a kept DEK, and which of its wraps.
pub(super) type Due = (Kept, usize);

/// What the choice depends on.
pub(super) struct Occasion<'a> {
    /// The DEKs in memory that are kept.
    pub(super) held: &'a [Kept],
    pub(super) active: Option<DekId>,
    pub(super) configured: &'a BTreeSet<Lineage>,
    pub(super) contacts: &'a BTreeMap<KekVersion, Contact>,
    /// KEKs that do not name their active version.
    pub(super) suspects: &'a BTreeSet<Lineage>,
    /// KEKs that have just named another one: rotated, or recreated, and then without the former ones.
    pub(super) renamed: &'a BTreeSet<Lineage>,
    pub(super) rhythm: Rhythm,
    pub(super) now: Duration,
}

impl Proofs {
    /// What is due now.
    pub(super) fn due(&mut self, occasion: &Occasion<'_>) -> Vec<Due> {
        let mut of_version: BTreeMap<&KekVersion, Vec<Due>> = BTreeMap::new();
        let mut all = Vec::new();
        for kept in occasion.held {
            for (index, wrap) in kept.1.wraps.iter().enumerate() {
                if occasion.configured.contains(&wrap.version.lineage) {
                    of_version.entry(&wrap.version).or_default().push((kept.clone(), index));
                    all.push((kept.clone(), index));
                }
            }
        }
        self.turns.retain(|version, _| of_version.contains_key(version));
        self.said.retain(|version, _| of_version.contains_key(version));
        let mut due = Vec::new();
        for (version, wraps) in of_version {
            let active = wraps.iter().find(|((id, _), _)| Some(*id) == occasion.active);
            if !occasion.is_due(version, active.is_some()) {
                continue;
            }
            // Which of its wraps a KEK lost, each of them tells.
            let is_lost = occasion.contacts.get(version).is_some_and(|contact| contact.standing == Standing::Lost);
            let count = if is_lost { wraps.len().min(LOST_AT_ONCE) } else { 1 };
            let (lost, sound): (Vec<&Due>, Vec<&Due>) =
                wraps.iter().partition(|((id, _), _)| self.lost.contains(&(*id, version.lineage)));
            let turn = self.turns.entry(version.clone()).or_default();
            let first = turn.checked_rem(wraps.len()).unwrap_or_default();
            let in_turn = wraps.iter().cycle().skip(first).take(count);
            // The DEK that is sealed with is what must not be lost; the others take turns below.
            match active.filter(|_| !is_lost) {
                Some(active) => due.push(active.clone()),
                // A damaged one in its turn would let the others go without a proof for two periods.
                None if !is_lost && !lost.is_empty() && !sound.is_empty() => {
                    let nth =
                        |of: &[&Due]| of.get(turn.checked_rem(of.len()).unwrap_or_default()).map(|one| (*one).clone());
                    due.extend([nth(&sound), nth(&lost)].into_iter().flatten());
                }
                None => due.extend(in_turn.cloned()),
            }
            *turn = turn.wrapping_add(count);
        }
        if occasion.now >= *self.next_at.get_or_insert(occasion.now.saturating_add(ONE_OF_ALL)) && !all.is_empty() {
            due.extend(all.iter().cycle().nth(self.next.checked_rem(all.len()).unwrap_or_default()).cloned());
            self.next = self.next.wrapping_add(1);
            self.next_at = Some(occasion.now.saturating_add(ONE_OF_ALL));
        }
        due
    }
}

impl Occasion<'_> {
    fn is_due(&self, version: &KekVersion, is_active: bool) -> bool {
        // Never asked since it was configured.
        let Some(contact) = self.contacts.get(version) else { return true };
        if self.renamed.contains(&version.lineage) {
            return true;
        }
        let rhythm = if is_active { self.rhythm.active } else { self.rhythm.former };
        // Where the denial is definite already, nothing depends on asking sooner.
        let suspected = self.suspects.contains(&version.lineage) && !contact.is_denied();
        let period = if contact.is_doubtful() {
            SOON.min(rhythm)
        // A KEK that does not name its active version is in doubt, although it unwrapped the last time.
        } else if contact.standing == Standing::Opens && !suspected {
            rhythm
        } else {
            self.rhythm.again.min(rhythm)
        };
        // A turn that comes a little early must not put it off by a whole interval.
        self.now.saturating_add(period.checked_div(8).unwrap_or_default()) >= contact.asked.saturating_add(period)
    }
}
