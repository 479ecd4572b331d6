//! Encrypt: the sizes and the form of an answer, and what it must not show.

use std::collections::HashSet;

use kube_envelope::envelope::MAX_SEED_BYTES;
use kube_envelope::key_stores::keyring::Keyring;

use super::*;

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
    assert!(refused.message().contains("at most 16 are possible; remove some under keks"), "{}", refused.message());
    let request = EncryptRequest { plaintext: vec![1; 32], uid: "encrypt".into() };
    assert_eq!(client.encrypt(request).await.unwrap_err().code(), Code::Unavailable);
    assert!(plugin.process.is_running(), "it says so for as long as it is so");
}
