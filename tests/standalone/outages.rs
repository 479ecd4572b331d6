//! Cells of the README's outage table that need neither a key store nor an API server: a disk that stops answering, a
//! machine that stood still, a stored DEK that is lost, a machine without room for another thread.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::kept_deks::{SOON, encrypt, opens, report, wait_another, wait_for_reason};
use crate::path;
use crate::support::plugin::proto::StatusRequest;
use crate::support::{KeyringFile, Plugin, wait_until};

/// Faults of the machine under one plugin.
struct Machine {
    folder: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (source, library) = (folder.path().join("libc.c"), folder.path().join("libc.so"));
        std::fs::write(&source, include_str!("outages/faulty_libc.c")).unwrap();
        let mut build = Command::new("cc");
        build.args(["-shared", "-fPIC", "-O1", "-o"]).args([&library, &source]).arg("-ldl");
        assert!(build.status().unwrap().success());
        Self { folder }
    }

    fn spawn(&self, settings: &str) -> Plugin {
        let library = self.folder.path().join("libc.so");
        Plugin::spawn_with(settings, &[("LD_PRELOAD", path(&library)), ("FAULTS", path(self.folder.path()))])
    }

    fn set(&self, fault: &str) {
        std::fs::write(self.folder.path().join(fault), "").unwrap();
    }

    fn clear(&self, fault: &str) {
        std::fs::remove_file(self.folder.path().join(fault)).unwrap();
    }
}

fn is_stored(plugin: &Plugin, sealed: &[u8]) -> bool {
    plugin.folder().join("state").join(format!("{}.dek", hex::encode(&sealed[3..19]))).exists()
}

/// A call that waited for the disk would never be answered: it hangs until all of them were.
#[tokio::test]
async fn a_disk_that_hangs_while_running_delays_no_rpc_and_no_probe_and_a_restart_serves_what_is_on_it() {
    let (machine, keyring) = (Machine::new(), KeyringFile::create());
    let settings = format!("{}\nrefreshInterval: 1s", keyring.settings("kept"));
    let (other, mut plugin) = (Plugin::start(&settings).await, machine.spawn(&settings));
    other.wait_healthy().await;
    let theirs = encrypt(&other).await;
    let first = plugin.wait_healthy().await;
    wait_until("ready", SOON, async || report(&plugin)["state"] == "ready").await;
    let ours = encrypt(&plugin).await;

    machine.set("sync-hangs");
    assert!(opens(&plugin, &theirs).await, "another node's DEK, which is to be kept");
    // A generation that is published once it is stored.
    keyring.rotate();
    wait_for_reason(&plugin, "stateDir is slow").await;
    for _ in 0..20 {
        let status = plugin.client().await.unwrap().status(StatusRequest {}).await.unwrap().into_inner();
        assert_eq!((status.healthz.as_str(), &status.key_id), ("ok", &first));
        assert!(opens(&plugin, &encrypt(&plugin).await).await && opens(&plugin, &ours).await);
        assert!(opens(&plugin, &theirs).await);
        assert_eq!((plugin.get("/livez").as_str(), plugin.get("/readyz").as_str()), ("ok", "ok"));
    }
    assert!(is_stored(&plugin, &ours.ciphertext) && !is_stored(&plugin, &theirs.ciphertext));

    plugin.kill();
    plugin.restart().await;
    assert_eq!(plugin.wait_healthy().await, first);
    assert!(opens(&plugin, &ours).await && opens(&plugin, &theirs).await);
    machine.clear("sync-hangs");
    wait_another(&plugin, &first).await;
    wait_until("ready", SOON, async || report(&plugin)["state"] == "ready").await;
    wait_until("it is kept", SOON, async || is_stored(&plugin, &theirs.ciphertext)).await;
}

/// What a suspended machine is to a process: it stands still, and the clock does not. That the clock in use goes on in a
/// real suspension is the kernel's word (`CLOCK_BOOTTIME`).
#[tokio::test]
async fn a_process_that_stood_still_for_longer_than_max_offline_age_serves_nothing_before_a_kek_unwraps() {
    let keyring = KeyringFile::create();
    let bounds = "refreshInterval: 1s\nmaxOfflineAge: 5s";
    let mut plugin = Plugin::start(&format!("{}\n{bounds}", keyring.settings("kept"))).await;
    let key_id = plugin.wait_healthy().await;
    let sealed = encrypt(&plugin).await;
    plugin.process.signal(Signal::STOP);
    let away = keyring.path().with_extension("away");
    std::fs::rename(keyring.path(), &away).unwrap();
    tokio::time::sleep(Duration::from_secs(6)).await;
    plugin.process.signal(Signal::CONT);
    // From the first call on, also before the loop has had a turn. Connections that seeds went through are closed.
    wait_until("Status refuses", SOON, async || {
        let refused = match plugin.client().await {
            Some(mut client) => client.status(StatusRequest {}).await.expect_err("no KEK answers").code(),
            None => return false,
        };
        refused == tonic::Code::Unavailable
    })
    .await;
    assert!(!opens(&plugin, &sealed).await);
    std::fs::rename(&away, keyring.path()).unwrap();
    assert_eq!(plugin.wait_healthy().await, key_id);
    assert!(opens(&plugin, &sealed).await);
    plugin.kill();
    plugin.restart().await;
    assert_eq!(plugin.wait_healthy().await, key_id);
    assert!(opens(&plugin, &sealed).await);
}

