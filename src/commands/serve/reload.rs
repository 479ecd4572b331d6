//! Takes a changed configuration into use: on SIGHUP, and when the file's content changes.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::Signal;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{error, info, warn};

use super::settings;
use crate::config::Config;
use crate::plugin::refresh::Settings;
use crate::telemetry::Metrics;

/// The file is read this often: the kubelet swaps symlinks, which file watches lose.
const POLL: Duration = Duration::from_secs(10);

/// Watches the file until the plugin ends. A bad configuration is reported, and the one in use stays.
pub async fn watch(
    path: PathBuf,
    running: Config,
    metrics: Arc<Metrics>,
    mut hangup: Signal,
    settings: watch::Sender<Settings>,
) {
    let mut seen = std::fs::read(&path).ok();
    loop {
        let asked = tokio::select! {
            _ = hangup.recv() => true,
            () = sleep(POLL) => false,
        };
        let content = std::fs::read(&path).ok();
        if content == seen && !asked {
            continue;
        }
        seen = content;
        reload(&path, &running, &metrics, &settings);
    }
}

fn reload(path: &std::path::Path, running: &Config, metrics: &Arc<Metrics>, sender: &watch::Sender<Settings>) {
    let loaded = match Config::load(path) {
        Ok(config) => settings(path, &config, metrics).map(|settings| (config, settings)),
        Err(error) => Err(error),
    };
    match loaded {
        Ok((config, settings)) => {
            for field in needs_restart(running, &config) {
                warn!(field, "changed in the configuration; takes effect only after a restart");
            }
            info!(file = %path.display(), "configuration reloaded");
            let _ = sender.send(settings);
        }
        Err(error) => error!(%error, "new configuration refused; the one in use stays"),
    }
}

fn needs_restart(running: &Config, new: &Config) -> Vec<&'static str> {
    let changed = [
        ("cluster", running.cluster != new.cluster),
        ("socket", running.socket != new.socket),
        ("allowedUids", running.allowed_uids != new.allowed_uids),
        ("stateDir", running.state_dir != new.state_dir),
        ("health.listen", running.health_listen != new.health_listen),
    ];
    changed.into_iter().filter_map(|(field, changed)| changed.then_some(field)).collect()
}
