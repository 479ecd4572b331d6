//! The socket and its peers: what stands in its place, who may connect, and bytes that are no HTTP/2.

use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::*;

/// A user that is neither root nor allowed.
const NOBODY: u32 = 65534;

#[tokio::test]
async fn bytes_that_are_no_http2_close_their_own_connection_only() {
    let keyring = KeyringFile::create();
    let mut plugin = plugin(&keyring).await;
    let good = stored(&plugin).await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice();
    let noise: Vec<u8> = (0..4096_u32).map(|i| u8::try_from(i.wrapping_mul(2_654_435_761) >> 24).unwrap()).collect();
    for bytes in [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".as_slice(), &noise, &[preface, &noise].concat()] {
        let mut stream = UnixStream::connect(plugin.socket()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        // The plugin may have closed already.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "closed: {error}"),
        }
    }
    assert_unharmed(&mut plugin, &good).await;
}

#[test]
fn a_symlink_in_the_sockets_place_is_refused_and_its_target_untouched() {
    let keyring = KeyringFile::create();
    let mut plugin = Plugin::spawn(&keyring.settings(CLUSTER));
    plugin.kill();
    let precious = plugin.folder().join("precious");
    std::fs::write(&precious, "precious").unwrap();
    let _ = std::fs::remove_file(plugin.socket());
    std::os::unix::fs::symlink(&precious, plugin.socket()).unwrap();
    plugin.process.restart();
    assert_eq!(plugin.process.wait(Duration::from_secs(10)).code(), Some(1));
    assert!(plugin.process.log().contains("exists and is not a socket"), "{}", plugin.process.log_tail());
    assert_eq!(std::fs::read(&precious).unwrap(), b"precious");
    assert!(std::fs::symlink_metadata(plugin.socket()).unwrap().file_type().is_symlink());
}

#[test]
fn a_file_in_the_sockets_place_is_refused_and_untouched() {
    let keyring = KeyringFile::create();
    let mut plugin = Plugin::spawn(&keyring.settings(CLUSTER));
    plugin.kill();
    let _ = std::fs::remove_file(plugin.socket());
    std::fs::write(plugin.socket(), "precious").unwrap();
    plugin.process.restart();
    assert_eq!(plugin.process.wait(Duration::from_secs(10)).code(), Some(1));
    assert!(plugin.process.log().contains("exists and is not a socket"), "{}", plugin.process.log_tail());
    assert_eq!(std::fs::read(plugin.socket()).unwrap(), b"precious");
}

#[test]
fn a_folder_that_others_can_write_is_refused_with_the_fix() {
    let keyring = KeyringFile::create();
    let mut plugin = Plugin::spawn(&keyring.settings(CLUSTER));
    plugin.kill();
    std::fs::set_permissions(plugin.folder(), std::fs::Permissions::from_mode(0o777)).unwrap();
    plugin.process.restart();
    assert_eq!(plugin.process.wait(Duration::from_secs(10)).code(), Some(1));
    let fix = format!("chmod go-w {}", plugin.folder().display());
    assert!(plugin.process.log().contains(&fix), "{}", plugin.process.log_tail());
}

#[tokio::test]
async fn a_second_plugin_leaves_a_served_socket_alone() {
    let keyring = KeyringFile::create();
    let mut first = plugin(&keyring).await;
    let good = stored(&first).await;
    let second = std::process::Command::new(env!("CARGO_BIN_EXE_kube-envelope"))
        .args(["serve", "--config"])
        .arg(first.config_file())
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    let error = String::from_utf8(second.stderr).unwrap();
    assert!(error.contains("is served by another process; stop that one first"), "{error}");
    assert_unharmed(&mut first, &good).await;
}

#[tokio::test]
async fn a_plugin_killed_with_9_is_followed_by_another_on_its_stale_socket() {
    let keyring = KeyringFile::create();
    let mut plugin = plugin(&keyring).await;
    let good = stored(&plugin).await;
    plugin.kill();
    assert!(std::fs::symlink_metadata(plugin.socket()).unwrap().file_type().is_socket(), "left behind");
    plugin.restart().await;
    plugin.wait_healthy().await;
    assert_unharmed(&mut plugin, &good).await;
}

/// The socket's mode is loosened on purpose: then the kernel lets everybody in, and the uid is what is left to check.
#[tokio::test]
async fn a_peer_of_another_uid_is_refused_unless_it_is_allowed() {
    assert!(rustix::process::geteuid().is_root(), "only root can become another uid: run this test as root");
    let keyring = KeyringFile::create();
    for (allowed, settings) in [(false, keyring.settings(CLUSTER)), (true, keyring.settings(CLUSTER))] {
        let uids = if allowed { format!("\nallowedUids: [{NOBODY}]") } else { String::new() };
        let plugin = Plugin::start(&format!("{settings}{uids}")).await;
        plugin.wait_healthy().await;
        std::fs::set_permissions(plugin.folder(), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::set_permissions(plugin.socket(), std::fs::Permissions::from_mode(0o666)).unwrap();
        let socket = plugin.socket();
        let answer = std::thread::spawn(move || {
            // Of this thread alone, as the kernel counts; it ends with the thread.
            let nobody = rustix::fs::Uid::from_raw(NOBODY);
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            let mut stream = UnixStream::connect(socket).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let _ = stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
            let mut byte = [0];
            // A connection that is closed with unread bytes in it reads as end or as reset.
            stream.read(&mut byte).is_ok_and(|read| read == 1)
        });
        assert_eq!(answer.join().unwrap(), allowed);
        assert_eq!(plugin.process.log().contains("uid is not in allowedUids"), !allowed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_the_plugin_within_two_seconds_though_peers_stay_connected() {
    let keyring = KeyringFile::create();
    let mut plugin = plugin(&keyring).await;
    let silent = UnixStream::connect(plugin.socket()).unwrap();
    let mut idle = plugin.client().await.unwrap();
    let good = stored(&plugin).await;
    decrypt(&mut idle, good).await.unwrap();
    plugin.process.signal(rustix::process::Signal::TERM);
    let told = Instant::now();
    let status = plugin.process.wait(Duration::from_secs(10));
    assert!(told.elapsed() < Duration::from_secs(2), "{:?}", told.elapsed());
    assert_eq!(status.code(), Some(0));
    assert!(!plugin.socket().exists(), "the socket is removed");
    drop((silent, idle));
}
