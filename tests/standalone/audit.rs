//! The audit log: what it records, that a change shows, that it can be moved away, and what a full disk does.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tonic::Code;

use crate::support::plugin::SANDBOX;
use crate::support::plugin::proto::{DecryptRequest, EncryptRequest, EncryptResponse};
use crate::support::{KeyringFile, Plugin, wait_until};
use crate::{Ran, path, run};

const SOON: Duration = Duration::from_secs(20);

async fn plugin(keyring: &KeyringFile, log: &Path, required: bool) -> Plugin {
    let audit = format!("audit: {{ file: {}, required: {required} }}", log.display());
    let plugin = Plugin::start(&format!("{}\n{audit}", keyring.settings("audited"))).await;
    plugin.wait_healthy().await;
    plugin
}

async fn encrypt(plugin: &Plugin, uid: &str) -> Result<EncryptResponse, tonic::Status> {
    let request = EncryptRequest { plaintext: vec![7; 32], uid: uid.into() };
    plugin.client().await.unwrap().encrypt(request).await.map(tonic::Response::into_inner)
}

async fn decrypt(plugin: &Plugin, uid: &str, stored: &EncryptResponse) -> Result<(), tonic::Status> {
    let request = DecryptRequest {
        ciphertext: stored.ciphertext.clone(),
        uid: uid.into(),
        key_id: stored.key_id.clone(),
        annotations: stored.annotations.clone(),
    };
    plugin.client().await.unwrap().decrypt(request).await.map(|_| ())
}

fn records(log: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn events(log: &Path) -> Vec<String> {
    records(log).iter().map(|record| record["event"].as_str().unwrap().to_owned()).collect()
}

fn verify(files: &[&Path]) -> Ran {
    let files: Vec<_> = files.iter().map(|file| path(file)).collect();
    run(&[&["audit", "verify"], &files[..]].concat())
}

#[tokio::test]
async fn every_use_of_a_key_is_recorded_with_the_api_servers_uid_and_peer() {
    let (keyring, folder) = (KeyringFile::create(), tempfile::tempdir().unwrap());
    let logs = ["first", "second"].map(|name| folder.path().join(name).join("audit.jsonl"));
    let mut first = plugin(&keyring, &logs[0], false).await;
    let stored = encrypt(&first, "11111111-aaaa").await.unwrap();
    decrypt(&first, "not recorded: the DEK is in memory", &stored).await.unwrap();
    let copy = keyring.copied();
    let mut second = plugin(&copy, &logs[1], false).await;
    decrypt(&second, "22222222-bbbb", &stored).await.unwrap();
    decrypt(&second, "not recorded either", &stored).await.unwrap();
    first.stop();
    second.stop();
    assert_eq!(events(&logs[0]), ["start", "adopted", "encrypt", "stop"]);
    assert_eq!(events(&logs[1]), ["start", "adopted", "decrypt", "stop"]);
    for (log, uid) in logs.iter().zip(["11111111-aaaa", "22222222-bbbb"]) {
        let used = &records(log)[2];
        assert_eq!((&used["uid"], &used["keyId"]), (&uid.into(), &stored.key_id.clone().into()));
        assert_eq!(used["peer"]["uid"], rustix::process::geteuid().as_raw());
        assert_eq!(used["dekId"].as_str().unwrap().len(), 32);
        assert_eq!(
            std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(log).unwrap().permissions()) & 0o777,
            0o600
        );
        let ran = verify(&[log]);
        assert!(ran.code == Some(0) && ran.out.contains("whole, up to record 4"), "{}{}", ran.out, ran.error);
    }
}

