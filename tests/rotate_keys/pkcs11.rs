//! `rotate-keys --rotate-kek` with a KEK in a SoftHSM token.

use std::process::Command;

use crate::control_plane::{BINARY, Ended};
use crate::support::Plugin;
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

/// A token does not tell when a key was made.
fn no_age_is_guessed(token: &Token, plugin: &Plugin) {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(BINARY);
    command.args(["rotate-keys", "--rotate-kek", "--if-older-than=90d", "--unattended"]);
    command.arg(format!("--config={}", plugin.config_file().display()));
    command.arg(format!("--journal={}", folder.path().join("journal.json").display()));
    command.env("SOFTHSM2_CONF", token.settings());
    let output = tokio::task::block_in_place(|| command.output().unwrap());
    Ended::of(&output).exits(2).says("cannot be known");
}

async fn rotates(mechanism: &str, made_by: &[&str], kind: &str) {
    let token = Token::new();
    token.tool(&[made_by, &["--label", "kube-envelope", "--id", "01", "--sensitive"]].concat());
    let plugin = token.plugin(mechanism, "refreshInterval: 1s");
    plugin.wait_healthy().await;
    no_age_is_guessed(&token, &plugin);
    rotates_end_to_end(&plugin, &[("SOFTHSM2_CONF", &token.settings())]).await;
    let keys = token.tool(&["--list-objects", "--type", kind]);
    assert_eq!(keys.matches("label:      kube-envelope").count(), 2, "{keys}");
}
