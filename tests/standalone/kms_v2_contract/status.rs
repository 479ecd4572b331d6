//! Status and its `key_id`.

use super::*;

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
    // With it, the plugin would not go on without the former keyring.
    std::fs::remove_dir_all(plugin.folder().join("state")).unwrap();
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
