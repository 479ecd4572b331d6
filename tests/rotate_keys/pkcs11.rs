//! `rotate-keys --rotate-kek` with a KEK in a SoftHSM token.

use crate::support::rotation::rotates_end_to_end;
use crate::support::token::Token;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotate_keys_makes_a_new_key_in_the_token_and_brings_everything_under_it() {
    rotates("aesGcm", &["--keygen", "--key-type", "AES:32"], "secrkey").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotate_keys_makes_a_new_pair_in_a_token_with_rsa_alone_and_brings_everything_under_it() {
    rotates("rsaOaepSha1", &["--keypairgen", "--key-type", "rsa:2048"], "privkey").await;
}

async fn rotates(mechanism: &str, made_by: &[&str], kind: &str) {
    let token = Token::new();
    token.tool(&[made_by, &["--label", "kube-envelope", "--id", "01", "--sensitive"]].concat());
    let plugin = token.plugin(mechanism, "refreshInterval: 1s");
    plugin.wait_healthy().await;
    rotates_end_to_end(&plugin, &[("SOFTHSM2_CONF", &token.settings())]).await;
    let keys = token.tool(&["--list-objects", "--type", kind]);
    assert_eq!(keys.matches("label:      kube-envelope").count(), 2, "{keys}");
}
