//! A KEK whose public half alone is online, on the real binary: what it counts for, the ceremony that shows its private half,
//! and the day on which that is needed.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::kept_deks::{encrypt, opens, report, wait_another, wait_for_reason};
use crate::run;
use crate::support::plugin::proto::DecryptRequest;
use crate::support::{BreakGlass, KeyringFile, Plugin, wait_until};

const SOON: Duration = Duration::from_secs(20);

fn settings(keks: &[&str], more: &str) -> String {
    format!("cluster: glass\nrefreshInterval: 1s\nproveInterval: 1s\nkeks: [{}]\n{more}", keks.join(", "))
}

fn local(keyring: &KeyringFile) -> String {
    format!("{{name: local, keyring: {{file: {}}}}}", keyring.path().display())
}

/// Writes another configuration, which a running plugin takes after a signal.
fn write(plugin: &Plugin, keks: &[&str], more: &str) {
    let before = std::fs::read_to_string(plugin.config_file()).unwrap();
    let is_kept = |line: &&str| ["socket:", "stateDir:", "health:", "sandbox:"].iter().any(|key| line.starts_with(key));
    let kept: Vec<_> = before.lines().filter(is_kept).collect();
    std::fs::write(plugin.config_file(), format!("{}\n{}\n", settings(keks, more), kept.join("\n"))).unwrap();
}

fn reload(plugin: &Plugin, keks: &[&str]) {
    write(plugin, keks, "");
    plugin.process.signal(rustix::process::Signal::HUP);
}

/// What `/status` says of the KEK of this name.
fn of(plugin: &Plugin, name: &str) -> Value {
    let report = report(plugin);
    report["keks"].as_array().unwrap().iter().find(|kek| kek["name"] == name).unwrap().clone()
}

fn give(plugin: &mut Plugin, identity: &Path) {
    plugin.process.arguments_mut().truncate(3);
    plugin.process.arguments_mut().extend(["--break-glass".into(), identity.into()]);
}

#[tokio::test]
async fn the_ceremony_ends_what_is_reported_of_a_key_that_nobody_has_tried() {
    let (keyring, glass, other) = (KeyringFile::create(), BreakGlass::create(), BreakGlass::create());
    let plugin = Plugin::start(&settings(&[&local(&keyring), &glass.item()], "")).await;
    let key_id = plugin.wait_healthy().await;
    // It serves all the same, and says which command is missing.
    let reason = wait_for_reason(&plugin, "kube-envelope break-glass prove").await;
    assert!(reason.contains(&glass.recipient), "{reason}");
    assert_eq!(report(&plugin)["state"], "degraded");
    assert!(plugin.metric("kube_envelope_break_glass_proven_timestamp_seconds", &["escrow"]).abs() < 0.1);
    let config = plugin.config_file();
    let doctor = run(&["doctor", "--config", config.to_str().unwrap()]);
    assert!(doctor.code == Some(1) && doctor.out.contains("KEK escrow: private half"), "{}", doctor.out);

    let wrong = other.prove(&config);
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(
        !wrong.status.success() && said.contains("the wrong private half") && said.contains(&glass.recipient),
        "{said}"
    );
    let proven = glass.prove(&config);
    let said = String::from_utf8_lossy(&proven.stdout).into_owned();
    assert!(said.contains("the newest stored DEK") && said.contains("was unwrapped"), "{said}");
    let proof = BreakGlass::proof(&proven);

    reload(&plugin, &[&local(&keyring), &glass.proven_item(&proof)]);
    wait_until("ready", SOON, async || report(&plugin)["state"] == "ready").await;
    assert_eq!(plugin.wait_healthy().await, key_id, "the proof is no part of the generation");
    let escrow = of(&plugin, "escrow");
    assert_eq!(
        (escrow["offline"]["recipient"].as_str(), &escrow["lastContact"]),
        (Some(&*glass.recipient), &Value::Null)
    );
    assert!(escrow["offline"]["proven"].as_str().unwrap().starts_with(&proof[..10]), "{escrow}");
    assert_eq!((&escrow["versions"], &escrow["error"]), (&serde_json::json!({}), &Value::Null), "never asked");
    assert!(plugin.metric("kube_envelope_break_glass_proven_timestamp_seconds", &["escrow"]) > 1e9);
    assert!(plugin.metric("kube_envelope_kek_requests_total", &["escrow", "unwrap"]).abs() < 0.1, "not on any path");
    let doctor = run(&["doctor", "--config", config.to_str().unwrap()]);
    assert_eq!(doctor.code, Some(0), "{}", doctor.out);

    // The proof of one recipient shows nothing about another.
    reload(&plugin, &[&local(&keyring), &other.proven_item(&proof)]);
    let reason = wait_for_reason(&plugin, "break-glass prove").await;
    assert!(reason.contains(&other.recipient), "{reason}");
    wait_another(&plugin, &key_id).await;
}

