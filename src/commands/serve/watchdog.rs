//! Tells systemd that the plugin is alive, as long as its refresh loop turns.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tracing::{error, info};

use crate::telemetry::Metrics;

/// A turn may take this long beyond the interval: every KEK hangs, and every DEK is asked for. A loop that is later than
/// this does not come back.
const TURN_WITHIN: Duration = Duration::from_mins(5);

/// Sends `WATCHDOG=1` twice in each `WatchdogSec`, and stops doing so when the refresh loop stands still: systemd then
/// starts the plugin again. Without a watchdog it waits for ever.
pub async fn keep_alive(metrics: Arc<Metrics>, refresh_interval: Duration) {
    let Some(period) = sd_notify::watchdog_enabled().filter(|period| !period.is_zero()) else {
        return std::future::pending().await;
    };
    info!(period = %humantime::format_duration(period), "systemd's watchdog is on");
    let limit = refresh_interval.saturating_add(TURN_WITHIN);
    let send = || {
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
    };
    // Half of it, as sd_watchdog_enabled(3) advises.
    beat(period / 2, limit, || metrics.refresh_turn_age(), send).await;
}

async fn beat(pause: Duration, limit: Duration, turn_age: impl Fn() -> Duration, send: impl Fn()) {
    let mut was_late = false;
    loop {
        let age = turn_age();
        let is_late = age > limit;
        if !is_late {
            send();
        } else if !was_late {
            error!(age = %humantime::format_duration(age), "the refresh loop is stuck; systemd is not told that the plugin is alive");
        }
        was_late = is_late;
        sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::time::{Instant, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn systemd_hears_nothing_more_once_the_refresh_loop_stands_still() {
        let (start, sent) = (Instant::now(), AtomicU32::new(0));
        let send = || {
            sent.fetch_add(1, Ordering::Relaxed);
        };
        let beating = beat(Duration::from_secs(1), Duration::from_secs(9), || start.elapsed(), send);
        assert!(timeout(Duration::from_mins(5), beating).await.is_err());
        assert_eq!(sent.load(Ordering::Relaxed), 10);
    }
}
