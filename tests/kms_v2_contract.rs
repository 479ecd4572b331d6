//! The KMS v2 contract, a test for each sentence, by a real gRPC client on the real socket of the real binary.
//!
//! Sources: *proto* is the text beside the messages in k8s.io/kms v0.37, apis/v2/api.proto; *page* is "Using a KMS
//! provider for data encryption" on kubernetes.io, section "KMS v2" of the notes on developing a plugin; *apiserver*
//! is what k8s.io/apiserver 1.37 enforces (kmsv2/envelope.go, encryptionconfig/config.go); *KEP* is KEP-3299.
#![allow(clippy::unwrap_used, missing_docs)]
mod support;

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use kube_envelope::envelope::MAX_SEED_BYTES;
use kube_envelope::kek::keyring::Keyring;
use support::plugin::proto::key_management_service_client::KeyManagementServiceClient;
use support::plugin::proto::{DecryptRequest, EncryptRequest, EncryptResponse, StatusRequest, StatusResponse};
use support::{KeyringFile, Plugin, wait_until};
use tonic::transport::Channel;
use tonic::{Code, Status};

const CLUSTER: &str = "contract";

/// The longest that a change of a KEK may stay unnoticed at `refreshInterval: 1s`.
const NOTICED_WITHIN: Duration = Duration::from_secs(15);

/// A plugin that asks its KEK nothing by itself after its start.
async fn quiet(keyring: &KeyringFile) -> Plugin {
    let settings = format!("{}\nrefreshInterval: 1h\nproveInterval: 1day", keyring.settings(CLUSTER));
    let plugin = Plugin::start(&settings).await;
    plugin.wait_healthy().await;
    plugin
}

/// A plugin that notices a rotation within seconds.
async fn attentive(keyring: &KeyringFile) -> Plugin {
    let plugin = Plugin::start(&format!("{}\nrefreshInterval: 1s", keyring.settings(CLUSTER))).await;
    plugin.wait_healthy().await;
    plugin
}

async fn status(plugin: &Plugin) -> StatusResponse {
    plugin.status().await.expect("Status is answered")
}

async fn encrypt(client: &mut KeyManagementServiceClient<Channel>, seed: &[u8]) -> EncryptResponse {
    let request = EncryptRequest { plaintext: seed.to_vec(), uid: "encrypt".into() };
    client.encrypt(request).await.unwrap().into_inner()
}

fn decrypt_request(encrypted: &EncryptResponse) -> DecryptRequest {
    DecryptRequest {
        ciphertext: encrypted.ciphertext.clone(),
        uid: "decrypt".into(),
        key_id: encrypted.key_id.clone(),
        annotations: encrypted.annotations.clone(),
    }
}

async fn decrypt(client: &mut KeyManagementServiceClient<Channel>, encrypted: &EncryptResponse) -> Vec<u8> {
    client.decrypt(decrypt_request(encrypted)).await.unwrap().into_inner().plaintext
}

async fn refusal(client: &mut KeyManagementServiceClient<Channel>, request: DecryptRequest) -> Status {
    client.decrypt(request).await.map(drop).expect_err("refused")
}

async fn wait_other_key_id(plugin: &Plugin, before: &str) -> String {
    let mut key_id = String::new();
    wait_until("another key_id", NOTICED_WITHIN, async || {
        key_id = status(plugin).await.key_id;
        key_id != before
    })
    .await;
    key_id
}

/// *proto*: "Version of the KMS gRPC plugin API. Must equal v2 to v2beta1 (v2 is recommended…)".
/// *page*: "That status response should also include "ok" as `StatusResponse.healthz`".
#[tokio::test]
async fn status_reports_version_v2_and_healthz_ok() {
    let keyring = KeyringFile::create();
    let plugin = quiet(&keyring).await;
    let status = status(&plugin).await;
    assert_eq!((status.version.as_str(), status.healthz.as_str()), ("v2", "ok"));
}

