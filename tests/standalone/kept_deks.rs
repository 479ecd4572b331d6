//! A configuration and the DEKs that are kept: none is taken that leaves one without its KEK, and nobody is advised to
//! make a new key.

use std::time::Duration;

use serde_json::Value;

use crate::run;
use crate::support::plugin::proto::{DecryptRequest, EncryptRequest, EncryptResponse};
use crate::support::{KeyringFile, Plugin, wait_until};

pub const SOON: Duration = Duration::from_secs(15);
const SEED: &[u8] = &[9; 32];

fn item(name: &str, keyring: &KeyringFile) -> String {
    format!("{{name: {name}, keyring: {{file: {}}}}}", keyring.path().display())
}

fn lineage(keyring: &KeyringFile) -> String {
    let id = keyring.json()["id"].as_str().unwrap().to_owned();
    kube_envelope::kek::Lineage::derive("keyring", &[&id]).to_string()
}

/// Writes the configuration, and has it read.
fn configure(plugin: &Plugin, keks: &str, retired: &str, more: &str) {
    let file = plugin.config_file();
    let before = std::fs::read_to_string(&file).unwrap();
    let kept = before
        .lines()
        .filter(|line| !["keks:", "retired:", "forget:", "epoch:"].iter().any(|key| line.starts_with(key)));
    let kept = kept.collect::<Vec<_>>().join("\n");
    std::fs::write(&file, format!("{kept}\nkeks: [{keks}]\nretired: [{retired}]\n{more}\n")).unwrap();
    plugin.process.signal(rustix::process::Signal::HUP);
}

async fn start(keks: &str) -> Plugin {
    let plugin = Plugin::start(&format!("cluster: kept\nrefreshInterval: 1s\nkeks: [{keks}]")).await;
    plugin.wait_healthy().await;
    plugin
}

pub async fn encrypt(plugin: &Plugin) -> EncryptResponse {
    let request = EncryptRequest { plaintext: SEED.to_vec(), uid: "u".into() };
    plugin.client().await.unwrap().encrypt(request).await.unwrap().into_inner()
}

pub async fn opens(plugin: &Plugin, sealed: &EncryptResponse) -> bool {
    let EncryptResponse { ciphertext, key_id, annotations } = sealed.clone();
    let request = DecryptRequest { ciphertext, uid: "u".into(), key_id, annotations };
    let answer = plugin.client().await.unwrap().decrypt(request).await;
    answer.is_ok_and(|answer| answer.into_inner().plaintext == SEED)
}

pub fn report(plugin: &Plugin) -> Value {
    serde_json::from_str(&plugin.get("/status")).unwrap()
}

pub async fn wait_for_reason(plugin: &Plugin, text: &str) -> String {
    let mut reason = String::new();
    wait_until(text, SOON, async || {
        report(plugin)["reason"].as_str().unwrap_or_default().clone_into(&mut reason);
        reason.contains(text)
    })
    .await;
    reason
}

pub async fn wait_another(plugin: &Plugin, before: &str) -> String {
    wait_until("another key_id", SOON, async || plugin.wait_healthy().await != before).await;
    plugin.wait_healthy().await
}

#[tokio::test]
async fn a_reload_that_leaves_kept_deks_without_their_kek_is_refused_and_names_it() {
    let (a, b) = (KeyringFile::create(), KeyringFile::create());
    let plugin = start(&item("a", &a)).await;
    let key_id = plugin.wait_healthy().await;
    let sealed = encrypt(&plugin).await;
    configure(&plugin, &item("b", &b), "", "");
    let reason = wait_for_reason(&plugin, "the configuration on disk was refused").await;
    let named = format!("1 kept DEKs need KEK a (lineage {})", lineage(&a));
    assert!(reason.contains(&named) && reason.contains("put it under `retired`"), "{reason}");
    assert_eq!(plugin.wait_healthy().await, key_id, "the one in use stays");
    assert!(opens(&plugin, &sealed).await);
    assert!((plugin.metric("kube_envelope_config_reload_succeeded", &[]) - 0.0).abs() < 0.1);
    assert!((plugin.metric("kube_envelope_config_reloads_total", &["refused"]) - 1.0).abs() < 0.1);

    configure(&plugin, &item("b", &b), &item("a", &a), "");
    wait_another(&plugin, &key_id).await;
    assert!(opens(&plugin, &sealed).await);
    assert!((plugin.metric("kube_envelope_config_reload_succeeded", &[]) - 1.0).abs() < 0.1);
}

