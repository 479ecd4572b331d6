//! What is given out, for how long, and who shares an unwrap.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::*;
use crate::kek::WrappedDek;

const ID: DekId = DekId([1; 16]);
const WRAPS: WrapsDigest = [1; 32];
const LIMIT: Duration = Duration::from_secs(100);

/// Seconds, set by the test.
#[derive(Debug, Default)]
struct Watch(AtomicU64);

impl Clock for Watch {
    fn now(&self) -> Duration {
        Duration::from_secs(self.0.load(Ordering::SeqCst))
    }
}

fn version() -> KekVersion {
    KekVersion { lineage: Lineage::derive("test", &[]), version: "1".into() }
}

fn wrapped(versions: &[KekVersion]) -> WrappedDekSet {
    let wraps = versions.iter().map(|version| WrappedDek { version: version.clone(), blob: vec![1] });
    WrappedDekSet { cluster: "it".parse().unwrap(), epoch: 1, wraps: wraps.collect() }
}

fn dek() -> Dek {
    Dek::generate(&mut rand::rng())
}

fn cache() -> (Arc<Watch>, Arc<DekCache>) {
    let watch = Arc::new(Watch::default());
    let cache = DekCache::new(watch.clone());
    cache.configure([version().lineage].into(), LIMIT);
    (watch, Arc::new(cache))
}

#[tokio::test]
async fn concurrent_misses_of_one_dek_cost_one_unwrap() {
    let cache = cache().1;
    let calls = Arc::new(AtomicUsize::new(0));
    let waiters = (0..50).map(|_| {
        let (cache, calls) = (cache.clone(), calls.clone());
        async move {
            let unwrap = async move {
                calls.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(20)).await;
                Ok((dek(), version()))
            };
            cache.get_or_unwrap(ID, WRAPS, vec![version()], unwrap).await
        }
    });
    let results = futures::future::join_all(waiters).await;
    assert!(results.iter().all(Result::is_ok));
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_failure_is_shared_and_lasts_a_moment() {
    let cache = cache().1;
    let calls = Arc::new(AtomicUsize::new(0));
    for _ in 0..50 {
        let calls = calls.clone();
        let unwrap = async move {
            calls.fetch_add(1, Ordering::SeqCst);
            Err(UnwrapError::NoKek)
        };
        assert!(cache.get_or_unwrap(ID, WRAPS, vec![version()], unwrap).await.is_err());
    }
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_failure_of_damaged_wraps_does_not_answer_for_good_ones() {
    let cache = cache().1;
    let damaged = cache.get_or_unwrap(ID, [2; 32], vec![], async { Err(UnwrapError::Failed(Vec::new())) });
    assert!(damaged.await.is_err());
    assert!(cache.get_or_unwrap(ID, WRAPS, vec![], async { Ok((dek(), version())) }).await.is_ok());
}

#[tokio::test]
async fn failures_of_the_past_take_no_memory() {
    let cache = cache().1;
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
    let cache = cache().1;
    let (go, gone) = tokio::sync::oneshot::channel::<()>();
    let unwrap = async move {
        let _ = gone.await;
        Ok((dek(), version()))
    };
    let call = cache.get_or_unwrap(ID, WRAPS, vec![version()], unwrap);
    assert!(tokio::time::timeout(Duration::from_millis(10), call).await.is_err());
    go.send(()).unwrap();
    let second = cache.get_or_unwrap(ID, WRAPS, vec![version()], async { Err(UnwrapError::NoKek) }).await;
    assert!(second.is_ok(), "the first unwrap went on");
}

#[tokio::test]
async fn a_panicking_unwrap_frees_its_slot() {
    let cache = cache().1;
    assert!(cache.get_or_unwrap(ID, WRAPS, vec![], async { panic!("fault") }).await.is_err());
    assert!(cache.get_or_unwrap(ID, WRAPS, vec![], async { Ok((dek(), version())) }).await.is_ok());
}

#[test]
fn an_aged_dek_is_given_to_nobody_even_before_it_is_swept_away() {
    let (watch, cache) = cache();
    cache.insert(ID, Arc::new(dek()), &wrapped(&[version()]), &[version()], Duration::ZERO);
    watch.0.store(99, Ordering::SeqCst);
    assert_eq!((cache.get(ID).is_some(), cache.remaining(ID)), (true, Some(Duration::from_secs(1))));
    watch.0.store(100, Ordering::SeqCst);
    assert!(cache.get(ID).is_none() && cache.held() == 0);
    // Not swept, it is here again with the next unwrap.
    cache.note(&version(), Standing::Opens, cache.now());
    assert!(cache.get(ID).is_some());
    watch.0.store(200, Ordering::SeqCst);
    cache.sweep();
    cache.note(&version(), Standing::Opens, cache.now());
    assert!(cache.get(ID).is_none());
}

#[test]
fn a_denied_version_clears_only_what_no_other_kek_unwraps() {
    let (watch, cache) = cache();
    let other = KekVersion { lineage: Lineage::derive("test", &["other"]), version: "1".into() };
    cache.configure([version().lineage, other.lineage].into(), LIMIT);
    cache.insert(ID, Arc::new(dek()), &wrapped(&[version()]), &[version()], Duration::ZERO);
    let both = [version(), other];
    cache.insert(DekId([2; 16]), Arc::new(dek()), &wrapped(&both), &both, Duration::ZERO);
    for second in [0, 5, 10] {
        watch.0.store(second, Ordering::SeqCst);
        cache.note(&version(), Standing::Denies, cache.now());
    }
    cache.sweep();
    assert!(cache.is_denied(&[version()]) && cache.get(ID).is_none());
    assert!(cache.get(DekId([2; 16])).is_some());
}

#[tokio::test]
async fn a_dek_that_came_from_other_wraps_does_not_stand_for_these() {
    let cache = cache().1;
    let mut stored = wrapped(&[version()]);
    let good = digest_of(&stored);
    cache.get_or_unwrap(ID, good, vec![version()], async { Ok((dek(), version())) }).await.unwrap();
    assert!(cache.get_from(ID, good).is_some());
    stored.wraps[0].blob[0] ^= 1;
    assert!(cache.get_from(ID, digest_of(&stored)).is_none() && cache.get(ID).is_some());
    let (handed, opened) = cache.hand_over();
    let next = self::cache().1;
    next.take_over(handed, &opened);
    assert!(next.get_from(ID, good).is_some() && next.get_from(ID, digest_of(&stored)).is_none());
}

#[test]
fn what_nothing_is_wrapped_by_is_forgotten() {
    let cache = cache().1;
    cache.note(&version(), Standing::Silent, cache.now());
    assert_eq!(cache.contacts(&[version()].into()).len(), 1);
    assert_eq!(cache.contacts(&BTreeSet::new()).len(), 0);
}