/// *proto*: "The keyID is not empty"; "The size of keyID is less than 1 kB".
#[tokio::test]
async fn the_key_id_is_not_empty_and_under_one_kilobyte() {
    let keyring = KeyringFile::create();
    let plugin = quiet(&keyring).await;
    let key_id = status(&plugin).await.key_id;
    assert!((1..1024).contains(&key_id.len()), "{key_id}");
}

/// *page*: "The `key_id` is the public, non-secret name of the remote KMS KEK …, and thus must not contain any private
/// data".
#[tokio::test]
async fn the_key_id_holds_nothing_of_the_keyring() {
    let keyring = KeyringFile::create();
    let plugin = quiet(&keyring).await;
    let key_id = status(&plugin).await.key_id;
    let json = keyring.json();
    for text in [&json["id"], &json["versions"][0]["id"], &json["versions"][0]["key"]] {
        assert!(!key_id.contains(text.as_str().unwrap()));
    }
    assert!(key_id.bytes().all(|byte| byte.is_ascii_graphic()), "{key_id:?} is fit for logs");
}

/// *page*: "plugins must ensure that the `key_id` is stable".
#[tokio::test]
async fn the_key_id_is_stable_over_restarts_and_loss_of_the_state_folder() {
    let keyring = KeyringFile::create();
    let mut plugin = quiet(&keyring).await;
    let key_id = status(&plugin).await.key_id;
    plugin.stop();
    plugin.restart().await;
    assert_eq!(plugin.wait_healthy().await, key_id, "after SIGTERM");
    plugin.kill();
    plugin.restart().await;
    assert_eq!(plugin.wait_healthy().await, key_id, "after SIGKILL");
    plugin.stop();
    std::fs::remove_dir_all(plugin.folder().join("state")).unwrap();
    plugin.restart().await;
    assert_eq!(plugin.wait_healthy().await, key_id, "without state");
}

/// *KEP*: in a cluster of several API servers, each with its plugin, an object counts as stale where the `key_id`s
/// differ: they must be equal. *proto*: "This must always refer to the KMS KEK and not any local KEKs".
#[tokio::test]
async fn two_nodes_on_one_keyring_report_the_same_key_id_and_own_deks() {
    let keyring = KeyringFile::create();
    let (one, other) = (quiet(&keyring).await, quiet(&keyring).await);
    assert_eq!(status(&one).await.key_id, status(&other).await.key_id);
    let by_one = encrypt(&mut one.client().await.unwrap(), &[1; 32]).await;
    let by_other = encrypt(&mut other.client().await.unwrap(), &[1; 32]).await;
    assert_eq!(by_one.key_id, by_other.key_id);
    assert_ne!(by_one.annotations, by_other.annotations, "each node has a DEK of its own");
}

/// *page*: "Plugins must not re-use `key_id`s".
#[tokio::test]
async fn a_recreated_keyring_gets_another_key_id() {
    let keyring = KeyringFile::create();
    let mut plugin = quiet(&keyring).await;
    let before = status(&plugin).await.key_id;
    plugin.stop();
    keyring.recreate();
    plugin.restart().await;
    let after = plugin.wait_healthy().await;
    assert_ne!(before, after);
}

/// *page*: "if a plugin was using `key_id=A`, switched to `key_id=B`, and then went back to `key_id=A` - instead of
/// reporting `key_id=A` the plugin should … use a new value".
#[tokio::test]
async fn a_version_activated_back_is_refused_until_the_epoch_is_raised() {
    let keyring = KeyringFile::create();
    let mut plugin = attentive(&keyring).await;
    let first = status(&plugin).await.key_id;
    keyring.rotate();
    let second = wait_other_key_id(&plugin, &first).await;

    let mut json = keyring.json();
    json["versions"][0]["state"] = "active".into();
    json["versions"][1]["state"] = "retired".into();
    keyring.replace(&json);
    let refused = async || plugin.process.log().contains("raise epoch");
    wait_until("the log says that epoch must be raised", NOTICED_WITHIN, refused).await;
    assert_eq!(status(&plugin).await.key_id, second, "stays on the newest");
    plugin.stop();
    plugin.restart().await;
    assert_eq!(plugin.wait_healthy().await, second, "also after a restart");

    let config = std::fs::read_to_string(plugin.config_file()).unwrap();
    std::fs::write(plugin.config_file(), format!("{config}epoch: 2\n")).unwrap();
    plugin.process.signal(rustix::process::Signal::HUP);
    let third = wait_other_key_id(&plugin, &second).await;
    assert_ne!(third, first);
}

