//! Makes a generation: a DEK that every KEK has wrapped and unwrapped again, kept, and only then published.

use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use super::decision::went_back;
use super::memory::{Attempt, Refresh, after, is_over};
use super::warm::is_final;
use crate::crypto::seal::dek_id;
use crate::crypto::secret::DekId;
use crate::dek::contacts::Standing;
use crate::envelope::WrappedDekSet;
use crate::generation::Generation;
use crate::kek::set::Answer;
use crate::kek::{KekVersion, WrapContext};
use crate::key_id::KeyId;
use crate::plugin::state::{Serving, Trouble};

/// How long a generation waits to be on disk before it is published as being in memory alone: while another one is
/// served, and while none is.
const SAVED_WITHIN: Duration = Duration::from_secs(5);
const SAVED_SOON: Duration = Duration::from_millis(300);

/// While a generation is served, another one is attempted this often at most.
const ATTEMPTS: Duration = Duration::from_mins(1);

impl Refresh {
    /// Adopts a generation of the versions that the KEKs call active. Why that failed, where it did: what is served
    /// goes on.
    pub(super) async fn adopt(&mut self, expected: &[KekVersion], answers: &[Answer<KekVersion>]) -> Option<String> {
        let is_served = self.service.serving().generation().is_some();
        if let Some(attempt) = self.attempt.as_ref().filter(|attempt| attempt.expected == expected)
            && !is_over(attempt.next)
        {
            return Some(attempt.reason.clone());
        }
        // Before the KEKs are asked: the age of the DEK counts from then, and the machine may sleep before they answer.
        let asked = self.service.cache().now();
        let made = match self.generation_of(expected, answers).await {
            Ok(generation) => self.publish(generation, asked, if is_served { SAVED_WITHIN } else { SAVED_SOON }).await,
            Err(reason) => Err(reason),
        };
        match made {
            Ok(()) => {
                self.attempt = None;
                None
            }
            Err(reason) => {
                if self.attempt.as_ref().map(|attempt| &attempt.reason) != Some(&reason) {
                    warn!(reason, "a new generation was not adopted");
                }
                self.wait(Some(&reason));
                // An attempt costs a wrap and an unwrap at each KEK. Nobody waits for it while a generation is served;
                // while none is, the API server does.
                let pause = if is_served { ATTEMPTS.min(self.settings.refresh_interval) } else { Duration::ZERO };
                self.attempt =
                    Some(Attempt { expected: expected.to_vec(), next: after(pause), reason: reason.clone() });
                Some(reason)
            }
        }
    }

    /// A generation of this node that is kept, where there is one of these versions; otherwise a new one.
    async fn generation_of(
        &self,
        expected: &[KekVersion],
        answers: &[Answer<KekVersion>],
    ) -> Result<Generation, String> {
        let key_id = KeyId::derive(self.settings.epoch, expected);
        let lost = match self.own(&key_id) {
            Some((id, wrapped)) => match self.kept_generation(id, &wrapped).await? {
                Some(generation) => return Ok(generation),
                None => Some(id),
            },
            None => None,
        };
        self.make(answers, lost).await
    }

    fn own(&self, key_id: &KeyId) -> Option<(DekId, Arc<WrappedDekSet>)> {
        let store = self.service.store();
        let mut own =
            store.history().deks().filter_map(|id| Some((id, store.find(id)?))).collect::<Vec<_>>().into_iter();
        own.find(|(_, wrapped)| wrapped.key_id() == *key_id && wrapped.cluster == *self.service.cluster())
    }

    /// The kept generation, once every KEK has unwrapped it again. `None` where its DEK is lost.
    async fn kept_generation(&self, id: DekId, wrapped: &WrappedDekSet) -> Result<Option<Generation>, String> {
        let dek = match self.service.unwrap(id, wrapped.clone()).await {
            Ok(dek) => dek,
            Err(error) if is_final(&error) => return Ok(None),
            Err(error) => return Err(error.to_string()),
        };
        // By every KEK, not only by the one that was first: what is published must open through each of them.
        let proven = self.settings.keks.prove(&wrapped.wraps, &wrapped.context(id), &self.opened()).await;
        match proven {
            Ok(()) => Generation::new(dek, wrapped.clone()).map(Some).map_err(|error| error.to_string()),
            Err((_, error)) if Standing::from(error.cause()) == Standing::Lost => Ok(None),
            Err((name, error)) => Err(format!("KEK {name}: {}", error.chain())),
        }
    }

