//! Evidence ages: what API servers do after everything was rewritten, and before the verdict.

use std::path::PathBuf;
use std::time::Duration;

use kube::api::PostParams;

use crate::control_plane::{ControlPlane, ENDS_WITHIN, Shape, secret};
use crate::support::plugin::encryption_configuration;
use crate::support::{Process, wait_until};

/// A rotation that stands in the last snapshot, with everything rewritten, until it is let go on.
struct InSnapshot {
    run: Process,
    go: PathBuf,
    new: String,
}

async fn begin(plane: &ControlPlane, nodes: usize) -> InSnapshot {
    begin_with(plane, nodes, &[]).await
}

async fn begin_with(plane: &ControlPlane, nodes: usize, more: &[&str]) -> InSnapshot {
    plane.create_secrets("s", 40).await;
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..nodes);
    let new = plane.wait_key_id(0..nodes, &old).await;
    let at = |name: &str| plane.folder.path().join(name);
    let (first, go) = (at("first"), at("go"));
    let command = format!(
        "--snapshot-command=[ -e {0} ] || {{ touch {0}; exit 0; }}; until [ -e {1} ]; do sleep 0.1; done",
        first.display(),
        go.display()
    );
    let run = plane.spawn("rotate-keys", &[&["--agreement-interval=5m", command.as_str()], more].concat());
    plane.wait_state("snapshot").await;
    plane.check_all_under(&new).await;
    InSnapshot { run, go, new }
}

impl InSnapshot {
    /// Lets it go on, and checks that it ends with a Yes that is true.
    async fn ends_with_everything_under_the_new_key(mut self, plane: &ControlPlane) {
        std::fs::write(&self.go, "").unwrap();
        let status = self.run.wait(2 * ENDS_WITHIN);
        assert!(status.success(), "{}", self.run.log());
        assert!(self.run.log().contains("no longer holds"), "{}", self.run.log());
        plane.check_all_under(&self.new).await;
        assert_eq!(plane.journal().unwrap()["verdict"]["conclusion"], "mayBeDisabled");
    }
}

