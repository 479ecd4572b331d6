//! Who may ask a KEK: everybody while it answers, one while nobody knows, nobody for a while once it does not.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::RngExt;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::kek::{KekCause, KekError};

/// How long an answer speaks for the KEK. Later, one call finds out for all.
const ANSWER_LASTS: Duration = Duration::from_secs(1);
/// Failures in a row of calls that went out side by side; a call that went alone counts for all that waited.
const THRESHOLD: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The breaker of one KEK, and where calls wait for the one that probes.
#[derive(Debug)]
pub(super) struct Gate {
    state: Mutex<State>,
    settled: Notify,
}

#[derive(Debug, Default)]
struct State {
    answered_at: Option<Instant>,
    /// A call is under way that others wait for.
    probing: bool,
    /// Calls in a row that nothing answered, each with its retries.
    failures: u32,
    /// Openings in a row.
    trips: u32,
    open_until: Option<Instant>,
}

/// What became of an admitted call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The KEK answered, if only to refuse.
    Answer,
    /// It did not.
    NoAnswer,
}

/// Leave for one call. Dropped unsettled, it was given up and says nothing.
#[derive(Debug)]
pub(super) struct Pass<'a> {
    gate: &'a Gate,
    probes: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Admission {
    Go { probes: bool },
    Wait,
    Closed(Duration),
}

impl Gate {
    pub fn new() -> Self {
        Self { state: Mutex::default(), settled: Notify::new() }
    }

    /// Waits while another call finds out whether the KEK answers.
    ///
    /// # Errors
    /// `Unavailable` while the breaker is open; what was waited for may have opened it.
    pub async fn admit(&self, name: &str) -> Result<Pass<'_>, KekError> {
        loop {
            let settled = self.settled.notified();
            tokio::pin!(settled);
            // Before the look at the state: what settles after it must not be missed.
            settled.as_mut().enable();
            let admission = self.state().admit(Instant::now());
            match admission {
                Admission::Go { probes } => return Ok(Pass { gate: self, probes }),
                Admission::Wait => settled.await,
                Admission::Closed(pause) => {
                    let text = format!("{name} did not answer lately; asked again in {pause:?}");
                    return Err(KekError::new(KekCause::Unavailable, text));
                }
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pass<'_> {
    /// Says what became of the call.
    pub fn settle(self, outcome: Outcome) {
        let now = Instant::now();
        match outcome {
            Outcome::Answer => self.gate.state().answered(now),
            Outcome::NoAnswer => self.gate.state().failed(now, self.probes),
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if self.probes {
            self.gate.state().probing = false;
        }
        self.gate.settled.notify_waiters();
    }
}

impl State {
    fn admit(&mut self, now: Instant) -> Admission {
        if let Some(until) = self.open_until {
            // The pause over, one tries; nobody waits for it who could ask another KEK.
            if now < until || self.probing {
                return Admission::Closed(until.saturating_duration_since(now));
            }
        } else if self.answered_at.is_some_and(|at| now < at + ANSWER_LASTS) {
            return Admission::Go { probes: false };
        } else if self.probing {
            return Admission::Wait;
        }
        self.probing = true;
        Admission::Go { probes: true }
    }

    fn answered(&mut self, now: Instant) {
        *self = Self { answered_at: Some(now), probing: self.probing, ..Self::default() };
    }

    fn failed(&mut self, now: Instant, probed: bool) {
        self.answered_at = None;
        self.failures = self.failures.saturating_add(1);
        let is_open = self.open_until.is_some_and(|until| now < until);
        if !is_open && (probed || self.failures >= THRESHOLD) {
            let pause = FIRST_PAUSE.saturating_mul(1 << self.trips.min(10)).min(LONGEST_PAUSE);
            self.open_until = Some(now + pause.mul_f64(rand::rng().random_range(0.8..1.0)));
            self.trips += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_call_tries_and_its_failure_closes_the_gate_for_a_growing_pause() {
        let (mut state, mut now) = (State::default(), Instant::now());
        for pause in [1, 2, 4, 8, 10, 10] {
            assert_eq!(state.admit(now), Admission::Go { probes: true });
            state.failed(now, true);
            state.probing = false;
            let Admission::Closed(left) = state.admit(now) else { panic!("open after a failed probe") };
            let pause = Duration::from_secs(pause);
            assert!(left <= pause && left >= pause.mul_f64(0.79), "{left:?} of {pause:?}");
            now += pause;
        }
    }

    #[test]
    fn the_others_wait_for_a_first_call_and_are_refused_during_a_later_one() {
        let (mut state, now) = (State::default(), Instant::now());
        assert_eq!(state.admit(now), Admission::Go { probes: true });
        assert_eq!(state.admit(now), Admission::Wait);
        state.failed(now, true);
        state.probing = false;
        let later = now + FIRST_PAUSE;
        assert_eq!(state.admit(later), Admission::Go { probes: true });
        assert_eq!(state.admit(later), Admission::Closed(Duration::ZERO));
    }

    #[test]
    fn an_answer_opens_the_gate_for_all_for_a_moment() {
        let (mut state, now) = (State::default(), Instant::now());
        state.failed(now, true);
        state.answered(now);
        assert_eq!(state.admit(now), Admission::Go { probes: false });
        assert_eq!(state.admit(now + ANSWER_LASTS), Admission::Go { probes: true }, "an old answer says nothing");
    }

    #[test]
    fn calls_that_went_side_by_side_close_the_gate_at_the_third_failure_and_once() {
        let (mut state, now) = (State::default(), Instant::now());
        state.answered(now);
        for _ in 0..8 {
            state.failed(now, false);
        }
        assert_eq!(state.trips, 1);
        let Admission::Closed(left) = state.admit(now) else { panic!("closed") };
        assert!(left <= FIRST_PAUSE, "{left:?}");
    }
}
