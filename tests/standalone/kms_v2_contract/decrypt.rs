//! Decrypt: what opens, what is refused, and what it costs.

use std::collections::{HashMap, HashSet};

use super::*;
use crate::support::plugin::connect_with;

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
    // How fast is another question.
    let client = connect_with(&plugin.socket(), Duration::from_mins(1)).await.unwrap();
    let encrypted = encrypt(&mut client.clone(), &[5; 32]).await;
    let calls = (0..1000).map(|_| {
        let (mut client, request) = (client.clone(), decrypt_request(&encrypted));
        async move { client.decrypt(request).await.map(|response| response.into_inner().plaintext) }
    });
    for answer in futures::future::join_all(calls).await {
        assert_eq!(answer.unwrap(), [5; 32]);
    }
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
    assert!(plugin.process.says("3f1c-unique"));
}
