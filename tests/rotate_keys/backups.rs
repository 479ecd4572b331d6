//! Backups of etcd, read without a key, and opened with one after everything else is gone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use kube::api::{DeleteParams, Patch, PatchParams};
use kube_envelope::backup::{Inventory, Snapshot, Source};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use crate::control_plane::{BINARY, ControlPlane, Ended, Shape};
use crate::support::etcd::snapshot_status;
use crate::support::plugin::encryption_configuration;
use crate::support::{ApiServer, ApiServerOptions, Etcd, KeyringFile, Plugin};

/// Runs a command that needs no cluster.
pub fn alone(arguments: &[&str]) -> Ended {
    let output = tokio::task::block_in_place(|| Command::new(BINARY).args(arguments).output().unwrap());
    Ended::of(&output)
}

/// The current records of a snapshot, and how many others it holds.
fn current(snapshot: &Snapshot) -> (BTreeMap<Vec<u8>, Vec<u8>>, usize) {
    let (mut all, mut older) = (BTreeMap::new(), 0);
    let mut keyspace = snapshot.keyspace().unwrap();
    while let Some(page) = snapshot.next_page(&mut keyspace).unwrap() {
        for (record, is_current) in page {
            if is_current {
                assert!(all.insert(record.key, record.value).is_none(), "a key has one current value");
            } else {
                older += 1;
            }
        }
    }
    (all, older)
}

fn version(keyring: &KeyringFile, state: &str) -> String {
    let versions = keyring.versions();
    versions.iter().find(|version| version["state"] == state).unwrap()["id"].as_str().unwrap().to_owned()
}

/// The row of `snapshot keys` about one key.
fn key<'a>(found: &'a Value, name: &str) -> &'a Value {
    found["keys"].as_array().unwrap().iter().find(|key| key["key"].as_str().unwrap().contains(name)).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_tells_which_kek_versions_it_needs_and_holds_what_etcd_held() {
    let plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("old", 20).await;
    let former = version(&plane.keyrings[0], "active");
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..1);
    plane.wait_key_id(0..1, &old).await;
    // The plugin has the new version; the API server asks it every minute.
    let metric = "apiserver_envelope_encryption_key_id_hash_last_timestamp_seconds";
    plane.servers[0].wait_metric(metric, "to_storage", std::time::Duration::from_secs(5)).await;
    plane.secrets(0).delete("old-0", &DeleteParams::default()).await.unwrap();
    let patch = Patch::Merge(json!({"stringData": {"k": "changed"}}));
    plane.secrets(0).patch("old-1", &PatchParams::default(), &patch).await.unwrap();

    let file = plane.folder.path().join("snapshot.db");
    plane.etcd.snapshot(&file).await;
    let snapshot = Snapshot::open(&file).unwrap();
    let (records, older) = current(&snapshot);
    let status = snapshot_status(&file);
    assert_eq!(snapshot.about().revision, status["revision"].as_i64().unwrap());
    assert!(snapshot.about().hash_verified && !snapshot.about().members.is_empty());
    assert!(older > 0);

    // A cluster restored by etcd's own tool holds the same, key by key.
    let restored = Etcd::start_restored(&file).await;
    let held: BTreeMap<_, _> =
        restored.list("/").await.into_iter().map(|(key, value)| (key.into_bytes(), value)).collect();
    assert_eq!(records.len(), held.len());
    assert!(records == held, "the values differ");

    // So does a snapshot of it, although its revisions were raised.
    let again = plane.folder.path().join("again.db");
    restored.snapshot(&again).await;
    let again = Snapshot::open(&again).unwrap();
    assert!(again.about().revision > snapshot.about().revision + 1_000_000);
    assert!(current(&again).0 == records, "the values differ");

    let config = format!("--config={}", plane.plugins[0].config_file().display());
    let path = file.display().to_string();
    let ended = alone(&["snapshot", "keys", &path, &config, "-o", "json"]).exits(0);
    let found: Value = serde_json::from_str(&ended.out).unwrap();
    let of_former = key(&found, &former);
    let secrets = records.keys().filter(|key| key.starts_with(b"/registry/secrets/")).count();
    assert!(of_former["objects"].as_u64().unwrap() >= 18, "{of_former}");
    assert_eq!((of_former["opens"].clone(), of_former["only"].as_u64() > Some(0)), (json!(true), true));
    let rows = found["values"].as_array().unwrap();
    let objects = rows.iter().filter(|row| row["resource"] == "secrets").map(|row| row["objects"].as_u64().unwrap());
    assert_eq!(objects.sum::<u64>(), secrets as u64);

    // The same from a running etcd, and without any key.
    let live = alone(&["snapshot", "keys", &format!("--etcd={}", restored.url()), "-o", "json"]).exits(0);
    let live: Value = serde_json::from_str(&live.out).unwrap();
    assert_eq!(key(&live, &former)["objects"], of_former["objects"]);
    assert_eq!(key(&live, &former)["opens"], Value::Null);

    // A version that is destroyed does not open any more, and the backup still needs it.
    plane.keyrings[0].command(&["destroy"], &[&former]);
    let ended = alone(&["snapshot", "keys", &path, &config]).exits(0).says(&former).says("no: primary:");
    assert!(ended.out.contains("revision"), "{}", ended.out);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_come_out_of_a_backup_when_nothing_but_the_kek_is_left_and_a_new_cluster_starts_from_it() {
    let kept = tempfile::tempdir().unwrap();
    let file = kept.path().join("snapshot.db");
    let (keyring, config, secret) = {
        let plane = ControlPlane::start(Shape::of(1)).await;
        plane.create_secrets("s", 30).await;
        let map = json!({"metadata": {"name": "map"}, "data": {"a.b": "text\nof two lines"}});
        let maps: kube::Api<k8s_openapi::api::core::v1::ConfigMap> =
            kube::Api::namespaced(plane.servers[0].client(), "default");
        maps.create(&kube::api::PostParams::default(), &serde_json::from_value(map).unwrap()).await.unwrap();
        let secret = plane.secrets(0).get("s-7").await.unwrap();
        plane.etcd.snapshot(&file).await;
        let keyring = plane.keyrings[0].copied();
        // The keyring of the destroyed cluster is somewhere else now.
        let text = std::fs::read_to_string(plane.plugins[0].config_file()).unwrap();
        let old = plane.keyrings[0].path().display().to_string();
        let config = kept.path().join("config.yaml");
        std::fs::write(&config, text.replace(&old, &keyring.path().display().to_string())).unwrap();
        (keyring, config, secret)
    };
    let path = file.display().to_string();
    let get = |key: &str| {
        let config = format!("--config={}", config.display());
        alone(&["snapshot", "get", &path, key, &config])
    };
    let read: Value = serde_saphyr::from_str(&get("/registry/secrets/default/s-7").exits(0).out).unwrap();
    assert_eq!(read["data"]["k"], "cy03", "the name of s-7 in base64");
    assert_eq!(read["metadata"]["uid"], secret.metadata.uid.unwrap());
    assert_eq!((read["kind"].clone(), read["type"].clone()), (json!("Secret"), json!("Opaque")));
    let read: Value = serde_saphyr::from_str(&get("configmaps/default/map").exits(0).out).unwrap();
    assert_eq!(read["data"]["a.b"], "text\nof two lines");
    get("secrets/default/nobody").exits(1).says("holds nothing under /registry/secrets/default/nobody");
    // What is stored in clear needs no key, and comes as it is.
    assert!(get("namespaces/default").exits(0).out.starts_with("k8s\0"));

    let etcd = Etcd::start_restored(&file).await;
    let plugin = Plugin::start(&keyring.settings("test")).await;
    plugin.wait_healthy().await;
    let text = encryption_configuration(&["secrets", "configmaps"], &[&plugin.provider(), "{identity: {}}"]);
    let server = ApiServer::start(&etcd, &ApiServerOptions::encrypted(&text)).await;
    for number in 0..30 {
        assert_eq!(server.read_secret(&format!("s-{number}")).await, format!("s-{number}"));
    }
}

