//! A real kube-apiserver and etcd behind the plugin: what is stored, and that it comes back whatever restarts.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::support::plugin::encryption_configuration;
use crate::support::{ApiServer, ApiServerOptions, Encryption, Etcd, KeyringFile, Plugin, wait_until};
use futures::stream::{self, StreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;
use kube::api::{ObjectMeta, PostParams};

const NAMESPACE: &str = "default";
/// An API server polls Status every minute, and every 20 s while its health is asked for.
const ADOPTION: Duration = Duration::from_secs(90);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_and_config_maps_are_ciphertext_in_etcd_and_survive_every_restart() {
    let keyring = KeyringFile::create();
    let mut plugin = Plugin::start(&settings(&keyring)).await;
    let key_id = plugin.wait_healthy().await;
    let etcd = Etcd::start().await;
    let mut server = ApiServer::start(&etcd, &options(1, &plugin)).await;

    server.write_secret("s", "precious value").await;
    let config_map = ConfigMap {
        metadata: named("c"),
        data: Some(BTreeMap::from([("k".into(), "precious value".into())])),
        ..ConfigMap::default()
    };
    Api::namespaced(server.client(), NAMESPACE).create(&PostParams::default(), &config_map).await.unwrap();
    for key in ["/registry/secrets/default/s", "/registry/configmaps/default/c"] {
        let stored = etcd.get(key).await.unwrap();
        assert!(stored.starts_with(b"k8s:enc:kms:v2:kube-envelope:"), "{key}");
        assert!(!contains(&stored, b"precious value"), "{key} holds its value in clear");
        let object = crate::support::etcd::encrypted(&stored).unwrap();
        assert_eq!(object.key_id, key_id);
        assert_eq!(object.encrypted_dek_source.len(), 111);
        assert_eq!(object.annotations.keys().collect::<Vec<_>>(), ["dek.kube-envelope.io"]);
    }

    for (api_server, kms) in [(true, false), (false, true), (true, true)] {
        if api_server {
            server.stop();
        }
        if kms {
            assert!(plugin.stop().success());
            plugin.restart().await;
        }
        if api_server {
            server.restart().await;
        }
        let what = format!("API server restarted: {api_server}, plugin restarted: {kms}");
        assert_eq!(server.read_secret("s").await, "precious value", "{what}");
        let found: ConfigMap = Api::namespaced(server.client(), NAMESPACE).get("c").await.unwrap();
        assert_eq!(found.data, config_map.data, "{what}");
        server.write_secret(&format!("after-{api_server}-{kms}"), "x").await;
        assert!(server.readyz().await.unwrap().0, "{what}");
    }
    assert_eq!(etcd.key_ids("/registry/secrets/").await, BTreeMap::from([(key_id, 4)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_secrets_come_back_after_each_of_five_api_server_restarts() {
    let keyring = KeyringFile::create();
    let plugin = Plugin::start(&settings(&keyring)).await;
    plugin.wait_healthy().await;
    let etcd = Etcd::start().await;
    let mut server = ApiServer::start(&etcd, &options(1, &plugin)).await;
    for round in 0..5 {
        let names: Vec<_> = (round * 200..(round + 1) * 200).map(|number| format!("s-{number}")).collect();
        stream::iter(&names).for_each_concurrent(16, |name| server.write_secret(name, name)).await;
        server.stop();
        server.restart().await;
        assert_all_come_back(&server, (usize::try_from(round).unwrap() + 1) * 200).await;
    }
    let answer = plugin.status().await.unwrap();
    assert_eq!(etcd.key_ids("/registry/secrets/").await, BTreeMap::from([(answer.key_id, 1000)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotated_keyring_changes_the_key_id_of_new_writes_and_old_ones_keep_opening() {
    let keyring = KeyringFile::create();
    let plugin = Plugin::start(&settings(&keyring)).await;
    let old = plugin.wait_healthy().await;
    let etcd = Etcd::start().await;
    let mut server = ApiServer::start(&etcd, &options(1, &plugin)).await;
    server.write_secret("old", "old").await;

    keyring.rotate();
    wait_until("the plugin adopts", Duration::from_secs(10), async || plugin.status().await.unwrap().key_id != old)
        .await;
    let new = plugin.status().await.unwrap().key_id;
    let mut writes = 0;
    wait_until("the API server writes with the new key_id", ADOPTION, async || {
        assert!(server.readyz().await.unwrap().0, "ready throughout");
        tokio::time::sleep(Duration::from_millis(500)).await;
        writes += 1;
        let name = format!("new-{writes}");
        server.write_secret(&name, "new").await;
        etcd.key_id(&format!("/registry/secrets/default/{name}")).await.as_ref() == Some(&new)
    })
    .await;
    assert_eq!(etcd.key_id("/registry/secrets/default/old").await, Some(old));
    server.stop();
    server.restart().await;
    assert_eq!(server.read_secret("old").await, "old");
    assert_eq!(server.read_secret("new-1").await, "new");
}

/// Its version was destroyed, and the plugin that had it in memory is gone. Nothing else goes with it; yet an API server
/// that starts lists all Secrets before it is ready.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stored_dek_that_no_kek_unwraps_leaves_the_others_read_and_keeps_a_starting_api_server_from_being_ready() {
    let keyring = KeyringFile::create();
    let mut plugin = Plugin::start(&settings(&keyring)).await;
    let old = plugin.wait_healthy().await;
    let etcd = Etcd::start().await;
    let mut server = ApiServer::start(&etcd, &options(1, &plugin)).await;
    server.write_secret("lost", "lost").await;
    server.stop();
    keyring.rotate();
    wait_until("the plugin adopts", Duration::from_secs(10), async || plugin.wait_healthy().await != old).await;
    // At its start it asks for the key_id.
    server.restart().await;
    server.write_secret("kept", "kept").await;
    keyring.destroy_retired();
    plugin.stop();
    plugin.restart().await;
    plugin.wait_healthy().await;
    assert_eq!(server.read_secret("kept").await, "kept", "the plugin restarted");
    assert!(server.readyz().await.unwrap().0);

    server.stop();
    let mut server = ApiServer::spawn(&etcd, &options(1, &plugin));
    let secrets = Api::<Secret>::namespaced(server.client(), NAMESPACE);
    wait_until("it reads", ADOPTION, async || secrets.get("kept").await.is_ok()).await;
    assert!(secrets.get("lost").await.is_err());
    let is_waiting = async || {
        server.readyz().await.is_some_and(|(ready, checks)| {
            !ready && checks.contains("[-]informer-sync failed") && checks.contains("[+]kms-providers ok")
        })
    };
    wait_until("it waits for its Secrets alone", ADOPTION, is_waiting).await;
    etcd.delete("/registry/secrets/default/lost").await;
    server.wait_ready().await;
    server.write_secret("after", "after").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_automatic_reload_leads_from_identity_to_the_plugin() {
    let keyring = KeyringFile::create();
    let plugin = Plugin::start(&settings(&keyring)).await;
    let key_id = plugin.wait_healthy().await;
    let etcd = Etcd::start().await;
    let identity = encryption_configuration(&["secrets"], &["{identity: {}}", &plugin.provider()]);
    let options = ApiServerOptions {
        encryption: Encryption::Text(identity),
        automatic_reload: true,
        ..ApiServerOptions::default()
    };
    let server = ApiServer::start(&etcd, &options).await;
    server.write_secret("plain", "plain").await;
    assert!(contains(&etcd.get("/registry/secrets/default/plain").await.unwrap(), b"plain"));

    let ours = encryption_configuration(&["secrets"], &[&plugin.provider(), "{identity: {}}"]);
    std::fs::write(server.encryption_file(), ours).unwrap();
    let mut writes = 0;
    wait_until("new Secrets are encrypted", ADOPTION, async || {
        assert!(server.readyz().await.unwrap().0, "ready throughout");
        tokio::time::sleep(Duration::from_secs(1)).await;
        writes += 1;
        server.write_secret(&format!("s-{writes}"), "x").await;
        etcd.key_id(&format!("/registry/secrets/default/s-{writes}")).await.as_ref() == Some(&key_id)
    })
    .await;
    assert_eq!(server.read_secret("plain").await, "plain");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_started_after_the_api_server_makes_it_ready() {
    let keyring = KeyringFile::create();
    let mut plugin = Plugin::start(&settings(&keyring)).await;
    plugin.stop();
    let etcd = Etcd::start().await;
    let mut server = ApiServer::spawn(&etcd, &options(1, &plugin));
    wait_until("the API server answers and is not ready", ADOPTION, async || {
        server.readyz().await.is_some_and(|(ready, _)| !ready)
    })
    .await;
    plugin.restart().await;
    server.wait_ready().await;
    server.write_secret("s", "value").await;
    assert_eq!(server.read_secret("s").await, "value");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_plugin_starts_again_on_its_stale_socket_and_the_api_server_goes_on() {
    let keyring = KeyringFile::create();
    let mut plugin = Plugin::start(&settings(&keyring)).await;
    let key_id = plugin.wait_healthy().await;
    let etcd = Etcd::start().await;
    let mut server = ApiServer::start(&etcd, &options(1, &plugin)).await;
    server.write_secret("before", "before").await;
    plugin.kill();
    assert!(plugin.socket().exists(), "a killed plugin leaves its socket behind");
    server.write_secret("meanwhile", "meanwhile").await;
    assert_eq!(server.read_secret("before").await, "before");
    plugin.restart().await;
    assert_eq!(plugin.wait_healthy().await, key_id);
    server.wait_ready().await;
    server.stop();
    server.restart().await;
    assert_eq!(server.read_secret("before").await, "before");
    assert_eq!(server.read_secret("meanwhile").await, "meanwhile");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_api_servers_with_a_plugin_each_read_each_others_objects() {
    let keyring = KeyringFile::create();
    let first_plugin = Plugin::start(&settings(&keyring)).await;
    let copy = keyring.copied();
    let second_plugin = Plugin::start(&settings(&copy)).await;
    assert_eq!(first_plugin.wait_healthy().await, second_plugin.wait_healthy().await);
    let etcd = Etcd::start().await;
    let first = ApiServer::start(&etcd, &options(1, &first_plugin)).await;
    let second = ApiServer::start(&etcd, &options(2, &second_plugin)).await;
    first.write_secret("by-first", "1").await;
    second.write_secret("by-second", "2").await;
    assert_eq!(second.read_secret("by-first").await, "1");
    assert_eq!(first.read_secret("by-second").await, "2");
    assert_eq!(etcd.key_ids("/registry/secrets/").await.len(), 1, "one key_id");
}

fn settings(keyring: &KeyringFile) -> String {
    format!("{}\nrefreshInterval: 1s", keyring.settings("test"))
}

fn options(number: u8, plugin: &Plugin) -> ApiServerOptions {
    let encryption = encryption_configuration(&["secrets", "configmaps"], &[&plugin.provider(), "{identity: {}}"]);
    ApiServerOptions { number, encryption: Encryption::Text(encryption), ..ApiServerOptions::default() }
}

fn named(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() }
}

async fn assert_all_come_back(server: &ApiServer, count: usize) {
    let secrets = Api::<Secret>::namespaced(server.client(), NAMESPACE).list(&kube::api::ListParams::default()).await;
    let secrets = secrets.unwrap().items;
    assert_eq!(secrets.len(), count);
    for secret in secrets {
        assert_eq!(Some(crate::support::apiserver::value(&secret)), secret.metadata.name);
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}
