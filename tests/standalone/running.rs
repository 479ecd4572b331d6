//! `serve --dev`, reloads of a running plugin, and `status` of one.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::support::plugin::proto::{DecryptRequest, EncryptRequest, EncryptResponse};
use crate::support::{self, KeyringFile, Plugin, Process, wait_until};
use crate::{path, run};

const FOLLOWED_WITHIN: Duration = Duration::from_secs(15);
#[tokio::test]
async fn serve_dev_makes_all_it_needs_checks_itself_and_reuses_it() {
    support::prepare();
    let folder = tempfile::tempdir().unwrap();
    let dev = folder.path().join("dev");
    let arguments = ["serve".into(), "--dev".into(), dev.clone().into()].to_vec();
    let binary = PathBuf::from(env!("CARGO_BIN_EXE_kube-envelope"));
    let mut process = Process::start("dev", binary, arguments, Vec::new(), folder.path().join("log"));
    let self_checks = |log: &str| log.lines().filter(|line| line.starts_with("self-check through")).count();
    wait_until("the self-check", FOLLOWED_WITHIN, async || self_checks(&process.log()) == 1).await;
    let keyring = std::fs::read(dev.join("keyring.json")).unwrap();
    // Somebody breaks the configuration while the plugin runs.
    let broken = folder.path().join("broken.yaml");
    std::fs::write(&broken, "cluster: [\n").unwrap();
    let ran = run(&["status", "--config", path(&broken)]);
    assert_eq!(ran.code, Some(0), "{}", ran.error);
    assert!(ran.error.contains("broken.yaml:1") && ran.error.contains("default address"), "{}", ran.error);
    assert_eq!(std::fs::metadata(dev.join("keyring.json")).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::metadata(&dev).unwrap().permissions().mode() & 0o777, 0o700);
    let other = dev.with_extension("other");
    let arguments = ["serve".into(), "--dev".into(), other.clone().into()].to_vec();
    let binary = PathBuf::from(env!("CARGO_BIN_EXE_kube-envelope"));
    let mut second = Process::start("dev", binary, arguments, Vec::new(), folder.path().join("second-log"));
    wait_until("the other's self-check", FOLLOWED_WITHIN, async || self_checks(&second.log()) == 1).await;
    let states = [&dev, &other].map(|folder| run(&["status", "--config", path(&folder.join("config.yaml"))]).out);
    let key_id = |state: &String| state.lines().find(|line| line.contains(" key_id ")).map(str::to_owned);
    assert!(key_id(&states[0]).is_some() && key_id(&states[1]).is_some(), "{states:?}");
    assert_ne!(key_id(&states[0]), key_id(&states[1]), "each answers for itself");
    assert!(!second.log().contains("cannot serve health.listen"), "{}", second.log());
    assert!(second.stop().success());
    assert!(process.stop().success());
    process.restart();
    wait_until("the second self-check", FOLLOWED_WITHIN, async || self_checks(&process.log()) == 2).await;
    assert!(process.stop().success());
    assert_eq!(std::fs::read(dev.join("keyring.json")).unwrap(), keyring, "reused");

    let for_api_server = std::fs::read_to_string(dev.join("encryption-configuration.yaml")).unwrap();
    assert!(process.log().contains(&for_api_server), "the file that is shown is written");
    for unusable in ["/proc/nope", path(&dev.join("keyring.json"))] {
        let ran = run(&["serve", "--dev", unusable]);
        assert!(ran.error.contains(unusable) && ran.error.contains("name one that is yours"), "{}", ran.error);
    }

    let log = process.log();
    let socket = dev.canonicalize().unwrap().join("kms.sock");
    assert!(log.contains("NOT FOR PRODUCTION"), "{log}");
    assert!(log.contains("kind: EncryptionConfiguration"), "{log}");
    assert!(log.contains(&format!("endpoint: \"unix://{}\"", socket.display())), "{log}");
    assert!(log.contains("Status ok, Encrypt ok, Decrypt ok"), "{log}");
    let key_ids: Vec<_> = log.split("; key_id ").skip(1).map(|rest| rest.split(',').next().unwrap()).collect();
    assert_eq!(key_ids.len(), 2);
    assert_eq!(key_ids[0], key_ids[1], "the same generation");
}

