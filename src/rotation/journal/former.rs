//! Which keys went out of use, and which are the target: what a verdict is about.

use std::collections::BTreeSet;

use super::Journal;
use crate::encryption_config::ProviderName;
use crate::rotation::cluster::key_id_hash::KeyIdHash;
use crate::rotation::keys::group::Group;
use crate::rotation::keys::name::KeyName;

impl Journal {
    /// The name of the key of a provider whose `key_id` has this hash.
    pub(crate) fn key_name(&self, provider: &ProviderName, hash: &KeyIdHash) -> String {
        let key_id = KeyName::KeyIdHash { provider: provider.clone(), hash: hash.clone() };
        let key_id = self.names.show(&key_id);
        if self.targets.key(provider) == Some(hash)
            && self.own_provider.as_ref() == Some(provider)
            && !self.target_keys.is_empty()
        {
            return format!("{} ({key_id})", self.names.show_all(&self.target_keys));
        }
        key_id
    }

    /// Whether values under this key are where they should be.
    pub(crate) fn is_target(&self, key: &KeyName) -> bool {
        match key {
            KeyName::KeyId { provider, key_id } | KeyName::Generation { provider, key_id } => {
                self.targets.key(provider) == Some(&KeyIdHash::of(key_id))
            }
            KeyName::KeyIdHash { provider, hash } => self.targets.key(provider) == Some(hash),
            KeyName::AnyVersion { lineage } => {
                let of = |key: &KeyName| matches!(key, KeyName::Kek { lineage: own, .. } if own == lineage);
                self.target_keys.iter().any(of)
            }
            KeyName::Kek { .. } | KeyName::Prefix(_) | KeyName::Clear => self.target_keys.contains(key),
        }
    }

    /// The keys that were in use, and that nothing needs any more: what a verdict is about.
    pub fn former_keys(&self) -> BTreeSet<KeyName> {
        let needed = |key: &KeyName| self.verified.as_ref().is_some_and(|scan| scan.groups.needing(key) > 0);
        let mut former: BTreeSet<_> =
            self.keys_seen.iter().filter(|key| !needed(key) && !self.is_target(key)).cloned().collect();
        former.retain(|key| self.same_key_in_use(key).is_none());
        // Where a KEK version went out of use, so did every generation with it.
        if former.iter().any(KeyName::can_be_disabled) {
            former.retain(|key| !matches!(key, KeyName::Generation { .. }));
        }
        former.retain(|key| self.is_under_the_target_keks(key));
        former
    }

    /// A version in use that is this one by another name of its KEK.
    pub(crate) fn same_key_in_use(&self, key: &KeyName) -> Option<KeyName> {
        let stored = self.verified.iter().flat_map(|scan| scan.groups.keys());
        let mut in_use = self.target_keys.iter().cloned().chain(stored);
        in_use.find(|other| key.is_same_key_by_another_name(other))
    }

    /// Whether a key is that of a plugin that served our provider before: kube-envelope writes there now.
    pub fn is_taken_over(&self, key: &KeyName) -> bool {
        let KeyName::KeyId { provider, .. } = key else { return false };
        let ours = |group: &Group| group.keys.iter().any(|key| matches!(key, KeyName::Kek { .. }));
        let by = |group: &Group| group.key_id.as_ref().is_some_and(|(by, _)| by == provider);
        let surveys = self.verified.iter().chain(&self.first_survey);
        let is_seen = surveys.flat_map(|scan| scan.groups.iter()).any(|group| ours(group) && by(group));
        self.own_provider.as_ref() == Some(provider) || is_seen
    }

    /// Whether a generation was wrapped by the KEK versions of the target: then `epoch` was raised. Where KEKs were added,
    /// another generation went out of use as well, and with it no key that anybody could disable.
    fn is_under_the_target_keks(&self, key: &KeyName) -> bool {
        let KeyName::Generation { provider, key_id } = key else { return true };
        let of = |key: &&KeyName| matches!(key, KeyName::Kek { .. });
        let target: BTreeSet<&KeyName> = self.target_keys.iter().filter(of).collect();
        let mut groups = self.first_survey.iter().flat_map(|scan| scan.groups.iter());
        groups
            .find(|group| group.key_id.as_ref().is_some_and(|(one, other)| one == provider && other == key_id))
            .is_none_or(|group| group.keys.iter().filter(of).collect::<BTreeSet<_>>() == target)
    }
}
