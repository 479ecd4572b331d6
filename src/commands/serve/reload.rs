//! Takes a changed configuration into use: on SIGHUP, and when the file's content changes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::Signal;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{error, info, warn};

use super::sandbox::Sandbox;
use crate::commands::break_glass::unlock;
use crate::config::{Config, ConfigError, Problem};
use crate::key_stores::{self, Identities};
use crate::plugin::refresh::Settings;
use crate::telemetry::Metrics;

/// The file is read this often: the kubelet swaps symlinks, which file watches lose.
const POLL: Duration = Duration::from_secs(10);

/// A file that is being written changes again within this time.
const SETTLES_WITHIN: Duration = Duration::from_secs(1);

/// The configuration in use, and where a new one comes from.
pub struct Reload {
    /// The configuration file.
    pub path: PathBuf,
    /// Its content as it was loaded.
    pub loaded: String,
    /// What was made of it.
    pub running: Config,
    /// What the process may still do.
    pub sandbox: Sandbox,
    /// The private halves that it was started with, for a new configuration as well.
    pub identities: Option<Identities>,
}

impl Reload {
    /// Watches the file until the plugin ends. A bad configuration is reported, and the one in use stays.
    pub async fn watch(self: Arc<Self>, metrics: Arc<Metrics>, mut hangup: Signal, settings: watch::Sender<Settings>) {
        let mut seen = Some(self.loaded.clone());
        let mut asked = false;
        loop {
            // The first look is at once: the file may have changed since it was loaded, and its signal come too early.
            let content = self.read().await;
            // Half of a file that is being written in its place may be a configuration, too.
            if content != seen && !asked && content != self.read_again().await {
                continue;
            }
            if content != seen || asked {
                seen = content;
                self.clone().reload(metrics.clone(), &settings).await;
            }
            asked = tokio::select! {
                _ = hangup.recv() => true,
                () = sleep(POLL) => false,
            };
        }
    }

    /// What is there now; nothing where it cannot be read. Reading may hang; the RPCs must not.
    async fn read(&self) -> Option<String> {
        let path = self.path.clone();
        tokio::task::spawn_blocking(move || Config::read(&path)).await.ok().and_then(Result::ok)
    }

    async fn read_again(&self) -> Option<String> {
        sleep(SETTLES_WITHIN).await;
        self.read().await
    }

    async fn reload(self: Arc<Self>, metrics: Arc<Metrics>, sender: &watch::Sender<Settings>) {
        let this = self.clone();
        // It reads files, which may hang; the RPCs must not.
        let counted = metrics.clone();
        let loaded = tokio::task::spawn_blocking(move || this.load(&metrics)).await;
        match loaded.map_err(anyhow::Error::from).flatten() {
            Ok((config, settings)) => {
                for field in needs_restart(&self.running, &config) {
                    warn!(field, "changed in the configuration; takes effect only after a restart");
                }
                info!(file = %self.path.display(), "configuration changed");
                let _ = sender.send(settings);
            }
            Err(error) => {
                error!(error = format!("{error:#}"), "new configuration refused; the one in use stays");
                counted.reloaded(false);
            }
        }
    }

    fn load(&self, metrics: &Arc<Metrics>) -> anyhow::Result<(Config, Settings)> {
        let mut config = Config::load(&self.path)?;
        if config.cluster != self.running.cluster {
            let problem = format!(
                "is {:?}, and what this plugin encrypts is bound to {:?}: after a restart nothing of it would open; put the \
                 former name back",
                config.cluster.to_string(),
                self.running.cluster.to_string()
            );
            let file = self.path.clone();
            return Err(ConfigError::Invalid(vec![Problem { file, at: None, field: "cluster".into(), problem }]).into());
        }
        unlock(&mut config, self.identities.as_ref())?;
        // A path outside of what the sandbox lets the process read would look like a file that is missing.
        self.sandbox.covers(&config)?;
        let settings = settings(&self.path, &config, metrics)?;
        Ok((config, settings))
    }
}

fn needs_restart(running: &Config, new: &Config) -> Vec<&'static str> {
    let changed = [
        ("socket", running.socket.address != new.socket.address),
        ("socketMode", running.socket.mode != new.socket.mode),
        ("socketGroup", running.socket.group != new.socket.group),
        ("allowedUids", running.socket.allowed_uids != new.socket.allowed_uids),
        ("stateDir", running.state_dir != new.state_dir),
        ("health", running.health != new.health),
        ("audit", running.audit != new.audit),
        ("sandbox", running.sandbox != new.sandbox),
        ("handover", running.handover != new.handover),
        // Settings of a KEK are compared as they print: no secret is among them.
        ("sealedState", format!("{:?}", running.sealed_state) != format!("{:?}", new.sealed_state)),
    ];
    changed.into_iter().filter_map(|(field, changed)| changed.then_some(field)).collect()
}

/// Builds the KEKs and gathers what may change while the plugin runs.
pub(super) fn settings(path: &Path, config: &Config, metrics: &Arc<Metrics>) -> Result<Settings, ConfigError> {
    let invalid = |field: String, problem: String| {
        ConfigError::Invalid(vec![Problem { file: path.to_owned(), at: None, field, problem }])
    };
    let keks = key_stores::open_set(&config.keks, &config.retired, metrics)
        .map_err(|(name, error)| invalid(format!("KEK {name}"), error.problem()))?;
    if let Some(sealed) = &config.sealed_state
        && let Some(name) = keks.name(sealed.kek.open().lineage())
    {
        let problem =
            format!("is the same key as KEK {name}, as far as the configuration tells; give it a key of its own");
        return Err(invalid("sealedState.kek".into(), problem));
    }
    if config.sealed_state.as_ref().is_some_and(|sealed| sealed.kek.offline().is_some()) {
        let problem = "is a break-glass KEK, with which this machine could unwrap nothing; give it another kind";
        return Err(invalid("sealedState.kek".into(), problem.into()));
    }
    Ok(Settings {
        keks,
        takeovers: key_stores::open_takeovers(&config.takeover, metrics),
        forget: config.forget.clone(),
        epoch: config.epoch,
        max_offline_age: config.max_offline_age,
        refresh_interval: config.refresh_interval,
        prove_interval: config.prove_interval,
    })
}
