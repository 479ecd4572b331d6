//! `rehearse` against real API servers: what it foretells is what they do.

use std::time::Duration;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use prost::Message;

use crate::backups::alone;
use crate::control_plane::{ControlPlane, Ended, Shape};
use crate::support::etcd::{EncryptedObject, encrypted};
use crate::support::plugin::encryption_configuration;
use crate::support::plugin::proto::EncryptRequest;
use crate::support::{ApiServer, ApiServerOptions, Etcd, Plugin};

/// `rehearse` of the etcd of a control plane, through the plugins of its API servers.
fn rehearse(plane: &ControlPlane, more: &[&str]) -> Ended {
    let etcd = format!("--etcd={}", plane.etcd.url());
    let encryption = format!("--encryption-config={}", plane.servers[0].encryption_file().display());
    alone(&[&["rehearse", &etcd, &encryption], more].concat())
}

fn active(plane: &ControlPlane) -> String {
    let versions = plane.keyrings[0].versions();
    versions.iter().find(|version| version["state"] == "active").unwrap()["id"].as_str().unwrap().to_owned()
}

/// Starts the API server of a control plane again, and says whether it becomes ready.
async fn starts(plane: &mut ControlPlane) -> bool {
    plane.plugins[0].stop();
    plane.plugins[0].restart().await;
    plane.plugins[0].wait_healthy().await;
    plane.servers[0].stop();
    plane.servers[0].process.restart();
    let began = std::time::Instant::now();
    while began.elapsed() < Duration::from_secs(45) {
        if plane.servers[0].readyz().await.is_some_and(|(ready, _)| ready) {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    false
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rehearsal_foretells_what_a_start_without_a_kek_version_does() {
    let mut plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 25).await;
    let (old, former) = (plane.key_id(0).await, active(&plane));
    plane.rotate_keyrings(0..1);
    plane.wait_key_id(0..1, &old).await;
    let config = format!("--config={}", plane.plugins[0].config_file().display());
    let without_former = format!("--without=primary:{former}");
    let without_active = format!("--without=primary:{}", active(&plane));

    // Through the plugin, and by the KEKs alone.
    rehearse(&plane, &[]).exits(0).says("becomes ready");
    rehearse(&plane, &[&config]).exits(0);
    let lost =
        rehearse(&plane, &[&config, &without_former]).exits(10).says("No: an API server that starts now without");
    assert!(lost.out.contains("/registry/secrets/default/s-0") && lost.out.contains(&former), "{}", lost.out);
    rehearse(&plane, &[&config, &without_active]).exits(0).says("no value needs it");
    // A name that nothing knows, a version that no KEK has, and a KEK's name that means nothing without the configuration.
    for misspelt in ["--without=nonsense", "--without=primary:nonsense"] {
        rehearse(&plane, &[&config, misspelt]).exits(8).says("may be misspelt").says("Not known");
    }
    rehearse(&plane, &[&without_former]).exits(8).says("may be misspelt");
    assert!(starts(&mut plane).await, "the rehearsal said that it starts");

    // Said beforehand of the version that is then destroyed.
    plane.keyrings[0].command(&["destroy"], &[&former]);
    rehearse(&plane, &[&config]).exits(10).says("/registry/secrets/default/s-0");
    assert!(!starts(&mut plane).await, "the rehearsal said that it does not start");
    rehearse(&plane, &[]).exits(10).says("/registry/secrets/default/s-0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_was_changed_or_moved_is_named() {
    let plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 5).await;
    let at = |name: &str| format!("/registry/secrets/default/{name}");
    let good = plane.etcd.get(&at("s-1")).await.unwrap();
    let mut changed = good.clone();
    let middle = changed.windows(3).position(|bytes| bytes == b"p:\n" || bytes == b"e:\n").unwrap() + 60;
    changed[middle] ^= 1;
    plane.etcd.put(&at("changed"), &changed).await;
    plane.etcd.put(&at("moved"), &good).await;
    plane.etcd.put(&at("cut"), &good[..good.len() / 2]).await;
    plane.etcd.put(&at("other"), b"k8s:enc:kms:v2:nobody:\n\x01\x01\x12\x01k\x1a\x01s").await;
    plane.etcd.put(&at("cbc"), b"k8s:enc:aescbc:v1:k:0123456789abcdef0123456789abcdef").await;
    let ended = rehearse(&plane, &["-o", "json"]).exits(10);
    let found: serde_json::Value = serde_json::from_str(&ended.out).unwrap();
    let named = found["resources"]["secrets"]["named"].as_object().unwrap();
    let mut names: Vec<_> = named.keys().map(|key| key.rsplit('/').next().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["cbc", "changed", "cut", "moved", "other"], "{named:?}");
    assert_eq!(found["wouldStart"], false);
    for name in ["changed", "moved"] {
        assert!(named[&at(name)].as_str().unwrap().contains("was changed, or stored under another key"), "{named:?}");
    }
    for name in names {
        let (code, _) = plane.servers[0].get(&format!("/api/v1/namespaces/default/secrets/{name}")).await.unwrap();
        assert_eq!(code, 500, "the API server cannot read {name} either");
    }
    let file = plane.folder.path().join("snapshot.db");
    plane.etcd.snapshot(&file).await;
    let encryption = format!("--encryption-config={}", plane.servers[0].encryption_file().display());
    alone(&["rehearse", &file.display().to_string(), &encryption]).exits(10).says("/registry/secrets/default/moved");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_keys_of_an_encryption_configuration_open_what_an_api_server_sealed_with_them() {
    const KEY: &str = "c2VjcmV0IGlzIHNlY3VyZSwgaXMgaXQ/IDMyIGJ5dGU=";
    let etcd = Etcd::start().await;
    let kinds = [("aescbc", "configmaps"), ("aesgcm", "secrets"), ("secretbox", "serviceaccounts")];
    let entry = |(kind, resource): &(&str, &str), key: &str| {
        format!(
            "- resources: [{resource}]\n  providers: [{{{kind}: {{keys: [{{name: one, secret: {key}}}]}}}}, {{identity: {{}}}}]\n"
        )
    };
    let text = |key: &str| {
        let entries: String = kinds.iter().map(|kind| entry(kind, key)).collect();
        format!("apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n{entries}")
    };
    let server = ApiServer::start(&etcd, &ApiServerOptions::encrypted(&text(KEY))).await;
    server.write_secret("s", "value").await;
    let account = r#"{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "a"}}"#;
    let map = r#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"a": "b"}}"#;
    let accounts: kube::Api<k8s_openapi::api::core::v1::ServiceAccount> =
        kube::Api::default_namespaced(server.client());
    accounts.create(&kube::api::PostParams::default(), &serde_json::from_str(account).unwrap()).await.unwrap();
    let maps: kube::Api<k8s_openapi::api::core::v1::ConfigMap> = kube::Api::default_namespaced(server.client());
    maps.create(&kube::api::PostParams::default(), &serde_json::from_str(map).unwrap()).await.unwrap();

    let file = server.folder().join("snapshot.db");
    etcd.snapshot(&file).await;
    let path = file.display().to_string();
    let encryption = format!("--encryption-config={}", server.encryption_file().display());
    let ended = alone(&["rehearse", &path, &encryption, "-o", "json"]).exits(0);
    let found: serde_json::Value = serde_json::from_str(&ended.out).unwrap();
    for (_, resource) in kinds {
        let of = &found["resources"][resource];
        assert!(of["opened"].as_u64() > of["inClear"].as_u64() && of["refused"] == 0, "{resource}: {of}");
    }
    alone(&["snapshot", "get", &path, "secrets/default/s", &encryption]).exits(0).says("dmFsdWU=");
    alone(&["snapshot", "get", &path, "configmaps/default/m", &encryption]).exits(0).says("a: \"b\"");

    // Under another key of the same name nothing opens, and each value is named.
    let other = server.folder().join("other.yaml");
    std::fs::write(&other, text("YW5vdGhlciBzZWNyZXQsIGFsc28gb2YgMzIgYnl0ZXM=")).unwrap();
    let encryption = format!("--encryption-config={}", other.display());
    alone(&["rehearse", &path, &encryption]).exits(10).says("/registry/secrets/default/s");
    alone(&["rehearse", &path]).exits(8).says("give --encryption-config");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_whose_dek_source_is_the_key_itself_is_opened_as_an_api_server_opens_it() {
    let plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 1).await;
    let at = "/registry/secrets/default/s-0";
    let config = format!("--config={}", plane.plugins[0].config_file().display());
    let file = plane.folder.path().join("snapshot.db");
    plane.etcd.snapshot(&file).await;
    let path = file.display().to_string();
    let get = ["snapshot", "get", &path, "secrets/default/s-0", "--raw", &config];
    let plain = tokio::task::block_in_place(|| {
        std::process::Command::new(crate::control_plane::BINARY).args(get).output().unwrap().stdout
    });

    store_under_a_key_of_its_own(&plane.etcd, &plane.plugins[0], at, plain).await;
    assert_eq!(plane.servers[0].read_secret("s-0").await, "s-0", "the API server reads it");
    rehearse(&plane, &[]).exits(0);
    rehearse(&plane, &[&config]).exits(0);
    plane.etcd.snapshot(&file).await;
    alone(&["snapshot", "get", &path, "secrets/default/s-0", &config]).exits(0).says("cy0w");
}

/// Stores a value as API servers without KDF do: the plugin encrypts the AES key itself.
pub async fn store_under_a_key_of_its_own(etcd: &Etcd, plugin: &Plugin, at: &str, plain: Vec<u8>) {
    let key = [42; 32];
    let request = EncryptRequest { plaintext: key.into(), uid: "u".into() };
    let answer = plugin.client().await.unwrap().encrypt(request).await.unwrap().into_inner();
    let cipher = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key).unwrap());
    let mut sealed = plain;
    let nonce = Nonce::assume_unique_for_key([3; 12]);
    cipher.seal_in_place_append_tag(nonce, Aad::from(at.as_bytes()), &mut sealed).unwrap();
    let object = EncryptedObject {
        encrypted_data: [[3; 12].as_slice(), &sealed].concat(),
        key_id: answer.key_id,
        encrypted_dek_source: answer.ciphertext,
        annotations: answer.annotations.into_iter().collect(),
        encrypted_dek_source_type: 0,
    };
    let value = [b"k8s:enc:kms:v2:kube-envelope:".as_slice(), &object.encode_to_vec()].concat();
    assert!(encrypted(&value).is_some());
    etcd.put(at, &value).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_that_is_not_there_keeps_the_api_server_from_starting() {
    let mut plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 1).await;
    plane.plugins[0].stop();
    rehearse(&plane, &[]).exits(10).says("the plugin of provider kube-envelope: cannot connect");
    let encryption = encryption_configuration(&["secrets", "configmaps"], &["{identity: {}}"]);
    std::fs::write(plane.servers[0].encryption_file(), encryption).unwrap();
    rehearse(&plane, &[]).exits(10).says("no provider of the EncryptionConfiguration reads");
}
