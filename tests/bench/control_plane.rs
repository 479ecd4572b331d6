//! etcd, the plugin and an API server with many Secrets, and a key that can be rotated again and again.

use std::path::PathBuf;
use std::time::Duration;

use futures::stream::{self, StreamExt};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use kube_envelope::key_stores::keyring::Keyring;
use serde_json::{from_value, json};

use super::support::plugin::encryption_configuration;
use super::support::{ADMIN, ApiServer, ApiServerOptions, Etcd, Plugin, Process, free_port, server, wait_until};

/// Bytes of each Secret's value.
const VALUE_BYTES: usize = 1_000;
const PREFIX: &str = "/registry/secrets/default/";

pub struct ControlPlane {
    pub api_server: ApiServer,
    pub etcd: Etcd,
    pub plugin: Plugin,
    /// Runs the in-tree StorageVersionMigrator and the garbage collector that it needs.
    pub controller_manager: Process,
    pub kubeconfig: PathBuf,
    rotations: usize,
    /// With the keyring and the controller manager's files.
    folder: tempfile::TempDir,
}

impl ControlPlane {
    /// Starts everything and writes so many Secrets.
    pub async fn start(objects: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let keyring = folder.path().join("keyring.json");
        Keyring::create(&mut rand::rng()).write_new(&keyring).unwrap();
        let settings = format!(
            "cluster: bench\nkeks: [{{ name: local, keyring: {{ file: {} }} }}]\nrefreshInterval: 1s",
            keyring.display()
        );
        let plugin = Plugin::start(&settings).await;
        plugin.wait_healthy().await;
        // Each way of rewriting leaves every object's former version behind until etcd is compacted.
        let etcd = Etcd::start_with(&["--quota-backend-bytes=17179869184"]).await;
        let encryption = encryption_configuration(&["secrets"], &[&plugin.provider(), "{identity: {}}"]);
        let mut options = ApiServerOptions::encrypted(&encryption);
        // The client alone shall be what limits it.
        options.arguments = vec!["--max-requests-inflight=0".into(), "--max-mutating-requests-inflight=0".into()];
        options.arguments.push("--enable-priority-and-fairness=false".into());
        let api_server = ApiServer::start(&etcd, &options).await;
        let kubeconfig = api_server.kubeconfig(ADMIN);
        let arguments = vec![
            format!("--kubeconfig={}", kubeconfig.display()),
            "--controllers=garbage-collector-controller,storage-version-migrator-controller".into(),
            "--leader-elect=false".into(),
            format!("--secure-port={}", free_port()),
            format!("--cert-dir={}", folder.path().display()),
        ];
        let controller_manager = Process::start(
            "kube-controller-manager",
            server("kube-controller-manager"),
            arguments.into_iter().map(Into::into).collect(),
            Vec::new(),
            folder.path().join("kube-controller-manager.log"),
        );
        write(&api_server, objects).await;
        Self { api_server, etcd, plugin, controller_manager, kubeconfig, rotations: 0, folder }
    }

    /// Activates a new version of the KEK; returns its key_id once the API server writes with it.
    pub async fn rotate(&mut self) -> String {
        let old = self.plugin.wait_healthy().await;
        let file = self.folder.path().join("keyring.json");
        let mut keyring = Keyring::read(&file).unwrap();
        let id = keyring.add(&mut rand::rng());
        keyring.activate(&id).unwrap();
        keyring.replace(&file).unwrap();
        let mut target = String::new();
        wait_until("the plugin follows the keyring", Duration::from_secs(30), async || {
            target = self.plugin.wait_healthy().await;
            target != old
        })
        .await;
        self.rotations += 1;
        let canary = format!("canary-{}", self.rotations);
        wait_until("the API server writes with the new key", Duration::from_mins(2), async || {
            // Asked for its health, it reads Status again within 20 seconds.
            let _ = self.api_server.readyz().await;
            let written = self.touch(&canary).await;
            tokio::time::sleep(Duration::from_millis(500)).await;
            written.as_ref() == Some(&target)
        })
        .await;
        target
    }

    /// Where a rotation may be remembered that has nothing to do with earlier ones.
    pub fn new_journal(&self) -> PathBuf {
        self.folder.path().join(format!("journal-{}.json", self.rotations))
    }

    /// Writes a Secret that is not counted, and removes it; returns the key_id that it was stored under.
    pub async fn touch(&self, name: &str) -> Option<String> {
        let secrets: Api<Secret> = Api::namespaced(self.api_server.client(), "kube-system");
        let secret: Secret = from_value(json!({"metadata": {"name": name}})).unwrap();
        secrets.create(&PostParams::default(), &secret).await.unwrap();
        let written = self.etcd.key_id(&format!("/registry/secrets/kube-system/{name}")).await;
        secrets.delete(name, &DeleteParams::default()).await.unwrap();
        written
    }

    /// How many Secrets are not stored under this key_id.
    pub async fn leftovers(&self, target: &str) -> usize {
        let counts = self.etcd.key_ids(PREFIX).await;
        counts.iter().filter(|(key_id, _)| *key_id != target).map(|(_, count)| count).sum()
    }
}

async fn write(api_server: &ApiServer, objects: usize) {
    let secrets: Api<Secret> = Api::namespaced(api_server.client(), "default");
    let value = "v".repeat(VALUE_BYTES);
    stream::iter(0..objects)
        .for_each_concurrent(16, |number| {
            let secret = json!({"metadata": {"name": format!("s-{number}")}, "stringData": {"k": value}});
            let secrets = secrets.clone();
            async move {
                secrets.create(&PostParams::default(), &from_value(secret).unwrap()).await.unwrap();
            }
        })
        .await;
}