#[tokio::test]
async fn sighup_with_a_bad_configuration_keeps_the_one_in_use() {
    let keyring = KeyringFile::create();
    let mut plugin = Plugin::start(&keyring.settings("reload")).await;
    let key_id = plugin.wait_healthy().await;
    let good = std::fs::read_to_string(plugin.config_file()).unwrap();
    std::fs::write(plugin.config_file(), format!("{good}epoch: many\n")).unwrap();
    plugin.process.signal(rustix::process::Signal::HUP);
    let refused = async || plugin.process.log().contains("new configuration refused; the one in use stays");
    wait_until("the refusal", FOLLOWED_WITHIN, refused).await;
    assert!(plugin.process.says("epoch: must be a whole number, not negative"), "{}", plugin.process.log());
    assert_eq!(plugin.wait_healthy().await, key_id);
    assert!(plugin.process.is_running());
}

/// The change and its signal come at any moment from the start on: never does the signal end the process, nor is the
/// change lost.
#[tokio::test]
async fn sighup_at_any_moment_of_the_start_reloads() {
    let keyring = KeyringFile::create();
    let mut plugin = Plugin::start(&keyring.settings("early")).await;
    let mut key_id = plugin.wait_healthy().await;
    let text = std::fs::read_to_string(plugin.config_file()).unwrap();
    for round in 0..6_u64 {
        plugin.stop();
        plugin.process.restart();
        wait_until("the signal is handled", FOLLOWED_WITHIN, async || handles(&plugin, Signal::HUP)).await;
        tokio::time::sleep(Duration::from_millis(round * round * 10)).await;
        std::fs::write(plugin.config_file(), format!("{text}epoch: {}\n", round + 2)).unwrap();
        plugin.process.signal(Signal::HUP);
        let followed = async || plugin.status().await.is_some_and(|status| status.key_id != key_id);
        // Less than the time after which the file would be read without a signal.
        wait_until("the new epoch is followed", Duration::from_secs(8), followed).await;
        key_id = plugin.wait_healthy().await;
    }
}

/// A stop that comes while the plugin starts is not forgotten.
#[tokio::test]
async fn sigterm_at_any_moment_of_the_start_ends_it() {
    let keyring = KeyringFile::create();
    let mut plugin = Plugin::start(&keyring.settings("early")).await;
    for round in 0..100 {
        plugin.stop();
        plugin.process.restart();
        let began = Instant::now();
        while !handles(&plugin, Signal::TERM) {
            assert!(began.elapsed() < FOLLOWED_WITHIN, "SIGTERM is not handled");
        }
        std::thread::sleep(Duration::from_micros(round * 500));
    }
}

/// Whether the plugin's process has a handler of this signal.
fn handles(plugin: &Plugin, signal: Signal) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{}/status", plugin.process.id())).unwrap();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap().trim();
    u64::from_str_radix(caught, 16).unwrap() >> (signal.as_raw() - 1) & 1 == 1
}

#[tokio::test]
async fn systemd_is_told_that_the_plugin_is_alive() {
    let keyring = KeyringFile::create();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("notify.sock");
    let systemd = std::os::unix::net::UnixDatagram::bind(&socket).unwrap();
    systemd.set_read_timeout(Some(support::STARTS_WITHIN)).unwrap();
    let environment = [("NOTIFY_SOCKET", path(&socket)), ("WATCHDOG_USEC", "1000000")];
    let _plugin = Plugin::spawn_with(&keyring.settings("watched"), &environment);
    let mut told = Vec::new();
    let alive = |told: &[String]| told.iter().filter(|message| *message == "WATCHDOG=1").count();
    while alive(&told) < 3 {
        let mut message = [0; 256];
        let length = systemd.recv(&mut message).unwrap();
        told.push(String::from_utf8_lossy(&message[..length]).trim().to_owned());
    }
    assert!(told.iter().any(|message| message == "READY=1"), "{told:?}");
}

