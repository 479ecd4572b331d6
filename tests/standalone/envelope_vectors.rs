//! Frozen results of every released format, in `tests/vectors/`: each opens for ever, by a plugin that has nothing but
//! the keyring. Files are added, never edited.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::support::plugin::proto::{DecryptRequest, EncryptRequest};
use crate::support::{KeyringFile, Plugin};
use kube_envelope::envelope::{ANNOTATION, Ciphertext, MAX_SEED_BYTES, WrappedDekSet};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One object as it lies in etcd, and all that is needed to open it. The keys are for tests.
#[derive(Serialize, Deserialize)]
struct Vector {
    about: String,
    cluster: String,
    epoch: u64,
    /// Each KEK's keyring file; any one of them suffices.
    keyrings: Vec<Value>,
    key_id: String,
    ciphertext: String,
    annotation: String,
    plaintext: String,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/v1")
}

fn vectors() -> Vec<(PathBuf, Vector)> {
    let files = std::fs::read_dir(folder()).unwrap().map(|file| file.unwrap().path());
    let vectors: Vec<_> =
        files.map(|file| (file.clone(), serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap())).collect();
    assert!(vectors.len() >= 5, "{} vectors", vectors.len());
    vectors
}

fn settings(cluster: &str, epoch: u64, keyrings: &[KeyringFile]) -> String {
    let keks = keyrings.iter().enumerate().map(|(i, keyring)| {
        let file = keyring.path();
        format!("{{name: k{i}, keyring: {{file: {}}}}}", file.display())
    });
    let keks = keks.collect::<Vec<_>>().join(", ");
    format!("cluster: {cluster}\nepoch: {epoch}\nrefreshInterval: 1s\nkeks: [{keks}]")
}

#[tokio::test]
async fn a_plugin_opens_every_vector_with_each_of_its_keyrings_alone() {
    for (file, vector) in vectors() {
        for content in &vector.keyrings {
            let keyring = KeyringFile::create();
            keyring.replace(content);
            // Another epoch than the vector's: an old generation, as in a restored backup.
            let keyrings = [keyring];
            let plugin = Plugin::start(&settings(&vector.cluster, vector.epoch + 1, &keyrings)).await;
            plugin.wait_healthy().await;
            let request = DecryptRequest {
                ciphertext: hex::decode(&vector.ciphertext).unwrap(),
                uid: "vector".into(),
                key_id: vector.key_id.clone(),
                annotations: HashMap::from([(ANNOTATION.into(), hex::decode(&vector.annotation).unwrap())]),
            };
            let opened = plugin.client().await.unwrap().decrypt(request).await;
            let opened = opened.map(|response| hex::encode(response.into_inner().plaintext));
            assert_eq!(opened.map_err(|status| status.to_string()), Ok(vector.plaintext.clone()), "{}", file.display());
        }
    }
}

/// The `key_id` that a generation had is the one it has: a change would make every object of every cluster stale.
#[tokio::test]
async fn a_plugin_of_the_same_configuration_reports_the_vectors_key_id() {
    for (file, vector) in vectors() {
        let restored = vector.keyrings.iter().map(|content| {
            let keyring = KeyringFile::create();
            keyring.replace(&at_the_vectors_version(content, &vector));
            keyring
        });
        let keyrings: Vec<_> = restored.collect();
        let plugin = Plugin::start(&settings(&vector.cluster, vector.epoch, &keyrings)).await;
        assert_eq!(plugin.wait_healthy().await, vector.key_id, "{}", file.display());
    }
}

/// The keyring as it was when the vector was made: with the version active that wrapped.
fn at_the_vectors_version(keyring: &Value, vector: &Vector) -> Value {
    let set = WrappedDekSet::decode(&hex::decode(&vector.annotation).unwrap()).unwrap();
    let mut keyring = keyring.clone();
    for version in keyring["versions"].as_array_mut().unwrap() {
        let wrapped = set.versions().any(|wrapped| version["id"] == wrapped.version.as_str());
        version["state"] = if wrapped { "active" } else { "retired" }.into();
    }
    keyring
}

#[test]
fn the_layout_of_every_vector_is_the_documented_one() {
    for (file, vector) in vectors() {
        let ciphertext = hex::decode(&vector.ciphertext).unwrap();
        assert_eq!(ciphertext[..3], *b"KE\x01", "{}", file.display());
        assert_eq!(ciphertext.len(), 2 + 1 + 16 + 32 + 12 + vector.plaintext.len() / 2 + 16, "{}", file.display());
        assert_eq!(Ciphertext::parse(&ciphertext).unwrap().dek_id.0, ciphertext[3..19], "{}", file.display());
        let set = WrappedDekSet::decode(&hex::decode(&vector.annotation).unwrap()).unwrap();
        assert_eq!(set.key_id().as_str(), vector.key_id, "{}", file.display());
        assert_eq!((set.cluster.to_string(), set.epoch), (vector.cluster, vector.epoch), "{}", file.display());
        assert_eq!(set.wraps.len(), vector.keyrings.len(), "{}", file.display());
    }
}

#[tokio::test]
#[ignore = "writes new vectors; run by hand when a new format is released"]
async fn write_vectors() {
    let one = |seed: Vec<u8>, about: &'static str, epoch: u64, keyrings: usize, rotated: bool| async move {
        let keyrings: Vec<_> = (0..keyrings).map(|_| KeyringFile::create()).collect();
        let (cluster, plaintext) = ("vectors-1", hex::encode(&seed));
        let plugin = Plugin::start(&settings(cluster, epoch, &keyrings)).await;
        plugin.wait_healthy().await;
        let request = EncryptRequest { plaintext: seed, uid: "vector".into() };
        let encrypted = plugin.client().await.unwrap().encrypt(request).await.unwrap().into_inner();
        if rotated {
            keyrings.iter().for_each(KeyringFile::rotate);
        }
        let vector = Vector {
            about: about.into(),
            cluster: cluster.into(),
            epoch,
            keyrings: keyrings.iter().map(KeyringFile::json).collect(),
            key_id: encrypted.key_id,
            ciphertext: hex::encode(encrypted.ciphertext),
            annotation: hex::encode(&encrypted.annotations[ANNOTATION]),
            plaintext,
        };
        std::fs::create_dir_all(folder()).unwrap();
        let file = folder().join(format!("{}.json", about.replace(' ', "_")));
        // Never over an existing one.
        let mut file = std::fs::File::create_new(file).unwrap();
        writeln!(file, "{}", serde_json::to_string_pretty(&vector).unwrap()).unwrap();
    };
    let seed = |length: usize| (0..length).map(|i| u8::try_from(i % 256).unwrap()).collect::<Vec<u8>>();
    one(seed(32), "todays seed", 1, 1, false).await;
    one(seed(1), "shortest seed", 1, 1, false).await;
    one(seed(MAX_SEED_BYTES), "longest seed", 1, 1, false).await;
    one(seed(32), "two keyrings", 1, 2, false).await;
    one(seed(32), "retired version and raised epoch", 7, 1, true).await;
}
