//! The EncryptionConfiguration: ours, with every provider of the former one *and its keys* kept after the plugin's.
//! RKE2 and Talos encrypt from the first day, k3s when asked: a list without their key opens nothing.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

use super::yaml;
use crate::encryption_config::{EncryptionConfiguration, matches};

/// What the API servers were told so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Former {
    /// Where it was read; none for a cluster that has none.
    pub(super) file: Option<PathBuf>,
    entries: Vec<FormerEntry>,
}

#[derive(Clone, Debug, PartialEq)]
struct FormerEntry {
    resources: Vec<String>,
    providers: Vec<Value>,
}

impl FormerEntry {
    fn encrypts(&self) -> bool {
        self.providers.iter().any(|provider| provider.get("identity").is_none())
    }

    fn names(&self, plural: &str, group: &str) -> bool {
        self.resources.iter().any(|pattern| matches(pattern, plural, group))
    }
}

/// Which provider writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum First {
    /// The plugin; the former ones only read.
    Plugin,
    /// The former one, or none where nothing was encrypted; the plugin only reads.
    Former,
}

impl Former {
    /// Reads an EncryptionConfiguration, or a Talos machine configuration that holds the key of one.
    pub(super) fn read(file: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        Self::parse(file, &text).with_context(|| format!("--former {}", file.display()))
    }

    fn parse(file: &Path, text: &str) -> Result<Self> {
        if let Some(entry) = of_talos(text) {
            return Ok(Self { file: Some(file.to_owned()), entries: vec![entry] });
        }
        // Read as the API server reads it; then once more for the keys, which that reader never keeps.
        EncryptionConfiguration::parse(text)?;
        let values: Vec<Value> = serde_saphyr::from_multiple(text)?;
        let resources = values.first().and_then(|value| value["resources"].as_array().cloned()).unwrap_or_default();
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let entries = resources.iter().map(|entry| FormerEntry {
            resources: list(&entry["resources"]).iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            providers: list(&entry["providers"]).into_iter().map(tidy).collect(),
        });
        Ok(Self { file: Some(file.to_owned()), entries: entries.collect() })
    }

    /// Whether anything is stored that only these providers open.
    pub(super) fn encrypts(&self) -> bool {
        self.entries.iter().any(FormerEntry::encrypts)
    }

