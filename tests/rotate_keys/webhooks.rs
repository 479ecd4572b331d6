//! Admission webhooks over the network: they refuse, alter, or cannot be called, and the rewrite copes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use base64::{Engine, prelude::BASE64_STANDARD};
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::control_plane::{ControlPlane, Shape, secret};
use crate::https::Tls;
use crate::objects::{delete, post as create};
use crate::support::wait_until;

const VALIDATING: &str = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
const MUTATING: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
/// So often a webhook at `/hesitate` fails.
const HESITATES: usize = 3;

/// An HTTPS server that API servers ask.
struct Webhook {
    authority: String,
    port: u16,
    calls: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Webhook {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Webhook {
    /// Serves `/refuse/NAME`, `/alter`, `/inject`, `/fill` and `/hesitate`.
    async fn start() -> Self {
        let (tls, certificate, port) = Tls::listen().await;
        let calls = Arc::new(AtomicUsize::new(0));
        let router = Router::new()
            .route("/refuse/{name}", post(refuse))
            .route("/alter", post(alter))
            .route("/inject", post(inject))
            .route("/fill", post(fill))
            .route("/hesitate", post(hesitate))
            .route("/hang", post(hang))
            .with_state(calls.clone());
        let task = tokio::spawn(async move { axum::serve(tls, router).await.unwrap() });
        Self { authority: BASE64_STANDARD.encode(certificate), port, calls, task }
    }

    /// A configuration that has updates of Secrets judged at `path`; `more` goes into the webhook.
    fn configuration(&self, kind: &str, name: &str, path: &str, more: &Value) -> Value {
        let mut webhook = json!({
            "name": format!("{name}.example.com"),
            "clientConfig": {
                "url": format!("https://127.0.0.1:{}{path}", self.port), "caBundle": self.authority,
            },
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["UPDATE"], "resources": ["secrets"]}],
            "sideEffects": "None", "admissionReviewVersions": ["v1"], "failurePolicy": "Fail", "timeoutSeconds": 5,
        });
        webhook.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": kind,
            "metadata": {"name": name}, "webhooks": [webhook],
        })
    }
}

async fn refuse(Path(name): Path<String>, Json(review): Json<Value>) -> Json<Value> {
    let allowed = review["request"]["name"] != name;
    let status = json!({"code": 403, "message": "the owner of this one said no"});
    answer(&review, &json!({"allowed": allowed, "status": status}))
}

/// Writes the number of the call into an annotation: no two updates end alike.
async fn alter(State(calls): State<Arc<AtomicUsize>>, Json(review): Json<Value>) -> Json<Value> {
    let number = calls.fetch_add(1, SeqCst).to_string();
    let patch = if review["request"]["object"]["metadata"]["annotations"].is_object() {
        json!([{"op": "add", "path": "/metadata/annotations/altered", "value": number}])
    } else {
        json!([{"op": "add", "path": "/metadata/annotations", "value": {"altered": number}}])
    };
    let patch = BASE64_STANDARD.encode(patch.to_string());
    answer(&review, &json!({"allowed": true, "patchType": "JSONPatch", "patch": patch}))
}

/// Adds a container to a Deployment, as the injector of a service mesh does.
async fn inject(State(calls): State<Arc<AtomicUsize>>, Json(review): Json<Value>) -> Json<Value> {
    calls.fetch_add(1, SeqCst);
    let sidecar = json!({"name": "sidecar", "image": "example.com/sidecar"});
    let patch = json!([{"op": "add", "path": "/spec/template/spec/containers/-", "value": sidecar}]);
    answer(
        &review,
        &json!({"allowed": true, "patchType": "JSONPatch", "patch": BASE64_STANDARD.encode(patch.to_string())}),
    )
}

