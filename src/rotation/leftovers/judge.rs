//! What counts as a leftover: everything that is not stored as the EncryptionConfiguration and the target keys want it.

use std::collections::{BTreeMap, HashMap};

use crate::encryption_config::{ProviderName, matches};
use crate::etcd::Stored;
use crate::rotation::cluster::key_id_hash::KeyIdHash;
use crate::rotation::cluster::resources::Resource;
use crate::rotation::cluster::writer::{LocalWriter, Writer};
use crate::rotation::leftovers::layout::{Folders, folder_of, is_internal, possible_resources};

/// What everything is to be stored under.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Expected {
    /// Every encrypted resource, and who writes it.
    pub resources: Vec<(Resource, Writer)>,
    /// Provider → hash of the `key_id`.
    pub targets: BTreeMap<ProviderName, KeyIdHash>,
    /// Everything that the API serves and stores, encrypted or not.
    pub served: Vec<Resource>,
    /// The patterns of the configuration, each with whether what it names is to be encrypted.
    pub patterns: Vec<(String, bool)>,
}

/// Whether a folder that the API does not serve holds what the configuration wants encrypted.
fn expected_in(patterns: &[(String, bool)], folder: &str) -> bool {
    let first = |plural: &str, group: &str| patterns.iter().find(|(pattern, _)| matches(pattern, plural, group));
    possible_resources(folder).iter().any(|(plural, group)| first(plural, group).is_some_and(|(_, writes)| *writes))
}

/// Tells for each value whether it is a leftover.
pub(super) struct Judge<'a> {
    expected: &'a Expected,
    folders: Folders<'a>,
    /// Name of a resource → who writes it.
    writers: HashMap<String, Writer>,
    hashes: HashMap<String, KeyIdHash>,
}

/// What a key belongs to.
#[derive(Debug)]
pub(super) struct Place {
    /// The resource's name, or the folder if the API serves no such resource.
    pub(super) label: String,
    pub(super) is_served: bool,
    /// Whether the object expires by itself.
    pub(super) expires: bool,
    /// Whether it is to be encrypted.
    is_covered: bool,
}

impl<'a> Judge<'a> {
    pub(super) fn new(expected: &'a Expected) -> Self {
        let all = || expected.resources.iter();
        Self {
            expected,
            folders: Folders::of(expected.served.iter().chain(all().map(|(resource, _)| resource))),
            writers: all().map(|(resource, writer)| (resource.to_string(), writer.clone())).collect(),
            hashes: HashMap::new(),
        }
    }

    pub(super) fn place(&self, key: &str) -> Place {
        if let Some(resource) = self.folders.resource(key) {
            let label = resource.to_string();
            let is_covered = self.writers.contains_key(&label);
            return Place { label, is_served: true, expires: resource.is_event(), is_covered };
        }
        let folder = folder_of(key);
        let is_covered = expected_in(&self.expected.patterns, folder);
        Place { label: folder.into(), is_served: is_internal(folder), expires: false, is_covered }
    }

    /// Whether another API server's value is under another key than its provider's target. Those of local providers are
    /// none of our business.
    pub(super) fn is_left_beside(&self, stored: &Stored) -> bool {
        let Stored::KmsV2 { provider, key_id, .. } = stored else { return false };
        self.expected.targets.get(provider) != Some(&KeyIdHash::of(key_id))
    }

