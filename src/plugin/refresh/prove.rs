//! Proves again and again that what is in memory could be unwrapped today. What is due is chosen by a pure function.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::join_all;
use tracing::{error, info, warn};

use super::coverage::Kept;
use super::memory::Refresh;
use super::proofs::{Occasion, Rhythm};
use crate::crypto::secret::DekId;
use crate::dek::contacts::{Contact, Standing};
use crate::kek::{KekCause, KekError, KekVersion, Lineage};

/// How often a version that is not the active one has to unwrap something.
const FORMER_VERSION: Duration = Duration::from_hours(1);

/// A version must have this many occasions to answer before its silence ends what it wrapped.
const OCCASIONS: u32 = 3;

impl Refresh {
    pub(super) fn rhythm(&self) -> Rhythm {
        let limit = self.settings.limit();
        let most = limit.checked_div(OCCASIONS).unwrap_or(limit);
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
            // Once: each of their versions is proven at this turn.
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
                // By cause, not by words, which may change with each answer.
                if before != Some(said.0) {
                    if standing == Standing::Lost {
                        error!(
                            kek = name,
                            version = version.version,
                            error = said.1,
                            "KEK disowns what it had wrapped"
                        );
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
