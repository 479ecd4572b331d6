//! Exact output and exit code of `serve` with a configuration that cannot work, of `serve --dev`, of a reload, and of
//! `status` and `keyring`: one behaviour a test, on the real binary.
#![allow(clippy::unwrap_used, missing_docs)]
mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use kube_envelope::kek::KINDS;
use serde_json::Value;
use support::{KeyringFile, Plugin, Process, wait_until};

const FOLLOWED_WITHIN: Duration = Duration::from_secs(15);

/// What a run of the binary gave.
struct Ran {
    code: Option<i32>,
    out: String,
    error: String,
}

fn run(arguments: &[&str]) -> Ran {
    let output = Command::new(env!("CARGO_BIN_EXE_kube-envelope")).args(arguments).output().unwrap();
    Ran {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        error: String::from_utf8(output.stderr).unwrap(),
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs `serve` with a configuration; `KEYRING` in it stands for a good keyring file and `FOLDER` for a folder. It must
/// end with exit code 2 and exactly these lines, and touch nothing.
fn refused(config: &str, lines: &[&str]) {
    let keyring = KeyringFile::create();
    let folder = tempfile::tempdir().unwrap();
    let filled = |text: &str| text.replace("KEYRING", path(&keyring.path())).replace("FOLDER", path(folder.path()));
    let file = folder.path().join("config.yaml");
    std::fs::write(&file, filled(config)).unwrap();
    let ran = run(&["serve", "--config", path(&file)]);
    let expected: Vec<String> = lines.iter().map(|line| format!("{}:{}", file.display(), filled(line))).collect();
    assert_eq!(ran.error, format!("error: {}\n", expected.join("\n")));
    assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""));
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["config.yaml"], "nothing was made");
}

/// A configuration whose first line is `line`, and which is good otherwise.
fn with(line: &str) -> String {
    let mut config = format!("{line}\n");
    for good in [
        "cluster: c",
        "keks: [{name: a, keyring: {file: KEYRING}}]",
        "socket: FOLDER/kms.sock",
        "stateDir: FOLDER/state",
    ] {
        let field = good.split(':').next().unwrap();
        if !line.starts_with(&format!("{field}:")) {
            config.push_str(good);
            config.push('\n');
        }
    }
    config
}

#[test]
fn an_unknown_field_is_refused_with_the_known_ones() {
    refused(
        &with("clutser: c"),
        &["1:1: clutser: is no field; the fields here are cluster, epoch, socket, allowedUids, stateDir, keks, \
           retired, maxOfflineAge, refreshInterval, proveInterval, health"],
    );
}

#[test]
fn an_unknown_field_of_a_kek_is_refused_with_its_path() {
    refused(
        &with("keks:\n  - name: a\n    keyring:\n      file: KEYRING\n      mode: 3"),
        &["5:7: keks.keyring.mode: is no field; the fields here are file"],
    );
}

#[test]
fn an_unknown_kind_is_refused_with_the_known_ones() {
    let kinds = format!("2:19: keks.cloudKms: is no field; the fields here are name, {}", KINDS.join(", "));
    refused(&with("keks:\n  - {name: a,     cloudKms: {}}"), &[&kinds]);
}

#[test]
fn a_kek_of_no_kind_is_refused() {
    let line = format!("2:5: keks[0]: KEK \"a\" names no kind; add one of: {}", KINDS.join(", "));
    refused(&with("keks:\n  - name: a"), &[&line]);
}

#[cfg(feature = "transit")]
#[test]
fn a_kek_of_two_kinds_is_refused() {
    refused(
        &with(
            "keks:\n  - name: a\n    keyring: {file: KEYRING}\n    transit: {addresses: [\"https://v\"], key: k, \
             auth: {tokenFile: /t}}",
        ),
        &["2:5: keks[0]: KEK \"a\" names several kinds (keyring, transit); give each its own item under keks"],
    );
}

#[test]
fn a_missing_keyring_file_is_refused_with_the_command_that_makes_it() {
    refused(
        &with("keks:\n  - name: a\n    keyring: {file: FOLDER/none}"),
        &["2:5: keks[0].keyring.file: keyring file FOLDER/none does not exist; make it with: \
           kube-envelope keyring create FOLDER/none"],
    );
}

