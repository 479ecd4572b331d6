//! Whole rotations: first encryption, and a new keyring version, while writers go on.

use crate::control_plane::{ControlPlane, Shape, Writers};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_first_encryption_nothing_is_left_in_clear() {
    let mut plane = ControlPlane::start(Shape { in_clear: true, ..Shape::of(2) }).await;
    plane.create_secrets("s", 300).await;
    plane.encrypt().await;
    let stored = plane.stored().await;
    assert!(stored[""] >= 300, "{stored:?}");
    plane.run("verify", &[]).exits(6).says("in clear").says("/registry/secrets/default/s-0");
    plane.run("verify", &["no-etcd"]).exits(6);

    let writers = Writers::start(&plane, 4).await;
    let ended =
        plane.run("rotate-keys", &[]).exits(9).says("Yes: nothing that should be encrypted is stored in clear.");
    let ended = ended.says("There is no former key to disable.");
    let ended = ended.says("Snapshots of etcd from before this run hold data in clear: guard or delete them.");
    assert!(!ended.out.contains("may be disabled:"), "{}", ended.out);
    writers.stop_and_check(&plane).await;

    let key_id = plane.key_id(0).await;
    plane.check_all_under(&key_id).await;
    plane.check_secrets(1, "s", 300).await;
    plane.run("verify", &[]).exits(0).says("Nothing is stored under a former key.");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_keyring_rotation_of_two_nodes_leaves_nothing_on_the_old_key_and_loses_no_write() {
    let mut plane = ControlPlane::start(Shape::of(2)).await;
    plane.create_secrets("s", 500).await;
    let old = plane.key_id(0).await;
    plane.check_all_under(&old).await;

    let config = format!("--config={}", plane.plugins[0].config_file().display());
    plane.run("rotate-keys", &["--rotate-kek", &config]).exits(1).says("has no pending version");
    plane.run("rotate-keys", &["--abort"]).exits(0);
    plane.keyrings[0].command(&["add"], &[]);
    plane.keyrings[1].copy_from(&plane.keyrings[0]);
    let writers = Writers::start(&plane, 4).await;
    let mut run = plane.spawn("rotate-keys", &["--rotate-kek", &config, "--output=json"]);
    let first = plane.wait_key_id(0..1, &old).await;
    plane.keyrings[1].copy_from(&plane.keyrings[0]);
    let status = run.wait(crate::control_plane::ENDS_WITHIN);
    writers.stop_and_check(&plane).await;
    assert!(status.success(), "{}", run.log());

    plane.check_all_under(&first).await;
    plane.check_secrets(1, "s", 500).await;
    let journal = plane.journal().unwrap();
    assert_eq!(journal["verdict"]["conclusion"], "mayBeDisabled");
    assert_eq!(journal["adoption"]["evidence"], "writeProof");
    assert_eq!(journal["adoption"]["servers"].as_array().unwrap().len(), 2);
    let secrets = journal["resources"].as_array().unwrap().iter().find(|one| one["resource"]["plural"] == "secrets");
    assert!(secrets.unwrap()["tally"]["rewritten"].as_u64().unwrap() >= 500);

    // What the verdict promises: the old version can go, and a cold start of every API server reads everything.
    for node in 0..2 {
        plane.keyrings[node].destroy_retired();
        plane.plugins[node].stop();
        plane.plugins[node].restart().await;
        plane.servers[node].stop();
        plane.servers[node].restart().await;
        plane.check_secrets(node, "s", 500).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long; scripts/e2e runs it"]
async fn ten_thousand_secrets_are_rotated_under_writers_and_every_value_is_there() {
    let plane = ControlPlane::start(Shape::of(2)).await;
    plane.create_secrets("s", 10_000).await;
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..2);
    let new = plane.wait_key_id(0..2, &old).await;
    let writers = Writers::start(&plane, 4).await;
    plane.run("rotate-keys", &[]).exits(0).says("Yes: nothing is stored under ");
    writers.stop_and_check(&plane).await;
    plane.check_all_under(&new).await;
    plane.check_secrets(1, "s", 10_000).await;
}
