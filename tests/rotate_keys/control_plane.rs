//! A control plane of one to three API servers, each with a plugin and a keyring copy of its own, on one etcd.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use futures::stream::{self, StreamExt};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::support::plugin::encryption_configuration;
use crate::support::{ADMIN, ApiServer, ApiServerOptions, Encryption, Etcd, KeyringFile, Plugin, Process, wait_until};

pub const BINARY: &str = env!("CARGO_BIN_EXE_kube-envelope");
/// The longest that a command of ours may run in a test.
pub const ENDS_WITHIN: Duration = Duration::from_mins(5);

/// What the control plane is started with.
pub struct Shape {
    pub servers: u8,
    pub resources: Vec<&'static str>,
    /// Start with everything stored in clear.
    pub in_clear: bool,
    pub arguments: Vec<String>,
    pub audit_policy: Option<String>,
    /// Let etcd serve TLS with client certificates, too.
    pub etcd_tls: bool,
    /// The plugins' `refreshInterval`; short unless a test is about what happens before a plugin looks.
    pub refresh_interval: &'static str,
    /// Let etcd know its users, of whom `rotator` may read the prefix alone. Needs `etcd_tls`.
    pub etcd_users: bool,
    /// More arguments of etcd.
    pub etcd_arguments: Vec<&'static str>,
}

impl Shape {
    pub fn of(servers: u8) -> Self {
        Self {
            servers,
            resources: vec!["secrets", "configmaps"],
            in_clear: false,
            arguments: Vec::new(),
            audit_policy: None,
            etcd_tls: false,
            refresh_interval: "1s",
            etcd_users: false,
            etcd_arguments: Vec::new(),
        }
    }
}

impl Shape {
    /// API servers that compact etcd every two seconds: without etcd at hand that is what is waited for.
    pub fn compacting(servers: u8) -> Self {
        Self { arguments: vec!["--etcd-compaction-interval=2s".into()], ..Self::of(servers) }
    }
}

/// A running control plane.
pub struct ControlPlane {
    pub servers: Vec<ApiServer>,
    pub plugins: Vec<Plugin>,
    pub keyrings: Vec<KeyringFile>,
    pub etcd: Etcd,
    pub folder: tempfile::TempDir,
    resources: Vec<&'static str>,
    refresh_interval: &'static str,
}

impl ControlPlane {
    pub async fn start(shape: Shape) -> Self {
        let mut etcd =
            if shape.etcd_tls { Etcd::start_tls().await } else { Etcd::start_with(&shape.etcd_arguments).await };
        if shape.etcd_users {
            etcd.enable_authentication("/registry/").await;
        }
        let (mut servers, mut plugins, mut keyrings) = (Vec::new(), Vec::new(), Vec::new());
        for number in 1..=shape.servers {
            let keyring = keyrings.first().map_or_else(KeyringFile::create, KeyringFile::copied);
            let plugin = Plugin::start(&settings(&keyring, shape.refresh_interval)).await;
            plugin.wait_healthy().await;
            let providers = if shape.in_clear {
                ["{identity: {}}".to_owned(), plugin.provider()]
            } else {
                [plugin.provider(), "{identity: {}}".to_owned()]
            };
            let text = encryption_configuration(&shape.resources, &providers.each_ref().map(String::as_str));
            let options = ApiServerOptions {
                number,
                encryption: Encryption::Text(text),
                arguments: shape.arguments.clone(),
                audit_policy: shape.audit_policy.clone(),
                ..ApiServerOptions::default()
            };
            servers.push(ApiServer::spawn(&etcd, &options));
            plugins.push(plugin);
            keyrings.push(keyring);
        }
        for server in &mut servers {
            server.wait_ready().await;
        }
        let folder = tempfile::tempdir().unwrap();
        let (resources, refresh_interval) = (shape.resources, shape.refresh_interval);
        let plane = Self { servers, plugins, keyrings, etcd, folder, resources, refresh_interval };
        plane.wait_endpoints(shape.servers.into()).await;
        plane
    }

    /// Waits until the API itself knows of so many API servers.
    pub async fn wait_endpoints(&self, count: usize) {
        wait_until("every API server is an endpoint of default/kubernetes", Duration::from_mins(3), async || {
            let path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes";
            let Some((200, text)) = self.servers[0].get(path).await else { return false };
            let slice: Value = serde_json::from_str(&text).unwrap();
            slice["endpoints"].as_array().map_or(0, Vec::len) == count
        })
        .await;
    }

    /// Puts the plugin before `identity`, and restarts each API server with it.
    pub async fn encrypt(&mut self) {
        for (server, plugin) in self.servers.iter_mut().zip(&self.plugins) {
            let text = encryption_configuration(&self.resources, &[&plugin.provider(), "{identity: {}}"]);
            std::fs::write(server.encryption_file(), text).unwrap();
            server.stop();
            server.restart().await;
        }
        self.wait_endpoints(self.servers.len()).await;
    }

