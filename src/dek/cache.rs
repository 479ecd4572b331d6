//! Unwrapped DEKs in memory: ageing, and one unwrap for all that wait for the same DEK.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::crypto::secret::{Dek, DekId};
use crate::kek::Lineage;
use crate::kek::set::UnwrapError;

/// How long a failed unwrap answers for those that come after it: an outage costs one call at a time.
const FAILURE_LASTS: Duration = Duration::from_secs(1);

/// From this many unwraps on, failures that are over are forgotten before the next sweep.
const MANY_UNWRAPS: usize = 256;

/// What a waiter gets.
pub type Unwrapping = Result<Arc<Dek>, Arc<UnwrapError>>;

/// The wraps that an unwrap was asked with, as a digest: what a damaged copy led to says nothing about a good one.
pub type WrapsDigest = [u8; 32];

/// The DEKs that this process holds.
#[derive(Debug, Default)]
pub struct DekCache {
    slots: Mutex<Slots>,
}

#[derive(Debug, Default)]
struct Slots {
    held: HashMap<DekId, Held>,
    unwraps: HashMap<(DekId, WrapsDigest), Unwrap>,
}

#[derive(Debug)]
enum Unwrap {
    Running(watch::Receiver<Option<Unwrapping>>),
    Failed { error: Arc<UnwrapError>, at: Instant },
}

/// A DEK, the KEKs that could unwrap it, and when one of them last answered well.
#[derive(Debug)]
struct Held {
    dek: Arc<Dek>,
    lineages: Vec<Lineage>,
    contact: Instant,
}

impl DekCache {
    /// An empty cache.
    pub fn new() -> Self {
        Self::default()
    }

    /// The DEK, if it is here. Never waits.
    pub fn get(&self, id: DekId) -> Option<Arc<Dek>> {
        self.slots().held.get(&id).map(|held| held.dek.clone())
    }

    /// Puts in a DEK that was just made or unwrapped.
    pub fn insert(&self, id: DekId, dek: Arc<Dek>, lineages: Vec<Lineage>) {
        self.slots().held.insert(id, Held { dek, lineages, contact: Instant::now() });
    }

