//! `serve`: puts the plugin together, runs it until a signal comes, and takes it apart.

mod dev;
pub(super) mod hardening;
mod reload;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use arc_swap::ArcSwap;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{error, info, warn};

use super::Exit;
use crate::cli::ServeArgs;
use crate::config::{Config, ConfigError, Problem};
use crate::dek::cache::DekCache;
use crate::dek::store::{DekStore, is_private};
use crate::key_stores;
use crate::plugin::health::{Health, router};
use crate::plugin::refresh::{Refresh, Settings};
use crate::plugin::service::Service;
use crate::plugin::{grpc, socket::Socket};
use crate::telemetry::{Metrics, start_logs};

/// How long requests under way may take once the plugin is told to stop, and idle connections stay open.
const GRACE: Duration = Duration::from_millis(1500);

/// Requests at once on one connection. An API server has one connection: with a lower limit its Status would wait until
/// its Decrypts have had their answers.
const STREAMS: u32 = 4096;

/// How long a health port that is taken waits for the next attempt.
const HEALTH_AGAIN: Duration = Duration::from_secs(10);

/// Worker threads: the API server sends little; two keep a slow request from holding up Status.
const THREADS: usize = 2;

/// Runs the command.
pub fn run(args: &ServeArgs) -> Result<Exit> {
    let (path, config) = match &args.dev {
        Some(folder) => dev::prepare(folder)?,
        None => (args.config.clone(), Config::load(&args.config)?),
    };
    start_logs(args.log_format);
    hardening::apply();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build()?;
    let served = runtime.block_on(serve(path, config, args.dev.is_some()));
    // A blocking task that hangs must not hold up the end.
    runtime.shutdown_timeout(Duration::from_millis(100));
    served.map(|()| Exit::Done)
}

async fn serve(path: std::path::PathBuf, config: Config, dev: bool) -> Result<()> {
    // Before anything that takes time: a SIGHUP that nobody handles ends the process.
    let hangup = signal(SignalKind::hangup())?;
    let metrics = Arc::new(Metrics::new());
    let settings = settings(&path, &config, &metrics)?;
    let store = DekStore::open(&config.state_dir).with_context(|| {
        format!("cannot use stateDir {}; make it writable for the plugin", config.state_dir.display())
    })?;
    if !is_private(&config.state_dir) {
        warn!(folder = %config.state_dir.display(), "others can read stateDir; nothing in it is secret, yet chmod 0700 it");
    }
    let socket = Socket::listen(&config.socket)?;
    let health_listener = TcpListener::bind(config.health_listen).await;
    let keks = settings.keks.clone();
    let service = Arc::new(Service::new(config.cluster.clone(), keks, Arc::new(DekCache::new()), store));
    let kek_health = Arc::new(ArcSwap::default());
    let health = Health {
        service: service.clone(),
        metrics: metrics.clone(),
        keks: kek_health.clone(),
        started: jiff::Timestamp::now(),
    };
    let mut refresh = Refresh::new(service.clone(), settings.clone(), metrics.clone(), kek_health);
    refresh.turn().await;
    let (new_settings, settings) = watch::channel(settings);
    let mut background = JoinSet::new();
    background.spawn(refresh.run(settings));
    background.spawn(reload::watch(path, config.clone(), metrics.clone(), hangup, new_settings));
    background.spawn(serve_health(config.health_listen, health_listener, health));
    info!(socket = %config.socket.display(), health = %config.health_listen, "listening");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    if dev {
        tokio::spawn(dev::self_check(config.socket.clone()));
    }
    let stop = stop_signal()?;
    tokio::select! {
        served = run_grpc(&socket, &config, service, metrics, stop) => served,
        // No task ends by itself: without one of them the plugin would go on, and follow nothing.
        Some(ended) = background.join_next() => match ended {
            Ok(()) => bail!("a background task ended; the plugin has to be started again"),
            Err(error) => bail!("a background task failed ({error}); the plugin has to be started again"),
        },
    }
}

/// Serves the health endpoints until it is dropped. A port that is taken costs them, not the plugin.
async fn serve_health(address: SocketAddr, mut listener: io::Result<TcpListener>, health: Health) {
    let mut is_reported = false;
    loop {
        let ended = match listener {
            Ok(listener) => axum::serve(listener, router(health.clone())).await.err(),
            Err(error) => Some(error),
        };
        if let Some(error) = ended.filter(|_| !is_reported) {
            error!(%address, %error, "cannot serve health.listen; tried again every 10 s, the RPCs are served");
            is_reported = true;
        }
        tokio::time::sleep(HEALTH_AGAIN).await;
        listener = TcpListener::bind(address).await;
    }
}

/// Serves until `stop`; then until all requests are answered, or [`GRACE`] is over.
async fn run_grpc(
    socket: &Socket,
    config: &Config,
    service: Arc<Service>,
    metrics: Arc<Metrics>,
    stop: impl Future<Output = ()>,
) -> Result<()> {
    let (stopping, stopped) = watch::channel(false);
    let server = tonic::transport::Server::builder()
        .max_concurrent_streams(STREAMS)
        .http2_max_header_list_size(16 * 1024)
        .add_service(grpc::server(service, metrics))
        .serve_with_incoming_shutdown(socket.connections(config.allowed_uids.clone()), stop_requested(stopped));
    tokio::pin!(server);
    tokio::select! {
        ended = &mut server => return ended.context("the gRPC server ended"),
        () = stop => info!("stopping"),
    }
    let _ = stopping.send(true);
    // A peer that connected and sends nothing would hold the server open for as long as it likes.
    if tokio::time::timeout(GRACE, server).await.is_err() {
        info!("closing connections that are still open");
    }
    Ok(())
}

async fn stop_requested(mut stopped: watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

fn stop_signal() -> Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Builds the KEKs and gathers what may change while the plugin runs.
fn settings(path: &std::path::Path, config: &Config, metrics: &Arc<Metrics>) -> Result<Settings, ConfigError> {
    let keks = key_stores::open_set(&config.keks, &config.retired, metrics).map_err(|(name, error)| {
        let problem = error.problem();
        ConfigError::Invalid(vec![Problem { file: path.to_owned(), at: None, field: format!("KEK {name}"), problem }])
    })?;
    Ok(Settings {
        keks,
        epoch: config.epoch,
        max_offline_age: config.max_offline_age,
        refresh_interval: config.refresh_interval,
        prove_interval: config.prove_interval,
    })
}