/// *page*: "implementations must guarantee that the `key_id` returned from `Status` will be the same as the one
/// returned by `EncryptRequest`"; "does not flip-flop between values (i.e. during a remote KEK rotation)".
#[tokio::test]
async fn status_and_encrypt_agree_and_change_once_during_a_rotation() {
    let keyring = KeyringFile::create();
    let plugin = attentive(&keyring).await;
    let mut client = plugin.client().await.unwrap();
    let before = status(&plugin).await.key_id;
    assert_eq!(encrypt(&mut client, &[1; 32]).await.key_id, before);
    keyring.rotate();
    let mut seen = vec![before.clone()];
    let deadline = Instant::now() + NOTICED_WITHIN;
    let mut after_change = 0;
    while after_change < 200 {
        assert!(Instant::now() < deadline, "the rotation is noticed");
        let status = client.status(StatusRequest {}).await.unwrap().into_inner().key_id;
        let encrypted = encrypt(&mut client, &[1; 32]).await.key_id;
        let again = client.status(StatusRequest {}).await.unwrap().into_inner().key_id;
        assert!(encrypted == status || encrypted == again, "Encrypt is between the two Status around it");
        for key_id in [status, encrypted, again] {
            if seen.last() != Some(&key_id) {
                seen.push(key_id);
            }
        }
        after_change += usize::from(seen.len() > 1);
    }
    assert_eq!(seen.len(), 2, "one change, and no way back: {seen:?}");
}

/// *proto*: "The ciphertext is not empty"; "The ciphertext is less than 1 kB". *apiserver*: 1 to 1024 bytes.
#[tokio::test]
async fn every_seed_up_to_the_longest_becomes_a_ciphertext_of_at_most_one_kibibyte_and_comes_back() {
    let keyring = KeyringFile::create();
    let plugin = quiet(&keyring).await;
    let mut client = plugin.client().await.unwrap();
    for length in [1, 16, 31, 32, 33, 64, 100, 512, MAX_SEED_BYTES - 1, MAX_SEED_BYTES] {
        let seed: Vec<u8> = (0..length).map(|i| u8::try_from(i % 251).unwrap()).collect();
        let encrypted = encrypt(&mut client, &seed).await;
        assert!((1..=1024).contains(&encrypted.ciphertext.len()), "seed of {length}");
        assert_eq!(decrypt(&mut client, &encrypted).await, seed);
    }
}

/// The other side of the limit: what cannot be stored is refused, rather than answered and dropped by the API server.
#[tokio::test]
async fn a_seed_that_no_ciphertext_has_room_for_is_refused() {
    let keyring = KeyringFile::create();
    let plugin = quiet(&keyring).await;
    let mut client = plugin.client().await.unwrap();
    for length in [0, MAX_SEED_BYTES + 1, 4096] {
        let request = EncryptRequest { plaintext: vec![1; length], uid: "too-long".into() };
        let refused = client.encrypt(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains(&format!("plaintext has {length} bytes")), "{}", refused.message());
    }
}

