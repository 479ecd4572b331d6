//! The state folder under a plugin: one that can only be read is read, one that was moved away, replaced or emptied is
//! written again, and what `/status` and the metrics say of it is true meanwhile.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use crate::kept_deks::{encrypt, opens, report, wait_another, wait_for_reason};
use crate::support::{KeyringFile, Plugin, wait_until};
use crate::{path, run};

/// The plugin looks again after a second, two, four, eight.
const SOON: Duration = Duration::from_secs(25);

fn settings(keyrings: &[&KeyringFile]) -> String {
    let keks = keyrings
        .iter()
        .enumerate()
        .map(|(number, keyring)| format!("{{name: kek{number}, keyring: {{file: {}}}}}", keyring.path().display()));
    format!("cluster: kept\nrefreshInterval: 1s\nkeks: [{}]", keks.collect::<Vec<_>>().join(", "))
}

fn mount(arguments: &[&str], at: &Path) {
    assert!(Command::new("mount").args(arguments).arg(at).status().unwrap().success(), "in the test's own namespace");
}

fn deks_in(folder: &Path) -> usize {
    let files = fs::read_dir(folder).into_iter().flatten();
    files.filter(|file| file.as_ref().unwrap().path().extension().is_some_and(|ending| ending == "dek")).count()
}

/// What the metric and `/status` say of it.
fn deks_kept(plugin: &Plugin) -> (u64, u64) {
    let metric = format!("{:.0}", plugin.metric("kube_envelope_kept_deks", &[]));
    (metric.parse().unwrap(), report(plugin)["deksKept"].as_u64().unwrap())
}

async fn wait_ready(plugin: &Plugin) {
    wait_until("ready", SOON, async || report(plugin)["state"] == "ready").await;
}

