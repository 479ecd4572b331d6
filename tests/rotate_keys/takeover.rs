//! From another plugin to kube-envelope under the same provider: that plugin stops, ours starts on its socket, and no
//! object is unreadable at any moment.
//!
//! The key stores are real (LocalStack, Vault) or the fakes of Google's and Azure's; the ciphertexts follow the formats in
//! the plugins' sources (`tests/support/rival.rs`). Of aws-encryption-provider and vault-kubernetes-kms there are also
//! ciphertexts that the programs themselves made (`tests/vectors/takeover`); of the two others there are none.

mod programs;
mod several_nodes;

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::support::fakes::faults::{Fault, Faults};
use crate::support::fakes::two_clouds::Clouds;
use crate::support::key_store::{KeyStore, reconfigure};
use crate::support::localstack;
use crate::support::plugin::encryption_configuration;
use crate::support::plugin::proto::DecryptRequest;
use crate::support::rival::{AwsEncryptionProvider, CloudKmsPlugin, Format, KubernetesKms, Rival, VaultKubernetesKms};
use crate::support::rotation::{run, text};
use crate::support::{ApiServer, ApiServerOptions, Encryption, Etcd, KeyringFile, Plugin, wait_until};

/// An API server polls Status every minute, and every 20 s while its health is asked for.
const ADOPTION: Duration = Duration::from_secs(90);

/// One plugin that is left.
struct Case<'a> {
    format: Arc<dyn Format>,
    /// The settings of the KEKs that are moved to, under `keks`.
    keks: String,
    /// The entry, without its name.
    entry: String,
    /// The way to the key of the entry.
    line: &'a Faults,
    /// What a verdict says of the former key.
    said: &'a str,
    /// How it is rewritten.
    method: &'static str,
    /// Where the audit log is.
    folder: tempfile::TempDir,
}

impl Case<'_> {
    fn settings(&self, with_entry: bool) -> String {
        let takeover =
            if with_entry { format!("takeover: [{{ name: former, {} }}]", self.entry) } else { String::new() };
        let audit = self.audit_log().display().to_string();
        let keks = &self.keks;
        format!("cluster: taken-over\nrefreshInterval: 1s\nkeks: [{keks}]\naudit: {{ file: {audit} }}\n{takeover}")
    }

    fn audit_log(&self) -> PathBuf {
        self.folder.path().join("audit.jsonl")
    }
}

/// The cluster that goes over, and how many Secrets it has.
struct World {
    etcd: Etcd,
    server: ApiServer,
    plugin: Plugin,
    secrets: usize,
}

impl World {
    async fn write(&mut self) -> String {
        let name = format!("s-{}", self.secrets);
        self.server.write_secret(&name, &name).await;
        self.secrets += 1;
        name
    }

    async fn read_all(&self) {
        for number in 0..self.secrets {
            let name = format!("s-{number}");
            assert_eq!(self.server.read_secret(&name).await, name);
        }
    }

    async fn key_ids(&self) -> Vec<String> {
        self.etcd.key_ids("/registry/secrets/").await.into_keys().collect()
    }

    /// What `/status` tells of the entry.
    fn entry(&self) -> Value {
        serde_json::from_str::<Value>(&self.plugin.get("/status")).unwrap()["takeover"][0].clone()
    }

