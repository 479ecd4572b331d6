//! Denials in a row, as the key store counts them.

use std::time::Duration;

use tokio::time::Instant;

use super::vendor::CALL;

/// A denial that lasts this long is definite. Over a longer silence nobody knows what would have been answered.
pub const CONFIRMATION: Duration = Duration::from_secs(10);

/// Fewer denials than this are not a row.
const LEAST: u32 = 3;

/// The plugin counts from the moment in which it decided to ask, the key store from the one in which it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tolerance {
    /// For a row that the plugin may see: less than a call lies between the two.
    Lenient,
    /// For a row that it has to see, of a key store that answers at its usual pace.
    Strict,
}

/// What calls that go out side by side wait for each other, at the usual pace.
const QUEUE: Duration = Duration::from_millis(100);

/// Denials with nothing else in between.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    first: Duration,
    last: Duration,
    count: u32,
    /// Since when it has been definite, by the world's clock: it stays so however long nobody asks.
    definite_since: Option<Instant>,
    /// Denials after that.
    more: u32,
}

impl Row {
    /// The row `before` with one more denial, or a new one.
    pub fn after(before: Option<Self>, asked: Duration, tolerance: Tolerance) -> Self {
        let (silence, length) = match tolerance {
            Tolerance::Lenient => (CONFIRMATION + CALL, CONFIRMATION.saturating_sub(CALL)),
            Tolerance::Strict => (CONFIRMATION.saturating_sub(QUEUE), CONFIRMATION + QUEUE),
        };
        let goes_on = |row: &Self| row.definite_since.is_some() || asked.saturating_sub(row.last) <= silence;
        let new = Self { first: asked, last: asked, count: 0, definite_since: None, more: 0 };
        let mut row = before.filter(goes_on).unwrap_or(new);
        row.more += u32::from(row.definite_since.is_some());
        (row.last, row.count) = (asked, row.count + 1);
        if row.count >= LEAST && row.last.saturating_sub(row.first) >= length {
            row.definite_since.get_or_insert_with(Instant::now);
        }
        row
    }

    /// When it began, by the node's clock.
    pub fn first(&self) -> Duration {
        self.first
    }

    /// How often it was asked since it was definite.
    pub fn more(&self) -> u32 {
        self.more
    }

    /// For how long it has been definite, where it is.
    pub fn definite_for(&self) -> Option<Duration> {
        self.definite_since.map(|since| since.elapsed())
    }
}
