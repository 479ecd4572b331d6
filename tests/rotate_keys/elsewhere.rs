//! Needed elsewhere: by another API server's values in the same etcd, or by a plugin through which nothing is stored yet.

use crate::control_plane::{ControlPlane, Shape};
use crate::support::plugin::encryption_configuration;
use crate::support::{KeyringFile, Plugin};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_of_another_api_server_in_the_same_etcd_keep_the_key_they_need() {
    let plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 10).await;
    let stored = plane.etcd.get("/registry/secrets/default/s-3").await.unwrap();
    plane.etcd.put("/openshift.io/secrets/default/other", &stored).await;
    plane.etcd.put("/somebody/else", b"is none of our business").await;
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..1);
    let new = plane.wait_key_id(0..1, &old).await;
    let remedy = "1 value(s) of another API server (/openshift.io in the same etcd)";
    plane.run("rotate-keys", &[]).exits(6).says("No: 1 value(s)").says(remedy);
    plane.run("verify", &[]).exits(6).says(remedy);

    // As after the rotation of that API server.
    let stored = plane.etcd.get("/registry/secrets/default/s-3").await.unwrap();
    plane.etcd.put("/openshift.io/secrets/default/other", &stored).await;
    plane
        .run("rotate-keys", &["--resume"])
        .exits(0)
        .says("Yes: nothing is stored under ")
        .says("/openshift.io in etcd");
    plane.check_all_under(&new).await;
}

/// A plugin of its own with this keyring, and its provider, `other`.
async fn other_plugin(keyring: &KeyringFile) -> (Plugin, String) {
    let plugin = Plugin::start(&format!("{}\nrefreshInterval: 1s", keyring.settings("test"))).await;
    plugin.wait_healthy().await;
    let provider = plugin.provider().replace("name: kube-envelope", "name: other");
    (plugin, provider)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_that_stored_nothing_yet_and_still_uses_the_former_key_leaves_no_yes() {
    let mut plane = ControlPlane::start(Shape::of(1)).await;
    // The other node of a mind: it has the keyring of today, and nobody will bring it the next one.
    let forgotten = plane.keyrings[0].copied();
    let (_other, second) = other_plugin(&forgotten).await;
    let own = encryption_configuration(&["secrets", "configmaps"], &[&plane.plugins[0].provider(), "{identity: {}}"]);
    let text = format!("{own}- resources: [podtemplates]\n  providers: [{second}, {{identity: {{}}}}]\n");
    std::fs::write(plane.servers[0].encryption_file(), text).unwrap();
    plane.servers[0].stop();
    plane.servers[0].restart().await;
    plane.wait_endpoints(1).await;
    plane.create_secrets("s", 10).await;
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..1);
    plane.wait_key_id(0..1, &old).await;
    let config = format!("--config={}", plane.plugins[0].config_file().display());
    let said = "the plugin of provider other at";
    plane.run("rotate-keys", &[&config]).exits(8).says("Not proven").says(said);
    plane.run("verify", &[&config]).exits(8).says(said);

    forgotten.copy_from(&plane.keyrings[0]);
    plane.run("rotate-keys", &[&config]).exits(0).says("Yes: nothing is stored under KEK primary version ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_with_another_file_is_not_trusted_with_resources_that_have_no_object() {
    let mut plane = ControlPlane::start(Shape::of(2)).await;
    // What it writes podtemplates with has the keyring of today, and nobody will bring it the next one.
    let forgotten = plane.keyrings[1].copied();
    let (_other, second) = other_plugin(&forgotten).await;
    for node in 0..2 {
        let own = plane.plugins[node].provider();
        let file = encryption_configuration(&["secrets", "configmaps"], &[&own, "{identity: {}}"]);
        let third = own.replace("name: kube-envelope", "name: third");
        let order = if node == 0 { [&third, &second] } else { [&second, &third] };
        let text = format!("{file}- resources: [podtemplates]\n  providers: [{}, {}]\n", order[0], order[1]);
        std::fs::write(plane.servers[node].encryption_file(), text).unwrap();
        plane.servers[node].stop();
        plane.servers[node].restart().await;
    }
    plane.wait_endpoints(2).await;
    plane.create_secrets("s", 10).await;
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..2);
    plane.wait_key_id(0..2, &old).await;
    let ended = plane.run("rotate-keys", &[]).exits(8).says("Not proven");
    ended.says("runs with another file than").says("1 encrypted resource(s) have no object (podtemplates)");
}