#[tokio::test]
async fn an_edit_a_gap_and_a_cut_are_found_by_the_command_and_a_cut_by_the_plugin() {
    let (keyring, folder) = (KeyringFile::create(), tempfile::tempdir().unwrap());
    let log = folder.path().join("audit.jsonl");
    let mut plugin = plugin(&keyring, &log, false).await;
    for number in 0..5 {
        encrypt(&plugin, &format!("uid-{number}")).await.unwrap();
    }
    plugin.stop();
    let whole = std::fs::read_to_string(&log).unwrap();
    let without = |skipped: usize| {
        whole
            .lines()
            .enumerate()
            .filter(|(at, _)| *at != skipped)
            .flat_map(|(_, line)| [line, "\n"])
            .collect::<String>()
    };
    let cut: String = whole.lines().take(5).flat_map(|line| [line, "\n"]).collect();
    for (changed, what) in [
        (whole.replace("uid-3", "uid-4"), "was changed"),
        (without(4), "records 5 to 5 are missing"),
        (cut.clone(), "ends at record 5, but record 8 had been written"),
    ] {
        std::fs::write(&log, changed).unwrap();
        let ran = verify(&[&log]);
        assert!(ran.code == Some(1) && ran.out.contains(what) && ran.out.contains("NOT whole"), "{what}: {}", ran.out);
    }
    plugin.restart().await;
    wait_until("the plugin says so", SOON, async || events(&log).contains(&"truncated".into())).await;
    assert!(plugin.process.says("the audit log was truncated or changed"), "{}", plugin.process.log_tail());
}

/// As logrotate does it, without a signal: the file is renamed, and the plugin makes a new one.
#[tokio::test]
async fn a_log_that_is_moved_away_goes_on_in_a_new_file_as_one_chain() {
    let (keyring, folder) = (KeyringFile::create(), tempfile::tempdir().unwrap());
    let (log, moved) = (folder.path().join("audit.jsonl"), folder.path().join("audit.jsonl.1"));
    let mut plugin = plugin(&keyring, &log, true).await;
    encrypt(&plugin, "before").await.unwrap();
    std::fs::rename(&log, &moved).unwrap();
    encrypt(&plugin, "after").await.unwrap();
    assert_eq!(events(&log), ["encrypt"]);
    plugin.stop();
    std::fs::rename(&log, folder.path().join("audit.jsonl.2")).unwrap();
    plugin.restart().await;
    plugin.wait_healthy().await;
    plugin.stop();
    let ran = verify(&[&moved, &folder.path().join("audit.jsonl.2"), &log]);
    assert!(ran.code == Some(0), "{}{}", ran.out, ran.error);
    let ran = verify(&[&moved, &log]);
    assert!(ran.code == Some(1) && ran.out.contains("are missing"), "{}", ran.out);
}

/// A file system of 64 KiB, which is filled up.
struct Small(PathBuf);

impl Small {
    fn mount(folder: &Path) -> Self {
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(folder).status().unwrap();
        assert!(mounted.success(), "run as root, through scripts/in-netns");
        Self(folder.to_owned())
    }

    fn fill(&self) {
        let mut content = vec![0; 64 * 1024];
        while std::fs::write(self.0.join("filler"), &content).is_err() {
            content.truncate(content.len() - 4096);
        }
    }

