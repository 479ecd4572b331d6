//! How often a run goes back to an earlier state before it pauses.

use crate::rotation::error::RotationError;

/// More than a roll-out of two changes over seven API servers takes.
const AT_MOST: u32 = 20;

/// How often this process went back, and why it did last.
#[derive(Debug, Default)]
pub(super) struct TurnsBack {
    taken: u32,
    why: String,
}

impl TurnsBack {
    /// Notes why the next state will be an earlier one.
    pub(super) fn because(&mut self, why: &str) {
        why.clone_into(&mut self.why);
    }

    /// Counts one turn back, if it is one.
    ///
    /// # Errors
    /// [`RotationError::Paused`] if there were too many: whatever is the cause does not end by itself.
    pub(super) fn count_if(&mut self, is_turn_back: bool) -> Result<(), RotationError> {
        self.taken += u32::from(is_turn_back);
        if self.taken < AT_MOST {
            return Ok(());
        }
        let why = &self.why;
        Err(RotationError::Paused(format!(
            "the run had to begin again {AT_MOST} times without reaching a verdict, the last time because {why}: find out \
             what keeps happening (an API server that restarts again and again, a roll-out that is still under way, a load \
             balancer that leads elsewhere each time), and continue with --resume once it has stopped"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_twentieth_turn_pauses_the_run_and_names_the_last_reason() {
        let mut turns = TurnsBack::default();
        turns.because("API server a was started again");
        assert!((1..AT_MOST).all(|_| turns.count_if(true).is_ok() && turns.count_if(false).is_ok()));
        turns.because("API server b was started again");
        let paused = turns.count_if(true).unwrap_err().to_string();
        assert!(paused.contains("20 times") && paused.contains("because API server b was started again"), "{paused}");
    }
}
