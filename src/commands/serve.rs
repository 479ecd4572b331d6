//! `serve`: puts the plugin together, runs it until a signal comes, and takes it apart.

mod dev;
pub mod hardening;
mod reload;
pub mod sandbox;
mod watchdog;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use arc_swap::ArcSwap;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{info, warn};

use self::hardening::Descriptors;
use self::reload::{Reload, settings};
use self::sandbox::Sandbox;
use super::break_glass::{identities, unlock};
use super::exit::Exit;
use crate::cli::ServeArgs;
use crate::config::{Config, SealedStateSettings};
use crate::dek::cache::DekCache;
use crate::dek::clock::BootClock;
use crate::dek::store::{DekStore, StateFolder, is_private};
use crate::files;
use crate::key_stores;
use crate::plugin::audit::{Audit, Event};
use crate::plugin::handover::{self, SealedStateFile};
use crate::plugin::health::{Health, listener};
use crate::plugin::refresh::{Refresh, Settings};
use crate::plugin::server;
use crate::plugin::service::Service;
use crate::plugin::socket::{OutOfPlace, Socket};
use crate::telemetry::{Metrics, start_log_lines};

/// Worker threads: the API server sends little; two keep a slow request from holding up Status.
const THREADS: usize = 2;

/// How long the end waits for a slow `stateDir`.
const WRITTEN_WITHIN: Duration = Duration::from_secs(1);

/// Runs the command.
///
/// # Errors
/// Any failure; [`exit_of`](super::exit_of) maps it to an exit code.
pub fn run(args: &ServeArgs) -> Result<Exit> {
    // First of all: a signal that nobody handles ends the process, SIGHUP too. What receives them outlives this runtime
    // and is handed on: a SIGTERM between two runtimes is seen by the second.
    let signals = super::exit::block_on(async { Ok(Signals::handle()?) })?;
    let (path, (mut config, text)) = match &args.dev {
        Some(folder) => dev::prepare(folder)?,
        None => (args.config.clone(), Config::load_with_text(&args.config)?),
    };
    let mut logs = start_log_lines(args.log_format);
    // Before any key is in memory.
    hardening::apply();
    // After that, and before the sandbox, which hides the file.
    let identities = identities(args.break_glass.as_deref())?;
    unlock(&mut config, identities.as_ref())?;
    if identities.is_some() {
        warn!("the private half of the break-glass KEK is in memory; `status` says when to restart without it");
    }
    let metrics = Arc::new(Metrics::new());
    let settings = settings(&path, &config, &metrics)?;
    // What needs rights that the sandbox takes away is opened before it.
    let opened = Opened::open(&config, signals)?;
    let reload = Reload { path, loaded: text, sandbox: Sandbox::enter(&config), running: config, identities };
    logs.write()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build()?;
    let served = runtime.block_on(serve(reload, settings, metrics, opened, args.dev.is_some()));
    // A blocking task that hangs must not hold up the end.
    runtime.shutdown_timeout(Duration::from_millis(100));
    served.map(|()| Exit::Done)
}

/// What is opened before the plugin has threads.
struct Opened {
    state: Arc<StateFolder>,
    socket: Socket,
    health: listener::Bound,
    descriptors: Descriptors,
    signals: Signals,
}

impl Opened {
    fn open(config: &Config, signals: Signals) -> Result<Self> {
        let descriptors = hardening::raise_descriptors();
        // One that cannot be made now is reported, and tried again, by the store.
        let _ = files::create_private_folder(&config.state_dir);
        let state = Arc::new(StateFolder::new(&config.state_dir));
        if !is_private(&config.state_dir) {
            warn!(folder = %config.state_dir.display(), "others can read stateDir; nothing in it is secret, but mode 0700 is recommended");
        }
        if let Some(folder) = config.audit.as_ref().and_then(|audit| audit.file.parent())
            && let Err(error) = files::create_private_folder(folder)
        {
            warn!(folder = %folder.display(), %error, "the folder of audit.file cannot be made");
        }
        let socket = Socket::listen(&config.socket)?;
        Ok(Self { state, socket, health: listener::Bound::bind(&config.health), descriptors, signals })
    }
}

/// The signals that the plugin handles.
struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn handle() -> std::io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }
}

