//! The file of a socket: taken from nobody who lives, put back when somebody removes it, removed by nobody but its owner.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::net::SocketAddrUnix;
use tokio::sync::mpsc;
use tracing::{error, warn};

use super::error::{SocketError, failed};
use super::folder;
use super::system::{BACKLOG, new_socket};
use crate::error_chain::joined;
use crate::files::FileId;
use crate::telemetry::Metrics;

/// How often the file is looked at: an API server asks for Status every minute, and opens a new connection then.
const LOOKS_EVERY: Duration = Duration::from_secs(5);

/// Why a new connection does not reach the plugin, where that is so.
pub type OutOfPlace = Arc<ArcSwapOption<String>>;

/// A socket of this process at a path. Dropping it removes the file.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    mode: u32,
    group: Option<u32>,
    held: Mutex<Held>,
}

#[derive(Debug)]
struct Held {
    socket: FileId,
    /// Held while this process serves; a dead process holds none.
    lock: fs::File,
}

impl Place {
    /// Binds a socket at `path`, which nobody can connect to before it has its mode and group.
    pub(super) fn take(path: &Path, mode: u32, group: Option<u32>) -> Result<(Self, UnixListener), SocketError> {
        folder::prepare(path, mode, group)?;
        // Before the socket is examined: two plugins that start at once would both find it dead, and one would remove
        // the other's.
        let lock = lock(path)?;
        let (socket, listener) = bind_new(path, mode, group)?;
        let held = Mutex::new(Held { socket, lock });
        Ok((Self { path: path.to_owned(), mode, group, held }, listener))
    }

    /// Looks whether the socket is where it was put. A new one where there is none any more.
    fn renew(&self) -> Result<Option<UnixListener>, SocketError> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if id_of(&self.path).is_ok_and(|id| id == held.socket) {
            return Ok(None);
        }
        folder::prepare(&self.path, self.mode, self.group)?;
        let own = held.lock.metadata().as_ref().map(FileId::from).ok();
        if own != id_of(&lock_file(&self.path)).ok() {
            held.lock = lock(&self.path)?;
        }
        let (socket, listener) = bind_new(&self.path, self.mode, self.group)?;
        held.socket = socket;
        Ok(Some(listener))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let held = self.held.get_mut().unwrap_or_else(PoisonError::into_inner);
        if id_of(&self.path).is_ok_and(|id| id == held.socket) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Keeps the socket where it was put.
#[derive(Debug)]
pub struct Keeper {
    place: Option<Arc<Place>>,
    renewed: mpsc::Sender<tokio::net::UnixListener>,
}

impl Keeper {
    pub(super) fn new(place: Option<Arc<Place>>) -> (Self, mpsc::Receiver<tokio::net::UnixListener>) {
        let (renewed, receiver) = mpsc::channel(1);
        (Self { place, renewed }, receiver)
    }

    /// Looks at the socket now and then, listens again where its file was removed, and tells in `out_of_place` why that
    /// cannot be. Never ends.
    pub async fn run(self, out_of_place: OutOfPlace, metrics: Arc<Metrics>) {
        metrics.socket_in_place(true);
        let Some(place) = &self.place else { return std::future::pending().await };
        loop {
            tokio::time::sleep(LOOKS_EVERY).await;
            let problem = self.look(place).await.err().map(|error| {
                let problem = joined(error.to_string(), std::error::Error::source(&error));
                format!("no API server can open a connection, since the socket was removed or replaced: {problem}")
            });
            if let Some(problem) = &problem
                && out_of_place.load().as_deref() != Some(problem)
            {
                error!(problem, "the socket is not where it was put");
            }
            metrics.socket_in_place(problem.is_none());
            out_of_place.store(problem.map(Arc::new));
        }
    }

