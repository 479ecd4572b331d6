//! The listener of the health endpoints. Whatever its peers do costs these endpoints, never the RPCs: few connections,
//! a short time for each, and the oldest makes room for a new one.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{error, info};

use super::{Health, router};
use crate::config::{HealthAddress, HealthSettings, SocketAddress, SocketSettings};
use crate::plugin::socket::Socket;

/// How long a peer may take to send its request, and to take the answer.
const REQUEST_WITHIN: Duration = Duration::from_secs(3);
const CONNECTION_LASTS: Duration = Duration::from_secs(10);
/// Far above what a scraper or a probe sends. The least that hyper takes is 8 KiB.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// How long a listener that cannot be had waits for the next attempt.
const AGAIN: Duration = Duration::from_secs(10);
/// Nobody loses his connection to another peer before this: what a probe asks is answered much sooner.
const LASTS_AT_LEAST: Duration = Duration::from_millis(100);
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A listener that was bound before the process gave up the right to make another one.
#[derive(Debug)]
pub struct Bound(io::Result<Listening>);

#[derive(Debug)]
enum Listening {
    Nowhere,
    Tcp(std::net::TcpListener),
    Unix(Socket),
}

impl Bound {
    /// Binds the listener; that it cannot be had costs the endpoints alone, and is tried again later.
    pub fn bind(settings: &HealthSettings) -> Self {
        let bound = match &settings.listen {
            HealthAddress::Off => Ok(Listening::Nowhere),
            HealthAddress::Tcp(address) => bind_tcp(*address).map(Listening::Tcp),
            HealthAddress::Unix(path) => {
                let address = SocketAddress::File(path.clone());
                let settings = SocketSettings { address, mode: 0o600, group: None, allowed_uids: Vec::new() };
                Socket::listen(&settings).map(Listening::Unix).map_err(io::Error::other)
            }
        };
        Self(bound)
    }
}

/// `SO_REUSEADDR` is set by the standard library: a port of connections that are ending is free.
fn bind_tcp(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Serves the endpoints until it is dropped, over at most `most` connections at once.
pub async fn serve(settings: HealthSettings, mut bound: Bound, health: Health, most: usize) {
    let mut is_reported = false;
    loop {
        let failed = match bound.0 {
            Ok(Listening::Nowhere) => std::future::pending().await,
            Ok(Listening::Tcp(listener)) => match TcpListener::from_std(listener) {
                Ok(listener) => accept(Accepting::Tcp(listener), router(health.clone(), &settings.hosts), most).await,
                Err(error) => error,
            },
            Ok(Listening::Unix(socket)) => match socket.listener() {
                Ok(listener) => accept(Accepting::Unix(listener), router(health.clone(), &settings.hosts), most).await,
                Err(error) => error,
            },
            Err(error) => error,
        };
        if !is_reported {
            let error = crate::error_chain::joined(failed.to_string(), std::error::Error::source(&failed));
            error!(listen = %settings.listen, error, "cannot serve health.listen; tried again every 10 s, the RPCs are served");
            is_reported = true;
        }
        // The RPCs do not depend on it, so the plugin goes on without.
        sleep(AGAIN).await;
        bound = Bound::bind(&settings);
        if bound.0.is_ok() {
            info!(listen = %settings.listen, "health.listen is served again");
            is_reported = false;
        }
    }
}

enum Accepting {
    Tcp(TcpListener),
    Unix(UnixListener),
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// Accepts until it is dropped. A peer that holds connections open takes the place of his own former ones: the newest
/// is the one that a probe has just opened.
async fn accept(listener: Accepting, app: Router, most: usize) -> io::Error {
    let mut open: VecDeque<(Instant, JoinHandle<()>)> = VecDeque::new();
    loop {
        let accepted: io::Result<Box<dyn Stream>> = match &listener {
            Accepting::Tcp(listener) => listener.accept().await.map(|(stream, _)| Box::new(stream) as _),
            Accepting::Unix(listener) => listener.accept().await.map(|(stream, _)| Box::new(stream) as _),
        };
        let Ok(stream) = accepted else {
            // Such as "too many open files", or a peer that is gone already.
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        open.retain(|(_, connection)| !connection.is_finished());
        if open.len() >= most
            // The oldest goes: whoever opens connections and sends nothing cannot keep a scraper out.
            && let Some((since, mut oldest)) = open.pop_front()
        {
            let _ = timeout_at(since + LASTS_AT_LEAST, &mut oldest).await;
            oldest.abort();
        }
        open.push_back((Instant::now(), tokio::spawn(serve_connection(stream, app.clone()))));
    }
}

async fn serve_connection(stream: Box<dyn Stream>, app: Router) {
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_WITHIN)
        // A scraper asks once in many seconds; connections that are kept would only use descriptors up.
        .keep_alive(false)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(app));
    let _ = timeout(CONNECTION_LASTS, serving).await;
}