/// What any file may do to the reader: be refused, or be read to its end.
fn read_whole(file: &Path) -> Result<(), String> {
    let snapshot = Snapshot::open(file).map_err(|error| error.to_string())?;
    let mut keyspace = snapshot.keyspace().map_err(|error| error.to_string())?;
    while snapshot.next_page(&mut keyspace).map_err(|error| error.to_string())?.is_some() {}
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_was_cut_extended_or_changed_is_refused_by_its_name() {
    let etcd = Etcd::start().await;
    for number in 0..300 {
        etcd.put(&format!("/registry/secrets/default/s-{number}"), &[7; 600]).await;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| -> PathBuf { folder.path().join(name) };
    etcd.snapshot(&at("whole.db")).await;
    let whole = std::fs::read(at("whole.db")).unwrap();
    read_whole(&at("whole.db")).unwrap();
    let refused = |name: &str, content: &[u8]| {
        std::fs::write(at(name), content).unwrap();
        let problem = read_whole(&at(name)).unwrap_err();
        assert!(problem.contains(name) && problem.contains("not an intact snapshot of etcd"), "{problem}");
        problem
    };
    refused("cut.db", &whole[..whole.len() - 1]);
    refused("cut-by-pages.db", &whole[..whole.len() - 32 - 8192]);
    refused("half.db", &whole[..whole.len() / 2]);
    refused("extended.db", &[&whole[..], b"more"].concat());
    refused("extended-by-a-page.db", &[&whole[..], &[0; 4096]].concat());
    let mut changed = whole.clone();
    changed[20_000] ^= 1;
    assert!(refused("changed.db", &changed).contains("take it again"));

    // Without the hash, as a copy of a member's own file: whatever is changed, reading ends, in time and in order.
    let bare = &whole[..whole.len() - 32];
    std::fs::write(at("bare.db"), bare).unwrap();
    read_whole(&at("bare.db")).unwrap();
    let mut random = StdRng::seed_from_u64(12);
    let (mut refusals, began) = (0, std::time::Instant::now());
    for round in 0..3_000 {
        let mut content = bare.to_vec();
        for _ in 0..random.random_range(1..4) {
            // Most faults in the headers of pages, where they lead furthest.
            let page = random.random_range(0..content.len() / 4096) * 4096;
            let at = page + random.random_range(0..if round % 2 == 0 { 64 } else { 4096 });
            content[at] = random.random();
        }
        if round % 7 == 0 {
            content.truncate(random.random_range(0..content.len() / 512) * 512);
        }
        std::fs::write(at("mutated.db"), content).unwrap();
        refusals += usize::from(read_whole(&at("mutated.db")).is_err());
    }
    assert!(refusals > 1_000, "{refusals}");
    assert!(began.elapsed().as_secs() < 120, "{:?}", began.elapsed());
    let inventory = Inventory::take(&Source::Snapshot(Snapshot::open(&at("whole.db")).unwrap()), "/registry/").await;
    assert_eq!(inventory.unwrap().rows().map(|row| row.count.objects).sum::<u64>(), 300);
}
