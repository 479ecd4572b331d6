//! Values that were stored and superseded between two searches: no search of the present sees them, while an old revision
//! and a snapshot of etcd from in between still hold them.

use std::collections::BTreeMap;

use crate::etcd::{ClusterId, EtcdClusters};
use crate::rotation::claim::{Claim, Until, Witness};
use crate::rotation::error::RotationError;
use crate::rotation::leftovers::judge::{Expected, Judge};
use crate::rotation::leftovers::scan::{Scan, slashed};

/// What was stored between two searches.
#[derive(Clone, Debug, Default)]
pub struct Superseded {
    /// How many values.
    pub values: u64,
    /// The first and the last revision that were looked through, for each etcd cluster.
    pub spans: BTreeMap<ClusterId, (i64, i64)>,
    /// Those that were stored under another key than the target: etcd key → how. The first ten.
    pub named: BTreeMap<String, String>,
    /// How many they are.
    pub leftovers: u64,
}

/// The most leftovers that are named.
const NAMED: usize = 10;

/// Looks through everything that was stored between the revisions `from` and those of `scan`.
///
/// # Errors
/// If etcd answers with an error, or a cluster was not searched before.
pub async fn superseded(
    etcd: &EtcdClusters,
    prefix: &str,
    expected: &Expected,
    from: &BTreeMap<ClusterId, i64>,
    scan: &Scan,
) -> Result<Superseded, RotationError> {
    let (prefix, mut judge, mut found) = (slashed(prefix), Judge::new(expected), Superseded::default());
    for searched in &scan.clusters {
        let cluster = etcd.clusters.iter().find(|cluster| cluster.id == searched.id);
        // Nothing is known of what it held before, so nothing follows from what it holds now.
        let (Some(cluster), Some(after)) = (cluster, from.get(&searched.id)) else {
            return Err(RotationError::Paused(format!(
                "etcd cluster {} was missing at the first search: resume once every etcd cluster answers",
                searched.id
            )));
        };
        let looked = cluster
            .history(&prefix, *after, searched.revision, searched.newest, |change| {
                let Some(stored) = &change.now else { return };
                let place = judge.place(change.key.strip_prefix(&prefix).unwrap_or(&change.key));
                let (how, left) = judge.judge(&place, stored);
                if left {
                    found.leftovers += 1;
                    if found.named.len() < NAMED {
                        found.named.insert(change.key.clone(), how);
                    }
                }
            })
            .await?;
        found.values += looked.values;
        found.spans.insert(searched.id, (looked.from, looked.to));
    }
    Ok(found)
}

impl Superseded {
    /// What it shows where nothing was found.
    pub fn claim(&self) -> Claim {
        let span = |(cluster, (from, to)): (&ClusterId, &(i64, i64))| format!("{cluster} revisions {from} to {to}");
        let spans: Vec<String> = self.spans.iter().map(span).collect();
        let what = format!(
            "{} value(s) were stored since the first search, superseded ones included, all under the target key: etcd \
             cluster {}",
            self.values,
            spans.join(", ")
        );
        let revisions = self.spans.iter().map(|(cluster, (_, to))| (cluster.to_string(), *to)).collect();
        Claim::shown(Witness::Etcd, what).until(Until::EtcdIsRestored).up_to(revisions)
    }
}