#[test]
fn a_keyring_file_that_others_can_read_is_refused_with_the_fix() {
    let keyring = KeyringFile::create();
    let file = keyring.path();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
    let file = file.display();
    refused(
        &with(&format!("keks:\n  - name: a\n    keyring: {{file: {file}}}")),
        &[&format!(
            "2:5: keks[0].keyring.file: keyring file {file} has mode 0640: others can read it; fix with: chmod 0600 {file}"
        )],
    );
}

#[test]
fn a_damaged_keyring_file_is_refused_and_not_quoted() {
    let keyring = KeyringFile::create();
    let mut json = keyring.json();
    json["versions"][0]["key"] = "c2VjcmV0".into();
    keyring.replace(&json);
    let file = keyring.path();
    let file = file.display();
    let text = std::fs::read_to_string(keyring.path()).unwrap();
    let column = text.find("c2VjcmV0\"").unwrap() + "c2VjcmV0\"".len();
    refused(
        &with(&format!("keks:\n  - name: a\n    keyring: {{file: {file}}}")),
        &[&format!(
            "2:5: keks[0].keyring.file: {file} is not a keyring file (line 1, column {column}); restore it from its backup"
        )],
    );
}

#[test]
fn an_empty_list_of_keks_is_refused() {
    refused(&with("keks: []"), &["1:7: keks: lists no KEK; add at least one"]);
}

#[test]
fn a_missing_field_is_named() {
    refused("cluster: c\n", &["1:1: keks: is missing; add it"]);
}

#[test]
fn a_kek_without_a_name_is_refused() {
    refused(&with("keks:\n  - keyring: {file: KEYRING}"), &["2:5: keks.name: is missing; add it"]);
}

#[test]
fn two_keks_of_one_name_are_refused() {
    refused(
        &with("keks:\n  - {name: a, keyring: {file: KEYRING}}\n  - {name: a, keyring: {file: KEYRING}}"),
        &["3:5: keks[1].name: \"a\" is empty or used twice; give each KEK its own name"],
    );
}

#[test]
fn one_keyring_under_two_names_is_refused() {
    let keyring = KeyringFile::create();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.yaml");
    let kek = |name: &str| format!("  - {{name: {name}, keyring: {{file: {}}}}}\n", keyring.path().display());
    let at = folder.path().display();
    let paths = format!("socket: {at}/kms.sock\nstateDir: {at}/state\n");
    std::fs::write(&file, format!("cluster: c\n{paths}keks:\n{}{}", kek("a"), kek("b"))).unwrap();
    let ran = run(&["serve", "--config", path(&file)]);
    assert_eq!(
        ran.error,
        format!(
            "error: {}: KEK b: is the same key as KEK a, as far as the configuration tells; remove one of them\n",
            file.display()
        )
    );
    assert_eq!(ran.code, Some(2));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing was made");
}

#[test]
fn a_socket_path_that_is_too_long_is_refused() {
    let long = format!("/{}", "s".repeat(107));
    refused(
        &with(&format!("socket: {long}")),
        &["1:9: socket: is 108 bytes long, and unix sockets allow 107; choose a shorter path"],
    );
}

#[test]
fn relative_paths_are_refused() {
    refused(&with("socket: kms.sock"), &["1:9: socket: must be an absolute path: the API server's endpoint names it"]);
    refused(&with("stateDir: state"), &["1:11: stateDir: must be an absolute path"]);
}

#[test]
fn a_duration_that_is_none_is_refused_with_examples() {
    refused(
        &with("maxOfflineAge: 3 parsecs"),
        &["1:16: maxOfflineAge: \"3 parsecs\" is not a duration (unknown time unit \"parsecs\", supported units: ns, \
           us/µs, ms, sec, min, hours, days, weeks, months, years (and few variations)); write for example 30s, 10m or \
           24h"],
    );
}

#[test]
fn a_duration_without_a_unit_is_refused() {
    refused(
        &with("proveInterval: 5"),
        &[
            "1:16: proveInterval: \"5\" is not a duration (time unit needed, for example 5sec or 5ms); write for example \
           30s, 10m or 24h",
        ],
    );
}