async fn serve(reload: Reload, settings: Settings, metrics: Arc<Metrics>, opened: Opened, dev: bool) -> Result<()> {
    let config = reload.running.clone();
    let Opened { state, socket, health: health_listener, descriptors, signals } = opened;
    let Signals { hangup, terminate, interrupt } = signals;
    let audit = Arc::new(Audit::start(config.audit.as_ref())?);
    audit.note(Event::Start { version: env!("CARGO_PKG_VERSION") });
    let keks = settings.keks.clone();
    let store = DekStore::open(state).await;
    let store = store.with_context(|| format!("cannot use stateDir {}", config.state_dir.display()))?;
    let store = Arc::new(store);
    let mut background = JoinSet::new();
    background.spawn(store.clone().write_behind());
    let cache = Arc::new(DekCache::new(Arc::new(BootClock)));
    let service = Service::new(config.cluster.clone(), keks, cache, store);
    let service = Arc::new(service.with_audit(audit.clone()).with_takeovers(settings.takeovers.clone()));
    let kek_health = Arc::new(ArcSwap::default());
    let out_of_place = OutOfPlace::default();
    let health = Health {
        service: service.clone(),
        metrics: metrics.clone(),
        keks: kek_health.clone(),
        socket: out_of_place.clone(),
        is_unlocked: reload.identities.is_some(),
        started: jiff::Timestamp::now(),
    };
    let sealed = sealed_state(&config, &metrics);
    let refresh = Refresh::new(service.clone(), settings.clone(), metrics.clone(), kek_health);
    let mut refresh = refresh.with_sealed_state(sealed.clone());
    let keeper = handover::keeper(config.handover.clone());
    // What an earlier process left is of the highest one, whatever was configured since.
    let epoch = config.epoch.max(service.store().history().epoch());
    let mut is_taken = true;
    if let Some(keeper) = &keeper {
        is_taken = handover::take_over(&service, keeper.clone(), epoch).await;
    }
    // Before the socket is served: a first Status then has an answer where the KEKs had one.
    refresh.turn().await;
    if let Some(keeper) = keeper {
        background.spawn(handover::keep_up(service.clone(), keeper, epoch, is_taken));
    }
    if let Some(sealed) = sealed {
        background.spawn(sealed.keep_up(service.clone()));
    }
    let (new_settings, settings) = watch::channel(settings);
    background.spawn(refresh.run(settings));
    background.spawn(Arc::new(reload).watch(metrics.clone(), hangup, new_settings));
    background.spawn(listener::serve(config.health.clone(), health_listener, health, descriptors.health));
    background.spawn(watchdog::keep_alive(metrics.clone(), config.refresh_interval));
    let (connections, keeper) =
        socket.connections(config.socket.allowed_uids.clone(), descriptors.connections, service.cleared())?;
    background.spawn(keeper.run(out_of_place, metrics.clone()));
    listening(&config, dev);
    let ended = tokio::select! {
        served = server::serve(connections, service.clone(), metrics, stop_signal(terminate, interrupt)) => {
            served.context("the gRPC server ended")
        }
        // Without its loop the plugin would serve keys that nobody proves any more.
        error = supervise(&mut background) => Err(error),
    };
    // What was seen last is remembered as well.
    service.store().is_written(WRITTEN_WITHIN).await;
    audit.stop().await;
    ended
}

/// Also while it waits for a KEK: systemd would otherwise stop it for being slow, and what it waits for is said in /status.
fn listening(config: &Config, dev: bool) {
    info!(socket = %config.socket.address, health = %config.health.listen, "listening");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    if dev {
        tokio::spawn(dev::self_check(config.socket.address.clone()));
    }
}

/// What outlives a reboot, where that is configured; what was sealed before goes where it is not any more.
fn sealed_state(config: &Config, metrics: &Arc<Metrics>) -> Option<Arc<SealedStateFile>> {
    let Some(SealedStateSettings { kek, max_age }) = &config.sealed_state else {
        if let Err(error) = SealedStateFile::remove_from(&config.state_dir) {
            warn!(%error, folder = %config.state_dir.display(), "what was sealed in stateDir cannot be removed");
        }
        return None;
    };
    let kek = key_stores::open_one(kek, metrics);
    Some(Arc::new(SealedStateFile::new(&config.state_dir, kek, *max_age, metrics.clone())))
}

/// Waits until one of the tasks ends, which none does by itself: without it the plugin would go on, and follow nothing.
async fn supervise(background: &mut JoinSet<()>) -> anyhow::Error {
    match background.join_next().await {
        Some(Err(error)) => anyhow!("a background task failed ({error}); the plugin must be restarted"),
        Some(Ok(())) | None => anyhow!("a background task ended; the plugin must be restarted"),
    }
}

pub(super) async fn stop_signal(mut terminate: Signal, mut interrupt: Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_background_task_that_ends_or_panics_ends_the_process_with_a_message() {
        let mut background = JoinSet::new();
        background.spawn(std::future::pending());
        background.spawn(async { panic!("of a bug") });
        let error = supervise(&mut background).await.to_string();
        assert!(error.contains("a background task failed") && error.contains("must be restarted"), "{error}");
        background.spawn(async {});
        assert!(supervise(&mut background).await.to_string().contains("a background task ended"));
    }
}
