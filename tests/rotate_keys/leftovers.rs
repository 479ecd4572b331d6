//! A leftover: harmless as long as every API server runs, and the end of the next one that restarts.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::backup_rewrap::rewrap;
use crate::backups::alone;
use crate::control_plane::{ControlPlane, Shape};
use crate::objects::grant;
use crate::support::Etcd;
use crate::support::apiserver::ROTATOR;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verify_names_a_leftover_before_a_restart_would_fail_on_it() {
    let mut plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 30).await;
    let old = plane.key_id(0).await;
    let key = "/registry/secrets/default/s-3";
    let stored = plane.etcd.get(key).await.unwrap();
    plane.rotate_keyrings(0..1);
    plane.wait_key_id(0..1, &old).await;
    plane.run("rotate-keys", &[]).exits(0);
    plane.run("verify", &[]).exits(0);

    // As if it had been missed.
    plane.etcd.put(key, &stored).await;
    plane.run("verify", &[]).exits(6).says(key).says(&old);
    plane.run("verify", &["no-etcd"]).exits(6).says("/api/v1/namespaces/default/secrets/s-3");
    plane.keyrings[0].destroy_retired();
    assert!(plane.servers[0].readyz().await.unwrap().0, "nothing shows as long as it runs");
    plane.check_secrets(0, "s", 30).await;

    plane.plugins[0].stop();
    plane.plugins[0].restart().await;
    plane.servers[0].stop();
    plane.servers[0].process.restart();
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(20) {
        assert!(plane.servers[0].readyz().await.is_none_or(|(ready, _)| !ready), "it cannot become ready");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let (_, why) = plane.servers[0].readyz().await.unwrap();
    assert!(why.contains("[-]informer-sync") || why.contains("[-]storage-readiness"), "{why}");
    plane.run("verify", &[]).exits(6).says(key);
}