    /// Brings a new keyring version to all nodes, as pending: it opens, and nobody writes with it.
    pub fn prepare_keyrings(&self) {
        self.keyrings[0].command(&["add"], &[]);
        self.keyrings.iter().skip(1).for_each(|keyring| keyring.copy_from(&self.keyrings[0]));
    }

    /// Makes the pending version active on these nodes; where there is none, a new one on all of them.
    pub fn rotate_keyrings(&self, nodes: std::ops::Range<usize>) {
        if self.keyrings[0].versions().iter().all(|version| version["state"] != "pending") {
            self.prepare_keyrings();
        }
        nodes.for_each(|node| self.keyrings[node].command(&["activate"], &[]));
    }

    /// What the plugin of one node reports.
    pub async fn key_id(&self, node: usize) -> String {
        self.plugins[node].status().await.unwrap().key_id
    }

    /// Waits until the plugins of these nodes report another key_id than `old`, and returns it.
    pub async fn wait_key_id(&self, nodes: std::ops::Range<usize>, old: &str) -> String {
        for node in nodes.clone() {
            wait_until("the plugin adopts", Duration::from_mins(2), async || {
                self.plugins[node].status().await.is_some_and(|status| status.key_id != old)
            })
            .await;
        }
        self.key_id(nodes.start).await
    }

    pub fn journal_file(&self) -> PathBuf {
        self.folder.path().join("journal.json")
    }

    /// Where the rotation stands.
    pub fn state(&self) -> String {
        self.journal().and_then(|journal| journal["state"].as_str().map(Into::into)).unwrap_or_default()
    }

    pub async fn wait_state(&self, state: &str) {
        wait_until(&format!("the rotation is in state {state}"), ENDS_WITHIN, async || self.state() == state).await;
    }

    pub fn journal(&self) -> Option<Value> {
        serde_json::from_str(&std::fs::read_to_string(self.journal_file()).ok()?).ok()
    }

    /// Adds an API server with a plugin that has this keyring.
    pub async fn join(&mut self, keyring: KeyringFile) {
        self.join_as(keyring, "test").await;
    }

    /// The same with another name of the cluster in the plugin's configuration.
    pub async fn join_as(&mut self, keyring: KeyringFile, cluster: &str) {
        let number = u8::try_from(self.servers.len() + 1).unwrap();
        let settings =
            settings(&keyring, self.refresh_interval).replace("cluster: test", &format!("cluster: {cluster}"));
        let plugin = Plugin::start(&settings).await;
        plugin.wait_healthy().await;
        let text = encryption_configuration(&self.resources, &[&plugin.provider(), "{identity: {}}"]);
        let options = ApiServerOptions { number, encryption: Encryption::Text(text), ..ApiServerOptions::default() };
        self.servers.push(ApiServer::start(&self.etcd, &options).await);
        self.plugins.push(plugin);
        self.keyrings.push(keyring);
    }

    /// Arguments that every command gets here: it scans etcd, and does not wait for old revisions to go. A rotation
    /// that is resumed gets nothing but its journal.
    pub fn arguments(&self, command: &str, more: &[&str]) -> Vec<String> {
        let mut arguments = vec![command.to_owned()];
        if command == "rotate-keys" {
            arguments.push(format!("--journal={}", self.journal_file().display()));
        }
        let has = |flag: &str| more.iter().any(|argument| argument.starts_with(flag));
        if !has("--resume") {
            arguments.push(format!("--encryption-config={}", self.servers[0].encryption_file().display()));
            if !has("--kubeconfig") {
                arguments.push(format!("--kubeconfig={}", self.servers[0].kubeconfig(ADMIN).display()));
            }
            if !has("no-etcd") {
                arguments.push(format!("--etcd={}", self.etcd.url()));
            }
            if command == "rotate-keys" {
                arguments.extend(Self::quick(&has));
            }
        }
        arguments.extend(more.iter().filter(|more| !more.starts_with("no-")).map(|more| (*more).to_owned()));
        arguments
    }

    fn quick(has: &dyn Fn(&str) -> bool) -> Vec<String> {
        let mut quick = Vec::new();
        if !has("--request-timeout") {
            quick.push("--request-timeout=1s".into());
        }
        if !has("--agreement-interval") {
            quick.push("--agreement-interval=1s".into());
        }
        if !has("--snapshot") && !has("no-snapshot") {
            quick.push("--snapshot-command=true".into());
        }
        if !has("--settle") {
            quick.push(if has("no-etcd") { "--settle=1m" } else { "--settle=0s" }.into());
        }
        if !has("no-compact") && !has("--compact") {
            quick.push("--compact".into());
        }
        quick
    }

    /// Runs a command to its end.
    pub fn run(&self, command: &str, more: &[&str]) -> Ended {
        let output =
            tokio::task::block_in_place(|| Command::new(BINARY).args(self.arguments(command, more)).output().unwrap());
        Ended::of(&output)
    }

