//! `doctor` on a running cluster: what leaves Secrets exposed although they are encrypted, and what it says where nothing
//! does.

use std::process::Command;

use kube::core::Request;
use serde_json::{Value, json};

use crate::support::apiserver::ADMIN;
use crate::support::keyring::KeyringFile;
use crate::support::plugin::encryption_configuration;
use crate::support::{ApiServer, ApiServerOptions, Encryption, Etcd, Plugin};

struct Cluster {
    _keyring: KeyringFile,
    plugin: Plugin,
    etcd: Etcd,
    server: ApiServer,
}

impl Cluster {
    /// One API server that encrypts Secrets, where one was stored in clear before that.
    async fn start() -> Self {
        let keyring = KeyringFile::create();
        let plugin = Plugin::start(&keyring.settings("doctor")).await;
        let etcd = Etcd::start().await;
        let mut server = ApiServer::start(&etcd, &ApiServerOptions::default()).await;
        server.write_secret("early", "stored in clear").await;
        server.stop();
        let encryption = encryption_configuration(&["secrets"], &[&plugin.provider(), "{identity: {}}"]);
        let options = ApiServerOptions { encryption: Encryption::Text(encryption), ..ApiServerOptions::default() };
        let server = ApiServer::start(&etcd, &options).await;
        server.write_secret("late", "stored encrypted").await;
        Self { _keyring: keyring, plugin, etcd, server }
    }

    async fn create(&self, path: &str, object: Value) {
        let request = Request::new(path).create(&kube::api::PostParams::default(), object.to_string().into_bytes());
        self.server.client().request::<Value>(request.unwrap()).await.unwrap();
    }

    /// Exit code, and detail of each check that has this name and result.
    fn doctor(&self, check: &str, result: &str) -> (i32, Vec<String>) {
        let (kubeconfig, file) = (self.server.kubeconfig(ADMIN), self.server.encryption_file().display().to_string());
        let output = Command::new(env!("CARGO_BIN_EXE_kube-envelope"))
            .args(["doctor", "--output=json", "--config", &self.plugin.config_file().display().to_string()])
            .args(["--kubeconfig", &kubeconfig.display().to_string(), "--encryption-config", &file])
            .args(["--etcd", self.etcd.url()])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        for value in ["stored in clear", "hunter2"] {
            assert!(!text.contains(value), "a value is shown: {text}");
        }
        let report: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        let checks = report["checks"].as_array().unwrap().iter();
        let wanted = checks.filter(|one| one["check"] == check && one["result"] == result);
        let details = wanted.map(|one| one["detail"].as_str().unwrap().to_owned()).collect();
        (output.status.code().unwrap(), details)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_names_who_reads_secrets_what_lies_in_clear_and_which_config_maps_look_like_credentials() {
    let cluster = Cluster::start().await;
    let (_, fine) = cluster.doctor("cluster: who may read Secrets", "ok");
    assert_eq!(fine.len(), 1, "a new cluster binds nobody");
    assert_eq!(cluster.doctor("cluster: ConfigMaps", "ok").1.len(), 1);
    assert!(cluster.doctor("cluster: API servers", "ok").1[0].starts_with("1 seen"));
    let (code, in_clear) = cluster.doctor("etcd: how values are stored", "failed");
    assert_eq!((code, in_clear), (1, vec!["values are stored in etcd in clear: 1 of secrets".to_owned()]));

    cluster.etcd.delete("/registry/secrets/default/early").await;
    assert!(cluster.doctor("etcd: how values are stored", "ok").1[0].starts_with("1 Secret(s)"));

    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "all-secrets"},
        "rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["list"]}],
    });
    cluster.create(&format!("{rbac}/clusterroles"), role).await;
    let binding = |name: &str, subject: Value| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "all-secrets"},
            "subjects": [subject],
        })
    };
    let group = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:authenticated"});
    cluster.create(&format!("{rbac}/clusterrolebindings"), binding("everybody", group)).await;
    let agent = json!({"kind": "ServiceAccount", "name": "agent", "namespace": "default"});
    cluster.create(&format!("{rbac}/clusterrolebindings"), binding("agent", agent)).await;
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "app"}, "data": {"db-password": "hunter2"}});
    cluster.create("/api/v1/namespaces/default/configmaps", map).await;

    let (code, anybody) = cluster.doctor("cluster: who may read Secrets", "failed");
    assert!(
        code == 1 && anybody[0].contains("group system:authenticated by clusterrolebinding everybody"),
        "{anybody:?}"
    );
    let (_, anywhere) = cluster.doctor("cluster: who may read Secrets", "advice");
    assert!(anywhere[0].contains("service account default/agent (all-secrets)"), "{anywhere:?}");
    let (_, maps) = cluster.doctor("cluster: ConfigMaps", "advice");
    assert!(maps[0].contains("default/app (db-password)"), "{maps:?}");
}
