//! Two rotations at once: the second is refused with the name of the first, whichever it is, and a Lease whose run is gone
//! is taken over.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::control_plane::{BINARY, ControlPlane, Ended, Shape};
use crate::support::{Process, wait_until};

const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-envelope-canary/leases/rotate-keys";

/// Arguments of a run with a journal of its own.
fn arguments(plane: &ControlPlane, journal: &Path, more: &[&str]) -> Vec<String> {
    let own = format!("--journal={}", journal.display());
    let arguments = plane.arguments("rotate-keys", more).into_iter();
    arguments.map(|one| if one.starts_with("--journal=") { own.clone() } else { one }).collect()
}

fn run(plane: &ControlPlane, journal: &Path, more: &[&str]) -> Ended {
    let arguments = arguments(plane, journal, more);
    Ended::of(&tokio::task::block_in_place(|| Command::new(BINARY).args(arguments).output().unwrap()))
}

/// A run that has done everything but wait.
async fn waiting(plane: &ControlPlane, journal: &Path, more: &[&str]) -> Process {
    let arguments = arguments(plane, journal, more).into_iter().map(Into::into).collect();
    let log = journal.with_extension("log");
    let _ = std::fs::remove_file(&log);
    let process = Process::start("rotate-keys", BINARY.into(), arguments, Vec::new(), log);
    wait_until("it waits", Duration::from_mins(2), async || {
        let text = std::fs::read_to_string(journal).unwrap_or_default();
        text.contains("\"state\": \"settle\"")
    })
    .await;
    process
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_runs_the_second_is_refused_with_the_name_of_the_first_and_a_stale_lease_is_taken_over() {
    let plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 10).await;
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..1);
    plane.wait_key_id(0..1, &old).await;
    let [one, two] = ["one.json", "two.json"].map(|name| plane.folder.path().join(name));
    let waits = ["--settle=1h", "no-compact"];

    let mut first = waiting(&plane, &one, &waits).await;
    run(&plane, &two, &[])
        .exits(2)
        .says("another rotate-keys works on this cluster")
        .says(&format!("pid {}", first.id()));
    // Killed: its Lease stays, and nobody renews it.
    first.kill();
    let began = Instant::now();
    let mut second = waiting(&plane, &two, &["--former", &old, "--settle=1h", "no-compact"]).await;
    assert!(began.elapsed() < Duration::from_secs(45), "a dead process of this machine is not waited for");
    let refused = run(&plane, &one, &["--resume", "--compact"]).exits(2);
    refused.says("another rotate-keys works on this cluster").says(&format!("pid {}", second.id()));
    second.stop();
    run(&plane, &two, &["--abort"]).exits(0);

    // One that ran on another machine: nothing tells that it is gone but that it renews nothing.
    let foreign = json!({"spec": {"holderIdentity": "elsewhere pid 1 start 1 in boot/pid:[1]"}});
    let client = plane.servers[0].client();
    let request = http::Request::patch(LEASE)
        .header("content-type", "application/merge-patch+json")
        .body(foreign.to_string().into_bytes().into())
        .unwrap();
    assert!(client.send(request).await.unwrap().status().is_success());
    let began = Instant::now();
    run(&plane, &one, &["--resume", "--compact"]).exits(0).says("elsewhere pid 1");
    assert!(began.elapsed() > Duration::from_secs(50), "it is watched for a minute");
}
