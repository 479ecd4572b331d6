//! Ciphertexts that other plugins' programs made themselves (`tests/vectors/takeover`) open.

use std::collections::HashMap;

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::Value;

use super::settings_of;
use crate::support::key_store::KeyStore;
use crate::support::plugin::proto::DecryptRequest;
use crate::support::{KeyringFile, Plugin, localstack};

/// What the programs themselves stored, once; and a plugin that takes over from it.
fn vector(name: &str) -> Value {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/takeover");
    serde_json::from_str(&std::fs::read_to_string(format!("{folder}/{name}.json")).unwrap()).unwrap()
}

async fn opens(vector: &Value, entry: &str) {
    let keyring = KeyringFile::create();
    let takeover = format!("takeover: [{{ name: former, {entry} }}]");
    let plugin = Plugin::start(&format!("{}\n{takeover}", keyring.settings("vectors"))).await;
    for stored in vector["stored"].as_array().unwrap() {
        let bytes = |field: &str| BASE64_STANDARD.decode(stored[field].as_str().unwrap()).unwrap();
        let request = DecryptRequest {
            ciphertext: bytes("ciphertext"),
            uid: "u".into(),
            key_id: stored["keyId"].as_str().unwrap().into(),
            annotations: HashMap::new(),
        };
        let opened = plugin.client().await.unwrap().decrypt(request).await.unwrap().into_inner();
        assert_eq!(hex::encode(opened.plaintext), stored["seed"].as_str().unwrap());
    }
}

/// Made by aws-encryption-provider itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_program_aws_encryption_provider_stored_opens() {
    crate::support::prepare();
    let (vector, store) = (vector("aws_encryption_provider"), localstack::KeyStore::start().await);
    let tag = |name: &str, value: &Value| {
        aws_sdk_kms::types::Tag::builder().tag_key(name).tag_value(value.as_str().unwrap()).build().unwrap()
    };
    let made = store.admin.create_key().tags(tag("_custom_id_", &vector["key"]["id"]));
    made.tags(tag("_custom_key_material_", &vector["key"]["material"])).send().await.unwrap();
    let key = vector["stored"][0]["keyId"].as_str().unwrap();
    let settings = settings_of(&store.item()).replace(&store.key, key);
    let context = &vector["encryptionContext"];
    opens(&vector, &format!("awsEncryptionProvider: {{ encryptionContext: {context}, {settings} }}")).await;
}

/// Made by vault-kubernetes-kms itself, before and after a rotation of its key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_program_vault_kubernetes_kms_stored_opens() {
    let (vector, store) = (vector("vault_kubernetes_kms"), KeyStore::start("former").await);
    store.vault.write("former/keys/kube-envelope/config", serde_json::json!({ "deletion_allowed": true })).await;
    store.vault.delete("former/keys/kube-envelope").await;
    let backup = serde_json::json!({ "backup": vector["key"]["backup"] });
    store.vault.write("former/restore/kube-envelope", backup).await;
    opens(&vector, &format!("vaultKubernetesKms: {{ {} }}", settings_of(&store.item()))).await;
}
