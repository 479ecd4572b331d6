//! Options that a rotation can do without: Events, etcd over TLS given half, the state of a rotation that is over.

use serde_json::{Value, json};

use crate::control_plane::{ControlPlane, Shape};
use crate::objects::post;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_left_to_expire_or_rewritten_when_asked_for_and_the_state_of_it_can_be_told_afterwards() {
    let shape = Shape { resources: vec!["secrets", "configmaps", "events"], ..Shape::compacting(1) };
    let plane = ControlPlane::start(shape).await;
    plane.create_secrets("s", 20).await;
    let old = plane.key_id(0).await;
    let event = json!({
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "reason": "Test", "message": "m",
        "involvedObject": {"apiVersion": "v1", "kind": "Secret", "namespace": "default", "name": "s-0"},
    });
    post(&plane, "/api/v1/namespaces/default/events", &event).await;
    let key = "/registry/events/default/e";
    assert_eq!(plane.etcd.key_id(key).await.as_ref(), Some(&old));

    plane.rotate_keyrings(0..1);
    let new = plane.wait_key_id(0..1, &old).await;
    let ended = plane.run("rotate-keys", &[]).exits(7).says("Not yet: ");
    ended.says("Event(s) under an older key must expire");
    assert_eq!(plane.etcd.key_id(key).await.as_ref(), Some(&old));
    plane.check_all_under(&new).await;
    plane.run("verify", &[]).exits(6).says(key);

    let metrics = plane.folder.path().join("rotation.prom");
    let metrics_file = format!("--metrics-file={}", metrics.display());
    let more = ["--include-events", "no-etcd", &metrics_file];
    plane.run("rotate-keys", &more).exits(0).says("Yes: ").says("events");
    let metrics = std::fs::read_to_string(metrics).unwrap();
    for line in [
        "kube_envelope_rotation_verdict{conclusion=\"mayBeDisabled\"} 1",
        "kube_envelope_rotation_state{state=\"done\"} 1",
        "kube_envelope_rotation_objects{resource=\"events\",outcome=\"rewritten\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    assert_eq!(plane.etcd.key_id(key).await.as_ref(), Some(&new));
    assert!(!plane.etcd.key_ids("/registry/events/").await.contains_key(&old));
    plane.run("verify", &[]).exits(0);

    // A Yes of the past is none.
    let told = plane.run("rotate-keys", &["--status"]).exits(8).says("state: done").says("says whether it still holds");
    assert!(told.out.starts_with("as of "), "{}", told.out);
    told.says("Which keys may be disabled?\nYes: nothing is stored under ");
    let told = plane.run("rotate-keys", &["--status", "--output=json"]).exits(8).out;
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(Some(told), plane.journal(), "the journal, whole");
    // What is over cannot be given up, and going on with it changes nothing.
    plane.run("rotate-keys", &["--resume"]).exits(0).says("Yes: ");
    std::fs::remove_file(plane.journal_file()).unwrap();
    plane.run("rotate-keys", &["--status"]).exits(1).says("holds no rotation").says("--journal");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_cannot_be_verified_is_not_asked_and_the_flag_that_is_missing_is_named() {
    let plane = ControlPlane::start(Shape { etcd_tls: true, ..Shape::of(1) }).await;
    plane.create_secrets("s", 5).await;
    let (url, folder) = plane.etcd.tls();
    let at = |flag: &str, name: &str| format!("{flag}={}", folder.join(name).display());
    let (url, ca) = (format!("--etcd={url}"), at("--etcd-ca", "etcd-ca.crt"));
    let (certificate, key) = (at("--etcd-cert", "etcd.crt"), at("--etcd-key", "etcd.key"));
    plane.run("verify", &["no-etcd", &url, &certificate, &key]).exits(2).says("--etcd-ca");
    plane.run("rotate-keys", &["no-etcd", &url, &certificate, &key]).exits(2).says("--etcd-ca");
    let plain = url.replace("https:", "http:");
    plane
        .run("verify", &["no-etcd", &plain, &certificate, &key])
        .exits(1)
        .says("if this etcd speaks TLS, write https://");
    assert_eq!(plane.journal(), None, "nothing has begun");

    let other = plane.etcd.folder().join("authority.crt");
    let other = format!("--etcd-ca={}", other.display());
    let ended = plane.run("verify", &["no-etcd", &url, &other, &certificate, &key]).exits(1);
    ended.says("no etcd endpoint answers").says("--etcd-ca");
    // Found out before anything is rewritten.
    let begun = plane.run("rotate-keys", &["no-etcd", &url, &other, &certificate, &key]).exits(1);
    begun.says("--etcd-ca").says("state: plan");
    plane.run("rotate-keys", &["no-etcd", "--resume", &ca]).exits(9).says("--etcd-ca is ").says("Nothing was rotated");
}
