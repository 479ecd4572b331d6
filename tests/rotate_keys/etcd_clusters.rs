//! Data in more than one etcd, in none that was named, in another cluster's, and data that no API serves.

use std::time::Duration;

use serde_json::json;

use crate::control_plane::{ControlPlane, Shape};
use crate::objects::post;
use crate::support::{Etcd, wait_until};

/// Resumed with one etcd of two, or with another cluster behind the same address, a rotation is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_is_resumed_with_the_etcd_clusters_that_it_began_with() {
    let (mut plane, mut second) = with_secrets_elsewhere().await;
    plane.create_secrets("s", 5).await;
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..1);
    plane.wait_key_id(0..1, &old).await;
    let both = format!("--etcd={}", second.url());
    plane.run("rotate-keys", &[&both]).exits(7);
    let clusters = plane.journal().unwrap()["etcdClusters"].clone();
    assert_eq!(clusters.as_object().unwrap().len(), 2, "{clusters}");
    second.process.stop();
    let ended = plane.run("rotate-keys", &["--resume", "--adoption-timeout=3s"]);
    assert!(ended.code != Some(0), "{ended:?}");
    second.process.restart();
    plane.servers[0].wait_ready().await;

    let file = plane.journal_file();
    let mut journal = plane.journal().unwrap();
    let ids = journal["etcdClusters"].as_object_mut().unwrap();
    let (id, revision) = ids.iter().next().map(|(id, revision)| (id.clone(), revision.clone())).unwrap();
    ids.remove(&id);
    ids.insert("abc".into(), revision);
    std::fs::write(&file, journal.to_string()).unwrap();
    plane.run("rotate-keys", &["--resume"]).exits(2).says("and the rotation began with").says("abc");
    let ids = journal["etcdClusters"].as_object_mut().unwrap();
    ids.remove("abc");
    ids.insert(id, serde_json::json!(1_000_000));
    std::fs::write(&file, journal.to_string()).unwrap();
    plane.run("rotate-keys", &["--resume"]).exits(4).says("it was restored from a snapshot");
}

/// A control plane whose API server keeps Secrets in an etcd of their own.
async fn with_secrets_elsewhere() -> (ControlPlane, Etcd) {
    let second = Etcd::start().await;
    let arguments = vec![format!("--etcd-servers-overrides=/secrets#{}", second.url())];
    (ControlPlane::start(Shape { arguments, ..Shape::of(1) }).await, second)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resource_in_an_etcd_of_its_own_is_rewritten_and_its_etcd_is_asked_for() {
    let (plane, second) = with_secrets_elsewhere().await;
    plane.create_secrets("s", 5).await;
    let old = plane.key_id(0).await;
    let stored = second.get("/registry/secrets/default/s-3").await.unwrap();
    plane.rotate_keyrings(0..1);
    let new = plane.wait_key_id(0..1, &old).await;

    plane.run("rotate-keys", &[]).exits(8).says("secrets: the API serves").says("--etcd-servers-overrides");
    let keys = second.key_ids("/registry/secrets/").await;
    assert!(!keys.contains_key(&old) && keys[&new] >= 5, "rewritten all the same: {keys:?}");
    plane.run("verify", &[]).exits(8).says("secrets: the API serves");

    let both = format!("--etcd={}", second.url());
    plane.run("verify", &[&both]).exits(0);
    second.put("/registry/secrets/default/s-3", &stored).await;
    plane.run("verify", &[&both]).exits(6).says("/registry/secrets/default/s-3");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_both_etcds_named_a_rotation_is_proven_in_both() {
    let (plane, second) = with_secrets_elsewhere().await;
    plane.create_secrets("s", 5).await;
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..1);
    plane.wait_key_id(0..1, &old).await;
    let both = format!("--etcd={}", second.url());
    plane.run("rotate-keys", &[&both]).exits(7).says("2 etcd clusters").says("--snapshot-file");
    // One snapshot says nothing about the other cluster, however new it is.
    let file = |name: &str| format!("--snapshot-file={}", plane.folder.path().join(name).display());
    plane.etcd.snapshot(&plane.folder.path().join("first.db")).await;
    plane.run("rotate-keys", &["--resume", &file("first.db")]).exits(7).says("no snapshot of etcd cluster");
    second.snapshot(&plane.folder.path().join("second.db")).await;
    plane.run("rotate-keys", &["--resume", &file("first.db"), &file("second.db")]).exits(0);
    let scan = &plane.journal().unwrap()["verified"];
    assert_eq!(scan["clusters"].as_array().unwrap().len(), 2, "{scan}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_etcd_of_another_cluster_is_refused_before_anything_is_rewritten() {
    let plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 5).await;
    let old = plane.key_id(0).await;
    let other = ControlPlane::start(Shape { servers: 1, ..Shape::of(1) }).await;
    other.create_secrets("s", 25).await;
    plane.rotate_keyrings(0..1);
    plane.wait_key_id(0..1, &old).await;
    let etcd = format!("--etcd={}", other.etcd.url());
    plane.run("rotate-keys", &["no-etcd", &etcd]).exits(1).says("does not hold this cluster's data");
    assert!(plane.etcd.key_ids("/registry/secrets/").await.contains_key(&old), "nothing was rewritten");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_that_no_api_serves_are_leftovers_with_a_way_out() {
    let plane = ControlPlane::start(Shape { resources: vec!["*.*"], ..Shape::of(1) }).await;
    plane.create_secrets("s", 5).await;
    let old = plane.key_id(0).await;
    let stored = plane.etcd.get("/registry/secrets/default/s-3").await.unwrap();
    plane.rotate_keyrings(0..1);
    plane.wait_key_id(0..1, &old).await;
    plane.etcd.put("/registry/gone.example.com/widgets/default/w", &stored).await;
    // Named like Events, and not Events: it does not expire.
    plane.etcd.put("/registry/argoproj.io/eventsources/default/e", &stored).await;
    let ended = plane.run("rotate-keys", &[]).exits(6);
    let ended = ended.says("gone.example.com/widgets").says("argoproj.io/eventsources");
    ended.says("no API server serves").says("etcdctl");
    plane.run("verify", &[]).exits(6).says("/registry/gone.example.com/widgets/default/w");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_aggregated_version_does_not_hide_the_rest_of_its_group() {
    let plane = ControlPlane::start(Shape { resources: vec!["*.*"], ..Shape::of(1) }).await;
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
    let path = "/apis/example.com/v1/namespaces/default/widgets";
    wait_until("widgets are served", Duration::from_secs(30), async || {
        matches!(plane.servers[0].get(path).await, Some((200, _)))
    })
    .await;
    let widget = json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w"}, "spec": {"a": 1}});
    post(&plane, path, &widget).await;
    let service = json!({
        "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": "v2.example.com"},
        "spec": {"group": "example.com", "version": "v2", "groupPriorityMinimum": 1000, "versionPriority": 15,
            "insecureSkipTLSVerify": true, "service": {"namespace": "default", "name": "elsewhere"}},
    });
    post(&plane, "/apis/apiregistration.k8s.io/v1/apiservices", &service).await;
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..1);
    let new = plane.wait_key_id(0..1, &old).await;
    plane.run("rotate-keys", &[]).exits(0).says("v2.example.com");
    assert_eq!(plane.etcd.key_id("/registry/example.com/widgets/default/w").await, Some(new));
}
