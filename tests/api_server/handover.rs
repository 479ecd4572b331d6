//! The plugin restarts while every KEK is away: the keys in memory are handed to the process after it, by a service manager
//! or a holder, and only as long as they could have been used without the restart.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::sealed_state::sealed_by;
use crate::support::fakes::faults::Fault;
use crate::support::key_store::{ALL, KeyStore, reconfigure, settings};
use crate::support::plugin::encryption_configuration;
use crate::support::{ApiServer, ApiServerOptions, Encryption, Etcd, KeyringFile, Plugin, Process, wait_until};

const SOON: Duration = Duration::from_secs(30);

/// `kube-envelope hold`, as the second container of the plugin's pod.
struct Holder {
    process: Process,
    folder: tempfile::TempDir,
}

impl Holder {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let socket = format!("handover: {{ socket: {} }}", at("hold.sock").display());
        let config = format!("cluster: test\nkeks: [{{ name: k, keyring: {{ file: /no/such }} }}]\n{socket}\n");
        std::fs::write(at("config.yaml"), config).unwrap();
        let arguments = vec!["hold".into(), "--config".into(), at("config.yaml").into()];
        let binary = PathBuf::from(env!("CARGO_BIN_EXE_kube-envelope"));
        let process = Process::start("holder", binary, arguments, Vec::new(), at("hold.log"));
        Self { process, folder }
    }

    /// What the plugin's configuration says of it.
    fn setting(&self) -> String {
        format!("handover: {{ socket: {} }}", self.folder.path().join("hold.sock").display())
    }
}

async fn wait_for_state(plugin: &Plugin, state: &str) {
    let said = format!("\"{state}\"");
    wait_until(&format!("the plugin is {state}"), SOON, async || plugin.get("/status").contains(&said)).await;
}

