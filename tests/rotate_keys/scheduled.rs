//! `rotate-keys --rotate-kek --if-older-than`, as the shipped CronJob runs it: its rights, its service account's token, its
//! arguments.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::backups::alone;
use crate::control_plane::{BINARY, Ended};
use crate::shards::apply;
use crate::support::apiserver::ROTATOR;
use crate::support::key_store::{KeyStore, settings};
use crate::support::plugin::encryption_configuration;
use crate::support::{ApiServer, ApiServerOptions, Encryption, Etcd, Plugin};

const SECRETS: usize = 10;

fn manifest() -> Vec<Value> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests/rotate-keys-cronjob.yaml");
    let text = std::fs::read_to_string(file).unwrap();
    text.split("\n---\n").map(|document| serde_saphyr::from_str(document).unwrap()).collect()
}

/// Two API servers, each with a plugin, and one vault.
struct Plane {
    vault: KeyStore,
    plugins: Vec<Plugin>,
    servers: Vec<ApiServer>,
    etcd: Etcd,
    kubeconfig: PathBuf,
}

impl Plane {
    async fn start() -> Self {
        let vault = KeyStore::start("vault").await;
        vault.vault.policy("plugin", r#"path "*" { capabilities = ["read", "update"] }"#).await;
        let etcd = Etcd::start().await;
        let (mut plugins, mut servers) = (Vec::new(), Vec::new());
        for number in 1..=2 {
            let plugin = Plugin::start(&settings(&[&vault], "")).await;
            plugin.wait_healthy().await;
            let resources = ["secrets", "configmaps"];
            let text = encryption_configuration(&resources, &[&plugin.provider(), "{identity: {}}"]);
            let options =
                ApiServerOptions { number, encryption: Encryption::Text(text), ..ApiServerOptions::default() };
            servers.push(ApiServer::spawn(&etcd, &options));
            plugins.push(plugin);
        }
        for server in &mut servers {
            server.wait_ready().await;
        }
        for number in 0..SECRETS {
            servers[0].write_secret(&format!("s-{number}"), &format!("value {number}")).await;
        }
        let mut plane = Self { vault, plugins, servers, etcd, kubeconfig: PathBuf::new() };
        plane.kubeconfig = plane.account().await;
        plane
    }

    /// A kubeconfig of the account in the manifest, with the rights that the manifest gives it.
    async fn account(&self) -> PathBuf {
        let server = &self.servers[0];
        for document in manifest() {
            apply(server, &document).await;
        }
        let token = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
        let path = "/api/v1/namespaces/kube-envelope/serviceaccounts/rotate-keys/token";
        let request = http::Request::post(path).header("content-type", "application/json");
        let answer = server.client().request_text(request.body(token.to_string().into_bytes()).unwrap()).await.unwrap();
        let answer: Value = serde_json::from_str(&answer).unwrap();
        let text = std::fs::read_to_string(server.kubeconfig(ROTATOR)).unwrap();
        let file = server.folder().join("kubeconfig-of-account");
        std::fs::write(&file, text.replace(ROTATOR, answer["status"]["token"].as_str().unwrap())).unwrap();
        file
    }

    /// The command of the CronJob, with the paths of this machine and without the long waits.
    fn run(&self, more: &[&str]) -> Ended {
        let job = manifest().into_iter().find(|document| document["kind"] == "CronJob").unwrap();
        let container = &job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0];
        let shipped = container["args"].as_array().unwrap().iter().map(|argument| argument.as_str().unwrap());
        let here = |argument: &str| {
            let (flag, _) = argument.split_once('=').unwrap_or((argument, ""));
            match flag {
                "--config" => Some(format!("{flag}={}", self.plugins[0].config_file().display())),
                "--encryption-config" => Some(format!("{flag}={}", self.servers[0].encryption_file().display())),
                "--etcd" => Some(format!("{flag}={}", self.etcd.url())),
                "--etcd-ca" | "--etcd-cert" | "--etcd-key" => None,
                _ if more.iter().any(|one| one.starts_with(flag)) => None,
                _ => Some(argument.to_owned()),
            }
        };
        let mut arguments: Vec<String> = shipped.filter_map(here).collect();
        arguments.push(format!("--kubeconfig={}", self.kubeconfig.display()));
        arguments.push(format!("--journal={}", self.journal().display()));
        arguments.extend(["--settle=0s", "--agreement-interval=1s", "--request-timeout=1s"].map(ToOwned::to_owned));
        arguments.extend(more.iter().map(|more| (*more).to_owned()));
        let output = tokio::task::block_in_place(|| Command::new(BINARY).args(arguments).output().unwrap());
        Ended::of(&output)
    }

    fn journal(&self) -> PathBuf {
        self.servers[0].folder().join("journal.json")
    }

    /// The versions of the key in the vault, and from which on it decrypts.
    async fn versions(&self) -> (u64, u64, u64) {
        let key = self.vault.vault.read("vault/keys/kube-envelope").await;
        let data = &key["data"];
        let keys = data["keys"].as_object().unwrap().len() as u64;
        (data["latest_version"].as_u64().unwrap(), keys, data["min_decryption_version"].as_u64().unwrap())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: three rotations; scripts/e2e runs it"]
async fn a_cron_job_rotates_what_is_old_three_times_stops_at_not_yet_and_disables_nothing() {
    let plane = Plane::start().await;
    plane.run(&[]).exits(0).says("Nothing is due: no version is older than 90d.");
    assert_eq!(plane.versions().await, (1, 1, 1));
    for round in 1..=3 {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let ended = plane.run(&["--if-older-than=1s"]).exits(0).says("Not yet: ");
        assert!(ended.err.contains("more than 1s ago"), "{}", ended.err);
        assert_eq!(plane.versions().await, (1 + round, 1 + round, 1), "rotated once, and every version opens");
        let under = plane.etcd.key_ids("/registry/secrets/default/").await;
        assert_eq!(under.into_iter().collect::<Vec<_>>(), [(plane.plugins[0].wait_healthy().await, SECRETS)]);
        // The next day, when nothing is due, it looks whether there is a Yes by now.
        let again = plane.run(&[]).exits(0).says("looks again").says("Not yet: ");
        assert!(!again.out.contains("Nothing is due"), "{}", again.out);
        assert_eq!(plane.versions().await, (1 + round, 1 + round, 1));
    }
    // A person says that there is a snapshot; then there is nothing to look at again.
    let journal = format!("--journal={}", plane.journal().display());
    let taken = format!("--snapshot-taken={}", jiff::Timestamp::now());
    alone(&["rotate-keys", "--resume", "--compact", &journal, &taken]).exits(0).says("Yes: ");
    plane.run(&[]).exits(0).says("Nothing is due");
    assert_eq!(plane.versions().await, (4, 4, 1));
    for number in 0..SECRETS {
        assert_eq!(plane.servers[1].read_secret(&format!("s-{number}")).await, format!("value {number}"));
    }
}