#[test]
fn a_duration_outside_its_bounds_is_refused_with_them() {
    refused(&with("refreshInterval: 1ms"), &["1:18: refreshInterval: \"1ms\" is outside 1s to 1h"]);
}

#[test]
fn a_cluster_name_that_cannot_be_is_refused() {
    for name in ["\"\"", "\"two words\"", "zürich", &"c".repeat(64)] {
        refused(
            &with(&format!("cluster: {name}")),
            &["1:10: cluster: must be 1 to 63 letters, digits, '-', '.' or '_'; it is bound into every ciphertext"],
        );
    }
}

#[test]
fn an_epoch_that_is_no_number_or_zero_is_refused() {
    for epoch in ["-1", "1.5", "yes", "NO", "true", "first"] {
        refused(&with(&format!("epoch: {epoch}")), &["1:8: epoch: must be a whole number, not negative"]);
    }
    refused(&with("epoch: 0"), &["1:8: epoch: must be 1 or more"]);
}

#[test]
fn a_uid_that_is_none_is_refused() {
    refused(&with("allowedUids: [root]"), &["1:15: allowedUids: must be a whole number, not negative"]);
}

#[test]
fn a_listen_address_that_is_none_is_refused_with_an_example() {
    refused(
        &with("health: {listen: localhost}"),
        &["1:18: health.listen: \"localhost\" is not an address and port; write for example 127.0.0.1:8380"],
    );
}

#[test]
fn a_value_of_the_wrong_form_is_refused_with_the_right_one() {
    refused(&with("keks: {name: a}"), &["1:7: keks: must be a list (- item)"]);
    refused(&with("cluster: [c]"), &["1:10: cluster: must be a text, in quotes where it has special characters"]);
    refused(&with("health: on"), &["1:9: health: must be a table of fields (name: value)"]);
    refused("- cluster: c\n", &["1:1: must be a table of fields (name: value)"]);
}

#[test]
fn a_field_without_a_value_is_refused() {
    refused(&with("cluster:"), &["1:8: cluster: has no value; write one, in quotes where it is the word null"]);
}

#[test]
fn a_field_that_stands_there_twice_is_refused() {
    refused(&(with("cluster: c") + "cluster: d\n"), &["5:1: cluster: stands there twice; remove one"]);
}

/// The Norway problem: a bare `NO` is a text here, and becomes no boolean.
#[test]
fn a_cluster_of_the_name_no_is_a_text() {
    refused(&(with("cluster: NO") + "epoch: 0\n"), &["5:8: epoch: must be 1 or more"]);
}

#[test]
fn every_wrong_value_is_told_at_once() {
    refused(
        &with("epoch: 0\nproveInterval: 1ms\nhealth: {listen: x}"),
        &[
            "1:8: epoch: must be 1 or more",
            "2:16: proveInterval: \"1ms\" is outside 1s to 1day",
            "3:18: health.listen: \"x\" is not an address and port; write for example 127.0.0.1:8380",
        ],
    );
}

#[test]
fn an_empty_file_is_refused() {
    refused("", &["1:1: the file ends before a configuration begins"]);
}

#[test]
fn a_file_that_is_not_there_is_refused_with_the_flag_that_names_another() {
    let ran = run(&["serve", "--config", "/nonexistent/config.yaml"]);
    assert_eq!(
        ran.error,
        "error: cannot read configuration /nonexistent/config.yaml; name another one with --config: No such file or \
         directory (os error 2)\n"
    );
    assert_eq!(ran.code, Some(2));
}

#[test]
fn a_command_that_does_not_exist_is_a_usage_error() {
    let ran = run(&["server"]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.error.contains("'serve'"), "a similar one is proposed: {}", ran.error);
}

