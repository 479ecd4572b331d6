//! A real Vault as a KEK of the plugin, behind a proxy that fails on demand.
use serde_json::json;

use super::fakes::faults::Faults;
use super::{Plugin, vault};

/// All that the plugin needs to be allowed.
pub const ALL: &[(&str, &str)] = &[("keys", "read"), ("encrypt", "update"), ("decrypt", "update")];

/// A Vault with a key, and the proxy that the plugin reaches it through.
pub struct KeyStore {
    pub name: &'static str,
    pub vault: vault::Server,
    pub faults: Faults,
    folder: tempfile::TempDir,
}

impl KeyStore {
    pub async fn start(name: &'static str) -> Self {
        super::prepare();
        let vault = vault::Server::start().await;
        // Two stores are told apart by the paths of their mounts, not by their addresses.
        vault.write(&format!("sys/mounts/{name}"), json!({ "type": "transit" })).await;
        vault.write(&format!("{name}/keys/kube-envelope"), json!({})).await;
        let folder = tempfile::tempdir().unwrap();
        let token = vault.token("plugin", 3600).await;
        std::fs::write(folder.path().join("token"), token).unwrap();
        let faults = Faults::tls(vault.address, folder.path()).await;
        let store = Self { name, vault, faults, folder };
        store.allow(ALL).await;
        store
    }

    /// Lets the plugin do this with the key, and nothing else.
    pub async fn allow(&self, operations: &[(&str, &str)]) {
        let rule = |(path, capability): &(&str, &str)| {
            format!("path \"{}/{path}/kube-envelope\" {{ capabilities = [\"{capability}\"] }}\n", self.name)
        };
        let token = "path \"auth/token/lookup-self\" { capabilities = [\"read\"] }\n";
        self.vault.policy("plugin", &(operations.iter().map(rule).collect::<String>() + token)).await;
    }

    pub fn item(&self) -> String {
        format!(
            "{{ name: {}, transit: {{ addresses: ['{}'], mount: {}, key: kube-envelope, caFile: {}, auth: {{ tokenFile: {} }} }} }}",
            self.name,
            self.faults.url(),
            self.name,
            self.faults.ca_file().display(),
            self.folder.path().join("token").display()
        )
    }
}

/// A configuration with these KEKs.
pub fn settings(stores: &[&KeyStore], more: &str) -> String {
    let items: Vec<_> = stores.iter().map(|store| store.item()).collect();
    format!("cluster: test\nrefreshInterval: 1s\nproveInterval: 1s\nkeks: [{}]\n{more}\n", items.join(", "))
}

/// Gives a running plugin another configuration.
pub fn reconfigure(plugin: &Plugin, settings: &str) {
    let file = plugin.config_file();
    let before = std::fs::read_to_string(&file).unwrap();
    let kept: Vec<_> = before
        .lines()
        .filter(|line| ["socket:", "stateDir:", "health:", "sandbox:"].iter().any(|key| line.starts_with(key)))
        .collect();
    std::fs::write(&file, format!("{settings}\n{}\n", kept.join("\n"))).unwrap();
    plugin.process.signal(rustix::process::Signal::HUP);
}
