//! The unix socket: restricted before anyone can connect, never taken from a living plugin, open to few uids.

mod connection;
mod error;
mod folder;
mod place;
mod problem;
mod system;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tracing::{error, warn};

pub use self::connection::Connection;
pub use self::error::SocketError;
use self::error::failed;
pub use self::folder::{group_id, problem_of_folder};
use self::place::Place;
pub use self::place::{Keeper, OutOfPlace};
pub use self::problem::FolderProblem;
use self::system::bind_abstract;
use crate::config::{SocketAddress, SocketSettings};
use crate::telemetry::LogLimit;

/// How long accepting rests after a failure such as "too many open files".
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Refused connections that are logged in a minute.
const REFUSALS_LOGGED: u32 = 20;

/// A socket that listens, without a runtime. Dropping it removes the file.
#[derive(Debug)]
pub struct Socket {
    listener: std::os::unix::net::UnixListener,
    /// An abstract socket has no file and needs no lock.
    place: Option<Arc<Place>>,
}

impl Socket {
    /// Binds what `settings` name, with its mode and group. Nobody can connect before they are set: listening begins
    /// after it. A group that cannot be given is an error in the log, and leaves the socket to its owner.
    ///
    /// # Errors
    /// A living plugin there, a folder that others could change, or what the system refuses.
    pub fn listen(settings: &SocketSettings) -> Result<Self, SocketError> {
        let path = match &settings.address {
            SocketAddress::File(path) => path,
            SocketAddress::Abstract(name) => {
                let listener = bind_abstract(name).map_err(|source| match source.kind() {
                    io::ErrorKind::AddrInUse => SocketError::Served(settings.address.to_string()),
                    _ => failed("listen on", &settings.address, source),
                })?;
                return Ok(Self { listener, place: None });
            }
        };
        let group = settings.group.as_deref().map(folder::group_id);
        let (group, mode) = match group {
            None => (None, settings.mode),
            Some(Ok(group)) => (Some(group), settings.mode),
            Some(Err(problem)) => {
                error!(problem, "socketGroup has no effect: only the plugin's own user and root can connect");
                (None, 0o600)
            }
        };
        let (place, listener) = Place::take(path, mode, group)?;
        Ok(Self { listener, place: Some(Arc::new(place)) })
    }

    /// The connections of the plugin's own uid, of root, and of `allowed_uids`, at most `most` at once; others are
    /// closed unread. All that are open end when `cleared` changes: their buffers hold seeds that passed through, and
    /// nobody else can clear them. The API server connects again at once. They go on coming after the file of the socket was
    /// removed for as long as [`Keeper::run`] runs.
    ///
    /// # Errors
    /// When the runtime cannot watch the socket.
    pub fn connections(
        &self,
        allowed_uids: Vec<u32>,
        most: usize,
        cleared: watch::Receiver<()>,
    ) -> io::Result<(impl Stream<Item = io::Result<Connection>> + use<>, Keeper)> {
        let (keeper, renewed) = Keeper::new(self.place.clone());
        let door = Door {
            own: rustix::process::geteuid().as_raw(),
            allowed_uids,
            most,
            listener: self.listener()?,
            renewed,
            permits: Arc::new(Semaphore::new(most)),
            cleared,
            refusals: LogLimit::new(REFUSALS_LOGGED),
        };
        let connections = futures::stream::unfold(door, async |mut door| Some((Ok(door.next().await), door)));
        Ok((connections, keeper))
    }

    /// A listener of the socket for the runtime that calls this.
    ///
    /// # Errors
    /// When the runtime cannot watch the socket.
    pub fn listener(&self) -> io::Result<UnixListener> {
        UnixListener::from_std(self.listener.try_clone()?)
    }
}

/// Who is let in.
struct Door {
    own: u32,
    allowed_uids: Vec<u32>,
    most: usize,
    listener: UnixListener,
    /// The socket that took the place of this one.
    renewed: mpsc::Receiver<UnixListener>,
    permits: Arc<Semaphore>,
    cleared: watch::Receiver<()>,
    refusals: LogLimit,
}

