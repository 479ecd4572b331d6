//! The plugin's own binary with a KEK in a token: the module is loaded into the process that has given up its
//! privileges, and serves there over rotations and restarts. The KEK by itself is `kek_conformance`'s.

use crate::support::plugin::proto::{DecryptRequest, EncryptRequest, EncryptResponse};
use crate::support::token::Token;
use crate::support::{Plugin, STARTS_WITHIN, wait_until};

/// How often the plugin looks after its key.
const SOON: &str = "refreshInterval: 1s";
const SEED: &[u8] = b"32 bytes, as an API server sends";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_follows_a_new_key_in_the_token_and_opens_what_the_old_one_wrapped() {
    let token = Token::new();
    token.tool(&["--keygen", "--key-type", "AES:32", "--label", "kube-envelope", "--id", "01", "--sensitive"]);
    let mut plugin = token.plugin("aesGcm", SOON);
    let first = plugin.wait_healthy().await;
    let sealed = encrypt(&plugin).await;
    assert_eq!(sealed.key_id, first);
    token.tool(&["--keygen", "--key-type", "AES:32", "--label", "kube-envelope", "--id", "02", "--sensitive"]);
    wait_until("the new key is adopted", STARTS_WITHIN, async || {
        plugin.status().await.is_some_and(|status| status.key_id != first)
    })
    .await;
    assert_ne!(encrypt(&plugin).await.key_id, first);
    assert_eq!(decrypt(&plugin, &sealed).await, SEED);
    plugin.stop();
    plugin.restart().await;
    assert_ne!(plugin.wait_healthy().await, first, "the new generation outlives a restart");
    assert_eq!(decrypt(&plugin, &sealed).await, SEED, "after a restart");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_waits_for_a_key_and_serves_once_it_is_made() {
    let token = Token::new();
    let plugin = token.plugin("aesGcm", SOON);
    wait_until("Status tells what is missing", STARTS_WITHIN, async || {
        let Some(mut client) = plugin.client().await else { return false };
        let status = client.status(crate::support::plugin::proto::StatusRequest {}).await;
        status.is_err_and(|status| status.message().contains("kube-envelope"))
    })
    .await;
    token.tool(&["--keygen", "--key-type", "AES:32", "--label", "kube-envelope", "--id", "01", "--sensitive"]);
    plugin.wait_healthy().await;
    assert_eq!(decrypt(&plugin, &encrypt(&plugin).await).await, SEED);
}

async fn encrypt(plugin: &Plugin) -> EncryptResponse {
    let request = EncryptRequest { plaintext: SEED.to_vec(), uid: "u".into() };
    plugin.client().await.unwrap().encrypt(request).await.unwrap().into_inner()
}

async fn decrypt(plugin: &Plugin, sealed: &EncryptResponse) -> Vec<u8> {
    let EncryptResponse { ciphertext, key_id, annotations } = sealed.clone();
    let request = DecryptRequest { ciphertext, uid: "u".into(), key_id, annotations };
    plugin.client().await.unwrap().decrypt(request).await.unwrap().into_inner().plaintext
}
