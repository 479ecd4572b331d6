//! An etcd that is small, full, compacted or known to a user with few rights; and snapshots of it.

use futures::stream::{self, StreamExt};
use kube::api::PostParams;

use crate::control_plane::{ControlPlane, ENDS_WITHIN, Shape, secret};
use crate::support::wait_until;

const MEBIBYTE: usize = 1 << 20;

/// A control plane whose etcd has a quota of 64 MiB and holds about `mebibytes` in Secrets of 32 KiB.
async fn filled(mebibytes: usize) -> ControlPlane {
    let etcd_arguments = vec!["--quota-backend-bytes=67108864"];
    let arguments = vec!["--etcd-compaction-interval=0".into()];
    let plane = ControlPlane::start(Shape { arguments, etcd_arguments, ..Shape::of(1) }).await;
    let value = "x".repeat(MEBIBYTE / 32);
    stream::iter(0..mebibytes * 32)
        .for_each_concurrent(16, |number| {
            let (secrets, secret) = (plane.secrets(0), secret(&format!("s-{number}"), &value));
            async move {
                secrets.create(&PostParams::default(), &secret).await.unwrap();
            }
        })
        .await;
    plane
}

async fn check_no_alarm(plane: &ControlPlane) {
    let alarms = plane.etcd.alarms().await;
    assert!(!alarms.contains("NOSPACE"), "{alarms}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rewrite_that_does_not_fit_into_etcd_stops_before_the_quota_and_goes_on_with_compaction() {
    let plane = filled(30).await;
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..1);
    let new = plane.wait_key_id(0..1, &old).await;
    let mut run = plane.spawn("rotate-keys", &["--qps=100", "no-compact"]);
    wait_until("it waits for room", ENDS_WITHIN, async || run.log().contains("of its quota")).await;
    check_no_alarm(&plane).await;
    run.stop();

    // How far the file had grown by then, is a matter of the disk: above 90 % it must be defragmented, as the command says.
    let mut ended = plane.run("rotate-keys", &["--resume", "--compact"]);
    if ended.code != Some(0) {
        ended.says("run etcdctl defrag on each member");
        plane.etcd.post("/v3/maintenance/defragment", &serde_json::json!({})).await;
        ended = plane.run("rotate-keys", &["--resume", "--compact"]);
    }
    ended.exits(0);
    check_no_alarm(&plane).await;
    plane.check_all_under(&new).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alarm_is_named_before_anything_is_rewritten() {
    let plane = filled(30).await;
    let old = plane.key_id(0).await;
    let alarm = serde_json::json!({"action": "ACTIVATE", "alarm": "NOSPACE"});
    plane.rotate_keyrings(0..1);
    plane.wait_key_id(0..1, &old).await;
    plane.etcd.post("/v3/maintenance/alarm", &alarm).await;
    for more in [&["--dry-run"][..], &[]] {
        plane.run("rotate-keys", more).exits(1).says("NOSPACE").says("etcdctl alarm disarm");
    }
    assert_eq!(plane.etcd.key_ids("/registry/secrets/").await.into_keys().collect::<Vec<_>>(), [old]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_revisions_are_seen_to_be_gone_and_not_waited_for() {
    let plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 10).await;
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..1);
    plane.wait_key_id(0..1, &old).await;
    // Nobody compacts: that time has passed proves nothing.
    let ended = plane.run("rotate-keys", &["--settle=1s", "no-compact"]).exits(7);
    ended.says("old revisions can still be read").says("--resume --compact");
    plane.run("rotate-keys", &["--resume", "--compact"]).exits(0);
}

/// Without etcd at hand the API servers say whether old revisions can be read: that time has passed proves nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_etcd_old_revisions_are_seen_to_be_gone_by_exact_lists() {
    for (interval, settle) in [("0", "--settle=3s"), ("2s", "--settle=1m")] {
        let arguments = vec![format!("--etcd-compaction-interval={interval}")];
        let plane = ControlPlane::start(Shape { arguments, ..Shape::of(1) }).await;
        plane.create_secrets("s", 10).await;
        let old = plane.key_id(0).await;
        plane.rotate_keyrings(0..1);
        plane.wait_key_id(0..1, &old).await;
        let config = format!("--config={}", plane.plugins[0].config_file().display());
        let ended = plane.run("rotate-keys", &["no-etcd", settle, &config]);
        if interval == "0" {
            ended.exits(7).says("old revisions can still be read: ").says("--etcd-compaction-interval");
        } else {
            ended.exits(0).says("answered 410 Expired").says("not looked at: etcd itself");
        }
    }
}

