//! The unix socket: restricted before anyone can connect, never taken from a living plugin, open to few uids.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::Stream;
use rustix::fs::FlockOperation;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::{UnixListener, UnixStream};
use tracing::warn;

/// Connections the kernel keeps waiting; an API server opens one.
const BACKLOG: i32 = 128;

/// How long accepting rests after a failure such as "too many open files".
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why the socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A living process has it.
    #[error("{} is served by another process; stop that one first", .0.display())]
    Served(PathBuf),
    /// Something else lies there.
    #[error("{} exists and is not a socket; remove it or configure another path", .0.display())]
    NotASocket(PathBuf),
    /// Others could put their own socket there.
    #[error("folder {} can be written by others (mode {mode:04o}); fix with: chmod go-w {}", .folder.display(), .folder.display())]
    OpenFolder {
        /// The folder.
        folder: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The system refused a step.
    #[error("cannot {step} {}", .path.display())]
    System {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// A socket that listens. Dropping it removes the file.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    listener: UnixListener,
    /// Held while this process serves; a dead process holds none.
    _lock: fs::File,
}

impl Socket {
    /// Binds `path` with mode 0600. Nobody can connect before the mode is set: listening begins after it.
    pub fn listen(path: &Path) -> Result<Self, SocketError> {
        prepare_folder(path)?;
        let lock = lock(path)?;
        remove_dead(path)?;
        let listener = bind(path).map_err(|source| failed("listen on", path, source))?;
        Ok(Self { path: path.to_owned(), listener, _lock: lock })
    }

    /// The connections of the plugin's own uid, of root, and of `allowed_uids`; others are closed unread.
    pub fn connections(&self, allowed_uids: Vec<u32>) -> impl Stream<Item = io::Result<UnixStream>> + '_ {
        let own = rustix::process::geteuid().as_raw();
        futures::stream::unfold(allowed_uids, move |allowed_uids| async move {
            loop {
                match self.listener.accept().await {
                    Ok((stream, _)) => match stream.peer_cred().map(|peer| peer.uid()) {
                        Ok(uid) if uid == own || uid == 0 || allowed_uids.contains(&uid) => {
                            return Some((Ok(stream), allowed_uids));
                        }
                        Ok(uid) => warn!(uid, "connection refused: uid is not in allowedUids"),
                        Err(error) => warn!(%error, "connection refused: peer unknown"),
                    },
                    Err(error) => {
                        warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn prepare_folder(path: &Path) -> Result<(), SocketError> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    if !folder.exists() {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(|source| failed("create folder", folder, source))?;
    }
    let mode = fs::metadata(folder).map_err(|source| failed("examine folder", folder, source))?.mode() & 0o7777;
    let sticky = mode & 0o1000 != 0;
    if mode & 0o022 != 0 && !sticky {
        return Err(SocketError::OpenFolder { folder: folder.to_owned(), mode });
    }
    Ok(())
}

/// Of several plugins that start at once, one gets the lock; the kernel frees it however the process ends.
fn lock(path: &Path) -> Result<fs::File, SocketError> {
    let file = path.with_added_extension("lock");
    let handle = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&file)
        .map_err(|source| failed("create", &file, source))?;
    let private = handle.set_permissions(fs::Permissions::from_mode(0o600));
    private.map_err(|source| failed("restrict", &file, source))?;
    match rustix::fs::flock(&handle, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(handle),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(SocketError::Served(path.to_owned())),
        Err(error) => Err(failed("lock", &file, error.into())),
    }
}

/// Removes the socket of a dead process: one that refuses connections. Anything else stays.
fn remove_dead(path: &Path) -> Result<(), SocketError> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(failed("examine", path, source)),
    };
    if !metadata.file_type().is_socket() {
        return Err(SocketError::NotASocket(path.to_owned()));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|source| failed("remove dead socket", path, source))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(_) => Err(SocketError::Served(path.to_owned())),
        Err(source) => Err(failed("probe", path, source)),
    }
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    rustix::net::listen(&socket, BACKLOG)?;
    UnixListener::from_std(socket.into())
}

fn failed(step: &'static str, path: &Path, source: io::Error) -> SocketError {
    SocketError::System { step, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_has_mode_0600_and_goes_with_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kms.sock");
        let socket = Socket::listen(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_socket_that_is_served_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kms.sock");
        let _served = Socket::listen(&path).unwrap();
        assert!(matches!(Socket::listen(&path), Err(SocketError::Served(_))));
        let foreign = folder.path().join("foreign.sock");
        let _other_program = std::os::unix::net::UnixListener::bind(&foreign).unwrap();
        assert!(matches!(Socket::listen(&foreign), Err(SocketError::Served(_))));
        assert!(foreign.exists() && path.exists());
    }

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_file_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kms.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "a closed listener leaves its file behind");
        Socket::listen(&path).unwrap();
        fs::write(&path, "precious").unwrap();
        assert!(matches!(Socket::listen(&path), Err(SocketError::NotASocket(_))));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[tokio::test]
    async fn a_folder_that_others_can_write_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let refused = Socket::listen(&folder.path().join("kms.sock"));
        assert!(matches!(refused, Err(SocketError::OpenFolder { mode: 0o777, .. })));
    }
}