/// *proto*: "Annotation key must be a fully qualified domain name that conforms to the definition in DNS (RFC 1123)".
/// *apiserver*: at least two labels, of lower case letters, digits and '-', 63 bytes each, 253 together, and no '/'.
#[tokio::test]
async fn annotation_keys_are_fully_qualified_domain_names() {
    let keyring = KeyringFile::create();
    let plugin = quiet(&keyring).await;
    let encrypted = encrypt(&mut plugin.client().await.unwrap(), &[1; 32]).await;
    assert!(!encrypted.annotations.is_empty());
    for key in encrypted.annotations.keys() {
        let labels: Vec<_> = key.split('.').collect();
        assert!(labels.len() >= 2 && key.len() <= 253, "{key}");
        for label in labels {
            let of_dns = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            let ends = label.starts_with('-') || label.ends_with('-');
            assert!((1..=63).contains(&label.len()) && label.chars().all(of_dns) && !ends, "{key}");
        }
    }
}

/// *proto*: "The size of annotations keys + values is less than 32 kB".
#[tokio::test]
async fn annotations_stay_under_32_kilobytes() {
    let keyring = KeyringFile::create();
    let plugin = quiet(&keyring).await;
    let encrypted = encrypt(&mut plugin.client().await.unwrap(), &[1; 32]).await;
    let bytes: usize = encrypted.annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
    assert!(bytes < 32 * 1000, "{bytes} bytes");
}

/// *proto*: "This data is stored in plaintext in etcd. KMS plugin implementations are responsible for pre-encrypting
/// any sensitive data".
#[tokio::test]
async fn neither_annotations_nor_ciphertext_show_the_seed_or_a_key() {
    let keyring = KeyringFile::create();
    let plugin = quiet(&keyring).await;
    let seed: Vec<u8> = (100..132).collect();
    let encrypted = encrypt(&mut plugin.client().await.unwrap(), &seed).await;
    let secrets = [keyring.keys(), vec![seed]].concat();
    for stored in encrypted.annotations.values().chain([&encrypted.ciphertext]) {
        for secret in &secrets {
            assert!(!stored.windows(8).any(|window| secret.windows(8).any(|part| part == window)));
        }
    }
}

/// *page*: "The plugin must guarantee that any distinct plaintext results in a distinct response `(ciphertext, key_id,
/// annotations)`". Equal plaintexts too: a repeated seed must not show in etcd.
#[tokio::test]
async fn distinct_and_equal_plaintexts_alike_give_distinct_responses() {
    let keyring = KeyringFile::create();
    let plugin = quiet(&keyring).await;
    let mut client = plugin.client().await.unwrap();
    let mut ciphertexts = HashSet::new();
    for i in 0..100_u8 {
        assert!(ciphertexts.insert(encrypt(&mut client, &[i; 32]).await.ciphertext), "distinct plaintext {i}");
        assert!(ciphertexts.insert(encrypt(&mut client, &[7; 32]).await.ciphertext), "equal plaintext {i}");
    }
}

/// *page*: "it is the inverse of the `EncryptRequest` call".
#[tokio::test]
async fn decrypt_is_the_inverse_of_encrypt() {
    let keyring = KeyringFile::create();
    let plugin = quiet(&keyring).await;
    let mut client = plugin.client().await.unwrap();
    for i in 0..20 {
        let encrypted = encrypt(&mut client, &[i; 32]).await;
        assert_eq!(decrypt(&mut client, &encrypted).await, [i; 32]);
    }
}

/// *page*: "Plugins must verify that the `key_id` is one that they understand".
#[tokio::test]
async fn a_key_id_that_is_not_ours_is_refused() {
    let keyring = KeyringFile::create();
    let plugin = quiet(&keyring).await;
    let mut client = plugin.client().await.unwrap();
    let encrypted = encrypt(&mut client, &[1; 32]).await;
    let swapped: String = encrypted.key_id.chars().rev().collect();
    for key_id in ["", "1", "ke1-", "projects/p/locations/l/keyRings/r/cryptoKeys/k", &swapped] {
        let request = DecryptRequest { key_id: key_id.into(), ..decrypt_request(&encrypted) };
        let refused = refusal(&mut client, request).await;
        assert_eq!(refused.code(), Code::InvalidArgument, "{key_id}");
        assert!(refused.message().contains("key_id"), "{}", refused.message());
    }
}

