//! An HTTP proxy: opens a tunnel for `CONNECT`, and refuses everything else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// The proxy; it and its tunnels end when it is dropped.
pub struct Tunnels {
    address: SocketAddr,
    opened: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Tunnels {
    /// Whatever host is asked for, a tunnel leads to `port` of this machine, and to that port alone.
    pub async fn start(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let (address, opened) = (listener.local_addr().expect("an address"), Arc::new(AtomicUsize::new(0)));
        let count = opened.clone();
        let task = tokio::spawn(async move {
            let mut tunnels = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                tunnels.spawn(serve(client, port, count.clone()));
            }
        });
        Self { address, opened, task }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How many tunnels it has opened.
    pub fn opened(&self) -> usize {
        self.opened.load(SeqCst)
    }
}

impl Drop for Tunnels {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(client: TcpStream, port: u16, opened: Arc<AtomicUsize>) {
    let mut client = BufReader::new(client);
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if client.read_until(b'\n', &mut head).await.map_or(true, |read| read == 0) {
            return;
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let target = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next()?.rsplit_once(':'));
    if target.is_none_or(|(_, to)| to != port.to_string()) {
        let _ = client.write_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n").await;
        return;
    }
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    opened.fetch_add(1, SeqCst);
    if client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.is_ok() {
        let _ = copy_bidirectional(&mut client, &mut server).await;
    }
}