#[tokio::test]
async fn sighup_with_another_kek_makes_a_generation_of_both() {
    let (keyring, other) = (KeyringFile::create(), KeyringFile::create());
    let plugin = Plugin::start(&keyring.settings("reload")).await;
    let before = plugin.wait_healthy().await;
    let good = std::fs::read_to_string(plugin.config_file()).unwrap();
    let added = format!("keks: [{{name: second, keyring: {{file: {}}}}}, ", other.path().display());
    std::fs::write(plugin.config_file(), good.replace("keks: [", &added)).unwrap();
    plugin.process.signal(rustix::process::Signal::HUP);
    wait_until("another key_id", FOLLOWED_WITHIN, async || plugin.wait_healthy().await != before).await;
    let report: Value = serde_json::from_str(&plugin.get("/status")).unwrap();
    let names: Vec<_> = report["keks"].as_array().unwrap().iter().map(|kek| kek["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["second", "primary"]);
}

/// As the kubelet does it: the file is a symlink into a folder that is swapped for another. No signal is sent.
#[tokio::test]
async fn a_configuration_behind_a_swapped_symlink_is_followed_without_a_signal() {
    let keyring = KeyringFile::create();
    let mut plugin = Plugin::start(&keyring.settings("swapped")).await;
    let before = plugin.wait_healthy().await;
    plugin.stop();
    let (file, data) = (plugin.config_file(), plugin.folder().join("..data"));
    let text = std::fs::read_to_string(&file).unwrap();
    for (version, epoch) in [("v1", 1), ("v2", 2)] {
        let folder = plugin.folder().join(version);
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("config.yaml"), format!("{text}epoch: {epoch}\n")).unwrap();
    }
    std::os::unix::fs::symlink("v1", &data).unwrap();
    std::fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink("..data/config.yaml", &file).unwrap();
    plugin.restart().await;
    assert_eq!(plugin.wait_healthy().await, before);

    let swap = plugin.folder().join("..swap");
    std::os::unix::fs::symlink("v2", &swap).unwrap();
    std::fs::rename(swap, data).unwrap();
    let followed = async || plugin.wait_healthy().await != before;
    wait_until("the new epoch is followed", Duration::from_secs(30), followed).await;
}

#[tokio::test]
async fn sighup_names_what_only_a_restart_changes() {
    let keyring = KeyringFile::create();
    let plugin = Plugin::start(&keyring.settings("reload")).await;
    plugin.wait_healthy().await;
    let good = std::fs::read_to_string(plugin.config_file()).unwrap();
    std::fs::write(plugin.config_file(), format!("{good}socketMode: '0660'\n")).unwrap();
    plugin.process.signal(Signal::HUP);
    let told = async || plugin.process.log().contains("takes effect only after a restart field=\"socketMode\"");
    wait_until("the warning", FOLLOWED_WITHIN, told).await;
}

/// What is encrypted is bound to the name: with another one, nothing of it would open after the next restart.
#[tokio::test]
async fn another_name_for_the_cluster_is_refused_while_the_plugin_runs_and_doctor_tells() {
    let keyring = KeyringFile::create();
    let plugin = Plugin::start(&keyring.settings("reload")).await;
    let key_id = plugin.wait_healthy().await;
    let good = std::fs::read_to_string(plugin.config_file()).unwrap();
    let other = format!("{}epoch: 2\n", good.replace("cluster: reload", "cluster: other"));
    std::fs::write(plugin.config_file(), other).unwrap();
    plugin.process.signal(Signal::HUP);
    let refused = async || plugin.process.log().contains("put the former name back");
    wait_until("the refusal", FOLLOWED_WITHIN, refused).await;
    assert_eq!(plugin.metric("kube_envelope_config_reload_succeeded", &[]).to_bits(), 0);
    assert_eq!(plugin.wait_healthy().await, key_id, "nothing of it is taken");
    let doctor = run(&["doctor", "--config", path(&plugin.config_file())]);
    let said = doctor.out.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(said.contains("it serves cluster \"reload\", and the configuration says \"other\""), "{said}");
}

/// What is written in its place, half a line at a time, is half a configuration for a moment, which may be a good one.
#[tokio::test]
async fn a_file_that_is_still_being_written_is_not_taken() {
    let (keyring, second) = (KeyringFile::create(), KeyringFile::create());
    let both = format!(
        "cluster: reload\nkeks:\n- {{ name: a, keyring: {{ file: {} }} }}\n- {{ name: b, keyring: {{ file: {} }} }}",
        keyring.path().display(),
        second.path().display()
    );
    let plugin = Plugin::start(&both).await;
    let key_id = plugin.wait_healthy().await;
    let text = std::fs::read_to_string(plugin.config_file()).unwrap();
    // Its first lines are what a plugin needs, but for the second KEK.
    let line = text.lines().find(|line| line.contains("name: b")).unwrap();
    let others = text.replace(&format!("{line}\n"), "");
    // The file is read every 10 s, and a second later again.
    let end = Instant::now() + Duration::from_secs(23);
    while Instant::now() < end {
        std::fs::write(plugin.config_file(), &others).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        std::fs::write(plugin.config_file(), &text).unwrap();
        std::thread::sleep(Duration::from_millis(400));
        assert_eq!(plugin.status().await.unwrap().key_id, key_id);
    }
}

/// Reading it would wait for somebody who writes.
#[tokio::test]
async fn a_configuration_that_is_no_file_or_endless_is_refused_and_a_later_one_taken() {
    let keyring = KeyringFile::create();
    let plugin = Plugin::start(&keyring.settings("reload")).await;
    let key_id = plugin.wait_healthy().await;
    let (file, good) = (plugin.config_file(), std::fs::read_to_string(plugin.config_file()).unwrap());
    for (made, why) in [
        ("mkfifo \"$0\"", "not a regular file"),
        ("ln -s /dev/zero \"$0\"", "not a regular file"),
        ("yes > \"$0\" & sleep 0.5; kill $!", "is longer than 1048576 bytes"),
    ] {
        std::fs::remove_file(&file).unwrap();
        assert!(std::process::Command::new("sh").args(["-c", made, path(&file)]).status().unwrap().success());
        plugin.process.signal(Signal::HUP);
        wait_until(made, FOLLOWED_WITHIN, async || plugin.process.log().contains(why)).await;
        assert_eq!(plugin.metric("kube_envelope_config_reload_succeeded", &[]).to_bits(), 0);
        let ended = run(&["doctor", "--config", path(&file)]);
        assert!(ended.error.contains(why), "{}", ended.error);
    }
    std::fs::remove_file(&file).unwrap();
    std::fs::write(&file, format!("{good}epoch: 2\n")).unwrap();
    plugin.process.signal(Signal::HUP);
    wait_until("the good one is taken", FOLLOWED_WITHIN, async || plugin.wait_healthy().await != key_id).await;
}

#[tokio::test]
async fn status_shows_a_running_plugin_as_table_and_json() {
    let (keyring, retired) = (KeyringFile::create(), KeyringFile::create());
    let old = format!("\nretired: [{{ name: old, keyring: {{ file: {} }} }}]", retired.path().display());
    let plugin = Plugin::start(&(keyring.settings("shown") + &old)).await;
    let key_id = plugin.wait_healthy().await;
    let config = plugin.config_file();
    let table = run(&["status", "--config", path(&config)]);
    assert_eq!((table.code, table.error.as_str()), (Some(0), ""));
    let rows: Vec<Vec<_>> = table.out.lines().map(|line| line.split_whitespace().collect()).collect();
    for row in [["state", "ready"], ["reason", "-"], ["cluster", "shown"], ["key_id", &key_id]] {
        assert!(rows.contains(&row.to_vec()), "{row:?} in {}", table.out);
    }
    assert!(rows.contains(&["KEK", "VERSION", "LAST", "CONTACT", "ERROR"].to_vec()), "{}", table.out);
    assert!(rows.iter().any(|row| row.starts_with(&["old", "(retired)"])), "{}", table.out);

    let json = run(&["status", "--config", path(&config), "--output", "json"]);
    let report: Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!((json.code, &report["state"], &report["keyId"]), (Some(0), &"ready".into(), &key_id.into()));
    assert_eq!(report["keks"][0]["version"], keyring.json()["versions"][0]["id"]);
}

#[tokio::test]
async fn status_without_a_plugin_is_exit_1_and_says_where_it_looked() {
    let keyring = KeyringFile::create();
    let mut plugin = Plugin::start(&keyring.settings("absent")).await;
    let address = plugin.health_url();
    plugin.stop();
    let ran = run(&["status", "--config", path(&plugin.config_file())]);
    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""));
    assert_eq!(
        ran.error,
        format!("error: no plugin answers at {address}/status; is it running?: Connection refused (os error 111)\n")
    );
}