#[tokio::test]
async fn with_every_other_kek_lost_for_ever_its_private_half_serves_and_a_plain_restart_does_not() {
    let (keyring, glass, other) = (KeyringFile::create(), BreakGlass::create(), BreakGlass::create());
    let mut plugin = Plugin::start(&settings(&[&local(&keyring), &glass.item()], "")).await;
    let key_id = plugin.wait_healthy().await;
    let sealed = encrypt(&plugin).await;
    let lost = of(&plugin, "local")["lineage"].as_str().unwrap().to_owned();
    std::fs::remove_file(keyring.path()).unwrap();
    plugin.stop();
    plugin.restart().await;
    wait_for_reason(&plugin, "or the private half of KEK escrow").await;
    assert!(plugin.status().await.is_none() && !opens(&plugin, &sealed).await);
    let request = DecryptRequest {
        ciphertext: sealed.ciphertext.clone(),
        uid: "u".into(),
        key_id: sealed.key_id.clone(),
        annotations: sealed.annotations.clone(),
    };
    let refused = plugin.client().await.unwrap().decrypt(request).await.map(drop).unwrap_err();
    assert!(refused.message().contains("only break-glass KEK escrow could unwrap it"), "{}", refused.message());
    plugin.stop();

    for (identity, words) in [(other.identity(), "the wrong private half"), ("/nowhere".into(), "does not exist")] {
        give(&mut plugin, &identity);
        plugin.process.restart();
        assert!(!plugin.process.wait(SOON).success());
        assert!(plugin.process.says(words), "{}", plugin.process.log());
    }
    std::fs::set_permissions(glass.identity(), std::fs::Permissions::from_mode(0o644)).unwrap();
    give(&mut plugin, &glass.identity());
    plugin.process.restart();
    assert!(!plugin.process.wait(SOON).success() && plugin.process.says("others can read it"));
    std::fs::set_permissions(glass.identity(), std::fs::Permissions::from_mode(0o600)).unwrap();

    plugin.restart().await;
    assert_eq!(plugin.wait_healthy().await, key_id, "the stored generation");
    assert!(opens(&plugin, &sealed).await);
    let of_the_day = encrypt(&plugin).await;
    assert!(plugin.process.says("the private half of the break-glass KEK is in memory"));

    // The way back: a new KEK in the place of the lost one, and no private half any more.
    let new = KeyringFile::create();
    reload(&plugin, &[&local(&new), &glass.item()]);
    let second = wait_another(&plugin, &key_id).await;
    let rewritten = encrypt(&plugin).await;
    assert!(opens(&plugin, &sealed).await && opens(&plugin, &of_the_day).await);
    plugin.stop();
    plugin.process.arguments_mut().truncate(3);
    write(&plugin, &[&local(&new), &glass.item()], &format!("forget: [{lost}]"));
    plugin.restart().await;
    assert_eq!(plugin.wait_healthy().await, second);
    assert!(opens(&plugin, &rewritten).await && !opens(&plugin, &sealed).await);
}

#[tokio::test]
async fn a_configuration_without_another_kek_is_refused_and_taken_with_the_private_half() {
    let glass = BreakGlass::create();
    let mut plugin = Plugin::spawn(&settings(&[&glass.item()], ""));
    assert_eq!(plugin.process.wait(SOON).code(), Some(2));
    assert!(plugin.process.says("no other KEK is listed under keks"), "{}", plugin.process.log());
    let doctor = run(&["doctor", "--config", plugin.config_file().to_str().unwrap()]);
    assert!(doctor.out.contains("lists break-glass KEKs alone"), "{}", doctor.out);
    // A restore on the day, where nothing else is left and no state either.
    give(&mut plugin, &glass.identity());
    plugin.restart().await;
    plugin.wait_healthy().await;
    let sealed = encrypt(&plugin).await;
    assert!(opens(&plugin, &sealed).await);
}

#[tokio::test]
async fn another_recipient_is_another_generation_and_both_private_halves_open_it_all() {
    let (keyring, first, second) = (KeyringFile::create(), BreakGlass::create(), BreakGlass::create());
    let mut plugin = Plugin::start(&settings(&[&local(&keyring), &first.item()], "")).await;
    let key_id = plugin.wait_healthy().await;
    let by_first = encrypt(&plugin).await;
    reload(&plugin, &[&local(&keyring), &second.item()]);
    wait_another(&plugin, &key_id).await;
    let by_second = encrypt(&plugin).await;
    plugin.stop();
    std::fs::remove_file(keyring.path()).unwrap();
    std::fs::remove_dir_all(plugin.folder().join("state")).unwrap();

    let both = first.identity().with_file_name("both");
    let text = [first.identity(), second.identity()].map(|file| std::fs::read_to_string(file).unwrap()).concat();
    std::fs::write(&both, text).unwrap();
    std::fs::set_permissions(&both, std::fs::Permissions::from_mode(0o600)).unwrap();
    write(&plugin, &[&second.item()], "");
    give(&mut plugin, &both);
    plugin.restart().await;
    plugin.wait_healthy().await;
    assert!(opens(&plugin, &by_first).await && opens(&plugin, &by_second).await);
    // Sealed for the same recipients, for a cluster of another name.
    let there = KeyringFile::create();
    let elsewhere = settings(&[&local(&there), &second.item()], "").replace("cluster: glass", "cluster: elsewhere");
    let elsewhere = Plugin::start(&elsewhere).await;
    elsewhere.wait_healthy().await;
    let foreign = encrypt(&elsewhere).await;
    assert!(!opens(&plugin, &foreign).await);
}