    fn empty(&self) {
        std::fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-l"]).arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_full_disk_blocks_nothing_and_what_was_lost_is_noted() {
    let (keyring, folder) = (KeyringFile::create(), tempfile::tempdir().unwrap());
    let disk = Small::mount(folder.path());
    let log = folder.path().join("audit.jsonl");
    let plugin = plugin(&keyring, &log, false).await;
    wait_until("the start is recorded", SOON, async || events(&log).len() == 2).await;
    disk.fill();
    for number in 0..50 {
        let stored = encrypt(&plugin, &format!("{number}-{}", "x".repeat(200))).await.unwrap();
        decrypt(&plugin, "u", &stored).await.unwrap();
    }
    wait_until("it is said", SOON, async || plugin.metric("kube_envelope_audit_failing", &[]).to_string() == "1").await;
    assert!(plugin.get("/status").contains("No space left on device"), "{}", plugin.get("/status"));
    disk.empty();
    wait_until("it is noted", SOON, async || events(&log).contains(&"lost".into())).await;
    let all = records(&log);
    let recorded = all.iter().filter(|record| record["event"] == "encrypt").count() as u64;
    let lost: u64 = all.iter().filter(|record| record["event"] == "lost").map(|r| r["records"].as_u64().unwrap()).sum();
    assert_eq!(recorded + lost, 50, "{all:?}");
    let ran = verify(&[&log]);
    assert_eq!(ran.code, Some(0), "{}", ran.out);
}

#[tokio::test]
async fn with_audit_required_no_key_is_used_unrecorded() {
    let (keyring, folder) = (KeyringFile::create(), tempfile::tempdir().unwrap());
    let disk = Small::mount(folder.path());
    let log = folder.path().join("audit.jsonl");
    let plugin = plugin(&keyring, &log, true).await;
    let stored = encrypt(&plugin, "before").await.unwrap();
    disk.fill();
    let mut refused = None;
    for _ in 0..50 {
        // The last block of the file has room for some.
        refused = encrypt(&plugin, &"x".repeat(64)).await.err();
        if refused.is_some() {
            break;
        }
    }
    let refused = refused.expect("refused");
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("audit.required"), "{refused:?}");
    assert!(plugin.get("/status").contains("audit.required is set"), "{}", plugin.get("/status"));
    let (is_ready, said) = plugin.readyz();
    assert!(!is_ready && said.contains("audit.required is set"), "{said}");
    decrypt(&plugin, "u", &stored).await.expect("what needs no record goes on");
    disk.empty();
    wait_until("it is written again", SOON, async || encrypt(&plugin, "after").await.is_ok()).await;
    assert!(plugin.readyz().0, "{}", plugin.readyz().1);
    assert_eq!(verify(&[&log]).code, Some(0));
}

/// With the folder go the log and the head beside it: the chain goes on from what the plugin knows, and does not begin anew as
/// if nothing had been.
#[tokio::test]
async fn a_folder_that_is_removed_and_made_again_does_not_begin_the_chain_anew() {
    let (keyring, folder) = (KeyringFile::create(), tempfile::tempdir().unwrap());
    let (logs, log) = (folder.path().join("logs"), folder.path().join("logs/audit.jsonl"));
    // In its sandbox a plugin may write into the folder that was there at its start, and not into another of its name.
    let mut plugin = plugin(&keyring, &log, false).await;
    plugin.stop();
    let text = std::fs::read_to_string(plugin.config_file()).unwrap();
    std::fs::write(plugin.config_file(), text.replace(SANDBOX, "sandbox: { enabled: false }")).unwrap();
    std::fs::remove_dir_all(&logs).unwrap();
    plugin.restart().await;
    plugin.wait_healthy().await;
    wait_until("the start is recorded", SOON, async || events(&log).len() == 2).await;
    let failing = async |value: &str| plugin.metric("kube_envelope_audit_failing", &[]).to_string() == value;
    std::fs::remove_dir_all(&logs).unwrap();
    encrypt(&plugin, "lost").await.unwrap();
    wait_until("it is said", SOON, async || failing("1").await).await;
    std::fs::create_dir(&logs).unwrap();
    wait_until("it goes on", SOON, async || failing("0").await && events(&log).contains(&"lost".into())).await;
    assert_eq!(records(&log)[0]["seq"], 3, "{:?}", records(&log));
}

/// What is written into a pipe is with whoever reads it, if anybody does.
#[tokio::test]
async fn a_pipe_in_the_place_of_the_log_takes_no_record() {
    let (keyring, folder) = (KeyringFile::create(), tempfile::tempdir().unwrap());
    let log = folder.path().join("audit.jsonl");
    assert!(Command::new("mkfifo").arg(&log).status().unwrap().success());
    let plugin = plugin(&keyring, &log, false).await;
    encrypt(&plugin, "u").await.unwrap();
    wait_until("it is said", SOON, async || plugin.get("/status").contains("not a regular file")).await;
    let lost = async || plugin.metric("kube_envelope_audit_lost_records", &[]) >= 3.0;
    wait_until("start, adoption and Encrypt are lost", SOON, lost).await;
}
