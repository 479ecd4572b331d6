//! Several control-plane nodes go over one after the other, in the order of docs/takeover.md.

use std::sync::Arc;
use std::time::Duration;

use super::{ADOPTION, Case, vault};
use crate::support::key_store::KeyStore;
use crate::support::plugin::encryption_configuration;
use crate::support::rival::Rival;
use crate::support::{ApiServer, ApiServerOptions, Encryption, Etcd, KeyringFile, Plugin, wait_until};

/// A control-plane node: the other plugin until it is dropped, then ours, at one socket.
struct Node {
    rival: Option<Rival>,
    plugin: Plugin,
    server: ApiServer,
}

impl Node {
    fn spawn(case: &Case<'_>, etcd: &Etcd, number: u8) -> Self {
        let settings = case.settings(true).replace("audit.jsonl", &format!("audit-{number}.jsonl"));
        let mut plugin = Plugin::spawn(&settings);
        plugin.stop();
        let rival = Some(Rival::start(case.format.clone(), &plugin.socket()));
        let text = encryption_configuration(&["secrets"], &[&plugin.provider(), "{identity: {}}"]);
        let encryption = Encryption::Text(text);
        let server = ApiServer::spawn(etcd, &ApiServerOptions { number, encryption, ..ApiServerOptions::default() });
        Self { rival, plugin, server }
    }

    async fn go_over(&mut self) -> String {
        drop(self.rival.take());
        self.plugin.restart().await;
        self.plugin.wait_healthy().await
    }

    async fn reads(&self, names: &[String]) {
        for name in names {
            assert_eq!(self.server.read_secret(name).await, *name);
        }
    }
}

/// The order of docs/takeover.md, and what it is for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_several_nodes_everything_is_read_throughout_while_one_api_server_writes_at_a_time() {
    let (store, keyring) = (Arc::new(KeyStore::start("former").await), KeyringFile::create());
    let case = vault(&store, &keyring);
    let etcd = Etcd::start().await;
    let mut nodes = [1, 2].map(|number| Node::spawn(&case, &etcd, number));
    let mut names = Vec::new();
    for node in &mut nodes {
        node.server.wait_ready().await;
        names.push(format!("s-{}", names.len()));
        node.server.write_secret(&names[names.len() - 1], &names[names.len() - 1]).await;
    }
    let [last, other] = &mut nodes;

    other.server.stop();
    let key_id = other.go_over().await;
    last.reads(&names).await;
    assert_eq!(last.go_over().await, key_id);
    wait_until("the last API server writes with kube-envelope", ADOPTION, async || {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let name = format!("s-{}", names.len());
        last.server.write_secret(&name, &name).await;
        names.push(name.clone());
        last.reads(&names).await;
        etcd.key_id(&format!("/registry/secrets/default/{name}")).await.as_deref() == Some(&key_id)
    })
    .await;
    other.server.restart().await;
    other.reads(&names).await;
    other.server.write_secret("by-the-other", "by-the-other").await;
    last.reads(&["by-the-other".into()]).await;

    // An API server that still had the old plugin could not read this.
    let left_behind = Node::spawn(&case, &etcd, 3);
    wait_until("it is refused", ADOPTION, async || {
        let path = "/api/v1/namespaces/default/secrets/by-the-other";
        left_behind.server.get(path).await.is_some_and(|(status, _)| status == 500)
    })
    .await;
}
