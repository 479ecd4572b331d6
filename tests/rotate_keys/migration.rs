//! From one key store to another under a real API server, with `rotate-keys` between the steps, as the README says:
//! list the new one beside the old, rotate, move the old one to `retired`, rotate, verify, remove it.

use std::time::Duration;

use crate::support::fakes::faults::Fault;
use crate::support::key_store::{KeyStore, reconfigure};
use crate::support::plugin::encryption_configuration;
use crate::support::rotation::{run, text};
use crate::support::{ApiServer, ApiServerOptions, Encryption, Etcd, KeyringFile, Plugin, wait_until};

const SOON: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_moves_from_a_keyring_to_vault_and_the_keyring_can_be_deleted() {
    let (keyring, vault) = (KeyringFile::create(), KeyStore::start("vault").await);
    let local = format!("{{ name: local, keyring: {{ file: {} }} }}", keyring.path().display());
    let mut plugin = Plugin::start(&settings(&[&local], &[])).await;
    let first = plugin.wait_healthy().await;
    let etcd = Etcd::start().await;
    let encryption = encryption_configuration(&["secrets"], &[&plugin.provider(), "{identity: {}}"]);
    let options = ApiServerOptions { encryption: Encryption::Text(encryption), ..ApiServerOptions::default() };
    let mut server = ApiServer::start(&etcd, &options).await;
    for number in 0..50 {
        server.write_secret(&format!("s-{number}"), &format!("value {number}")).await;
    }

    reconfigure(&plugin, &settings(&[&local, &vault.item()], &[]));
    let second = wait_for_another(&plugin, &first).await;
    // Every key that was in use is still in use: there is none to disable.
    rotate(&server, &etcd, "both", 9);
    assert_eq!(etcd.key_ids("/registry/secrets/").await.into_keys().collect::<Vec<_>>(), [second.as_str()]);

    reconfigure(&plugin, &settings(&[&vault.item()], &[&local]));
    let third = wait_for_another(&plugin, &second).await;
    let left = run(&server, &etcd, "verify", &[]);
    assert_eq!(left.status.code(), Some(6), "the objects are still wrapped by both: {}", text(&left));
    rotate(&server, &etcd, "vault alone", 0);
    assert_eq!(etcd.key_ids("/registry/secrets/").await.into_keys().collect::<Vec<_>>(), [third.as_str()]);
    let verified = run(&server, &etcd, "verify", &[]);
    assert_eq!(verified.status.code(), Some(0), "{}", text(&verified));

    // Now nothing needs the keyring: without it, without any state, and after every restart, all values come back.
    reconfigure(&plugin, &settings(&[&vault.item()], &[]));
    std::fs::remove_file(keyring.path()).unwrap();
    server.stop();
    plugin.stop();
    std::fs::remove_dir_all(plugin.folder().join("state")).unwrap();
    plugin.restart().await;
    assert_eq!(plugin.wait_healthy().await, third);
    server.restart().await;
    vault.faults.set(Fault::Refuse);
    for number in 0..50 {
        assert_eq!(server.read_secret(&format!("s-{number}")).await, format!("value {number}"));
    }
}

fn settings(keks: &[&str], retired: &[&str]) -> String {
    let (keks, retired) = (keks.join(", "), retired.join(", "));
    format!("cluster: test\nrefreshInterval: 1s\nkeks: [{keks}]\nretired: [{retired}]")
}

async fn wait_for_another(plugin: &Plugin, key_id: &str) -> String {
    let status = async || plugin.status().await.map(|status| status.key_id).unwrap_or_default();
    wait_until("the plugin follows its configuration", SOON, async || !["", key_id].contains(&status().await.as_str()))
        .await;
    status().await
}

fn rotate(server: &ApiServer, etcd: &Etcd, what: &str, code: i32) {
    let journal = server.folder().join(format!("{what}.json"));
    let journal = format!("--journal={}", journal.display());
    let more = [
        journal.as_str(),
        "--settle=0s",
        "--compact",
        "--agreement-interval=1s",
        "--request-timeout=1s",
        "--snapshot-command=true",
    ];
    let rotated = run(server, etcd, "rotate-keys", &more);
    assert_eq!(rotated.status.code(), Some(code), "{what}: {}", text(&rotated));
}
