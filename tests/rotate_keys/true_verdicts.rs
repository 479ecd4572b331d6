//! Never No, and never stuck, for ever: what looks like a leftover and is none, and what ends by itself.

use std::time::Duration;

use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;

use crate::control_plane::{ControlPlane, Shape, secret};
use crate::objects::{post, refuse};
use crate::proxy::{Mode, Proxy};
use crate::support::plugin::encryption_configuration;
use crate::support::{KeyringFile, Plugin, wait_until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_that_is_refused_and_current_already_is_no_leftover() {
    let plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 20).await;
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..1);
    let new = plane.wait_key_id(0..1, &old).await;
    // Its owner writes it under the new key before the run begins, and then nobody may write it any more.
    wait_until("the API server has adopted the key", Duration::from_mins(2), async || {
        let touched = json!({"metadata": {"annotations": {"at": jiff::Timestamp::now().to_string()}}});
        plane.secrets(0).patch("s-7", &PatchParams::default(), &Patch::Merge(&touched)).await.unwrap();
        plane.servers[0].readyz().await;
        plane.etcd.key_id("/registry/secrets/default/s-7").await.as_ref() == Some(&new)
    })
    .await;
    refuse(&plane, "s-7").await;
    plane.run("rotate-keys", &[]).exits(0).says("Yes: nothing is stored under ");
    plane.check_all_under(&new).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_object_that_answers_504_is_named_and_the_rest_goes_on() {
    let plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 60).await;
    let proxy = Proxy::before(&plane).await;
    let path = "/api/v1/namespaces/default/secrets/s-7";
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..1);
    let new = plane.wait_key_id(0..1, &old).await;
    let mut run = plane.spawn("rotate-keys", &[&proxy.kubeconfig, &proxy.server]);
    plane.wait_state("awaitAdoption").await;
    proxy.set(Mode::Fail(path.into(), 504));
    let status = run.wait(2 * crate::control_plane::ENDS_WITHIN);
    assert_eq!(status.code(), Some(3), "{}", run.log());
    assert!(run.log().contains(&format!("{path}: 504")), "{}", run.log());
    let stored = plane.stored().await;
    assert_eq!(stored[&old], 1, "{stored:?}");
    proxy.set(Mode::Pass);
    plane.run("rotate-keys", &[&proxy.kubeconfig, &proxy.server]).exits(0).says("Yes: ");
    plane.check_all_under(&new).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_two_plugins_is_rotated_and_the_other_one_is_no_obstacle() {
    let mut plane = ControlPlane::start(Shape::of(1)).await;
    let keyring = KeyringFile::create();
    let other = Plugin::start(&format!("{}\nrefreshInterval: 1s", keyring.settings("test"))).await;
    other.wait_healthy().await;
    let provider = other.provider().replace("name: kube-envelope", "name: another");
    let own = encryption_configuration(&["secrets"], &[&plane.plugins[0].provider(), "{identity: {}}"]);
    let more = format!("- resources: [configmaps]\n  providers: [{provider}, {{identity: {{}}}}]\n");
    plane.servers[0].stop();
    // What the API server keeps in ConfigMaps was stored by the plugin that does not write them any more.
    for (key, _) in plane.etcd.list("/registry/configmaps/").await {
        plane.etcd.delete(&key).await;
    }
    std::fs::write(plane.servers[0].encryption_file(), format!("{own}{more}")).unwrap();
    plane.servers[0].restart().await;
    plane.create_secrets("s", 20).await;
    let version = plane.keyrings[0].versions()[0]["id"].as_str().unwrap().to_owned();
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..1);
    plane.wait_key_id(0..1, &old).await;
    let config = format!("--config={}", plane.plugins[0].config_file().display());
    let ended = plane.run("rotate-keys", &[&config]).exits(0);
    let ended = ended.says(&format!("Yes: nothing is stored under KEK primary version {version}."));
    ended.says("provider another: its key_id did not change in this run");
    assert!(!plane.etcd.key_ids("/registry/secrets/").await.contains_key(&old));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_of_a_namespace_that_is_being_deleted_are_rewritten_like_any_other() {
    let plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 5).await;
    post(&plane, "/api/v1/namespaces", &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "ends"}}))
        .await;
    let secrets: kube::Api<k8s_openapi::api::core::v1::Secret> =
        kube::Api::namespaced(plane.servers[0].client(), "ends");
    secrets.create(&PostParams::default(), &secret("last", "last")).await.unwrap();
    // Nobody finishes it here, as where a finalizer is stuck.
    crate::objects::delete(&plane, "/api/v1/namespaces/ends").await;
    let (_, text) = plane.servers[0].get("/api/v1/namespaces/ends").await.unwrap();
    assert!(text.contains("Terminating"), "{text}");
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..1);
    let new = plane.wait_key_id(0..1, &old).await;
    plane.run("rotate-keys", &[]).exits(0).says("Yes: ");
    plane.check_all_under(&new).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_under_the_former_key_end_in_a_yes_once_they_have_expired() {
    let arguments = vec!["--event-ttl=30s".into()];
    let plane =
        ControlPlane::start(Shape { resources: vec!["secrets", "configmaps", "events"], arguments, ..Shape::of(1) })
            .await;
    plane.create_secrets("s", 5).await;
    let old = plane.key_id(0).await;
    let event = json!({
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "reason": "Test", "message": "m",
        "involvedObject": {"apiVersion": "v1", "kind": "Secret", "namespace": "default", "name": "s-0"},
    });
    plane.rotate_keyrings(0..1);
    post(&plane, "/api/v1/namespaces/default/events", &event).await;
    plane.wait_key_id(0..1, &old).await;
    let key = "/registry/events/default/e";
    assert_eq!(plane.etcd.key_id(key).await.as_ref(), Some(&old));
    plane.run("rotate-keys", &[]).says("state: done");
    wait_until("the Event has expired", Duration::from_mins(3), async || plane.etcd.get(key).await.is_none()).await;
    plane.run("rotate-keys", &["--resume"]).exits(0).says("Yes: ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_whose_plugins_have_another_cluster_in_their_configuration_are_told_apart() {
    let mut plane = ControlPlane::start(Shape { resources: vec!["secrets"], ..Shape::of(1) }).await;
    let keyring = plane.keyrings[0].copied();
    plane.join_as(keyring, "tests").await;
    plane.wait_endpoints(2).await;
    assert_eq!(plane.key_id(0).await, plane.key_id(1).await, "all looks well");
    let ended = plane.run("rotate-keys", &["--adoption-timeout=10s"]).exits(5);
    ended.says("cannot read secrets that").says("give the plugin beside it the same");
}