/// The evidence of the rotation in the journal is signed and verified by other commands, and every verdict is in its
/// history.
fn sign_and_verify(plane: &ControlPlane, former: &str) {
    let files = std::fs::read_dir(plane.folder.path()).unwrap().map(|entry| entry.unwrap().path());
    let is_evidence = |file: &PathBuf| file.file_name().unwrap().to_str().unwrap().starts_with("evidence-");
    let evidence = files.into_iter().find(is_evidence).unwrap();
    let (key, public) = (plane.folder.path().join("key.pem"), plane.folder.path().join("key.pub"));
    // RFC 8410, section 10.
    let pem = |kind: &str, content: &str| format!("-----BEGIN {kind} KEY-----\n{content}\n-----END {kind} KEY-----\n");
    std::fs::write(&key, pem("PRIVATE", "MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC")).unwrap();
    std::fs::write(&public, pem("PUBLIC", "MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=")).unwrap();
    let (key, public) = (format!("--key={}", key.display()), format!("--public-key={}", public.display()));
    alone(&["evidence", "sign", evidence.to_str().unwrap(), &key]).exits(0);
    let signed = evidence.with_extension("intoto.json");
    let given = format!("--evidence={}", evidence.display());
    alone(&["evidence", "verify", signed.to_str().unwrap(), &public, &given])
        .exits(0)
        .says("Yes: nothing is stored under");
    let page = alone(&["evidence", "report", signed.to_str().unwrap(), &public]).exits(0);
    page.says(former)
        .says("| secrets | kube-envelope ke1-")
        .says("## May be destroyed")
        .says("API servers that stored a write");
    let journal = format!("--journal={}", plane.journal_file().display());
    let past = alone(&["evidence", "history", &journal]).exits(0);
    assert_eq!(past.out.matches("Yes: nothing is stored under").count(), 3, "{}", past.out);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verify_says_for_each_version_whether_values_or_snapshots_need_it() {
    let plane = ControlPlane::start(Shape::compacting(1)).await;
    plane.create_secrets("s", 20).await;
    let version = |state: &str| {
        let all = plane.keyrings[0].versions();
        all.iter().find(|one| one["state"] == state).unwrap()["id"].as_str().unwrap().to_owned()
    };
    let former = version("active");
    let night = plane.folder.path().join("night.db");
    plane.etcd.snapshot(&night).await;
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..1);
    plane.wait_key_id(0..1, &old).await;
    let config = format!("--config={}", plane.plugins[0].config_file().display());
    let backup = |file: &Path| format!("--backup={}", file.display());
    let ended = plane.run("rotate-keys", &[&config, &backup(&night)]).exits(0);
    let ended = ended.says(&format!("It may be disabled; keep it (not destroyed) for {}", night.display()));
    assert!(!ended.out.contains("may be destroyed:"), "{}", ended.out);
    plane.prepare_keyrings();
    let (active, pending) = (version("active"), version("pending"));
    let snapshot = format!("--snapshot-file={}", night.display());
    // What the values in etcd no longer need, the snapshot still does.
    let ended = plane.run("verify", &[&config, &snapshot]).exits(7).says("night.db holds ");
    let ended = ended.says(&format!("KEK primary version {former}: needed by {}", night.display()));
    let ended = ended.says(&format!("KEK primary version {active}: in use by "));
    let ended = ended.says(&format!("KEK primary version {pending}: unused"));
    let ended = ended.says("not looked at: ");
    assert!(!ended.out.contains("a guess:"), "{}", ended.out);
    plane.run("verify", &["no-etcd", &config]).exits(0).says("a guess: ");

    // The backup under the active version takes its place.
    rewrap(&night, std::slice::from_ref(&config)).exits(0);
    let rewrapped = plane.folder.path().join("night.db.rewrapped");
    let ended = plane.run("verify", &[&config, &format!("--snapshot-file={}", rewrapped.display())]).exits(0);
    let free = "unused; as far as etcd and the snapshots go that were named, it may be destroyed";
    ended.says(&format!("KEK primary version {former}: {free}"));
    let another = Etcd::start().await;
    another.put("/registry/namespaces/kube-system", b"{\"metadata\":{\"uid\":\"another\"}}").await;
    let foreign = plane.folder.path().join("foreign.db");
    another.snapshot(&foreign).await;
    plane.run("rotate-keys", &["--resume", &backup(&foreign)]).exits(2).says("is a snapshot of another cluster");
    let foreign = format!("--snapshot-file={}", foreign.display());
    plane.run("verify", &[&config, &foreign]).exits(2).says("is a snapshot of another cluster");
    // The first one was named before, and counts as long as it is there.
    let ended = plane.run("rotate-keys", &["--resume", &backup(&rewrapped)]).exits(0);
    ended.says(&format!("keep it (not destroyed) for {}", night.display()));
    std::fs::remove_file(&night).unwrap();
    let ended = plane.run("rotate-keys", &["--resume"]).exits(0);
    let ended = ended.says(&format!("backup {}, which was named before", night.display()));
    ended.says(&format!("may be destroyed: KEK primary version {former}")).says("This speaks of these files alone");
    sign_and_verify(&plane, &former);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_is_scanned_over_tls_with_a_client_certificate() {
    let plane = ControlPlane::start(Shape { etcd_tls: true, ..Shape::of(1) }).await;
    plane.create_secrets("s", 700).await;
    let (url, folder) = plane.etcd.tls();
    let at = |flag: &str, name: &str| format!("{flag}={}", folder.join(name).display());
    let (url, ca) = (format!("--etcd={url}"), at("--etcd-ca", "etcd-ca.crt"));
    let (certificate, key) = (at("--etcd-cert", "etcd.crt"), at("--etcd-key", "etcd.key"));
    let ended = plane.run("verify", &["no-etcd", &url, &ca, &certificate, &key, "--output=json"]).exits(0);
    let scan: serde_json::Value = serde_json::from_str(&ended.out).unwrap();
    let secrets = scan["stored"]["secrets"].as_object().unwrap();
    assert_eq!(secrets.values().map(|count| count.as_u64().unwrap()).sum::<u64>(), 700);
    plane.run("verify", &["no-etcd", &url, &ca]).exits(1).says("no etcd endpoint answers").says("--etcd-cert");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_metrics_nothing_is_called_proven() {
    let plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 10).await;
    let kubeconfig = format!("--kubeconfig={}", plane.servers[0].kubeconfig(ROTATOR).display());
    let rights = plane.run("rotate-keys", &["no-etcd", "--print-rbac"]).exits(0).out;
    grant(&plane, &rights.replace("/metrics", "/nothing")).await;
    plane.run("rotate-keys", &[&kubeconfig]).exits(5).says("cannot read the metrics").says("--accept-unproven");
    plane.run("rotate-keys", &["--abort"]).exits(0);
    let key_id = format!("--key-id={}", plane.key_id(0).await);
    let more = ["--accept-unproven", "--adoption-timeout=4s", &key_id, &kubeconfig];
    let blind = ["no-etcd", "--accept-unproven", "--adoption-timeout=4s", &key_id, &kubeconfig];
    plane.run("rotate-keys", &blind).exits(1).says("give --etcd, or let this user read /metrics");
    assert_eq!(plane.journal().unwrap()["state"], "preflight", "nothing was rewritten");
    plane.run("rotate-keys", &["--abort"]).exits(0);
    plane.run("rotate-keys", &more).exits(9).says("Nothing was rotated");
}
