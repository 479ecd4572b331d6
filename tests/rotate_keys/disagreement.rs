//! API servers that do not store under the same key: before a rewrite, and in the middle of it.

use std::time::Duration;

use crate::control_plane::{ControlPlane, ENDS_WITHIN, Shape};
use crate::support::wait_until;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_rewritten_before_the_last_api_server_has_adopted() {
    let plane = ControlPlane::start(Shape::of(2)).await;
    plane.create_secrets("s", 60).await;
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..1);
    plane.wait_key_id(0..1, &old).await;
    assert_eq!(plane.key_id(1).await, old, "the other node is left behind");
    let revisions = revisions(&plane).await;

    plane.run("rotate-keys", &["--adoption-timeout=30s"]).exits(5).says("report different keys");
    assert_eq!(self::revisions(&plane).await, revisions, "no Secret was touched");
    plane.run("rotate-keys", &["--status"]).exits(4).says("await adoption");
    plane.run("rotate-keys", &[]).exits(2).says("--resume");
    plane.run("verify", &[]).exits(5);

    plane.keyrings[1].copy_from(&plane.keyrings[0]);
    let new = plane.wait_key_id(1..2, &old).await;
    plane.run("rotate-keys", &["--resume", "--settle=0s"]).exits(0);
    plane.check_all_under(&new).await;
}

async fn revisions(plane: &ControlPlane) -> Vec<String> {
    let secrets = plane.secrets(0).list(&kube::api::ListParams::default()).await.unwrap();
    secrets.items.into_iter().filter_map(|secret| secret.metadata.resource_version).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_that_joins_with_the_old_key_stops_the_rewrite_until_it_has_adopted() {
    let mut plane = ControlPlane::start(Shape::of(2)).await;
    plane.create_secrets("s", 1500).await;
    let old = plane.key_id(0).await;
    plane.prepare_keyrings();
    let behind = plane.keyrings[0].copied();
    plane.rotate_keyrings(0..2);
    plane.wait_key_id(0..2, &old).await;
    let mut run = plane.spawn("rotate-keys", &["--qps=60"]);
    plane.wait_state("rewrite").await;

    plane.join(behind).await;
    wait_until("the rewrite stops", Duration::from_mins(1), async || run.log().contains("agreement lost")).await;
    // The server that is behind turns objects back to the old key, as a controller's write through it would.
    let stale = kube::api::Patch::Merge(serde_json::json!({"metadata": {"labels": {"a": "b"}}}));
    plane.secrets(2).patch("s-0", &kube::api::PatchParams::default(), &stale).await.unwrap();
    assert_eq!(plane.etcd.key_id("/registry/secrets/default/s-0").await.as_ref(), Some(&old));
    assert_ne!(plane.state(), "done");

    plane.keyrings[2].copy_from(&plane.keyrings[0]);
    let new = plane.wait_key_id(2..3, &old).await;
    let status = run.wait(ENDS_WITHIN);
    assert!(status.success(), "{}", run.log());
    plane.check_all_under(&new).await;
    let journal = plane.journal().unwrap();
    assert_eq!(journal["adoption"]["servers"].as_array().unwrap().len(), 3);
    assert_eq!(journal["verdict"]["conclusion"], "mayBeDisabled");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_rotation_in_the_middle_pauses_the_first() {
    let plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 1500).await;
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..1);
    let second = plane.wait_key_id(0..1, &old).await;
    let mut run = plane.spawn("rotate-keys", &["--qps=40"]);
    plane.wait_state("rewrite").await;
    plane.rotate_keyrings(0..1);
    let third = plane.wait_key_id(0..1, &second).await;
    let status = run.wait(ENDS_WITHIN);
    assert_eq!(status.code(), Some(4), "{}", run.log());
    assert!(run.log().contains("another rotation began"), "{}", run.log());
    plane.run("rotate-keys", &["--resume"]).exits(4);

    plane.run("rotate-keys", &["--abort"]).exits(0);
    plane.run("rotate-keys", &["--resume"]).exits(2);
    plane.run("rotate-keys", &[]).exits(0);
    plane.check_all_under(&third).await;
}
