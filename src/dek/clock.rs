//! The time that ages are counted in: it goes on while the machine sleeps, and nobody can set it.

use std::fmt;
use std::time::Duration;

/// A clock that only goes forward.
pub trait Clock: Send + Sync + fmt::Debug {
    /// The time since a moment that stays the same as long as the process runs.
    fn now(&self) -> Duration;
}

/// What the [`BootClock`] shows when the machine starts: what happened before a reboot has a time, too. No DEK is used for
/// longer after its last unwrap.
pub const AT_START: Duration = Duration::from_hours(31 * 24);

/// [`AT_START`] and the time since the machine started, suspended time included (`CLOCK_BOOTTIME`).
#[derive(Clone, Copy, Debug, Default)]
pub struct BootClock;

impl Clock for BootClock {
    fn now(&self) -> Duration {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        // The kernel counts from 0 upwards.
        let running =
            Duration::new(now.tv_sec.try_into().unwrap_or_default(), now.tv_nsec.try_into().unwrap_or_default());
        AT_START.saturating_add(running)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_forward_and_counts_at_least_what_the_process_waited() {
        let before = BootClock.now();
        std::thread::sleep(Duration::from_millis(5));
        assert!(BootClock.now().saturating_sub(before) >= Duration::from_millis(5));
    }
}