    async fn write_until_under(&mut self, key_id: &str) {
        let start = tokio::time::Instant::now();
        loop {
            let name = self.write().await;
            self.read_all().await;
            if self.etcd.key_id(&format!("/registry/secrets/default/{name}")).await.as_deref() == Some(key_id) {
                return;
            }
            assert!(start.elapsed() < ADOPTION, "the API server does not write under {key_id}");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

async fn goes_over(case: &Case<'_>) {
    let mut plugin = Plugin::spawn(&case.settings(true));
    plugin.wait_socket().await;
    plugin.stop();
    let rival = Rival::start(case.format.clone(), &plugin.socket());
    let etcd = Etcd::start().await;
    let encryption = encryption_configuration(&["secrets"], &[&plugin.provider(), "{identity: {}}"]);
    let options = ApiServerOptions { encryption: Encryption::Text(encryption), ..ApiServerOptions::default() };
    let server = ApiServer::start(&etcd, &options).await;
    let mut world = World { etcd, server, plugin, secrets: 0 };
    // Each start of an API server makes another seed.
    for _ in 0..2 {
        for _ in 0..5 {
            world.write().await;
        }
        world.server.stop();
        world.server.restart().await;
    }
    let former = world.key_ids().await;
    assert_eq!(former.len(), 1, "{former:?}");

    // Before anything is changed it is shown that the entry opens all there is; without it, that nothing else does.
    let rehearsed = rehearse(case, &world, true);
    assert_eq!(rehearsed.status.code(), Some(0), "{}", text(&rehearsed));
    let rehearsed = rehearse(case, &world, false);
    assert!(!rehearsed.status.success(), "{}", text(&rehearsed));

    // The one stops, the other starts on its socket; the API server goes on.
    drop(rival);
    world.plugin.restart().await;
    let key_id = world.plugin.wait_healthy().await;
    world.read_all().await;
    world.write_until_under(&key_id).await;
    let (ready, said) = world.server.readyz().await.unwrap();
    assert_eq!(ready, case.format.version() == "v2", "what docs/takeover.md says of a restart: {said}");
    world.server.stop();
    world.server.restart().await;
    world.read_all().await;
    let entry = world.entry();
    assert!(entry["opened"].as_u64().unwrap() >= 2, "one Decrypt for each seed: {entry}");
    assert_eq!(entry["plugin"], former_plugin(case), "{entry}");

    told(case, &world.plugin, &former[0]);
    away(case, &world, &former[0]).await;
    rewritten(case, &mut world, &key_id).await;
}

fn rehearse(case: &Case<'_>, world: &World, with_entry: bool) -> Output {
    let file = case.folder.path().join("rehearsed.yaml");
    std::fs::write(&file, case.settings(with_entry)).unwrap();
    let mut program = Command::new(env!("CARGO_BIN_EXE_kube-envelope"));
    program.arg("rehearse").arg(format!("--etcd={}", world.etcd.url())).arg(format!("--config={}", file.display()));
    tokio::task::block_in_place(|| program.output().unwrap())
}

fn former_plugin<'a>(case: &'a Case<'_>) -> &'a str {
    ["aws-encryption-provider", "k8s-cloudkms-plugin", "kubernetes-kms", "vault-kubernetes-kms"]
        .into_iter()
        .find(|name| case.entry.starts_with(&camel(name)))
        .unwrap()
}

fn camel(name: &str) -> String {
    let mut words = name.split('-');
    let first = words.next().unwrap().to_owned();
    words.fold(first, |text, word| text + &word[..1].to_uppercase() + &word[1..])
}

/// What `status`, `doctor` and the audit log tell.
fn told(case: &Case<'_>, plugin: &Plugin, key_id: &str) {
    let say = |command: &str| {
        let config = format!("--config={}", plugin.config_file().display());
        let mut program = Command::new(env!("CARGO_BIN_EXE_kube-envelope"));
        text(&tokio::task::block_in_place(|| program.args([command, &config]).output().unwrap()))
    };
    for (command, what) in [("status", former_plugin(case)), ("doctor", "takeover former")] {
        assert!(say(command).contains(what), "{command}: {}", say(command));
    }
    assert!(!say("doctor").contains("takeover former  FAILED"), "{}", say("doctor"));
    let log = std::fs::read_to_string(case.audit_log()).unwrap();
    let records = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let taken: Vec<_> = records.filter(|record| record["event"] == "takenOver").collect();
    assert!(taken.len() >= 2, "{log}");
    for record in taken {
        assert_eq!((&record["entry"], &record["keyId"]), (&"former".into(), &key_id.into()), "{record}");
        assert!(record["uid"].as_str().is_some_and(|uid| !uid.is_empty()), "{record}");
    }
}

/// Without the key store of the entry: its Decrypts are unavailable, and nothing else is.
async fn away(case: &Case<'_>, world: &World, key_id: &str) {
    let stored = case.format.encrypt(&[7; 32]).await;
    assert_eq!(stored.key_id, key_id);
    let decrypt = async || {
        let stored = stored.clone();
        let request = DecryptRequest {
            ciphertext: stored.ciphertext,
            uid: "u".into(),
            key_id: stored.key_id,
            annotations: stored.annotations,
        };
        world.plugin.client().await.unwrap().decrypt(request).await
    };
    assert_eq!(decrypt().await.unwrap().into_inner().plaintext, [7; 32]);
    case.line.set(Fault::Refuse);
    let refused = decrypt().await.map(drop).unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused}");
    assert!(refused.message().contains("former, under takeover"), "{refused}");
    assert!(world.entry()["error"].is_string(), "{}", world.entry());
    assert_eq!(world.plugin.status().await.unwrap().healthz, "ok");
    case.line.clear();
    wait_until("the entry opens again", Duration::from_secs(30), async || decrypt().await.is_ok()).await;
    let failed = world.plugin.metric("kube_envelope_kek_calls_total", &["kek=\"former\"", "outcome=\"unavailable\""]);
    assert!(failed >= 1.0, "{failed}");
}

/// Everything is rewritten, the verdict lets the entry go, and without it everything is still read.
async fn rewritten(case: &Case<'_>, world: &mut World, key_id: &str) {
    let config = format!("--config={}", world.plugin.config_file().display());
    let journal = format!("--journal={}", world.server.folder().join("journal.json").display());
    let fast = ["--settle=0s", "--compact", "--agreement-interval=1s", "--snapshot-command=true"];
    let more = [&[config.as_str(), journal.as_str(), case.method][..], &fast].concat();
    let found = run(&world.server, &world.etcd, "verify", &[&config]);
    assert_eq!(found.status.code(), Some(6), "{}", text(&found));
    assert!(!text(&found).contains("may be removed"), "{}", text(&found));
    let rotated = run(&world.server, &world.etcd, "rotate-keys", &more);
    // A key that a KEK uses as well must stay, and leaves none to disable.
    let code = if case.said.contains("must stay") { 9 } else { 0 };
    assert_eq!(rotated.status.code(), Some(code), "{}", text(&rotated));
    let words = text(&rotated).split_whitespace().collect::<Vec<_>>().join(" ");
    for said in ["Yes: nothing is stored under key_id ", case.said, "takeover entry former: it may be removed"] {
        assert!(words.contains(said), "{said}: {}", text(&rotated));
    }
    assert_eq!(world.key_ids().await, [key_id]);
    let found = run(&world.server, &world.etcd, "verify", &[&config]);
    assert_eq!(found.status.code(), Some(0), "{}", text(&found));
    assert!(text(&found).contains("takeover entry former: it may be removed"), "{}", text(&found));

    reconfigure(&world.plugin, &case.settings(false));
    wait_until("the entry is gone", Duration::from_secs(20), async || world.entry().is_null()).await;
    world.server.stop();
    world.plugin.stop();
    std::fs::remove_dir_all(world.plugin.folder().join("state")).unwrap();
    world.plugin.restart().await;
    assert_eq!(world.plugin.wait_healthy().await, key_id);
    world.server.restart().await;
    world.read_all().await;
}

fn local(keyring: &KeyringFile) -> String {
    format!("{{ name: local, keyring: {{ file: {} }} }}", keyring.path().display())
}

fn vault<'a>(store: &'a Arc<KeyStore>, keyring: &KeyringFile) -> Case<'a> {
    Case {
        format: Arc::new(VaultKubernetesKms(store.clone())),
        keks: local(keyring),
        entry: format!("vaultKubernetesKms: {{ {} }}", settings_of(&store.item())),
        line: &store.faults,
        said: "It may be disabled",
        method: "--method=rewrap",
        folder: tempfile::tempdir().unwrap(),
    }
}

