//! One connection to the socket: it counts while it is open, and a peer that connects and says nothing is closed.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, Sleep, sleep};
use tonic::transport::server::Connected;

/// How long a peer may take to begin with HTTP/2. An API server sends it as it connects.
const PREFACE_WITHIN: Duration = Duration::from_secs(10);

/// A connection over which nothing comes for so long is closed, since there is room for few. An API server asks for Status
/// every minute.
const IDLE: Duration = Duration::from_mins(5);

/// `PRI * HTTP/2.0…`, which every client sends first (RFC 9113, 3.4).
const PREFACE_BYTES: usize = 24;

/// A connection of an allowed peer.
pub struct Connection {
    stream: UnixStream,
    /// Resolves once keys were cleared: then the connection ends, and its buffers with it.
    cleared: Pin<Box<dyn Future<Output = ()> + Send>>,
    is_cleared: bool,
    /// Bytes of the preface that are still missing.
    missing: usize,
    /// When something came last.
    heard: Instant,
    /// Until when something must come; looked at again then.
    deadline: Pin<Box<Sleep>>,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    pub(super) fn new(stream: UnixStream, permit: OwnedSemaphorePermit, mut cleared: watch::Receiver<()>) -> Self {
        // What was cleared before it was opened is none of its business.
        cleared.mark_unchanged();
        let cleared = Box::pin(async move {
            if cleared.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        });
        Self {
            stream,
            cleared,
            is_cleared: false,
            missing: PREFACE_BYTES,
            heard: Instant::now(),
            deadline: Box::pin(sleep(PREFACE_WITHIN)),
            _permit: permit,
        }
    }
}

impl Connection {
    /// Whether the peer has been silent for too long; it is looked again when that may be so.
    fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        while self.deadline.as_mut().poll(cx).is_ready() {
            let end = self.heard.checked_add(IDLE).unwrap_or(self.heard);
            // Without its preface, what comes makes nothing later.
            if self.missing > 0 || end <= Instant::now() {
                return true;
            }
            self.deadline.as_mut().reset(end);
        }
        false
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("stream", &self.stream).finish_non_exhaustive()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.is_cleared || self.cleared.as_mut().poll(cx).is_ready() {
            self.is_cleared = true;
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the keys were cleared")));
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        let came = buf.filled().len().saturating_sub(before);
        if came > 0 {
            self.missing = self.missing.saturating_sub(came);
            self.heard = Instant::now();
        }
        if read.is_pending() && self.is_over(cx) {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer sends nothing")));
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Connected for Connection {
    type ConnectInfo = <UnixStream as Connected>::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::Semaphore;

    use super::*;

    fn connection() -> (UnixStream, Connection, Arc<Semaphore>) {
        connection_until(watch::Sender::new(()).subscribe())
    }

    fn connection_until(cleared: watch::Receiver<()>) -> (UnixStream, Connection, Arc<Semaphore>) {
        let (peer, stream) = UnixStream::pair().unwrap();
        let permits = Arc::new(Semaphore::new(1));
        let permit = permits.clone().try_acquire_owned().unwrap();
        (peer, Connection::new(stream, permit, cleared), permits)
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_sends_half_a_preface_is_closed_and_its_place_is_free() {
        for sent in [0, 1, PREFACE_BYTES - 1] {
            let (mut peer, mut connection, permits) = connection();
            peer.write_all(&[b'P'; PREFACE_BYTES][..sent]).await.unwrap();
            let mut bytes = Vec::new();
            let ended = connection.read_to_end(&mut bytes).await.unwrap_err();
            assert_eq!((ended.kind(), bytes.len()), (io::ErrorKind::TimedOut, sent));
            drop(connection);
            assert_eq!(permits.available_permits(), 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_when_the_keys_are_cleared_and_a_later_one_does_not() {
        let cleared = watch::Sender::new(());
        let (_peer, mut before, _permits) = connection_until(cleared.subscribe());
        let still_open = tokio::time::timeout(Duration::from_secs(1), before.read_u8()).await;
        assert!(still_open.is_err(), "{still_open:?}");
        let kept = cleared.subscribe();
        cleared.send_replace(());
        assert_eq!(before.read_u8().await.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
        let (_peer, mut after, _permits) = connection_until(kept);
        let still_open = tokio::time::timeout(Duration::from_secs(1), after.read_u8()).await;
        assert!(still_open.is_err(), "{still_open:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_began_may_be_silent_for_five_minutes_each_time() {
        let (mut peer, mut connection, _permits) = connection();
        peer.write_all(&[b'P'; PREFACE_BYTES]).await.unwrap();
        let mut bytes = [0; PREFACE_BYTES];
        connection.read_exact(&mut bytes).await.unwrap();
        for _ in 0..10 {
            let silent = tokio::time::timeout(Duration::from_secs(299), connection.read_u8()).await;
            assert!(silent.is_err(), "{silent:?}");
            peer.write_u8(7).await.unwrap();
            assert_eq!(connection.read_u8().await.unwrap(), 7);
        }
        let began = Instant::now();
        assert_eq!(connection.read_u8().await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(began.elapsed().as_secs(), IDLE.as_secs());
    }
}
