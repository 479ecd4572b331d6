//! Looking for leftovers in etcd, by `key_id` and without a key.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::etcd::{Before, Change, ClusterId, EtcdCluster, EtcdClusters, Stored};
use crate::rotation::claim::Claim;
use crate::rotation::error::RotationError;
use crate::rotation::keys::group::Groups;
use crate::rotation::leftovers::beside::{Beside, top_folder};
use crate::rotation::leftovers::judge::{Expected, Judge, Place};

pub use super::scanned_cluster::ScannedCluster;

/// How many leftovers are named; the rest are counted.
const NAMED: usize = 1_000;

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

    /// Counts one value.
    fn count(&mut self, key: &str, place: Place, how: &Stored, words: String, left: bool) {
        self.groups.count(how, left);
        *self.under.entry(place.label.clone()).or_default().entry(key_of(how)).or_default() += 1;
        if left {
            self.leftovers += 1;
            self.expiring += u64::from(place.expires);
            self.name(key, &words);
        }
        // No API leads to it, so that no rewrite reaches it; the verdict says how it is removed.
        if left && !place.is_served {
            *self.orphans.entry(place.label.clone()).or_default() += 1;
        }
        *self.stored.entry(place.label).or_default().entry(words).or_default() += 1;
    }

    /// Takes a change of one value in one cluster into account, where neither what was stored nor what is stored now is a
    /// leftover. `false` where it is, or where that is not known.
    #[must_use]
    fn apply(&mut self, cluster: usize, change: &Change, prefix: &str, judge: &mut Judge<'_>) -> bool {
        let key = change.key.strip_prefix(prefix).unwrap_or(&change.key);
        let mut clean = |stored: &Stored| {
            let place = judge.place(key);
            let (words, left) = judge.judge(&place, stored);
            (!left).then_some((place, words))
        };
        let cluster = &mut self.clusters[cluster];
        match &change.before {
            Before::Compacted => return false,
            Before::Absent => {}
            Before::Value(stored) => {
                let Some((place, words)) = clean(stored) else { return false };
                let of_place = |counted: &mut BTreeMap<String, BTreeMap<String, u64>>, how: &str| {
                    counted.get_mut(&place.label).is_some_and(|counted| take_one(counted, how))
                };
                let is_known = of_place(&mut self.under, &key_of(stored)) & of_place(&mut self.stored, &words);
                if !is_known || !self.groups.take_one(stored) {
                    return false;
                }
                cluster.keys = cluster.keys.saturating_sub(1);
            }
        }
        let Some(stored) = &change.now else { return true };
        let Some((place, words)) = clean(stored) else { return false };
        cluster.newest = cluster.newest.max(change.revision);
        cluster.keys += 1;
        self.count(&change.key, place, stored, words, false);
        true
    }

    /// Counts encrypted values of other API servers.
    async fn look_beside(
        &mut self,
        cluster: &EtcdCluster,
        prefix: &str,
        judge: &Judge<'_>,
    ) -> Result<(), RotationError> {
        let is_read = cluster
            .scan_beside(prefix, |record| {
                let stored = Stored::of(&record.value);
                if stored != Stored::Plain {
                    let left = judge.is_left_beside(&stored);
                    self.groups.count(&stored, left);
                    if left {
                        self.leftovers += 1;
                        self.beside.left += 1;
                        self.name(&String::from_utf8_lossy(&record.key), "another API server's");
                    }
                    *self.beside.values.entry(top_folder(&record.key)).or_default() += 1;
                }
            })
            .await?;
        self.beside.is_unread |= !is_read;
        Ok(())
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
                let (words, left) = judge.judge(&place, &how);
                scan.count(key, place, &how, words, left);
            })
            .await?;
        scan.look_beside(cluster, &prefix, &judge).await?;
        scan.looked_at += scanned.keys;
        scan.clusters.push(ScannedCluster {
            id: cluster.id,
            endpoints: cluster.endpoints().map(Into::into).collect(),
            revision: scanned.revision,
            from_revision: scanned.from_revision,
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

/// Brings a search that found no leftover up to now, by every change since. `None` where that does not tell everything, and
/// all must be looked at again: something was stored that is a leftover, changes are compacted, a cluster may say too early that
/// it has sent them all, or there are values of other API servers.
///
/// # Errors
/// If etcd does not answer.
pub async fn scan_changes(
    etcd: &EtcdClusters,
    prefix: &str,
    expected: &Expected,
    earlier: &Scan,
) -> Result<Option<Scan>, RotationError> {
    let is_same = etcd.clusters.iter().map(|one| one.id).eq(earlier.clusters.iter().map(|one| one.id));
    if earlier.method != Method::Etcd || earlier.leftovers > 0 || !earlier.beside.values.is_empty() || !is_same {
        return Ok(None);
    }
    let (mut scan, mut judge, prefix) = (earlier.clone(), Judge::new(expected), slashed(prefix));
    scan.beside = Beside::default();
    for (at, cluster) in etcd.clusters.iter().enumerate() {
        let (after, to) = (earlier.clusters[at].from_revision, cluster.revision().await?);
        // What was read at two revisions is the state of no moment.
        if after != earlier.clusters[at].revision || to < after || !cluster.tells_progress().await {
            return Ok(None);
        }
        let mut is_told = true;
        let each = |change: &Change| is_told &= scan.apply(at, change, &prefix, &mut judge);
        if !cluster.changes(&prefix, after, to, each).await? || !is_told {
            return Ok(None);
        }
        (scan.clusters[at].from_revision, scan.clusters[at].revision) = (to, to);
        // The sums must be what etcd itself counts.
        if cluster.count_at(&prefix, to).await? != Some(scan.clusters[at].keys) {
            return Ok(None);
        }
        scan.look_beside(cluster, &prefix, &judge).await?;
    }
    for counted in [&mut scan.stored, &mut scan.under] {
        counted.retain(|_, values| !values.is_empty());
    }
    scan.looked_at = scan.clusters.iter().map(|cluster| cluster.keys).sum();
    scan.revision = scan.clusters.first().map(|cluster| cluster.revision);
    // A leftover beside the prefix.
    Ok(Some(scan).filter(|scan| scan.leftovers == 0))
}

/// What a value names as its key.
fn key_of(stored: &Stored) -> String {
    match stored {
        Stored::KmsV2 { provider, key_id, .. } => format!("{provider} {key_id}"),
        Stored::Otherwise(words) => words.clone(),
        Stored::Plain => "in clear".into(),
    }
}

/// Takes one off a sum; `false` where there is none.
fn take_one(counted: &mut BTreeMap<String, u64>, how: &str) -> bool {
    let Some(values) = counted.get_mut(how).filter(|values| **values > 0) else { return false };
    *values -= 1;
    if *values == 0 {
        counted.remove(how);
    }
    true
}

/// The API servers' prefix with one slash at its end.
pub fn slashed(prefix: &str) -> String {
    format!("{}/", prefix.trim_end_matches('/'))
}
