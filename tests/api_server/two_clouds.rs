//! A real kube-apiserver behind the plugin with two cloud KEKs: rotation in a cloud is followed, and either cloud may
//! be away.

use std::time::Duration;

use crate::support::etcd::encrypted;
use crate::support::fakes::faults::Fault;
use crate::support::fakes::two_clouds::{Clouds, GOOGLE_KEY};
use crate::support::plugin::encryption_configuration;
use crate::support::{ApiServer, ApiServerOptions, Encryption, Etcd, Plugin, wait_until};

/// An API server polls Status every minute, and every 20 s while its health is asked for.
const ADOPTION: Duration = Duration::from_secs(90);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotations_in_both_clouds_are_followed_and_either_may_be_away_while_everything_restarts() {
    let clouds = Clouds::start().await;
    let mut plugin = Plugin::start(&clouds.settings()).await;
    let mut key_id = plugin.wait_healthy().await;
    let etcd = Etcd::start().await;
    let encryption = encryption_configuration(&["secrets"], &[&plugin.provider(), "{identity: {}}"]);
    let options =
        ApiServerOptions { number: 1, encryption: Encryption::Text(encryption), ..ApiServerOptions::default() };
    let mut server = ApiServer::start(&etcd, &options).await;
    server.write_secret("first", "first").await;
    let object = encrypted(&etcd.get("/registry/secrets/default/first").await.unwrap()).unwrap();
    assert_eq!(object.key_id, key_id);

    for cloud in ["google", "azure"] {
        match cloud {
            "google" => clouds.google.service().keys.get_mut(GOOGLE_KEY).unwrap().rotate(),
            _ => clouds.azure.service().keys.get_mut("kek").unwrap().rotate(),
        }
        let before = key_id;
        wait_until("the plugin adopts", Duration::from_secs(20), async || {
            plugin.status().await.is_some_and(|status| status.key_id != before)
        })
        .await;
        key_id = plugin.wait_healthy().await;
        let mut writes = 0;
        wait_until("the API server writes with the new key_id", ADOPTION, async || {
            assert!(server.readyz().await.unwrap().0, "ready throughout");
            tokio::time::sleep(Duration::from_millis(500)).await;
            writes += 1;
            let name = format!("after-{cloud}-{writes}");
            server.write_secret(&name, &name).await;
            etcd.key_id(&format!("/registry/secrets/default/{name}")).await.as_ref() == Some(&key_id)
        })
        .await;
    }

    for (line, away) in [(&clouds.google_line, "google"), (&clouds.azure_line, "azure")] {
        line.set(Fault::Silence);
        assert!(plugin.stop().success());
        plugin.restart().await;
        assert_eq!(plugin.wait_healthy().await, key_id, "{away} is away");
        server.stop();
        server.restart().await;
        for name in ["first", "after-google-1", "after-azure-1"] {
            assert_eq!(server.read_secret(name).await, name, "{away} is away");
        }
        server.write_secret(&format!("without-{away}"), "value").await;
        line.clear();
    }
}
