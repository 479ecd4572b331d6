//! What passes by itself is waited out: a step that ended for want of an answer is begun again, which every state
//! allows; and while the Lease cannot be renewed, the run stands still.

use std::time::{Duration, Instant};

use super::states::Run;
use crate::rotation::cluster::api::chain;
use crate::rotation::cluster::lease::{Lease, Lost, taken};
use crate::rotation::error::RotationError;
use crate::rotation::event::Event;
use crate::rotation::journal::State;
use crate::rotation::journal::verdict::Verdict;

/// For how long nothing may be answered.
const PATIENCE: Duration = Duration::from_mins(2);
/// A step that takes long may fail this often all the same.
const TRIES: u32 = 3;
/// The wait before a step is begun again.
const PAUSE: Duration = Duration::from_secs(2);

/// A step that failed again and again.
#[derive(Debug, Default)]
pub(super) struct Outage {
    /// When it failed first, and in which state.
    began: Option<(Instant, State)>,
    tries: u32,
}

impl Outage {
    /// A step in `state` failed. Whether it is begun again.
    fn is_borne(&mut self, state: State, now: Instant) -> bool {
        let (since, _) = *self.began.get_or_insert((now, state));
        self.tries += 1;
        self.tries < TRIES || now.duration_since(since) < PATIENCE
    }

    /// A step in `state` went well: the outage is over if it is no earlier one than that which failed.
    pub(super) fn went_well(&mut self, state: State) {
        if self.began.is_some_and(|(_, failed)| state >= failed) {
            *self = Self::default();
        }
    }
}

impl Run<'_> {
    /// Whether a step that ended so is to be begun again; waits before it says so. What the API servers did meanwhile is
    /// not known, so they prove again what they had proven.
    pub(super) async fn begins_again(&mut self, error: &RotationError, outage: &mut Outage) -> bool {
        if !error.passes_by_itself() || !outage.is_borne(self.journal.state, Instant::now()) {
            return false;
        }
        let patience = humantime::format_duration(PATIENCE);
        (self.report)(Event::Waiting(&format!(
            "{}; what passes by itself is waited out, up to {patience}",
            chain(error)
        )));
        tokio::time::sleep(PAUSE).await;
        self.seen_adopted = false;
        if matches!(self.journal.state, State::Rewrite | State::Resweep) {
            self.journal.state = self.agreement_lost(&chain(error));
        }
        true
    }

    /// Goes on to the verdict as long as the Lease is this run's. While it cannot be renewed, nothing is done: another run
    /// may begin.
    pub(super) async fn drive_under(&mut self, lease: &Lease) -> Result<Verdict, RotationError> {
        loop {
            let lost = tokio::select! {
                // First of all: when the time is over, nothing more is sent.
                biased;
                lost = lease.keep() => lost,
                ended = self.drive() => return ended,
            };
            let silent = match lost {
                Lost::Taken(other) => return Err(self.paused(taken(&other)).await),
                Lost::Silent(silent) => silent.as_secs(),
            };
            (self.report)(Event::Waiting(&format!(
                "the Lease could not be renewed for {silent} s, and another run may begin: this one stands still until the \
                 API server answers"
            )));
            if let Err(error) = lease.regain(self.settings.adoption_timeout).await {
                return Err(self.paused(error).await);
            }
            self.seen_adopted = false;
        }
    }

    /// Notes why the run ends here.
    pub(super) async fn paused(&mut self, error: RotationError) -> RotationError {
        self.journal.paused = Some(chain(&error));
        self.write().await.err().unwrap_or(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_begun_again_for_two_minutes_and_one_that_takes_longer_three_times() {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut outage = Outage::default();
        assert!((0..60).all(|tried| outage.is_borne(State::Verify, at(2 * tried))));
        assert!(!outage.is_borne(State::Verify, at(120)));
        let mut outage = Outage::default();
        assert_eq!([0, 600, 1200].map(|seconds| outage.is_borne(State::Plan, at(seconds))), [true, true, false]);
    }

    #[test]
    fn only_a_step_that_comes_as_far_ends_an_outage() {
        let now = Instant::now();
        let mut outage = Outage::default();
        for _ in 1..TRIES {
            assert!(outage.is_borne(State::Rewrite, now));
            // The way back to where it failed.
            outage.went_well(State::AwaitAdoption);
            outage.went_well(State::Agree);
        }
        assert_eq!(outage.tries, TRIES - 1);
        outage.went_well(State::Rewrite);
        assert_eq!(outage.tries, 0);
    }
}
