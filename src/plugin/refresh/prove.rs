//! Proves again and again that what is in memory could be unwrapped today: every KEK version in its rhythm, and every
//! wrap of every kept DEK in turn. What is due is chosen by a pure function.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::future::join_all;
use tracing::{error, info, warn};

use super::coverage::Kept;
use super::{Refresh, SOON};
use crate::crypto::secret::DekId;
use crate::dek::contacts::{Contact, Standing};
use crate::kek::{KekCause, KekError, KekVersion, Lineage};

/// How often a version that is not the active one has to unwrap something.
const FORMER_VERSION: Duration = Duration::from_hours(1);

/// How often one more wrap, the next in turn, is proven.
const ONE_OF_ALL: Duration = Duration::from_mins(20);

/// A version must have this many occasions to answer before its silence ends what it wrapped.
const OCCASIONS: u32 = 3;

/// Wraps of a version that lost one, proven in one turn.
const LOST_AT_ONCE: usize = 4;

/// How often versions are proven.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rhythm {
    /// Those of the active generation.
    pub active: Duration,
    /// Others.
    pub former: Duration,
    /// Those that did not unwrap the last time.
    pub again: Duration,
}

/// Which wraps were proven, and which of them are lost.
#[derive(Debug, Default)]
pub(super) struct Proofs {
    turns: BTreeMap<KekVersion, usize>,
    /// The next of all wraps, and when it is due.
    next: usize,
    next_at: Option<Duration>,
    /// Wraps that their KEK will not unwrap again.
    lost: BTreeSet<(DekId, Lineage)>,
    /// What each version said last, to log it once.
    said: BTreeMap<KekVersion, (KekCause, String)>,
}

/// One unwrap that is due: a kept DEK, and which of its wraps.
type Due = (Kept, usize);

/// What the choice depends on.
struct Occasion<'a> {
    /// The DEKs in memory that are kept.
    held: &'a [Kept],
    active: Option<DekId>,
    configured: &'a BTreeSet<Lineage>,
    contacts: &'a BTreeMap<KekVersion, Contact>,
    /// KEKs that do not name their active version.
    suspects: &'a BTreeSet<Lineage>,
    /// KEKs that have just named another one: rotated, or recreated, and then without the former ones.
    renamed: &'a BTreeSet<Lineage>,
    rhythm: Rhythm,
    now: Duration,
}

impl Proofs {
    fn due(&mut self, occasion: &Occasion<'_>) -> Vec<Due> {
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
            let turn = self.turns.entry(version.clone()).or_default();
            let in_turn = (0..count).map(|next| &wraps[turn.wrapping_add(next) % wraps.len()]);
            match active.filter(|_| !is_lost) {
                Some(active) => due.push(active.clone()),
                None => due.extend(in_turn.cloned()),
            }
            *turn = turn.wrapping_add(count);
        }
        if occasion.now >= *self.next_at.get_or_insert(occasion.now + ONE_OF_ALL) && !all.is_empty() {
            due.push(all[self.next % all.len()].clone());
            self.next = self.next.wrapping_add(1);
            self.next_at = Some(occasion.now + ONE_OF_ALL);
        }
        due
    }
}

impl Occasion<'_> {
    fn is_due(&self, version: &KekVersion, is_active: bool) -> bool {
        let Some(contact) = self.contacts.get(version) else { return true };
        if self.renamed.contains(&version.lineage) {
            return true;
        }
        let rhythm = if is_active { self.rhythm.active } else { self.rhythm.former };
        let suspected = self.suspects.contains(&version.lineage) && !contact.is_denied();
        let period = if contact.is_doubtful() {
            SOON.min(rhythm)
        } else if contact.standing == Standing::Opens && !suspected {
            rhythm
        } else {
            self.rhythm.again.min(rhythm)
        };
        // A turn that comes a little early must not put it off by a whole interval.
        self.now + period / 8 >= contact.asked + period
    }
}

impl Refresh {
    pub(super) fn rhythm(&self) -> Rhythm {
        let most = self.settings.limit() / OCCASIONS;
        let active = self.settings.prove_interval.min(most);
        Rhythm { active, former: FORMER_VERSION.max(active).min(most), again: self.settings.refresh_interval }
    }

