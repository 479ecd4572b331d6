//! Leaving the plugin: back to clear text, to a provider with keys of its own, to another plugin. Each is a rotation like
//! any other, with its proof.

use crate::control_plane::{ControlPlane, Shape};
use crate::support::plugin::encryption_configuration;
use crate::support::{KeyringFile, Plugin};

const AESCBC: &str = "{aescbc: {keys: [{name: key2, secret: c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LTMyYnk=}]}}";

/// Puts `writer` before the plugin and restarts every API server with it.
async fn move_to(plane: &mut ControlPlane, writer: &str, resources: &[&str]) {
    for node in 0..plane.servers.len() {
        let providers = [writer, &plane.plugins[node].provider(), "{identity: {}}"];
        let providers = if writer == "{identity: {}}" { &providers[..2] } else { &providers[..] };
        std::fs::write(plane.servers[node].encryption_file(), encryption_configuration(resources, providers)).unwrap();
        plane.servers[node].stop();
        plane.servers[node].restart().await;
    }
    plane.wait_endpoints(plane.servers.len()).await;
}

/// The prefixes that Secrets are stored with: up to the fourth colon, empty for clear text.
async fn prefixes(plane: &ControlPlane, count: usize) -> std::collections::BTreeSet<String> {
    let mut found = std::collections::BTreeSet::new();
    for number in 0..count {
        let stored = plane.etcd.get(&format!("/registry/secrets/default/s-{number}")).await.unwrap();
        let text = String::from_utf8_lossy(&stored[..stored.len().min(60)]).into_owned();
        let prefix = text.starts_with("k8s:enc:").then(|| text.split(':').take(5).collect::<Vec<_>>().join(":"));
        found.insert(prefix.unwrap_or_default());
    }
    found
}

/// After a Yes the plugin can go: an API server that starts without it reads everything.
async fn starts_without_the_plugin(plane: &mut ControlPlane, writer: &str, resources: &[&str]) {
    for node in 0..plane.servers.len() {
        plane.plugins[node].stop();
        let text = encryption_configuration(resources, &[writer]);
        std::fs::write(plane.servers[node].encryption_file(), text).unwrap();
        plane.servers[node].stop();
        plane.servers[node].restart().await;
        plane.check_secrets(node, "s", 30).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn back_to_clear_text_is_a_rotation_whose_yes_names_the_kek_version() {
    let resources = ["secrets", "configmaps"];
    let mut plane = ControlPlane::start(Shape::of(2)).await;
    plane.create_secrets("s", 30).await;
    let version = plane.keyrings[0].versions()[0]["id"].as_str().unwrap().to_owned();
    move_to(&mut plane, "{identity: {}}", &resources).await;
    let left = plane.run("verify", &[]).exits(6);
    left.says("/registry/secrets/default/s-0");
    let config = format!("--config={}", plane.plugins[0].config_file().display());
    plane.run("rotate-keys", &["--rotate-kek", &config]).exits(2).says("no KMS v2 provider");
    let ended = plane.run("rotate-keys", &[&config]).exits(0);
    let ended = ended.says(&format!("Yes: nothing is stored under KEK primary version {version}"));
    ended.says("stored in clear now").says("kube-envelope keyring destroy");
    assert_eq!(prefixes(&plane, 30).await, [String::new()].into());
    plane.run("verify", &[]).exits(0);
    // Each server has a file of its own here, and only etcd shows what no file tells.
    plane.run("verify", &["no-etcd"]).exits(8).says("runs with another file than");
    starts_without_the_plugin(&mut plane, "{identity: {}}", &resources).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_to_a_provider_with_keys_of_its_own_waits_for_the_server_that_is_behind() {
    let resources = ["secrets", "configmaps"];
    let mut plane = ControlPlane::start(Shape::of(2)).await;
    plane.create_secrets("s", 30).await;
    let behind = std::fs::read_to_string(plane.servers[1].encryption_file()).unwrap();
    move_to(&mut plane, AESCBC, &resources).await;
    let right = std::fs::read_to_string(plane.servers[1].encryption_file()).unwrap();
    // It can read what the other one writes, and still writes with the plugin.
    let providers = [plane.plugins[1].provider(), AESCBC.to_owned(), "{identity: {}}".to_owned()];
    let text = encryption_configuration(&resources, &providers.each_ref().map(String::as_str));
    assert_ne!(text, behind);
    std::fs::write(plane.servers[1].encryption_file(), text).unwrap();
    plane.servers[1].stop();
    plane.servers[1].restart().await;
    plane.wait_endpoints(2).await;
    let ended = plane.run("rotate-keys", &["--adoption-timeout=5s"]).exits(5);
    ended.says("does not store secrets with provider aescbc:key2");
    plane.run("rotate-keys", &["--abort"]).exits(0);
    std::fs::write(plane.servers[1].encryption_file(), right).unwrap();
    plane.servers[1].stop();
    plane.servers[1].restart().await;
    plane.wait_endpoints(2).await;
    plane.run("rotate-keys", &[]).exits(0).says("Yes: nothing is stored under KEK ");
    assert_eq!(prefixes(&plane, 30).await, ["k8s:enc:aescbc:v1:key2".to_owned()].into());
    // Each server has a file of its own here, and only etcd shows what no file tells.
    plane.run("verify", &["no-etcd"]).exits(8).says("runs with another file than");
    starts_without_the_plugin(&mut plane, AESCBC, &resources).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_to_another_plugin_ends_with_a_yes_for_every_version_of_this_one() {
    let resources = ["secrets", "configmaps"];
    let mut plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 30).await;
    let version = plane.keyrings[0].versions()[0]["id"].as_str().unwrap().to_owned();
    let keyring = KeyringFile::create();
    let other = Plugin::start(&format!("{}\nrefreshInterval: 1s", keyring.settings("test"))).await;
    other.wait_healthy().await;
    let writer = other.provider().replace("name: kube-envelope", "name: another");
    move_to(&mut plane, &writer, &resources).await;
    let config = format!("--config={}", plane.plugins[0].config_file().display());
    let ended = plane.run("rotate-keys", &[&config]).exits(0);
    ended.says(&format!("Yes: nothing is stored under KEK primary version {version}"));
    assert_eq!(prefixes(&plane, 30).await, ["k8s:enc:kms:v2:another".to_owned()].into());
    starts_without_the_plugin(&mut plane, &writer, &resources).await;
}
