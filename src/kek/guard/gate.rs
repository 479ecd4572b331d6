//! Who may ask a KEK: everybody while it answers, one while nobody knows, nobody for a while once it does not.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::kek::{KekCause, KekError};

/// How long an answer speaks for the KEK. Later, one call finds out for all.
const ANSWER_LASTS: Duration = Duration::from_secs(1);
/// Failures in a row of calls that went out side by side; a call that went alone counts for all that waited.
const THRESHOLD: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Serving resumes within a second of a KEK's recovery: nobody may be kept from asking it for longer.
const LONGEST_PAUSE: Duration = Duration::from_millis(800);
/// A KEK that says that it is asked too often is there, and gets its rest.
const FIRST_REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(10);
/// The most that is waited because a KEK wishes it: it may be wrong, or another one in its place.
const LONGEST_WISH: Duration = Duration::from_mins(1);

/// The breaker of one KEK, and where calls wait for the one that probes.
#[derive(Debug)]
pub(super) struct Gate {
    /// Makes the pauses of two processes different.
    seed: u64,
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
    /// What the KEK said last, or what was said of it.
    words: Option<Words>,
}

/// What is left of an error for those that come too late to see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Words {
    cause: KekCause,
    problem: String,
    retry_after: Option<Duration>,
}

impl From<&KekError> for Words {
    fn from(error: &KekError) -> Self {
        Self { cause: error.cause(), problem: error.problem(), retry_after: error.retry_after() }
    }
}

/// What became of an admitted call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The KEK answered, if only to refuse.
    Answer,
    /// It did not, or asked for a rest.
    NoAnswer(Words),
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
    Closed,
}

impl Gate {
    pub fn new(seed: u64) -> Self {
        Self { seed, state: Mutex::default(), settled: Notify::new() }
    }

    /// Waits while another call finds out whether the KEK answers.
    ///
    /// # Errors
    /// The last one again while the breaker is open; what was waited for may have opened it.
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
                Admission::Closed => return Err(self.last_words(name)),
            }
        }
    }

    /// The KEK's own words. No count of seconds: what changes with each call would be logged with each.
    fn last_words(&self, name: &str) -> KekError {
        match self.state().words.clone() {
            Some(Words { cause, problem, .. }) => KekError::new(cause, problem),
            None => KekError::unavailable(format!("{name} is being asked")),
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
            Outcome::NoAnswer(words) => self.gate.state().failed(now, self.probes, words, self.gate.seed),
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
                return Admission::Closed;
            }
        } else if self.answered_at.is_some_and(|at| now.saturating_duration_since(at) < ANSWER_LASTS) {
            return Admission::Go { probes: false };
        } else if self.probing {
            return Admission::Wait;
        }
        self.probing = true;
        Admission::Go { probes: true }
    }

    fn answered(&mut self, now: Instant) {
        // The call that probes is still under way, and ends the probe itself.
        *self = Self { answered_at: Some(now), probing: self.probing, ..Self::default() };
    }

    fn failed(&mut self, now: Instant, probed: bool, words: Words, seed: u64) {
        // From here on one call at a time finds out whether it still answers.
        self.answered_at = None;
        self.failures = self.failures.saturating_add(1);
        // A call that was sent before the breaker opened says nothing new when it fails now.
        let is_open = self.open_until.is_some_and(|until| now < until);
        if !is_open && (probed || self.failures >= THRESHOLD) {
            let throttled = words.cause == KekCause::Throttled;
            let (first, longest) = if throttled { (FIRST_REST, LONGEST_REST) } else { (FIRST_PAUSE, LONGEST_PAUSE) };
            let pause = first.saturating_mul(1 << self.trips.min(10)).min(longest).mul_f64(jitter(seed, self.trips));
            let wish = words.retry_after.unwrap_or_default().min(LONGEST_WISH);
            self.open_until = Some(now.checked_add(pause.max(wish)).unwrap_or(now));
            self.trips = self.trips.saturating_add(1);
        }
        self.words = Some(words);
    }
}

