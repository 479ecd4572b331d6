//! [`KeyName`]: a key that stored values need, under the one name that every table, verdict and file uses for it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::encryption_config::ProviderName;
use crate::etcd::Stored;
use crate::kek::{KekVersion, Lineage};
use crate::rotation::cluster::key_id_hash::KeyIdHash;

/// A key that stored values need to be opened.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum KeyName {
    /// One version of a KEK of kube-envelope.
    #[serde(rename_all = "camelCase")]
    Kek {
        /// The KEK's lineage, in hex.
        lineage: String,
        /// The vendor's own text for the version.
        version: String,
    },
    /// Every version of a KEK of kube-envelope.
    AnyVersion {
        /// The KEK's lineage, in hex.
        lineage: String,
    },
    /// A key of another KMS v2 plugin.
    #[serde(rename_all = "camelCase")]
    KeyId {
        /// The provider in the EncryptionConfiguration.
        provider: ProviderName,
        /// The plugin's name for the key.
        key_id: String,
    },
    /// A generation of kube-envelope: DEKs that are out of use although their KEK versions are still in use, after a raised
    /// `epoch` for example.
    #[serde(rename_all = "camelCase")]
    Generation {
        /// The provider in the EncryptionConfiguration.
        provider: ProviderName,
        /// The generation's `key_id`.
        key_id: String,
    },
    /// A key of a KMS v2 plugin of which an API server's metrics show only the hash.
    #[serde(rename_all = "camelCase")]
    KeyIdHash {
        /// The provider in the EncryptionConfiguration.
        provider: ProviderName,
        /// Hash of the `key_id`, as metrics show it.
        hash: KeyIdHash,
    },
    /// A key that the API server holds itself, or that of a KMS v1 plugin: the words of the prefix in etcd.
    Prefix(String),
    /// No key: stored in clear.
    Clear,
}

impl KeyName {
    /// The name of one version of a KEK.
    pub fn kek(version: &KekVersion) -> Self {
        Self::Kek { lineage: version.lineage.to_string(), version: version.version.clone() }
    }

    /// Whether it names something that can be disabled at a key store.
    pub fn can_be_disabled(&self) -> bool {
        !matches!(self, Self::Clear | Self::Generation { .. })
    }

    /// Whether both are one key at its vendor by two names of the KEK: an alias and an ARN, two paths to one mount, two host
    /// names of one vault.
    ///
    /// The vendor's text for a version decides. AWS KMS disables a key with all its materials, which follow a slash; every
    /// other vendor disables a version alone. Two keys that have one text by chance are taken for one: that only keeps
    /// a key.
    pub(in crate::rotation) fn is_same_key_by_another_name(&self, other: &Self) -> bool {
        let (Self::Kek { lineage, version }, Self::Kek { lineage: of, version: text }) = (self, other) else {
            return false;
        };
        // AWS writes KEY-ID/MATERIAL, and can disable only the whole key, whichever material wrapped.
        let disabled_with = |version: &str| version.split('/').next().map(str::to_owned);
        lineage != of && disabled_with(version) == disabled_with(text)
    }

    /// The KEK version that this names, if it names one.
    pub fn kek_version(&self) -> Option<KekVersion> {
        let Self::Kek { lineage, version } = self else { return None };
        let lineage = hex::decode(lineage).ok()?.try_into().ok()?;
        Some(KekVersion { lineage: Lineage(lineage), version: version.clone() })
    }

    /// The keys that a value was stored under. For a value of kube-envelope any one of them opens it.
    pub fn of(stored: &Stored) -> BTreeSet<Self> {
        match stored {
            // Not the key_id: it names a generation, and no key store knows that name.
            Stored::KmsV2 { keks, .. } if !keks.is_empty() => keks.iter().map(Self::kek).collect(),
            Stored::KmsV2 { provider, key_id, .. } => {
                [Self::KeyId { provider: provider.clone(), key_id: key_id.clone() }].into()
            }
            Stored::Otherwise(words) => [Self::Prefix(words.clone())].into(),
            Stored::Plain => [Self::Clear].into(),
        }
    }
}

/// What is known about keys beyond the values themselves, to name them for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyNames {
    /// Lineage in hex → how the plugin's configuration calls the KEK.
    keks: BTreeMap<String, String>,
    /// Hash → the `key_id` that has it.
    key_ids: BTreeMap<KeyIdHash, String>,
    /// Entry under `takeover` → the KEK with the same key, where the configuration shows one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    takeovers: BTreeMap<String, Option<String>>,
}

