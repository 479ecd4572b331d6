//! What an operator can rely on when a key store is away, denies, or a disk fails: the table of the README, cell by
//! cell, with real Vault servers behind a proxy that fails on demand, and a real API server where one restarts.

use std::process::Command;
use std::time::{Duration, Instant};

use tonic::Code;

use crate::support::fakes::faults::{Answer, Fault};
use crate::support::key_store::{ALL, KeyStore, reconfigure, settings};
use crate::support::plugin::encryption_configuration;
use crate::support::plugin::proto::{DecryptRequest, EncryptRequest, EncryptResponse, StatusRequest};
use crate::support::{ApiServer, ApiServerOptions, Encryption, Etcd, KeyringFile, Plugin, wait_until};

const SOON: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_every_kek_silent_an_api_server_restarts_and_reads_and_writes() {
    an_api_server_restarts_and_reads_and_writes_under(Fault::Silence).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_every_kek_throttling_an_api_server_restarts_and_reads_and_writes() {
    an_api_server_restarts_and_reads_and_writes_under(Fault::Answer(Answer {
        status: 429,
        headers: vec![("content-type".into(), "application/json".into())],
        body: "{\"errors\":[\"rate limit quota exceeded\"]}".into(),
    }))
    .await;
}

async fn an_api_server_restarts_and_reads_and_writes_under(fault: Fault) {
    let store = KeyStore::start("primary").await;
    let plugin = Plugin::start(&settings(&[&store], "")).await;
    plugin.wait_healthy().await;
    let etcd = Etcd::start().await;
    let mut server = ApiServer::start(&etcd, &options(&plugin)).await;
    server.write_secret("before", "before").await;
    store.faults.set(fault);
    wait_for_state(&plugin, "coasting").await;
    server.write_secret("steady", "steady").await;
    server.stop();
    server.restart().await;
    for name in ["before", "steady"] {
        assert_eq!(server.read_secret(name).await, name);
    }
    server.write_secret("after", "after").await;
    store.faults.clear();
    wait_for_state(&plugin, "ready").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_restarted_with_every_kek_down_serves_the_moment_one_answers() {
    let stores = [KeyStore::start("primary").await, KeyStore::start("dr").await];
    let mut plugin = Plugin::start(&settings(&[&stores[0], &stores[1]], "")).await;
    let key_id = plugin.wait_healthy().await;
    let sealed = encrypt(&plugin).await;
    for store in &stores {
        store.faults.set(Fault::Refuse);
    }
    plugin.stop();
    plugin.restart().await;
    let refused = plugin.client().await.unwrap().status(StatusRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("dr"), "the reason names the KEK: {}", refused.message());
    stores[1].faults.clear();
    assert_eq!(plugin.wait_healthy().await, key_id, "the same generation");
    assert_eq!(decrypt(&plugin, &sealed).await.unwrap(), SEED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_one_of_two_keks_down_plugin_and_api_server_restart_and_read_and_write() {
    let (up, down) = (KeyStore::start("up").await, KeyStore::start("down").await);
    let mut plugin = Plugin::start(&settings(&[&down, &up], "")).await;
    let key_id = plugin.wait_healthy().await;
    let etcd = Etcd::start().await;
    let mut server = ApiServer::start(&etcd, &options(&plugin)).await;
    server.write_secret("before", "before").await;
    down.faults.set(Fault::Silence);
    server.stop();
    plugin.stop();
    plugin.restart().await;
    server.restart().await;
    assert_eq!(server.read_secret("before").await, "before");
    server.write_secret("after", "after").await;
    assert_eq!(plugin.wait_healthy().await, key_id);
    wait_for_state(&plugin, "degraded").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_withdrawn_permission_stops_the_plugin_and_giving_it_back_starts_it_again() {
    let store = KeyStore::start("primary").await;
    let mut plugin = Plugin::start(&settings(&[&store], "")).await;
    let key_id = plugin.wait_healthy().await;
    let sealed = encrypt(&plugin).await;
    store.allow(&[]).await;
    let withdrawn = Instant::now();
    wait_until("Status refuses", SOON, async || plugin.status().await.is_none()).await;
    assert!(withdrawn.elapsed() >= Duration::from_secs(9), "a denial is confirmed before keys are cleared");
    assert!(metric(&plugin, "kube_envelope_cached_deks").await < 1.0, "keys are cleared from memory");
    assert_eq!(decrypt(&plugin, &sealed).await.unwrap_err().code(), Code::PermissionDenied);
    let request = EncryptRequest { plaintext: SEED.to_vec(), uid: "u".into() };
    assert_eq!(plugin.client().await.unwrap().encrypt(request).await.unwrap_err().code(), Code::Unavailable);
    let etcd = Etcd::start().await;
    let mut server = ApiServer::spawn(&etcd, &options(&plugin));
    wait_until("the API server answers and is not ready", SOON, async || {
        server.readyz().await.is_some_and(|(ready, _)| !ready)
    })
    .await;
    plugin.stop();
    plugin.restart().await;
    let refused = async || plugin.client().await.unwrap().status(StatusRequest {}).await.unwrap_err();
    wait_until("the reason names the KEK", SOON, async || refused().await.message().contains("primary")).await;
    assert_eq!(refused().await.code(), Code::Unavailable);
    assert!(decrypt(&plugin, &sealed).await.is_err());
    assert!(server.readyz().await.is_some_and(|(ready, _)| !ready), "still not ready");
    store.allow(ALL).await;
    assert_eq!(plugin.wait_healthy().await, key_id);
    assert_eq!(decrypt(&plugin, &sealed).await.unwrap(), SEED);
    server.wait_ready().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_permission_to_unwrap_alone_that_is_withdrawn_is_noticed_by_proving() {
    let store = KeyStore::start("primary").await;
    let plugin = Plugin::start(&settings(&[&store], "")).await;
    plugin.wait_healthy().await;
    store.allow(&ALL[..2]).await;
    wait_until("Status refuses", SOON, async || plugin.status().await.is_none()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_permission_to_read_the_version_that_is_withdrawn_stops_nothing() {
    let store = KeyStore::start("primary").await;
    let mut plugin = Plugin::start(&settings(&[&store], "maxOfflineAge: 6s")).await;
    let key_id = plugin.wait_healthy().await;
    let etcd = Etcd::start().await;
    let mut server = ApiServer::start(&etcd, &options(&plugin)).await;
    server.write_secret("before", "before").await;
    store.allow(&ALL[1..]).await;
    wait_for_state(&plugin, "degraded").await;
    tokio::time::sleep(Duration::from_secs(15)).await;
    assert!(plugin.status().await.is_some(), "longer than a denial takes to be confirmed, and than maxOfflineAge");
    assert!(!plugin.process.log().contains("stopped"));
    server.stop();
    plugin.stop();
    plugin.restart().await;
    server.restart().await;
    assert_eq!(server.read_secret("before").await, "before");
    server.write_secret("after", "after").await;
    assert_eq!(plugin.wait_healthy().await, key_id);
    store.allow(ALL).await;
    wait_for_state(&plugin, "ready").await;
}

/// Point by point the case that stopped a control plane: a KEK that was added without the permission to encrypt, then a
/// reboot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kek_that_cannot_wrap_leaves_the_former_generation_served_also_after_a_restart() {
    let (good, added) = (KeyStore::start("good").await, KeyStore::start("added").await);
    added.allow(&[ALL[0], ALL[2]]).await;
    let mut plugin = Plugin::start(&settings(&[&good], "")).await;
    let key_id = plugin.wait_healthy().await;
    let sealed = encrypt(&plugin).await;
    reconfigure(&plugin, &settings(&[&good, &added], ""));
    wait_for_state(&plugin, "degraded").await;
    plugin.stop();
    plugin.restart().await;
    assert_eq!(plugin.wait_healthy().await, key_id);
    assert_eq!(decrypt(&plugin, &sealed).await.unwrap(), SEED);
    wait_for_state(&plugin, "degraded").await;
    let etcd = Etcd::start().await;
    let server = ApiServer::start(&etcd, &options(&plugin)).await;
    server.write_secret("written", "written").await;
    added.allow(ALL).await;
    wait_until("a generation of both", SOON, async || plugin.wait_healthy().await != key_id).await;
    wait_for_state(&plugin, "ready").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_moment_of_denial_clears_nothing() {
    let store = KeyStore::start("primary").await;
    let plugin = Plugin::start(&settings(&[&store], "")).await;
    plugin.wait_healthy().await;
    store.allow(&[]).await;
    wait_for_state(&plugin, "coasting").await;
    store.allow(ALL).await;
    wait_for_state(&plugin, "ready").await;
    assert!(!plugin.process.log().contains("stopped"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denial_by_one_of_two_keks_stops_nothing() {
    let (allows, denies) = (KeyStore::start("allows").await, KeyStore::start("denies").await);
    let plugin = Plugin::start(&settings(&[&denies, &allows], "")).await;
    plugin.wait_healthy().await;
    let sealed = encrypt(&plugin).await;
    denies.allow(&[]).await;
    wait_for_state(&plugin, "degraded").await;
    tokio::time::sleep(Duration::from_secs(13)).await;
    assert!(plugin.status().await.is_some(), "longer than a denial takes to be confirmed");
    assert_eq!(decrypt(&plugin, &sealed).await.unwrap(), SEED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cache_ends_with_max_offline_age_and_serves_again_after_contact() {
    let store = KeyStore::start("primary").await;
    let plugin = Plugin::start(&settings(&[&store], "maxOfflineAge: 6s")).await;
    plugin.wait_healthy().await;
    let sealed = encrypt(&plugin).await;
    store.faults.set(Fault::Refuse);
    wait_for_state(&plugin, "coasting").await;
    assert_eq!(decrypt(&plugin, &sealed).await.unwrap(), SEED);
    wait_for_state(&plugin, "stopped").await;
    assert_eq!(decrypt(&plugin, &sealed).await.unwrap_err().code(), Code::Unavailable);
    store.faults.clear();
    plugin.wait_healthy().await;
    assert_eq!(decrypt(&plugin, &sealed).await.unwrap(), SEED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_state_folder_costs_a_new_dek_and_one_unwrap_for_each_old_one() {
    let store = KeyStore::start("primary").await;
    let mut plugin = Plugin::start(&settings(&[&store], "")).await;
    let key_id = plugin.wait_healthy().await;
    let sealed = [encrypt(&plugin).await, encrypt(&plugin).await];
    plugin.stop();
    std::fs::remove_dir_all(plugin.folder().join("state")).unwrap();
    plugin.restart().await;
    assert_eq!(plugin.wait_healthy().await, key_id);
    let before = unwraps(&plugin).await;
    for sealed in &sealed {
        assert_eq!(decrypt(&plugin, sealed).await.unwrap(), SEED);
    }
    // The active DEK is proven every second besides.
    let proofs = before.1.elapsed().as_secs_f64().ceil();
    assert!(unwraps(&plugin).await.0 - before.0 <= 1.0 + proofs, "one unwrap for the old DEK");
    assert_ne!(dek_of(&encrypt(&plugin).await), dek_of(&sealed[0]), "a new DEK");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_state_folder_a_plugin_waits_for_every_kek_and_names_the_missing_one() {
    let (up, down) = (KeyStore::start("up").await, KeyStore::start("down").await);
    let mut plugin = Plugin::start(&settings(&[&up, &down], "")).await;
    let key_id = plugin.wait_healthy().await;
    plugin.stop();
    std::fs::remove_dir_all(plugin.folder().join("state")).unwrap();
    down.faults.set(Fault::Refuse);
    plugin.restart().await;
    let refused = plugin.client().await.unwrap().status(StatusRequest {}).await.unwrap_err();
    assert!(refused.message().contains("KEK down") && !refused.message().contains("KEK up"), "{}", refused.message());
    down.faults.clear();
    assert_eq!(plugin.wait_healthy().await, key_id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_stops_neither_sealing_nor_opening() {
    let store = KeyStore::start("primary").await;
    let other = Plugin::start(&settings(&[&store], "")).await;
    other.wait_healthy().await;
    let sealed = encrypt(&other).await;
    let mut plugin = Plugin::spawn(&settings(&[&store], ""));
    plugin.stop();
    let state = plugin.folder().join("state");
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=4k,mode=0700", "tmpfs"]).arg(&state).status();
    assert!(mounted.unwrap().success(), "a file system of one page, in the test's own mount namespace");
    std::fs::write(state.join("full"), vec![0; 4096]).unwrap();
    plugin.restart().await;
    plugin.wait_healthy().await;
    assert_eq!(decrypt(&plugin, &sealed).await.unwrap(), SEED);
    assert_eq!(decrypt(&plugin, &encrypt(&plugin).await).await.unwrap(), SEED);
    assert!(plugin.process.says("what it should hold is in memory alone"));
    wait_for_state(&plugin, "degraded").await;
    plugin.stop();
    assert!(Command::new("umount").arg(&state).status().unwrap().success());
}

/// A restart goes back to what is on the disk: with a generation that is not there the plugin would write under a former
/// version again, perhaps after a verdict that it may be disabled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_version_is_not_adopted_in_place_of_a_stored_one_before_it_is_stored() {
    let keyring = KeyringFile::create();
    let kek = format!("keks: [{{name: primary, keyring: {{file: {}}}}}]", keyring.path().display());
    let mut plugin = Plugin::spawn(&format!("cluster: test\nrefreshInterval: 1s\n{kek}\n"));
    plugin.stop();
    let state = plugin.folder().join("state");
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k,mode=0700", "tmpfs"]).arg(&state).status();
    assert!(mounted.unwrap().success(), "a small file system, in the test's own mount namespace");
    plugin.restart().await;
    let first = plugin.wait_healthy().await;
    assert!(std::fs::write(state.join("full"), vec![0; 1 << 20]).is_err(), "it is full now");
    keyring.rotate();
    wait_until("it says why", SOON, async || plugin.process.log().contains("a restart would go back")).await;
    assert_eq!(plugin.status().await.unwrap().key_id, first);
    plugin.stop();
    plugin.restart().await;
    assert_eq!(plugin.wait_healthy().await, first);
    std::fs::remove_file(state.join("full")).unwrap();
    wait_until("it adopts", SOON, async || plugin.wait_healthy().await != first).await;
    plugin.stop();
    assert!(Command::new("umount").arg(&state).status().unwrap().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_moves_from_one_key_store_to_another_and_everything_keeps_opening() {
    let (old, new) = (KeyStore::start("old").await, KeyStore::start("new").await);
    let mut plugin = Plugin::start(&settings(&[&old], "")).await;
    let first = plugin.wait_healthy().await;
    let by_old = encrypt(&plugin).await;
    reconfigure(&plugin, &settings(&[&old, &new], ""));
    wait_until("both KEKs", SOON, async || plugin.wait_healthy().await != first).await;
    let second = plugin.wait_healthy().await;
    let by_both = encrypt(&plugin).await;
    reconfigure(&plugin, &settings(&[&new], &format!("retired: [{}]", old.item())));
    wait_until("the new KEK alone", SOON, async || plugin.wait_healthy().await != second).await;
    let by_new = encrypt(&plugin).await;
    // From here on the old store is needed for nothing but what it alone wrapped.
    old.faults.set(Fault::Refuse);
    plugin.stop();
    std::fs::remove_dir_all(plugin.folder().join("state")).unwrap();
    plugin.restart().await;
    plugin.wait_healthy().await;
    assert_eq!(decrypt(&plugin, &by_both).await.unwrap(), SEED);
    assert_eq!(decrypt(&plugin, &by_new).await.unwrap(), SEED);
    assert_eq!(decrypt(&plugin, &by_old).await.unwrap_err().code(), Code::Unavailable);
    old.faults.clear();
    wait_until("the old store opens", SOON, async || decrypt(&plugin, &by_old).await.is_ok()).await;
}

const SEED: &[u8] = &[7; 32];

async fn wait_for_state(plugin: &Plugin, state: &str) {
    wait_until(&format!("the plugin is {state}"), SOON, async || {
        let report: serde_json::Value = get(plugin, "/status").await.json().await.unwrap();
        report["state"] == state
    })
    .await;
}

async fn metric(plugin: &Plugin, name: &str) -> f64 {
    let text = get(plugin, "/metrics").await.text().await.unwrap();
    let lines = text.lines().filter(|line| line.starts_with(name));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

/// Unwraps asked of KEKs so far, and when that was read.
async fn unwraps(plugin: &Plugin) -> (f64, Instant) {
    let at = Instant::now();
    (metric(plugin, "kube_envelope_kek_requests_total{kek=\"primary\",operation=\"unwrap\"}").await, at)
}

async fn get(plugin: &Plugin, path: &str) -> reqwest::Response {
    reqwest::get(format!("{}{path}", plugin.health_url())).await.unwrap()
}

async fn encrypt(plugin: &Plugin) -> EncryptResponse {
    let request = EncryptRequest { plaintext: SEED.to_vec(), uid: "u".into() };
    plugin.client().await.unwrap().encrypt(request).await.unwrap().into_inner()
}

async fn decrypt(plugin: &Plugin, sealed: &EncryptResponse) -> Result<Vec<u8>, tonic::Status> {
    let request = DecryptRequest {
        ciphertext: sealed.ciphertext.clone(),
        uid: "u".into(),
        key_id: sealed.key_id.clone(),
        annotations: sealed.annotations.clone(),
    };
    plugin.client().await.unwrap().decrypt(request).await.map(|answer| answer.into_inner().plaintext)
}

fn dek_of(sealed: &EncryptResponse) -> &[u8] {
    &sealed.ciphertext[3..19]
}

fn options(plugin: &Plugin) -> ApiServerOptions {
    let encryption = encryption_configuration(&["secrets"], &[&plugin.provider(), "{identity: {}}"]);
    ApiServerOptions { encryption: Encryption::Text(encryption), ..ApiServerOptions::default() }
}
