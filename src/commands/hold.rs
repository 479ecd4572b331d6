//! `hold`: keeps the plugin's keys in memory while it is started again.

use std::path::Path;

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use super::exit::{Exit, block_on};
use super::serve::{hardening, stop_signal};
use crate::config::Config;
use crate::files;
use crate::plugin::handover::hold;
use crate::telemetry::{LogFormat, start_log_lines};

/// Runs the command, until a signal ends it: what is held goes with the process.
///
/// # Errors
/// The configuration names no socket, or it cannot be made.
pub fn run(config: &Path) -> Result<Exit> {
    let loaded = Config::load(config)?;
    let named = || format!("{} has no handover.socket; add it, also to the plugin's configuration", config.display());
    let socket = loaded.handover.with_context(named)?;
    let mut logs = start_log_lines(LogFormat::default());
    hardening::apply();
    logs.write()?;
    if let Some(folder) = socket.parent() {
        files::create_private_folder(folder).with_context(|| format!("cannot use {}", folder.display()))?;
    }
    let (sender, ended) = oneshot::channel();
    let place = socket.display().to_string();
    // Not a task: the process ends without it.
    std::thread::spawn(move || sender.send(hold(&socket)));
    block_on(async move {
        // The first process of a container is not ended by a signal that it does not handle.
        let stopped = stop_signal(signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::select! {
            () = stopped => Ok(Exit::Done),
            ended = ended => {
                ended?.with_context(|| format!("cannot listen at {place}"))?;
                Ok(Exit::Done)
            }
        }
    })
}