/// *page*: "they must not attempt to decrypt data unless they are sure that it was encrypted by them at an earlier
/// time".
#[tokio::test]
async fn the_annotation_and_key_id_of_another_generation_are_refused_for_a_ciphertext() {
    let keyring = KeyringFile::create();
    let plugin = attentive(&keyring).await;
    let mut client = plugin.client().await.unwrap();
    let first = encrypt(&mut client, &[1; 32]).await;
    keyring.rotate();
    wait_other_key_id(&plugin, &first.key_id).await;
    let second = encrypt(&mut client, &[1; 32]).await;
    let unwraps = plugin.kek_requests("unwrap");
    let mixed = [
        DecryptRequest { annotations: second.annotations.clone(), ..decrypt_request(&first) },
        DecryptRequest { key_id: second.key_id.clone(), ..decrypt_request(&first) },
        DecryptRequest {
            annotations: second.annotations.clone(),
            key_id: second.key_id.clone(),
            ..decrypt_request(&first)
        },
        DecryptRequest { ciphertext: first.ciphertext.clone(), ..decrypt_request(&second) },
    ];
    for request in mixed {
        assert_eq!(refusal(&mut client, request).await.code(), Code::InvalidArgument);
    }
    assert_eq!(plugin.kek_requests("unwrap"), unwraps, "no KEK was asked");
    assert_eq!(decrypt(&mut client, &first).await, [1; 32]);
}

/// *KEP*: every API server reads what the others wrote.
#[tokio::test]
async fn what_another_node_encrypted_is_decrypted() {
    let keyring = KeyringFile::create();
    let (writer, reader) = (quiet(&keyring).await, quiet(&keyring).await);
    let encrypted = encrypt(&mut writer.client().await.unwrap(), &[9; 32]).await;
    drop(writer);
    assert_eq!(decrypt(&mut reader.client().await.unwrap(), &encrypted).await, [9; 32]);
}

/// *page*: "no API server restart is required to perform KEK rotation", and of the plugin none either.
#[tokio::test]
async fn an_old_generation_still_opens_after_a_rotation_without_a_restart_and_with_one() {
    let keyring = KeyringFile::create();
    let mut plugin = attentive(&keyring).await;
    let mut generations = vec![encrypt(&mut plugin.client().await.unwrap(), &[0; 32]).await];
    for generation in 1..4 {
        keyring.rotate();
        wait_other_key_id(&plugin, &generations.last().unwrap().key_id).await;
        generations.push(encrypt(&mut plugin.client().await.unwrap(), &[generation; 32]).await);
    }
    let names: HashSet<_> = generations.iter().map(|encrypted| encrypted.key_id.clone()).collect();
    assert_eq!(names.len(), 4);
    for restarted in [false, true] {
        if restarted {
            plugin.stop();
            std::fs::remove_dir_all(plugin.folder().join("state")).unwrap();
            plugin.restart().await;
            plugin.wait_healthy().await;
        }
        let mut client = plugin.client().await.unwrap();
        for (generation, encrypted) in (0..).zip(&generations) {
            assert_eq!(decrypt(&mut client, encrypted).await, [generation; 32], "restarted: {restarted}");
        }
    }
}

/// *page*: "Plugins must take care to optimize this call as it will be under constant load" (Status); "keep each
/// request's latency at under 100 milliseconds" (Encrypt): neither asks a KEK anything.
#[tokio::test]
async fn status_encrypt_and_a_decrypt_of_a_known_dek_ask_no_kek() {
    let keyring = KeyringFile::create();
    let plugin = quiet(&keyring).await;
    let mut client = plugin.client().await.unwrap();
    let before = plugin.kek_requests("");
    assert!(before > 0, "the metric counts");
    for _ in 0..100 {
        client.status(StatusRequest {}).await.unwrap();
        let encrypted = encrypt(&mut client, &[3; 32]).await;
        decrypt(&mut client, &encrypted).await;
    }
    assert_eq!(plugin.kek_requests(""), before);
}

