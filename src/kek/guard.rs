//! One deadline, one retry policy, one breaker (`gate`) for every kind of KEK, and for what other plugins stored.

mod gate;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use rand::RngExt;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use self::gate::{Gate, Outcome};
use super::clock::ServerClock;
use super::offline::OfflineKey;
use super::{Kek, KekError, KekVersion, Lineage, Unwrapped, WrapContext, WrappedDek};
use crate::crypto::secret::Dek;
use crate::telemetry::{KekOperation, KekOutcome, Metrics};

/// The time for one operation, retries included: under the API server's 3 s for a call.
pub const DEADLINE: Duration = Duration::from_millis(2500);

/// Calls of one KEK in flight at once; more wait, inside their deadline.
const CONCURRENCY: usize = 8;
const RETRIES: usize = 2;
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// A KEK with its name, its deadline, its retries and its breaker.
pub struct GuardedKek {
    guard: Guard,
    kek: Box<dyn Kek>,
    offline: Option<OfflineKey>,
}

impl GuardedKek {
    /// Guards `kek`, called `name` in logs and metrics.
    pub fn new(name: String, kek: Box<dyn Kek>, metrics: Arc<Metrics>) -> Self {
        Self { guard: Guard::new(name, metrics), kek, offline: None }
    }

    /// The same with pauses that follow from `seed`, so that a simulation can be repeated.
    pub fn with_seed(name: String, kek: Box<dyn Kek>, metrics: Arc<Metrics>, seed: u64) -> Self {
        Self { guard: Guard::with_seed(name, metrics, seed), kek, offline: None }
    }

    /// The same, where its private half is elsewhere: then it is never asked to unwrap.
    #[must_use]
    pub fn with_offline(self, offline: Option<OfflineKey>) -> Self {
        Self { offline, ..self }
    }

    /// What is known of it where its private half is elsewhere.
    pub fn offline(&self) -> Option<&OfflineKey> {
        self.offline.as_ref()
    }

    /// How the configuration calls it.
    pub fn name(&self) -> &str {
        &self.guard.name
    }

    /// The value of [`Kek::lineage`]; asks nobody.
    pub fn lineage(&self) -> Lineage {
        self.kek.lineage()
    }

    /// The value of [`Kek::is_identified`]; asks nobody.
    pub(super) fn is_identified(&self) -> bool {
        self.kek.is_identified()
    }

    /// The value of [`Kek::credentials_expire`]; asks nobody.
    pub fn credentials_expire(&self) -> Option<jiff::Timestamp> {
        self.kek.credentials_expire()
    }

    /// The value of [`Kek::server_clock`]; asks nobody.
    pub fn server_clock(&self) -> Option<&ServerClock> {
        self.kek.server_clock()
    }

    /// See [`Kek::version`].
    ///
    /// # Errors
    /// The KEK's own, or `Unavailable` while the breaker is open or the deadline has passed.
    pub async fn version(&self) -> Result<KekVersion, KekError> {
        self.call(KekOperation::Version, || self.kek.version()).await
    }

    /// See [`Kek::wrap`].
    ///
    /// # Errors
    /// As of [`GuardedKek::version`].
    pub async fn wrap(&self, dek: &Dek, context: &WrapContext) -> Result<WrappedDek, KekError> {
        self.call(KekOperation::Wrap, || self.kek.wrap(dek, context)).await
    }

    /// See [`Kek::unwrap`].
    ///
    /// # Errors
    /// As of [`GuardedKek::version`].
    pub async fn unwrap(&self, wrapped: &WrappedDek, context: &WrapContext) -> Result<Unwrapped, KekError> {
        self.call(KekOperation::Unwrap, || self.kek.unwrap(wrapped, context)).await
    }

    async fn call<T, F>(&self, operation: KekOperation, attempt: impl Fn() -> F) -> Result<T, KekError>
    where
        F: Future<Output = Result<T, KekError>>,
    {
        let result = self.guard.call(operation, attempt).await;
        self.guard.note_credentials(self.kek.credentials_expire());
        result
    }
}

/// Deadline, retries, breaker and metrics around whatever a key store is asked, under a configured name.
pub(super) struct Guard {
    name: String,
    deadline: Duration,
    permits: Semaphore,
    /// One for each operation: a KEK that lets nobody read its version may unwrap all the same.
    gates: [Gate; 4],
    /// Of the pauses between retries.
    seed: AtomicU64,
    metrics: Arc<Metrics>,
}

