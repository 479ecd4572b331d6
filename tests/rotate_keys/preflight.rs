//! What is found out before anything is rewritten: a node that lost the former key, and whether there is a snapshot.

use std::time::Duration;

use crate::control_plane::{ControlPlane, Shape};
use crate::support::wait_until;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_keyring_lacks_the_former_version_is_named_before_anything_is_rewritten() {
    let mut plane = ControlPlane::start(Shape::of(2)).await;
    plane.create_secrets("s", 40).await;
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..2);
    let new = plane.wait_key_id(0..2, &old).await;
    plane.keyrings[1].destroy_retired();
    plane.plugins[1].stop();
    plane.plugins[1].restart().await;
    plane.servers[1].stop();
    plane.servers[1].process.restart();
    wait_until("the API server answers", Duration::from_mins(1), async || plane.servers[1].readyz().await.is_some())
        .await;
    let before = plane.stored().await;
    assert!(before[&old] >= 40, "{before:?}");

    // It is not an endpoint until it is ready, so it is named.
    let servers: Vec<_> = plane.servers.iter().map(|server| format!("--server={}", server.url())).collect();
    let broken = format!("API server {}", plane.servers[1].url().trim_start_matches("https://"));
    let sound = format!("API server {}", plane.servers[0].url().trim_start_matches("https://"));
    let by_etcd = plane.run("rotate-keys", &[&servers[0], &servers[1]]).exits(1);
    let why = format!("(stored kube-envelope under {old}) does not open through {broken}");
    let by_etcd = by_etcd.says(&why).says("/api/v1/namespaces/");
    assert!(!by_etcd.err.contains(&sound), "{}", by_etcd.err);
    plane.run("rotate-keys", &["--status"]).exits(4).says("state: preflight").says(&why);
    let by_list = plane.run("rotate-keys", &["no-etcd", &servers[0], &servers[1]]).exits(1);
    by_list.says("/api/v1/namespaces/default/secrets/s-").says(&broken);
    plane.run("rotate-keys", &["--dry-run", &servers[0], &servers[1]]).exits(1).says(&why);
    let after = plane.stored().await;
    assert_eq!(after.get(&old), before.get(&old), "nothing was rewritten");

    plane.keyrings[1].copy_from(&plane.keyrings[0]);
    plane.servers[1].wait_ready().await;
    plane.run("rotate-keys", &[&servers[0], &servers[1]]).exits(0).says("Yes: ");
    plane.check_all_under(&new).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_asked_for_before_and_after_the_rewrite() {
    let plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 20).await;
    let first = plane.key_id(0).await;
    plane.rotate_keyrings(0..1);
    let second = plane.wait_key_id(0..1, &first).await;
    // A command that fails is found out before anything is rewritten.
    plane
        .run("rotate-keys", &["--snapshot-command=exit 7"])
        .exits(1)
        .says("the snapshot command failed: exit status: 7");
    assert_eq!(plane.state(), "preflight");
    let taken = plane.folder.path().join("taken");
    let command = format!("--snapshot-command=echo x >> {}", taken.display());
    plane.run("rotate-keys", &["--resume", &command]).exits(0).says("Yes: ").says("exists to go back to");
    assert_eq!(std::fs::read_to_string(&taken).unwrap(), "x\nx\n", "one before, one after");

    // An old one is something to go back to, and not yet the one that the verdict needs.
    plane.rotate_keyrings(0..1);
    let third = plane.wait_key_id(0..1, &second).await;
    let hours = jiff::SignedDuration::from_hours(30);
    let old = format!("--snapshot-taken={}", jiff::Timestamp::now() - hours);
    let ended =
        plane.run("rotate-keys", &[&old]).exits(7).says("the newest snapshot of etcd to go back to is 30 h old");
    ended.says("Not yet: ").says("exists to go back to");

    plane.rotate_keyrings(0..1);
    plane.wait_key_id(0..1, &third).await;
    let ended =
        plane.run("rotate-keys", &["no-snapshot"]).exits(7).says("no snapshot of etcd is known").says("Not yet: ");
    ended.says("a snapshot of etcd must be taken after");
    let now = format!("--snapshot-taken={}", jiff::Timestamp::now());
    plane.run("rotate-keys", &["--resume", &now]).exits(0).says("Yes: ");
}