    /// The DEK, unwrapped by `unwrap` unless it is here, or the same `wraps` are being unwrapped or failed a moment
    /// ago.
    ///
    /// `unwrap` runs in a task of its own: a caller that goes away does not end it.
    pub async fn get_or_unwrap<F>(
        self: &Arc<Self>,
        id: DekId,
        wraps: WrapsDigest,
        lineages: Vec<Lineage>,
        unwrap: F,
    ) -> Unwrapping
    where
        F: Future<Output = Result<Dek, UnwrapError>> + Send + 'static,
    {
        let key = (id, wraps);
        let mut waiting = {
            let mut slots = self.slots();
            if let Some(held) = slots.held.get(&id) {
                return Ok(held.dek.clone());
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
                    tokio::spawn(async move {
                        let abandoned = Abandoned { cache: &cache, key };
                        let unwrapped = unwrap.await.map(Arc::new).map_err(Arc::new);
                        std::mem::forget(abandoned);
                        cache.settle(key, lineages, &unwrapped);
                        let _ = done.send(Some(unwrapped));
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

    /// Notes that a KEK answered well: every DEK that it could unwrap begins a new age.
    pub fn contact(&self, lineage: Lineage) {
        let now = Instant::now();
        for held in self.slots().held.values_mut() {
            if held.lineages.contains(&lineage) {
                held.contact = now;
            }
        }
    }

    /// Clears the DEKs whose KEKs have all been silent for longer than `age`.
    pub fn sweep(&self, age: Duration) {
        let mut slots = self.slots();
        slots.held.retain(|_, held| held.contact.elapsed() <= age);
        slots.forget_failures();
    }

    /// How many DEKs are here.
    pub fn held(&self) -> usize {
        self.slots().held.len()
    }

    /// Clears every DEK that no KEK outside `denied` could unwrap. One being unwrapped meanwhile is settled by its
    /// KEK's own answer.
    pub fn wipe(&self, denied: &[Lineage]) {
        self.slots().held.retain(|_, held| held.lineages.iter().any(|lineage| !denied.contains(lineage)));
    }

    fn settle(&self, key: (DekId, WrapsDigest), lineages: Vec<Lineage>, unwrapped: &Unwrapping) {
        let mut slots = self.slots();
        match unwrapped {
            Ok(dek) => {
                slots.unwraps.remove(&key);
                slots.held.insert(key.0, Held { dek: dek.clone(), lineages, contact: Instant::now() });
            }
            Err(error) => {
                slots.unwraps.insert(key, Unwrap::Failed { error: error.clone(), at: Instant::now() });
            }
        }
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slots {
    fn forget_failures(&mut self) {
        self.unwraps.retain(|_, unwrap| match unwrap {
            Unwrap::Running(_) => true,
            Unwrap::Failed { at, .. } => at.elapsed() < FAILURE_LASTS,
        });
    }
}

/// Takes a running unwrap away again when its task panics, so that the next caller tries anew.
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
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const ID: DekId = DekId([1; 16]);
    const WRAPS: WrapsDigest = [1; 32];

    fn lineage() -> Lineage {
        Lineage::derive("test", &[])
    }

    fn dek() -> Dek {
        Dek::generate(&mut rand::rng())
    }

    #[tokio::test]
    async fn concurrent_misses_of_one_dek_cost_one_unwrap() {
        let cache = Arc::new(DekCache::new());
        let calls = Arc::new(AtomicUsize::new(0));
        let waiters = (0..50).map(|_| {
            let (cache, calls) = (cache.clone(), calls.clone());
            async move {
                let unwrap = async move {
                    calls.fetch_add(1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    Ok(dek())
                };
                cache.get_or_unwrap(ID, WRAPS, vec![lineage()], unwrap).await
            }
        });
        let results = futures::future::join_all(waiters).await;
        assert!(results.iter().all(Result::is_ok));
        assert_eq!(calls.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_failure_is_shared_and_lasts_a_moment() {
        let cache = Arc::new(DekCache::new());
        let calls = Arc::new(AtomicUsize::new(0));
        for _ in 0..50 {
            let calls = calls.clone();
            let unwrap = async move {
                calls.fetch_add(1, Ordering::SeqCst);
                Err(UnwrapError::NoKek)
            };
            assert!(cache.get_or_unwrap(ID, WRAPS, vec![lineage()], unwrap).await.is_err());
        }
        assert_eq!(calls.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_failure_of_damaged_wraps_does_not_answer_for_good_ones() {
        let cache = Arc::new(DekCache::new());
        let damaged = cache.get_or_unwrap(ID, [2; 32], vec![], async { Err(UnwrapError::Failed(Vec::new())) });
        assert!(damaged.await.is_err());
        assert!(cache.get_or_unwrap(ID, WRAPS, vec![], async { Ok(dek()) }).await.is_ok());
    }

    #[tokio::test]
    async fn failures_of_the_past_take_no_memory() {
        let cache = Arc::new(DekCache::new());
        let past = Instant::now().checked_sub(FAILURE_LASTS).unwrap();
        for i in 0..MANY_UNWRAPS {
            let failed = Unwrap::Failed { error: Arc::new(UnwrapError::NoKek), at: past };
            cache.slots().unwraps.insert((DekId([u8::try_from(i % 256).unwrap(); 16]), WRAPS), failed);
        }
        assert!(cache.get_or_unwrap(ID, [2; 32], vec![], async { Err(UnwrapError::NoKek) }).await.is_err());
        assert_eq!(cache.slots().unwraps.len(), 1);
    }

    #[tokio::test]
    async fn a_cancelled_caller_does_not_cancel_the_unwrap() {
        let cache = Arc::new(DekCache::new());
        let (go, gone) = tokio::sync::oneshot::channel::<()>();
        let unwrap = async move {
            let _ = gone.await;
            Ok(dek())
        };
        let call = cache.get_or_unwrap(ID, WRAPS, vec![lineage()], unwrap);
        assert!(tokio::time::timeout(Duration::from_millis(10), call).await.is_err());
        go.send(()).unwrap();
        let second = cache.get_or_unwrap(ID, WRAPS, vec![lineage()], async { Err(UnwrapError::NoKek) }).await;
        assert!(second.is_ok(), "the first unwrap went on");
    }

    #[tokio::test]
    async fn a_panicking_unwrap_frees_its_slot() {
        let cache = Arc::new(DekCache::new());
        assert!(cache.get_or_unwrap(ID, WRAPS, vec![], async { panic!("fault") }).await.is_err());
        assert!(cache.get_or_unwrap(ID, WRAPS, vec![], async { Ok(dek()) }).await.is_ok());
    }

    #[tokio::test]
    async fn deks_age_out_unless_their_kek_answers() {
        let cache = Arc::new(DekCache::new());
        cache.insert(ID, Arc::new(dek()), vec![lineage()]);
        tokio::time::sleep(Duration::from_millis(20)).await;
        cache.contact(lineage());
        cache.sweep(Duration::from_millis(15));
        assert_eq!(cache.held(), 1);
        tokio::time::sleep(Duration::from_millis(20)).await;
        cache.sweep(Duration::from_millis(15));
        assert_eq!(cache.held(), 0);
        assert!(cache.get(ID).is_none());
    }

    #[tokio::test]
    async fn a_denied_kek_clears_only_what_no_other_kek_unwraps() {
        let cache = Arc::new(DekCache::new());
        let other = Lineage::derive("test", &["other"]);
        cache.insert(ID, Arc::new(dek()), vec![lineage()]);
        cache.insert(DekId([2; 16]), Arc::new(dek()), vec![lineage(), other]);
        cache.wipe(&[lineage()]);
        assert!(cache.get(ID).is_none());
        assert!(cache.get(DekId([2; 16])).is_some());
    }
}
