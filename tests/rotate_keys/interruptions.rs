//! What passes by itself is waited out: an API server that is away or overloaded for seconds, credentials that expired
//! and are renewed, a disk that is full for a moment.

use std::time::Duration;

use crate::control_plane::{ControlPlane, ENDS_WITHIN, Shape};
use crate::proxy::{Mode, Proxy, Stumbles};
use crate::support::{Process, wait_until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_seconds_of_anything_but_service_again_and_again_do_not_end_a_rotation() {
    let plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 400).await;
    let proxy = Proxy::before(&plane).await;
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..1);
    let new = plane.wait_key_id(0..1, &old).await;
    let mut run = plane.spawn("rotate-keys", &[&proxy.kubeconfig, &proxy.server, "--qps=20"]);
    // The first answer says that this is the right address; from then on everything may fail for a while.
    wait_until("the run has begun", ENDS_WITHIN, async || !plane.state().is_empty()).await;
    let outages = [Mode::Answer(503), Mode::Overloaded, Mode::Answer(500), Mode::Answer(502), Mode::Answer(504)];
    for outage in outages.iter().cycle().take(20) {
        if !run.is_running() {
            break;
        }
        proxy.set(outage.clone());
        tokio::time::sleep(Duration::from_secs(3)).await;
        proxy.set(Mode::Pass);
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    let status = run.wait(ENDS_WITHIN);
    assert!(status.success(), "{}", run.log());
    plane.check_all_under(&new).await;
    plane.check_secrets(0, "s", 400).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_asked_may_go_unanswered_for_three_seconds_when_it_is_asked_first() {
    let plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 20).await;
    let proxy = Proxy::before(&plane).await;
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..1);
    let new = plane.wait_key_id(0..1, &old).await;
    let stumbles = Stumbles::default();
    proxy.set(Mode::Stumble(stumbles.clone()));
    let mut run = plane.spawn("rotate-keys", &[&proxy.kubeconfig, &proxy.server]);
    let status = run.wait(3 * ENDS_WITHIN);
    let refused = stumbles.refused();
    assert!(status.success(), "{refused:#?}\n{}", run.log());
    assert!(refused.len() > 15 && refused.values().all(|times| *times > 0), "{refused:#?}");
    for kind in ["GET /metrics", "PATCH /api/v1/namespaces/default/secrets/NAME", "GET /api/v1/secrets"] {
        assert!(refused.contains_key(kind), "{kind} is asked, too: {refused:#?}");
    }
    plane.check_all_under(&new).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_is_away_for_a_while_does_not_end_a_rotation() {
    let mut plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 20).await;
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..1);
    let new = plane.wait_key_id(0..1, &old).await;
    // Nothing compacts etcd: that is waited for, and etcd is asked for it again and again.
    let mut run = plane.spawn("rotate-keys", &["--settle=20s", "no-compact"]);
    plane.wait_state("settle").await;
    plane.etcd.process.stop();
    // Which it notices first: that etcd does not answer, or that the API server cannot renew the Lease without it.
    let words = ["waiting for it to pass", "this one is suspended"];
    let told = |run: &Process| words.iter().any(|words| run.log().contains(words));
    wait_until("it says that it waits", ENDS_WITHIN, async || told(&run) || !run.is_running()).await;
    assert!(run.is_running(), "{}", run.log());
    plane.etcd.process.restart();
    let status = run.wait(ENDS_WITHIN);
    assert_eq!(status.code(), Some(7), "{}", run.log());
    assert!(run.log().contains("old revisions can still be read"), "{}", run.log());
    plane.check_all_under(&new).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_expires_is_read_again_once_somebody_has_renewed_it() {
    let plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 400).await;
    let proxy = Proxy::before(&plane).await;
    // In the kubeconfig itself: a file of its own is read again each minute by the client library.
    let kubeconfig = proxy.kubeconfig.trim_start_matches("--kubeconfig=");
    let with = |token: &str| {
        let text = std::fs::read_to_string(kubeconfig).unwrap();
        let (before, after) = text.split_once("user: {").unwrap();
        let after = after.split_once('}').unwrap().1;
        std::fs::write(kubeconfig, format!("{before}user: {{token: {token}}}{after}")).unwrap();
    };
    with("first");
    proxy.set(Mode::Demand("first".into()));
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..1);
    let new = plane.wait_key_id(0..1, &old).await;
    let mut run = plane.spawn("rotate-keys", &[&proxy.kubeconfig, &proxy.server, "--qps=40"]);
    plane.wait_state("rewrite").await;
    proxy.set(Mode::Demand("second".into()));
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(run.is_running(), "{}", run.log());
    with("second");
    let status = run.wait(ENDS_WITHIN);
    assert!(status.success(), "{}", run.log());
    plane.check_all_under(&new).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_waited_for_and_named() {
    let plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 200).await;
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..1);
    let new = plane.wait_key_id(0..1, &old).await;
    // The tests run in a mount namespace of their own (scripts/in-netns).
    let small = plane.folder.path().join("small");
    std::fs::create_dir(&small).unwrap();
    let mounted =
        std::process::Command::new("mount").args(["-t", "tmpfs", "-o", "size=512k", "tmpfs"]).arg(&small).status();
    assert!(mounted.unwrap().success());
    let journal = small.join("journal.json");
    let mut arguments = plane.arguments("rotate-keys", &["--qps=40"]);
    arguments.retain(|argument| !argument.starts_with("--journal="));
    arguments.push(format!("--journal={}", journal.display()));
    let log = plane.folder.path().join("full.log");
    let arguments = arguments.into_iter().map(Into::into).collect();
    let program = crate::control_plane::BINARY.into();
    let mut run = crate::support::Process::start("rotate-keys", program, arguments, Vec::new(), log);
    wait_until("the rewrite has begun", ENDS_WITHIN, async || run.log().contains("state: rewrite")).await;
    let ballast = small.join("ballast");
    // Whatever is free.
    let _ = std::fs::write(&ballast, vec![0; 512 << 10]);
    wait_until("it waits for the disk", ENDS_WITHIN, async || run.log().contains("cannot be written")).await;
    assert!(run.log().contains(&journal.display().to_string()), "{}", run.log());
    std::fs::remove_file(&ballast).unwrap();
    let status = run.wait(ENDS_WITHIN);
    let log = run.log();
    drop(std::process::Command::new("umount").arg("-l").arg(&small).status());
    assert!(status.success(), "{log}");
    plane.check_all_under(&new).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_that_is_started_again_without_end_pauses_the_run_instead_of_being_waited_for() {
    let plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 20).await;
    let proxy = Proxy::before(&plane).await;
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..1);
    let new = plane.wait_key_id(0..1, &old).await;
    let through = [proxy.kubeconfig.as_str(), proxy.server.as_str()];
    let mut run = plane.spawn("rotate-keys", &through);
    let log = plane.folder.path().join("rotate-keys.log");
    let agreed = || std::fs::read_to_string(&log).unwrap_or_default().contains("state: agree");
    wait_until("every server has proven the key", ENDS_WITHIN, async || agreed() || !run.is_running()).await;
    proxy.set(Mode::Restarts);
    let status = run.wait(3 * ENDS_WITHIN);
    assert_eq!(status.code(), Some(4), "{}", run.log());
    for said in ["begin again 20 times", "was started after all servers", "--resume"] {
        assert!(run.log().contains(said), "{said}: {}", run.log());
    }
    proxy.set(Mode::Pass);
    plane.run("rotate-keys", &[&through[..], &["--resume"]].concat()).exits(0).says("Yes");
    plane.check_all_under(&new).await;
}
