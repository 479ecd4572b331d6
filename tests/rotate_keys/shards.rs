//! The Rewrite step in several processes, as the pods of the shipped Job would run: its arguments, its service account's
//! token, its rights, the API server found as a pod finds it.

use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::PostParams;
use serde_json::{Value, json};

use crate::control_plane::{BINARY, ControlPlane, ENDS_WITHIN, Shape, secret};
use crate::objects::{post, refuse};
use crate::support::{ApiServer, Process, wait_until};

/// Where a pod finds who it is.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const REPORTS: &str = "/api/v1/namespaces/kube-envelope/configmaps/rotate-keys-shard-";

/// The documents of the shipped manifest.
fn manifest() -> Vec<Value> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests/rotate-keys-job.yaml");
    let text = std::fs::read_to_string(file).unwrap();
    text.split("\n---\n").map(|document| serde_saphyr::from_str(document).unwrap()).collect()
}

fn job() -> Value {
    manifest().into_iter().find(|document| document["kind"] == "Job").unwrap()
}

/// The rights in the manifest are those that the command itself says a shard needs.
fn check_rights(plane: &ControlPlane) {
    let printed = plane.run("rotate-keys", &["--print-rbac", "--shards=4"]).exits(0).out;
    let printed: Vec<Value> = printed.split("---\n").map(|text| serde_saphyr::from_str(text).unwrap()).collect();
    let of_shards = |documents: Vec<Value>| -> Vec<Value> {
        let is_role = |document: &Value| document["kind"].as_str().unwrap().ends_with("Role");
        let ours = |document: &Value| document["metadata"]["name"] == "kube-envelope-rotate-keys-shard";
        documents.into_iter().filter(|document| is_role(document) && ours(document)).collect()
    };
    let shipped = of_shards(manifest());
    assert_eq!(shipped.len(), 3);
    assert_eq!(shipped, of_shards(printed));
}

/// Server-side apply, in which no unknown field passes.
pub async fn apply(server: &ApiServer, document: &Value) {
    let metadata = &document["metadata"];
    let kind = format!("{}s", document["kind"].as_str().unwrap().to_lowercase());
    let group = document["apiVersion"].as_str().unwrap();
    let root = if group == "v1" { "/api/v1".to_owned() } else { format!("/apis/{group}") };
    let namespace = metadata["namespace"].as_str().map(|name| format!("/namespaces/{name}")).unwrap_or_default();
    let name = metadata["name"].as_str().unwrap();
    let path = format!("{root}{namespace}/{kind}/{name}?fieldManager=test&fieldValidation=Strict");
    let request = http::Request::patch(path).header("content-type", "application/apply-patch+yaml");
    let request = request.body(document.to_string().into_bytes()).unwrap();
    server.client().request_text(request).await.unwrap_or_else(|error| panic!("{name}: {error}"));
}

/// The pods of the Job. Only one test at a time can be inside the pod's folder: each test writes its own token there,
/// so tests of this file take turns.
struct Pods<'a> {
    plane: &'a ControlPlane,
    processes: Vec<Process>,
    _turn: tokio::sync::MutexGuard<'static, ()>,
}

static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

impl<'a> Pods<'a> {
    /// Applies the manifest and starts what the Job's controller would start.
    async fn start(plane: &'a ControlPlane) -> Self {
        let turn = TURN.lock().await;
        for document in manifest() {
            apply(&plane.servers[0], &document).await;
        }
        let account = Path::new(ACCOUNT);
        std::fs::create_dir_all(account).unwrap();
        let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
        let path = "/api/v1/namespaces/kube-envelope/serviceaccounts/rotate-keys-shard/token";
        let request = http::Request::post(path).header("content-type", "application/json").body(request.to_string());
        let request = request.unwrap().map(String::into_bytes);
        let answer: Value = plane.servers[0].client().request(request).await.unwrap();
        std::fs::write(account.join("token"), answer["status"]["token"].as_str().unwrap()).unwrap();
        std::fs::write(account.join("namespace"), "kube-envelope").unwrap();
        std::fs::copy(plane.etcd.folder().join("authority.crt"), account.join("ca.crt")).unwrap();
        let completions = job()["spec"]["completions"].as_u64().unwrap();
        let processes = (0..completions).map(|index| pod(plane, index)).collect();
        Self { plane, processes, _turn: turn }
    }

