//! The socket and its peers: what stands in its place, who may connect, and bytes that are no HTTP/2.

use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use kube_envelope::config::SocketAddress;
use kube_envelope::plugin::client::connect;

use super::*;
use crate::support::{Process, STARTS_WITHIN, wait_until};

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
    assert!(plugin.process.says("exists and is not a socket"), "{}", plugin.process.log_tail());
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
    assert!(plugin.process.says("exists and is not a socket"), "{}", plugin.process.log_tail());
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
    assert!(plugin.process.says(&fix), "{}", plugin.process.log_tail());
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

/// Somebody tidies up while the plugin runs: it listens again where its socket was, and tells where it cannot.
#[tokio::test]
async fn a_socket_that_is_removed_or_replaced_is_told_and_put_back() {
    let keyring = KeyringFile::create();
    let mut plugin = plugin(&keyring).await;
    let good = stored(&plugin).await;
    std::fs::remove_file(plugin.socket()).unwrap();
    std::fs::remove_file(plugin.socket().with_added_extension("lock")).unwrap();
    wait_until("it listens again", STARTS_WITHIN, async || plugin.status().await.is_some()).await;
    assert!(plugin.process.says("listening there again"), "{}", plugin.process.log_tail());
    assert_eq!(std::fs::metadata(plugin.socket()).unwrap().permissions().mode() & 0o777, 0o600);

    std::fs::remove_file(plugin.socket()).unwrap();
    let other = std::os::unix::net::UnixListener::bind(plugin.socket()).unwrap();
    let told = async || plugin.get("/status").contains("no API server can open a connection");
    wait_until("another socket in its place is told", STARTS_WITHIN, told).await;
    assert!(plugin.get("/status").contains("\"degraded\""), "{}", plugin.get("/status"));
    let (is_ready, said) = plugin.readyz();
    assert!(!is_ready && said.contains("is served by another process"), "{said}");
    assert_eq!(plugin.metric("kube_envelope_socket_in_place", &[]).to_bits(), 0);
    let doctor = std::process::Command::new(env!("CARGO_BIN_EXE_kube-envelope"))
        .args(["doctor", "--config"])
        .arg(plugin.config_file())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&doctor.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(said.contains("its socket does not: no answer within"), "{said}");
    // The other one ends, and leaves its dead socket behind.
    drop(other);
    wait_until("it listens again", STARTS_WITHIN, async || plugin.status().await.is_some()).await;
    wait_until("all is well", STARTS_WITHIN, async || plugin.readyz().0).await;
    assert_unharmed(&mut plugin, &good).await;
    plugin.stop();
    assert!(!plugin.socket().exists());
}

/// A connect would wait with the others, and the start with it.
#[test]
fn a_start_does_not_wait_for_a_socket_whose_owner_accepts_nobody() {
    let keyring = KeyringFile::create();
    let mut plugin = Plugin::spawn(&keyring.settings(CLUSTER));
    plugin.kill();
    let _ = std::fs::remove_file(plugin.socket());
    let _busy = std::os::unix::net::UnixListener::bind(plugin.socket()).unwrap();
    let waiting = || {
        let socket = rustix::net::socket_with(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::STREAM,
            rustix::net::SocketFlags::NONBLOCK,
            None,
        );
        let address = rustix::net::SocketAddrUnix::new(plugin.socket()).unwrap();
        let socket = socket.unwrap();
        rustix::net::connect(&socket, &address).is_ok().then_some(socket)
    };
    let connections: Vec<_> = std::iter::from_fn(waiting).collect();
    plugin.process.restart();
    assert_eq!(plugin.process.wait(Duration::from_secs(10)).code(), Some(1));
    assert!(plugin.process.says("is served by another process"), "{}", plugin.process.log_tail());
    assert!(!connections.is_empty());
}