/// The settings within `{ name: X, KIND: { … } }`.
fn settings_of(item: &str) -> &str {
    item.split_once(", ").unwrap().1.strip_suffix(" }").unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_aws_encryption_provider_goes_over() {
    crate::support::prepare();
    let (store, keyring) = (localstack::KeyStore::start().await, KeyringFile::create());
    let alias = format!("alias/k8s-{:016x}", rand::random::<u64>());
    store.admin.create_alias().alias_name(&alias).target_key_id(&store.key).send().await.unwrap();
    let context = vec![("cluster", "prod")];
    let case = Case {
        format: Arc::new(AwsEncryptionProvider { admin: store.admin.clone(), key: alias.clone(), context }),
        keks: local(&keyring),
        entry: format!(
            "awsEncryptionProvider: {{ keyId: {alias}, encryptionContext: {{ cluster: prod }}, {} }}",
            settings_of(&store.item())
        ),
        line: &store.faults,
        said: "It may be disabled",
        method: "--method=patch",
        folder: tempfile::tempdir().unwrap(),
    };
    goes_over(&case).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_vault_kubernetes_kms_goes_over_with_no_more_than_the_right_to_decrypt() {
    let (store, keyring) = (Arc::new(KeyStore::start("former").await), KeyringFile::create());
    store.allow(&[("decrypt", "update")]).await;
    let case = vault(&store, &keyring);
    goes_over(&case).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_k8s_cloudkms_plugin_goes_over_and_keeps_its_key() {
    crate::support::prepare();
    let clouds = Arc::new(Clouds::start().await);
    let item = clouds.google_item();
    let case = Case {
        format: Arc::new(CloudKmsPlugin(clouds.clone())),
        keks: format!("{{ name: google, {item} }}"),
        entry: format!("k8sCloudkmsPlugin: {{ {item} }}"),
        line: &clouds.google_line,
        said: "is the key of KEK google, which must stay",
        method: "--method=patch",
        folder: tempfile::tempdir().unwrap(),
    };
    goes_over(&case).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_kubernetes_kms_goes_over_from_azure_to_google() {
    crate::support::prepare();
    let clouds = Arc::new(Clouds::start().await);
    let version = {
        let mut azure = clouds.azure.service();
        azure.permissions = ["decrypt"].into();
        azure.keys["kek"].versions[0].id.clone()
    };
    let case = Case {
        format: Arc::new(KubernetesKms(clouds.clone())),
        keks: format!("{{ name: google, {} }}", clouds.google_item()),
        entry: format!("kubernetesKms: {{ keyVersions: ['{version}'], {} }}", clouds.azure_item()),
        line: &clouds.azure_line,
        said: "It may be disabled",
        method: "--method=patch",
        folder: tempfile::tempdir().unwrap(),
    };
    goes_over(&case).await;
}
