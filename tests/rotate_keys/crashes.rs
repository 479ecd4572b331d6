//! kill -9 in every state; `--resume` ends in the same verdict.

use std::time::{Duration, Instant};

use crate::control_plane::{ControlPlane, ENDS_WITHIN, Shape};

/// The states in their order, as the journal names them.
const STATES: [&str; 11] = [
    "plan",
    "preflight",
    "rotateKek",
    "awaitAdoption",
    "agree",
    "rewrite",
    "resweep",
    "verify",
    "settle",
    "snapshot",
    "done",
];

fn position(state: &str) -> Option<usize> {
    STATES.iter().position(|one| *one == state)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_in_every_state_one_after_the_other_a_rotation_still_ends_in_its_verdict() {
    let plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 300).await;
    let old = plane.key_id(0).await;
    let versions = plane.keyrings[0].versions().len();
    let config = format!("--config={}", plane.plugins[0].config_file().display());
    let mut caught = Vec::new();
    for (at, state) in STATES[..STATES.len() - 1].iter().enumerate() {
        let flags = ["--rotate-kek", &config, "--qps=100", "--snapshot-command=sleep 0.3", "--settle=1s"];
        let more: &[&str] = if at == 0 { &flags } else { &["--resume"] };
        let mut run = plane.spawn("rotate-keys", more);
        let began = Instant::now();
        let seen = loop {
            if let Some(seen) = position(&plane.state()).filter(|seen| *seen >= at) {
                break seen;
            }
            assert!(began.elapsed() < ENDS_WITHIN && run.is_running(), "{state} was not reached: {}", run.log());
            tokio::time::sleep(Duration::from_micros(300)).await;
        };
        assert_ne!(STATES[seen], "done", "it was to be killed in {state}: {}", run.log());
        run.kill();
        caught.push(STATES[seen]);
    }
    caught.dedup();
    assert!(caught.len() >= 8, "each state was to be met, and these were: {caught:?}");

    let ended = plane.run("rotate-keys", &["--resume"]).exits(0);
    ended.says("Yes: nothing is stored under ");
    let new = plane.key_id(0).await;
    assert_ne!(new, old);
    assert_eq!(plane.keyrings[0].versions().len(), versions + 1, "the KEK was rotated once");
    plane.check_all_under(&new).await;
    plane.check_secrets(0, "s", 300).await;
}