async fn write_through(plane: &ControlPlane, node: usize) {
    for name in ["late-1", "late-2", "late-3"] {
        plane.secrets(node).create(&PostParams::default(), &secret(name, name)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_api_server_that_joins_during_the_snapshot_stores_under_the_old_key_is_found_before_the_verdict() {
    let mut plane = ControlPlane::start(Shape::of(1)).await;
    let old = plane.key_id(0).await;
    plane.prepare_keyrings();
    let behind = plane.keyrings[0].copied();
    let run = begin(&plane, 1).await;
    plane.join(behind).await;
    assert_eq!(plane.key_id(1).await, old);
    write_through(&plane, 1).await;
    assert_eq!(plane.stored().await[&old], 3);
    plane.keyrings[1].copy_from(&plane.keyrings[0]);
    run.ends_with_everything_under_the_new_key(&plane).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_api_server_stores_in_clear_between_two_restarts_is_found_before_the_verdict() {
    let mut plane = ControlPlane::start(Shape::of(2)).await;
    let run = begin(&plane, 2).await;
    let file = plane.servers[1].encryption_file().to_owned();
    let right = std::fs::read_to_string(&file).unwrap();
    let in_clear =
        encryption_configuration(&["secrets", "configmaps"], &["{identity: {}}", &plane.plugins[1].provider()]);
    std::fs::write(&file, in_clear).unwrap();
    plane.servers[1].stop();
    plane.servers[1].restart().await;
    write_through(&plane, 1).await;
    assert_eq!(plane.etcd.key_id("/registry/secrets/default/late-1").await, None, "it is in clear");
    std::fs::write(&file, right).unwrap();
    plane.servers[1].stop();
    plane.servers[1].restart().await;
    run.ends_with_everything_under_the_new_key(&plane).await;
    assert!(plane.etcd.key_id("/registry/secrets/default/late-1").await.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_api_server_stores_in_clear_between_two_reloads_is_found_before_the_verdict() {
    let reload = "--encryption-provider-config-automatic-reload=true".to_owned();
    let plane = ControlPlane::start(Shape { arguments: vec![reload], ..Shape::of(2) }).await;
    let run = begin(&plane, 2).await;
    let file = plane.servers[1].encryption_file().to_owned();
    let right = std::fs::read_to_string(&file).unwrap();
    let in_clear =
        encryption_configuration(&["secrets", "configmaps"], &["{identity: {}}", &plane.plugins[1].provider()]);
    std::fs::write(&file, in_clear).unwrap();
    // Each write may come before the reload, and is then stored under the new key.
    let mut number = 0;
    wait_until("the server stores in clear", Duration::from_mins(3), async || {
        number += 1;
        let name = format!("late-{number}");
        plane.secrets(1).create(&PostParams::default(), &secret(&name, &name)).await.unwrap();
        plane.etcd.key_id(&format!("/registry/secrets/default/{name}")).await.is_none()
    })
    .await;
    let last = format!("/registry/secrets/default/late-{number}");
    std::fs::write(&file, right).unwrap();
    wait_until("the server stores under the key again", Duration::from_mins(3), async || {
        number += 1;
        let name = format!("late-{number}");
        plane.secrets(1).create(&PostParams::default(), &secret(&name, &name)).await.unwrap();
        plane.etcd.key_id(&format!("/registry/secrets/default/{name}")).await.is_some()
    })
    .await;
    run.ends_with_everything_under_the_new_key(&plane).await;
    assert!(plane.etcd.key_id(&last).await.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_becomes_active_during_the_snapshot_leaves_no_yes() {
    let plane = ControlPlane::start(Shape::of(1)).await;
    // As on another machine: the same keyring, in a file that the plugin does not see.
    plane.prepare_keyrings();
    let elsewhere = plane.keyrings[0].copied();
    elsewhere.command(&["activate"], &[]);
    let text = std::fs::read_to_string(plane.plugins[0].config_file()).unwrap();
    let config = plane.folder.path().join("elsewhere.yaml");
    let (own, other) = (plane.keyrings[0].path().display().to_string(), elsewhere.path().display().to_string());
    std::fs::write(&config, text.replace(&own, &other)).unwrap();
    let mut run = begin_with(&plane, 1, &[&format!("--config={}", config.display())]).await;
    elsewhere.command(&["add"], &[]);
    elsewhere.command(&["activate"], &[]);
    std::fs::write(&run.go, "").unwrap();
    let status = run.run.wait(ENDS_WITHIN);
    assert_eq!(status.code(), Some(8), "{}", run.run.log());
    assert!(run.run.log().contains("Not proven"), "{}", run.run.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_reaches_etcd_late_is_waited_for_before_anything_is_searched() {
    let plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 20).await;
    let key = "/registry/secrets/default/s-3";
    let late = plane.etcd.get(key).await.unwrap();
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..1);
    let new = plane.wait_key_id(0..1, &old).await;
    let mut run = plane.spawn("rotate-keys", &["--request-timeout=45s"]);
    let log = plane.folder.path().join("rotate-keys.log");
    let rewritten = || std::fs::read_to_string(&log).unwrap_or_default().contains("state: verify");
    wait_until("everything is rewritten", ENDS_WITHIN, async || rewritten() || !run.is_running()).await;
    // Encrypted before its server had adopted the key, and stored only now: no counter tells of it.
    tokio::time::sleep(Duration::from_secs(5)).await;
    plane.etcd.put(key, &late).await;
    let status = run.wait(ENDS_WITHIN);
    assert!(status.success(), "{}", run.log());
    plane.check_all_under(&new).await;
    assert!(run.log().contains("earlier writes may still be on their way to etcd"), "{}", run.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_is_told_of_later_gives_no_yes_while_nothing_can_be_looked_at() {
    let mut plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 20).await;
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..1);
    let new = plane.wait_key_id(0..1, &old).await;
    plane.run("rotate-keys", &["no-snapshot"]).says("Not yet");
    let taken = || format!("--snapshot-taken={}", jiff::Timestamp::now());
    plane.servers[0].stop();
    plane.etcd.process.stop();
    let ended = plane.run("rotate-keys", &["--resume", "no-snapshot", &taken(), "--adoption-timeout=5s"]);
    assert!(ended.code != Some(0) && !ended.out.contains("Yes"), "{ended:?}");

    let before_the_restart = taken();
    plane.etcd.process.restart();
    plane.servers[0].restart().await;
    let resumed = |taken: &str| plane.run("rotate-keys", &["--resume", "no-snapshot", "--settle=0s", taken]);
    // Nobody knows what the server stored last before it stopped; the snapshot may hold it.
    resumed(&before_the_restart).says("Not yet").says("a snapshot of etcd must be taken after");
    resumed(&taken()).exits(0).says("Yes");
    plane.check_all_under(&new).await;
}
