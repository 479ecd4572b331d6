//! `rotate-keys --method rewrap`: values are brought under the new key in etcd itself, and the API servers read them.

use std::time::{Duration, Instant};

use base64::{Engine, prelude::BASE64_STANDARD};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::control_plane::{ControlPlane, Shape, Writers, secret, value};
use crate::objects::{post, refuse};
use crate::support::wait_until;

const REWRAP: &str = "--method=rewrap";

fn active(plane: &ControlPlane) -> String {
    let versions = plane.keyrings[0].versions();
    versions.iter().find(|version| version["state"] == "active").unwrap()["id"].as_str().unwrap().to_owned()
}

/// Makes another version active everywhere; the one that was, and the key_id before and after.
async fn rotate(plane: &ControlPlane) -> (String, String, String) {
    let (old, former, nodes) = (plane.key_id(0).await, active(plane), 0..plane.plugins.len());
    plane.rotate_keyrings(nodes.clone());
    let new = plane.wait_key_id(nodes, &old).await;
    (former, old, new)
}

/// The lease of a key.
async fn lease(plane: &ControlPlane, key: &str) -> Value {
    let found = plane.etcd.post("/v3/kv/range", &json!({"key": BASE64_STANDARD.encode(key)})).await;
    serde_json::from_str::<Value>(&found).unwrap()["kvs"][0]["lease"].clone()
}

/// A custom resource whose definition is then gone from etcd: no API server serves it any more.
async fn leave_an_orphan(plane: &ControlPlane) {
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "widgets", "singular": "widget", "kind": "Widget"},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}],
        },
    });
    post(plane, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition).await;
    let path = "/apis/example.com/v1/namespaces/default/widgets";
    wait_until("widgets are served", Duration::from_secs(30), async || {
        plane.servers[0].get(path).await.is_some_and(|(code, _)| code == 200)
    })
    .await;
    let widget = json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w"}});
    post(plane, path, &widget).await;
    let key = "/registry/apiextensions.k8s.io/customresourcedefinitions/widgets.example.com";
    plane.etcd.post("/v3/kv/deleterange", &json!({"key": BASE64_STANDARD.encode(key)})).await;
    wait_until("widgets are served no more", Duration::from_secs(30), async || {
        plane.servers[0].get(path).await.is_some_and(|(code, _)| code == 404)
    })
    .await;
}

/// A Secret in a namespace that is being deleted, for ever: nothing takes its finalizer away.
async fn leave_in_a_terminating_namespace(plane: &ControlPlane) -> Api<Secret> {
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "ending"}});
    post(plane, "/api/v1/namespaces", &namespace).await;
    let secrets = Api::namespaced(plane.servers[0].client(), "ending");
    secrets.create(&PostParams::default(), &secret("in-it", "kept")).await.unwrap();
    let namespaces: Api<Namespace> = Api::all(plane.servers[0].client());
    namespaces.delete("ending", &DeleteParams::default()).await.unwrap();
    let phase = namespaces.get("ending").await.unwrap().status.unwrap().phase;
    assert_eq!(phase.as_deref(), Some("Terminating"));
    secrets
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_ends_under_the_new_key_also_what_no_api_server_would_rewrite_and_no_write_is_lost() {
    let resources = vec!["secrets", "configmaps", "events", "widgets.example.com"];
    let mut plane = ControlPlane::start(Shape { resources, ..Shape::of(2) }).await;
    plane.create_secrets("s", 300).await;
    leave_an_orphan(&plane).await;
    let ending = leave_in_a_terminating_namespace(&plane).await;
    let event = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "involvedObject": {}});
    post(&plane, "/api/v1/namespaces/default/events", &event).await;
    let leased = lease(&plane, "/registry/events/default/e").await;
    assert!(leased.is_string(), "{leased}");
    refuse(&plane, "s-7").await;
    let writers = Writers::start(&plane, 32).await;
    let (former, old, new) = rotate(&plane).await;

    let config = format!("--config={}", plane.plugins[0].config_file().display());
    let ended = plane.run("rotate-keys", &[REWRAP, &config, "--include-events"]).exits(0);
    let ended = ended.says(&format!("Yes: nothing is stored under KEK primary version {former}."));
    let ended = ended.says("rehearsed: all").says("seeds and DEKs were kept");
    assert!(!ended.out.contains("refused: /"), "{}", ended.out);
    writers.stop_and_check(&plane).await;
    for folder in ["secrets", "configmaps", "events", "example.com/widgets"] {
        let stored = plane.etcd.key_ids(&format!("/registry/{folder}/")).await;
        assert!(!stored.contains_key(&old) && stored.contains_key(&new), "{folder}: {stored:?}");
    }
    assert_eq!(lease(&plane, "/registry/events/default/e").await, leased);
    assert_eq!(plane.etcd.key_id("/registry/secrets/ending/in-it").await, Some(new));
    assert_eq!(value(&ending.get("in-it").await.unwrap()), "kept");

    // To the API servers it is current: an empty patch stores nothing.
    let before = plane.secrets(1).get("s-3").await.unwrap().metadata.resource_version;
    let patched = plane.secrets(1).patch("s-3", &PatchParams::default(), &Patch::Merge(json!({}))).await.unwrap();
    assert_eq!(patched.metadata.resource_version, before);

    // Obeyed, and everything started again.
    plane.keyrings[0].command(&["destroy"], &[&former]);
    plane.keyrings[1].copy_from(&plane.keyrings[0]);
    for node in 0..2 {
        plane.plugins[node].stop();
        plane.plugins[node].restart().await;
        plane.servers[node].stop();
        plane.servers[node].restart().await;
        plane.check_secrets(node, "s", 300).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_moment_it_goes_on_where_it_was() {
    let plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 400).await;
    let (former, _, new) = rotate(&plane).await;
    let config = format!("--config={}", plane.plugins[0].config_file().display());
    let mut begun = false;
    for wait in [300, 900, 1_500, 2_500, 4_000] {
        let more = if begun { vec!["--resume"] } else { vec![REWRAP, &config, "--qps=150"] };
        let mut run = plane.spawn("rotate-keys", &more);
        tokio::time::sleep(Duration::from_millis(wait)).await;
        run.kill();
        begun = begun || plane.journal().is_some();
    }
    assert!(begun, "it was killed before it wrote its journal, each time");
    let ended = plane.run("rotate-keys", &["--resume", "--qps=100000"]).exits(0);
    ended.says(&format!("Yes: nothing is stored under KEK primary version {former}."));
    plane.check_all_under(&new).await;
    plane.check_secrets(0, "s", 400).await;
}