impl Guard {
    /// A guard of what is called `name` in logs and metrics.
    pub fn new(name: String, metrics: Arc<Metrics>) -> Self {
        Self::with_seed(name, metrics, rand::rng().random())
    }

    fn with_seed(name: String, metrics: Arc<Metrics>, seed: u64) -> Self {
        let permits = Semaphore::new(CONCURRENCY);
        let gates = [0, 1, 2, 3].map(|operation| Gate::new(seed.wrapping_add(operation)));
        Self { name, deadline: DEADLINE, permits, gates, seed: AtomicU64::new(seed), metrics }
    }

    /// The configured name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Counts when the credentials in use end.
    pub(super) fn note_credentials(&self, end: Option<jiff::Timestamp>) {
        if let Some(end) = end {
            self.metrics.credentials_expire(&self.name, end);
        }
    }

    /// Sends the question, as often as deadline, retries and breaker allow.
    ///
    /// # Errors
    /// That of the last attempt; [`KekCause::Unavailable`](super::KekCause::Unavailable) if no answer came in time.
    pub(super) async fn call<T, F>(&self, operation: KekOperation, attempt: impl Fn() -> F) -> Result<T, KekError>
    where
        F: Future<Output = Result<T, KekError>>,
    {
        let started = Instant::now();
        let result = self.call_before(started + self.deadline, operation, attempt).await;
        let outcome = result.as_ref().err().map_or(KekOutcome::Ok, |error| error.cause().into());
        self.metrics.kek_call(&self.name, operation, outcome, started.elapsed());
        result
    }

    async fn call_before<T, F>(
        &self,
        deadline: Instant,
        operation: KekOperation,
        attempt: impl Fn() -> F,
    ) -> Result<T, KekError>
    where
        F: Future<Output = Result<T, KekError>>,
    {
        let late = |_| KekError::unavailable(format!("no answer from {} within {:?}", self.name, self.deadline));
        // A call that was never made says nothing about the KEK.
        let admitted = async {
            // The permit first: a pass of the gate that waits for a permit would keep the others waiting that wait for
            // what it finds out.
            let permit = self.permits.acquire().await.expect("the semaphore is never closed");
            self.gate(operation).admit(&self.name).await.map(|pass| (permit, pass))
        };
        let (_permit, pass) = timeout_at(deadline, admitted).await.map_err(late)??;
        let result =
            timeout_at(deadline, self.attempts(deadline, operation, attempt)).await.map_err(late).and_then(|done| done);
        // A refusal is an answer: the KEK is there, and the breaker has nothing to protect it from.
        pass.settle(match &result {
            Err(error) if error.cause().is_transient() => Outcome::NoAnswer(error.into()),
            _ => Outcome::Answer,
        });
        result
    }

    fn gate(&self, operation: KekOperation) -> &Gate {
        let [version, wrap, unwrap, take_over] = &self.gates;
        match operation {
            KekOperation::Version => version,
            KekOperation::Wrap => wrap,
            KekOperation::Unwrap => unwrap,
            KekOperation::TakeOver => take_over,
        }
    }

    async fn attempts<T, F>(
        &self,
        deadline: Instant,
        operation: KekOperation,
        attempt: impl Fn() -> F,
    ) -> Result<T, KekError>
    where
        F: Future<Output = Result<T, KekError>>,
    {
        let backoff = ExponentialBuilder::default().with_min_delay(FIRST_PAUSE).with_max_times(RETRIES).with_jitter();
        // The seed moves on with each call: with one seed, all calls of an outage would retry in step.
        let backoff = backoff.with_jitter_seed(self.seed.fetch_add(1, Ordering::Relaxed));
        let counted = || async {
            self.metrics.kek_request(&self.name, operation);
            attempt().await
        };
        counted
            .retry(backoff)
            .when(|error: &KekError| error.cause().is_transient())
            .adjust(|error, pause| {
                let pause = pause?.max(error.retry_after().unwrap_or_default());
                // What would come too late is not waited for: the KEK's own words say more than a lapsed deadline.
                (pause < deadline.saturating_duration_since(Instant::now())).then_some(pause)
            })
            .await
    }
}

