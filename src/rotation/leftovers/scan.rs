//! What counts as a leftover, and looking for them in etcd, by `key_id` and without a key.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use crate::encryption_config::{ProviderName, matches};
use crate::etcd::{ClusterId, EtcdClusters, Stored};
use crate::rotation::claim::Claim;
use crate::rotation::cluster::key_id_hash::KeyIdHash;
use crate::rotation::cluster::resources::Resource;
use crate::rotation::cluster::writer::{LocalWriter, Writer};
use crate::rotation::error::RotationError;
use crate::rotation::keys::group::Groups;
use crate::rotation::leftovers::beside::{Beside, top_folder};
use crate::rotation::leftovers::layout::{Folders, folder_of, is_internal, possible_resources};

pub use super::scanned_cluster::ScannedCluster;

/// How many leftovers are named; the rest are counted.
const NAMED: usize = 1_000;

/// What everything is to be stored under.
#[derive(Clone, Debug, Default)]
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

/// How leftovers were looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Method {
    /// Every value in etcd was looked at.
    Etcd,
    /// Every object was read through one API server, whose metrics tell under which keys.
    Reads,
}

/// What a search for leftovers found.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Scan {
    /// How it was looked for.
    pub method: Method,
    /// etcd's revision that was looked at, in the first cluster.
    pub revision: Option<i64>,
    /// The etcd clusters that were looked at.
    #[serde(default)]
    pub clusters: Vec<ScannedCluster>,
    /// Whether these clusters are the cluster's own, and hold everything that the API serves.
    #[serde(default)]
    pub whole: Option<Claim>,
    /// Leftovers that no API serves, so that none can be rewritten: folder in etcd → how many.
    #[serde(default)]
    pub orphans: BTreeMap<String, u64>,
    /// How many values or objects.
    pub looked_at: u64,
    /// Resource → how stored → how many.
    pub stored: BTreeMap<String, BTreeMap<String, u64>>,
    /// Resource → provider and `key_id`, or the words of the prefix → how many; of etcd alone.
    #[serde(default)]
    pub under: BTreeMap<String, BTreeMap<String, u64>>,
    /// The same by the keys that the values need.
    #[serde(default)]
    pub groups: Groups,
    /// How many leftovers.
    pub leftovers: u64,
    /// How many of them are Events, which expire by themselves.
    pub expiring: u64,
    /// The leftovers by name: etcd key or path → how stored. The first thousand.
    pub named: BTreeMap<String, String>,
    /// Encrypted values of other API servers.
    #[serde(default)]
    pub beside: Beside,
}

impl Scan {
    /// Nothing found yet.
    pub fn new(method: Method) -> Self {
        Self {
            method,
            revision: None,
            clusters: Vec::new(),
            whole: None,
            orphans: BTreeMap::new(),
            looked_at: 0,
            stored: BTreeMap::new(),
            under: BTreeMap::new(),
            groups: Groups::default(),
            leftovers: 0,
            expiring: 0,
            named: BTreeMap::new(),
            beside: Beside::default(),
        }
    }

    /// The revision at which the search ended in each etcd cluster.
    pub fn revisions(&self) -> impl Iterator<Item = (ClusterId, i64)> {
        self.clusters.iter().map(|cluster| (cluster.id, cluster.revision))
    }

    /// What no API serves and so cannot be rewritten, one sentence for each folder.
    pub fn orphaned(&self, prefix: &str) -> impl Iterator<Item = String> {
        let prefix = slashed(prefix);
        self.orphans.iter().map(move |(folder, values)| {
            format!(
                "{values} value(s) in etcd under {prefix}{folder}/ are not stored under a target key, and no API server \
                 serves them: serve the resource again (for a custom resource: install its definition) and run again; \
                 or, if nobody needs them any more, take a snapshot and remove them: etcdctl del --prefix \
                 {prefix}{folder}/"
            )
        })
    }

    /// What keeps this search from being a proof, each with its remedy.
    pub fn gaps(&self, prefix: &str) -> Vec<String> {
        let gap = self.whole.as_ref().and_then(Claim::remedy).map(ToOwned::to_owned);
        self.orphaned(prefix).chain(self.beside.remedy()).chain(gap).collect()
    }

    /// Enters one leftover by name.
    pub fn name(&mut self, place: &str, stored: &str) {
        if self.named.len() < NAMED {
            self.named.insert(place.into(), stored.into());
        }
    }
}

/// Looks at every value under `prefix` in every cluster.
///
/// # Errors
/// If etcd does not answer, or holds nothing under the prefix.
pub async fn scan_clusters(etcd: &EtcdClusters, prefix: &str, expected: &Expected) -> Result<Scan, RotationError> {
    let mut scan = Scan::new(Method::Etcd);
    let mut judge = Judge::new(expected);
    let prefix = slashed(prefix);
    for cluster in &etcd.clusters {
        let mut newest = 0;
        let scanned = cluster
            .scan(&prefix, |key, value, stored_at| {
                newest = stored_at.max(newest);
                let place = judge.place(key.strip_prefix(&prefix).unwrap_or(key));
                let how = Stored::of(value);
                let (stored, left) = judge.judge(&place, &how);
                scan.groups.count(&how, left);
                *scan.under.entry(place.label.clone()).or_default().entry(key_of(&how)).or_default() += 1;
                if left {
                    scan.leftovers += 1;
                    scan.expiring += u64::from(place.expires);
                    scan.name(key, &stored);
                }
                // No API leads to it, so that no rewrite reaches it; the verdict says how it is removed.
                if left && !place.is_served {
                    *scan.orphans.entry(place.label.clone()).or_default() += 1;
                }
                *scan.stored.entry(place.label).or_default().entry(stored).or_default() += 1;
            })
            .await?;
        let is_read = cluster
            .scan_beside(&prefix, |record| {
                let stored = Stored::of(&record.value);
                if stored != Stored::Plain {
                    let left = judge.is_left_beside(&stored);
                    scan.groups.count(&stored, left);
                    if left {
                        scan.leftovers += 1;
                        scan.beside.left += 1;
                        scan.name(&String::from_utf8_lossy(&record.key), "another API server's");
                    }
                    *scan.beside.values.entry(top_folder(&record.key)).or_default() += 1;
                }
            })
            .await?;
        scan.beside.is_unread |= !is_read;
        scan.looked_at += scanned.keys;
        scan.clusters.push(ScannedCluster {
            id: cluster.id,
            endpoints: cluster.endpoints().map(Into::into).collect(),
            revision: scanned.revision,
            newest,
            keys: scanned.keys,
        });
    }
    // An empty search would be the cleanest one of all.
    if scan.looked_at == 0 {
        return Err(RotationError::Unusable(format!(
            "etcd holds nothing under {prefix}; name the API servers' --etcd-prefix with --etcd-prefix"
        )));
    }
    // Only for people; claims have the revision of each cluster.
    scan.revision = scan.clusters.first().map(|cluster| cluster.revision);
    Ok(scan)
}

/// What a value names as its key.
fn key_of(stored: &Stored) -> String {
    match stored {
        Stored::KmsV2 { provider, key_id, .. } => format!("{provider} {key_id}"),
        Stored::Otherwise(words) => words.clone(),
        Stored::Plain => "in clear".into(),
    }
}

/// The API servers' prefix with one slash at its end.
pub fn slashed(prefix: &str) -> String {
    format!("{}/", prefix.trim_end_matches('/'))
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
    is_served: bool,
    /// Whether the object expires by itself.
    expires: bool,
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
