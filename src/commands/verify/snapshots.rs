//! Snapshots of etcd that were named: what each holds, and what etcd still holds of the past.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use crate::cli::etcd::EtcdArgs;
use crate::commands::rotation_access::etcd_of;
use crate::etcd::EtcdClusters;
use crate::rotation::cluster::Cluster;
use crate::rotation::cluster::writer::StoredUnder;
use crate::rotation::error::RotationError;
use crate::rotation::keys::usage::Held;
use crate::rotation::leftovers::history::superseded;
use crate::rotation::leftovers::scan::{Scan, slashed};
use crate::rotation::leftovers::snapshots::{SnapshotKeys, ThisCluster};
use crate::rotation::run::plan::Encrypted;

/// Snapshots by the names of their files.
#[derive(Default)]
pub(super) struct Snapshots {
    /// What each holds.
    pub(super) held: BTreeMap<String, Held>,
    /// Those that nothing shows to be of this cluster.
    pub(super) unknown: BTreeSet<String>,
}

impl Snapshots {
    /// Reads all of them to their ends. One of another cluster is refused.
    pub(super) async fn read(files: &[PathBuf], prefix: &str, cluster: &Cluster) -> Result<Self, RotationError> {
        let mut snapshots = Self::default();
        if files.is_empty() {
            return Ok(snapshots);
        }
        let this = ThisCluster { uid: cluster.uid().await?, members: BTreeSet::new(), prefix };
        for file in files {
            let name = file.display().to_string();
            let SnapshotKeys { current, older, is_of_this_cluster, .. } = SnapshotKeys::read(file, &this)?;
            if !is_of_this_cluster {
                snapshots.unknown.insert(name.clone());
            }
            snapshots.held.insert(name, Held { current, older });
        }
        Ok(snapshots)
    }

    /// That no other file needs a key says nothing.
    pub(super) fn is_any_of_this_cluster(&self) -> bool {
        self.held.keys().any(|file| !self.unknown.contains(file))
    }
}

/// How many superseded values can still be read from etcd that are under a former key; `None` without etcd.
pub(super) async fn in_old_revisions(
    etcd: &EtcdArgs,
    prefix: &str,
    encrypted: &Encrypted,
    targets: &StoredUnder,
    scan: &Scan,
) -> Result<Option<u64>, RotationError> {
    let Some(access) = etcd_of(etcd)? else { return Ok(None) };
    let etcd = EtcdClusters::connect(&access, &slashed(prefix)).await?;
    let from = scan.clusters.iter().map(|cluster| (cluster.id, 0)).collect();
    let found = superseded(&etcd, prefix, &encrypted.expected(&targets.plugins), &from, scan).await?;
    Ok(Some(found.leftovers))
}
