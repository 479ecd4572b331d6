//! Two API servers that had both adopted the new key, and one of them goes back to the old one for a long while.

use std::path::Path;
use std::time::Duration;

use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::control_plane::{ControlPlane, ENDS_WITHIN, Shape};
use crate::support::{KeyringFile, wait_until};

/// What a backup of a node holds: keyring and state folder.
struct Backup {
    keyring: KeyringFile,
    state: tempfile::TempDir,
}

impl Backup {
    fn of(plane: &ControlPlane, node: usize) -> Self {
        let backup = Self { keyring: plane.keyrings[node].copied(), state: tempfile::tempdir().unwrap() };
        copy_files(&plane.plugins[node].folder().join("state"), backup.state.path());
        backup
    }

    /// Brings the node back to what it was, as a restored disk does.
    async fn restore(&self, plane: &mut ControlPlane, node: usize) {
        plane.plugins[node].stop();
        let state = plane.plugins[node].folder().join("state");
        std::fs::remove_dir_all(&state).unwrap();
        std::fs::create_dir(&state).unwrap();
        copy_files(self.state.path(), &state);
        plane.keyrings[node].copy_from(&self.keyring);
        plane.plugins[node].restart().await;
    }
}

fn copy_files(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir_all(&target).unwrap();
            copy_files(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_restored_from_backup_in_the_middle_stops_the_rewrite_until_both_store_under_the_new_key() {
    let mut plane = ControlPlane::start(Shape::of(2)).await;
    plane.create_secrets("s", 1500).await;
    let old = plane.key_id(0).await;
    plane.prepare_keyrings();
    let backup = Backup::of(&plane, 1);
    plane.rotate_keyrings(0..2);
    let new = plane.wait_key_id(0..2, &old).await;
    let mut run = plane.spawn("rotate-keys", &["--qps=35"]);
    plane.wait_state("rewrite").await;
    let adopted = plane.journal().unwrap()["adoption"]["servers"].as_array().unwrap().len();
    assert_eq!(adopted, 2, "both stored under the new key");

    // A keyring alone that goes back is not followed: the plugin knows that it had adopted a newer version.
    plane.keyrings[1].copy_from(&backup.keyring);
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(plane.key_id(1).await, new);
    assert!(!run.log().contains("agreement lost"), "{}", run.log());

    backup.restore(&mut plane, 1).await;
    plane.wait_key_id(1..2, &new).await;
    assert_eq!(plane.key_id(1).await, old);
    wait_until("the rewrite stops", Duration::from_mins(2), async || run.log().contains("agreement lost")).await;
    let log = run.log();
    let why = log.lines().find(|line| line.contains("agreement lost")).unwrap();
    for server in &plane.servers {
        assert!(why.contains(server.url().trim_start_matches("https://")), "{why}");
    }
    let stopped_at = rewritten(&plane);
    assert!(stopped_at < 1500, "it was in the middle: {stopped_at}");

    // Each server takes the other's for stale, as long as they disagree.
    let secrets = [plane.secrets(0), plane.secrets(1)];
    for turn in 0..6 {
        for name in ["s-0", "s-1499"] {
            let label = Patch::Merge(json!({"metadata": {"labels": {"turn": turn.to_string()}}}));
            secrets[turn % 2].patch(name, &PatchParams::default(), &label).await.unwrap();
            let expected = if turn % 2 == 0 { &new } else { &old };
            let stored = plane.etcd.key_id(&format!("/registry/secrets/default/{name}")).await;
            assert_eq!(stored.as_ref(), Some(expected));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(rewritten(&plane), stopped_at, "nothing is rewritten while they disagree");
    assert_eq!(plane.state(), "awaitAdoption");
    plane.run("verify", &[]).exits(5).says("report different keys");

    plane.keyrings[1].copy_from(&plane.keyrings[0]);
    plane.wait_key_id(1..2, &old).await;
    let status = run.wait(ENDS_WITHIN);
    assert!(status.success(), "{}", run.log());
    plane.check_all_under(&new).await;
    assert_eq!(plane.journal().unwrap()["verdict"]["conclusion"], "mayBeDisabled");
    plane.check_secrets(1, "s", 1500).await;
}

/// How many Secrets the journal says were stored again.
fn rewritten(plane: &ControlPlane) -> u64 {
    let journal = plane.journal().unwrap();
    let all = journal["resources"].as_array().unwrap();
    all.iter().map(|one| one["tally"]["rewritten"].as_u64().unwrap()).sum()
}
