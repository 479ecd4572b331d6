//! A bound on the lines that others can make the plugin log: the first ones of a minute in full, then how many more.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const WINDOW: Duration = Duration::from_mins(1);

/// Counts lines of one kind.
#[derive(Debug)]
pub struct LogLimit {
    most: u32,
    window: Mutex<Option<Window>>,
}

#[derive(Debug)]
struct Window {
    since: Instant,
    lines: u32,
    left_out: u64,
}

impl LogLimit {
    /// At most `most` lines a minute.
    pub fn new(most: u32) -> Self {
        Self { most, window: Mutex::default() }
    }

    /// Whether a line may be logged now, and then how many were left out since the last one, if any.
    pub fn next(&self) -> Option<Option<u64>> {
        self.next_at(Instant::now()).map(|left_out| (left_out > 0).then_some(left_out))
    }

    fn next_at(&self, now: Instant) -> Option<u64> {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let left_out = match &mut *window {
            Some(window) if now.saturating_duration_since(window.since) < WINDOW => {
                if window.lines >= self.most {
                    window.left_out = window.left_out.saturating_add(1);
                    return None;
                }
                window.lines = window.lines.saturating_add(1);
                return Some(std::mem::take(&mut window.left_out));
            }
            // What was left out of the window before is told with the first line of this one.
            Some(window) => window.left_out,
            None => 0,
        };
        *window = Some(Window { since: now, lines: 1, left_out: 0 });
        Some(left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_a_few_lines_and_its_count() {
        let (limit, start) = (LogLimit::new(3), Instant::now());
        let logged = (0..2000).filter_map(|number| limit.next_at(start + Duration::from_millis(number * 20)));
        assert_eq!(logged.collect::<Vec<_>>(), [0, 0, 0]);
        assert_eq!(limit.next_at(start + WINDOW), Some(1997));
        assert_eq!(limit.next_at(start + WINDOW), Some(0));
    }
}
