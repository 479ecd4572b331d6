//! A real kube-apiserver behind the plugin with a key in a real `LocalStack`: an on-demand rotation behind one ARN is
//! followed, and everything restarts while AWS is away.
#![cfg(all(feature = "aws", feature = "rotate"))]
#![allow(missing_docs, clippy::unwrap_used, dead_code, reason = "for tests only; the parts serve another test as well")]

#[path = "kek_conformance/faults.rs"]
mod faults;
#[path = "kek_conformance/aws/localstack_server.rs"]
mod localstack_server;
mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use faults::{Fault, Faults};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use localstack_server::{create_key, localstack};
use support::plugin::encryption_configuration;
use support::{ApiServer, ApiServerOptions, Encryption, Etcd, Plugin, wait_until};
use tempfile::TempDir;

/// An API server polls Status every minute, and every 20 s while its health is asked for.
const ADOPTION: Duration = Duration::from_secs(90);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_behind_one_arn_is_followed_and_the_api_server_restarts_while_aws_is_away() {
    let (admin, key, line, folder) = key_behind_a_line().await;
    let settings = settings(&key, &line, folder.path());
    let mut plugin = Plugin::start(&settings).await;
    let before = plugin.wait_healthy().await;
    let etcd = Etcd::start().await;
    let encryption = encryption_configuration(&["secrets"], &[&plugin.provider(), "{identity: {}}"]);
    let options =
        ApiServerOptions { number: 1, encryption: Encryption::Text(encryption), ..ApiServerOptions::default() };
    let mut server = ApiServer::start(&etcd, &options).await;
    write(&server, "first").await;
    assert_eq!(etcd.key_id("/registry/secrets/default/first").await.as_ref(), Some(&before));

    admin.rotate_key_on_demand().key_id(&key).send().await.expect("rotated");
    wait_until("the plugin adopts", Duration::from_secs(20), async || {
        plugin.status().await.is_some_and(|status| status.key_id != before)
    })
    .await;
    let after = plugin.wait_healthy().await;
    let mut writes = 0;
    wait_until("the API server writes with the new key_id", ADOPTION, async || {
        assert!(server.readyz().await.unwrap().0, "ready throughout");
        tokio::time::sleep(Duration::from_millis(500)).await;
        writes += 1;
        write(&server, &format!("after-{writes}")).await;
        etcd.key_id(&format!("/registry/secrets/default/after-{writes}")).await.as_ref() == Some(&after)
    })
    .await;

    line.set(Fault::Silence);
    server.stop();
    server.restart().await;
    assert_eq!(read(&server, "first").await, "first");
    write(&server, "while-aws-is-away").await;
    line.clear();
    assert!(plugin.stop().success());
    plugin.restart().await;
    assert_eq!(plugin.wait_healthy().await, after, "no new key_id for a restart");
    assert_eq!(read(&server, "while-aws-is-away").await, "while-aws-is-away");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotate_keys_rotates_on_demand_in_aws_and_brings_everything_under_the_new_material() {
    let (admin, key, line, folder) = key_behind_a_line().await;
    let plugin = Plugin::start(&settings(&key, &line, folder.path())).await;
    let material = async || {
        let answer = admin.describe_key().key_id(&key).send().await.unwrap();
        answer.key_metadata.unwrap().current_key_material_id.unwrap()
    };
    let before = material().await;
    support::rotation::rotates_end_to_end(&plugin, &[]).await;
    assert_ne!(material().await, before, "rotated in AWS");
}

/// A key in `LocalStack`, and a proxy before it.
async fn key_behind_a_line() -> (aws_sdk_kms::Client, String, Faults, TempDir) {
    let (address, admin) = localstack().await;
    let (key, folder) = (create_key(&admin).await, TempDir::new().unwrap());
    let line = Faults::tls(address, folder.path()).await;
    (admin, key, line, folder)
}

fn settings(key: &str, line: &Faults, folder: &Path) -> String {
    let (credentials, ca) = (folder.join("credentials"), line.ca_file().display());
    std::fs::write(&credentials, "[default]\naws_access_key_id = plugin\naws_secret_access_key = plugin\n").unwrap();
    let (url, credentials) = (line.url(), credentials.display());
    format!(
        "cluster: aws
refreshInterval: 1s
proveInterval: 2s
keks:
  - name: aws
    awsKms: {{ key: '{key}', endpoint: '{url}', caFile: {ca}, credentialsFile: {credentials} }}"
    )
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