#[tokio::test]
async fn a_stored_dek_that_no_kek_unwraps_is_named_after_a_restart_and_the_others_are_read() {
    let keyring = KeyringFile::create();
    let settings = format!("{}\nrefreshInterval: 1s", keyring.settings("kept"));
    let (other, mut plugin) = (Plugin::start(&settings).await, Plugin::start(&settings).await);
    other.wait_healthy().await;
    let first = plugin.wait_healthy().await;
    let lost = encrypt(&plugin).await;
    // Another node's, of the same version.
    assert!(opens(&plugin, &encrypt(&other).await).await);
    wait_until("it is kept", SOON, async || report(&plugin)["deksKept"] == 2).await;
    keyring.rotate();
    let second = wait_another(&plugin, &first).await;
    let sealed = encrypt(&plugin).await;
    keyring.destroy_retired();
    plugin.stop();
    plugin.restart().await;
    assert_eq!(plugin.wait_healthy().await, second);
    assert!(opens(&plugin, &sealed).await && !opens(&plugin, &lost).await);
    wait_until("it is told", SOON, async || report(&plugin)["state"] == "degraded").await;
    wait_until("both are counted", SOON, async || (plugin.metric("kube_envelope_missing_deks", &[]) - 2.0).abs() < 0.1)
        .await;
    // Field case N21: once for the version, however many there are and however often they are tried.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(plugin.process.log().matches("a kept DEK is not in memory").count(), 1, "{}", plugin.process.log());
}

/// Field case N21. An older copy of the keyring in the place of the right one: nothing is served, which is told once.
#[tokio::test]
async fn a_newest_key_that_is_lost_is_told_once_however_often_it_is_tried() {
    let keyring = KeyringFile::create();
    let mut plugin = Plugin::start(&format!("{}\nrefreshInterval: 1s", keyring.settings("kept"))).await;
    let first = plugin.wait_healthy().await;
    let (old, good) = (keyring.json(), {
        keyring.rotate();
        keyring.json()
    });
    let second = wait_another(&plugin, &first).await;
    plugin.stop();
    keyring.replace(&old);
    plugin.restart().await;
    let told = "the stored key of the newest generation is lost";
    wait_until("it is told", SOON, async || plugin.process.log().contains(told)).await;
    // It is tried again each ten seconds.
    tokio::time::sleep(Duration::from_secs(13)).await;
    assert_eq!(plugin.process.log().matches(told).count(), 1, "{}", plugin.process.log());
    assert!(plugin.status().await.is_none_or(|status| status.healthz != "ok"), "an older version is not gone back to");
    keyring.replace(&good);
    assert_eq!(plugin.wait_healthy().await, second);
}

/// Nothing is left that kills a background task but a machine on which nothing goes any more.
#[tokio::test]
async fn a_background_task_that_dies_ends_the_process_with_a_message() {
    let (machine, keyring) = (Machine::new(), KeyringFile::create());
    // Nothing but the look at the configuration file, every 10 s, needs a thread meanwhile.
    let mut plugin = machine.spawn(&format!("{}\nrefreshInterval: 10m", keyring.settings("kept")));
    plugin.wait_healthy().await;
    machine.set("no-threads");
    let ended = plugin.process.wait(Duration::from_mins(3));
    assert_eq!(ended.code(), Some(1), "not by the panic itself, nor by a signal");
    let log = plugin.process.log();
    assert!(log.contains("a background task failed") && log.contains("must be restarted"), "{log}");
    machine.clear("no-threads");
    plugin.restart().await;
    plugin.wait_healthy().await;
}

/// A full pipe as standard error: who writes a line waits. A closed one: who writes is refused.
#[tokio::test]
async fn logs_that_nobody_reads_hold_up_no_rpc_and_a_reader_that_is_gone_ends_nothing() {
    let keyring = KeyringFile::create();
    let mut plugin = Plugin::start(&format!("{}\nrefreshInterval: 1s", keyring.settings("kept"))).await;
    let first = plugin.wait_healthy().await;
    let sealed = encrypt(&plugin).await;
    plugin.stop();
    let log = plugin.folder().join("kube-envelope.log");
    std::fs::remove_file(&log).unwrap();
    assert!(Command::new("mkfifo").arg(&log).status().unwrap().success());
    let end = |options: &mut OpenOptions| -> File { options.custom_flags(libc::O_NONBLOCK).open(&log).unwrap() };
    let mut reader = end(OpenOptions::new().read(true));
    let mut writer = end(OpenOptions::new().write(true));
    while writer.write(&[b'x'; 4096]).is_ok() {}
    drop(writer);
    plugin.process.restart();
    // Both ends are open. A test that fails shows the log, and would wait for more of it.
    std::fs::remove_file(&log).unwrap();
    assert_eq!(plugin.wait_healthy().await, first);
    // Adopting tells of itself, on the threads that answer.
    for _ in 0..3 {
        let former = plugin.wait_healthy().await;
        keyring.rotate();
        wait_another(&plugin, &former).await;
        assert!(opens(&plugin, &sealed).await);
        assert_eq!(plugin.get("/livez"), "ok");
    }
    let mut text = Vec::new();
    wait_until("the lines are there once somebody reads", SOON, async || {
        let _ = reader.read_to_end(&mut text);
        String::from_utf8_lossy(&text).contains("listening")
    })
    .await;
    drop(reader);
    let former = plugin.wait_healthy().await;
    keyring.rotate();
    wait_another(&plugin, &former).await;
    assert!(opens(&plugin, &sealed).await && plugin.stop().success());
}
