//! One engine for the credentials of all key stores: loaded once for all callers and in a task of their own, renewed
//! ahead of their end, dropped when they are refused. A source that was refused is not shown again until it changes.

mod loaded;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use tokio::time::{Instant, timeout};

pub(in crate::key_stores) use self::loaded::Loaded;
use super::credential_file::{Content, Fingerprint};
use crate::kek::{KekCause, KekError};

/// How long a caller waits; the load goes on and serves the next caller. Less than the guard's deadline, so that the
/// caller learns what it waited for.
const WAIT: Duration = Duration::from_secs(2);
/// The end of a load that nobody answers: instance metadata may take three attempts of some seconds.
const LONGEST_LOAD: Duration = Duration::from_secs(30);
/// Pauses after loads that failed. A server that was away is asked again at once; one that refused is not.
const PAUSE_AFTER_SILENCE: Duration = Duration::from_millis(300);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// A denial counts only for credentials that are not older: later ones may have other permissions.
const FRESH: Duration = Duration::from_secs(5);

/// Where the credentials of one key store come from.
#[async_trait]
pub(in crate::key_stores) trait Source: fmt::Debug + Send + Sync + 'static {
    type Credential: Send + Sync + 'static;

    /// How messages call the credentials: "AWS credentials".
    fn name(&self) -> &'static str;

    /// Reads the file that they are made from, where there is one. Asks nobody.
    async fn content(&self) -> Result<Option<Content>, KekError>;

    /// Gets credentials. `Unauthenticated` means that `content` was refused, and nothing else.
    async fn load(&self, content: Option<Content>) -> Result<Loaded<Self::Credential>, KekError>;

    /// Lengthens the life of `held`, or replaces it.
    async fn renew(
        &self,
        _held: &Loaded<Self::Credential>,
        content: Option<Content>,
    ) -> Result<Loaded<Self::Credential>, KekError> {
        self.load(content).await
    }

    /// Whether a content that was refused once is refused until it changes.
    fn remembers_refusals(&self) -> bool {
        true
    }

    /// Whether both are the same, so that what was refused of one is refused of the other.
    fn same(&self, one: &Self::Credential, other: &Self::Credential) -> bool;
}

/// A `KekError` that several callers can have.
type Failure = Arc<KekError>;
type Load<C> = Shared<BoxFuture<'static, Result<Arc<Loaded<C>>, Failure>>>;

/// The credentials of one KEK.
pub(in crate::key_stores) struct Renewing<S: Source>(Arc<Inner<S>>);

struct Inner<S: Source> {
    source: S,
    state: Mutex<State<S::Credential>>,
}

struct State<C> {
    held: Option<Arc<Loaded<C>>>,
    /// The content that `held` was made from.
    from: Option<Fingerprint>,
    load: Option<Load<C>>,
    /// What was held before, for when the newer ones are refused.
    former: Option<Arc<Loaded<C>>>,
    /// What was loaded last and refused by the key store itself, and its words.
    dropped: Option<(Arc<C>, Failure)>,
    /// The content that was refused.
    refused: Option<(Fingerprint, Failure)>,
    failed: Option<Failed>,
}

struct Failed {
    from: Option<Fingerprint>,
    at: Instant,
    pause: Duration,
    failure: Failure,
}

impl<C> Default for State<C> {
    fn default() -> Self {
        Self { held: None, from: None, load: None, former: None, dropped: None, refused: None, failed: None }
    }
}

impl<S: Source> Clone for Renewing<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S: Source> Renewing<S> {
    pub fn new(source: S) -> Self {
        Self(Arc::new(Inner { source, state: Mutex::default() }))
    }

    /// When the credentials in use end, where they do.
    pub fn expire(&self) -> Option<jiff::Timestamp> {
        jiff::Timestamp::try_from(self.0.state().held.as_ref()?.ends?).ok()
    }

