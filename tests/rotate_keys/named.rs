//! A *Yes* names what may be disabled, and where no key went out of use there is none.

use kube::api::ListParams;

use crate::control_plane::{ControlPlane, Shape};
use crate::support::plugin::encryption_configuration;
use crate::support::{ApiServer, ApiServerOptions, Encryption, Etcd, KeyringFile, Plugin};

const REPORTS_ARE_OLD: &str = "every API server must ask its plugin for the key again";

/// The id of the version in this state.
fn version(keyring: &KeyringFile, state: &str) -> String {
    let versions = keyring.versions();
    let found = versions.iter().find(|version| version["state"] == state).unwrap();
    found["id"].as_str().unwrap().to_owned()
}

/// What the README says for a keyring: add, copy, activate, copy, and at once `rotate-keys`.
fn rotate_as_the_readme_says(plane: &ControlPlane) {
    plane.prepare_keyrings();
    plane.keyrings[0].command(&["activate"], &[]);
    plane.keyrings.iter().skip(1).for_each(|keyring| keyring.copy_from(&plane.keyrings[0]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn run_at_once_after_activating_a_version_the_rotation_waits_for_the_plugins_and_names_the_former_version() {
    let mut plane = ControlPlane::start(Shape { refresh_interval: "60s", ..Shape::of(2) }).await;
    plane.create_secrets("s", 50).await;
    let old = plane.key_id(0).await;
    let former = version(&plane.keyrings[0], "active");
    rotate_as_the_readme_says(&plane);

    let config = format!("--config={}", plane.plugins[0].config_file().display());
    let ended = plane.run("rotate-keys", &[&config]).exits(0).says(REPORTS_ARE_OLD);
    let ended = ended.says(&format!("Yes: nothing is stored under KEK primary version {former}."));
    ended.says(&format!("may be disabled: KEK primary version {former}"));
    assert!(!plane.stored().await.contains_key(&old));

    // Obeyed, and everything started again.
    plane.keyrings[0].command(&["destroy"], &[&former]);
    plane.keyrings[1].copy_from(&plane.keyrings[0]);
    for node in 0..2 {
        plane.plugins[node].stop();
        plane.plugins[node].restart().await;
        plane.servers[node].stop();
        plane.servers[node].restart().await;
        plane.check_secrets(node, "s", 50).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_plugins_configuration_a_version_that_no_plugin_has_noticed_is_no_rotation() {
    let plane = ControlPlane::start(Shape { refresh_interval: "1h", ..Shape::of(1) }).await;
    plane.create_secrets("s", 20).await;
    let old = plane.key_id(0).await;
    rotate_as_the_readme_says(&plane);
    let ended = plane.run("rotate-keys", &[]).exits(9).says("Nothing was rotated");
    assert!(!ended.out.contains("may be disabled:"), "{}", ended.out);
    plane.check_all_under(&old).await;
    plane.run("rotate-keys", &["no-etcd"]).exits(9).says("Nothing was rotated");
    plane.run("rotate-keys", &["--status"]).exits(9);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_run_after_a_rotation_finds_no_key_to_disable_unless_it_is_named() {
    let plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 20).await;
    let old = plane.key_id(0).await;
    let former = version(&plane.keyrings[0], "active");
    plane.rotate_keyrings(0..1);
    plane.wait_key_id(0..1, &old).await;
    let config = format!("--config={}", plane.plugins[0].config_file().display());
    plane.run("rotate-keys", &[&config]).exits(0).says(&format!("KEK primary version {former}."));
    let events = "/api/v1/namespaces/kube-envelope-canary/events";
    let (_, posted) = plane.servers[0].get(events).await.unwrap();
    assert!(posted.contains("FormerKeysUnused") && posted.contains(&former), "{posted}");
    // Every server reports what the keyring says is active.
    let again = plane.run("rotate-keys", &[&config]).exits(9).says("--former");
    assert!(!again.out.contains(REPORTS_ARE_OLD), "{}", again.out);
    let named = format!("--former=primary:{former}");
    plane.run("rotate-keys", &[&config, &named]).exits(0).says(&format!("KEK primary version {former}."));
    let active = format!("--former=primary:{}", version(&plane.keyrings[0], "active"));
    plane.run("rotate-keys", &[&config, &active]).exits(9);
    plane.run("rotate-keys", &[&config, "--former=primary"]).exits(9);
    plane.run("rotate-keys", &[&config, "--former=nonsense"]).exits(1).says("--former nonsense");
    plane.run("rotate-keys", &[&config, "--former=primary:1"]).exits(1).says(&format!("version {former}"));
}

/// After a DEK may have leaked, `epoch` is raised: the DEKs go out of use, and no KEK version does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_raised_epoch_takes_the_generation_before_it_out_of_use() {
    let mut plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 20).await;
    let old = plane.key_id(0).await;
    let file = plane.plugins[0].config_file();
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("{text}\nepoch: 2\n")).unwrap();
    plane.plugins[0].stop();
    plane.plugins[0].restart().await;
    let new = plane.wait_key_id(0..1, &old).await;
    let config = format!("--config={}", file.display());
    let ended = plane.run("rotate-keys", &[&config]).exits(9);
    let ended = ended.says(&format!("Yes: nothing is stored under generation {old}"));
    let ended = ended.says("no KEK version went out of use");
    assert!(!ended.out.contains("may be disabled:"), "{}", ended.out);
    plane.check_all_under(&new).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_etcd_a_version_is_named_only_where_its_key_id_can_be_derived() {
    let plane = ControlPlane::start(Shape::compacting(1)).await;
    plane.create_secrets("s", 20).await;
    let old = plane.key_id(0).await;
    let former = version(&plane.keyrings[0], "active");
    plane.rotate_keyrings(0..1);
    plane.wait_key_id(0..1, &old).await;
    let config = format!("--config={}", plane.plugins[0].config_file().display());
    plane.run("rotate-keys", &["no-etcd", &config]).exits(0).says(&format!("KEK primary version {former}."));

    // A version that is in no file any more is a hash and nothing else.
    let second = plane.key_id(0).await;
    plane.rotate_keyrings(0..1);
    plane.wait_key_id(0..1, &second).await;
    let hidden = version(&plane.keyrings[0], "active");
    let mut json = plane.keyrings[0].json();
    let versions = json["versions"].as_array_mut().unwrap();
    let elsewhere = versions.clone();
    versions.retain(|one| one["id"] == hidden.as_str());
    let file = plane.folder.path().join("workstation.json");
    std::fs::write(&file, json.to_string()).unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    assert_eq!(elsewhere.len(), 3);
    let text = std::fs::read_to_string(plane.plugins[0].config_file()).unwrap();
    let text = text.replace(&plane.keyrings[0].path().display().to_string(), &file.display().to_string());
    let config = plane.folder.path().join("config.yaml");
    std::fs::write(&config, text).unwrap();
    let config = format!("--config={}", config.display());
    plane.run("rotate-keys", &["no-etcd", &config]).exits(8).says("Not proven").says("give --etcd");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_that_is_degraded_because_another_kek_is_away_makes_no_rotation() {
    let keyrings = [KeyringFile::create(), KeyringFile::create()];
    let kek = |name: &str, keyring: &KeyringFile| {
        format!("{{name: {name}, keyring: {{file: {}}}}}", keyring.path().display())
    };
    let keks = [kek("primary", &keyrings[0]), kek("dr", &keyrings[1])].join(", ");
    let plugin = Plugin::start(&format!("cluster: test\nrefreshInterval: 1s\nkeks: [{keks}]")).await;
    let first = plugin.wait_healthy().await;
    let etcd = Etcd::start().await;
    let encryption = encryption_configuration(&["secrets"], &[&plugin.provider(), "{identity: {}}"]);
    let options = ApiServerOptions { encryption: Encryption::Text(encryption), ..ApiServerOptions::default() };
    let server = ApiServer::start(&etcd, &options).await;
    server.write_secret("s", "value").await;

    std::fs::rename(keyrings[1].path(), keyrings[1].path().with_extension("away")).unwrap();
    keyrings[0].rotate();
    crate::support::wait_until("the plugin is degraded", std::time::Duration::from_secs(20), async || {
        plugin.get("/status").contains("degraded")
    })
    .await;
    let journal = format!("--journal={}", server.folder().join("journal.json").display());
    let more = [journal.as_str(), "--settle=0s", "--compact", "--snapshot-command=true"];
    let ended = crate::support::rotation::run(&server, &etcd, "rotate-keys", &more);
    assert_eq!(ended.status.code(), Some(9), "{}", crate::support::rotation::text(&ended));
    assert_eq!(plugin.wait_healthy().await, first);
    let secrets: kube::Api<k8s_openapi::api::core::v1::Secret> = kube::Api::all(server.client());
    assert!(!secrets.list(&ListParams::default()).await.unwrap().items.is_empty());
}