#[tokio::test]
async fn a_list_of_keks_that_is_changed_back_never_seals_under_a_kek_that_is_not_configured() {
    let (a, b) = (KeyringFile::create(), KeyringFile::create());
    let mut plugin = start(&item("a", &a)).await;
    let first = plugin.wait_healthy().await;
    configure(&plugin, &item("b", &b), &item("a", &a), "");
    let second = wait_another(&plugin, &first).await;
    let by_b = encrypt(&plugin).await;

    configure(&plugin, &item("a", &a), "", "");
    wait_for_reason(&plugin, "need KEK b").await;
    assert_eq!(plugin.wait_healthy().await, second, "refused: what b wrapped would be lost");
    configure(&plugin, &item("a", &a), &item("b", &b), "");
    assert_eq!(wait_another(&plugin, &second).await, first, "as on the nodes that never saw b");

    // The same at a start, which cannot be refused: what is there serves, and nothing is sealed under b.
    configure(&plugin, &item("a", &a), "", "");
    plugin.stop();
    plugin.restart().await;
    assert_eq!(plugin.wait_healthy().await, first);
    wait_for_reason(&plugin, "need KEK b").await;
    assert!(!opens(&plugin, &by_b).await);
    a.rotate();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(plugin.wait_healthy().await, first, "nothing new under a configuration that loses something");

    configure(&plugin, &item("a", &a), "", &format!("forget: [{}]", lineage(&b)));
    wait_another(&plugin, &first).await;
    wait_until("ready", SOON, async || report(&plugin)["state"] == "ready").await;
}

/// Field case N1.
#[tokio::test]
async fn a_keyring_that_was_made_anew_is_not_taken_for_the_former_one() {
    let keyring = KeyringFile::create();
    let mut plugin = start(&item("primary", &keyring)).await;
    let key_id = plugin.wait_healthy().await;
    let sealed = encrypt(&plugin).await;
    plugin.stop();
    let good = std::fs::read(keyring.path()).unwrap();
    std::fs::remove_file(keyring.path()).unwrap();
    plugin.restart().await;
    let lost = wait_for_reason(&plugin, "copy it here from another node or from its backup").await;

    let status = run(&["status", "--config", plugin.config_file().to_str().unwrap()]);
    assert!(status.out.contains("copy it here from another node"), "asked without the keyring (N5): {}", status.error);

    // Against all advice.
    keyring.command(&["create"], &[]);
    plugin.stop();
    plugin.restart().await;
    let replaced = wait_for_reason(&plugin, "KEK primary is a different key than before").await;
    assert!(plugin.status().await.is_none(), "not ready");
    assert!(replaced.contains("from another node or from its backup), or list it"), "{replaced}");
    let doctor = run(&["doctor", "--config", plugin.config_file().to_str().unwrap()]);
    assert_eq!(doctor.code, Some(1), "doctor finds nothing: {}", doctor.out);
    assert!(doctor.out.contains("it does not serve"), "{}", doctor.out);
    for text in [lost, replaced, plugin.process.log()] {
        assert!(!text.contains("create"), "{text}");
    }

    // The advice, obeyed; nobody restarts the plugin.
    std::fs::write(keyring.path(), &good).unwrap();
    assert_eq!(plugin.wait_healthy().await, key_id);
    assert!(opens(&plugin, &sealed).await);
    wait_until("ready", SOON, async || report(&plugin)["state"] == "ready").await;
}

#[tokio::test]
async fn a_wrong_keyring_under_a_running_plugin_is_never_used_and_the_right_one_serves_again_without_a_restart() {
    let (keyring, other) = (KeyringFile::create(), KeyringFile::create());
    let bounds = "refreshInterval: 1s\nproveInterval: 1s\nmaxOfflineAge: 4s";
    let plugin = Plugin::start(&format!("cluster: kept\n{bounds}\nkeks: [{}]", item("primary", &keyring))).await;
    let key_id = plugin.wait_healthy().await;
    let sealed = encrypt(&plugin).await;
    let good = std::fs::read(keyring.path()).unwrap();
    std::fs::copy(other.path(), keyring.path()).unwrap();
    wait_for_reason(&plugin, "is a different keyring now").await;
    wait_until("it stops", SOON, async || report(&plugin)["state"] == "stopped").await;
    assert!(plugin.status().await.is_none_or(|status| status.healthz != "ok"));

    std::fs::write(keyring.path(), good).unwrap();
    assert_eq!(plugin.wait_healthy().await, key_id);
    assert!(opens(&plugin, &sealed).await);
    let stored: Vec<_> = std::fs::read_dir(plugin.folder().join("state")).unwrap().flatten().collect();
    let deks = stored.iter().filter(|entry| entry.path().extension().is_some_and(|kind| kind == "dek")).count();
    assert_eq!(deks, 1, "nothing was made under the wrong one");
}

