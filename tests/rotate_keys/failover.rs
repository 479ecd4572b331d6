//! The API server that everything is asked of goes away in the middle of a rewrite.

use std::time::Duration;

use crate::control_plane::{ControlPlane, ENDS_WITHIN, Shape};
use crate::support::{ADMIN, Process, wait_until};

/// A rewrite under way through the API server 1, asked for at the address of the server `entry`.
async fn begin(plane: &ControlPlane, entry: usize, interval: &str) -> (Process, String) {
    plane.create_secrets("s", 1200).await;
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..2);
    let new = plane.wait_key_id(0..2, &old).await;
    let kubeconfig = format!("--kubeconfig={}", plane.servers[entry].kubeconfig(ADMIN).display());
    let run = plane.spawn("rotate-keys", &["--qps=30", &kubeconfig, interval]);
    plane.wait_state("rewrite").await;
    let pinned = plane.journal().unwrap()["adoption"]["servers"][0]["address"].as_str().unwrap().to_owned();
    assert_eq!(pinned, plane.servers[0].url().trim_start_matches("https://"));
    (run, new)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_api_server_that_rewrites_dies_another_goes_on_after_agreement_is_proven_anew() {
    let mut plane = ControlPlane::start(Shape::of(2)).await;
    // The next look would come late: that nothing is answered must tell.
    let (mut run, new) = begin(&plane, 1, "--agreement-interval=5m").await;
    plane.servers[0].kill();
    plane.plugins[0].kill();
    run.wait(2 * ENDS_WITHIN);
    assert!(run.log().contains("agreement lost"), "{}", run.log());
    plane.check_all_under(&new).await;
    plane.check_secrets(1, "s", 1200).await;
    let journal = plane.journal().unwrap();
    assert_eq!(journal["adoption"]["servers"].as_array().unwrap().len(), 1, "the one that is left");
    assert_eq!(journal["verdict"]["conclusion"], "unproven", "the dead one may come back as it was");
    assert!(run.log().contains("on host control-plane-1 ran within the last hour"), "{}", run.log());
    plane.plugins[0].restart().await;
    plane.servers[0].restart().await;
    plane.wait_endpoints(2).await;
    plane.run("rotate-keys", &["--resume"]).exits(0).says("Yes");
    assert_eq!(plane.journal().unwrap()["adoption"]["servers"].as_array().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_address_that_the_cluster_is_known_by_dies_the_rewrite_waits_until_it_is_back() {
    let mut plane = ControlPlane::start(Shape::of(2)).await;
    let (mut run, new) = begin(&plane, 0, "--agreement-interval=1s").await;
    plane.servers[0].stop();
    // Whichever is noticed first: that the servers cannot be asked whether they agree, or that the Lease runs out.
    let stops = |log: String| log.contains("agreement lost") || log.contains("this one is suspended");
    wait_until("the rewrite stops", ENDS_WITHIN, async || stops(run.log())).await;
    let rewritten = plane.stored().await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(plane.stored().await, rewritten);
    assert!(run.is_running(), "{}", run.log());
    plane.servers[0].restart().await;
    plane.wait_endpoints(2).await;
    let status = run.wait(2 * ENDS_WITHIN);
    assert!(status.success(), "{}", run.log());
    plane.check_all_under(&new).await;
    let journal = plane.journal().unwrap();
    assert_eq!(journal["adoption"]["servers"].as_array().unwrap().len(), 2);
    assert_eq!(journal["verdict"]["conclusion"], "mayBeDisabled");
}