/// Adds data to a Secret, and nothing to its metadata.
async fn fill(State(calls): State<Arc<AtomicUsize>>, Json(review): Json<Value>) -> Json<Value> {
    calls.fetch_add(1, SeqCst);
    let patch = json!([{"op": "add", "path": "/data/more", "value": "bW9yZQ=="}]);
    answer(
        &review,
        &json!({"allowed": true, "patchType": "JSONPatch", "patch": BASE64_STANDARD.encode(patch.to_string())}),
    )
}

/// Out of order at first, then all is well.
async fn hesitate(State(calls): State<Arc<AtomicUsize>>, Json(review): Json<Value>) -> Result<Json<Value>, StatusCode> {
    if calls.fetch_add(1, SeqCst) < HESITATES {
        return Err(StatusCode::SERVICE_UNAVAILABLE);
    }
    Ok(answer(&review, &json!({"allowed": true})))
}

/// Takes longer than any API server waits.
async fn hang() -> StatusCode {
    tokio::time::sleep(Duration::from_mins(1)).await;
    StatusCode::GATEWAY_TIMEOUT
}

fn answer(review: &Value, response: &Value) -> Json<Value> {
    let mut response = response.clone();
    response["uid"] = review["request"]["uid"].clone();
    Json(json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}))
}

