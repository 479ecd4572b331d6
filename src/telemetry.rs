//! What the plugin shows of itself: metrics and logs.

mod logs;
mod metrics;

pub use self::logs::{LogFormat, start_logs, subscriber};
pub use self::metrics::{KekOperation, KekOutcome, Metrics, Outcome, Rpc};
