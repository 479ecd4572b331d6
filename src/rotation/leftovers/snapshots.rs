//! Whether a snapshot of etcd exists that holds nothing under a former key: by its own revision where the file is there
//! to be read, else by the time at which it was taken.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::backup::{SnapshotFile, uid};
use crate::etcd::{EtcdCluster, EtcdClusters, Stored};
use crate::rotation::claim::{Claim, Until, Witness};
use crate::rotation::error::RotationError;
use crate::rotation::keys::group::Groups;
use crate::rotation::keys::name::KeyName;
use crate::rotation::leftovers::judge::{Expected, Judge};
use crate::rotation::leftovers::scan::{Scan, ScannedCluster, slashed};

/// Clocks of an operator's machine and of this one may differ by this much.
pub const CLOCK_SKEW_SECONDS: i64 = 60;
const REMEDY: &str = "take one and name it: rotate-keys --resume --snapshot-file FILE (or --snapshot-taken TIME)";

/// Refuses a time that cannot be true.
///
/// # Errors
/// [`RotationError::Unusable`] if it lies in the future.
pub fn checked(taken: jiff::Timestamp) -> Result<jiff::Timestamp, RotationError> {
    let now = jiff::Timestamp::now();
    if taken.as_second() > now.as_second().saturating_add(CLOCK_SKEW_SECONDS) {
        return Err(RotationError::Unusable(format!(
            "--snapshot-taken {taken} is in the future (it is {now} now); give the time at which the snapshot was taken"
        )));
    }
    Ok(taken)
}

/// What was found in one snapshot file.
#[derive(Clone, Debug)]
struct Content {
    path: PathBuf,
    about: SnapshotFile,
    /// Present values under another key than the target.
    leftovers: u64,
    /// One of them: its key in etcd and how it is stored.
    first: Option<String>,
    /// Superseded values under another key.
    older: u64,
}

/// The cluster that a snapshot should be of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThisCluster<'a> {
    /// Uid of its namespace `kube-system`.
    pub uid: String,
    /// The members of its etcd, where they are known.
    pub members: BTreeSet<u64>,
    /// The API servers' `--etcd-prefix`.
    pub prefix: &'a str,
}

/// The keys that the values of a snapshot are stored under, of whatever cluster they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotKeys {
    /// Its path, as it was named.
    pub file: PathBuf,
    /// The newest revision in it.
    pub revision: i64,
    /// SHA-256 at its end, where there is one.
    pub sha256: Option<String>,
    /// Its current values.
    pub current: Groups,
    /// Values that were superseded, and not compacted yet, when it was taken.
    pub older: Groups,
    /// Whether it is shown to be of the cluster in question. A snapshot that is not may be of any cluster; that nothing in it
    /// needs a key says nothing.
    #[serde(default)]
    pub is_of_this_cluster: bool,
}

impl SnapshotKeys {
    /// Reads a snapshot to its end.
    ///
    /// # Errors
    /// If it cannot be read, is not an intact snapshot, or is of another cluster.
    pub fn read(file: &Path, cluster: &ThisCluster<'_>) -> Result<Self, RotationError> {
        let (mut current, mut older, mut found) = (Groups::default(), Groups::default(), None);
        let namespace = format!("{}namespaces/kube-system", slashed(cluster.prefix));
        let about = each_value(file, "", |key, value, is_present| {
            let groups = if is_present { &mut current } else { &mut older };
            groups.count(&Stored::of(value), false);
            if is_present && key == namespace {
                found = uid(value);
            }
        })?;
        let is_of_this_cluster = match found {
            Some(other) if other != cluster.uid => {
                return Err(RotationError::Unusable(format!(
                    "{} is a snapshot of another cluster, whose namespace kube-system has uid {other}; here it is {}. Leave \
                     it out",
                    file.display(),
                    cluster.uid
                )));
            }
            Some(_) => true,
            // An etcd of its own for Events has no namespaces; members that were replaced since leave nothing to tell by.
            None => !about.members.is_disjoint(&cluster.members),
        };
        let SnapshotFile { revision, hash, .. } = about;
        Ok(Self { file: file.to_owned(), revision, sha256: hash, current, older, is_of_this_cluster })
    }

