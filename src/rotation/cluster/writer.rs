//! Who writes a resource, and what it stores it under.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::encryption_config::{Entry, KmsVersion, Provider, ProviderName};
use crate::rotation::cluster::key_id_hash::KeyIdHash;

/// What an API server puts before a value that a KMS v2 provider encrypted; the provider's name and `:` follow.
pub const KMS_V2_PREFIX: &str = "k8s:enc:kms:v2:";

/// The provider that writes a resource.
///
/// As text: the name of a plugin's provider, or that of a local one, in which there is a colon. No API server takes a
/// colon in the name of a KMS v2 provider.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Writer {
    /// A KMS v2 plugin.
    Plugin(ProviderName),
    /// A provider of the API server's own, to which the resource is moved from a KMS v2 plugin.
    Local(LocalWriter),
}

/// A provider that needs no plugin, and so has no `key_id`: it is known by its name which key it writes with.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LocalWriter {
    /// With a key of the EncryptionConfiguration itself.
    Key {
        /// The provider: `aescbc`, `aesgcm` or `secretbox`.
        kind: String,
        /// The name of the key.
        name: String,
    },
    /// In clear, by `identity`.
    Clear,
}

impl Writer {
    /// The writer of what this entry names: a KMS v2 plugin; or a local provider, if a KMS v2 plugin behind it still
    /// reads what it wrote before. A resource that no plugin reads was never encrypted by one, and has nothing to be
    /// moved.
    pub fn of(entry: &Entry) -> Option<Self> {
        let is_plugin = |provider: &Provider| provider.kms().is_some_and(|kms| kms.version == KmsVersion::V2);
        let is_left = entry.providers.iter().skip(1).any(is_plugin);
        let local = match entry.writer()? {
            Provider::Kms(kms) => {
                return (kms.version == KmsVersion::V2).then(|| Self::Plugin(kms.name.clone()));
            }
            Provider::LocalKeys(keys) => {
                let name = entry.writing_key.clone().unwrap_or_default();
                LocalWriter::Key { kind: keys.kind.to_owned(), name }
            }
            Provider::Identity => LocalWriter::Clear,
        };
        is_left.then_some(Self::Local(local))
    }

    /// The plugin's provider, where it is a plugin.
    pub fn plugin(&self) -> Option<&ProviderName> {
        match self {
            Self::Plugin(provider) => Some(provider),
            Self::Local(_) => None,
        }
    }

    /// The local provider, where it is one.
    pub fn local(&self) -> Option<&LocalWriter> {
        match self {
            Self::Plugin(_) => None,
            Self::Local(local) => Some(local),
        }
    }
}

impl LocalWriter {
    /// The words of the prefix that it puts before a value in etcd (`aescbc v1 KEY`); `None` where it puts none, in clear.
    pub fn words(&self) -> Option<String> {
        match self {
            Self::Key { kind, name } => Some(format!("{kind} v1 {name}")),
            Self::Clear => None,
        }
    }

    /// Whether an API server's metrics count under this prefix what it transforms.
    pub fn is_counted_as(&self, prefix: &str) -> bool {
        match self {
            Self::Key { kind, .. } => prefix.starts_with(&format!("k8s:enc:{kind}:")),
            Self::Clear => is_clear(prefix),
        }
    }
}

/// The provider of the KMS v2 plugin that an API server's metrics count under this prefix.
pub fn plugin_counted_as(prefix: &str) -> Option<&str> {
    prefix.strip_prefix(KMS_V2_PREFIX).map(|rest| rest.trim_end_matches(':'))
}

/// Whether metrics count here what they count under the provider's own prefix as well: by the name of a key of it.
pub fn is_inner_prefix(prefix: &str) -> bool {
    !is_clear(prefix) && !prefix.starts_with("k8s:enc:")
}

/// How an API server's metrics call what is stored in clear: by no prefix when it is stored, and by this word when it is
/// read (k8s.io/apiserver, storage/value/transformer.go). The name of a key ends with a colon there.
fn is_clear(prefix: &str) -> bool {
    matches!(prefix, "" | "identity")
}

impl fmt::Display for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(String::from(self.clone()).trim_end_matches(':'))
    }
}

