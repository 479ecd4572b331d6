//! A small process of its own that holds the memory, where no service manager does: another container of the same pod. It
//! holds one file descriptor, never maps or reads it, and closes it when its time is over.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, chmod};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen, recvmsg, sendmsg,
    socket_with, sockopt,
};
use rustix::process::geteuid;
use tracing::{info, warn};

use super::keeper::Keeper;
use crate::dek::clock::{AT_START, BootClock, Clock};

/// For one question and its answer.
const WITHIN: Duration = Duration::from_secs(1);
/// Before every message, so that nothing else is taken for one.
const MAGIC: &[u8; 7] = b"keHold1";
const MESSAGE_BYTES: usize = MAGIC.len() + 1 + 8;

/// What the plugin asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ask {
    /// Hold the descriptor that comes with it, until this moment of the machine's time.
    Hold(Duration),
    Forget,
    Give,
}

impl Ask {
    fn encode(self) -> [u8; MESSAGE_BYTES] {
        let (kind, until) = match self {
            Self::Hold(until) => (b'H', until),
            Self::Forget => (b'F', Duration::ZERO),
            Self::Give => (b'G', Duration::ZERO),
        };
        let mut bytes = [0; MESSAGE_BYTES];
        bytes[..MAGIC.len()].copy_from_slice(MAGIC);
        bytes[MAGIC.len()] = kind;
        let milliseconds = u64::try_from(until.as_millis()).unwrap_or(u64::MAX);
        bytes[MAGIC.len() + 1..].copy_from_slice(&milliseconds.to_be_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(MAGIC)?;
        let (kind, until) = rest.split_first()?;
        let until = Duration::from_millis(u64::from_be_bytes(until.try_into().ok()?));
        match kind {
            b'H' => Some(Self::Hold(until)),
            b'F' => Some(Self::Forget),
            b'G' => Some(Self::Give),
            _ => None,
        }
    }
}

/// The way to the process that holds.
#[derive(Debug)]
pub struct Holder {
    socket: PathBuf,
}

impl Holder {
    /// It listens on `socket`.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    fn ask(&self, ask: Ask, memory: Option<BorrowedFd<'_>>) -> io::Result<Option<OwnedFd>> {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", self.socket.display()));
        let asked = || -> io::Result<Option<OwnedFd>> {
            // SEQPACKET keeps the bounds of messages: one recvmsg gets a whole message and the descriptor that belongs to it.
            let peer = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
            limit(&peer)?;
            connect(&peer, &SocketAddrUnix::new(&self.socket)?)?;
            // Nothing is handed to a stranger who took the path.
            is_own(&peer)?;
            send(&peer, &ask.encode(), memory)?;
            let (answer, memory) = receive(&peer)?;
            if answer == MAGIC { Ok(memory) } else { Err(io::Error::other("another program answers there")) }
        };
        asked().map_err(named)
    }
}

impl Keeper for Holder {
    fn keep(&self, memory: OwnedFd, until: Duration) -> io::Result<()> {
        // In time since the machine's start, as the kernel counts it.
        self.ask(Ask::Hold(until.saturating_sub(AT_START)), Some(memory.as_fd())).map(|_| ())
    }

    fn forget(&self) -> io::Result<()> {
        self.ask(Ask::Forget, None).map(|_| ())
    }

    fn take(&self) -> io::Result<Vec<OwnedFd>> {
        Ok(self.ask(Ask::Give, None)?.into_iter().collect())
    }
}

/// Holds what the plugin of the same user sends to `socket`, until the process is ended.
///
/// # Errors
/// The socket cannot be made.
pub fn hold(path: &Path) -> io::Result<()> {
    let listener = listen_at(path)?;
    info!(socket = %path.display(), "holding");
    let mut held: Option<(OwnedFd, Duration)> = None;
    loop {
        let left = held.as_ref().map(|(_, until)| until.saturating_add(AT_START).saturating_sub(BootClock.now()));
        if left.is_some_and(|left| left.is_zero()) {
            info!("closed: its time is over");
            held = None;
            continue;
        }
        // A timer of the kernel stands still while the machine sleeps, and a second is late enough.
        let wait = left.map(|left| left.min(WITHIN)).map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(1),
            tv_nsec: left.subsec_nanos().into(),
        });
        if poll(&mut [PollFd::new(&listener, PollFlags::IN)], wait.as_ref())? == 0 {
            continue;
        }
        // One peer after the other: the plugin is the only client, and `limit` bounds how long any other one takes.
        if let Err(error) = answer(&listener, &mut held) {
            warn!(%error, "a request was not answered");
        }
    }
}

fn listen_at(path: &Path) -> io::Result<OwnedFd> {
    let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let address = SocketAddrUnix::new(path)?;
    // What an earlier holder left; one that lives would lose what it holds only at the plugin's next change.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    bind(&listener, &address)?;
    // Nobody can connect in between: the socket does not listen yet.
    chmod(path, Mode::RUSR | Mode::WUSR)?;
    listen(&listener, 4)?;
    Ok(listener)
}

fn answer(listener: &OwnedFd, held: &mut Option<(OwnedFd, Duration)>) -> io::Result<()> {
    let peer = accept_with(listener, SocketFlags::CLOEXEC)?;
    limit(&peer)?;
    is_own(&peer)?;
    let (message, memory) = receive(&peer)?;
    let ask = Ask::decode(&message).ok_or_else(|| io::Error::other("another program asks"))?;
    match ask {
        Ask::Hold(until) => {
            let memory = memory.ok_or_else(|| io::Error::other("no descriptor came with the request"))?;
            *held = Some((memory, until));
            send(&peer, MAGIC, None)
        }
        Ask::Forget => {
            *held = None;
            send(&peer, MAGIC, None)
        }
        Ask::Give => send(&peer, MAGIC, held.as_ref().map(|(memory, _)| memory.as_fd())),
    }
}

/// A peer that says nothing must not hold up the other.
fn limit(peer: &OwnedFd) -> io::Result<()> {
    for timeout in [sockopt::Timeout::Recv, sockopt::Timeout::Send] {
        sockopt::set_socket_timeout(peer, timeout, Some(WITHIN))?;
    }
    Ok(())
}

/// Whether the other side runs as the user of this process.
fn is_own(peer: &OwnedFd) -> io::Result<()> {
    let credentials = sockopt::socket_peercred(peer)?;
    if credentials.uid == geteuid() {
        return Ok(());
    }
    let why =
        format!("the other side runs as uid {}, and this process as {}", credentials.uid.as_raw(), geteuid().as_raw());
    Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
}

fn send(peer: &OwnedFd, bytes: &[u8], memory: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = memory.map(|memory| [memory]);
    if let Some(descriptors) = &descriptors {
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    sendmsg(peer, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive(peer: &OwnedFd) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; MESSAGE_BYTES];
    let received = recvmsg(peer, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let descriptors = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let memory = descriptors.flatten().next();
    Ok((bytes.get(..received.bytes).unwrap_or_default().to_vec(), memory))
}