/// Field case F12, of a version that was taken away.
#[tokio::test]
async fn a_dek_that_lives_in_memory_only_is_told_before_a_restart_loses_it() {
    let keyring = KeyringFile::create();
    // A third of it, and not an hour, until the turn of a former version comes.
    let bounds = "refreshInterval: 1s\nmaxOfflineAge: 30s";
    let plugin = Plugin::start(&format!("cluster: kept\n{bounds}\nkeks: [{}]", item("primary", &keyring))).await;
    let first = plugin.wait_healthy().await;
    let sealed = encrypt(&plugin).await;
    keyring.rotate();
    wait_another(&plugin, &first).await;
    assert_eq!(report(&plugin)["state"], "ready");
    let good = std::fs::read(keyring.path()).unwrap();
    keyring.destroy_retired();
    let reason = wait_for_reason(&plugin, "live in memory only").await;
    assert!(reason.contains("run rotate-keys before any restart"), "{reason}");
    assert!((plugin.metric("kube_envelope_memory_only_deks", &[]) - 1.0).abs() < 0.1);
    assert!((plugin.metric("kube_envelope_kek_version_verdict", &["primary", "lost"]) - 1.0).abs() < 0.1);
    assert!(opens(&plugin, &sealed).await, "still");
    std::fs::write(keyring.path(), good).unwrap();
    wait_until("ready", SOON, async || report(&plugin)["state"] == "ready").await;
}

/// It may be the reason why the epoch was raised that what was sealed before it leaked.
#[tokio::test]
async fn an_epoch_that_is_lowered_brings_no_former_dek_back() {
    let a = KeyringFile::create();
    let mut plugin = start(&item("a", &a)).await;
    let first = plugin.wait_healthy().await;
    configure(&plugin, &item("a", &a), "", "epoch: 3");
    let raised = wait_another(&plugin, &first).await;
    let lowered = "epoch is 2, and this node has encrypted under epoch 3";
    configure(&plugin, &item("a", &a), "", "epoch: 2");
    let reason = wait_for_reason(&plugin, lowered).await;
    assert!(reason.contains("was refused") && reason.contains("set epoch to 3 or more"), "{reason}");
    assert!((plugin.metric("kube_envelope_config_reload_succeeded", &[]) - 0.0).abs() < 0.1);

    // A start cannot be refused: what is there serves, and nothing else is made.
    plugin.stop();
    plugin.restart().await;
    assert_eq!(plugin.wait_healthy().await, raised);
    wait_for_reason(&plugin, lowered).await;
    assert_eq!(report(&plugin)["state"], "degraded");
    a.rotate();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(encrypt(&plugin).await.key_id, raised);
    configure(&plugin, &item("a", &a), "", "epoch: 3");
    wait_another(&plugin, &raised).await;
    wait_until("ready", SOON, async || report(&plugin)["state"] == "ready").await;
}

