//! What the tests run against, in temporary folders and on free ports: real servers, the plugin as a child process,
//! and in `fakes` what stands in for services that cannot be installed. Every child process ends with the value that
//! holds it.
#![allow(dead_code, unused_imports, reason = "each test binary uses its own part of this")]
#![allow(missing_docs, clippy::unwrap_used, clippy::doc_markdown, reason = "for tests only")]

#[cfg(feature = "rotate")]
pub mod apiserver;
pub mod break_glass;
pub mod etcd;
pub mod fakes;
#[cfg(feature = "transit")]
pub mod key_store;
pub mod keyring;
#[cfg(feature = "aws")]
pub mod localstack;
pub mod memory;
pub mod plugin;
pub mod process;
#[cfg(all(feature = "aws", feature = "azure", feature = "gcp", feature = "transit"))]
pub mod rival;
#[cfg(feature = "rotate")]
pub mod rotation;
#[cfg(feature = "pkcs11")]
pub mod token;
#[cfg(feature = "pkcs11")]
pub mod tpm;
#[cfg(feature = "transit")]
pub mod vault;
pub mod wall_clock;

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

#[cfg(feature = "rotate")]
pub use apiserver::{ADMIN, ApiServer, ApiServerOptions, Encryption};
pub use break_glass::BreakGlass;
pub use etcd::Etcd;
pub use keyring::KeyringFile;
pub use plugin::Plugin;
pub use process::Process;

/// The longest that a server may take to start on a busy machine.
pub const STARTS_WITHIN: Duration = Duration::from_secs(90);

/// To be called first in every test: chooses the TLS provider, and checks that the test has a network of its own.
pub fn prepare() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    });
    assert!(
        UdpSocket::bind((Ipv4Addr::new(10, 99, 0, 1), 0)).is_ok(),
        "10.99.0.1 is not an address of this machine: run through scripts/in-netns (scripts/test does)"
    );
}

/// Waits until `condition` holds; panics with `what` when it does not in time.
pub async fn wait_until(what: &str, deadline: Duration, mut condition: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < deadline, "not within {deadline:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A port that nobody listens on. Below the range that outgoing connections take theirs from, and never the same
/// one twice in a process, so that tests in parallel do not meet.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 10_000 + u16::try_from(std::process::id() % 100).unwrap() * 200;
    loop {
        let port = first + NEXT.fetch_add(1, Ordering::Relaxed);
        if TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            return port;
        }
    }
}

/// A folder for the data of one server: in memory where the machine has such a file system.
pub fn temporary_folder(prefix: &str) -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    tempfile::Builder::new().prefix(prefix).tempdir_in(parent).unwrap()
}

/// Finds a real server: environment variable, then PATH, then what `scripts/servers` built.
pub fn server(name: &str) -> PathBuf {
    let variable = name.to_uppercase().replace('-', "_");
    if let Some(path) = std::env::var_os(&variable) {
        let path = PathBuf::from(path);
        assert!(is_executable(&path), "{variable}={} is not executable", path.display());
        return path;
    }
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    let on_path = std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect::<Vec<_>>());
    on_path
        .unwrap_or_default()
        .into_iter()
        .chain(cache.map(|cache| cache.join("kube-envelope/servers")))
        .map(|folder| folder.join(name))
        .find(|path| is_executable(path))
        .unwrap_or_else(|| panic!("{name} is neither in ${variable} nor on PATH nor built: run scripts/servers {name}"))
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}