#[test]
fn dev_and_config_exclude_each_other() {
    let ran = run(&["serve", "--dev", "/d", "--config", "/c"]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.error.contains("'--dev <DIR>' cannot be used with '--config <CONFIG>'"), "{}", ran.error);
}

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
    assert_eq!(std::fs::metadata(dev.join("keyring.json")).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::metadata(&dev).unwrap().permissions().mode() & 0o777, 0o700);
    assert!(process.stop().success());
    process.restart();
    wait_until("the second self-check", FOLLOWED_WITHIN, async || self_checks(&process.log()) == 2).await;
    assert!(process.stop().success());
    assert_eq!(std::fs::read(dev.join("keyring.json")).unwrap(), keyring, "reused");

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
    assert!(plugin.process.log().contains("epoch: must be a whole number, not negative"), "{}", plugin.process.log());
    assert_eq!(plugin.wait_healthy().await, key_id);
    assert!(plugin.process.is_running());
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
    std::fs::write(plugin.config_file(), good.replace("cluster: reload", "cluster: other")).unwrap();
    plugin.process.signal(rustix::process::Signal::HUP);
    let told = async || plugin.process.log().contains("takes effect only after a restart field=\"cluster\"");
    wait_until("the warning", FOLLOWED_WITHIN, told).await;
}

#[tokio::test]
async fn status_shows_a_running_plugin_as_table_and_json() {
    let keyring = KeyringFile::create();
    let plugin = Plugin::start(&keyring.settings("shown")).await;
    let key_id = plugin.wait_healthy().await;
    let config = plugin.config_file();
    let table = run(&["status", "--config", path(&config)]);
    assert_eq!((table.code, table.error.as_str()), (Some(0), ""));
    let rows: Vec<Vec<_>> = table.out.lines().map(|line| line.split_whitespace().collect()).collect();
    for row in [["state", "ready"], ["reason", "-"], ["cluster", "shown"], ["key_id", &key_id]] {
        assert!(rows.contains(&row.to_vec()), "{row:?} in {}", table.out);
    }
    assert!(rows.contains(&["KEK", "VERSION", "LAST", "CONTACT", "ERROR"].to_vec()), "{}", table.out);

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

#[test]
fn keyring_create_makes_a_private_file_and_says_the_next_step() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("k");
    let ran = run(&["keyring", "create", path(&file)]);
    let json: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let id = json["versions"][0]["id"].as_str().unwrap();
    assert_eq!(
        ran.out,
        format!(
            "created {} with active version {id}\nnext: copy it to every control-plane node, mode 0600, and keep a backup: \
             without it nothing opens\n",
            file.display()
        )
    );
    assert_eq!((ran.code, ran.error.as_str()), (Some(0), ""));
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
}

#[test]
fn keyring_create_never_overwrites() {
    let folder = tempfile::tempdir().unwrap();
    let (file, dangling) = (folder.path().join("k"), folder.path().join("link"));
    std::fs::write(&file, "precious").unwrap();
    std::os::unix::fs::symlink(folder.path().join("nowhere"), &dangling).unwrap();
    for taken in [&file, &dangling] {
        let ran = run(&["keyring", "create", path(taken)]);
        let name = taken.display();
        assert_eq!(
            ran.error,
            format!(
                "error: {name} exists already; choose another name, or add a version with: kube-envelope keyring add {name}\n"
            )
        );
        assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""));
    }
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    assert!(!folder.path().join("nowhere").exists());
}

fn states(keyring: &KeyringFile) -> Vec<String> {
    let json = keyring.json();
    let versions = json["versions"].as_array().unwrap();
    versions.iter().map(|version| version["state"].as_str().unwrap().to_owned()).collect()
}

fn id(keyring: &KeyringFile, index: usize) -> String {
    keyring.json()["versions"][index]["id"].as_str().unwrap().to_owned()
}

