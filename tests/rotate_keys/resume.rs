//! What a rotation began with is in its journal: resuming needs no flag, and cannot silently mean something else.

use std::process::Command;

use rustix::process::Signal;

use crate::control_plane::{BINARY, ControlPlane, ENDS_WITHIN, Shape};

/// The command line that a text gives after `continue with: `.
fn hint(text: &str) -> Vec<String> {
    let line = text.lines().find_map(|line| line.split_once("continue with: ")).unwrap().1;
    line.split("; or").next().unwrap().split(' ').map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_printed_hint_pasted_as_it_is_ends_in_the_verdict_that_was_asked_for() {
    let plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 300).await;
    let old = plane.key_id(0).await;
    let former = plane.keyrings[0].versions()[0]["id"].as_str().unwrap().to_owned();
    let config = format!("--config={}", plane.plugins[0].config_file().display());
    let mut run = plane.spawn("rotate-keys", &["--rotate-kek", &config, "--qps=60"]);
    plane.wait_state("rewrite").await;
    run.signal(Signal::INT);
    let status = run.wait(ENDS_WITHIN);
    assert_eq!(status.code(), Some(4), "{}", run.log());
    let hint = hint(&run.log());
    assert_eq!(hint[..3], ["kube-envelope", "rotate-keys", "--resume"]);

    plane.run("rotate-keys", &["--status"]).exits(7);
    let output = tokio::task::block_in_place(|| Command::new(BINARY).args(&hint[1..]).output().unwrap());
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains(&format!("Yes: nothing is stored under KEK primary version {former}.")), "{said}");
    let new = plane.key_id(0).await;
    assert_ne!(new, old);
    plane.check_all_under(&new).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resumed_with_other_settings_or_against_another_cluster_it_is_refused_with_both_values() {
    let plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 300).await;
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..1);
    plane.wait_key_id(0..1, &old).await;
    let mut run = plane.spawn("rotate-keys", &["--qps=60"]);
    plane.wait_state("rewrite").await;
    run.kill();

    let refused = plane.run("rotate-keys", &["--resume", "--include-events"]).exits(2);
    refused.says("--include-events is true now; the rotation began with false");
    let refused = plane.run("rotate-keys", &["--resume", "--etcd=http://127.0.0.1:1"]).exits(2);
    refused.says("--etcd is http://127.0.0.1:1 now").says(plane.etcd.url());
    let other = ControlPlane::start(Shape::of(1)).await;
    let kubeconfig = format!("--kubeconfig={}", other.servers[0].kubeconfig(crate::support::ADMIN).display());
    plane.run("rotate-keys", &["--resume", &kubeconfig]).exits(2).says("another cluster");

    let file = plane.servers[0].encryption_file();
    let text = std::fs::read_to_string(file).unwrap();
    std::fs::write(file, format!("{text}# another\n")).unwrap();
    plane.run("rotate-keys", &["--resume"]).exits(2).says("has changed since the rotation began");
    std::fs::write(file, text).unwrap();
    plane.run("rotate-keys", &["--resume", "--qps=500"]).exits(0).says("--qps is 500.0 now");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_has_changed_nothing_yet_is_begun_again_by_the_same_command() {
    let plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 20).await;
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..1);
    plane.wait_key_id(0..1, &old).await;
    plane.run("rotate-keys", &["--snapshot-command=false"]).exits(1).says("the snapshot command failed");
    assert_eq!(plane.state(), "preflight");
    plane.run("rotate-keys", &[]).exits(0).says("Yes: ");
}