    /// # Errors
    /// Why API servers cannot open a connection to this process.
    async fn look(&self, place: &Arc<Place>) -> Result<(), SocketError> {
        if is_reached(&place.path).await {
            return Ok(());
        }
        let again = |source| failed("listen again on", &place.path.display(), source);
        let looked = place.clone();
        // The folder may hang; the RPCs must not.
        let renewed = tokio::task::spawn_blocking(move || looked.renew()).await.map_err(|error| again(error.into()))?;
        let Some(listener) = renewed? else { return Ok(()) };
        warn!(socket = %place.path.display(), "the socket was removed by somebody; listening there again");
        let _ = self.renewed.send(tokio::net::UnixListener::from_std(listener).map_err(again)?).await;
        Ok(())
    }
}

/// Whether a connection there reaches this process, or would if it had taken those that wait.
async fn is_reached(path: &Path) -> bool {
    match tokio::net::UnixStream::connect(path).await {
        Ok(stream) => stream
            .peer_cred()
            .is_ok_and(|peer| peer.pid().and_then(rustix::process::Pid::from_raw) == Some(rustix::process::getpid())),
        Err(error) => error.kind() == io::ErrorKind::WouldBlock,
    }
}

fn id_of(path: &Path) -> io::Result<FileId> {
    fs::symlink_metadata(path).map(|metadata| FileId::from(&metadata))
}

fn lock_file(path: &Path) -> PathBuf {
    path.with_added_extension("lock")
}

/// Of several plugins that start at once, one gets the lock; the kernel frees it however the process ends.
fn lock(path: &Path) -> Result<fs::File, SocketError> {
    let file = lock_file(path);
    let handle = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&file)
        .map_err(|source| failed("create", &file.display(), source))?;
    let private = handle.set_permissions(fs::Permissions::from_mode(0o600));
    private.map_err(|source| failed("restrict", &file.display(), source))?;
    match rustix::fs::flock(&handle, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(handle),
        Err(Errno::WOULDBLOCK) => Err(SocketError::Served(path.display().to_string())),
        Err(error) => Err(failed("lock", &file.display(), error.into())),
    }
}

/// Removes the socket of a dead process, and binds one of this process.
fn bind_new(path: &Path, mode: u32, group: Option<u32>) -> Result<(FileId, UnixListener), SocketError> {
    remove_dead(path)?;
    let socket = bind(path, mode, group).map_err(|source| failed("listen on", &path.display(), source))?;
    let id = id_of(path).map_err(|source| failed("examine", &path.display(), source))?;
    Ok((id, socket.into()))
}

/// Removes the socket of a dead process: one that refuses connections. Anything else stays.
fn remove_dead(path: &Path) -> Result<(), SocketError> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(failed("examine", &path.display(), source)),
    };
    if !metadata.file_type().is_socket() {
        return Err(SocketError::NotASocket(path.to_owned()));
    }
    match probe(path) {
        // Nobody listens: its process is gone.
        Err(Errno::CONNREFUSED) => {
            fs::remove_file(path).map_err(|source| failed("remove dead socket", &path.display(), source))
        }
        Err(Errno::NOENT) => Ok(()),
        // It has more connections waiting than it takes: a blocking connect would wait with them.
        Ok(()) | Err(Errno::AGAIN) => Err(SocketError::Served(path.display().to_string())),
        Err(error) => Err(failed("probe", &path.display(), error.into())),
    }
}

fn probe(path: &Path) -> Result<(), Errno> {
    rustix::net::connect(&new_socket()?, &SocketAddrUnix::new(path)?)
}

fn bind(path: &Path, mode: u32, group: Option<u32>) -> io::Result<OwnedFd> {
    let socket = new_socket()?;
    // Bound, then restricted, then listened on: until `listen`, nobody can connect, whatever mode the file was born
    // with.
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    let mode = match group.map(|group| std::os::unix::fs::chown(path, None, Some(group))) {
        Some(Err(error)) => {
            error!(%error, "cannot give the socket to socketGroup: only the plugin's own user and root can connect");
            0o600
        }
        _ => mode,
    };
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}
