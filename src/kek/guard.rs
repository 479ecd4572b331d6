//! One deadline, one retry policy, one breaker for every kind of KEK.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use rand::RngExt;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::{Kek, KekCause, KekError, KekVersion, Lineage, Unwrapped, WrapContext, WrappedDek};
use crate::crypto::secret::Dek;
use crate::telemetry::{KekOperation, Metrics};

/// The time for one operation, retries included: under the API server's 3 s for a call.
pub const DEADLINE: Duration = Duration::from_millis(2500);

/// Calls of one KEK in flight at once; more wait, inside their deadline.
const CONCURRENCY: usize = 8;
const RETRIES: usize = 2;
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Failures in a row, each a whole operation with its retries, that open the breaker.
const BREAKER_THRESHOLD: u32 = 3;
const BREAKER_FIRST_PAUSE: Duration = Duration::from_secs(1);
const BREAKER_LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A KEK with its name, its deadline, its retries and its breaker.
pub struct GuardedKek {
    name: String,
    kek: Box<dyn Kek>,
    deadline: Duration,
    permits: Semaphore,
    breaker: Mutex<Breaker>,
    metrics: Arc<Metrics>,
}

impl GuardedKek {
    /// Guards `kek`, called `name` in logs and metrics.
    pub fn new(name: String, kek: Box<dyn Kek>, metrics: Arc<Metrics>) -> Self {
        Self {
            name,
            kek,
            deadline: DEADLINE,
            permits: Semaphore::new(CONCURRENCY),
            breaker: Mutex::new(Breaker::default()),
            metrics,
        }
    }

    /// How the configuration calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// See [`Kek::lineage`].
    pub fn lineage(&self) -> Lineage {
        self.kek.lineage()
    }

    /// See [`Kek::credentials_expire`].
    pub fn credentials_expire(&self) -> Option<jiff::Timestamp> {
        self.kek.credentials_expire()
    }

    /// See [`Kek::version`].
    pub async fn version(&self) -> Result<KekVersion, KekError> {
        self.call(KekOperation::Version, || self.kek.version()).await
    }

    /// See [`Kek::wrap`].
    pub async fn wrap(&self, dek: &Dek, context: &WrapContext) -> Result<WrappedDek, KekError> {
        self.call(KekOperation::Wrap, || self.kek.wrap(dek, context)).await
    }

    /// See [`Kek::unwrap`].
    pub async fn unwrap(&self, wrapped: &WrappedDek, context: &WrapContext) -> Result<Unwrapped, KekError> {
        self.call(KekOperation::Unwrap, || self.kek.unwrap(wrapped, context)).await
    }

    async fn call<T, F>(&self, operation: KekOperation, attempt: impl Fn() -> F) -> Result<T, KekError>
    where
        F: Future<Output = Result<T, KekError>>,
    {
        let started = Instant::now();
        let result =
            tokio::time::timeout(self.deadline, self.attempts(operation, attempt)).await.unwrap_or_else(|_| {
                let error = KekError::unavailable(format!("no answer from {} within {:?}", self.name, self.deadline));
                self.breaker().failed(Instant::now());
                Err(error)
            });
        if let Some(end) = self.kek.credentials_expire() {
            self.metrics.credentials_expire(&self.name, end);
        }
        self.metrics.kek_call(&self.name, operation, result.as_ref().err().map(KekError::cause), started.elapsed());
        result
    }

    async fn attempts<T, F>(&self, operation: KekOperation, attempt: impl Fn() -> F) -> Result<T, KekError>
    where
        F: Future<Output = Result<T, KekError>>,
    {
        let _permit = self.permits.acquire().await.expect("the semaphore is never closed");
        self.breaker().admit(Instant::now(), &self.name)?;
        let backoff = ExponentialBuilder::default().with_min_delay(FIRST_PAUSE).with_max_times(RETRIES).with_jitter();
        let counted = || async {
            self.metrics.kek_request(&self.name, operation);
            attempt().await
        };
        let result = counted
            .retry(backoff)
            .when(|error: &KekError| error.cause().is_transient())
            .adjust(|error, pause| pause.map(|pause| error.retry_after().unwrap_or_default().max(pause)))
            .await;
        match &result {
            Err(error) if error.cause().is_transient() => self.breaker().failed(Instant::now()),
            _ => self.breaker().answered(),
        }
        result
    }

    fn breaker(&self) -> std::sync::MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for GuardedKek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuardedKek").field("name", &self.name).field("kek", &self.kek).finish_non_exhaustive()
    }
}

/// Closed while the KEK answers; open for a growing pause once it does not; then one call may try.
#[derive(Debug, Default)]
struct Breaker {
    failures: u32,
    open_until: Option<Instant>,
}

impl Breaker {
    fn admit(&mut self, now: Instant, name: &str) -> Result<(), KekError> {
        match self.open_until {
            Some(until) if now < until => Err(KekError::new(
                KekCause::Unavailable,
                format!("{name} did not answer lately; asked again in {:?}", until - now),
            )),
            // The pause is over: this call tries, and the others wait for what it finds.
            Some(_) => {
                self.open_until = Some(now + DEADLINE);
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn answered(&mut self) {
        *self = Self::default();
    }

    fn failed(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        if let Some(doublings) = self.failures.checked_sub(BREAKER_THRESHOLD) {
            let pause = BREAKER_FIRST_PAUSE.saturating_mul(1 << doublings.min(10)).min(BREAKER_LONGEST_PAUSE);
            self.open_until = Some(now + pause.mul_f64(rand::rng().random_range(0.8..1.0)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_breaker_opens_after_failures_in_a_row_and_lets_one_call_try_again() {
        let mut breaker = Breaker::default();
        let now = Instant::now();
        for _ in 0..BREAKER_THRESHOLD {
            assert!(breaker.admit(now, "kek").is_ok());
            breaker.failed(now);
        }
        assert!(breaker.admit(now, "kek").is_err(), "open");
        let now = now + BREAKER_FIRST_PAUSE;
        assert!(breaker.admit(now, "kek").is_ok(), "one call tries");
        assert!(breaker.admit(now, "kek").is_err(), "the others wait for it");
        breaker.answered();
        assert!(breaker.admit(now, "kek").is_ok(), "closed");
    }
}
