//! A resource that cannot be listed, and an object that cannot be stored again: the rest goes on, and both are named.

use std::time::Duration;

use serde_json::{Value, json};

use crate::control_plane::{ControlPlane, Shape};
use crate::objects::post;
use crate::support::wait_until;

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const WIDGETS: &str = "/apis/example.com/v1/namespaces/default/widgets";

/// Serves `widgets.example.com` in these versions, of which the last one is stored.
async fn define(plane: &ControlPlane, versions: &[&str]) {
    let version = |name: &&str| {
        json!({"name": name, "served": true, "storage": Some(name) == versions.last(), "schema": {"openAPIV3Schema": {
            "type": "object", "x-kubernetes-preserve-unknown-fields": true,
        }}})
    };
    let versions: Vec<Value> = versions.iter().map(version).collect();
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced", "versions": versions,
            "names": {"plural": "widgets", "singular": "widget", "kind": "Widget"},
        },
    });
    post(plane, DEFINITIONS, &definition).await;
    wait_until("widgets are served", Duration::from_secs(30), async || {
        matches!(plane.servers[0].get(WIDGETS).await, Some((200, _)))
    })
    .await;
}

fn widget(name: &str, padding: usize) -> Value {
    json!({
        "apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name},
        "spec": {"padding": "x".repeat(padding)},
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_corrupt_secret_is_named_and_all_others_are_rewritten() {
    let mut plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 20).await;
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..1);
    let new = plane.wait_key_id(0..1, &old).await;
    let key = "/registry/secrets/default/s-3";
    let mut stored = plane.etcd.get(key).await.unwrap();
    *stored.last_mut().unwrap() ^= 1;
    plane.etcd.put(key, &stored).await;
    // An API server that began before would answer from its cache.
    plane.servers[0].stop();
    plane.servers[0].process.restart();
    wait_until("the API server answers", Duration::from_mins(1), async || plane.servers[0].readyz().await.is_some())
        .await;

    plane.run("rotate-keys", &[]).exits(6).says("/api/v1/namespaces/default/secrets/s-3");
    let keys = plane.etcd.key_ids("/registry/secrets/").await;
    assert_eq!(keys.get(&old), Some(&1), "all but the corrupt one: {keys:?}");
    assert!(keys[&new] >= 19, "{keys:?}");
    assert_eq!(plane.etcd.get(key).await, Some(stored), "nobody deleted it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversion_webhook_that_does_not_answer_stops_its_own_resource_alone_and_no_deletion_is_advised() {
    let plane = ControlPlane::start(Shape { resources: vec!["*.*"], ..Shape::of(1) }).await;
    plane.create_secrets("s", 10).await;
    define(&plane, &["v1"]).await;
    post(&plane, WIDGETS, &widget("w", 1)).await;
    let version = |name: &str| {
        json!({"name": name, "served": true, "storage": name == "v2", "schema": {"openAPIV3Schema": {
            "type": "object", "x-kubernetes-preserve-unknown-fields": true,
        }}})
    };
    let conversion = json!({"spec": {
        "versions": [version("v1"), version("v2")],
        "conversion": {"strategy": "Webhook", "webhook": {
            "conversionReviewVersions": ["v1"], "clientConfig": {"url": "https://127.0.0.1:1/convert"},
        }},
    }});
    let request = http::Request::patch(format!("{DEFINITIONS}/widgets.example.com"))
        .header("content-type", "application/merge-patch+json")
        .body(conversion.to_string().into_bytes())
        .unwrap();
    plane.servers[0].client().request_text(request).await.unwrap();
    wait_until("widgets need the webhook", Duration::from_secs(30), async || {
        let answer = plane.servers[0].get("/apis/example.com/v2/widgets?limit=1").await;
        eprintln!("{answer:?}");
        matches!(answer, Some((429 | 500, text)) if text.contains("conversion") || text.contains("initializ"))
    })
    .await;
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..1);
    let new = plane.wait_key_id(0..1, &old).await;

    let ended = plane.run("rotate-keys", &[]).exits(6).says("widgets.example.com");
    let ended = ended.says("its conversion webhook does not answer; the data are sound").says("--skip");
    let said = format!("{}{}", ended.out, ended.err);
    assert!(!said.contains("Deletion") && !said.contains("etcdctl del"), "{said}");
    assert!(!plane.etcd.key_ids("/registry/secrets/").await.contains_key(&old));
    assert_eq!(plane.etcd.key_id("/registry/secrets/default/s-3").await, Some(new));
    // Left out, it is still stored under the former key: the verdict says so, and the run is short.
    plane.run("rotate-keys", &["--skip=widgets.example.com"]).exits(6).says("/registry/example.com/widgets/default/w");
    plane.run("rotate-keys", &["--skip=gadgets.example.com"]).exits(2).says("widgets.example.com");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_that_encryption_makes_too_large_is_foretold_by_the_dry_run() {
    let mut plane = ControlPlane::start(Shape { resources: vec!["*.*"], in_clear: true, ..Shape::of(1) }).await;
    define(&plane, &["v1"]).await;
    post(&plane, WIDGETS, &widget("small", 1)).await;
    // As large as etcd takes it: found by halving.
    let (mut fits, mut too_large) = (1_500_000, 1_573_000);
    while too_large - fits > 64 {
        let middle = usize::midpoint(fits, too_large);
        let body = widget(&format!("w-{middle}"), middle).to_string().into_bytes();
        let request = http::Request::post(WIDGETS).header("content-type", "application/json").body(body).unwrap();
        match plane.servers[0].client().request_text(request).await {
            Ok(_) => fits = middle,
            Err(_) => too_large = middle,
        }
    }
    plane.encrypt().await;
    let largest = format!("/apis/example.com/v1/namespaces/default/widgets/w-{fits}");
    let ended = plane.run("rotate-keys", &["--dry-run"]).exits(3);
    ended.says(&largest).says("too large").says("--max-request-bytes");
    let ended = plane.run("rotate-keys", &[]).exits(3).says(&largest);
    let small = "/registry/example.com/widgets/default/small";
    assert!(plane.etcd.key_id(small).await.is_some(), "the rest was rewritten: {}", ended.err);
}