#[tokio::test]
async fn a_retired_kek_whose_file_is_not_there_is_not_said_to_be_another_key() {
    let (a, b) = (KeyringFile::create(), KeyringFile::create());
    let mut plugin = start(&item("a", &a)).await;
    let first = plugin.wait_healthy().await;
    let sealed = encrypt(&plugin).await;
    let typo = a.path().with_extension("typo");
    let mistyped = format!("{{name: a, keyring: {{file: {}}}}}", typo.display());
    let missing = format!("keyring file {} does not exist", typo.display());
    for (keks, retired) in [(item("b", &b), mistyped.as_str()), (mistyped.clone(), "")] {
        configure(&plugin, &keks, retired, "");
        let reason = wait_for_reason(&plugin, &missing).await;
        assert!(reason.contains("was refused") && !reason.contains("different key"), "{reason}");
        assert!(!reason.contains("restart") && !reason.contains("forget"), "{reason}");
    }

    // The same at a start: it waits, and serves when the file is there.
    configure(&plugin, &item("b", &b), &mistyped, "");
    plugin.stop();
    plugin.restart().await;
    let reason = wait_for_reason(&plugin, &missing).await;
    assert!(!reason.contains("different key"), "{reason}");
    wait_until("the KEK's own error", SOON, async || {
        let keks = report(&plugin)["keks"].clone();
        let named = keks.as_array().into_iter().flatten().find(|kek| kek["name"] == "a").cloned();
        named.is_some_and(|kek| kek["error"].as_str().is_some_and(|error| error.contains(&missing)))
    })
    .await;
    std::fs::copy(a.path(), &typo).unwrap();
    std::fs::set_permissions(&typo, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    wait_another(&plugin, &first).await;
    assert!(opens(&plugin, &sealed).await);
}

#[tokio::test]
async fn a_second_plugin_on_the_same_state_folder_is_refused() {
    let keyring = KeyringFile::create();
    let plugin = start(&item("a", &keyring)).await;
    let folder = tempfile::tempdir().unwrap();
    let config = std::fs::read_to_string(plugin.config_file()).unwrap();
    let config = config.replace(plugin.socket().to_str().unwrap(), folder.path().join("kms.sock").to_str().unwrap());
    std::fs::write(folder.path().join("config.yaml"), config).unwrap();
    let ran = crate::run(&["serve", "--config", folder.path().join("config.yaml").to_str().unwrap()]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.error.contains("another kube-envelope process uses it"), "{}", ran.error);
}

/// Opening a FIFO that nobody reads hangs, as a file on a disk that does not answer.
#[tokio::test]
async fn a_state_folder_that_hangs_at_the_start_holds_up_nothing_and_is_taken_in_when_it_answers() {
    let keyring = KeyringFile::create();
    let mut plugin = start(&item("primary", &keyring)).await;
    let sealed = encrypt(&plugin).await;
    plugin.stop();
    let lock = plugin.folder().join("state/lock");
    std::fs::remove_file(&lock).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&lock).status().unwrap().success());
    plugin.restart().await;
    plugin.wait_healthy().await;
    assert_eq!(plugin.get("/livez"), "ok");
    assert!(opens(&plugin, &encrypt(&plugin).await).await && opens(&plugin, &sealed).await);
    wait_for_reason(&plugin, "stateDir").await;
    let reader = tokio::task::spawn_blocking(move || std::fs::File::open(lock).unwrap()).await.unwrap();
    wait_until("the folder is taken in", SOON, async || report(&plugin)["state"] == "ready").await;
    assert_eq!(report(&plugin)["deksKept"], 2, "the one of before, and the one of meanwhile");
    drop(reader);
}

#[tokio::test]
async fn a_dek_that_was_seen_at_the_very_end_is_remembered() {
    let keyring = KeyringFile::create();
    let (other, mut plugin) = (start(&item("primary", &keyring)).await, start(&item("primary", &keyring)).await);
    let sealed = encrypt(&other).await;
    assert!(opens(&plugin, &sealed).await);
    plugin.stop();
    let id = hex::encode(&sealed.ciphertext[3..19]);
    assert!(plugin.folder().join("state").join(format!("{id}.dek")).exists(), "{id}");
}

#[tokio::test]
async fn under_another_name_of_the_cluster_nothing_is_served_until_the_name_is_right_or_the_state_is_gone() {
    let keyring = KeyringFile::create();
    let mut plugin = start(&item("primary", &keyring)).await;
    let sealed = encrypt(&plugin).await;
    let right = std::fs::read_to_string(plugin.config_file()).unwrap();
    let wrong = right.replace("cluster: kept", "cluster: other");
    plugin.stop();
    std::fs::write(plugin.config_file(), &wrong).unwrap();
    plugin.restart().await;
    let reason = wait_for_reason(&plugin, "this node has encrypted for cluster \"kept\"").await;
    assert!(reason.contains("cluster is \"other\"") && reason.contains("empty stateDir"), "{reason}");
    assert!(
        plugin.status().await.is_none_or(|status| status.healthz != "ok"),
        "nothing is sealed for the wrong cluster"
    );

    plugin.stop();
    std::fs::write(plugin.config_file(), &right).unwrap();
    plugin.restart().await;
    plugin.wait_healthy().await;
    assert!(opens(&plugin, &sealed).await);

    // Another cluster on this machine.
    plugin.stop();
    std::fs::remove_dir_all(plugin.folder().join("state")).unwrap();
    std::fs::write(plugin.config_file(), &wrong).unwrap();
    plugin.restart().await;
    plugin.wait_healthy().await;
    assert!(!opens(&plugin, &sealed).await);
}
