//! `verify --watch`: what is stored under which key at every moment, and the first write under a former key.

use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::control_plane::{ControlPlane, Shape};
use crate::support::{Process, wait_until};

const SOON: Duration = Duration::from_mins(1);

struct Watch {
    process: Process,
    file: PathBuf,
}

impl Watch {
    fn begin(plane: &ControlPlane) -> Self {
        let file = plane.folder.path().join("watch.prom");
        let metrics = format!("--metrics-file={}", file.display());
        Self { process: plane.spawn("verify", &["--watch", "--interval=1s", &metrics]), file }
    }

    /// The sum of a metric's samples whose labels have all these words; `None` where there is none.
    fn sum(&self, metric: &str, words: &[&str]) -> Option<u64> {
        let text = std::fs::read_to_string(&self.file).unwrap_or_default();
        let of = |line: &str| {
            let (labels, value) = line.strip_prefix("kube_envelope_watch_")?.strip_prefix(metric)?.rsplit_once(' ')?;
            words.iter().all(|word| labels.contains(word)).then(|| value.parse::<u64>().unwrap())
        };
        text.lines().filter_map(of).reduce(|sum, value| sum + value)
    }

    async fn wait(&self, metric: &str, words: &[&str], value: Option<u64>) {
        wait_until(&format!("{metric} {words:?} is {value:?}"), SOON, async || {
            assert!(!self.process.log().contains("panicked"), "{}", self.process.log());
            self.sum(metric, words) == value
        })
        .await;
    }
}

/// The revision that etcd is at.
async fn revision(plane: &ControlPlane) -> i64 {
    let answer = plane.etcd.post("/v3/kv/range", &json!({"key": "AA=="})).await;
    let answer: Value = serde_json::from_str(&answer).unwrap();
    answer["header"]["revision"].as_str().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_raises_no_alarm_and_a_later_write_under_the_former_key_does() {
    let plane = ControlPlane::start(Shape::of(2)).await;
    plane.create_secrets("s", 20).await;
    let old = plane.key_id(0).await;
    let key = "/registry/secrets/default/s-3";
    let stored = plane.etcd.get(key).await.unwrap();
    let mut watch = Watch::begin(&plane);
    watch.wait("values{", &["\"secrets\"", &old], Some(20)).await;
    watch.wait("leftovers{", &["\"secrets\""], Some(0)).await;

    plane.rotate_keyrings(0..2);
    let new = plane.wait_key_id(0..2, &old).await;
    plane.run("rotate-keys", &[]).exits(0);
    watch.wait("values{", &["\"secrets\"", &old], None).await;
    // One more is the canary of the rotation.
    watch.wait("values{", &["\"secrets\"", &new], Some(21)).await;
    watch.wait("leftovers{", &[], Some(0)).await;
    assert_eq!(watch.sum("old_key_writes_total{", &[]), None, "{}", watch.process.log());
    assert_eq!(watch.sum("censuses_total", &[]), Some(1), "nothing had to be counted again");

    plane.etcd.put(key, &stored).await;
    watch.wait("old_key_writes_total{", &["\"secrets\"", &old], Some(1)).await;
    plane.etcd.put("/registry/secrets/default/clear", b"k8s\0\n").await;
    watch.wait("old_key_writes_total{", &["\"secrets\"", "\"identity\""], Some(1)).await;
    watch.wait("leftovers{", &["\"secrets\""], Some(2)).await;
    let log = watch.process.log();
    assert!(log.contains("secrets/default/s-3 was stored under a former key") && log.contains(&old), "{log}");
    let (_, events) = plane.servers[0].get("/api/v1/namespaces/kube-envelope-canary/events").await.unwrap();
    assert!(events.contains("WrittenUnderFormerKey") && events.contains(key), "{events}");

    plane.etcd.delete("/registry/secrets/default/clear").await;
    plane.etcd.delete(key).await;
    watch.wait("leftovers{", &["\"secrets\""], Some(0)).await;
    watch.wait("values{", &["\"secrets\"", &new], Some(20)).await;
    assert_eq!(watch.process.stop().code(), Some(8), "a Yes is what verify alone says");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_was_away_while_etcd_restarted_and_was_compacted_loses_no_write() {
    let mut plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 10).await;
    let old = plane.key_id(0).await;
    let clear = |name: &str| format!("/registry/secrets/default/{name}");
    let mut watch = Watch::begin(&plane);
    watch.wait("values{", &["\"secrets\"", &old], Some(10)).await;

    // Its connection ends while it stands still; when it goes on, the revision after its last one is gone.
    watch.process.signal(Signal::STOP);
    plane.etcd.process.stop();
    plane.etcd.process.restart();
    wait_until("etcd answers", SOON, async || {
        plane.servers[0].get("/readyz").await.is_some_and(|(code, _)| code == 200)
    })
    .await;
    plane.etcd.put(&clear("a"), b"k8s\0\n").await;
    plane.etcd.delete(&clear("s-1")).await;
    plane.etcd.put(&clear("b"), b"k8s\0\n").await;
    let at = revision(&plane).await;
    plane.etcd.post("/v3/kv/compaction", &json!({"revision": at, "physical": true})).await;
    watch.process.signal(Signal::CONT);
    watch.wait("old_key_writes_total{", &["\"identity\""], Some(2)).await;
    watch.wait("values{", &["\"secrets\"", &old], Some(9)).await;
    watch.wait("leftovers{", &["\"secrets\""], Some(2)).await;
    watch.wait("censuses_total", &[], Some(2)).await;

    // What was superseded again before it began once more is seen, too.
    watch.process.kill();
    plane.etcd.put(&clear("b"), b"k8s\0\n\x01").await;
    plane.etcd.delete(&clear("a")).await;
    plane.etcd.delete(&clear("b")).await;
    watch.process.restart();
    watch.wait("old_key_writes_total{", &["\"identity\""], Some(3)).await;
    watch.wait("leftovers{", &["\"secrets\""], Some(0)).await;
    watch.process.stop();
}
