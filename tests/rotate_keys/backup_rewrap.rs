//! `snapshot rewrap`: a backup that no longer needs the former key.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::api::{Patch, PatchParams};
use kube_envelope::backup::Snapshot;
use serde_json::{Value, json};

use crate::backups::alone;
use crate::control_plane::{BINARY, ControlPlane, Ended, Shape};
use crate::rehearsals::store_under_a_key_of_its_own;
use crate::support::etcd::{encrypted, snapshot_status};
use crate::support::plugin::encryption_configuration;
use crate::support::{ApiServer, ApiServerOptions, Etcd, KeyringFile, Plugin, Process, server, wait_until};

fn arguments(file: &Path, more: &[String]) -> Vec<String> {
    let program = |flag: &str, name: &str| format!("{flag}={}", server(name).display());
    let mut all = vec!["snapshot".into(), "rewrap".into(), file.display().to_string()];
    all.extend([program("--etcd-binary", "etcd"), program("--etcdutl-binary", "etcdutl")]);
    all.extend_from_slice(more);
    all
}

/// `snapshot rewrap` of a file with more arguments.
pub fn rewrap(file: &Path, more: &[String]) -> Ended {
    let arguments = arguments(file, more);
    alone(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

/// What is in a folder.
fn names(folder: &Path) -> BTreeSet<String> {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// The wrapped seeds in a snapshot, those of superseded values included, by `key_id`.
fn seeds(file: &Path, key_id: &str) -> BTreeSet<Vec<u8>> {
    let snapshot = Snapshot::open(file).unwrap();
    let (mut keyspace, mut found) = (snapshot.keyspace().unwrap(), BTreeSet::new());
    while let Some(page) = snapshot.next_page(&mut keyspace).unwrap() {
        let objects = page.iter().filter_map(|(record, _)| encrypted(&record.value));
        found.extend(objects.filter(|object| object.key_id == key_id).map(|object| object.encrypted_dek_source));
    }
    found
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_ends_under_the_active_version_and_no_byte_of_the_former_wraps_is_left_in_it() {
    let plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 30).await;
    let patch = Patch::Merge(json!({"metadata": {"labels": {"a": "b"}}}));
    plane.secrets(0).patch("s-3", &PatchParams::default(), &patch).await.unwrap();
    let (folder, old) = (tempfile::tempdir().unwrap(), plane.key_id(0).await);
    let (file, new) = (folder.path().join("snapshot.db"), folder.path().join("snapshot.db.rewrapped"));
    plane.etcd.snapshot(&file).await;
    let original = std::fs::read(&file).unwrap();
    let former = plane.keyrings[0].versions()[0]["id"].as_str().unwrap().to_owned();
    plane.rotate_keyrings(0..1);
    plane.wait_key_id(0..1, &old).await;

    let config = format!("--config={}", plane.plugins[0].config_file().display());
    let ended = rewrap(&file, &[config.clone(), "--output=json".into()]).exits(0);
    let told: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!(told["noLongerNeeded"], json!([format!("KEK primary version {former}")]), "{told}");
    assert!(told["rewrapped"].as_u64() >= Some(30) && told["rehearsal"]["notJudged"] == 0, "{told}");
    assert_eq!(std::fs::read(&file).unwrap(), original, "the original was changed");
    assert_eq!(names(folder.path()), ["snapshot.db", "snapshot.db.rewrapped"].map(str::to_owned).into());
    assert_eq!(std::fs::metadata(&new).unwrap().permissions().mode() & 0o777, 0o600);
    rewrap(&file, std::slice::from_ref(&config)).exits(1).says("exists and will not be overwritten");

    // Not in a row, not in a superseded value, not in a free page.
    let (wraps, content) = (seeds(&file, &old), std::fs::read(&new).unwrap());
    assert!(!wraps.is_empty() && wraps.iter().all(|wrap| contains(&original, wrap)));
    assert!(seeds(&new, &old).is_empty() && !wraps.iter().any(|wrap| contains(&content, wrap)));
    assert!(!contains(&content, old.as_bytes()) && !contains(&content, former.as_bytes()));
    let keys = alone(&["snapshot", "keys", &new.display().to_string(), &config]).exits(0);
    assert!(!keys.out.contains(&former), "{}", keys.out);

    // etcd's own tool takes it, and with the former version destroyed a new cluster starts from it.
    assert!(snapshot_status(&new)["revision"].as_i64() > snapshot_status(&file)["revision"].as_i64());
    plane.keyrings[0].command(&["destroy"], &[&former]);
    let path = file.display().to_string();
    alone(&["rehearse", &path, &config]).exits(10);
    let etcd = Etcd::start_restored(&new).await;
    let plugin = Plugin::start(&plane.keyrings[0].settings("test")).await;
    plugin.wait_healthy().await;
    let text = encryption_configuration(&["secrets", "configmaps"], &[&plugin.provider(), "{identity: {}}"]);
    let server = ApiServer::start(&etcd, &ApiServerOptions::encrypted(&text)).await;
    for number in 0..30 {
        assert_eq!(server.read_secret(&format!("s-{number}")).await, format!("s-{number}"));
    }
}

/// A snapshot with sealed values, made without an API server, of a plugin whose KEK was rotated since.
struct Backup {
    folder: tempfile::TempDir,
    keyring: KeyringFile,
    plugin: Plugin,
    etcd: Etcd,
}

impl Backup {
    async fn start() -> Self {
        let (folder, keyring, etcd) = (tempfile::tempdir().unwrap(), KeyringFile::create(), Etcd::start().await);
        let plugin = Plugin::start(&format!("{}\nrefreshInterval: 1s", keyring.settings("test"))).await;
        plugin.wait_healthy().await;
        let backup = Self { folder, keyring, plugin, etcd };
        for number in 0..20 {
            backup.store(&format!("/registry/secrets/default/s-{number}")).await;
        }
        backup.etcd.put("/registry/namespaces/default", b"k8s\0in clear").await;
        backup
    }

    async fn store(&self, key: &str) {
        store_under_a_key_of_its_own(&self.etcd, &self.plugin, key, b"k8s\0content".to_vec()).await;
    }

    /// Rotates the KEK, and takes the snapshot.
    async fn taken(&self) -> PathBuf {
        let old = self.plugin.status().await.unwrap().key_id;
        self.keyring.rotate();
        wait_until("the plugin adopts", Duration::from_mins(2), async || {
            self.plugin.status().await.is_some_and(|status| status.key_id != old)
        })
        .await;
        let file = self.folder.path().join("snapshot.db");
        self.etcd.snapshot(&file).await;
        file
    }

    /// The EncryptionConfiguration that names the plugin.
    fn by_plugin(&self) -> String {
        let file = self.plugin.folder().join("encryption.yaml");
        let text = encryption_configuration(&["secrets"], &[&self.plugin.provider(), "{identity: {}}"]);
        std::fs::write(&file, text).unwrap();
        format!("--encryption-config={}", file.display())
    }

    fn by_keks(&self) -> String {
        format!("--config={}", self.plugin.config_file().display())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_keks_the_plugin_rewraps_and_what_does_not_open_is_named_and_keeps_the_file_away() {
    let backup = Backup::start().await;
    let damaged = "/registry/secrets/default/damaged";
    backup.store(damaged).await;
    let good = backup.etcd.get(damaged).await.unwrap();
    let wrap = encrypted(&good).unwrap().encrypted_dek_source;
    let at = good.windows(wrap.len()).position(|window| window == wrap).unwrap() + wrap.len() - 1;
    let changed: Vec<u8> =
        good.iter().enumerate().map(|(index, byte)| if index == at { byte ^ 1 } else { *byte }).collect();
    backup.etcd.put(damaged, &changed).await;
    let file = backup.taken().await;
    for way in [backup.by_plugin(), backup.by_keks()] {
        rewrap(&file, &[way]).exits(3).says(damaged).says("No new file: 1 values cannot be rewrapped");
        assert_eq!(names(backup.folder.path()), ["snapshot.db".to_owned()].into());
    }

    backup.etcd.delete(damaged).await;
    backup.etcd.snapshot(&file).await;
    let to = backup.folder.path().join("new.db");
    let ended = rewrap(&file, &[backup.by_plugin(), format!("--to={}", to.display())]).exits(0);
    ended.says("20 values were rewrapped").says("21 current values are the same").says("It does not need KEK");
    backup.keyring.destroy_retired();
    alone(&["rehearse", &to.display().to_string(), &backup.by_keks()]).exits(0).says("becomes ready");
}

/// Processes that have this folder as their working folder.
fn processes_in(folder: &Path) -> usize {
    let all = std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.path().join("cwd").read_link().ok());
    all.filter(|cwd| cwd == folder).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_it_leaves_a_folder_that_says_what_it_is_and_no_etcd() {
    let backup = Backup::start().await;
    let file = backup.taken().await;
    let scratch = || {
        let names = names(backup.folder.path());
        names
            .into_iter()
            .find(|name| name.starts_with("kube-envelope-scratch-"))
            .map(|name| backup.folder.path().join(name))
    };
    let start = || {
        let arguments = arguments(&file, &[backup.by_keks()]).into_iter().map(Into::into).collect();
        Process::start("rewrap", BINARY.into(), arguments, Vec::new(), backup.plugin.folder().join("rewrap.log"))
    };
    let mut running = start();
    wait_until("a program of etcd works", Duration::from_mins(1), async || {
        scratch().is_some_and(|folder| processes_in(&folder) > 0)
    })
    .await;
    let folder = scratch().unwrap();
    running.kill();
    wait_until("it has ended with its parent", Duration::from_mins(1), async || processes_in(&folder) == 0).await;
    assert!(std::fs::read_to_string(folder.join("README")).unwrap().contains("Delete this folder then"));
    assert_eq!(std::fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(names(backup.folder.path()).len(), 2, "the snapshot and the folder");

    // Asked to end, it clears up. What was left does not disturb the next run.
    std::fs::remove_file(backup.plugin.folder().join("rewrap.log")).unwrap();
    let mut running = start();
    wait_until("it works", Duration::from_mins(1), async || names(backup.folder.path()).len() == 3).await;
    running.signal(rustix::process::Signal::TERM);
    assert!(!running.wait(Duration::from_mins(1)).success());
    assert_eq!(names(backup.folder.path()).len(), 2, "{:?}", names(backup.folder.path()));
    rewrap(&file, &[backup.by_keks()]).exits(0);
}
