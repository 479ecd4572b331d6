//! Unwrapped DEKs in memory: none is given out longer than a KEK vouches for it, and all that wait for the same DEK
//! share one unwrap.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::info;

use super::clock::Clock;
use super::contacts::{Contact, Contacts, Standing, Vouched};
use super::handover::HeldDek;
use super::store::DekStore;
use crate::crypto::seal::digest;
use crate::crypto::secret::{Dek, DekId};
use crate::envelope::WrappedDekSet;
use crate::kek::set::{KekSet, UnwrapError};
use crate::kek::{KekVersion, Lineage, WrapContext};

/// How long a failed unwrap answers for those that come after it: an outage costs one call at a time.
const FAILURE_LASTS: Duration = Duration::from_millis(500);

/// From this many unwraps on, failures that are over are forgotten before the next sweep.
const MANY_UNWRAPS: usize = 256;

/// What a waiter gets.
pub(crate) type Unwrapping = Result<Arc<Dek>, Arc<UnwrapError>>;

/// The wraps that an unwrap was asked with, as a digest: what a damaged copy led to says nothing about a good one.
pub(crate) type WrapsDigest = [u8; 32];

/// The digest of all that `wrapped` contains: two copies of one DEK may differ in their wraps, and only one of them open.
pub(crate) fn digest_of(wrapped: &WrappedDekSet) -> WrapsDigest {
    let epoch = wrapped.epoch.to_be_bytes();
    let mut parts: Vec<&[u8]> = vec![wrapped.cluster.as_str().as_bytes(), &epoch];
    for wrap in &wrapped.wraps {
        parts.extend([wrap.version.lineage.0.as_slice(), wrap.version.version.as_bytes(), &wrap.blob]);
    }
    digest(&parts)
}

/// A DEK that is not in memory, and what it takes to get it there.
#[derive(Debug)]
pub(crate) struct MissingDek {
    /// The cluster, and the id that the unwrapped DEK must have.
    pub(crate) context: WrapContext,
    /// The DEK, wrapped by every KEK of its generation.
    pub(crate) wrapped: WrappedDekSet,
    /// The digest of `wrapped`.
    pub(crate) wraps: WrapsDigest,
    /// The KEKs in use. They are read when the unwrap begins: a reload may have replaced them since the request.
    pub(crate) keks: Arc<ArcSwap<KekSet>>,
    /// Where the wrapped DEK is kept once a KEK has unwrapped it.
    pub(crate) store: Arc<DekStore>,
}

