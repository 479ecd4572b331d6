//! How many values are stored under the same keys: what a survey of the data counts.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::encryption_config::ProviderName;
use crate::etcd::Stored;
use crate::rotation::cluster::key_id_hash::KeyIdHash;
use crate::rotation::keys::name::KeyName;

/// Values that are stored under the same keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Group {
    /// The keys; for values of kube-envelope any one of them opens the value.
    pub keys: BTreeSet<KeyName>,
    /// The KMS v2 provider and the `key_id` that the values name, where they name one.
    pub key_id: Option<(ProviderName, String)>,
    /// How many values.
    pub values: u64,
    /// How many of them are leftovers.
    pub leftovers: u64,
}

impl Group {
    /// Whether values of this group need `key`. Clear text needs nothing, and counts only where it is a leftover.
    pub fn needs(&self, key: &KeyName) -> bool {
        match key {
            // Most of what is stored in clear is meant to be.
            KeyName::Clear => self.keys.contains(key) && self.leftovers > 0,
            KeyName::Kek { .. } | KeyName::Prefix(_) => self.keys.contains(key),
            KeyName::AnyVersion { lineage } => {
                self.keys.iter().any(|own| matches!(own, KeyName::Kek { lineage: of, .. } if of == lineage))
            }
            KeyName::KeyId { provider, key_id } | KeyName::Generation { provider, key_id } => {
                self.is_under(provider, &KeyIdHash::of(key_id))
            }
            KeyName::KeyIdHash { provider, hash } => self.is_under(provider, hash),
        }
    }

    fn is_under(&self, provider: &ProviderName, hash: &KeyIdHash) -> bool {
        let named = self.key_id.as_ref().is_some_and(|(by, key_id)| by == provider && KeyIdHash::of(key_id) == *hash);
        let hashed = KeyName::KeyIdHash { provider: provider.clone(), hash: hash.clone() };
        named || self.keys.contains(&hashed)
    }
}

/// The groups that a survey has met so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Groups(Vec<Group>);

impl Groups {
    /// Counts one value as etcd holds it.
    pub fn count(&mut self, stored: &Stored, leftover: bool) {
        self.add(KeyName::of(stored), key_id_of(stored), 1, u64::from(leftover));
    }

    /// Takes off one value that is not a leftover. `false` where none was counted.
    #[must_use]
    pub fn take_one(&mut self, stored: &Stored) -> bool {
        let (keys, key_id) = (KeyName::of(stored), key_id_of(stored));
        let own = |group: &Group| group.keys == keys && group.key_id == key_id && group.values > group.leftovers;
        let Some(at) = self.0.iter().position(own) else { return false };
        self.0[at].values -= 1;
        if self.0[at].values == 0 {
            self.0.remove(at);
        }
        true
    }

    /// Counts values of which one key is known.
    pub fn add_key(&mut self, key: KeyName, values: u64, leftovers: u64) {
        self.add([key].into(), None, values, leftovers);
    }

    fn add(&mut self, keys: BTreeSet<KeyName>, key_id: Option<(ProviderName, String)>, values: u64, leftovers: u64) {
        match self.0.iter_mut().find(|group| group.keys == keys && group.key_id == key_id) {
            Some(group) => {
                group.values += values;
                group.leftovers += leftovers;
            }
            None => self.0.push(Group { keys, key_id, values, leftovers }),
        }
    }

    /// Every group, in the order in which they were first met.
    pub fn iter(&self) -> impl Iterator<Item = &Group> {
        self.0.iter()
    }

    /// How many values need this key.
    pub fn needing(&self, key: &KeyName) -> u64 {
        self.iter().filter(|group| group.needs(key)).map(|group| group.values).sum()
    }

    /// Every key that some value needs.
    pub fn keys(&self) -> BTreeSet<KeyName> {
        let all: BTreeSet<_> = self.iter().flat_map(|group| group.keys.iter().cloned()).collect();
        all.into_iter().filter(|key| self.needing(key) > 0).collect()
    }
}

fn key_id_of(stored: &Stored) -> Option<(ProviderName, String)> {
    match stored {
        Stored::KmsV2 { provider, key_id, .. } => Some((provider.clone(), key_id.clone())),
        Stored::Otherwise(_) | Stored::Plain => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kek::{KekVersion, Lineage};

    #[test]
    fn a_value_is_counted_under_every_name_of_its_key() {
        let version = KekVersion { lineage: Lineage::derive("t", &["a"]), version: "3".into() };
        let stored = Stored::KmsV2 { provider: "p".into(), key_id: "k".into(), keks: vec![version.clone()] };
        let mut groups = Groups::default();
        groups.count(&stored, false);
        groups.count(&stored, true);
        let lineage = version.lineage.to_string();
        let names = [
            KeyName::kek(&version),
            KeyName::AnyVersion { lineage: lineage.clone() },
            KeyName::KeyId { provider: "p".into(), key_id: "k".into() },
            KeyName::KeyIdHash { provider: "p".into(), hash: KeyIdHash::of("k") },
        ];
        assert_eq!(names.map(|name| groups.needing(&name)), [2; 4]);
        assert_eq!(groups.needing(&KeyName::Kek { lineage, version: "2".into() }), 0);
        assert_eq!(groups.keys(), [KeyName::kek(&version)].into());
    }

    #[test]
    fn clear_text_counts_only_where_it_should_be_encrypted() {
        let mut groups = Groups::default();
        groups.count(&Stored::Plain, false);
        assert_eq!(groups.keys(), BTreeSet::new());
        groups.count(&Stored::Plain, true);
        assert_eq!(groups.keys(), [KeyName::Clear].into());
    }
}
