//! Waits for temporary problems to pass: a step that ended because nobody answered is begun again, which every state
//! allows; and while the Lease cannot be renewed, the run stands still.

use std::time::{Duration, Instant};

use super::outage::{Outage, PATIENCE};
use super::states::Run;
use crate::rotation::cluster::api::chain;
use crate::rotation::cluster::lease::{Lease, Lost, taken};
use crate::rotation::error::RotationError;
use crate::rotation::event::Event;
use crate::rotation::journal::State;
use crate::rotation::journal::verdict::Verdict;

/// The wait before a step is begun again.
const PAUSE: Duration = Duration::from_secs(2);

impl Run<'_> {
    /// Whether a step that ended so is to be begun again; waits before it says so. What the API servers did meanwhile is
    /// not known, so they prove again what they had proven.
    pub(super) async fn begins_again(&mut self, error: &RotationError, outage: &mut Outage) -> bool {
        if !error.passes_by_itself() || !outage.is_borne(self.journal.state, Instant::now()) {
            return false;
        }
        let patience = humantime::format_duration(PATIENCE);
        (self.report)(Event::Waiting(&format!("{}; waiting for it to pass, up to {patience}", chain(error))));
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
            let silence = format!("the Lease could not be renewed for {silent} s");
            (self.report)(Event::Waiting(&format!(
                "{silence}, and another run may begin: this one is suspended until the API server answers"
            )));
            self.turns_back.because(&silence);
            if let Err(endless) = self.turns_back.count_if(true) {
                return Err(self.paused(endless).await);
            }
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

/// What is left of a wait that began at `since`. A clock that was set back since then has shown no time to pass.
pub(super) fn still_to_wait(since: jiff::Timestamp, now: jiff::Timestamp, wait: Duration) -> Option<Duration> {
    let passed = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    wait.checked_sub(passed).filter(|left| !left.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_set_back_shortens_no_wait() {
        let at = |second| jiff::Timestamp::from_second(second).unwrap();
        let wait = Duration::from_secs(70);
        assert_eq!(still_to_wait(at(1_000), at(1_030), wait), Some(Duration::from_secs(40)));
        assert_eq!(still_to_wait(at(1_000), at(1_070), wait), None);
        assert_eq!(still_to_wait(at(1_000), at(0), wait), Some(wait));
    }
}