/// The DEKs that this process holds.
#[derive(Debug)]
pub struct DekCache {
    clock: Arc<dyn Clock>,
    slots: Mutex<Slots>,
    /// Told when something came in or went, and when a KEK unwrapped.
    changes: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Slots {
    held: BTreeMap<DekId, Held>,
    unwraps: BTreeMap<(DekId, WrapsDigest), Unwrap>,
    contacts: Contacts,
}

#[derive(Debug)]
enum Unwrap {
    Running(watch::Receiver<Option<Unwrapping>>),
    Failed { error: Arc<UnwrapError>, at: Instant },
}

/// A DEK, and what it was unwrapped from.
#[derive(Debug)]
struct Held {
    dek: Arc<Dek>,
    versions: Vec<KekVersion>,
    wraps: WrapsDigest,
}

impl DekCache {
    /// An empty cache, which gives nothing out before [`DekCache::configure`].
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, slots: Mutex::default(), changes: watch::Sender::new(()) }
    }

    /// Sets which KEKs count, and for how long after its last unwrap each vouches for what it wrapped.
    pub fn configure(&self, keks: BTreeSet<Lineage>, limit: Duration) {
        self.slots().contacts.configure(keks, limit);
    }

    /// The time that ages are counted in.
    pub fn now(&self) -> Duration {
        self.clock.now()
    }

    /// The DEK, if it is in memory and a KEK vouches for it. Never waits.
    pub fn get(&self, id: DekId) -> Option<Arc<Dek>> {
        let now = self.now();
        self.slots().get(id, now)
    }

    /// The same of a DEK that was unwrapped from just these wraps: what else it was unwrapped from does not tell that they
    /// open.
    pub(crate) fn get_from(&self, id: DekId, wraps: WrapsDigest) -> Option<Arc<Dek>> {
        let now = self.now();
        let slots = self.slots();
        slots.get(id, now).filter(|_| slots.held.get(&id).is_some_and(|held| held.wraps == wraps))
    }

    /// How long a DEK that is here may still be used.
    pub fn remaining(&self, id: DekId) -> Option<Duration> {
        let now = self.now();
        let slots = self.slots();
        slots.contacts.remaining(&slots.held.get(&id)?.versions, now)
    }

    /// Puts in a DEK that `by` unwrapped from `wrapped` when they were asked at `asked`.
    pub fn insert(&self, id: DekId, dek: Arc<Dek>, wrapped: &WrappedDekSet, by: &[KekVersion], asked: Duration) {
        let mut slots = self.slots();
        for version in by {
            slots.contacts.note(version, Standing::Opens, asked);
        }
        let versions = wrapped.versions().cloned().collect();
        slots.held.insert(id, Held { dek, versions, wraps: digest_of(wrapped) });
        drop(slots);
        self.changes.send_replace(());
    }

    /// What can be given out now, and when each KEK version that is not denied unwrapped last.
    pub fn hand_over(&self) -> (Vec<HeldDek>, Vec<Vouched>) {
        let now = self.now();
        let slots = self.slots();
        let usable = slots.held.iter().filter(|(_, held)| slots.contacts.remaining(&held.versions, now).is_some());
        let deks = usable.map(|(id, Held { dek, versions, wraps })| HeldDek {
            id: *id,
            dek: dek.clone(),
            versions: versions.clone(),
            wraps: *wraps,
        });
        (deks.collect(), slots.contacts.vouched().collect())
    }

    /// How long a DEK may be used after the last unwrap by a KEK that could unwrap it.
    pub(crate) fn limit(&self) -> Duration {
        self.slots().contacts.limit()
    }

    /// Takes what an earlier process handed over, with its ages. What is here already stays.
    pub fn take_over(&self, deks: Vec<HeldDek>, vouched: &[Vouched]) {
        let now = self.now();
        let mut slots = self.slots();
        // A time in the future would make a DEK live longer.
        for vouched in vouched.iter().filter(|vouched| vouched.opened <= now) {
            slots.contacts.take_over(vouched);
        }
        for HeldDek { id, dek, versions, wraps } in deks {
            slots.held.entry(id).or_insert(Held { dek, versions, wraps });
        }
        drop(slots);
        self.changes.send_replace(());
    }

    /// Ends what `version` vouches for at `until`, where that was taken over with an end and is not proven since.
    pub(crate) fn shorten(&self, version: &KekVersion, until: Duration) {
        self.slots().contacts.shorten(version, until);
    }

    /// Told at each change of what [`DekCache::hand_over`] gives.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Notes how an unwrap of a DEK that is here ended, which was asked for at `asked`.
    pub fn note(&self, version: &KekVersion, standing: Standing, asked: Duration) {
        self.slots().contacts.note(version, standing, asked);
        self.changes.send_replace(());
    }

    /// The same for a version that something here was wrapped by; another one is not taken note of.
    pub(crate) fn note_known(&self, version: &KekVersion, standing: Standing, asked: Duration) {
        let mut slots = self.slots();
        if slots.contacts.of(version).is_some() {
            slots.contacts.note(version, standing, asked);
        }
    }

    /// Ends a row of denials of this version: see [`Contacts::interrupt`].
    pub(crate) fn interrupt(&self, version: &KekVersion) {
        self.slots().contacts.interrupt(version);
    }

    /// The DEK, unwrapped by the KEKs that wrapped it unless it is in memory; see [`DekCache::get_or_unwrap`].
    ///
    /// # Errors
    /// What the KEKs said; it is shared by all that wait for the same DEK.
    pub(crate) async fn unwrap(self: &Arc<Self>, missing: MissingDek) -> Unwrapping {
        let MissingDek { context, wrapped, wraps, keks, store } = missing;
        let (dek_id, versions) = (context.dek_id, wrapped.versions().cloned().collect());
        let cache = self.clone();
        let unwrap = async move {
            let keks = keks.load_full();
            let unwrapped = keks.unwrap(&wrapped.wraps, &context).await;
            let (dek, by) = unwrapped.inspect_err(|error| cache.note_silence(error))?;
            info!(%dek_id, key_id = %wrapped.key_id(), "unwrapped");
            // Kept in memory at once and written behind: a Decrypt waits for no disk.
            store.keep(dek_id, &wrapped);
            Ok((dek, by))
        };
        self.get_or_unwrap(dek_id, wraps, versions, unwrap).await
    }

    /// A KEK that does not answer interrupts a row of denials. What else it said about a DEK that is not held, perhaps
    /// one that somebody invented, counts for nothing.
    pub(crate) fn note_silence(&self, error: &UnwrapError) {
        let UnwrapError::Failed(refusals) = error else { return };
        for refusal in refusals {
            if Standing::from(refusal.error.cause()) == Standing::Silent {
                self.note_known(&refusal.version, Standing::Silent, self.now());
            }
        }
    }

    /// The DEK, unwrapped by `unwrap` unless it is here, or the same `wraps` are being unwrapped or failed a moment
    /// ago. `unwrap` says which version gave it back.
    ///
    /// `unwrap` runs in a task of its own: a caller that goes away does not end it.
    ///
    /// # Errors
    /// What `unwrap` ended with; it is shared by all that wait for the same DEK.
    pub async fn get_or_unwrap<F>(
        self: &Arc<Self>,
        id: DekId,
        wraps: WrapsDigest,
        versions: Vec<KekVersion>,
        unwrap: F,
    ) -> Unwrapping
    where
        F: Future<Output = Result<(Dek, KekVersion), UnwrapError>> + Send + 'static,
    {
        // Taken before the unwrap: a DEK ages from when its KEK was asked.
        let (key, now) = ((id, wraps), self.now());
        let mut waiting = {
            let mut slots = self.slots();
            if let Some(dek) = slots.get(id, now) {
                return Ok(dek);
            }
            match slots.unwraps.get(&key) {
                Some(Unwrap::Failed { error, at }) if at.elapsed() < FAILURE_LASTS => return Err(error.clone()),
                Some(Unwrap::Running(waiting)) => waiting.clone(),
                _ => {
                    if slots.unwraps.len() >= MANY_UNWRAPS {
                        slots.forget_failures();
                    }
                    let (done, waiting) = watch::channel(None);
                    slots.unwraps.insert(key, Unwrap::Running(waiting.clone()));
                    let cache = self.clone();
                    // A gRPC call that the API server gives up drops its future; the unwrap must go on, since the call
                    // is repeated.
                    tokio::spawn(async move {
                        let abandoned = Abandoned { cache: &cache, key };
                        let unwrapped = unwrap.await.map_err(Arc::new);
                        // It ended by itself, and `settle` takes it away together with entering the result: no moment
                        // lies between in which another caller could start a second unwrap.
                        std::mem::forget(abandoned);
                        let _ = done.send(Some(cache.settle(key, versions, unwrapped, now)));
                    });
                    waiting
                }
            }
        };
        let settled = waiting.wait_for(Option::is_some).await;
        match settled.as_deref() {
            Ok(Some(unwrapped)) => unwrapped.clone(),
            // The task ended without a result: it panicked, or the runtime is closing.
            _ => Err(Arc::new(UnwrapError::Failed(Vec::new()))),
        }
    }

    /// Clears the DEKs that no KEK vouches for any more.
    pub(crate) fn sweep(&self) {
        let now = self.now();
        let mut slots = self.slots();
        let Slots { held, contacts, .. } = &mut *slots;
        let before = held.len();
        // Reading refuses what is over at once; here it is cleared from memory.
        held.retain(|_, held| contacts.remaining(&held.versions, now).is_some());
        let is_changed = held.len() != before;
        slots.forget_failures();
        drop(slots);
        if is_changed {
            self.changes.send_replace(());
        }
    }

    /// Whether every KEK that could unwrap what `versions` wrapped definitely denies it.
    pub(crate) fn is_denied(&self, versions: &[KekVersion]) -> bool {
        self.slots().contacts.is_denied(versions)
    }

    /// How many DEKs are here.
    pub fn held(&self) -> usize {
        let now = self.now();
        let slots = self.slots();
        slots.held.values().filter(|held| slots.contacts.remaining(&held.versions, now).is_some()).count()
    }

    /// What is known of every KEK version that was asked, those left out that nothing in `used` or here is wrapped by.
    pub(crate) fn contacts(&self, used: &BTreeSet<KekVersion>) -> BTreeMap<KekVersion, Contact> {
        let mut slots = self.slots();
        let here = slots.held.values().flat_map(|held| held.versions.iter().cloned());
        let used = here.chain(used.iter().cloned()).collect();
        // What nothing is wrapped by any more would otherwise be remembered for as long as the process runs.
        slots.contacts.retain(&used);
        slots.contacts.all().map(|(version, contact)| (version.clone(), contact.clone())).collect()
    }

    fn settle(
        &self,
        key: (DekId, WrapsDigest),
        versions: Vec<KekVersion>,
        unwrapped: Result<(Dek, KekVersion), Arc<UnwrapError>>,
        asked: Duration,
    ) -> Unwrapping {
        let mut slots = self.slots();
        match unwrapped {
            Ok((dek, by)) => {
                let dek = Arc::new(dek);
                slots.unwraps.remove(&key);
                slots.contacts.note(&by, Standing::Opens, asked);
                slots.held.insert(key.0, Held { dek: dek.clone(), versions, wraps: key.1 });
                drop(slots);
                self.changes.send_replace(());
                Ok(dek)
            }
            Err(error) => {
                slots.unwraps.insert(key, Unwrap::Failed { error: error.clone(), at: Instant::now() });
                Err(error)
            }
        }
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slots {
    fn get(&self, id: DekId, now: Duration) -> Option<Arc<Dek>> {
        let held = self.held.get(&id)?;
        self.contacts.remaining(&held.versions, now).map(|_| held.dek.clone())
    }

    fn forget_failures(&mut self) {
        self.unwraps.retain(|_, unwrap| match unwrap {
            Unwrap::Running(_) => true,
            Unwrap::Failed { at, .. } => at.elapsed() < FAILURE_LASTS,
        });
    }
}

/// Takes a running unwrap away again when its task panics, so that the next caller tries again.
struct Abandoned<'a> {
    cache: &'a DekCache,
    key: (DekId, WrapsDigest),
}

impl Drop for Abandoned<'_> {
    fn drop(&mut self) {
        self.cache.slots().unwraps.remove(&self.key);
    }
}

#[cfg(test)]
mod tests;
