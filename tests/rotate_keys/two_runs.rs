//! Two rotations at once: the second is refused with the name of the first, whichever it is, and a Lease whose run is gone
//! is taken over.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use crate::control_plane::{BINARY, ControlPlane, ENDS_WITHIN, Ended, Shape};
use crate::proxy::{Mode, Proxy};
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

fn start(plane: &ControlPlane, journal: &Path, more: &[&str]) -> Process {
    let arguments = arguments(plane, journal, more).into_iter().map(Into::into).collect();
    let log = journal.with_extension("log");
    let _ = std::fs::remove_file(&log);
    Process::start("rotate-keys", BINARY.into(), arguments, Vec::new(), log)
}

async fn reaches(journal: &Path, state: &str) {
    let state_line = format!("\"state\": \"{state}\"");
    wait_until(&format!("it is in state {state}"), ENDS_WITHIN, async || {
        std::fs::read_to_string(journal).unwrap_or_default().contains(&state_line)
    })
    .await;
}

/// A run that has done everything but wait.
async fn waiting(plane: &ControlPlane, journal: &Path, more: &[&str]) -> Process {
    let process = start(plane, journal, more);
    reaches(journal, "settle").await;
    process
}

/// How many Secrets are stored under a key.
async fn left(plane: &ControlPlane, key_id: &str) -> usize {
    plane.etcd.key_ids("/registry/secrets/").await.get(key_id).copied().unwrap_or_default()
}

/// Lets a process of another machine hold the Lease, which renews it never.
async fn hold_elsewhere(plane: &ControlPlane) {
    let foreign = json!({"spec": {"holderIdentity": "elsewhere pid 1 start 1 in boot/pid:[1]"}});
    let request = http::Request::patch(LEASE)
        .header("content-type", "application/merge-patch+json")
        .body(foreign.to_string().into_bytes().into())
        .unwrap();
    assert!(plane.servers[0].client().send(request).await.unwrap().status().is_success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_runs_that_wait_for_a_dead_one_only_one_begins() {
    let plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 10).await;
    let journals = ["one.json", "two.json", "three.json"].map(|name| plane.folder.path().join(name));
    // It leaves the Lease, free.
    run(&plane, &journals[0], &[]).exits(9);
    hold_elsewhere(&plane).await;
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..1);
    plane.wait_key_id(0..1, &old).await;
    let mut runs = [1, 2].map(|at| start(&plane, &journals[at], &["--settle=1h", "no-compact"]));
    wait_until("one gives way", ENDS_WITHIN, async || runs.iter_mut().any(|run| !run.is_running())).await;
    let ended = runs.iter_mut().position(|run| !run.is_running()).unwrap();
    assert_eq!(runs[ended].wait(ENDS_WITHIN).code(), Some(2), "{}", runs[ended].log());
    let other = runs[1 - ended].id();
    assert!(runs[ended].log().contains(&format!("pid {other} ")), "{}", runs[ended].log());
    reaches(&journals[1 + (1 - ended)], "settle").await;
    assert!(runs[1 - ended].is_running(), "it goes on: {}", runs[1 - ended].log());
    assert!(runs[1 - ended].log().contains("has not renewed its Lease for 60 s"), "{}", runs[1 - ended].log());
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
    for method in ["--method=patch", "--method=rewrap"] {
        let refused = run(&plane, &two, &[method]).exits(2).says("another rotate-keys is running on this cluster");
        refused.says(&format!("pid {}", first.id()));
    }
    // Killed: its Lease stays, and nobody renews it.
    first.kill();
    let began = Instant::now();
    let rewrap = ["--method=rewrap", "--former", &old, "--settle=1h", "no-compact"];
    let mut second = waiting(&plane, &two, &rewrap).await;
    assert!(began.elapsed() < Duration::from_secs(45), "a dead process of this machine is not waited for");
    let refused = run(&plane, &one, &["--resume", "--compact"]).exits(2);
    refused.says("another rotate-keys is running on this cluster").says(&format!("pid {}", second.id()));
    second.stop();
    run(&plane, &two, &["--abort"]).exits(0);

    // One that ran on another machine: nothing tells that it is gone but that it renews nothing.
    hold_elsewhere(&plane).await;
    let began = Instant::now();
    let ended = run(&plane, &one, &["--resume", "--compact"]).exits(0);
    ended.says("elsewhere pid 1 start 1 in boot/pid:[1] has not renewed its Lease for 60 s: this run takes its place");
    assert!(began.elapsed() > Duration::from_mins(1), "it is watched for a minute");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_cannot_renew_its_lease_stands_still_until_it_can_and_ends_where_another_has_begun() {
    let plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 1500).await;
    let proxy = Proxy::before(&plane).await;
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..1);
    plane.wait_key_id(0..1, &old).await;
    let [one, two] = ["one.json", "two.json"].map(|name| plane.folder.path().join(name));
    let slowly = [proxy.kubeconfig.as_str(), &proxy.server, "--qps=5"];
    let mut first = start(&plane, &one, &slowly);
    reaches(&one, "rewrite").await;

    // Cut off from the Lease alone: everything else would go on.
    let times = |words: &str| first.log().matches(words).count();
    let stands_still = "another run may begin: this one is suspended";
    for time in 1..=2 {
        let lease = "leases/rotate-keys";
        proxy.set(Mode::CutOff(lease.into()));
        wait_until("it stands still", ENDS_WITHIN, async || times(stands_still) == time).await;
        let before = left(&plane, &old).await;
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(left(&plane, &old).await, before, "nothing is rewritten");
        assert!(before > 0, "something was left to rewrite");
        if time == 1 {
            proxy.set(Mode::Pass);
            wait_until("it goes on", ENDS_WITHIN, async || left(&plane, &old).await < before).await;
        }
    }
    let other = run(&plane, &two, &[]).exits(0).says("Yes: ").says(&format!("pid {}", first.id()));
    drop(other.says("has not renewed its Lease for 60 s: this run takes its place"));
    // It has let go of the Lease; so the first would take it again if it went on.
    proxy.set(Mode::Pass);
    assert!(first.wait(ENDS_WITHIN).success(), "nothing is left: {}", first.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_was_stopped_while_another_took_its_place_sends_nothing_more() {
    let policy = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: Metadata, resources: [{group: '', resources: \
                  [secrets]}]}]\n";
    let plane = ControlPlane::start(Shape { audit_policy: Some(policy.into()), ..Shape::of(1) }).await;
    plane.create_secrets("s", 1500).await;
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..1);
    plane.wait_key_id(0..1, &old).await;
    let [one, two] = ["one.json", "two.json"].map(|name| plane.folder.path().join(name));
    let mut first = start(&plane, &one, &["--qps=20"]);
    reaches(&one, "rewrite").await;
    first.signal(Signal::STOP);
    let second = waiting(&plane, &two, &["--settle=1h", "no-compact"]).await;
    assert!(second.log().contains(&format!("pid {}", first.id())), "{}", second.log());
    let patches = || {
        let log = std::fs::read_to_string(plane.servers[0].audit_log()).unwrap();
        log.lines().filter(|line| line.contains("\"verb\":\"patch\"") && line.contains("\"name\":\"s-")).count()
    };
    let before = patches();
    first.signal(Signal::CONT);
    let status = first.wait(ENDS_WITHIN);
    assert_eq!(status.code(), Some(4), "{}", first.log());
    assert!(first.log().contains("another rotate-keys took this one's place"), "{}", first.log());
    assert!(first.log().contains(&format!("pid {}", second.id())), "{}", first.log());
    assert_eq!(patches(), before, "not one object more was touched");
}
