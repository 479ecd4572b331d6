//! Single objects in the way of a rewrite: refused, immutable, gone, new, without managedFields, unreadable.

use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::control_plane::{ControlPlane, ENDS_WITHIN, Shape, secret, value};
use crate::support::apiserver::ROTATOR;
use crate::support::wait_until;

/// POST of a JSON document with all rights.
pub async fn post(plane: &ControlPlane, path: &str, document: &Value) {
    let request = http::Request::post(path).header("content-type", "application/json");
    let request = request.body(document.to_string().into_bytes()).unwrap();
    plane.servers[0].client().request_text(request).await.unwrap();
}

pub async fn delete(plane: &ControlPlane, path: &str) {
    let request = http::Request::delete(path).body(Vec::new()).unwrap();
    plane.servers[0].client().request_text(request).await.unwrap();
}

const POLICIES: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
const BINDINGS: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings";

/// A policy that refuses every update of one Secret; in force when this returns.
pub async fn refuse(plane: &ControlPlane, name: &str) {
    let policy = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": "no"},
        "spec": {
            "matchConstraints": {"resourceRules": [{
                "apiGroups": [""], "apiVersions": ["v1"], "operations": ["UPDATE"], "resources": ["secrets"],
            }]},
            "validations": [{"expression": format!("object.metadata.name != '{name}'"), "message": "not this one"}],
        },
    });
    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": "no"},
        "spec": {"policyName": "no", "validationActions": ["Deny"]},
    });
    post(plane, POLICIES, &policy).await;
    post(plane, BINDINGS, &binding).await;
    let secrets = plane.secrets(0);
    wait_until("the policy refuses", Duration::from_secs(30), async || {
        secrets.patch(name, &PatchParams::default(), &Patch::Merge(json!({}))).await.is_err()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_refused_object_is_named_and_the_rest_goes_on() {
    let plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 50).await;
    let old = plane.key_id(0).await;
    refuse(&plane, "s-7").await;
    let path = "/api/v1/namespaces/default/secrets/s-7";
    plane.run("rotate-keys", &["--dry-run"]).exits(3).says(path).says("not this one");

    plane.rotate_keyrings(0..1);
    plane.wait_key_id(0..1, &old).await;
    plane.run("rotate-keys", &[]).exits(3).says(path).says("No: 1 object(s) were refused");
    assert_eq!(plane.stored().await[&old], 1, "only the refused one");
    assert_eq!(plane.etcd.key_id("/registry/secrets/default/s-7").await, Some(old));
    plane.run("verify", &[]).exits(6).says("/registry/secrets/default/s-7");

    delete(&plane, &format!("{BINDINGS}/no")).await;
    let secrets = plane.secrets(0);
    wait_until("the policy is gone", Duration::from_secs(30), async || {
        secrets.patch("s-7", &PatchParams::default(), &Patch::Merge(json!({}))).await.is_ok()
    })
    .await;
    plane.run("rotate-keys", &[]).exits(0).says("Yes: nothing is stored under ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rewrite_changes_nothing_but_the_resource_version() {
    let plane = ControlPlane::start(Shape::of(1)).await;
    let old = plane.key_id(0).await;
    let secrets = plane.secrets(0);
    let immutable = Secret { immutable: Some(true), ..secret("immutable", "value") };
    secrets.create(&PostParams::default(), &immutable).await.unwrap();
    secrets.create(&PostParams::default(), &secret("bare", "value")).await.unwrap();
    let clear = json!({"metadata": {"managedFields": [{}]}});
    let bare = secrets.patch("bare", &PatchParams::default(), &Patch::Merge(&clear)).await.unwrap();
    assert_eq!(bare.metadata.managed_fields, None, "the API server took managedFields away");
    let before = [secrets.get("immutable").await.unwrap(), secrets.get("bare").await.unwrap()];

    plane.rotate_keyrings(0..1);
    // The API server does not know of it yet; the target is known all the same.
    let target = format!("--key-id={}", plane.wait_key_id(0..1, &old).await);
    plane.run("rotate-keys", &[&target]).exits(0);
    for mut before in before {
        let name = before.metadata.name.clone().unwrap();
        let mut after = secrets.get(&name).await.unwrap();
        assert_ne!(before.metadata.resource_version.take(), after.metadata.resource_version.take(), "{name}");
        assert_eq!(before, after);
        assert_ne!(plane.etcd.key_id(&format!("/registry/secrets/default/{name}")).await.as_ref(), Some(&old));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_deleted_and_made_again_and_new_kinds_meanwhile_do_no_harm() {
    let plane = ControlPlane::start(Shape { resources: vec!["*.*"], ..Shape::of(1) }).await;
    plane.create_secrets("s", 400).await;
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..1);
    let new = plane.wait_key_id(0..1, &old).await;
    let mut run = plane.spawn("rotate-keys", &["--qps=100"]);
    plane.wait_state("rewrite").await;

    let secrets = plane.secrets(0);
    for number in 300..400 {
        secrets.delete(&format!("s-{number}"), &DeleteParams::default()).await.unwrap();
    }
    for number in 350..400 {
        let name = format!("s-{number}");
        secrets.create(&PostParams::default(), &secret(&name, &name)).await.unwrap();
    }
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "widgets", "singular": "widget", "kind": "Widget"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                "type": "object", "x-kubernetes-preserve-unknown-fields": true,
            }}}],
        },
    });
    post(&plane, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition).await;
    let widget = json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w"}, "spec": {"a": 1}});
    wait_until("widgets are served", Duration::from_secs(30), async || {
        matches!(plane.servers[0].get("/apis/example.com/v1/namespaces/default/widgets").await, Some((200, _)))
    })
    .await;
    post(&plane, "/apis/example.com/v1/namespaces/default/widgets", &widget).await;
    assert_eq!(plane.state(), "rewrite", "all of this happened in the middle");

    let status = run.wait(ENDS_WITHIN);
    assert!(status.success(), "{}", run.log());
    assert_eq!(plane.etcd.key_id("/registry/example.com/widgets/default/w").await, Some(new));
    let journal = plane.journal().unwrap();
    let resources = journal["resources"].as_array().unwrap();
    assert!(resources.iter().any(|one| one["resource"]["plural"] == "widgets"), "{resources:?}");
    plane.check_secrets(0, "s", 300).await;
    assert_eq!(value(&secrets.get("s-399").await.unwrap()), "s-399");
    plane.run("verify", &[]).exits(0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_list_is_followed_to_its_end() {
    let arguments = vec!["--etcd-compaction-interval=2s".into(), "--feature-gates=ListFromCacheSnapshot=false".into()];
    let plane = ControlPlane::start(Shape { arguments, ..Shape::of(1) }).await;
    plane.create_secrets("s", 1800).await;
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..1);
    let new = plane.wait_key_id(0..1, &old).await;
    plane.run("rotate-keys", &["--qps=100", "no-etcd"]).exits(0);
    plane.check_all_under(&new).await;
    plane.servers[0].wait_metric("apiserver_request_total", "code=\"410\"", Duration::from_secs(1)).await;
    plane.check_secrets(0, "s", 1800).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_data_leaves_the_api_server_for_us() {
    let policy = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: RequestResponse}]\n";
    let plane = ControlPlane::start(Shape { audit_policy: Some(policy.into()), ..Shape::compacting(1) }).await;
    let secrets = plane.secrets(0);
    for number in 0..20 {
        secrets.create(&PostParams::default(), &secret(&format!("s-{number}"), "precious value")).await.unwrap();
    }
    let encoded = "cHJlY2lvdXMgdmFsdWU=";
    let log = plane.servers[0].audit_log();
    let ours = || {
        let text = std::fs::read_to_string(&log).unwrap();
        text.lines()
            .filter(|line| line.contains("\"userAgent\":\"kube-envelope/"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert!(std::fs::read_to_string(&log).unwrap().contains(encoded), "the audit log would show it");
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..1);
    plane.wait_key_id(0..1, &old).await;
    plane.run("rotate-keys", &["--dry-run"]).exits(0);
    plane.run("rotate-keys", &["no-etcd"]).exits(0);
    plane.run("verify", &["no-etcd"]).exits(0);
    let lines = ours();
    for verb in ["list", "patch", "get"] {
        let of_secrets = |line: &&String| {
            line.contains(&format!("\"verb\":\"{verb}\"")) && line.contains("\"resource\":\"secrets\"")
        };
        assert!(lines.iter().any(|line| of_secrets(&line)), "{verb} of secrets is in the log");
    }
    assert!(lines.iter().all(|line| !line.contains(encoded)));
    assert!(lines.iter().all(|line| !line.contains("\"data\":{")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_overloaded_api_server_is_waited_for_with_the_least_rights() {
    let plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 300).await;
    // One request at a time for the user `rotator`; every other one is refused with 429.
    let level = json!({
        "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "PriorityLevelConfiguration",
        "metadata": {"name": "narrow"},
        "spec": {"type": "Limited", "limited": {
            "nominalConcurrencyShares": 1, "lendablePercent": 0, "borrowingLimitPercent": 0,
            "limitResponse": {"type": "Reject"},
        }},
    });
    let schema = json!({
        "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "FlowSchema", "metadata": {"name": "narrow"},
        "spec": {"priorityLevelConfiguration": {"name": "narrow"}, "matchingPrecedence": 2, "rules": [{
            "subjects": [{"kind": "User", "user": {"name": "rotator"}}],
            "resourceRules": [{"verbs": ["patch"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"], "clusterScope": true}],
        }]},
    });
    let flows = "/apis/flowcontrol.apiserver.k8s.io/v1";
    post(&plane, &format!("{flows}/prioritylevelconfigurations"), &level).await;
    post(&plane, &format!("{flows}/flowschemas"), &schema).await;
    let rights = plane.run("rotate-keys", &["--print-rbac"]).exits(0).out;
    grant(&plane, &rights).await;

    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..1);
    let new = plane.wait_key_id(0..1, &old).await;
    let kubeconfig = format!("--kubeconfig={}", plane.servers[0].kubeconfig(ROTATOR).display());
    plane.run("rotate-keys", &[&kubeconfig]).exits(0);
    plane.check_all_under(&new).await;
    plane.servers[0]
        .wait_metric("apiserver_flowcontrol_rejected_requests_total", "narrow", Duration::from_secs(1))
        .await;
}

/// Makes the RBAC objects of `--print-rbac`, and binds them to the user `rotator`.
pub async fn grant(plane: &ControlPlane, rights: &str) {
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-envelope-canary"}});
    post(plane, "/api/v1/namespaces", &namespace).await;
    for document in rights.split("---\n") {
        let role: Value = serde_saphyr::from_str(document).unwrap();
        let kind = role["kind"].as_str().unwrap();
        let namespace = role["metadata"]["namespace"].as_str();
        let folder = namespace.map_or(rbac.into(), |namespace| format!("{rbac}/namespaces/{namespace}"));
        post(plane, &format!("{folder}/{}s", kind.to_lowercase()), &role).await;
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": format!("{kind}Binding"), "metadata": {"name": "rotator"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role["metadata"]["name"]},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "rotator"}],
        });
        post(plane, &format!("{folder}/{}bindings", kind.to_lowercase()), &binding).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unreadable_object_is_named_and_never_deleted() {
    let mut plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 20).await;
    let key = "/registry/secrets/default/s-3";
    let mut stored = plane.etcd.get(key).await.unwrap();
    let last = stored.len() - 1;
    stored[last] ^= 1;
    let stored = plane.etcd.get("/registry/secrets/default/s-4").await.map(|_| stored).unwrap();
    plane.etcd.put(key, &stored).await;
    let _ = Api::<Secret>::namespaced(plane.servers[0].client(), "default").get("s-3").await;
    plane.servers[0].stop();
    plane.servers[0].process.restart();
    wait_until("the API server answers", Duration::from_mins(1), async || plane.servers[0].readyz().await.is_some())
        .await;
    plane.run("verify", &["no-etcd"]).exits(6).says("/registry/secrets/default/s-3");
    assert_eq!(plane.etcd.get(key).await, Some(stored), "nobody deleted it");
}