    /// What the providers are called, in order, without their keys.
    pub(super) fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        for provider in self.entries.iter().flat_map(|entry| &entry.providers) {
            let name = provider.as_object().and_then(|map| map.keys().next()).cloned().unwrap_or_default();
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    /// The new configuration's `resources`, for `wanted` and all that was named before.
    ///
    /// # Errors
    /// Where the former one leads to the plugin already, has a provider of its name, or cannot be kept in one list.
    pub(super) fn extended(&self, wanted: &[String], plugin: &Value, first: First) -> Result<Value> {
        self.check_names(plugin)?;
        let ours = FormerEntry { resources: self.resources(wanted), providers: self.providers(plugin, first) };
        let clear: Vec<_> = self.entries.iter().filter(|entry| !entry.encrypts()).cloned().collect();
        // What was exempted stays so, wherever it stood.
        let before = [clear.as_slice(), std::slice::from_ref(&ours)].concat();
        let after = [std::slice::from_ref(&ours), clear.as_slice()].concat();
        let Some(entries) = [before, after].into_iter().find(|entries| self.decides_alike(entries)) else {
            bail!(
                "its entries overlap in a way that one entry for the plugin cannot keep: write the file by hand, with \
                 the plugin's provider first and the former ones after it in every entry that encrypts"
            )
        };
        let entries = entries.iter().map(|entry| json!({"resources": entry.resources, "providers": entry.providers}));
        Ok(entries.collect())
    }

    fn check_names(&self, plugin: &Value) -> Result<()> {
        let of = |provider: &Value, field: &str| provider["kms"][field].as_str().unwrap_or_default().to_owned();
        for provider in self.entries.iter().flat_map(|entry| &entry.providers) {
            if of(provider, "endpoint") == of(plugin, "endpoint") {
                bail!(
                    "already lists the plugin's socket {}: nothing needs to be added (kube-envelope doctor \
                     --encryption-config checks it)",
                    of(plugin, "endpoint")
                );
            }
            if of(provider, "name") == of(plugin, "name") {
                bail!("has another KMS provider named {}; choose a name with --provider-name", of(plugin, "name"));
            }
        }
        Ok(())
    }

    /// Wanted and formerly encrypted resources, less those that a wildcard here includes: the API server refuses both.
    fn resources(&self, wanted: &[String]) -> Vec<String> {
        let mut all: Vec<String> = Vec::new();
        let former = self.entries.iter().filter(|entry| entry.encrypts()).flat_map(|entry| &entry.resources);
        for name in wanted.iter().chain(former) {
            if !all.contains(name) {
                all.push(name.clone());
            }
        }
        let includes = |wildcard: &String, name: &String| {
            let (plural, group) = name.split_once('.').unwrap_or((name, ""));
            wildcard != name && wildcard.starts_with('*') && matches(wildcard, plural, group)
        };
        let kept = all.iter().filter(|name| !all.iter().any(|wildcard| includes(wildcard, name)));
        kept.cloned().collect()
    }

    fn providers(&self, plugin: &Value, first: First) -> Vec<Value> {
        let mut former: Vec<Value> = Vec::new();
        for provider in self.entries.iter().filter(|entry| entry.encrypts()).flat_map(|entry| &entry.providers) {
            if provider.get("identity").is_none() && !former.contains(provider) {
                former.push(provider.clone());
            }
        }
        let identity = json!({"identity": {}});
        let plugin = std::slice::from_ref(plugin);
        let identity = std::slice::from_ref(&identity);
        match first {
            First::Plugin => [plugin, &former, identity].concat(),
            First::Former if former.is_empty() => [identity, plugin].concat(),
            First::Former => [&former, plugin, identity].concat(),
        }
    }

    /// Whether every resource that the former configuration names is still encrypted, or exempted, as it was.
    fn decides_alike(&self, entries: &[FormerEntry]) -> bool {
        let patterns = self.entries.iter().flat_map(|entry| &entry.resources);
        patterns.map(|pattern| pattern.split_once('.').unwrap_or((pattern, ""))).all(|(plural, group)| {
            let decides = |entries: &[FormerEntry]| {
                entries.iter().find(|entry| entry.names(plural, group)).map(FormerEntry::encrypts)
            };
            decides(&self.entries) == decides(entries)
        })
    }
}

/// The whole file, which is checked to be readable by an API server before it is handed out.
pub(super) fn file(comment: &str, resources: &Value) -> Result<String> {
    let body = yaml::block(resources, 2);
    let text =
        format!("{comment}apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n{body}");
    EncryptionConfiguration::parse(&text).context("the EncryptionConfiguration that results")?;
    Ok(text)
}

/// `identity:` with nothing after it means the same as `identity: {}`, and is written so.
fn tidy(provider: Value) -> Value {
    match provider {
        Value::Object(map) => {
            let tidied = map.into_iter().filter(|(kind, value)| kind == "identity" || !value.is_null());
            Value::Object(tidied.map(|(kind, value)| (kind, if value.is_null() { json!({}) } else { value })).collect())
        }
        other => other,
    }
}

/// The providers that Talos makes of a machine configuration: secretbox `key2`, else aescbc `key1`.
fn of_talos(text: &str) -> Option<FormerEntry> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).ok()?;
    let cluster: &Map<_, _> = documents.iter().find_map(|document| document["cluster"].as_object())?;
    let of = |kind: &str, field: &str, name: &str| {
        let secret = cluster.get(field)?.as_str()?;
        let mut provider = Map::new();
        provider.insert(kind.to_owned(), json!({"keys": [{"name": name, "secret": secret}]}));
        Some(Value::Object(provider))
    };
    let providers = [
        of("secretbox", "secretboxEncryptionSecret", "key2"),
        of("aescbc", "aescbcEncryptionSecret", "key1"),
        Some(json!({"identity": {}})),
    ];
    let providers: Vec<Value> = providers.into_iter().flatten().collect();
    (providers.len() > 1).then(|| FormerEntry { resources: vec!["secrets".into()], providers })
}

#[cfg(test)]
mod tests;
