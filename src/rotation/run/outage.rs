//! How long a step that gets no answer is begun again.

use std::time::{Duration, Instant};

use crate::rotation::journal::State;

/// For how long nothing may be answered.
pub(super) const PATIENCE: Duration = Duration::from_mins(2);
/// A step that takes long may fail this often all the same.
const TRIES: u32 = 3;

/// A step that failed again and again.
#[derive(Debug, Default)]
pub(super) struct Outage {
    /// When it failed first, and in which state.
    began: Option<(Instant, State)>,
    tries: u32,
}

impl Outage {
    /// A step in `state` failed. Whether it is begun again.
    pub(super) fn is_borne(&mut self, state: State, now: Instant) -> bool {
        let (since, _) = *self.began.get_or_insert((now, state));
        self.tries += 1;
        self.tries < TRIES || now.duration_since(since) < PATIENCE
    }

    /// A step in `state` went well: the outage is over unless that state comes before the one that failed.
    pub(super) fn went_well(&mut self, state: State) {
        if self.began.is_some_and(|(_, failed)| state >= failed) {
            *self = Self::default();
        }
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