    /// How many values in it are under this key: current ones, and superseded ones.
    pub fn needing(&self, key: &KeyName) -> (u64, u64) {
        (self.current.needing(key), self.older.needing(key))
    }
}

/// Goes through every value in a snapshot file under `prefix`: etcd key, value, and whether it is the present one.
fn each_value(
    path: &Path,
    prefix: &str,
    mut each: impl FnMut(&str, &[u8], bool),
) -> Result<SnapshotFile, RotationError> {
    let each = |key: &[u8], value: &[u8], is_present| {
        let key = String::from_utf8_lossy(key);
        if key.starts_with(prefix) {
            each(&key, value, is_present);
        }
    };
    SnapshotFile::each_value(path, each).map_err(|error| RotationError::File {
        what: "read snapshot",
        file: path.to_owned(),
        source: error.into(),
    })
}

fn content(path: &Path, prefix: &str, expected: &Expected) -> Result<Content, RotationError> {
    let (prefix, mut judge) = (slashed(prefix), Judge::new(expected));
    let (mut leftovers, mut older, mut first) = (0, 0, None);
    let about = each_value(path, "", |key, value, is_present| {
        let stored = Stored::of(value);
        let (how, left) = match key.strip_prefix(&prefix) {
            Some(below) => judge.judge(&judge.place(below), &stored),
            None => ("another API server's".into(), judge.is_left_beside(&stored)),
        };
        if left && is_present {
            leftovers = u64::saturating_add(leftovers, 1);
            first.get_or_insert_with(|| format!("{key} ({how})"));
        }
        older = u64::saturating_add(older, u64::from(left && !is_present));
    })?;
    Ok(Content { path: path.to_owned(), about, leftovers, first, older })
}

/// Whether snapshots that must stay readable, from whatever time, need another key than the target.
///
/// # Errors
/// If one cannot be read, or is not an intact snapshot.
pub fn need_no_former(files: &[PathBuf], prefix: &str, expected: &Expected) -> Result<Claim, RotationError> {
    let mut need = Vec::new();
    for file in files {
        let Content { leftovers, first, .. } = content(file, prefix, expected)?;
        need.extend(
            first.map(|first| format!("{} holds {leftovers} value(s) under a former key: {first}", file.display())),
        );
    }
    Ok(if need.is_empty() {
        let what = format!("{} snapshot(s) that were named hold nothing under a former key", files.len());
        Claim::shown(Witness::SnapshotFile, what).until(Until::EtcdIsRestored)
    } else {
        let remedy =
            "keep that key as long as the file must stay readable, or rewrap it (kube-envelope snapshot rewrap)";
        Claim::not_yet(Witness::SnapshotFile, need.join("; "), remedy)
    })
}

/// Whether the files are, for every cluster with data, of that cluster, reach at least as far as the search for leftovers
/// did, and hold nothing under another key than the target.
///
/// # Errors
/// If one cannot be read, or is not an intact snapshot.
pub fn from_files(
    files: &[PathBuf],
    scan: &Scan,
    etcd: &EtcdClusters,
    prefix: &str,
    expected: &Expected,
) -> Result<Claim, RotationError> {
    let read: Vec<Content> = files.iter().map(|file| content(file, prefix, expected)).collect::<Result<_, _>>()?;
    let (mut good, mut bad, mut older) = (Vec::new(), Vec::new(), Vec::new());
    for cluster in scan.clusters.iter().filter(|cluster| cluster.keys > 0) {
        let members = etcd.clusters.iter().find(|one| one.id == cluster.id).map(EtcdCluster::member_ids);
        let members = members.unwrap_or_default();
        // A member that was added or removed since is only in one of the two; one that both know is enough.
        let of_it = read.iter().filter(|one| !one.about.members.is_disjoint(&members));
        let Some(newest) = of_it.max_by_key(|one| one.about.revision) else {
            bad.push(format!("no snapshot of etcd cluster {} was named", cluster.id));
            continue;
        };
        match judge(newest, cluster) {
            Ok(text) => good.push(text),
            Err(text) => bad.push(text),
        }
        if newest.older > 0 {
            older.push(format!(
                "{} superseded value(s) in {} are under another key; an API server on a restored etcd does not read them",
                newest.older,
                newest.path.display()
            ));
        }
    }
    Ok(if bad.is_empty() && !good.is_empty() {
        Claim::shown(Witness::SnapshotFile, good.join("; ")).until(Until::EtcdIsRestored).blind_to(older)
    } else {
        Claim::not_yet(Witness::SnapshotFile, bad.join("; "), REMEDY)
    })
}

