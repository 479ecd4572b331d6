//! What the plugin shows of itself: metrics and logs.

mod labels;
mod log_limit;
mod logs;
mod metrics;

pub use self::labels::{KekOperation, KekOutcome, Outcome, Rpc};
pub use self::log_limit::LogLimit;
pub use self::logs::{LogFormat, start_log_lines, start_logs, subscriber};
pub use self::metrics::Metrics;