#[test]
fn keyring_versions_go_from_pending_to_active_to_retired_to_gone() {
    let keyring = KeyringFile::create();
    let file = keyring.path();
    let added = run(&["keyring", "add", path(&file)]);
    let second = id(&keyring, 1);
    assert_eq!(
        added.out,
        format!(
            "added pending version {second}\nnext: copy the file to every node, then: kube-envelope keyring activate {} \
             {second}\n",
            file.display()
        )
    );
    assert_eq!(states(&keyring), ["active", "pending"]);
    let activated = run(&["keyring", "activate", path(&file)]);
    assert_eq!(
        activated.out,
        format!(
            "version {second} is active\nnext: copy the file to every node; each plugin follows within its refreshInterval\n"
        )
    );
    assert_eq!(states(&keyring), ["retired", "active"]);
    let first = id(&keyring, 0);
    let destroyed = run(&["keyring", "destroy", path(&file), &first]);
    assert_eq!(destroyed.out, format!("version {first} is destroyed\n"));
    assert_eq!(states(&keyring), ["active"]);
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn keyring_retire_gives_up_a_pending_version() {
    let keyring = KeyringFile::create();
    keyring.command(&["add"], &[]);
    let pending = id(&keyring, 1);
    let ran = run(&["keyring", "retire", path(&keyring.path()), &pending]);
    assert_eq!((ran.code, ran.out), (Some(0), format!("version {pending} is retired\n")));
    assert_eq!(states(&keyring), ["active", "retired"]);
}

/// Runs a change that is refused: exit 1, exactly this line, and the file as it was.
fn refused_change(keyring: &KeyringFile, arguments: &[&str], error: &str) {
    let file = keyring.path();
    let before = std::fs::read(&file).unwrap();
    let all = [&["keyring", arguments[0], path(&file)], &arguments[1..]].concat();
    let ran = run(&all);
    assert_eq!(ran.error, format!("error: {error}\n"));
    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""));
    assert_eq!(std::fs::read(&file).unwrap(), before);
}

#[test]
fn keyring_changes_that_would_lose_data_or_reuse_a_version_are_refused() {
    let keyring = KeyringFile::create();
    let first = id(&keyring, 0);
    refused_change(&keyring, &["activate"], "no version is pending; add one with: kube-envelope keyring add");
    refused_change(&keyring, &["activate", "abc"], "the keyring has no version \"abc\"");
    refused_change(
        &keyring,
        &["retire", &first],
        &format!("version {first} is active; activate another one, which retires it"),
    );
    refused_change(
        &keyring,
        &["destroy", &first],
        &format!("version {first} is active; only a retired version can be destroyed"),
    );
    keyring.rotate();
    refused_change(
        &keyring,
        &["activate", &first],
        &format!(
            "version {first} is retired; only a pending version can be activated (add one with: kube-envelope keyring add)"
        ),
    );
    keyring.command(&["add"], &[]);
    keyring.command(&["add"], &[]);
    refused_change(
        &keyring,
        &["activate"],
        "several versions are pending; name the one to activate (see: kube-envelope keyring list)",
    );
}

#[test]
fn keyring_list_shows_versions_and_no_key() {
    let keyring = KeyringFile::create();
    keyring.rotate();
    let file = keyring.path();
    let table = run(&["keyring", "list", path(&file)]);
    let rows: Vec<Vec<String>> =
        table.out.lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect();
    assert_eq!(rows[0], ["VERSION", "STATE", "CREATED"]);
    assert_eq!(rows[1][..2], [id(&keyring, 0), "retired".into()]);
    assert_eq!(rows[2][..2], [id(&keyring, 1), "active".into()]);
    let json = run(&["keyring", "list", path(&file), "--output", "json"]);
    let list: Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(list["id"], keyring.json()["id"]);
    assert_eq!(list["versions"][1]["state"], "active");
    for key in keyring.json()["versions"].as_array().unwrap() {
        let key = key["key"].as_str().unwrap();
        assert!(!table.out.contains(key) && !json.out.contains(key));
    }
}

#[test]
fn a_reader_never_sees_half_a_keyring() {
    let keyring = KeyringFile::create();
    let file = keyring.path();
    let done = std::sync::atomic::AtomicBool::new(false);
    let seen = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut seen = std::collections::BTreeSet::new();
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let json: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
                seen.insert(json["versions"].as_array().unwrap().len());
            }
            seen
        });
        for _ in 0..20 {
            keyring.command(&["add"], &[]);
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        reader.join().unwrap()
    });
    assert!(seen.len() > 5, "the reader saw {seen:?}");
}

#[test]
fn a_keyring_behind_a_symlink_is_changed_at_its_target() {
    let keyring = KeyringFile::create();
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(keyring.path(), &link).unwrap();
    assert_eq!(run(&["keyring", "add", path(&link)]).code, Some(0));
    assert!(link.is_symlink());
    assert_eq!(states(&keyring), ["active", "pending"]);
}