/// *page*: "The API server may perform thousands of `DecryptRequest` procedure calls on startup": however many there
/// are at once, each DEK costs one unwrap.
#[tokio::test(flavor = "multi_thread")]
async fn concurrent_decrypts_of_one_foreign_dek_cost_exactly_one_unwrap() {
    let keyring = KeyringFile::create();
    let writer = quiet(&keyring).await;
    let mut client = writer.client().await.unwrap();
    let mut encrypted = Vec::new();
    for i in 0..100 {
        encrypted.push(encrypt(&mut client, &[i; 32]).await);
    }
    let cold = quiet(&keyring).await;
    let before = cold.kek_requests("unwrap");
    let client = cold.client().await.unwrap();
    let calls = (0..).zip(&encrypted).map(|(i, encrypted)| {
        let mut client = client.clone();
        async move { assert_eq!(decrypt(&mut client, encrypted).await, [i; 32]) }
    });
    futures::future::join_all(calls).await;
    assert_eq!(cold.kek_requests("unwrap") - before, 1);
    assert_eq!(cold.kek_requests("wrap\""), 1, "and nothing else was asked");
}

/// A cold API server reads its seeds over one connection, as fast as the stream limit lets it: none is turned away.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_decrypts_at_once_over_one_connection_are_all_answered() {
    let keyring = KeyringFile::create();
    let plugin = quiet(&keyring).await;
    let client = plugin.client().await.unwrap();
    let encrypted = encrypt(&mut client.clone(), &[5; 32]).await;
    let calls = (0..1000).map(|_| {
        let (mut client, request) = (client.clone(), decrypt_request(&encrypted));
        async move { client.decrypt(request).await.map(|response| response.into_inner().plaintext) }
    });
    for answer in futures::future::join_all(calls).await {
        assert_eq!(answer.unwrap(), [5; 32]);
    }
}

/// Invariant 10: the bounds of *apiserver* are checked with the real wraps before anything is served, not by the API
/// server at the first write.
#[tokio::test]
async fn annotations_that_no_api_server_stores_keep_the_plugin_from_serving_and_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let keks = (0..250).map(|i| {
        let file = folder.path().join(format!("{i}.json"));
        Keyring::create(&mut rand::rng()).write_new(&file).unwrap();
        format!("{{name: k{i}, keyring: {{file: {}}}}}", file.display())
    });
    let keks = keks.collect::<Vec<_>>().join(", ");
    let mut plugin = Plugin::start(&format!("cluster: {CLUSTER}\nkeks: [{keks}]")).await;
    let mut client = plugin.client().await.unwrap();
    let refused = client.status(StatusRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("the API server stores 32768; configure fewer KEKs"), "{}", refused.message());
    let request = EncryptRequest { plaintext: vec![1; 32], uid: "encrypt".into() };
    assert_eq!(client.encrypt(request).await.unwrap_err().code(), Code::Unavailable);
    assert!(plugin.process.is_running(), "it says so for as long as it is so");
}

/// *proto*: "UID is a unique identifier for the request": an operator finds the refusal by it.
#[tokio::test]
async fn a_refusal_names_the_uid_of_its_request_and_logs_it() {
    let keyring = KeyringFile::create();
    let plugin = quiet(&keyring).await;
    let request = DecryptRequest {
        ciphertext: vec![1],
        uid: "3f1c-unique".into(),
        key_id: "k".into(),
        annotations: HashMap::new(),
    };
    let refused = refusal(&mut plugin.client().await.unwrap(), request).await;
    assert!(refused.message().contains("3f1c-unique"), "{}", refused.message());
    assert!(plugin.process.log().contains("3f1c-unique"));
}

/// *page*: "The plugin deployment should create a file on the file system to run the gRPC unix domain socket
/// connection"; Kubernetes 1.32 and later send `localhost` as authority.
#[tokio::test]
async fn the_socket_is_a_file_that_only_its_owner_may_use() {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    let keyring = KeyringFile::create();
    let plugin = quiet(&keyring).await;
    let metadata = std::fs::symlink_metadata(plugin.socket()).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
}