/// Put under the former key past the API servers, and replaced before anybody looks: an old revision and a snapshot from
/// then hold it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_stored_and_superseded_between_two_searches_voids_what_was_clean() {
    let plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 10).await;
    let key = "/registry/secrets/default/s-3";
    let former = plane.etcd.get(key).await.unwrap();
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..1);
    plane.wait_key_id(0..1, &old).await;
    let ended = plane.run("rotate-keys", &["no-snapshot"]).exits(7);
    assert!(!ended.err.contains("superseded again"), "{}", ended.err);
    let present = plane.etcd.get(key).await.unwrap();
    plane.etcd.put(key, &former).await;
    plane.etcd.put(key, &present).await;
    let taken = || format!("--snapshot-taken={}", jiff::Timestamp::now());
    let ended = plane.run("rotate-keys", &["--resume", "no-snapshot", &taken()]).exits(7);
    let ended = ended.says("superseded again").says(&old);
    ended.says("a snapshot of etcd must be taken after");
    plane.run("rotate-keys", &["--resume", "no-snapshot", &taken()]).exits(0).says("superseded ones included");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_revision_of_a_snapshot_is_read_from_its_file() {
    let plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 10).await;
    let old = plane.key_id(0).await;
    let former = plane.etcd.get("/registry/secrets/default/s-3").await.unwrap();
    let before = plane.folder.path().join("before.db");
    plane.etcd.snapshot(&before).await;
    plane.rotate_keyrings(0..1);
    plane.wait_key_id(0..1, &old).await;
    let file = |name: &str| format!("--snapshot-file={}", plane.folder.path().join(name).display());
    plane.run("rotate-keys", &["--compact", &file("before.db")]).exits(7).says("before.db").says("revision");

    // Newer than the search, and a value under the former key in it.
    let key = "/registry/secrets/default/s-3";
    let (present, former) = (plane.etcd.get(key).await.unwrap(), former);
    plane.etcd.put(key, &former).await;
    plane.etcd.snapshot(&plane.folder.path().join("tainted.db")).await;
    plane.etcd.put(key, &present).await;
    // Nothing but the snapshot holds it any more.
    let answer = plane.etcd.post("/v3/kv/range", &serde_json::json!({"key": "YQ=="})).await;
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    let compaction = serde_json::json!({"revision": answer["header"]["revision"], "physical": true});
    plane.etcd.post("/v3/kv/compaction", &compaction).await;
    let ended = plane.run("rotate-keys", &["--resume", &file("tainted.db")]).exits(7);
    ended.says("tainted.db").says("under another key than the target").says(key);

    plane.etcd.snapshot(&plane.folder.path().join("after.db")).await;
    plane.run("rotate-keys", &["--resume", &file("after.db")]).exits(0).says("after.db");

    let mut damaged = std::fs::read(plane.folder.path().join("after.db")).unwrap();
    damaged[70_000] ^= 1;
    std::fs::write(plane.folder.path().join("damaged.db"), damaged).unwrap();
    plane.run("rotate-keys", &["--resume", &file("damaged.db")]).exits(1).says("take it again");
    let taken = "--snapshot-taken=2099-01-01T00:00:00Z";
    plane.run("rotate-keys", &["--resume", taken]).exits(2).says("in the future");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_of_etcd_who_may_read_the_prefix_alone_is_enough() {
    let arguments = vec!["--etcd-compaction-interval=2s".into()];
    let plane = ControlPlane::start(Shape { etcd_tls: true, etcd_users: true, arguments, ..Shape::of(1) }).await;
    plane.create_secrets("s", 10).await;
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..1);
    plane.wait_key_id(0..1, &old).await;
    let (url, folder) = plane.etcd.tls();
    let at = |flag: &str, name: &str| format!("{flag}={}", folder.join(name).display());
    let (url, ca) = (format!("--etcd={url}"), at("--etcd-ca", "etcd-ca.crt"));
    let (certificate, key) = (at("--etcd-cert", "rotator.crt"), at("--etcd-key", "rotator.key"));
    let more = ["no-etcd", &url, &ca, &certificate, &key];
    // The API server compacts; this user may not.
    plane.run("rotate-keys", &[&more[..], &["--settle=1m", "no-compact"]].concat()).exits(0);
    plane.run("verify", &more).exits(0);
}