/// Whether an update of this Secret is allowed, without storing it.
async fn would_be_stored(plane: &ControlPlane, name: &str) -> bool {
    let tried = PatchParams { dry_run: true, ..PatchParams::default() };
    plane.secrets(0).patch(name, &tried, &Patch::Merge(json!({}))).await.is_ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_webhook_refuses_or_cannot_judge_is_named_before_and_after_and_the_rest_goes_on() {
    let plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 50).await;
    for name in ["guarded", "hesitant"] {
        let mut guarded = secret(name, name);
        guarded.metadata.labels = Some([(name.to_owned(), "yes".to_owned())].into());
        plane.secrets(0).create(&PostParams::default(), &guarded).await.unwrap();
    }
    let old = plane.key_id(0).await;
    let (webhook, hesitant) = (Webhook::start().await, Webhook::start().await);
    let gone = Webhook::start().await;
    gone.task.abort();
    let kind = "ValidatingWebhookConfiguration";
    let of = |name: &str| json!({"objectSelector": {"matchLabels": {name: "yes"}}});
    create(&plane, VALIDATING, &webhook.configuration(kind, "owner", "/refuse/s-7", &json!({}))).await;
    create(&plane, VALIDATING, &gone.configuration(kind, "gone", "/", &of("guarded"))).await;
    wait_until("the webhooks are in force", Duration::from_secs(30), async || {
        !would_be_stored(&plane, "s-7").await && !would_be_stored(&plane, "guarded").await
    })
    .await;
    create(&plane, VALIDATING, &hesitant.configuration(kind, "hesitant", "/hesitate", &of("hesitant"))).await;
    // An API server that has seen a newer object of the kind has seen this one, too.
    wait_until("the webhook is in force", Duration::from_secs(30), async || {
        let _ = would_be_stored(&plane, "hesitant").await;
        hesitant.calls.swap(0, SeqCst) > 0
    })
    .await;

    let (refused, guarded) = ("/api/v1/namespaces/default/secrets/s-7", "/api/v1/namespaces/default/secrets/guarded");
    let tried = plane.run("rotate-keys", &["--dry-run"]).exits(3).says("secrets     kube-envelope  52       2 would");
    tried.says(&format!(
        "{refused}: 403: admission webhook \"owner.example.com\" denied the request: the owner of this"
    ));
    assert_eq!(hesitant.calls.swap(0, SeqCst), HESITATES + 1, "it was asked again until it answered");

    plane.rotate_keyrings(0..1);
    let new = plane.wait_key_id(0..1, &old).await;
    let ended = plane.run("rotate-keys", &[]).exits(3).says("No: 2 object(s) were refused");
    let ended = ended.says(refused).says("the owner of this one said no");
    ended.says(&format!("{guarded}: 500")).says("failed calling webhook \"gone.example.com\"");
    assert_eq!(plane.stored().await[&old], 2, "only those two");
    assert_eq!(plane.etcd.key_id("/registry/secrets/default/hesitant").await.as_ref(), Some(&new));

    delete(&plane, &format!("{VALIDATING}/owner")).await;
    delete(&plane, &format!("{VALIDATING}/gone")).await;
    wait_until("the webhooks are gone", Duration::from_secs(30), async || {
        would_be_stored(&plane, "s-7").await && would_be_stored(&plane, "guarded").await
    })
    .await;
    plane.run("rotate-keys", &[]).exits(0).says("Yes: nothing is stored under ");
    plane.check_all_under(&new).await;
    plane.check_secrets(0, "s", 50).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_that_alters_objects_is_named_before_and_counted_after() {
    let plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 50).await;
    let old = plane.key_id(0).await;
    let webhook = Webhook::start().await;
    let kind = "MutatingWebhookConfiguration";
    create(&plane, MUTATING, &webhook.configuration(kind, "stamp", "/alter", &json!({}))).await;
    wait_until("the webhook is in force", Duration::from_secs(30), async || {
        let _ = would_be_stored(&plane, "s-0").await;
        webhook.calls.load(SeqCst) > 0
    })
    .await;

    // The canary is altered, too: nothing can be told from it.
    let ended = plane.run("rotate-keys", &["--adoption-timeout=5s"]).exits(5);
    ended.says("kube-envelope-canary/secrets/rotate-keys changes at every update").says("(stamp)");
    plane.run("rotate-keys", &["--abort"]).exits(0);
    delete(&plane, &format!("{MUTATING}/stamp")).await;
    let elsewhere = json!({"namespaceSelector": {"matchExpressions": [
        {"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["kube-envelope-canary"]},
    ]}});
    create(&plane, MUTATING, &webhook.configuration(kind, "stamp-elsewhere", "/alter", &elsewhere)).await;
    tokio::time::sleep(Duration::from_secs(3)).await;

    let ended = plane.run("rotate-keys", &["--dry-run"]).exits(3).says("50 would be changed");
    ended.says("the mutating webhook stamp-elsewhere").says("--allow-changes");
    assert_eq!(plane.secrets(0).get("s-0").await.unwrap().metadata.annotations, None, "that was only tried");

    plane.rotate_keyrings(0..1);
    let new = plane.wait_key_id(0..1, &old).await;
    let ended = plane.run("rotate-keys", &[]).exits(3).says("No: 50 object(s) were left");
    ended.says("left: /api/v1/namespaces/default/secrets/s-1:").says("--allow-changes");
    assert_eq!(plane.secrets(0).get("s-0").await.unwrap().metadata.annotations, None, "it was left as it was");
    assert_eq!(plane.stored().await[&old], 50);

    let ended = plane.run("rotate-keys", &["--allow-changes"]).exits(0).says("mutating webhooks see every rewrite");
    let ended = ended.says("stamp-elsewhere").says("50 object(s) were changed by a mutating webhook");
    ended.says("altered: /api/v1/namespaces/default/secrets/s-1:");
    plane.check_all_under(&new).await;
    plane.check_secrets(0, "s", 50).await;
    assert!(plane.secrets(0).get("s-0").await.unwrap().metadata.annotations.is_some());
}

/// A Deployment without any pods.
fn deployment(name: &str) -> Value {
    let labels = json!({"app": name});
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {"replicas": 0, "selector": {"matchLabels": labels}, "template": {
            "metadata": {"labels": labels}, "spec": {"containers": [{"name": "main", "image": "example.com/main"}]},
        }},
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_injector_rolls_no_deployment_because_of_a_rewrite() {
    let plane = ControlPlane::start(Shape { resources: vec!["secrets", "deployments.apps"], ..Shape::of(1) }).await;
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    for name in ["a", "b"] {
        create(&plane, deployments, &deployment(name)).await;
    }
    let webhook = Webhook::start().await;
    let rules = json!({"rules": [
        {"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["*"], "resources": ["deployments"]},
    ]});
    let injector = webhook.configuration("MutatingWebhookConfiguration", "injector", "/inject", &rules);
    create(&plane, MUTATING, &injector).await;
    wait_until("the injector is in force", Duration::from_secs(30), async || {
        let tried = format!("{deployments}/a?dryRun=All");
        let request = http::Request::patch(tried).header("content-type", "application/merge-patch+json");
        let _ = plane.servers[0].client().request_text(request.body(b"{}".to_vec()).unwrap()).await;
        webhook.calls.load(SeqCst) > 0
    })
    .await;
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..1);
    plane.wait_key_id(0..1, &old).await;
    let ended = plane.run("rotate-keys", &[]).exits(3).says("No: 2 object(s) were left");
    ended.says(&format!("left: {deployments}/a:")).says("the mutating webhook injector");
    let (_, text) = plane.servers[0].get(&format!("{deployments}/a")).await.unwrap();
    let stored: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(stored["metadata"]["generation"], 1, "{stored}");
    assert!(!plane.etcd.key_ids("/registry/secrets/").await.contains_key(&old), "all else was rewritten");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_data_that_metadata_do_not_show_stops_its_resource_at_the_first_object() {
    let plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 50).await;
    let webhook = Webhook::start().await;
    let only = json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "default"}}});
    let fills = webhook.configuration("MutatingWebhookConfiguration", "fills", "/fill", &only);
    create(&plane, MUTATING, &fills).await;
    wait_until("the webhook is in force", Duration::from_secs(30), async || {
        let _ = would_be_stored(&plane, "s-0").await;
        webhook.calls.load(SeqCst) > 0
    })
    .await;
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..1);
    let new = plane.wait_key_id(0..1, &old).await;
    let ended = plane.run("rotate-keys", &[]).exits(6).says("secrets were left");
    let ended = ended.says("as the first object was stored again").says("the mutating webhook fills");
    let revision = ended.says("--rev=");
    assert!(plane.stored().await[&old] >= 49, "{revision:?}");
    let filled = async || {
        let all = plane.secrets(0).list(&kube::api::ListParams::default()).await.unwrap().items;
        all.iter().filter(|secret| secret.data.as_ref().is_some_and(|data| data.contains_key("more"))).count()
    };
    assert!(filled().await <= 1);
    plane.run("rotate-keys", &["--allow-changes=secrets"]).exits(0).says("Yes: ");
    plane.check_all_under(&new).await;
    assert_eq!(filled().await, 50);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_that_hangs_holds_up_its_own_objects_alone_and_not_for_long() {
    const GUARDED: usize = 40;
    let plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 100).await;
    for number in 0..GUARDED {
        let mut guarded = secret(&format!("guarded-{number}"), "x");
        guarded.metadata.labels = Some([("guarded".to_owned(), "yes".to_owned())].into());
        plane.secrets(0).create(&PostParams::default(), &guarded).await.unwrap();
    }
    let webhook = Webhook::start().await;
    let only = json!({"objectSelector": {"matchLabels": {"guarded": "yes"}}, "timeoutSeconds": 5});
    let hangs = webhook.configuration("ValidatingWebhookConfiguration", "hangs", "/hang", &only);
    create(&plane, VALIDATING, &hangs).await;
    wait_until("the webhook is in force", Duration::from_mins(1), async || !would_be_stored(&plane, "guarded-0").await)
        .await;
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..1);
    let new = plane.wait_key_id(0..1, &old).await;
    let began = std::time::Instant::now();
    // One after the other, five times each, they would take a quarter of an hour.
    let ended = plane.run("rotate-keys", &[]).exits(3).says("No: 40 object(s) were refused");
    ended.says("failed calling webhook \"hangs.example.com\"");
    assert!(began.elapsed() < crate::control_plane::ENDS_WITHIN, "{:?}", began.elapsed());
    assert_eq!(plane.stored().await[&old], GUARDED, "all others were rewritten");
    assert_eq!(plane.etcd.key_id("/registry/secrets/default/s-7").await, Some(new));
}
