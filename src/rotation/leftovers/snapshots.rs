//! Whether a snapshot of etcd exists that holds nothing under a former key: by its own revision where the file is there
//! to be read, else by the time at which it was taken.

use std::path::{Path, PathBuf};

use crate::etcd::{EtcdClusters, SnapshotFile};
use crate::rotation::claim::Claim;
use crate::rotation::error::RotationError;
use crate::rotation::leftovers::scan::{Scan, ScannedCluster};

/// Clocks of an operator's machine and of this one may differ by this much.
const CLOCK_SKEW_SECONDS: i64 = 60;
const REMEDY: &str = "take one and name it: rotate-keys --resume --snapshot-file FILE (or --snapshot-taken TIME)";

/// Refuses a time that cannot be true.
///
/// # Errors
/// [`RotationError::Unusable`] if it lies in the future.
pub fn checked(taken: jiff::Timestamp) -> Result<jiff::Timestamp, RotationError> {
    let now = jiff::Timestamp::now();
    if taken.as_second() > now.as_second() + CLOCK_SKEW_SECONDS {
        return Err(RotationError::Unusable(format!(
            "--snapshot-taken {taken} is in the future (it is {now} now); give the time at which the snapshot was taken"
        )));
    }
    Ok(taken)
}

/// Reads snapshot files.
///
/// # Errors
/// If one cannot be read, or is not an intact snapshot.
pub fn read(files: &[PathBuf]) -> Result<Vec<(PathBuf, SnapshotFile)>, RotationError> {
    let one = |file: &PathBuf| {
        let read = SnapshotFile::read(file);
        let read = read.map_err(|source| RotationError::File { what: "read snapshot", file: file.clone(), source })?;
        Ok((file.clone(), read))
    };
    files.iter().map(one).collect()
}

/// Whether the files reach, for every cluster with data, at least as far as the search for leftovers did.
pub fn from_files(files: &[(PathBuf, SnapshotFile)], scan: &Scan, etcd: &EtcdClusters) -> Claim {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for cluster in scan.clusters.iter().filter(|cluster| cluster.keys > 0) {
        let members = etcd.clusters.iter().find(|one| one.id == cluster.id).map(|one| one.member_ids());
        let members = members.unwrap_or_default();
        let of_it = files.iter().filter(|(_, file)| !file.members.is_disjoint(&members));
        match of_it.max_by_key(|(_, file)| file.revision) {
            Some((path, file)) => judge(path, file, cluster, &mut good, &mut bad),
            None => bad.push(format!("no snapshot of etcd cluster {} was named", cluster.id)),
        }
    }
    if bad.is_empty() && !good.is_empty() {
        return Claim::shown(good.join("; "));
    }
    Claim::not_yet(bad.join("; "), REMEDY)
}

fn judge(path: &Path, file: &SnapshotFile, of: &ScannedCluster, good: &mut Vec<String>, bad: &mut Vec<String>) {
    let (path, id, revision) = (path.display(), of.id, file.revision);
    if revision < of.revision {
        bad.push(format!(
            "snapshot {path} of etcd cluster {id} reaches revision {revision}, and what it holds was stored before \
             revision {}, at which the search for leftovers ended",
            of.revision
        ));
    } else {
        let hash = if file.hash_verified { ", and its hash is right" } else { "" };
        good.push(format!(
            "snapshot {path} of etcd cluster {id} reaches revision {revision}, past revision {}{hash}",
            of.revision
        ));
    }
}

/// What a time alone shows.
pub fn from_time(taken: Option<jiff::Timestamp>, verified: Option<jiff::Timestamp>) -> Claim {
    match (taken, verified) {
        (Some(taken), Some(verified)) if taken >= verified => Claim::shown(format!(
            "a snapshot of etcd was taken at {taken}, after the search for leftovers ({verified})"
        ))
        .blind_to(["the snapshot itself: only its time was given (--snapshot-file reads its revision)".into()]),
        (Some(taken), Some(verified)) => Claim::not_yet(
            format!("a snapshot of etcd must be taken after {verified}; the newest one is of {taken}"),
            REMEDY,
        ),
        _ => Claim::not_yet("a snapshot of etcd must be taken after the search for leftovers; none is known", REMEDY),
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
        assert_eq!(from_time(late, early).finding, Finding::Shown);
        for claim in [from_time(early, late), from_time(None, late), from_time(early, None)] {
            assert!(matches!(claim.finding, Finding::NotYet { .. }), "{claim:?}");
        }
    }
}