impl fmt::Debug for GuardedKek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuardedKek").field("name", &self.guard.name).field("kek", &self.kek).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

    use futures::future::join_all;

    use super::*;
    use crate::crypto::secret::DekId;

    /// Counts, and answers after a while, or never.
    #[derive(Debug, Default)]
    struct Fake {
        calls: AtomicUsize,
        at_once: AtomicUsize,
        most_at_once: AtomicUsize,
        before_first_answer: AtomicUsize,
        hangs: AtomicBool,
    }

    const ROUND_TRIP: Duration = Duration::from_millis(40);

    #[async_trait::async_trait]
    impl Kek for Arc<Fake> {
        fn lineage(&self) -> Lineage {
            Lineage::derive("fake", &[])
        }

        fn credentials_expire(&self) -> Option<jiff::Timestamp> {
            None
        }

        fn server_clock(&self) -> Option<&ServerClock> {
            None
        }

        async fn version(&self) -> Result<KekVersion, KekError> {
            Err(KekError::unavailable("not asked here"))
        }

        async fn wrap(&self, _: &Dek, _: &WrapContext) -> Result<WrappedDek, KekError> {
            Err(KekError::unavailable("not asked here"))
        }

        async fn unwrap(&self, wrapped: &WrappedDek, _: &WrapContext) -> Result<Unwrapped, KekError> {
            self.calls.fetch_add(1, SeqCst);
            let now = self.at_once.fetch_add(1, SeqCst) + 1;
            self.most_at_once.fetch_max(now, SeqCst);
            if self.hangs.load(SeqCst) {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(ROUND_TRIP).await;
            let _ = self.before_first_answer.compare_exchange(0, self.calls.load(SeqCst), SeqCst, SeqCst);
            self.at_once.fetch_sub(1, SeqCst);
            Ok(Unwrapped { dek: Dek::generate(&mut rand::rng()), version: wrapped.version.clone() })
        }
    }

    fn guarded() -> (Arc<Fake>, GuardedKek) {
        let fake = Arc::new(Fake::default());
        let mut kek = GuardedKek::new("fake".into(), Box::new(fake.clone()), Arc::new(Metrics::new()));
        kek.guard.deadline = Duration::from_millis(500);
        (fake, kek)
    }

    async fn unwrap_many(kek: &GuardedKek, count: u8) -> usize {
        let version = KekVersion { lineage: kek.lineage(), version: "1".into() };
        let asked = join_all((0..count).map(|number| {
            let wrapped = WrappedDek { version: version.clone(), blob: vec![number] };
            let context = WrapContext { cluster: "it".parse().unwrap(), dek_id: DekId([number; 16]) };
            async move { kek.unwrap(&wrapped, &context).await.is_ok() }
        }));
        asked.await.into_iter().filter(|opened| *opened).count()
    }

    #[tokio::test]
    async fn a_hundred_calls_to_a_kek_that_hangs_cost_one_call_and_one_deadline() {
        let (fake, kek) = guarded();
        fake.hangs.store(true, SeqCst);
        let started = Instant::now();
        assert_eq!(unwrap_many(&kek, 100).await, 0);
        assert_eq!(fake.calls.load(SeqCst), 1);
        assert!(
            started.elapsed() < kek.guard.deadline * 20,
            "one after the other they would take 100: {:?}",
            started.elapsed()
        );
        assert_eq!(unwrap_many(&kek, 100).await, 0);
        assert_eq!(fake.calls.load(SeqCst), 1, "the breaker is open");
    }

    #[tokio::test]
    async fn a_cold_start_sends_one_call_ahead_and_then_as_many_as_are_allowed() {
        let (fake, mut kek) = guarded();
        kek.guard.deadline = Duration::from_mins(1);
        assert_eq!(unwrap_many(&kek, 33).await, 33);
        assert_eq!(fake.calls.load(SeqCst), 33);
        assert_eq!(fake.before_first_answer.load(SeqCst), 1);
        assert_eq!(fake.most_at_once.load(SeqCst), CONCURRENCY);
    }

    #[tokio::test]
    async fn a_probe_that_is_given_up_lets_the_next_call_try() {
        let (fake, kek) = guarded();
        fake.hangs.store(true, SeqCst);
        let given_up = tokio::time::timeout(Duration::from_millis(100), unwrap_many(&kek, 1)).await;
        assert!(given_up.is_err());
        fake.hangs.store(false, SeqCst);
        assert_eq!(unwrap_many(&kek, 10).await, 10);
    }
}