/// Only syntax is fatal: what a KEK needs may come at any moment.
#[tokio::test]
async fn a_keyring_file_that_is_missing_at_the_start_is_waited_for_and_named() {
    let keyring = KeyringFile::create();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("later.json");
    let settings = format!("cluster: c\nkeks: [{{ name: late, keyring: {{ file: {} }} }}]", file.display());
    let mut plugin = Plugin::spawn(&settings);
    plugin.wait_socket().await;
    wait_until("the reason", FOLLOWED_WITHIN, async || {
        let status: Value = serde_json::from_str(&plugin.get("/status")).unwrap_or_default();
        let reason = status["reason"].as_str().unwrap_or_default().to_owned();
        reason.contains("KEK late") && reason.contains(path(&file))
    })
    .await;
    std::fs::copy(keyring.path(), &file).unwrap();
    plugin.wait_healthy().await;
    assert!(plugin.process.is_running());
}

#[cfg(feature = "transit")]
#[tokio::test]
async fn a_token_file_that_is_missing_costs_its_own_kek_alone() {
    let keyring = KeyringFile::create();
    let mut plugin = Plugin::start(&keyring.settings("missing-token")).await;
    let key_id = plugin.wait_healthy().await;
    plugin.stop();
    let good = std::fs::read_to_string(plugin.config_file()).unwrap();
    let transit = "transit: {addresses: ['https://127.0.0.1:1'], key: k, auth: {tokenFile: /nonexistent/token}}";
    std::fs::write(plugin.config_file(), format!("{good}\nretired: [{{name: away, {transit}}}]\n")).unwrap();
    plugin.restart().await;
    assert_eq!(plugin.wait_healthy().await, key_id);
}