    /// Makes a call with the credentials, and once more with others when these are refused, or when they are denied a
    /// permission that newer ones may have. A denial that could not be tried with fresh credentials is `Unavailable`.
    ///
    /// # Errors
    /// Those of the call, and those of the load before it.
    pub async fn with<T, F>(&self, call: impl Fn(Arc<S::Credential>) -> F) -> Result<T, KekError>
    where
        F: Future<Output = Result<T, KekError>>,
    {
        let used = self.get().await?;
        let error = match call(used.credential.clone()).await {
            Err(error) if error.cause() == KekCause::Unauthenticated => error,
            // The permission may have come with a newer token: only credentials that were got after the denial can
            // confirm it.
            Err(error) if error.is_by_policy() && used.age() >= FRESH => error,
            result => return result,
        };
        let refused = error.cause() == KekCause::Unauthenticated;
        if refused {
            self.0.drop_refused(&used, &error);
        }
        let other = match self.0.replace(&used).await {
            Ok(other) => other,
            // Without others there is nothing more to try; why there are none says more than the refusal.
            Err(failure) if refused => return Err(failure),
            Err(failure) => {
                let text = format!("denied, which {} that are newer could not confirm", self.0.source.name());
                return Err(KekError::unavailable(text).with_source(format!("{error}; {failure}")));
            }
        };
        // The same credentials again: no newer permission can be in them, so the denial stands.
        if !refused && self.0.source.same(&other.credential, &used.credential) {
            return Err(error);
        }
        // Once more and no further: a key store that refuses two credentials in a row would refuse a third.
        let result = call(other.credential.clone()).await;
        if let Err(error) = &result
            && error.cause() == KekCause::Unauthenticated
        {
            self.0.drop_refused(&other, error);
        }
        result
    }

    /// Credentials that are good now. Renews them ahead without waiting.
    ///
    /// # Errors
    /// Why there are none: that of the last load, or that their file cannot be read.
    pub async fn get(&self) -> Result<Arc<Loaded<S::Credential>>, KekError> {
        let content = self.0.source.content().await;
        let load = {
            let mut state = self.0.state();
            state.take_loaded();
            let held = state.held.clone().filter(|held| held.lasts());
            let content = match (content, &held) {
                (Ok(content), _) => content,
                // A file that is missing for a moment does not end credentials that are still valid.
                (Err(_), Some(held)) => return Ok(held.clone()),
                (Err(error), None) => return Err(error),
            };
            let fingerprint = content.as_ref().map(Content::fingerprint);
            if let Some(held) = held {
                if (held.is_due(fingerprint.is_some()) || state.from != fingerprint)
                    && state.may_load(fingerprint).is_ok()
                {
                    // In the background. What is held is still good, and its user must not wait for a login.
                    drop(self.0.start(&mut state, content));
                }
                return Ok(held);
            }
            if let Some(load) = state.load.clone() {
                load
            } else {
                state.may_load(fingerprint)?;
                self.0.start(&mut state, content)
            }
        };
        self.0.wait(load).await
    }
}

impl<S: Source> Inner<S> {
    fn state(&self) -> MutexGuard<'_, State<S::Credential>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The key store itself refused these. If they came from a changed source, the former ones, which worked, stay in use.
    fn drop_refused(&self, used: &Arc<Loaded<S::Credential>>, error: &KekError) {
        let mut state = self.state();
        if state.held.as_ref().is_some_and(|held| Arc::ptr_eq(held, used)) {
            let failure = Arc::new(KekError::new(error.cause(), error.problem()));
            // A file that was replaced by a bad one must not end what worked: the former ones are used again.
            state.held = state.former.take().filter(|former| former.lasts());
            if let (Some(_), Some(from), true) = (&state.held, state.from, self.source.remembers_refusals()) {
                state.refused = Some((from, failure.clone()));
            }
            // A source may hand the same credentials out again, from a cache of its own.
            state.dropped = Some((used.credential.clone(), failure));
        }
    }

    /// Others than `used`: those that came meanwhile, or those of a load that begins now.
    async fn replace(
        self: &Arc<Self>,
        used: &Arc<Loaded<S::Credential>>,
    ) -> Result<Arc<Loaded<S::Credential>>, KekError> {
        let content = self.source.content().await?;
        let load = {
            let mut state = self.state();
            state.take_loaded();
            match (&state.held, state.load.clone()) {
                // Another caller has replaced them meanwhile.
                (Some(held), _) if !Arc::ptr_eq(held, used) => return Ok(held.clone()),
                (_, Some(load)) => load,
                (_, None) => {
                    state.may_load(content.as_ref().map(Content::fingerprint))?;
                    self.start(&mut state, content)
                }
            }
        };
        self.wait(load).await
    }

    async fn wait(&self, load: Load<S::Credential>) -> Result<Arc<Loaded<S::Credential>>, KekError> {
        match timeout(WAIT, load).await {
            Ok(loaded) => {
                self.state().take_loaded();
                loaded.map_err(|failure| copy(&failure))
            }
            Err(_) => {
                Err(KekError::unavailable(format!("{}: not loaded within {WAIT:?}; going on", self.source.name())))
            }
        }
    }

