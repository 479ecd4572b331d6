//! Objects that a rewrite would change beyond their ciphertext: left, named, and stored again only on demand.

use std::time::Duration;

use serde_json::{Value, json};

use crate::control_plane::{ControlPlane, Shape};
use crate::objects::post;
use crate::support::wait_until;

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const WIDGETS: &str = "/apis/example.com/v1/namespaces/default/widgets";

/// A version of `widgets.example.com` whose spec has these fields.
fn version(name: &str, storage: bool, fields: &[&str]) -> Value {
    let fields: serde_json::Map<_, _> = fields.iter().map(|name| ((*name).into(), json!({"type": "string"}))).collect();
    json!({"name": name, "served": true, "storage": storage, "schema": {"openAPIV3Schema": {
        "type": "object", "properties": {"spec": {"type": "object", "properties": fields}},
    }}})
}

async fn patch(plane: &ControlPlane, path: &str, document: &Value) {
    let request = http::Request::patch(path).header("content-type", "application/merge-patch+json");
    let request = request.body(document.to_string().into_bytes()).unwrap();
    plane.servers[0].client().request_text(request).await.unwrap();
}

async fn define(plane: &ControlPlane, version: &Value) {
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced", "versions": [version],
            "names": {"plural": "widgets", "singular": "widget", "kind": "Widget"},
        },
    });
    post(plane, DEFINITIONS, &definition).await;
    wait_until("widgets are served", Duration::from_secs(30), async || {
        matches!(plane.servers[0].get(WIDGETS).await, Some((200, _)))
    })
    .await;
}

/// Changes the definition.
async fn redefine(plane: &ControlPlane, versions: &[Value]) {
    patch(plane, &format!("{DEFINITIONS}/widgets.example.com"), &json!({"spec": {"versions": versions}})).await;
}

async fn make(plane: &ControlPlane, name: &str, spec: &Value) {
    let widget = json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name}, "spec": spec});
    post(plane, WIDGETS, &widget).await;
}

async fn has_extra(plane: &ControlPlane, name: &str) -> bool {
    let (_, text) = plane.servers[0].get(&format!("{WIDGETS}/{name}")).await.unwrap();
    text.contains("precious")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_field_that_a_rolled_back_schema_would_drop_is_not_lost_by_a_rewrite() {
    let plane = ControlPlane::start(Shape { resources: vec!["*.*"], ..Shape::of(1) }).await;
    define(&plane, &version("v1", true, &["size", "extra"])).await;
    make(&plane, "with", &json!({"size": "1", "extra": "precious"})).await;
    make(&plane, "without", &json!({"size": "1"})).await;
    redefine(&plane, &[version("v1", true, &["size"])]).await;
    wait_until("the field is pruned", Duration::from_secs(30), async || !has_extra(&plane, "with").await).await;
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..1);
    let new = plane.wait_key_id(0..1, &old).await;

    let named = format!("left: {WIDGETS}/with:");
    plane.run("rotate-keys", &["--dry-run"]).exits(3).says(&named).says("spec.extra").says("--allow-changes");
    plane.run("rotate-keys", &[]).exits(3).says("No: 1 object(s) were left").says(&named);
    let key = |name: &str| format!("/registry/example.com/widgets/default/{name}");
    assert_eq!(plane.etcd.key_id(&key("with")).await.as_ref(), Some(&old));
    assert_eq!(plane.etcd.key_id(&key("without")).await.as_ref(), Some(&new), "the rest was rewritten");
    redefine(&plane, &[version("v1", true, &["size", "extra"])]).await;
    wait_until("the field is there again", Duration::from_secs(30), async || has_extra(&plane, "with").await).await;

    redefine(&plane, &[version("v1", true, &["size"])]).await;
    wait_until("the field is pruned", Duration::from_secs(30), async || !has_extra(&plane, "with").await).await;
    plane.run("rotate-keys", &["--allow-changes=widgets.example.com"]).exits(0).says("Yes: ");
    assert_eq!(plane.etcd.key_id(&key("with")).await, Some(new));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_that_a_rewrite_would_store_in_another_version_are_left_until_that_is_wanted() {
    let plane = ControlPlane::start(Shape { resources: vec!["*.*"], ..Shape::of(1) }).await;
    plane.create_secrets("s", 5).await;
    define(&plane, &version("v1", true, &["size", "extra"])).await;
    make(&plane, "w", &json!({"size": "1", "extra": "precious"})).await;
    let old = plane.key_id(0).await;
    // What v2 does not know is lost once an object is stored as v2.
    redefine(&plane, &[version("v1", false, &["size", "extra"]), version("v2", true, &["size"])]).await;
    wait_until("v2 is served", Duration::from_secs(30), async || {
        matches!(plane.servers[0].get("/apis/example.com/v2/widgets").await, Some((200, _)))
    })
    .await;
    assert!(has_extra(&plane, "w").await);
    plane.rotate_keyrings(0..1);
    let new = plane.wait_key_id(0..1, &old).await;
    let said = "widgets.example.com were left: its objects may be stored as v1 (status.storedVersions)";
    plane.run("rotate-keys", &["--dry-run"]).exits(3).says(said);
    plane.run("rotate-keys", &[]).exits(6).says(said).says("--allow-changes=widgets.example.com");
    assert!(has_extra(&plane, "w").await, "it is as it was");
    let key = "/registry/example.com/widgets/default/w";
    assert_eq!(plane.etcd.key_id(key).await.as_ref(), Some(&old));
    assert!(!plane.etcd.key_ids("/registry/secrets/").await.contains_key(&old), "the rest was rewritten");
    plane.run("rotate-keys", &["--allow-changes=gadgets.example.com"]).exits(2).says("widgets.example.com");
    plane.run("rotate-keys", &["--allow-changes=widgets.example.com"]).exits(0);
    assert_eq!(plane.etcd.key_id(key).await, Some(new));
}
