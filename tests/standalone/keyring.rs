//! The subcommands of `keyring`: what becomes of the file, and what is refused.

use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use crate::support::KeyringFile;
use crate::{path, run};

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

#[test]
fn a_change_that_nobody_reads_of_is_made_and_ends_as_it_would() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("k");
    run(&["keyring", "create", path(&file)]);
    for arguments in [["keyring", "add", path(&file)], ["keyring", "activate", path(&file)]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_kube-envelope"));
        let ran = command.args(arguments).stdout(writer).output().unwrap();
        assert_eq!((ran.status.code(), String::from_utf8_lossy(&ran.stderr).as_ref()), (Some(0), ""));
    }
    let json: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(json["versions"][1]["state"], "active");
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
    let destroyed = run(&["keyring", "destroy", path(&file), &first, "--yes"]);
    assert_eq!(destroyed.out, format!("version {first} is destroyed\n"));
    assert_eq!(states(&keyring), ["active"]);
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
}

/// Field case N18.
#[test]
fn a_version_is_destroyed_only_by_a_yes_and_a_backup_brings_it_back() {
    let keyring = KeyringFile::create();
    let (file, first) = (keyring.path(), id(&keyring, 0));
    keyring.rotate();
    let backup = keyring.copied();
    let refused = run(&["keyring", "destroy", path(&file), &first]);
    assert_eq!(refused.code, Some(2), "{}", refused.error);
    for words in ["can never be opened again", "kube-envelope verify", "snapshot keys", "--yes"] {
        assert!(refused.error.contains(words), "{words}: {}", refused.error);
    }
    for (answer, left) in [("no", 2), ("yes", 1)] {
        let command = format!("{} keyring destroy {} {first}", env!("CARGO_BIN_EXE_kube-envelope"), file.display());
        let mut terminal = std::process::Command::new("script");
        terminal.args(["--quiet", "--return", "--command", &command, "/dev/null"]);
        let terminal = terminal.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn();
        let mut terminal = terminal.expect("script, of util-linux");
        std::io::Write::write_all(&mut terminal.stdin.take().unwrap(), format!("{answer}\n").as_bytes()).unwrap();
        let output = terminal.wait_with_output().unwrap();
        let shown = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() == (left == 1) && shown.contains("Type yes"), "{shown}");
        assert_eq!(keyring.versions().len(), left, "{shown}");
    }

    let merged = run(&["keyring", "merge", path(&file), path(&backup.path())]);
    assert_eq!(
        (merged.code, merged.out),
        (Some(0), format!("added retired version {first}\nnext: copy the file to every node\n"))
    );
    assert_eq!(keyring.json(), backup.json());
    backup.command(&["add"], &[]);
    backup.command(&["activate"], &[]);
    backup.command(&["add"], &[]);
    run(&["keyring", "merge", path(&file), path(&backup.path())]);
    assert_eq!(
        states(&keyring),
        ["retired", "active", "retired", "pending"],
        "which one is active is this file's affair"
    );
    let other = KeyringFile::create();
    let refused = run(&["keyring", "merge", path(&file), path(&other.path())]);
    assert!(refused.code == Some(1) && refused.error.contains("two keyrings"), "{}", refused.error);
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