    /// In a task of its own: a caller that gives up does not end it.
    fn start(self: &Arc<Self>, state: &mut State<S::Credential>, content: Option<Content>) -> Load<S::Credential> {
        let fingerprint = content.as_ref().map(Content::fingerprint);
        // A changed source is loaded from; the same one may lengthen what is held.
        let held = state.held.clone().filter(|held| held.lasts() && state.from == fingerprint && held.is_due(true));
        let inner = self.clone();
        // In a task of its own: a caller whose deadline ends must not end a login, which would start over each time.
        let task = tokio::spawn(async move {
            let load = async {
                match held {
                    Some(held) => inner.source.renew(&held, content).await,
                    None => inner.source.load(content).await,
                }
            };
            let late = || KekError::unavailable(format!("{}: no answer within {LONGEST_LOAD:?}", inner.source.name()));
            let loaded = timeout(LONGEST_LOAD, load).await.unwrap_or_else(|_| Err(late()));
            inner.finish(fingerprint, loaded)
        });
        let name = self.source.name();
        let load = async move {
            task.await.unwrap_or_else(|error| {
                Err(Arc::new(KekError::unavailable(format!("{name}: the load ended: {error}"))))
            })
        };
        let load = load.boxed().shared();
        state.load = Some(load.clone());
        load
    }

    /// Takes a load's result into use.
    fn finish(
        &self,
        fingerprint: Option<Fingerprint>,
        loaded: Result<Loaded<S::Credential>, KekError>,
    ) -> Result<Arc<Loaded<S::Credential>>, Failure> {
        let mut state = self.state();
        let dropped = state.dropped.clone().filter(|_| self.source.remembers_refusals());
        let loaded = loaded.and_then(|loaded| match dropped {
            Some((dropped, failure)) if self.source.same(&dropped, &loaded.credential) => Err(copy(&failure)),
            _ => Ok(loaded),
        });
        match loaded {
            Ok(loaded) => {
                let loaded = Arc::new(loaded);
                // Only those from another content of the file are worth going back to.
                let former = state.held.take().filter(|_| state.from != fingerprint);
                *state = State {
                    held: Some(loaded.clone()),
                    from: fingerprint,
                    load: state.load.take(),
                    former,
                    ..State::default()
                };
                Ok(loaded)
            }
            Err(error) => {
                let failure = Arc::new(error);
                let repeated =
                    state.failed.as_ref().is_some_and(|failed| failed.failure.problem() == failure.problem());
                if !repeated {
                    tracing::warn!(error = failure.chain(), "{} cannot be loaded", self.source.name());
                }
                if let (KekCause::Unauthenticated, Some(fingerprint), true) =
                    (failure.cause(), fingerprint, self.source.remembers_refusals())
                {
                    state.refused = Some((fingerprint, failure.clone()));
                }
                state.note_failure(fingerprint, failure.clone());
                Err(failure)
            }
        }
    }
}

impl<C> State<C> {
    /// A load that has ended makes room for the next one.
    fn take_loaded(&mut self) {
        // A load that nobody waits for is polled here, so that its end is seen.
        if self.load.as_ref().is_some_and(|load| load.peek().is_some() || load.clone().now_or_never().is_some()) {
            self.load = None;
        }
    }

    /// Whether the source may be shown now.
    fn may_load(&self, fingerprint: Option<Fingerprint>) -> Result<(), KekError> {
        if self.load.is_some() {
            return Err(KekError::unavailable("already being loaded"));
        }
        if let Some((_, failure)) = self.refused.as_ref().filter(|(refused, _)| Some(*refused) == fingerprint) {
            let text = format!("{}; not shown again until the file changes", failure.problem());
            return Err(KekError::new(KekCause::Unauthenticated, text));
        }
        match &self.failed {
            Some(failed) if failed.from == fingerprint && failed.at.elapsed() < failed.pause => {
                Err(copy(&failed.failure))
            }
            _ => Ok(()),
        }
    }

    fn note_failure(&mut self, from: Option<Fingerprint>, failure: Failure) {
        let pause = match (failure.cause().is_transient(), &self.failed) {
            (true, _) => failure.retry_after().unwrap_or(PAUSE_AFTER_SILENCE).min(LONGEST_PAUSE),
            (false, Some(before)) => before.pause.saturating_mul(2).clamp(FIRST_PAUSE, LONGEST_PAUSE),
            (false, None) => FIRST_PAUSE,
        };
        self.failed = Some(Failed { from, at: Instant::now(), pause, failure });
    }
}

fn copy(failure: &Failure) -> KekError {
    KekError::new(failure.cause(), failure.problem()).with_retry_after(failure.retry_after())
}

impl<S: Source> fmt::Debug for Renewing<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Renewing").field("source", &self.0.source).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
