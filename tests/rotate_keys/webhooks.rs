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
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::control_plane::{ControlPlane, Shape, secret};
use crate::objects::{delete, post as create};
use crate::support::{free_port, wait_until};

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

/// Ends TLS before axum.
struct Tls {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl axum::serve::Listener for Tls {
    type Io = TlsStream<TcpStream>;
    type Addr = std::net::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, from) = self.listener.accept().await.unwrap();
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, from);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

impl Webhook {
    /// Serves `/refuse/NAME`, `/alter` and `/hesitate`.
    async fn start() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(vec!["127.0.0.1".into()]).unwrap().self_signed(&key).unwrap();
        let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], private)
            .unwrap();
        let port = free_port();
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let calls = Arc::new(AtomicUsize::new(0));
        let router = Router::new()
            .route("/refuse/{name}", post(refuse))
            .route("/alter", post(alter))
            .route("/hesitate", post(hesitate))
            .with_state(calls.clone());
        let tls = Tls { listener, acceptor: TlsAcceptor::from(Arc::new(config)) };
        let task = tokio::spawn(async move { axum::serve(tls, router).await.unwrap() });
        Self { authority: BASE64_STANDARD.encode(certificate.pem()), port, calls, task }
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

/// Out of order at first, then all is well.
async fn hesitate(State(calls): State<Arc<AtomicUsize>>, Json(review): Json<Value>) -> Result<Json<Value>, StatusCode> {
    if calls.fetch_add(1, SeqCst) < HESITATES {
        return Err(StatusCode::SERVICE_UNAVAILABLE);
    }
    Ok(answer(&review, &json!({"allowed": true})))
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

    plane.run("rotate-keys", &["--dry-run"]).exits(0).says("0 would be refused, 50 altered by a webhook");
    assert_eq!(plane.secrets(0).get("s-0").await.unwrap().metadata.annotations, None, "that was only tried");

    plane.rotate_keyrings(0..1);
    let new = plane.wait_key_id(0..1, &old).await;
    let ended = plane.run("rotate-keys", &[]).exits(0).says("mutating webhooks see every rewrite");
    let ended = ended.says("stamp-elsewhere").says("50 object(s) were changed by a mutating webhook");
    ended.says("altered: /api/v1/namespaces/default/secrets/s-1:");
    plane.check_all_under(&new).await;
    plane.check_secrets(0, "s", 50).await;
    assert!(plane.secrets(0).get("s-0").await.unwrap().metadata.annotations.is_some());
}