/// The key_id does not tell: it names the KEKs, and these are the same.
#[tokio::test]
async fn nodes_that_call_the_cluster_otherwise_say_so_once_one_reads_what_the_other_sealed() {
    let keyring = KeyringFile::create();
    let settings = |cluster: &str| format!("{}\nrefreshInterval: 1s", keyring.settings(cluster));
    let (one, other) = (Plugin::start(&settings("field")).await, Plugin::start(&settings("fields")).await);
    assert_eq!(one.wait_healthy().await, other.wait_healthy().await);
    let request = EncryptRequest { plaintext: vec![7; 32], uid: "u".into() };
    let sealed = one.client().await.unwrap().encrypt(request).await.unwrap().into_inner();
    let EncryptResponse { ciphertext, key_id, annotations } = sealed;
    let request = DecryptRequest { ciphertext, uid: "u".into(), key_id, annotations };
    assert!(other.client().await.unwrap().decrypt(request).await.is_err());
    wait_until("it is said", FOLLOWED_WITHIN, async || {
        let status: Value = serde_json::from_str(&other.get("/status")).unwrap();
        let reason = status["reason"].as_str().unwrap_or_default();
        status["state"] == "degraded" && ["\"field\"", "\"fields\""].iter().all(|name| reason.contains(name))
    })
    .await;
}