    /// Has those that are due unwrap again, all at once, and notes what they did.
    pub(super) async fn prove(&mut self) {
        let cache = self.service.cache().clone();
        let kept = self.kept();
        let held: Vec<Kept> = kept.iter().filter(|(id, _)| cache.remaining(*id).is_some()).cloned().collect();
        let used = held.iter().flat_map(|(_, wrapped)| wrapped.versions().cloned()).collect();
        let occasion = Occasion {
            held: &held,
            active: self.service.serving().generation().map(|generation| generation.dek_id()),
            configured: &self.settings.keks.lineages(),
            contacts: &cache.contacts(&used),
            suspects: &self.suspects(),
            renamed: &std::mem::take(&mut self.renamed),
            rhythm: self.rhythm(),
            now: cache.now(),
        };
        let due = self.proofs.due(&occasion);
        let (keks, contacts) = (&self.settings.keks, &cache);
        let proofs = due.into_iter().map(|((id, wrapped), index)| async move {
            let (wrap, asked) = (&wrapped.wraps[index], contacts.now());
            let proven = keks.unwrap_one(wrap, &wrapped.context(id)).await.map(|proven| proven.map(drop));
            // At once, and not when the slowest has answered.
            if let Some(Ok(())) = &proven {
                contacts.note(&wrap.version, Standing::Opens, asked);
            }
            (id, wrap.version.clone(), proven, asked)
        });
        for (id, version, proven, asked) in join_all(proofs).await {
            if let Some(proven) = proven {
                self.proven(id, &version, proven, asked);
            }
        }
        let ids: BTreeSet<_> = kept.iter().map(|(id, _)| *id).collect();
        self.proofs.lost.retain(|(id, _)| ids.contains(id));
    }

    fn proven(&mut self, id: DekId, version: &KekVersion, proven: Result<(), KekError>, asked: Duration) {
        let standing = proven.as_ref().err().map_or(Standing::Opens, |error| error.cause().into());
        match standing {
            Standing::Opens => self.proofs.lost.remove(&(id, version.lineage)),
            Standing::Lost => self.proofs.lost.insert((id, version.lineage)),
            Standing::Denies | Standing::Silent => false,
        };
        // One damaged wrap says nothing about what else the version has wrapped.
        let is_damaged = proven.as_ref().is_err_and(|error| error.cause() == KekCause::Rejected);
        if is_damaged && !self.all_lost(version) {
            self.service.cache().interrupt(version);
        } else if standing != Standing::Opens {
            self.service.cache().note(version, standing, asked);
        }
        let name = self.settings.keks.name(version.lineage).unwrap_or("?");
        let before = self.proofs.said.get(version).map(|(cause, _)| *cause);
        match proven.map_err(|error| (error.cause(), error.chain())) {
            Ok(()) if before.is_some() => {
                info!(kek = name, version = version.version, "KEK unwraps again");
                self.proofs.said.remove(version);
            }
            Ok(()) => {}
            Err(said) => {
                if before != Some(said.0) {
                    if standing == Standing::Lost {
                        error!(kek = name, version = version.version, error = said.1, "KEK lost what it had wrapped");
                    } else {
                        warn!(kek = name, version = version.version, error = said.1, "KEK did not unwrap");
                    }
                }
                self.proofs.said.insert(version.clone(), said);
            }
        }
    }

    fn all_lost(&self, version: &KekVersion) -> bool {
        let cache = self.service.cache();
        let mut held = self.kept().into_iter().filter(|(id, _)| cache.remaining(*id).is_some());
        held.all(|(id, wrapped)| {
            wrapped.versions().all(|other| other != version) || self.proofs.lost.contains(&(id, version.lineage))
        })
    }

    /// KEKs that did not name their active version: whether they unwrap is asked at once.
    fn suspects(&self) -> BTreeSet<Lineage> {
        self.failures.keys().copied().collect()
    }

    /// Whether a denial waits for its confirmation.
    pub(super) fn is_doubtful(&self) -> bool {
        let contacts = self.service.cache().contacts(&self.versions_in_use());
        contacts.values().any(Contact::is_doubtful)
    }

    pub(super) fn versions_in_use(&self) -> BTreeSet<KekVersion> {
        self.kept().iter().flat_map(|(_, wrapped)| wrapped.versions().cloned()).collect()
    }

    /// What a KEK said when it last failed to unwrap.
    pub(super) fn refusal(&self, lineage: Lineage) -> Option<&str> {
        let mut said = self.proofs.said.iter().filter(|(version, _)| version.lineage == lineage);
        said.next_back().map(|(_, (_, words))| words.as_str())
    }

    /// The DEKs in memory that no KEK would unwrap again.
    pub(super) fn in_memory_only(&self) -> Vec<DekId> {
        let cache = self.service.cache();
        let configured = self.settings.keks.lineages();
        let is_lost = |id: DekId, version: &KekVersion| self.proofs.lost.contains(&(id, version.lineage));
        let held = self.kept().into_iter().filter(|(id, _)| cache.remaining(*id).is_some());
        held.filter(|(id, wrapped)| {
            let mut usable = wrapped.versions().filter(|version| configured.contains(&version.lineage)).peekable();
            usable.peek().is_some() && usable.all(|version| is_lost(*id, version))
        })
        .map(|(id, _)| id)
        .collect()
    }
}