async fn wait_handed_over(plugin: &Plugin) {
    let log = || std::fs::read_to_string(plugin.process.log_path()).unwrap_or_default();
    wait_until("the keys are handed over", SOON, async || log().contains("the next start will find the keys")).await;
    // And the last change with them.
    tokio::time::sleep(Duration::from_secs(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_with_every_kek_down_a_plugin_with_a_holder_goes_on_and_so_does_an_api_server_that_restarts() {
    let (store, holder) = (KeyStore::start("primary").await, Holder::start());
    let mut plugin = Plugin::start(&settings(&[&store], &holder.setting())).await;
    let key_id = plugin.wait_healthy().await;
    let etcd = Etcd::start().await;
    let encryption = encryption_configuration(&["secrets"], &[&plugin.provider(), "{identity: {}}"]);
    let options = ApiServerOptions { encryption: Encryption::Text(encryption), ..ApiServerOptions::default() };
    let mut server = ApiServer::start(&etcd, &options).await;
    server.write_secret("before", "before").await;
    wait_handed_over(&plugin).await;
    store.faults.set(Fault::Refuse);
    server.stop();
    plugin.kill();
    plugin.restart().await;
    server.restart().await;
    assert_eq!(server.read_secret("before").await, "before");
    server.write_secret("after", "after").await;
    assert_eq!(plugin.wait_healthy().await, key_id);
    wait_for_state(&plugin, "coasting").await;
    store.faults.clear();
    wait_for_state(&plugin, "ready").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_denied_is_not_handed_over_and_what_is_too_old_or_of_another_epoch_not_taken() {
    let (store, holder) = (KeyStore::start("primary").await, Holder::start());
    let mut plugin = Plugin::start(&settings(&[&store], &format!("maxOfflineAge: 8s\n{}", holder.setting()))).await;
    plugin.wait_healthy().await;
    wait_handed_over(&plugin).await;

    let file = plugin.config_file();
    let config = std::fs::read_to_string(&file).unwrap();
    store.faults.set(Fault::Refuse);
    plugin.kill();
    std::fs::write(&file, format!("{config}\nepoch: 2\n")).unwrap();
    plugin.restart().await;
    assert!(plugin.status().await.is_none(), "another epoch is in force");
    plugin.kill();
    std::fs::write(&file, &config).unwrap();

    // Counted from the last unwrap, and not from the start.
    tokio::time::sleep(Duration::from_secs(9)).await;
    plugin.restart().await;
    assert!(plugin.status().await.is_none(), "its keys were too old");
    store.faults.clear();
    plugin.wait_healthy().await;

    store.allow(&[]).await;
    wait_for_state(&plugin, "stopped").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    store.faults.set(Fault::Refuse);
    plugin.kill();
    plugin.restart().await;
    assert!(plugin.status().await.is_none(), "nothing was left after the denial");
    store.faults.clear();
    store.allow(ALL).await;
    plugin.wait_healthy().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_holder_the_plugin_serves_and_gives_it_the_keys_once_it_is_there() {
    let (store, mut holder) = (KeyStore::start("primary").await, Holder::start());
    wait_until("the holder listens", SOON, async || holder.process.log().contains("holding")).await;
    assert!(holder.process.stop().success(), "a signal ends it");
    let mut plugin = Plugin::start(&settings(&[&store], &holder.setting())).await;
    let key_id = plugin.wait_healthy().await;
    holder.process.restart();
    wait_handed_over(&plugin).await;
    store.faults.set(Fault::Silence);
    plugin.kill();
    plugin.restart().await;
    assert_eq!(plugin.wait_healthy().await, key_id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_that_answers_late_is_heard() {
    let (store, holder) = (KeyStore::start("primary").await, Holder::start());
    let mut plugin = Plugin::start(&settings(&[&store], &holder.setting())).await;
    let key_id = plugin.wait_healthy().await;
    wait_handed_over(&plugin).await;
    store.faults.set(Fault::Refuse);
    plugin.kill();
    holder.process.signal(rustix::process::Signal::STOP);
    plugin.restart().await;
    assert!(plugin.process.says("nothing is taken over from an earlier process"));
    assert!(plugin.status().await.is_none(), "no KEK answers, and no holder");
    holder.process.signal(rustix::process::Signal::CONT);
    assert_eq!(plugin.wait_healthy().await, key_id);
}

/// In memory and in the state folder.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_denied_is_not_left_for_the_next_process_beside_those_of_another_kek() {
    let (former, now, holder) = (KeyStore::start("former").await, KeyStore::start("now").await, Holder::start());
    let node = KeyringFile::create();
    let more = format!("{}\n{}", holder.setting(), sealed_by(&node));
    let mut plugin = Plugin::start(&settings(&[&former], &more)).await;
    let first = plugin.wait_healthy().await;
    reconfigure(&plugin, &settings(&[&now], &format!("{more}\nretired: [{}]", former.item())));
    wait_until("the other KEK is in use", SOON, async || plugin.wait_healthy().await != first).await;
    wait_handed_over(&plugin).await;
    now.allow(&[]).await;
    wait_for_state(&plugin, "stopped").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(plugin.folder().join("state/sealed").exists(), "the former key may still be used");
    former.faults.set(Fault::Refuse);
    now.faults.set(Fault::Refuse);
    plugin.kill();
    plugin.restart().await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(plugin.status().await.is_none(), "nothing was left of what was denied");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_of_another_user_is_told_nothing() {
    use std::os::unix::fs::PermissionsExt;
    let holder = Holder::start();
    let socket = holder.folder.path().join("hold.sock");
    wait_until("the holder listens", SOON, async || socket.exists()).await;
    // Even where somebody opened the way to it.
    for path in [holder.folder.path(), &socket] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    let path = socket.clone();
    let own = std::thread::spawn(move || asked(&path)).join().unwrap();
    assert_eq!(own, b"keHold1", "its own user is answered");
    let stranger = std::thread::spawn(move || {
        // Of this thread alone.
        let become_another = rustix::thread::set_thread_uid(rustix::thread::Uid::from_raw(65534));
        become_another.map(|()| asked(&socket))
    });
    match stranger.join().unwrap() {
        Ok(answer) => assert_eq!(answer, b"", "the connection is closed"),
        Err(error) => return eprintln!("NOT CHECKED: a peer of another user, as only root has one ({error})"),
    }
    wait_until("it says why", SOON, async || holder.process.log().contains("the other side runs as uid 65534")).await;
}

/// What the holder answers to the question for what it holds.
fn asked(socket: &std::path::Path) -> Vec<u8> {
    use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketType, connect, recv, send, socket as open};
    let peer = open(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    connect(&peer, &SocketAddrUnix::new(socket).unwrap()).unwrap();
    let _ = send(&peer, b"keHold1G\0\0\0\0\0\0\0\0", SendFlags::NOSIGNAL);
    let mut answer = [0; 64];
    let (length, _) = recv(&peer, &mut answer[..], RecvFlags::empty()).unwrap_or_default();
    answer[..length].to_vec()
}

/// Stores file descriptors by name, as systemd does (`sd_pid_notify_with_fds(3)`).
#[derive(Clone, Default)]
struct ServiceManager {
    stored: Arc<Mutex<Vec<(String, OwnedFd)>>>,
}

impl ServiceManager {
    fn listen(&self, socket: std::os::unix::net::UnixDatagram) {
        let stored = self.stored.clone();
        std::thread::spawn(move || {
            loop {
                let mut bytes = [0; 4096];
                let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
                let mut ancillary = RecvAncillaryBuffer::new(&mut space);
                let mut into = [std::io::IoSliceMut::new(&mut bytes)];
                let Ok(received) = recvmsg(&socket, &mut into, &mut ancillary, RecvFlags::CMSG_CLOEXEC) else { return };
                let descriptors: Vec<OwnedFd> = ancillary
                    .drain()
                    .filter_map(|message| match message {
                        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
                        _ => None,
                    })
                    .flatten()
                    .collect();
                let text = String::from_utf8_lossy(&bytes[..received.bytes]).into_owned();
                let name = text.lines().find_map(|line| line.strip_prefix("FDNAME=")).unwrap_or("stored").to_owned();
                let mut stored = stored.lock().unwrap();
                if text.contains("FDSTOREREMOVE=1") {
                    stored.retain(|(other, _)| *other != name);
                } else if text.contains("FDSTORE=1") {
                    stored.extend(descriptors.into_iter().map(|descriptor| (name.clone(), descriptor)));
                }
            }
        });
    }

    /// A shell's commands that open what is stored from 3 upwards, and name it as systemd does for a service.
    fn passing(&self) -> String {
        let stored = self.stored.lock().unwrap();
        let own = std::process::id();
        let opened = stored.iter().zip(3..).map(|((_, descriptor), number)| {
            format!("exec {number}</proc/{own}/fd/{}; ", std::os::fd::AsRawFd::as_raw_fd(descriptor))
        });
        let names: Vec<_> = stored.iter().map(|(name, _)| name.as_str()).collect();
        let variables = format!("export LISTEN_PID=$$ LISTEN_FDS={} LISTEN_FDNAMES={}; ", names.len(), names.join(":"));
        opened.collect::<String>() + &variables
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_with_every_kek_down_a_plugin_under_a_service_manager_goes_on() {
    let store = KeyStore::start("primary").await;
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("notify");
    let manager = ServiceManager::default();
    manager.listen(std::os::unix::net::UnixDatagram::bind(&socket).unwrap());
    let variable = [("NOTIFY_SOCKET", socket.to_str().unwrap())];
    let mut plugin = Plugin::spawn_with(&settings(&[&store], ""), &variable);
    plugin.wait_socket().await;
    let key_id = plugin.wait_healthy().await;
    wait_handed_over(&plugin).await;
    assert_eq!(manager.stored.lock().unwrap().len(), 1, "the former memory goes when the new one is there");
    store.faults.set(Fault::Silence);
    plugin.kill();

    let start = format!(
        "{}exec {} serve --config {}",
        manager.passing(),
        env!("CARGO_BIN_EXE_kube-envelope"),
        plugin.config_file().display()
    );
    let environment = vec![("NOTIFY_SOCKET".into(), socket.clone().into_os_string())];
    let log = folder.path().join("second.log");
    let mut second = Process::start("second", "bash".into(), vec!["-c".into(), start.into()], environment, log);
    assert_eq!(plugin.wait_healthy().await, key_id, "the same generation, with no KEK to ask");
    assert!(second.says("taken over from the process before this one"), "{}", second.log());
    second.stop();
}
