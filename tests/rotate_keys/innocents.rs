//! What must not be taken for a leftover, or waited for: counters and metrics of API servers that tell of something else.

use std::time::Duration;

use serde_json::{Value, json};

use crate::control_plane::{ControlPlane, ENDS_WITHIN, Shape};
use crate::objects::post;
use crate::proxy::Proxy;
use crate::support::plugin::encryption_configuration;
use crate::support::{KeyringFile, Plugin, wait_until};

/// What `verify` says in JSON.
fn found(out: &str) -> Value {
    serde_json::from_str(out).unwrap_or_else(|error| panic!("{error}: {out}"))
}

fn names(found: &Value) -> Vec<&str> {
    found["named"].as_object().unwrap().keys().map(String::as_str).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_a_reload_took_away_is_not_waited_for_though_its_metric_stays() {
    const RELOADS: &str = "apiserver_encryption_config_controller_automatic_reloads_total";
    const STATUS: &str = "apiserver_envelope_encryption_key_id_hash_status_last_timestamp_seconds";
    let reload = "--encryption-provider-config-automatic-reload=true".to_owned();
    let plane = ControlPlane::start(Shape { arguments: vec![reload], ..Shape::of(1) }).await;
    plane.create_secrets("s", 20).await;
    let keyring = KeyringFile::create();
    let mut other = Plugin::start(&format!("{}\nrefreshInterval: 1s", keyring.settings("test"))).await;
    other.wait_healthy().await;
    let server = &plane.servers[0];
    let alone = std::fs::read_to_string(server.encryption_file()).unwrap();
    let reloads = async || {
        let metrics = server.get("/metrics").await.map(|(_, text)| text).unwrap_or_default();
        let line = metrics.lines().find(|line| line.starts_with(RELOADS) && line.contains("success"));
        line.and_then(|line| line.split_whitespace().last()?.parse::<u64>().ok()).unwrap_or(0)
    };

    let second = other.provider().replace("name: kube-envelope", "name: another");
    let own = plane.plugins[0].provider();
    let both = encryption_configuration(&["secrets", "configmaps"], &[&own, &second, "{identity: {}}"]);
    for (text, times) in [(&both, 1), (&alone, 2)] {
        std::fs::write(server.encryption_file(), text).unwrap();
        wait_until("it is loaded", ENDS_WITHIN, async || reloads().await >= times).await;
        // Its Status is asked for while it is configured, and told for ever.
        server.readyz().await;
        server.wait_metric(STATUS, "provider_name=\"another\"", ENDS_WITHIN).await;
    }
    other.stop();

    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..1);
    let new = plane.wait_key_id(0..1, &old).await;
    plane.run("rotate-keys", &[]).exits(0).says("Yes: nothing is stored under ");
    plane.check_all_under(&new).await;
    plane.run("verify", &[]).exits(0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leftovers_are_counted_also_where_the_server_that_counts_is_another_process_half_way() {
    let mut plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 300).await;
    let old = plane.key_id(0).await;
    let kept: Vec<String> = (0..5).map(|number| format!("/registry/secrets/default/s-{number}")).collect();
    let mut stored = Vec::new();
    for key in &kept {
        stored.push(plane.etcd.get(key).await.unwrap());
    }
    plane.rotate_keyrings(0..1);
    let new = plane.wait_key_id(0..1, &old).await;
    plane.run("rotate-keys", &[]).exits(0);
    plane.check_all_under(&new).await;
    // Its counters begin here, and those of the first one stand much higher.
    plane.join(plane.keyrings[0].copied()).await;
    for (key, value) in kept.iter().zip(&stored) {
        plane.etcd.put(key, value).await;
    }

    let proxy = Proxy::before(&plane).await;
    let more = ["no-etcd", &proxy.kubeconfig, &proxy.server, "--qps=30", "--output=json"];
    let mut verify = plane.spawn("verify", &more);
    wait_until("half of it is read", ENDS_WITHIN, async || proxy.reads() >= 100).await;
    proxy.lead_to(plane.servers[1].client());
    let status = verify.wait(ENDS_WITHIN);
    assert_eq!(status.code(), Some(6), "{}", verify.log());
    let text = verify.log();
    let found = found(&text[text.find('{').unwrap()..]);
    assert_eq!(found["leftovers"], 5, "{found}");
    let paths: Vec<String> = (0..5).map(|number| format!("/api/v1/namespaces/default/secrets/s-{number}")).collect();
    assert_eq!(names(&found), paths);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_client_reads_meanwhile_makes_no_leftover_of_anything_else() {
    let plane = ControlPlane::start(Shape { resources: vec!["secrets", "configmaps", "events"], ..Shape::of(1) }).await;
    plane.create_secrets("s", 60).await;
    let old = plane.key_id(0).await;
    let event = json!({
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "reason": "Test", "message": "m",
        "involvedObject": {"apiVersion": "v1", "kind": "Secret", "namespace": "default", "name": "s-0"},
    });
    post(&plane, "/api/v1/namespaces/default/events", &event).await;
    plane.rotate_keyrings(0..1);
    plane.wait_key_id(0..1, &old).await;
    plane.run("rotate-keys", &[]).exits(7);
    assert_eq!(plane.etcd.key_id("/registry/events/default/e").await.as_ref(), Some(&old));

    // It reads the one value that is stored under the former key, again and again.
    let server = plane.servers[0].client();
    let reader = tokio::spawn(async move {
        for read in 0_u64.. {
            let request = http::Request::get("/api/v1/namespaces/default/events/e").body(Vec::new()).unwrap();
            if let Err(error) = server.request_text(request).await {
                panic!("read {read}: {error}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let ended = plane.run("verify", &["no-etcd", "--output=json"]).exits(6);
    assert!(!reader.is_finished(), "it read all the time");
    reader.abort();
    let found = found(&ended.out);
    assert_eq!(found["leftovers"], 1, "{found}");
    assert_eq!(names(&found), ["/api/v1/namespaces/default/events/e"]);
}