    /// Whatever becomes of the generation: an unwrap is an unwrap.
    fn opened(&self) -> impl Fn(&KekVersion) + Send + Sync {
        let cache = self.service.cache().clone();
        let asked = cache.now();
        move |version| cache.note_known(version, Standing::Opens, asked)
    }

    /// A new generation. Not under the `key_id` of a kept one, other than `lost`: what that one sealed needs no second DEK,
    /// and whoever made one at each turn would fill the store.
    async fn make(&self, answers: &[Answer<KekVersion>], lost: Option<DekId>) -> Result<Generation, String> {
        let dek = (self.make_dek)();
        let id = dek_id(&dek);
        let context = WrapContext { cluster: self.service.cluster().to_owned(), dek_id: id };
        let wraps = self.settings.keks.wrap_and_prove(&dek, &context, &self.opened()).await;
        let wraps = wraps.map_err(|(name, error)| format!("KEK {name}: {}", error.chain()))?;
        let epoch = self.settings.epoch;
        // The versions are those that the proving unwraps reported, so the key_id may be another one than was expected:
        // somebody rotated meanwhile.
        let wrapped = WrappedDekSet { cluster: context.cluster, epoch, wraps };
        if let Some((kept, _)) = self.own(&wrapped.key_id())
            && Some(kept) != lost
            && !self.lost.contains(&kept)
        {
            return Err("the KEKs report other versions as active than those that they wrap with; the stored \
                        generation of these stays in use"
                .into());
        }
        let history = self.service.store().history();
        // Again, although `decide` has looked: that was at the versions that the KEKs named, this is at those that
        // wrapped.
        if let Some(back) = history.goes_back(epoch, wrapped.versions()) {
            return Err(went_back(back, answers, &history, epoch));
        }
        Generation::new(Arc::new(dek), wrapped).map_err(|error| error.to_string())
    }

    /// Keeps the generation, and publishes it when it is on disk. When the disk takes too long, a generation that has no
    /// predecessor there is published all the same, and said to be in memory alone. One that has is not: a restart would
    /// go back to the former one, and write under keys that were perhaps disabled since.
    async fn publish(&mut self, generation: Generation, asked: Duration, patience: Duration) -> Result<(), String> {
        let (id, wrapped) = (generation.dek_id(), generation.wrapped().clone());
        let versions: Vec<_> = wrapped.versions().cloned().collect();
        let keks = self.settings.keks.lineages();
        let opened: Vec<_> = versions.iter().filter(|version| keks.contains(&version.lineage)).cloned().collect();
        // Before it is published: Status answers only for a generation whose DEK is here.
        self.service.cache().insert(id, generation.dek().clone(), &wrapped, &opened, asked);
        let store = self.service.store();
        store.keep(id, &wrapped);
        store.record(|history| {
            history.adopted(id, wrapped.epoch, &versions);
            for (name, lineage, _) in self.settings.keks.all() {
                history.called(lineage, name);
            }
        });
        let key_id = generation.key_id();
        let problem = (!store.is_written(patience).await).then(|| store.problem()).flatten();
        // Only now: a disk that hung at the start may have told its content meanwhile.
        let former = store.written_history().deks().find_map(|id| store.find_written(id));
        let former = former.map(|former| former.key_id());
        if let (Some(problem), Some(former)) = (&problem, former.filter(|former| former != key_id)) {
            return Err(format!("{problem}, and a restart would go back from {key_id} to {former}"));
        }
        self.metrics.adopted();
        info!(%key_id, dek_id = %id, "adopted a generation");
        let trouble = problem.map(Trouble::Degraded);
        self.service.publish(Serving::Ready { generation: Arc::new(generation), trouble });
        Ok(())
    }
}
