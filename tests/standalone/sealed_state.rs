//! The sealed state of a plugin without a key store: the file, and what the configuration may say of it. What it is for:
//! `api_server/sealed_state.rs`.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use crate::support::{KeyringFile, Plugin, wait_until};
use crate::{path, run};

const SOON: Duration = Duration::from_secs(15);

fn sealed_by(node: &KeyringFile) -> String {
    format!("sealedState: {{kek: {{name: node, keyring: {{file: {}}}}}}}", node.path().display())
}

#[tokio::test]
async fn it_is_private_and_goes_with_the_setting() {
    let (keyring, node) = (KeyringFile::create(), KeyringFile::create());
    let mut plugin = Plugin::start(&format!("{}\n{}", keyring.settings("it"), sealed_by(&node))).await;
    plugin.wait_healthy().await;
    let file = plugin.folder().join("state/sealed");
    wait_until("it is sealed", SOON, async || file.exists()).await;
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let ends = || plugin.metric("kube_envelope_sealed_state_ends_timestamp_seconds", &[]);
    let now = jiff::Timestamp::now().as_second();
    wait_until("the metric says until when", SOON, async || ends() > f64::from(i32::try_from(now).unwrap())).await;
    assert!(plugin.process.says("sealed for a start after a reboot"));
    std::fs::remove_file(&file).unwrap();
    wait_until("it is sealed again, whoever removed it", Duration::from_mins(1), async || file.exists()).await;

    plugin.stop();
    assert!(file.exists(), "a reboot stops the plugin, too");
    let config = std::fs::read_to_string(plugin.config_file()).unwrap();
    std::fs::write(plugin.config_file(), config.replace(&sealed_by(&node), "")).unwrap();
    plugin.restart().await;
    plugin.wait_healthy().await;
    assert!(!file.exists(), "nobody would keep it up to date");
}

#[tokio::test]
async fn while_the_kek_of_this_machine_is_away_nothing_else_stops_and_then_it_is_sealed() {
    let (keyring, node) = (KeyringFile::create(), KeyringFile::create());
    let away = node.path().with_extension("away");
    std::fs::rename(node.path(), &away).unwrap();
    let plugin = Plugin::start(&format!("{}\n{}", keyring.settings("it"), sealed_by(&node))).await;
    plugin.wait_healthy().await;
    assert!(plugin.process.says("a start after a reboot will not find the keys of this one"));
    let file = plugin.folder().join("state/sealed");
    assert!(!file.exists());
    std::fs::rename(&away, node.path()).unwrap();
    wait_until("it is sealed", SOON, async || file.exists()).await;
}

/// Without its KEK what is sealed is lost: the metric says so with the log. And somebody may tidy the file away.
#[tokio::test]
async fn what_a_reboot_would_not_find_is_not_promised_and_a_removed_file_is_written_again() {
    let (keyring, node) = (KeyringFile::create(), KeyringFile::create());
    // Sealed again soon: that often is a 24th of the age.
    let sealed = sealed_by(&node).replace("}}}", "}}, maxAge: 1m}");
    let plugin = Plugin::start(&format!("{}\n{sealed}", keyring.settings("it"))).await;
    plugin.wait_healthy().await;
    let file = plugin.folder().join("state/sealed");
    let ends = || plugin.metric("kube_envelope_sealed_state_ends_timestamp_seconds", &[]);
    wait_until("it is sealed", SOON, async || file.exists() && ends() > 1.0).await;
    std::fs::remove_file(&file).unwrap();
    wait_until("it is sealed again", SOON, async || file.exists()).await;
    std::fs::remove_file(node.path()).unwrap();
    std::fs::remove_file(&file).unwrap();
    wait_until("nothing is promised", SOON, async || ends().abs() < 0.1).await;
    assert!(plugin.process.says("a start after a reboot will not find the keys of this one"));
}

#[test]
fn doctor_tries_the_kek_of_this_machine_and_says_for_how_long() {
    let (keyring, node) = (KeyringFile::create(), KeyringFile::create());
    let folder = tempfile::tempdir().unwrap();
    let (file, at) = (folder.path().join("config.yaml"), folder.path().display());
    let paths = format!("socket: {at}/kms.sock\nstateDir: {at}/state\nmaxOfflineAge: 5h\n");
    std::fs::write(&file, format!("{}\n{paths}{}\n", keyring.settings("c"), sealed_by(&node))).unwrap();
    let checked = || run(&["doctor", "--config", path(&file), "--output", "json"]);
    let result = |report: &serde_json::Value, check: &str| {
        let checks = report["checks"].as_array().unwrap();
        checks.iter().find(|one| one["check"] == check).unwrap()["result"].as_str().unwrap().to_owned()
    };
    let report: serde_json::Value = serde_json::from_str(&checked().out).unwrap();
    assert_eq!(report["settings"]["sealedState"], "by KEK node, for 5h");
    assert_eq!(result(&report, "KEK node: unwrap"), "ok");
    std::fs::remove_file(node.path()).unwrap();
    let report: serde_json::Value = serde_json::from_str(&checked().out).unwrap();
    assert_eq!(result(&report, "KEK node: version"), "failed");
}

#[test]
fn a_kek_that_wraps_what_is_in_etcd_is_refused() {
    let keyring = KeyringFile::create();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.yaml");
    let at = folder.path().display();
    let paths = format!("socket: {at}/kms.sock\nstateDir: {at}/state\n");
    std::fs::write(&file, format!("{}\n{paths}{}\n", keyring.settings("c"), sealed_by(&keyring))).unwrap();
    let ran = run(&["serve", "--config", path(&file)]);
    let problem = "is the same key as KEK primary, as far as the configuration tells; give it a key of its own";
    assert_eq!(ran.error, format!("error: {}: sealedState.kek: {problem}\n", file.display()));
    assert_eq!(ran.code, Some(2));
}
