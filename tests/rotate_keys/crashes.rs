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
async fn killed_in_any_state_a_rotation_goes_on_to_the_same_verdict() {
    let plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 100).await;
    let config = format!("--config={}", plane.plugins[0].config_file().display());
    let mut caught = Vec::new();
    for (at, state) in STATES[..STATES.len() - 1].iter().enumerate() {
        let old = plane.key_id(0).await;
        let versions = plane.keyrings[0].versions().len();
        let more = ["--rotate-kek", &config, "--qps=200", "--settle=1s", "--snapshot-command=sleep 0.3"];
        let mut run = plane.spawn("rotate-keys", &more);
        let began = Instant::now();
        let seen = loop {
            // The journal of the rotation before may still be there.
            let seen = position(&plane.state()).filter(|seen| *seen != STATES.len() - 1);
            if let Some(seen) = seen.filter(|seen| *seen >= at) {
                break seen;
            }
            assert!(began.elapsed() < ENDS_WITHIN && run.is_running(), "{state} was not reached: {}", run.log());
            tokio::time::sleep(Duration::from_micros(300)).await;
        };
        run.kill();
        caught.push(STATES[seen]);

        let ended = plane.run("rotate-keys", &["--resume", "--rotate-kek", &config, "--settle=0s"]).exits(0);
        let ended = ended.says("Yes: nothing is stored under an older key.");
        let new = plane.key_id(0).await;
        assert_ne!(new, old, "killed in {state}: {}", ended.err);
        assert_eq!(plane.keyrings[0].versions().len(), versions + 1, "killed in {state}: the KEK was rotated once");
        plane.check_all_under(&new).await;
        plane.check_secrets(0, "s", 100).await;
    }
    caught.dedup();
    assert!(caught.len() >= 8, "each state was to be met, and these were: {caught:?}");
}