/// What is done to the folder, and how it is called.
type Damage = (&'static str, fn(&Path));

/// Another plugin on the same folder.
fn second(plugin: &Plugin) -> String {
    let folder = tempfile::tempdir().unwrap();
    let (socket, file) = (folder.path().join("kms.sock"), folder.path().join("config.yaml"));
    let config = fs::read_to_string(plugin.config_file()).unwrap();
    fs::write(&file, config.replace(path(&plugin.socket()), path(&socket))).unwrap();
    let ran = run(&["serve", "--config", path(&file)]);
    assert_eq!(ran.code, Some(1), "{}", ran.error);
    ran.error
}

/// A plugin that keeps two DEKs, its own and another node's, which it can read.
async fn keeping_two(settings: &str) -> (Plugin, Vec<crate::support::plugin::proto::EncryptResponse>) {
    let (other, plugin) = (Plugin::start(settings).await, Plugin::start(settings).await);
    other.wait_healthy().await;
    plugin.wait_healthy().await;
    let sealed = vec![encrypt(&other).await, encrypt(&plugin).await];
    assert!(opens(&plugin, &sealed[0]).await);
    wait_until("both are stored", SOON, async || deks_kept(&plugin) == (2, 2)).await;
    assert_eq!(deks_in(&plugin.folder().join("state")), 2);
    (plugin, sealed)
}

#[tokio::test]
async fn a_folder_that_can_only_be_read_serves_what_it_holds_while_one_of_two_keks_is_away() {
    let (a, b) = (KeyringFile::create(), KeyringFile::create());
    let (mut plugin, sealed) = keeping_two(&settings(&[&a, &b])).await;
    let key_id = plugin.wait_healthy().await;
    fs::rename(b.path(), b.path().with_extension("away")).unwrap();
    let state = plugin.folder().join("state");
    let (read_only, no_lock) = ("a file system that can only be read", "a lock that cannot be taken");
    for obstacle in [read_only, no_lock] {
        plugin.stop();
        if obstacle == read_only {
            mount(&["--bind", path(&state)], &state);
            mount(&["-o", "remount,ro,bind"], &state);
        } else {
            fs::remove_file(state.join("lock")).unwrap();
            fs::create_dir(state.join("lock")).unwrap();
        }
        plugin.restart().await;
        assert_eq!(plugin.wait_healthy().await, key_id, "{obstacle}");
        for sealed in &sealed {
            assert!(opens(&plugin, sealed).await, "{obstacle}");
        }
        let reason = wait_for_reason(&plugin, "stateDir cannot be written").await;
        assert!(reason.contains("what is new will be in memory alone"), "{reason}");
        assert_eq!(reason.contains("mount it so that it can be written"), obstacle == read_only, "{reason}");
        assert_eq!(deks_kept(&plugin), (2, 2), "{obstacle}");
        assert!(!plugin.process.log().contains("cannot be read") && !plugin.process.log().contains("was sealed"));
        if obstacle == read_only {
            assert!(Command::new("umount").arg(&state).status().unwrap().success());
        } else {
            fs::remove_dir(state.join("lock")).unwrap();
        }
        let gone = async || !report(&plugin)["reason"].as_str().unwrap_or_default().contains("stateDir");
        wait_until("it is used again", SOON, gone).await;
        assert!(state.join("lock").is_file(), "{obstacle}");
    }
}

#[tokio::test]
async fn a_folder_that_is_moved_away_or_emptied_is_written_again_and_locked_again() {
    let keyring = KeyringFile::create();
    let (mut plugin, sealed) = keeping_two(&settings(&[&keyring])).await;
    let key_id = plugin.wait_healthy().await;
    let state = plugin.folder().join("state");
    let whole = || deks_in(&state) == 2 && state.join("adopted").exists() && state.join("lock").exists();
    let damages: [Damage; 4] = [
        ("moved away", |state| fs::rename(state, state.with_extension("away")).unwrap()),
        ("replaced", |state| {
            fs::rename(state, state.with_extension("former")).unwrap();
            fs::create_dir(state).unwrap();
        }),
        ("emptied", |state| {
            fs::remove_dir_all(state).unwrap();
            fs::create_dir(state).unwrap();
        }),
        ("a file lost", |state| {
            let files = fs::read_dir(state).unwrap().map(|file| file.unwrap().path());
            let deks: Vec<PathBuf> = files.filter(|file| file.extension().is_some()).collect();
            fs::remove_file(&deks[0]).unwrap();
        }),
    ];
    for (damage, harm) in damages {
        harm(&state);
        wait_until(damage, SOON, async || whole()).await;
        wait_ready(&plugin).await;
        assert_eq!(deks_kept(&plugin), (2, 2), "{damage}");
        assert!(second(&plugin).contains("another kube-envelope process uses it"), "{damage}");
    }
    assert!(plugin.process.says("what stateDir held is not there any more"));
    plugin.stop();
    plugin.restart().await;
    assert_eq!(plugin.wait_healthy().await, key_id);
    for sealed in &sealed {
        assert!(opens(&plugin, sealed).await);
    }
}

#[tokio::test]
async fn while_the_folder_cannot_be_made_again_status_and_metrics_say_so() {
    let keyring = KeyringFile::create();
    let (plugin, sealed) = keeping_two(&settings(&[&keyring])).await;
    let first = plugin.wait_healthy().await;
    let (state, away) = (plugin.folder().join("state"), plugin.folder().join("away"));
    let in_the_way = plugin.folder().join("file");
    fs::write(&in_the_way, "a file").unwrap();
    fs::rename(&state, &away).unwrap();
    fs::rename(&in_the_way, &state).unwrap_or_else(|_| fs::write(&state, "a file").unwrap());
    if state.is_dir() {
        // The plugin was faster.
        fs::remove_dir_all(&state).unwrap();
        fs::write(&state, "a file").unwrap();
    }
    let reason = wait_for_reason(&plugin, "stateDir cannot be").await;
    assert!(reason.contains("remove what is in its place") && !reason.contains("make room"), "{reason}");
    assert_eq!(report(&plugin)["state"], "degraded");
    assert_eq!(deks_kept(&plugin), (0, 0));
    assert!(opens(&plugin, &sealed[0]).await && opens(&plugin, &encrypt(&plugin).await).await);
    // What was there may come back as it was: a restart would then go back.
    keyring.rotate();
    let reason = wait_for_reason(&plugin, "a restart would go back").await;
    assert!(!reason.contains("make room"), "{reason}");
    assert_eq!(plugin.wait_healthy().await, first);

    fs::remove_file(&state).unwrap();
    fs::rename(&away, &state).unwrap();
    wait_another(&plugin, &first).await;
    wait_ready(&plugin).await;
    assert_eq!(deks_kept(&plugin), (3, 3));
}

#[tokio::test]
async fn a_folder_that_another_process_took_is_left_to_it() {
    let keyring = KeyringFile::create();
    let (plugin, _) = keeping_two(&settings(&[&keyring])).await;
    let state = plugin.folder().join("state");
    let lock = fs::File::create(plugin.folder().join("lock")).unwrap();
    flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
    fs::rename(plugin.folder().join("lock"), state.join("lock")).unwrap();
    wait_for_reason(&plugin, "another kube-envelope process uses it").await;
    // Nothing is written beside it.
    fs::remove_file(state.join("adopted")).unwrap();
    wait_until("it is noticed", SOON, async || {
        report(&plugin)["reason"].as_str().unwrap_or_default().contains("what it should hold is in memory alone")
    })
    .await;
    assert!(!state.join("adopted").exists());
    drop(lock);
    wait_ready(&plugin).await;
    assert!(state.join("adopted").exists());
}

/// The sandbox lets it write in the folder that was there at the start: one of the same name is another one.
#[tokio::test]
async fn a_folder_that_the_sandbox_does_not_know_is_said_to_need_a_restart() {
    let keyring = KeyringFile::create();
    let elsewhere = tempfile::tempdir().unwrap();
    let state = elsewhere.path().join("state");
    let mut plugin = Plugin::start(&settings(&[&keyring])).await;
    let key_id = plugin.wait_healthy().await;
    plugin.stop();
    let config = fs::read_to_string(plugin.config_file()).unwrap();
    let former = plugin.folder().join("state");
    fs::write(plugin.config_file(), config.replace(path(&former), path(&state))).unwrap();
    plugin.restart().await;
    assert_eq!(plugin.wait_healthy().await, key_id);
    wait_ready(&plugin).await;
    fs::rename(&state, elsewhere.path().join("away")).unwrap();
    fs::create_dir(&state).unwrap();
    let reason = wait_for_reason(&plugin, "restart the plugin").await;
    assert!(reason.contains("stateDir cannot be written") && reason.contains("sandbox"), "{reason}");
    assert_eq!(deks_kept(&plugin), (0, 0));
    plugin.stop();
    plugin.restart().await;
    assert_eq!(plugin.wait_healthy().await, key_id);
    wait_ready(&plugin).await;
    assert_eq!(deks_in(&state), 1);
}