    /// What a shard has reported, if it has.
    async fn report(&self, index: usize) -> Option<Value> {
        let (_, text) = self.plane.servers[0].get(&format!("{REPORTS}{index}")).await?;
        let map: Value = serde_json::from_str(&text).unwrap();
        let report = map["data"]["content"].as_str()?;
        Some(serde_json::from_str(report).unwrap())
    }

    async fn rewritten(&self, index: usize) -> u64 {
        let report = self.report(index).await.unwrap_or_default();
        report["counts"]["secrets"]["rewritten"].as_u64().unwrap_or(0)
    }

    async fn wait_all_at_work(&self) {
        wait_until("every shard rewrites", Duration::from_mins(1), async || {
            for index in 0..self.processes.len() {
                if self.rewritten(index).await < 5 {
                    return false;
                }
            }
            true
        })
        .await;
    }

    /// Waits for the end of each, and returns the exit codes.
    fn end(mut self) -> Vec<Option<i32>> {
        self.processes.iter_mut().map(|process| process.wait(Duration::from_secs(30)).code()).collect()
    }
}

/// Starts a pod's command as its container would.
fn pod(plane: &ControlPlane, index: u64) -> Process {
    let container = &job()["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["command"], json!(["/usr/local/bin/kube-envelope"]));
    let arguments = container["args"]
        .as_array()
        .unwrap()
        .iter()
        .map(|argument| argument.as_str().unwrap().replace("$(JOB_COMPLETION_INDEX)", &index.to_string()).into());
    let url = plane.servers[0].url();
    let (host, port) = url.trim_start_matches("https://").split_once(':').unwrap();
    let environment = vec![
        ("HOME".into(), "/nonexistent".into()),
        ("KUBERNETES_SERVICE_HOST".into(), host.into()),
        ("KUBERNETES_SERVICE_PORT".into(), port.into()),
    ];
    let log = plane.folder.path().join(format!("shard-{index}.log"));
    Process::start(&format!("shard {index}"), BINARY.into(), arguments.collect(), environment, log)
}

/// Secrets in ten namespaces beside the many in `default`.
async fn create(plane: &ControlPlane) {
    plane.create_secrets("s", 1400).await;
    for team in 0..10 {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": format!("team-{team}")}});
        post(plane, "/api/v1/namespaces", &namespace).await;
        let secrets: Api<Secret> = Api::namespaced(plane.servers[0].client(), &format!("team-{team}"));
        for number in 0..20 {
            let name = format!("t-{number}");
            secrets.create(&PostParams::default(), &secret(&name, &name)).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long; scripts/e2e runs it"]
async fn shards_go_on_when_one_is_killed_and_stop_when_the_coordinator_is() {
    let plane = ControlPlane::start(Shape::of(2)).await;
    create(&plane).await;
    let mut pods = Pods::start(&plane).await;
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..2);
    let new = plane.wait_key_id(0..2, &old).await;
    let mut run = plane.spawn("rotate-keys", &["--shards=4", "--qps=40"]);
    pods.wait_all_at_work().await;

    pods.processes[2].kill();
    let before = pods.rewritten(2).await;
    pods.processes[2] = pod(&plane, 2);
    wait_until("the killed shard goes on", Duration::from_mins(1), async || pods.rewritten(2).await > before).await;

    run.kill();
    wait_until("every shard stops", Duration::from_secs(40), async || {
        pods.processes.iter().all(|process| process.log().contains("no message from the coordinator for 20 s"))
    })
    .await;
    let left = plane.stored().await[&old];
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(plane.stored().await.get(&old), Some(&left), "nobody watches, so nobody rewrites");
    assert!(left > 200, "there is something left to do: {left}");

    let ended = plane.run("rotate-keys", &["--resume", "--shards=4"]).exits(0);
    ended.says("Yes: nothing is stored under ");
    let mut each = Vec::new();
    for index in 0..4 {
        each.push(pods.rewritten(index).await);
    }
    assert!(each.iter().all(|rewritten| *rewritten > 0), "each had something to do after the restart, too: {each:?}");
    assert_eq!(pods.end(), [Some(0); 4]);
    plane.check_all_under(&new).await;
    plane.check_secrets(1, "s", 1400).await;
    let journal = plane.journal().unwrap();
    let secrets = journal["resources"].as_array().unwrap().iter().find(|one| one["resource"]["plural"] == "secrets");
    let tally = &secrets.unwrap()["tally"];
    // The command itself stores the first three of a resource that it goes through, with a look at etcd.
    let of_shards: u64 = each.iter().sum();
    let rewritten = tally["rewritten"].as_u64().unwrap();
    assert!((of_shards..=of_shards + 3).contains(&rewritten), "the last pass found nothing: {tally}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long; scripts/e2e runs it"]
async fn lost_agreement_stops_the_shards_until_it_is_there_again() {
    let mut plane = ControlPlane::start(Shape::of(1)).await;
    create(&plane).await;
    let old = plane.key_id(0).await;
    refuse(&plane, "s-7").await;
    plane.prepare_keyrings();
    let behind = plane.keyrings[0].copied();
    plane.rotate_keyrings(0..1);
    plane.wait_key_id(0..1, &old).await;
    let mut run = plane.spawn("rotate-keys", &["--shards=4", "--qps=30"]);
    {
        let pods = Pods::start(&plane).await;
        pods.wait_all_at_work().await;
        // What follows needs the control plane for itself; the pods live on.
        let processes = pods.processes;
        plane.join(behind).await;
        wait_until("the rewrite stops", Duration::from_mins(1), async || run.log().contains("agreement lost")).await;
        wait_until("every shard stops", Duration::from_secs(20), async || {
            processes.iter().all(|process| process.log().contains("the coordinator stopped the rewrite"))
        })
        .await;
        let left = plane.stored().await[&old];
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert_eq!(plane.stored().await.get(&old), Some(&left));

        plane.keyrings[1].copy_from(&plane.keyrings[0]);
        let new = plane.wait_key_id(1..2, &old).await;
        let status = run.wait(ENDS_WITHIN);
        assert_eq!(status.code(), Some(3), "{}", run.log());
        assert!(run.log().contains("/secrets/s-7: 422: "), "{}", run.log());
        let codes: Vec<_> =
            processes.into_iter().map(|mut process| process.wait(Duration::from_secs(30)).code()).collect();
        assert_eq!(codes.iter().filter(|code| **code == Some(3)).count(), 1, "the shard that has s-7: {codes:?}");
        assert_eq!(codes.iter().filter(|code| **code == Some(0)).count(), 3, "{codes:?}");
        let stored = plane.stored().await;
        assert_eq!(stored[&old], 1, "{stored:?}");
        assert_eq!(stored.len(), 2, "{stored:?}; {new}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_too_many_and_a_second_coordinator_are_refused() {
    let plane = ControlPlane::start(Shape::of(1)).await;
    create(&plane).await;
    let pods = Pods::start(&plane).await;
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..1);
    let target = format!("--key-id={}", plane.wait_key_id(0..1, &old).await);
    let mut run = plane.spawn("rotate-keys", &["--shards=4", "--qps=60", &target]);
    pods.wait_all_at_work().await;

    check_rights(&plane);
    let mut fifth = pod(&plane, 4);
    assert_eq!(fifth.wait(Duration::from_secs(30)).code(), Some(2), "{}", fifth.log());
    assert!(fifth.log().contains("there is no shard 4 of 4"), "{}", fifth.log());
    let mut arguments = plane.arguments("rotate-keys", &["--shards=4", &target]);
    arguments.retain(|argument| !argument.starts_with("--journal="));
    arguments.push(format!("--journal={}", plane.folder.path().join("second.json").display()));
    let log = plane.folder.path().join("second.log");
    let arguments = arguments.into_iter().map(Into::into).collect();
    let mut second = Process::start("a second coordinator", BINARY.into(), arguments, Vec::new(), log);
    assert_eq!(second.wait(ENDS_WITHIN).code(), Some(2), "{}", second.log());
    assert!(second.log().contains("another rotate-keys is running on this cluster"), "{}", second.log());

    assert_eq!(run.wait(ENDS_WITHIN).code(), Some(0), "{}", run.log());
    assert_eq!(pods.end(), [Some(0); 4]);
}
