//! `serve` with a configuration that cannot work: exit code 2, each mistake with its line, and nothing touched.

use kube_envelope::key_stores::KINDS;

use crate::support::KeyringFile;
use crate::{path, run};

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
        &[
            "1:1: clutser: unknown field; expected one of cluster, epoch, socket, socketMode, socketGroup, allowedUids, stateDir, \
           keks, retired, takeover, forget, maxOfflineAge, refreshInterval, proveInterval, health, audit, sandbox, handover, \
           sealedState",
        ],
    );
}

#[test]
fn an_unknown_field_of_a_kek_is_refused_with_its_path() {
    refused(
        &with("keks:\n  - name: a\n    keyring:\n      file: KEYRING\n      mode: 3"),
        &["5:7: keks.keyring.mode: unknown field; expected one of file"],
    );
}

#[test]
fn an_unknown_kind_is_refused_with_the_known_ones() {
    let kinds = format!("2:19: keks.cloudKms: unknown field; expected one of name, {}", KINDS.join(", "));
    refused(&with("keks:\n  - {name: a,     cloudKms: {}}"), &[&kinds]);
}

#[test]
fn a_kek_of_no_kind_is_refused() {
    let line = format!("2:5: keks[0]: KEK \"a\" has no kind; add one of: {}", KINDS.join(", "));
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
        &["2:5: keks[0]: KEK \"a\" has several kinds (keyring, transit); give each its own item under keks"],
    );
}

#[test]
fn a_relative_path_of_a_key_store_is_refused_at_its_place() {
    refused(
        &with("keks:\n  - name: a\n    keyring:\n      file: ~/keyring.json"),
        &[
            "4:13: keks[0].keyring.file: \"~/keyring.json\" is relative to wherever the plugin is started; \"~\" is not \
           expanded; write the whole path",
        ],
    );
}

#[cfg(feature = "transit")]
#[test]
fn a_sealed_state_needs_a_kek_of_this_machine_and_ends_with_max_offline_age() {
    let sealed = |kek: &str| {
        with(&format!(
            "keks:\n  - {{name: a, keyring: {{file: KEYRING}}}}\nmaxOfflineAge: 1h\nsealedState:\n  kek: {kek}"
        ))
    };
    refused(
        &sealed("{name: node, transit: {addresses: [\"https://v\"], key: k, auth: {tokenFile: /t}}}\n  maxAge: 2h"),
        &[
            "5:8: sealedState.kek: asks a server, which may be away when the node starts; use a kind whose key lies on this \
             machine: a keyring file, or pkcs11 with a token of this machine",
            "6:11: sealedState.maxAge: is longer than maxOfflineAge, which ends the use of a DEK anyway",
        ],
    );
    refused(
        &sealed("{name: a, keyring: {file: KEYRING}}"),
        &["5:8: sealedState.kek.name: \"a\" is empty or used twice; give each KEK its own name"],
    );
}

/// A name is in every log line and in the table of `status`.
#[test]
fn a_name_that_a_terminal_would_obey_is_refused() {
    for name in ["a\\e[31m", "a\\nb", &"a".repeat(101)] {
        let line = format!("keks:\n  - {{name: \"{name}\", keyring: {{file: KEYRING}}}}");
        refused(&with(&line), &["2:5: keks[0].name: has control characters, or more than 100 characters"]);
    }
}

#[test]
fn the_health_endpoints_are_not_put_on_the_api_servers_socket() {
    refused(
        &with("health: {listen: \"unix://FOLDER/kms.sock\"}"),
        &["1:18: health.listen: is the API server's socket; name another path"],
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
        &[
            "1:18: health.listen: \"localhost\" is not an address and port; write for example 127.0.0.1:8380, unix:///run/kube-envelope/health.sock or off",
        ],
    );
}

#[test]
fn a_value_of_the_wrong_form_is_refused_with_the_right_one() {
    refused(&with("keks: {name: a}"), &["1:7: keks: must be a list (- item)"]);
    refused(&with("cluster: [c]"), &["1:10: cluster: must be a string; quote it where it has special characters"]);
    refused(&with("health: on"), &["1:9: health: must be a table of fields (name: value)"]);
    refused("- cluster: c\n", &["1:1: must be a table of fields (name: value)"]);
}

#[cfg(feature = "azure")]
#[test]
fn an_unknown_word_is_refused_with_its_field_and_the_known_ones() {
    refused(
        &with(
            "keks:\n  - name: a\n    azureKeyVault:\n      vault: https://n.vault.azure.net\n      key: k\n      \
             algorithm: RSA\n      credential: {managedIdentity: {}}",
        ),
        &["6:18: keks.azureKeyVault.algorithm: \"RSA\" is unknown; expected one of RSA-OAEP-256, A256KW"],
    );
}

#[test]
fn a_field_without_a_value_is_refused() {
    refused(&with("cluster:"), &["1:8: cluster: has no value; write one, quoted where it is the word null"]);
}

#[test]
fn a_field_that_is_defined_twice_is_refused() {
    refused(&(with("cluster: c") + "cluster: d\n"), &["5:1: cluster: is defined twice; remove one"]);
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
            "3:18: health.listen: \"x\" is not an address and port; write for example 127.0.0.1:8380, unix:///run/kube-envelope/health.sock or off",
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

#[cfg(feature = "transit")]
mod takeover {
    use kube_envelope::key_stores::FORMER_PLUGINS;

    use super::{refused, with};

    const VAULT: &str = "vaultKubernetesKms: {transit: {addresses: [\"https://v\"], key: k, auth: {tokenFile: /t}}}";

    fn entries(entries: &[&str], lines: &[&str]) {
        let entries: Vec<_> = entries.iter().map(|entry| format!("  - {{{entry}}}")).collect();
        refused(&with(&format!("takeover:\n{}", entries.join("\n"))), lines);
    }

    #[test]
    fn an_entry_has_a_name_that_no_kek_has_and_one_plugin() {
        let taken = "2:5: takeover[0].name: \"a\" is empty or used twice; give each KEK its own name";
        entries(&[&format!("name: a, {VAULT}")], &[taken]);
        let none = format!("2:5: takeover[0]: \"old\" names no plugin; add one of: {}", FORMER_PLUGINS.join(", "));
        entries(&["name: old"], &[&none]);
        let unknown =
            format!("2:18: takeover.vault: unknown field; expected one of name, {}", FORMER_PLUGINS.join(", "));
        entries(&["name: old,  vault: {}"], &[&unknown]);
    }

    #[test]
    fn two_entries_that_could_not_be_told_apart_are_refused() {
        let line = "3:5: takeover[1]: takes the same as \"x\" (vault-kubernetes-kms, whose key_id does not tell the key); \
                    keep one of them";
        entries(&[&format!("name: x, {VAULT}"), &format!("name: y, {VAULT}")], &[line]);
    }

    #[test]
    fn a_mistake_within_an_entry_is_named_at_its_place() {
        let line = "2:100: takeover[0].vaultKubernetesKms.transit.auth.tokenFile: \"t\" is relative to wherever the plugin is \
                    started; write an absolute path";
        entries(&[&format!("name: old, {}", VAULT.replace("/t", "t"))], &[line]);
    }
}
