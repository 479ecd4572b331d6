//! Credentials and how long they live: by what a server says of it, which may be any number.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// Credentials that end sooner may end on their way.
const MARGIN: Duration = Duration::from_secs(5);
/// How often credentials whose end is not known, and whose source has no fingerprint, are loaded again.
const RELOAD: Duration = Duration::from_mins(1);
/// Lives are cut to this: a number from outside must not overflow a clock.
const LONGEST_LIFE: Duration = Duration::from_hours(24 * 366);

/// Credentials and their life.
#[derive(Debug)]
pub(in crate::key_stores) struct Loaded<C> {
    pub credential: Arc<C>,
    /// When they end; `None` where they do not, or nobody says.
    pub ends: Option<SystemTime>,
    at: Instant,
    life: Option<Duration>,
}

impl<C> Loaded<C> {
    /// Credentials that live this long from now.
    pub fn for_time(credential: Arc<C>, life: Option<Duration>) -> Self {
        let life = life.map(|life| life.min(LONGEST_LIFE));
        // Both are kept: the time that has passed does not see a machine that slept, and the wall clock may be set.
        let ends = life.and_then(|life| SystemTime::now().checked_add(life));
        Self { credential, ends, at: Instant::now(), life }
    }

    /// Credentials that live until then.
    #[cfg(any(feature = "aws", feature = "azure", feature = "gcp"))]
    pub fn until(credential: Arc<C>, ends: Option<SystemTime>) -> Self {
        let life = ends.map(|end| end.duration_since(SystemTime::now()).unwrap_or_default());
        Self::for_time(credential, life)
    }

    /// How long they live in all.
    #[cfg(feature = "transit")]
    pub fn life(&self) -> Option<Duration> {
        self.life
    }

    /// How long ago they were loaded.
    pub(super) fn age(&self) -> Duration {
        self.at.elapsed()
    }

    pub(super) fn lasts(&self) -> bool {
        // A short life has a short margin.
        let margin = self.life.map_or(MARGIN, |life| part(life, 1, 10).min(MARGIN));
        self.life.is_none_or(|life| self.at.elapsed().saturating_add(margin) < life)
            && self.ends.is_none_or(|ends| SystemTime::now().checked_add(margin).is_some_and(|then| then < ends))
    }

    /// After two thirds of their life.
    pub(super) fn is_due(&self, has_fingerprint: bool) -> bool {
        let after = match self.life {
            // A third of its life is left for a login that fails to be tried again.
            Some(life) => part(life, 2, 3),
            None if has_fingerprint => return false,
            None => RELOAD,
        };
        self.at.elapsed() >= after
    }
}

/// `times` parts of `of` of a life.
fn part(life: Duration, times: u32, of: u32) -> Duration {
    life.saturating_mul(times).checked_div(of).unwrap_or(life)
}