    pub(super) fn judge(&mut self, place: &Place, stored: &Stored) -> (String, bool) {
        let writer = self.writers.get(&place.label);
        let local = writer.and_then(Writer::local);
        match stored {
            Stored::Plain => {
                let is_wanted = local == Some(&LocalWriter::Clear);
                let left = place.is_covered && !is_wanted;
                (if left { "in clear" } else { "in clear, as configured" }.into(), left)
            }
            // Whatever key it is, it must stay readable as long as this value exists.
            Stored::Otherwise(words) => (words.clone(), local.and_then(LocalWriter::words).as_ref() != Some(words)),
            Stored::KmsV2 { provider: by, key_id, .. } => {
                let hash = self.hashes.entry(key_id.clone()).or_insert_with(|| KeyIdHash::of(key_id));
                // A resource that nobody encrypts any more still needs the key that it was stored under.
                let is_of_writer = writer.is_none_or(|writer| writer.plugin() == Some(by));
                let is_current = is_of_writer && self.expected.targets.get(by) == Some(hash);
                (format!("{by} {key_id}"), !is_current)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(plural: &str, group: &str) -> Resource {
        Resource { group: group.into(), version: "v1".into(), plural: plural.into(), namespaced: true }
    }

    fn kms(provider: &str, key_id: &str) -> Stored {
        Stored::KmsV2 { provider: provider.into(), key_id: key_id.into(), keks: Vec::new() }
    }

    fn expected() -> Expected {
        Expected {
            resources: [resource("secrets", ""), resource("widgets", "example.com")]
                .map(|resource| (resource, Writer::Plugin("p".into())))
                .into(),
            targets: [("p".into(), KeyIdHash::of("new"))].into(),
            served: vec![resource("configmaps", "")],
            patterns: vec![("*.gone.example.com".into(), true), ("*.clear.example.com".into(), false)],
        }
    }

    #[test]
    fn everything_but_the_target_key_is_a_leftover() {
        let expected = expected();
        let mut judge = Judge::new(&expected);
        let mut left = |key: &str, stored: Stored| {
            let place = judge.place(key);
            judge.judge(&place, &stored).1
        };
        assert!(!left("secrets/default/a", kms("p", "new")));
        assert!(left("secrets/default/a", kms("p", "old")));
        assert!(left("secrets/default/a", kms("q", "new")));
        assert!(left("secrets/default/a", Stored::Plain));
        assert!(left("secrets/default/a", Stored::Otherwise("aescbc v1 k".into())));
        assert!(left("example.com/widgets/default/a", kms("p", "old")));
        assert!(!left("configmaps/default/a", Stored::Plain), "not encrypted, by configuration");
        assert!(left("configmaps/default/a", kms("p", "old")), "no longer encrypted, and needs the old key");
        assert!(left("configmaps/default/a", Stored::Otherwise("aescbc v1 k".into())), "needs the key of aescbc");
    }

    #[test]
    fn a_value_in_clear_that_is_not_to_be_encrypted_says_so() {
        let expected = expected();
        let mut judge = Judge::new(&expected);
        let mut words = |key: &str| {
            let place = judge.place(key);
            judge.judge(&place, &Stored::Plain).0
        };
        assert_eq!(words("secrets/default/a"), "in clear");
        assert_eq!(words("configmaps/default/a"), "in clear, as configured");
    }

    #[test]
    fn where_a_plugin_is_left_what_it_stored_is_the_leftover() {
        let left = |writer: &str, stored: Stored| {
            let expected = Expected {
                resources: vec![(resource("secrets", ""), writer.to_owned().into())],
                ..Expected::default()
            };
            let mut judge = Judge::new(&expected);
            let place = judge.place("secrets/default/a");
            judge.judge(&place, &stored).1
        };
        assert!(!left("identity:", Stored::Plain));
        assert!(left("identity:", kms("p", "new")));
        assert!(left("identity:", Stored::Otherwise("aescbc v1 key1".into())));
        assert!(!left("aescbc:key2", Stored::Otherwise("aescbc v1 key2".into())));
        assert!(left("aescbc:key2", Stored::Otherwise("aescbc v1 key1".into())));
        assert!(left("aescbc:key2", Stored::Plain));
        assert!(left("aescbc:key2", kms("p", "new")));
    }

    #[test]
    fn what_api_servers_keep_for_themselves_in_clear_is_not_a_leftover() {
        let expected = Expected { patterns: vec![("*.*".into(), true)], ..expected() };
        let mut judge = Judge::new(&expected);
        for key in ["masterleases/10.0.0.1", "peerserverleases/apiserver-a", "ranges/servicenodeports"] {
            let place = judge.place(key);
            assert!(!judge.judge(&place, &Stored::Plain).1, "{key}");
            assert!(judge.judge(&place, &kms("p", "old")).1, "{key}");
        }
        let place = judge.place("podsecuritypolicy/a");
        assert!(judge.judge(&place, &Stored::Plain).1);
    }

    #[test]
    fn what_no_api_serves_is_judged_by_the_patterns_of_the_configuration() {
        let expected = expected();
        let mut judge = Judge::new(&expected);
        let mut left = |key: &str, stored: Stored| {
            let place = judge.place(key);
            assert!(!place.is_served);
            judge.judge(&place, &stored).1
        };
        assert!(left("gone.example.com/widgets/default/a", Stored::Plain));
        assert!(!left("clear.example.com/widgets/default/a", Stored::Plain));
        assert!(!left("other.example.com/widgets/default/a", Stored::Plain));
        assert!(left("other.example.com/widgets/default/a", kms("p", "old")));
        assert!(!left("other.example.com/widgets/default/a", kms("p", "new")));
    }
}