impl Door {
    async fn next(&mut self) -> Connection {
        loop {
            let stream = tokio::select! {
                stream = accept(&self.listener, &self.refusals) => stream,
                Some(listener) = self.renewed.recv() => {
                    self.listener = listener;
                    continue;
                }
            };
            match self.check(&stream) {
                Ok(permit) => return Connection::new(stream, permit, self.cleared.clone()),
                Err(problem) => {
                    if let Some(left_out) = self.refusals.next() {
                        warn!(left_out, "connection refused: {problem}");
                    }
                }
            }
        }
    }

    fn check(&self, stream: &UnixStream) -> Result<OwnedSemaphorePermit, String> {
        // By the kernel's word, before a byte of HTTP/2 is read.
        let uid = stream.peer_cred().map_err(|error| format!("the peer is unknown: {error}"))?.uid();
        if uid != self.own && uid != 0 && !self.allowed_uids.contains(&uid) {
            return Err(format!("uid {uid} is not in allowedUids"));
        }
        // Refused and not queued: a peer with too many connections waits for itself.
        let permit = self.permits.clone().try_acquire_owned();
        permit.map_err(|_| format!("uid {uid} has too many connections: {} are open", self.most))
    }
}

async fn accept(listener: &UnixListener, refusals: &LogLimit) -> UnixStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                if let Some(left_out) = refusals.next() {
                    warn!(left_out, %error, "cannot accept a connection");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    use super::*;

    fn listen(path: &Path) -> Result<Socket, SocketError> {
        listen_with(path, 0o600, None)
    }

    fn listen_with(path: &Path, mode: u32, group: Option<&str>) -> Result<Socket, SocketError> {
        let address = SocketAddress::File(path.to_owned());
        Socket::listen(&SocketSettings { address, mode, group: group.map(str::to_owned), allowed_uids: Vec::new() })
    }

    #[test]
    fn the_socket_has_its_mode_and_group_and_goes_with_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kms.sock");
        let own = rustix::process::getegid().as_raw();
        for (mode, group) in [(0o600, None), (0o660, Some(own)), (0o666, None)] {
            let socket = listen_with(&path, mode, group.map(|group| group.to_string()).as_deref()).unwrap();
            let metadata = fs::metadata(&path).unwrap();
            assert_eq!(metadata.mode() & 0o777, mode);
            assert_eq!(metadata.gid(), own);
            drop(socket);
            assert!(!path.exists());
        }
    }

    #[test]
    fn a_group_that_does_not_exist_leaves_the_socket_to_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kms.sock");
        let _socket = listen_with(&path, 0o660, Some("no such group")).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_socket_that_is_served_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kms.sock");
        let _served = listen(&path).unwrap();
        assert!(matches!(listen(&path), Err(SocketError::Served(_))));
        let foreign = folder.path().join("foreign.sock");
        let _other_program = std::os::unix::net::UnixListener::bind(&foreign).unwrap();
        assert!(matches!(listen(&foreign), Err(SocketError::Served(_))));
        assert!(foreign.exists() && path.exists());
    }

    #[test]
    fn an_abstract_socket_that_is_served_is_not_taken_and_leaves_nothing_behind() {
        let name = format!("kube-envelope-test-{}", std::process::id());
        let address = SocketAddress::Abstract(name);
        let settings = SocketSettings { address, mode: 0o600, group: None, allowed_uids: vec![0] };
        let served = Socket::listen(&settings).unwrap();
        let refused = Socket::listen(&settings).unwrap_err();
        assert!(refused.to_string().starts_with("unix:///@kube-envelope-test-"), "{refused}");
        drop(served);
        Socket::listen(&settings).unwrap();
    }

    #[test]
    fn a_dead_socket_is_replaced_and_a_file_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kms.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "a closed listener leaves its file behind");
        listen(&path).unwrap();
        fs::write(&path, "precious").unwrap();
        assert!(matches!(listen(&path), Err(SocketError::NotASocket(_))));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }
}
