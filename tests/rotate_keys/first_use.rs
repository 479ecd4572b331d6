//! What a stranger with the documentation alone reads on the way: one name for each key, which node is behind, and what
//! was not known.

use crate::control_plane::{ControlPlane, Shape};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plan_verify_and_rotation_name_a_key_as_status_does_and_say_which_node_is_behind() {
    let plane = ControlPlane::start(Shape::of(2)).await;
    plane.create_secrets("s", 30).await;
    let old = plane.key_id(0).await;
    let config = format!("--config={}", plane.plugins[0].config_file().display());
    let plan = plane
        .run("rotate-keys", &["--plan", &config])
        .exits(0)
        .says(&format!("(key_id {old} of provider kube-envelope)"));
    assert!(!plan.out.contains("sha256:"), "{}", plan.out);
    let nonsense = plane.run("verify", &["--key-id=ke1-nonsense"]).exits(5);
    nonsense.says("no API server uses key_id ke1-nonsense");

    // The other node gets the version, and does not make it active.
    plane.rotate_keyrings(0..1);
    let new = plane.wait_key_id(0..1, &old).await;
    let [first, second] = [0, 1].map(|node| plane.servers[node].url().trim_start_matches("https://").to_owned());
    let (as_it_should_be, behind) = (
        format!("API server {first} (control-plane-1) (as it should be)"),
        format!("API server {second} (control-plane-2) (behind)"),
    );
    let ended = plane.run("rotate-keys", &[&config, "--adoption-timeout=10s"]).exits(5);
    let ended = ended.says("plugins of kube-envelope report different keys").says(&as_it_should_be).says(&behind);
    let ended = ended.says(&format!("key_id {new} of provider kube-envelope at {as_it_should_be}"));
    let ended = ended.says("a keyring must be copied to every node");
    assert!(!ended.err.contains("sha256:"), "{}", ended.err);
    // Until when it waits, and what it went through (field case N10).
    let ended = ended.says("(until ").says(", --adoption-timeout)").says("state: preflight");
    assert!(ended.err.contains("continue with: kube-envelope rotate-keys --resume"), "{}", ended.err);

    // It looks all the same: how much is stored under which key.
    let ended = plane.run("verify", &[&config]).exits(5).says("report different keys");
    let counted =
        |key_id: &str| ended.out.lines().any(|line| line.trim_start().starts_with("secrets ") && line.contains(key_id));
    assert!(counted(&old), "{}", ended.out);
    plane.run("rotate-keys", &["--abort"]).exits(0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pending_version_that_another_node_may_lack_is_told_of_before_it_becomes_active() {
    let plane = ControlPlane::start(Shape::of(2)).await;
    plane.create_secrets("s", 30).await;
    let old = plane.key_id(0).await;
    let config = format!("--config={}", plane.plugins[0].config_file().display());
    plane.keyrings[0].command(&["add"], &[]);
    let ended = plane.run("rotate-keys", &["--rotate-kek", &config, "--adoption-timeout=10s"]).exits(5);
    let told = ended.err.find("copy the file to every node first").unwrap_or_else(|| panic!("{}", ended.err));
    let made = ended.err.find("is active; before, it was").unwrap_or_else(|| panic!("{}", ended.err));
    assert!(told < made, "{}", ended.err);
    assert!(plane.stored().await[&old] >= 30, "nothing was rewritten");

    plane.keyrings[1].copy_from(&plane.keyrings[0]);
    let new = plane.wait_key_id(0..2, &old).await;
    plane.run("rotate-keys", &["--resume", "--adoption-timeout=2m"]).exits(0).says("Yes: ");
    plane.check_all_under(&new).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_version_of_a_keyring_is_made_active_while_a_server_that_is_known_is_away() {
    let mut plane = ControlPlane::start(Shape::of(2)).await;
    plane.create_secrets("s", 10).await;
    let config = format!("--config={}", plane.plugins[0].config_file().display());
    let servers: Vec<_> = plane.servers.iter().map(|server| format!("--server={}", server.url())).collect();
    let address = plane.servers[1].url().trim_start_matches("https://").to_owned();
    plane.keyrings[0].command(&["add"], &[]);
    let before = plane.keyrings[0].versions();
    plane.servers[1].stop();
    let ended = plane.run("rotate-keys", &["--rotate-kek", &config, &servers[0], &servers[1]]).exits(1);
    ended.says("no version of it is made active").says(&address).says("--servers N");
    assert_eq!(plane.keyrings[0].versions(), before);
}
