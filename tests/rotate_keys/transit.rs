//! `rotate-keys --rotate-kek` with a KEK in a real Vault.

use crate::support::key_store::{KeyStore, settings};
use crate::support::plugin::encryption_configuration;
use crate::support::rotation::{run, text};
use crate::support::{ApiServer, ApiServerOptions, Encryption, Etcd, Plugin};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotate_keys_makes_a_new_version_in_vault_and_brings_everything_under_it() {
    let vault = KeyStore::start("vault").await;
    let plugin = Plugin::start(&settings(&[&vault], "")).await;
    let first = plugin.wait_healthy().await;
    let etcd = Etcd::start().await;
    let encryption = encryption_configuration(&["secrets"], &[&plugin.provider(), "{identity: {}}"]);
    let options = ApiServerOptions { encryption: Encryption::Text(encryption), ..ApiServerOptions::default() };
    let server = ApiServer::start(&etcd, &options).await;
    server.write_secret("s", "value").await;
    let (config, journal) = (plugin.config_file(), server.folder().join("journal.json"));
    let (config, journal) = (format!("--config={}", config.display()), format!("--journal={}", journal.display()));
    let more = [
        "--rotate-kek",
        &config,
        &journal,
        "--settle=0s",
        "--compact",
        "--agreement-interval=1s",
        "--snapshot-command=true",
    ];

    let refused = run(&server, &etcd, "rotate-keys", &more);
    assert_eq!(refused.status.code(), Some(1), "the plugin's policy does not allow it: {}", text(&refused));
    assert!(text(&refused).contains("denied"), "{}", text(&refused));
    assert_eq!(vault.vault.read("vault/keys/kube-envelope").await["data"]["latest_version"], 1);

    let operator = r#"path "vault/*" { capabilities = ["read", "update"] }"#;
    vault.vault.policy("plugin", operator).await;
    let resumed = run(&server, &etcd, "rotate-keys", &[&more[..], &["--resume"]].concat());
    assert_eq!(resumed.status.code(), Some(0), "{}", text(&resumed));
    assert_eq!(vault.vault.read("vault/keys/kube-envelope").await["data"]["latest_version"], 2, "rotated once");
    let second = plugin.wait_healthy().await;
    assert_ne!(second, first);
    assert_eq!(etcd.key_ids("/registry/secrets/").await.into_keys().collect::<Vec<_>>(), [second]);
    assert_eq!(server.read_secret("s").await, "value");
}