/// An API server that sees nothing of what is stored past it, as one does that has more to open than it can.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_more_is_stored_while_an_api_server_has_not_seen_what_was() {
    let plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 1_500).await;
    let (former, _, new) = rotate(&plane).await;
    let config = format!("--config={}", plane.plugins[0].config_file().display());
    let mut run = plane.spawn("rotate-keys", &[REWRAP, &config, "--qps=100", "--agreement-interval=1h"]);
    let stored = async || plane.stored().await.get(&new).copied().unwrap_or(0);
    wait_until("some values are stored again", Duration::from_secs(90), async || stored().await >= 100).await;

    plane.servers[0].process.signal(Signal::STOP);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = stored().await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let after = stored().await;
    plane.servers[0].process.signal(Signal::CONT);
    assert!(before < 1_500 && after == before, "{before} and then {after} values were stored again");

    assert_eq!(run.wait(Duration::from_mins(3)).code(), Some(0), "{}", run.log());
    plane.run("rotate-keys", &["--status"]).says(&format!("KEK primary version {former}"));
    plane.check_all_under(&new).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_it_needs_and_does_not_have_is_said_before_anything_is_stored() {
    let shape = Shape { etcd_tls: true, etcd_users: true, ..Shape::of(1) };
    let plane = ControlPlane::start(shape).await;
    plane.create_secrets("s", 5).await;
    rotate(&plane).await;
    plane.run("rotate-keys", &[REWRAP, "no-etcd"]).exits(1).says("give --etcd");
    let (url, folder) = plane.etcd.tls();
    let at = |flag: &str, name: &str| format!("{flag}={}", folder.join(name).display());
    let (url, ca) = (format!("--etcd={url}"), at("--etcd-ca", "etcd-ca.crt"));
    let user = |name: &str| [at("--etcd-cert", &format!("{name}.crt")), at("--etcd-key", &format!("{name}.key"))];
    let run = |user: &[String; 2], more: &[&str]| {
        let journal = std::fs::remove_file(plane.journal_file());
        assert!(journal.is_ok());
        plane.run("rotate-keys", &[&[REWRAP, "no-etcd", &url, &ca, &user[0], &user[1]], more].concat())
    };
    run(&user("root"), &["no-snapshot"]).exits(1).says("a snapshot of etcd must exist");
    run(&user("rotator"), &[]).exits(1).says("etcd allows this user to read but not to write");
    run(&user("root"), &["--shards=2"]).exits(1).says("leave out --shards");
    run(&user("root"), &["--settle=1s"]).exits(0).says("values stored again in etcd");
}

/// Prints what both methods reach on this machine, in the same run. In a debug build, so a lower bound.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement; it takes minutes"]
async fn how_fast_it_is_beside_a_bare_loop_of_patches() {
    use futures::stream::{self, StreamExt};
    const SECRETS: usize = 10_000;
    let plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", SECRETS).await;
    rotate(&plane).await;
    let config = format!("--config={}", plane.plugins[0].config_file().display());
    let began = Instant::now();
    let ended = plane.run("rotate-keys", &[REWRAP, &config]).exits(0);
    println!("whole run: {:?}", began.elapsed());
    ended.err.lines().filter(|line| line.contains("stored again in etcd")).for_each(|line| println!("{line}"));

    let (_, _, new) = rotate(&plane).await;
    wait_until("the API server uses it", Duration::from_mins(3), async || {
        let patch = Patch::Merge(json!({"stringData": {"k": jiff::Timestamp::now().to_string()}}));
        plane.secrets(0).patch("s-0", &PatchParams::default(), &patch).await.unwrap();
        plane.etcd.key_id("/registry/secrets/default/s-0").await == Some(new.clone())
    })
    .await;
    let secrets = plane.secrets(0);
    let began = Instant::now();
    stream::iter(1..SECRETS)
        .for_each_concurrent(64, |number| {
            let secrets = secrets.clone();
            async move {
                let (name, patch) = (format!("s-{number}"), Patch::Merge(json!({})));
                secrets.patch_metadata(&name, &PatchParams::default(), &patch).await.unwrap();
            }
        })
        .await;
    #[allow(clippy::cast_precision_loss)]
    let rate = SECRETS as f64 / began.elapsed().as_secs_f64();
    println!("bare loop of patches, 64 at once: {rate:.0}/s");
}