    /// Starts a command that goes on while the test does something else.
    pub fn spawn(&self, command: &str, more: &[&str]) -> Process {
        let arguments = self.arguments(command, more).into_iter().map(Into::into).collect();
        let log = self.folder.path().join(format!("{command}.log"));
        let _ = std::fs::remove_file(&log);
        Process::start(command, BINARY.into(), arguments, Vec::new(), log)
    }

    pub fn secrets(&self, node: usize) -> Api<Secret> {
        Api::namespaced(self.servers[node].client(), "default")
    }

    /// Creates Secrets `{prefix}-0` and so on; each holds its own name.
    pub async fn create_secrets(&self, prefix: &str, count: usize) {
        let secrets = self.secrets(0);
        stream::iter(0..count)
            .for_each_concurrent(32, |number| {
                let secrets = secrets.clone();
                let name = format!("{prefix}-{number}");
                async move {
                    secrets.create(&PostParams::default(), &secret(&name, &name)).await.unwrap();
                }
            })
            .await;
    }

    /// Checks that nothing is stored but under this key_id.
    pub async fn check_all_under(&self, key_id: &str) {
        let stored = self.stored().await;
        assert!(stored.contains_key(key_id) && stored.len() == 1, "{key_id} was expected: {stored:?}");
    }

    /// Checks that every Secret that [`Self::create_secrets`] made still holds its name.
    pub async fn check_secrets(&self, node: usize, prefix: &str, count: usize) {
        let all = self.secrets(node).list(&kube::api::ListParams::default()).await.unwrap().items;
        let found: BTreeMap<_, _> = all.iter().map(|one| (one.metadata.name.clone().unwrap(), value(one))).collect();
        for number in 0..count {
            let name = format!("{prefix}-{number}");
            assert_eq!(found.get(&name), Some(&name));
        }
    }

    /// How often each key_id is stored under the folders of what is encrypted here.
    pub async fn stored(&self) -> BTreeMap<String, usize> {
        let mut all = self.etcd.key_ids("/registry/secrets/").await;
        for (key_id, count) in self.etcd.key_ids("/registry/configmaps/").await {
            *all.entry(key_id).or_default() += count;
        }
        all
    }
}

fn settings(keyring: &KeyringFile, refresh_interval: &str) -> String {
    format!("{}\nrefreshInterval: {refresh_interval}", keyring.settings("test"))
}

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ended {
    pub fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
    }

    /// Checks the exit code, and shows everything if it is another one.
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "--- out\n{}\n--- err\n{}", self.out, self.err);
        self
    }

    pub fn says(self, words: &str) -> Self {
        let both = format!("{}\n{}", self.out, self.err);
        assert!(both.contains(words), "{words:?} is not in\n{both}");
        self
    }
}

pub fn secret(name: &str, value: &str) -> Secret {
    Secret {
        metadata: ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() },
        data: Some([("k".to_owned(), ByteString(value.into()))].into()),
        ..Secret::default()
    }
}

pub fn value(secret: &Secret) -> String {
    let data = secret.data.as_ref().and_then(|data| data.get("k"));
    String::from_utf8(data.map(|value| value.0.clone()).unwrap_or_default()).unwrap()
}

/// Writers that go on changing Secrets of their own through several API servers until they are stopped.
pub struct Writers {
    stop: tokio::sync::watch::Sender<bool>,
    tasks: Vec<tokio::task::JoinHandle<(String, u64)>>,
}

impl Writers {
    /// One writer for each Secret `writer-0` and so on, spread over the API servers.
    pub async fn start(plane: &ControlPlane, count: usize) -> Self {
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let mut tasks = Vec::new();
        for number in 0..count {
            let secrets = plane.secrets(number % plane.servers.len());
            let name = format!("writer-{number}");
            secrets.create(&PostParams::default(), &secret(&name, "0")).await.unwrap();
            let stopped = stopped.clone();
            tasks.push(tokio::spawn(async move {
                let mut written = 0;
                while !*stopped.borrow() {
                    let patch = json!({"stringData": {"k": (written + 1).to_string()}});
                    let patched = secrets.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await;
                    let patched = patched.unwrap_or_else(|error| panic!("{name}: {error}"));
                    written += 1;
                    assert_eq!(value(&patched), written.to_string(), "a write of {name} was lost");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                (name, written)
            }));
        }
        Self { stop, tasks }
    }

    /// Stops them and checks that each Secret holds the last value that was written to it.
    pub async fn stop_and_check(self, plane: &ControlPlane) {
        self.stop.send(true).unwrap();
        for task in self.tasks {
            let (name, written) = task.await.unwrap();
            assert!(written > 0, "{name} wrote nothing");
            let stored = plane.secrets(0).get(&name).await.unwrap();
            assert_eq!(value(&stored), written.to_string(), "{name}");
        }
    }
}