impl From<Writer> for String {
    fn from(writer: Writer) -> Self {
        match writer {
            Writer::Plugin(provider) => provider.as_str().to_owned(),
            Writer::Local(LocalWriter::Key { kind, name }) => format!("{kind}:{name}"),
            Writer::Local(LocalWriter::Clear) => "identity:".into(),
        }
    }
}

impl From<String> for Writer {
    fn from(text: String) -> Self {
        match text.split_once(':') {
            None => Self::Plugin(text.into()),
            // `identity` has no key, and so no name of one.
            Some(("identity", "")) => Self::Local(LocalWriter::Clear),
            Some((kind, name)) => Self::Local(LocalWriter::Key { kind: kind.to_owned(), name: name.to_owned() }),
        }
    }
}

/// What writers store under: a plugin under the `key_id` with this hash; a local provider as its name says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "BTreeMap<String, String>", into = "BTreeMap<String, String>")]
pub struct StoredUnder {
    /// The plugins, by the name of the provider.
    pub plugins: BTreeMap<ProviderName, KeyIdHash>,
    /// The local providers.
    pub local: BTreeSet<LocalWriter>,
}

impl StoredUnder {
    /// What the plugin of a provider stores under.
    pub fn key(&self, provider: &ProviderName) -> Option<&KeyIdHash> {
        self.plugins.get(provider)
    }

    /// Whether no writer is known.
    pub fn is_empty(&self) -> bool {
        self.plugins.is_empty() && self.local.is_empty()
    }
}

impl From<BTreeMap<ProviderName, KeyIdHash>> for StoredUnder {
    fn from(plugins: BTreeMap<ProviderName, KeyIdHash>) -> Self {
        Self { plugins, local: BTreeSet::new() }
    }
}

/// In a journal it is one map, with an empty hash for local providers.
// In a journal both are one map, in which a local provider has no hash: so it was before they had types.
impl From<StoredUnder> for BTreeMap<String, String> {
    fn from(under: StoredUnder) -> Self {
        let plugins = under.plugins.into_iter().map(|(provider, hash)| (provider.to_string(), hash.to_string()));
        let local = under.local.into_iter().map(|local| (Writer::Local(local).into(), String::new()));
        plugins.chain(local).collect()
    }
}

impl From<BTreeMap<String, String>> for StoredUnder {
    fn from(stored: BTreeMap<String, String>) -> Self {
        let mut under = Self::default();
        for (writer, hash) in stored {
            match Writer::from(writer) {
                Writer::Plugin(provider) => _ = under.plugins.insert(provider, hash.into()),
                Writer::Local(local) => _ = under.local.insert(local),
            }
        }
        under
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_holds_one_map_with_an_empty_hash_for_local_providers() {
        let text = r#"{"aescbc:key2":"","identity:":"","p":"sha256:a"}"#;
        let under: StoredUnder = serde_json::from_str(text).unwrap();
        let local = [LocalWriter::Key { kind: "aescbc".into(), name: "key2".into() }, LocalWriter::Clear];
        assert_eq!(under.local, local.into());
        assert_eq!(under.key(&"p".into()), Some(&"sha256:a".into()));
        assert_eq!(under.plugins.len(), 1);
        assert_eq!(serde_json::to_string(&under).unwrap(), text);
    }

    #[test]
    fn metrics_count_what_a_local_provider_transforms_under_its_prefix() {
        let local = |text: &str| Writer::from(text.to_owned()).local().cloned().unwrap();
        assert_eq!(local("aescbc:key2").words().as_deref(), Some("aescbc v1 key2"));
        assert!(local("aescbc:key2").is_counted_as("k8s:enc:aescbc:v1:") && !local("aescbc:key2").is_counted_as(""));
        assert!(local("identity:").is_counted_as("") && !local("identity:").is_counted_as("k8s:enc:aescbc:v1:"));
        assert!(is_inner_prefix("key2:") && !is_inner_prefix(""));
        assert!(local("identity:").is_counted_as("identity"), "how reads in clear are counted");
        assert!(!is_inner_prefix("identity"));
        assert_eq!(Writer::from("identity:".to_owned()).to_string(), "identity");
    }
}