fn judge(content: &Content, of: &ScannedCluster) -> Result<String, String> {
    let (path, id, revision) = (content.path.display(), of.id, content.about.revision);
    // Revisions are compared, not times: they are of one etcd, and no clock can make them lie.
    if revision < of.revision {
        return Err(format!(
            "snapshot {path} of etcd cluster {id} reaches revision {revision}, and what it holds was stored before \
             revision {}, at which the search for leftovers ended",
            of.revision
        ));
    }
    if let Some(first) = &content.first {
        return Err(format!(
            "snapshot {path} of etcd cluster {id} holds {} value(s) under another key than the target: {first}",
            content.leftovers
        ));
    }
    let hash = if content.about.hash_verified { ", and its hash matches" } else { "" };
    Ok(format!(
        "snapshot {path} of etcd cluster {id} holds nothing under another key, and reaches revision {revision}, past \
         revision {}{hash}",
        of.revision
    ))
}

/// What a time alone shows, where the data lie in so many etcd clusters: it does not say of which of them the snapshot is.
pub fn from_time(taken: Option<jiff::Timestamp>, verified: Option<jiff::Timestamp>, clusters: usize) -> Claim {
    if clusters > 1 {
        let what =
            format!("the data lie in {clusters} etcd clusters, and the time of a snapshot does not say of which it is");
        return Claim::not_yet(
            Witness::Operator,
            what,
            "name a snapshot of each: rotate-keys --resume --snapshot-file FILE",
        );
    }
    match (taken, verified) {
        (Some(taken), Some(verified)) if taken >= verified => Claim::shown(
            Witness::Operator,
            format!("a snapshot of etcd was taken at {taken}, after the search for leftovers ({verified})"),
        )
        .blind_to(["the snapshot itself: only its time is known (--snapshot-file reads what it holds)".into()]),
        (Some(taken), Some(verified)) => Claim::not_yet(
            Witness::Operator,
            format!("a snapshot of etcd must be taken after {verified}; the newest one is of {taken}"),
            REMEDY,
        ),
        _ => Claim::not_yet(
            Witness::Operator,
            "a snapshot of etcd must be taken after the search for leftovers; none is known",
            REMEDY,
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rotation::claim::Finding;

    #[test]
    fn a_snapshot_from_the_future_is_refused() {
        assert!(checked(jiff::Timestamp::now()).is_ok());
        let error = checked("2099-01-01T00:00:00Z".parse().unwrap()).unwrap_err();
        assert!(error.to_string().contains("is in the future"), "{error}");
    }

    #[test]
    fn only_a_snapshot_from_after_the_search_counts() {
        let at = |text: &str| Some(text.parse().unwrap());
        let (early, late) = (at("2026-01-01T00:00:00Z"), at("2026-01-02T00:00:00Z"));
        assert_eq!(from_time(late, early, 1).finding, Finding::Shown);
        for claim in
            [from_time(early, late, 1), from_time(None, late, 1), from_time(early, None, 1), from_time(late, early, 2)]
        {
            assert!(matches!(claim.finding, Finding::NotYet { .. }), "{claim:?}");
        }
    }
}