/// 0.8 to 1.0, different for each seed and number (splitmix64).
fn jitter(seed: u64, number: u32) -> f64 {
    let mut mixed = seed.wrapping_add(u64::from(number).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let byte = u8::try_from((mixed ^ (mixed >> 31)) >> 56).unwrap_or_default();
    0.8 + 0.2 * f64::from(byte) / 256.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn away() -> Words {
        Words::from(&KekError::unavailable("connection refused"))
    }

    /// Fails a probe after the other, and says how long each closed the gate.
    fn pauses(words: &Words) -> Vec<Duration> {
        let (mut state, mut now) = (State::default(), Instant::now());
        let pauses = (0..6).map(|_| {
            assert_eq!(state.admit(now), Admission::Go { probes: true });
            state.failed(now, true, words.clone(), 1);
            state.probing = false;
            assert_eq!(state.admit(now), Admission::Closed);
            let pause = state.open_until.expect("closed for a while") - now;
            now += pause;
            pause
        });
        pauses.collect()
    }

    #[test]
    fn one_call_tries_and_its_failure_closes_the_gate_for_a_growing_pause_under_a_second() {
        for (pause, most) in pauses(&away()).into_iter().zip([250, 500, 800, 800, 800, 800].map(Duration::from_millis))
        {
            assert!(pause <= most && pause >= most.mul_f64(0.79), "{pause:?} of {most:?}");
        }
    }

    #[test]
    fn a_kek_that_is_asked_too_often_gets_the_rest_that_it_wishes() {
        let throttled =
            |wish| Words { retry_after: wish, ..Words::from(&KekError::new(KekCause::Throttled, "slow down")) };
        let own = pauses(&throttled(None));
        assert!(own[0] >= FIRST_REST.mul_f64(0.79) && own[5] > LONGEST_REST.mul_f64(0.79), "{own:?}");
        assert_eq!(pauses(&throttled(Some(Duration::from_secs(20))))[0], Duration::from_secs(20));
        assert_eq!(pauses(&throttled(Some(Duration::from_hours(20))))[0], LONGEST_WISH);
    }

    #[tokio::test]
    async fn who_comes_too_late_hears_the_keks_own_words_and_the_same_ones_each_time() {
        let gate = Gate::new(1);
        let wish = Some(Duration::from_secs(9));
        let throttled = KekError::new(KekCause::Throttled, "slow down").with_retry_after(wish);
        gate.admit("kek").await.expect("open").settle(Outcome::NoAnswer(Words::from(&throttled)));
        let heard = [gate.admit("kek").await.unwrap_err(), gate.admit("kek").await.unwrap_err()];
        assert_eq!(heard[0].cause(), KekCause::Throttled);
        assert!(heard[0].chain().contains("slow down"), "{}", heard[0].chain());
        assert_eq!(heard[0].chain(), heard[1].chain());
    }

    #[test]
    fn the_others_wait_for_a_first_call_and_are_refused_during_a_later_one() {
        let (mut state, now) = (State::default(), Instant::now());
        assert_eq!(state.admit(now), Admission::Go { probes: true });
        assert_eq!(state.admit(now), Admission::Wait);
        state.failed(now, true, away(), 1);
        state.probing = false;
        let later = now + FIRST_PAUSE;
        assert_eq!(state.admit(later), Admission::Go { probes: true });
        assert_eq!(state.admit(later), Admission::Closed);
    }

    #[test]
    fn an_answer_opens_the_gate_for_all_for_a_moment() {
        let (mut state, now) = (State::default(), Instant::now());
        state.failed(now, true, away(), 1);
        state.answered(now);
        assert_eq!(state.admit(now), Admission::Go { probes: false });
        assert_eq!(state.admit(now + ANSWER_LASTS), Admission::Go { probes: true }, "an old answer says nothing");
    }

    #[test]
    fn calls_that_went_side_by_side_close_the_gate_at_the_third_failure_and_once() {
        let (mut state, now) = (State::default(), Instant::now());
        state.answered(now);
        for _ in 0..8 {
            state.failed(now, false, away(), 1);
        }
        assert_eq!((state.trips, state.admit(now)), (1, Admission::Closed));
        assert!(state.open_until.is_some_and(|until| until - now <= FIRST_PAUSE));
    }
}