/// The socket's mode is loosened on purpose: then the kernel lets everybody in, and the uid is what is left to check.
#[tokio::test]
async fn a_peer_of_another_uid_is_refused() {
    assert_root();
    let keyring = KeyringFile::create();
    let plugin = Plugin::start(&keyring.settings(CLUSTER)).await;
    plugin.wait_healthy().await;
    std::fs::set_permissions(plugin.folder(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::set_permissions(plugin.socket(), std::fs::Permissions::from_mode(0o666)).unwrap();
    status_as_nobody(SocketAddress::File(plugin.socket())).await.expect_err("refused");
    assert!(plugin.process.says("uid 65534 is not in allowedUids"), "{}", plugin.process.log_tail());
}

/// Field case F7: a kube-apiserver that is not root, with nothing but settings.
#[tokio::test]
async fn an_api_server_of_another_user_connects_without_a_chmod_by_hand_also_after_a_restart() {
    assert_root();
    let keyring = KeyringFile::create();
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let uids = format!("allowedUids: [{NOBODY}]");
    let file = SocketAddress::File(folder.path().join("run/kms.sock"));
    let name = SocketAddress::Abstract(format!("kube-envelope-{}", std::process::id()));
    for (address, settings, mode) in [
        (&file, uids.clone(), Some(0o666)),
        (&file, format!("{uids}\nsocketGroup: \"{NOBODY}\""), Some(0o660)),
        (&file, format!("{uids}\nsocketGroup: {NOBODY}\nsocketMode: 0620"), Some(0o620)),
        (&name, uids.clone(), None),
    ] {
        let mut plugin = Plugin::spawn(&format!("{}\n{settings}", keyring.settings(CLUSTER)));
        plugin.kill();
        let text = std::fs::read_to_string(plugin.config_file()).unwrap();
        let own = format!("socket: {}", plugin.socket().display());
        std::fs::write(plugin.config_file(), text.replace(&own, &format!("socket: {address}"))).unwrap();
        for _ in 0..2 {
            plugin.process.restart();
            let serves = async || status_as_nobody(address.clone()).await.is_ok();
            wait_until("an API server of another user is served", STARTS_WITHIN, serves).await;
            if let (SocketAddress::File(path), Some(mode)) = (address, mode) {
                assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, mode);
                let folder = std::fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777;
                assert_eq!(folder & 0o044, 0, "to pass through is not to list: {folder:o}");
            }
            plugin.stop();
        }
    }
}

fn assert_root() {
    assert!(rustix::process::geteuid().is_root(), "only root can become another uid: run this test as root");
}

/// Status as another user asks it.
async fn status_as_nobody(address: SocketAddress) -> Result<(), String> {
    let asked = std::thread::spawn(move || {
        // Of this thread alone, as the kernel counts; it ends with the thread.
        let (uid, gid) = (rustix::fs::Uid::from_raw(NOBODY), rustix::fs::Gid::from_raw(NOBODY));
        rustix::thread::set_thread_groups(&[]).unwrap();
        rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
        rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut client = connect(&address).await.map_err(|error| format!("{error:?}"))?;
            let request = kube_envelope::kms::v2::StatusRequest {};
            client.status(request).await.map(|_| ()).map_err(|status| status.to_string())
        })
    });
    tokio::task::spawn_blocking(move || asked.join().unwrap()).await.unwrap()
}

/// A limit of 64 open files, and peers that open as many connections as they can: files and KEKs still have theirs.
#[tokio::test]
async fn connections_never_use_up_the_descriptors_that_a_kek_needs() {
    let keyring = KeyringFile::create();
    let mut plugin = Plugin::spawn(&format!("{}\nrefreshInterval: 1s", keyring.settings(CLUSTER)));
    plugin.kill();
    let serve = format!(
        "ulimit -n 64; exec {} serve --config {}",
        env!("CARGO_BIN_EXE_kube-envelope"),
        plugin.config_file().display()
    );
    let arguments = vec!["-c".into(), serve.into()];
    let process =
        Process::start("limited", "/bin/bash".into(), arguments, Vec::new(), plugin.folder().join("limited.log"));
    let before = plugin.wait_healthy().await;
    let mut api_server = plugin.client().await.unwrap();
    let mut peers = Vec::new();
    for _ in 0..200 {
        peers.push(UnixStream::connect(plugin.socket()).unwrap());
    }
    keyring.rotate();
    wait_until("the rotation is followed", STARTS_WITHIN, async || {
        let status = api_server.status(crate::support::plugin::proto::StatusRequest {}).await;
        status.unwrap().into_inner().key_id != before
    })
    .await;
    let open = std::fs::read_dir(format!("/proc/{}/fd", process.id())).unwrap().count();
    assert!(open < 48, "{open} of 64 are in use");
    drop(peers);
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
