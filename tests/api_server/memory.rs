//! Gone means gone: after keys were cleared, the memory of the process has no copy of a DEK or a seed, in no form. The
//! same look finds the DEK before.

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use kube_envelope::crypto::seal::dek_id;
use kube_envelope::crypto::secret::Dek;
use kube_envelope::envelope::{ANNOTATION, Ciphertext, WrappedDekSet};
use serde_json::json;

use crate::sealed_state::sealed_by;
use crate::support::fakes::faults::Fault;
use crate::support::key_store::{KeyStore, settings};
use crate::support::memory::copies;
use crate::support::plugin::proto::{DecryptRequest, EncryptRequest, EncryptResponse};
use crate::support::{KeyringFile, Plugin, wait_until};

const SOON: Duration = Duration::from_secs(40);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_confirmed_denial_leaves_no_dek_and_no_seed_in_memory() {
    leaves_nothing("", async |store| store.allow(&[]).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dek_that_is_too_old_leaves_nothing_in_memory() {
    leaves_nothing("maxOfflineAge: 3s", async |store| store.faults.set(Fault::Refuse)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dek_that_was_sealed_for_a_reboot_leaves_nothing_in_memory() {
    let node = KeyringFile::create();
    leaves_nothing(&sealed_by(&node), async |store| store.allow(&[]).await).await;
}

/// Two nodes' DEKs and their seeds, made, unwrapped and used; then `stop` has the plugin clear them.
async fn leaves_nothing(more: &str, stop: impl AsyncFnOnce(&KeyStore)) {
    let store = KeyStore::start("primary").await;
    let other = Plugin::start(&settings(&[&store], more)).await;
    other.wait_healthy().await;
    let plugin = Plugin::start(&settings(&[&store], more)).await;
    plugin.wait_healthy().await;
    let mut api_server = plugin.client().await.unwrap();
    let seeds: Vec<Vec<u8>> = (0..8).map(|_| (0..32).map(|_| rand::random()).collect()).collect();
    let mut deks = Vec::new();
    for (number, seed) in seeds.iter().enumerate() {
        let request = EncryptRequest { plaintext: seed.clone(), uid: format!("encrypt-{number}") };
        let sealed = match number % 2 {
            0 => other.client().await.unwrap().encrypt(request).await.unwrap().into_inner(),
            _ => api_server.encrypt(request).await.unwrap().into_inner(),
        };
        if deks.len() < 2 {
            deks.push(dek_of(&store, &sealed).await);
        }
        let EncryptResponse { ciphertext, key_id, annotations } = sealed;
        let request = DecryptRequest { ciphertext, uid: format!("decrypt-{number}"), key_id, annotations };
        assert_eq!(api_server.decrypt(request).await.unwrap().into_inner().plaintext, *seed);
    }
    if more.contains("sealedState") {
        let sealed = plugin.folder().join("state/sealed");
        wait_until("the DEKs are sealed", SOON, async || sealed.exists()).await;
    }
    let pid = plugin.process.id();
    for dek in &deks {
        assert!(copies(pid, dek).contains_key("raw"), "a DEK in use is found");
    }
    stop(&store).await;
    wait_until("the plugin has stopped", SOON, async || plugin.get("/status").contains("\"stopped\"")).await;
    let named = |name: &str, secrets: &[Vec<u8>]| {
        let found = secrets.iter().map(|secret| copies(pid, secret));
        found
            .enumerate()
            .filter(|(_, found)| !found.is_empty())
            .map(|found| format!("{name} {found:?}"))
            .collect::<Vec<_>>()
    };
    let left = || [named("DEK", &deks), named("seed", &seeds)].concat();
    // What is freed at the end of a call may take a moment.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(3);
    while !left().is_empty() && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(left(), Vec::<String>::new());
    drop(api_server);
}

/// The DEK, unwrapped by hand at the key store.
async fn dek_of(store: &KeyStore, sealed: &EncryptResponse) -> Vec<u8> {
    let id = Ciphertext::parse(&sealed.ciphertext).unwrap().dek_id;
    let set = WrappedDekSet::decode(&sealed.annotations[ANNOTATION]).unwrap();
    let request = json!({
        "ciphertext": format!("vault:v1:{}", BASE64_STANDARD.encode(&set.wraps[0].blob)),
        "associated_data": BASE64_STANDARD.encode(set.context(id).to_bytes()),
    });
    let answer = store.vault.write(&format!("{}/decrypt/kube-envelope", store.name), request).await;
    let dek = BASE64_STANDARD.decode(answer["data"]["plaintext"].as_str().unwrap()).unwrap();
    assert_eq!(dek_id(&Dek::from_unwrapped(dek.clone()).unwrap()), id);
    dek
}
