//! A real kube-apiserver behind the plugin with two cloud KEKs: rotation in a cloud is followed, and either cloud may
//! be away.
#![cfg(all(feature = "azure", feature = "gcp", feature = "rotate"))]
#![allow(missing_docs, clippy::unwrap_used, dead_code, reason = "for tests only; the fakes serve another test as well")]

#[path = "kek_conformance/azure_fake.rs"]
mod azure_fake;
#[path = "kek_conformance/faults.rs"]
mod faults;
#[path = "kek_conformance/form.rs"]
mod form;
#[path = "kek_conformance/gcp_fake.rs"]
mod gcp_fake;
#[path = "kek_conformance/jwt.rs"]
mod jwt;
mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use azure_fake::{AzureFake, CLIENT, TENANT};
use faults::{Fault, Faults};
use gcp_fake::GcpFake;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use support::plugin::encryption_configuration;
use support::{ApiServer, ApiServerOptions, Encryption, Etcd, Plugin, wait_until};
use tempfile::TempDir;

const GOOGLE_KEY: &str = "projects/project/locations/europe-west3/keyRings/ring/cryptoKeys/kek";
/// An API server polls Status every minute, and every 20 s while its health is asked for.
const ADOPTION: Duration = Duration::from_secs(90);

struct Clouds {
    google: GcpFake,
    google_line: Faults,
    azure: AzureFake,
    azure_line: Faults,
    folder: TempDir,
}

impl Clouds {
    async fn start() -> Self {
        let folder = TempDir::new().unwrap();
        let (google, azure) = (GcpFake::start().await, AzureFake::start().await);
        google.service().keys.insert(GOOGLE_KEY.into(), gcp_fake::Key::new());
        azure.service().keys.insert("kek".into(), azure_fake::Key::rsa());
        let lines = [folder.path().join("google"), folder.path().join("azure")];
        for line in &lines {
            std::fs::create_dir(line).unwrap();
        }
        std::fs::write(folder.path().join("account.json"), google.credentials()).unwrap();
        std::fs::write(folder.path().join("secret"), &azure.service().secret).unwrap();
        let google_line = Faults::tls(google.address, &lines[0]).await;
        let azure_line = Faults::tls_for(azure.address, &lines[1], &["kek.vault.azure.net", "localhost"]).await;
        Self { google, google_line, azure, azure_line, folder }
    }

    fn settings(&self) -> String {
        let (folder, port) = (self.folder.path().display(), self.azure_line.port());
        let (google, google_ca) = (self.google_line.url(), self.google_line.ca_file().display());
        let azure_ca = self.azure_line.ca_file().display();
        format!(
            "cluster: clouds
refreshInterval: 1s
proveInterval: 2s
keks:
  - name: google
    gcpKms: {{ key: {GOOGLE_KEY}, endpoint: '{google}', insecureHttp: true, credentialsFile: {folder}/account.json, caFile: {google_ca} }}
  - name: azure
    azureKeyVault:
      vault: https://kek.vault.azure.net:{port}
      key: kek
      address: 127.0.0.1
      authorityHost: https://localhost:{port}
      caFile: {azure_ca}
      credential: {{ clientSecret: {{ tenantId: {TENANT}, clientId: {CLIENT}, secretFile: {folder}/secret }} }}"
        )
    }
}

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
    write(&server, "first").await;
    let object = support::etcd::encrypted(&etcd.get("/registry/secrets/default/first").await.unwrap()).unwrap();
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
            write(&server, &name).await;
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
            assert_eq!(read(&server, name).await, name, "{away} is away");
        }
        write(&server, &format!("without-{away}")).await;
        line.clear();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotate_keys_rotates_in_both_clouds_and_brings_everything_under_the_new_versions() {
    let clouds = Clouds::start().await;
    let plugin = Plugin::start(&clouds.settings()).await;
    support::rotation::rotates_end_to_end(&plugin, &[]).await;
    assert_eq!(clouds.google.service().keys[GOOGLE_KEY].primary, 2, "rotated in Google's cloud");
    assert_eq!(clouds.azure.service().keys["kek"].versions.len(), 2, "rotated in Azure");
}

async fn write(server: &ApiServer, name: &str) {
    let metadata = ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() };
    let data = BTreeMap::from([("k".into(), ByteString(name.into()))]);
    let secret = Secret { metadata, data: Some(data), ..Secret::default() };
    Api::<Secret>::namespaced(server.client(), "default").create(&PostParams::default(), &secret).await.unwrap();
}

async fn read(server: &ApiServer, name: &str) -> String {
    let secret: Secret = Api::namespaced(server.client(), "default").get(name).await.unwrap();
    String::from_utf8(secret.data.unwrap()["k"].0.clone()).unwrap()
}
