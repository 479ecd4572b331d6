//! How far this machine's clock is from a server's, by the `Date` of its answers.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

use jiff::{SignedDuration, Timestamp};

/// No answer has told it.
const UNKNOWN: i64 = i64::MIN;

/// The clock of the servers of one KEK, as their last answer showed it.
#[derive(Debug)]
pub struct ServerClock {
    /// Seconds by which this machine is ahead.
    ahead: AtomicI64,
}

impl Default for ServerClock {
    fn default() -> Self {
        Self { ahead: AtomicI64::new(UNKNOWN) }
    }
}

impl ServerClock {
    /// Notes an answer's `Date`; one that cannot be read says nothing.
    pub fn note(&self, date: &str) {
        if let Some(ahead) = ahead_of(date) {
            self.ahead.store(ahead.as_secs(), Relaxed);
        }
    }

    /// How far this machine is ahead, exact to about a second; negative where it is behind.
    pub fn ahead(&self) -> Option<SignedDuration> {
        let ahead = self.ahead.load(Relaxed);
        (ahead != UNKNOWN).then(|| SignedDuration::from_secs(ahead))
    }
}

/// How far this machine is ahead of the server that has just sent this `Date`.
pub fn ahead_of(date: &str) -> Option<SignedDuration> {
    let server = jiff::fmt::rfc2822::parse(date).ok()?.timestamp();
    Some(Timestamp::now().duration_since(server))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_date_that_can_be_read_counts() {
        let clock = ServerClock::default();
        assert_eq!(clock.ahead(), None);
        clock.note("Sat, 01 Jan 2000 00:00:00 GMT");
        let ahead = clock.ahead().expect("known");
        assert!(ahead > SignedDuration::from_hours(24 * 365 * 20), "{ahead}");
        clock.note("no date");
        assert!(clock.ahead().expect("still known") >= ahead);
    }
}