impl KeyNames {
    /// Adds a KEK.
    pub fn insert(&mut self, lineage: Lineage, name: &str) {
        self.keks.insert(lineage.to_string(), name.to_owned());
    }

    /// Adds an entry under `takeover`, after all KEKs.
    pub fn insert_takeover(&mut self, name: &str, lineage: Lineage) {
        let kek = self.keks.get(&lineage.to_string()).cloned();
        self.takeovers.insert(name.to_owned(), kek);
    }

    /// The names of the entries under `takeover`.
    pub fn takeovers(&self) -> impl Iterator<Item = &str> {
        self.takeovers.keys().map(String::as_str)
    }

    /// The KEK whose key another plugin used as well.
    pub fn taken_over_kek(&self) -> Option<&str> {
        self.takeovers.values().flatten().next().map(String::as_str)
    }

    /// Adds a `key_id` whose hash metrics may show.
    pub fn insert_key_id(&mut self, key_id: &str) {
        self.key_ids.insert(KeyIdHash::of(key_id), key_id.to_owned());
    }

    /// Whether the configuration has a KEK of this lineage.
    pub fn knows(&self, lineage: &str) -> bool {
        self.keks.contains_key(lineage)
    }

    /// The lineage of the KEK that the configuration calls `name`.
    pub fn lineage(&self, name: &str) -> Option<&str> {
        self.keks.iter().find(|(_, known)| *known == name).map(|(lineage, _)| lineage.as_str())
    }

    /// The name of a key for people.
    pub fn show(&self, key: &KeyName) -> String {
        match key {
            KeyName::Kek { lineage, version } => format!("{} version {version}", self.show_kek(lineage)),
            KeyName::AnyVersion { lineage } => format!("{}, any version", self.show_kek(lineage)),
            KeyName::KeyId { provider, key_id } => format!("key_id {key_id} of provider {provider}"),
            KeyName::Generation { provider, key_id } => format!("generation {key_id} of provider {provider}"),
            KeyName::KeyIdHash { provider, hash } => match self.key_ids.get(hash) {
                Some(key_id) => format!("key_id {key_id} of provider {provider}"),
                None => format!("the key_id with hash {hash} of provider {provider}"),
            },
            KeyName::Prefix(words) => format!("provider {words}"),
            KeyName::Clear => "in clear".into(),
        }
    }

    fn show_kek(&self, lineage: &str) -> String {
        match self.keks.get(lineage) {
            Some(name) => format!("KEK {name}"),
            None => format!("KEK {lineage} (not in the given configuration)"),
        }
    }

    /// The names of several keys, in one phrase.
    pub fn show_all<'a>(&self, keys: impl IntoIterator<Item = &'a KeyName>) -> String {
        keys.into_iter().map(|key| self.show(key)).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_key_by_two_names_is_told_by_the_vendors_own_text_and_an_aws_key_by_its_id() {
        let kek = |lineage: &str, version: &str| KeyName::Kek { lineage: lineage.into(), version: version.into() };
        assert!(kek("a", "1234/m1").is_same_key_by_another_name(&kek("b", "1234/m2")), "an alias and an ARN");
        assert!(kek("a", "1@17").is_same_key_by_another_name(&kek("b", "1@17")));
        for (one, other) in [("1@17", "2@17"), ("1234/m1", "5678/m1")] {
            assert!(!kek("a", one).is_same_key_by_another_name(&kek("b", other)));
        }
        assert!(!kek("a", "1").is_same_key_by_another_name(&kek("a", "1")), "it is the very same");
    }

    #[test]
    fn a_value_of_ours_is_named_by_its_kek_versions_and_another_plugins_by_its_key_id() {
        let version = |home: &str| KekVersion { lineage: Lineage::derive("t", &[home]), version: "3".into() };
        let stored = |keks| Stored::KmsV2 { provider: "p".into(), key_id: "k".into(), keks };
        let mut names = KeyNames::default();
        names.insert(version("a").lineage, "primary");
        let ours = KeyName::of(&stored(vec![version("a")]));
        assert_eq!(names.show_all(&ours), "KEK primary version 3");
        assert_eq!(names.lineage("primary"), Some(version("a").lineage.to_string().as_str()));
        let other = KeyName::of(&stored(vec![version("b")]));
        assert!(names.show_all(&other).contains("not in the given configuration"));
        assert_eq!(names.show_all(&KeyName::of(&stored(Vec::new()))), "key_id k of provider p");
    }
}
