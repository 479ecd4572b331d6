//! What a rotation does with etcd itself: look at every value, keep clear of the quota, see old revisions go.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::states::Run;
use crate::etcd::{ClusterId, EtcdAccess, EtcdCluster, EtcdClusters, Room};
use crate::rotation::adoption::reached;
use crate::rotation::claim::{Claim, Subject, Until, Witness};
use crate::rotation::cluster::api::Api;
use crate::rotation::error::RotationError;
use crate::rotation::event::Event;
use crate::rotation::leftovers::compaction::by_lists;
use crate::rotation::leftovers::homes::{self, Homes};
use crate::rotation::leftovers::judge::Expected;
use crate::rotation::leftovers::keys_in_etcd::KeysInEtcd;
use crate::rotation::leftovers::layout::Folders;
use crate::rotation::leftovers::scan::{Scan, scan_changes, scan_clusters, slashed};
use crate::rotation::leftovers::sizes::{Sizes, measure};
use crate::rotation::leftovers::snapshots::{self, SnapshotKeys, ThisCluster};
use crate::rotation::run::plan::{Encrypted, encrypted};
use crate::rotation::run::room::{make_room, room, until_full};

/// kine answers no request with it but a watch (k3s-io/kine, pkg/drivers/generic/generic.go).
const KEPT_BY_KINE: &str = "kine's column old_value: with each object its database keeps the value before, under a former key or in \
                            clear, until the object is stored once more (docs/install/k3s.md)";
/// The longest to wait for room after a compaction of our own.
const AFTER_COMPACTION: Duration = Duration::from_mins(2);

impl Run<'_> {
    /// The keys in etcd, where an etcd was named.
    pub(super) async fn keys_in_etcd(&self) -> Result<Option<KeysInEtcd>, RotationError> {
        let Some(access) = &self.settings.etcd else { return Ok(None) };
        KeysInEtcd::connect(access, &self.settings.etcd_prefix).await.map(Some)
    }

    /// The etcd clusters that were named, where some were.
    pub(super) async fn etcd_clusters(&self) -> Result<Option<EtcdClusters>, RotationError> {
        let Some(etcd) = self.keys_in_etcd().await?.map(|keys| keys.clusters().clone()) else { return Ok(None) };
        self.same_etcd(&etcd)?;
        Ok(Some(etcd))
    }

    /// Looks at every value, or at every change since this process did and found no leftover; and at whether the etcd that
    /// was given is this cluster's and all of it.
    pub(super) async fn search_etcd(&mut self, access: &EtcdAccess, found: &Encrypted) -> Result<Scan, RotationError> {
        let expected = found.expected(&self.journal.targets.plugins);
        // What was looked for must be the same.
        let earlier = self.searched.take().filter(|(held_against, _)| *held_against == expected).map(|(_, scan)| scan);
        let (api, prefix) = (self.cluster.entry(), &self.settings.etcd_prefix);
        let scan = search_etcd(api, access, prefix, &expected, earlier.as_ref()).await?;
        self.searched = Some((expected, scan.clone()));
        Ok(scan)
    }

    /// Before anything is rewritten: is this etcd the cluster's, and is there room?
    pub(super) async fn etcd_is_fit(&self) -> Result<(), RotationError> {
        let Some(etcd) = &self.etcd_clusters().await? else { return Ok(()) };
        let found = encrypted(self.cluster.entry(), &self.coverage).await?;
        let resources = found.resources.iter().map(|(resource, _)| resource);
        let prefix = slashed(&self.settings.etcd_prefix);
        let homes = Homes::find(self.cluster.entry(), etcd, &prefix, resources).await?;
        let gaps = homes.gaps();
        // Where some of the clusters are the right ones, the rewrite does no harm, and only the proof is incomplete.
        if !gaps.is_empty() && etcd.clusters.iter().all(|cluster| !homes.uses(cluster.id)) {
            return Err(RotationError::Blocked(vec![format!(
                "the etcd given with --etcd does not hold this cluster's data; name the API servers' --etcd-servers: {}",
                gaps.join("; ")
            )]));
        }
        for gap in gaps {
            (self.report)(Event::Note(&format!("the verdict cannot be Yes: {gap}")));
        }
        self.forecast(etcd).await?;
        self.etcd_takes_writes().await
    }

    /// Whether etcd has no alarm and its files are not close to the quota.
    pub(super) async fn etcd_takes_writes(&self) -> Result<(), RotationError> {
        let Some(etcd) = &self.etcd_clusters().await? else { return Ok(()) };
        match room(etcd).await {
            Ok(Room::Enough | Room::AfterCompaction(_)) => Ok(()),
            // Compaction is the only remedy that this program has, and it ends none of these.
            Ok(Room::Alarm(why) | Room::AfterDefragmentation(why) | Room::Unknown(why)) => {
                Err(RotationError::Blocked(vec![format!(
                    "{why}: make room first (etcdctl compact, etcdctl defrag, etcdctl alarm disarm, or a greater \
                     --quota-backend-bytes)"
                )]))
            }
            Err(why) => {
                (self.report)(Event::Note(&format!("{why}: the rewrite is not stopped before etcd is full")));
                Ok(())
            }
        }
    }

    /// Says what will not fit: into the quota at once, and single objects into a request.
    async fn forecast(&self, etcd: &EtcdClusters) -> Result<(), RotationError> {
        let sizes = self.sizes(etcd).await?;
        let mut compactions = 0;
        for cluster in &etcd.clusters {
            let space = cluster.space().await;
            compactions = compactions.max(space.compactions_for(sizes.bytes));
            for (member, why) in &space.unknown {
                (self.report)(Event::Note(&format!("how full etcd member {member} is cannot be determined: {why}")));
            }
        }
        if compactions > 0 && !self.settings.compact {
            (self.report)(Event::Note(&format!(
                "{} MiB are stored again, and etcd's quota has no room for that many second revisions: the rewrite will \
                 wait about {compactions} time(s) for the API servers' compaction, or compacts by itself with --compact",
                sizes.bytes >> 20
            )));
        }
        for (path, why) in &sizes.too_large {
            (self.report)(Event::Note(&format!("{path}: {why}")));
        }
        Ok(())
    }

    async fn sizes(&self, etcd: &EtcdClusters) -> Result<Sizes, RotationError> {
        let folders = Folders::of(self.journal.resources.iter().map(|progress| &progress.resource));
        measure(etcd, &self.settings.etcd_prefix, &folders).await
    }

    /// Enters the objects that a rewrite would make too large as refused.
    pub(super) async fn foretell_too_large(&mut self) -> Result<(), RotationError> {
        let Some(etcd) = self.etcd_clusters().await? else { return Ok(()) };
        let sizes = self.sizes(&etcd).await?;
        for progress in &mut self.journal.resources {
            let root = progress.resource.list_path();
            let (group_version, plural) = root.rsplit_once('/').unwrap_or_default();
            let is_its_own = |path: &str| path.starts_with(group_version) && path.contains(&format!("/{plural}/"));
            let own = sizes.too_large.iter().filter(|(path, _)| is_its_own(path));
            progress.tally.refused.extend(own.map(|(path, why)| (path.clone(), why.clone())));
        }
        Ok(())
    }

    /// Waits until a rewrite may go on.
    pub(super) async fn wait_for_room(&self, etcd: Option<&EtcdClusters>, full: Room) -> Result<(), RotationError> {
        let Some(etcd) = etcd else { return Ok(()) };
        let compact = self.settings.compact;
        let patience = if compact { AFTER_COMPACTION } else { self.settings.settle.max(AFTER_COMPACTION) };
        let report = self.report;
        make_room(etcd, full, compact, patience, &|text| report(Event::Waiting(text))).await
    }

    /// Ends when a rewrite must stop because etcd fills up; never, where no etcd was named.
    pub(super) async fn until_full(&self, etcd: Option<&EtcdClusters>) -> Room {
        match etcd {
            Some(etcd) => until_full(etcd).await,
            None => std::future::pending().await,
        }
    }

    /// Compacts up to the revision at which the search ended, where that was asked for.
    pub(super) async fn compact_old_revisions(&self, etcd: &EtcdClusters) {
        for (cluster, revision) in self.searched(etcd).filter(|_| self.settings.compact) {
            if let Err(error) = cluster.compact(revision).await {
                (self.report)(Event::Note(&format!(
                    "etcd cluster {} could not be compacted: {}",
                    cluster.id,
                    crate::rotation::cluster::api::chain(&error)
                )));
            }
        }
    }

    /// The clusters of which every value was looked at, each with the revision at which that ended.
    fn searched<'e>(&self, etcd: &'e EtcdClusters) -> impl Iterator<Item = (&'e EtcdCluster, i64)> {
        let mut revisions: BTreeMap<ClusterId, i64> = self.journal.verified.iter().flat_map(Scan::revisions).collect();
        // The first clean search counts, not the last: what was stored between both was looked at in the history.
        revisions.extend(self.journal.clean_revisions.clone());
        etcd.clusters.iter().filter_map(move |cluster| Some((cluster, *revisions.get(&cluster.id)?)))
    }

    /// Whether no revision can be read any more that may hold values under a former key, and waiting can end. With etcd
    /// that is seen; without it, time must pass.
    pub(super) async fn old_revisions_are_gone(
        &mut self,
        etcd: Option<&EtcdClusters>,
        time_is_over: bool,
    ) -> Result<bool, RotationError> {
        let Some(etcd) = etcd.filter(|etcd| self.searched(etcd).next().is_some()) else {
            return self.old_lists_are_gone(time_is_over).await;
        };
        let prefix = slashed(&self.settings.etcd_prefix);
        let (mut gone, mut left) = (Vec::new(), Vec::new());
        for (cluster, revision) in self.searched(etcd) {
            // At the revision of the search itself everything was clean, so it may stay.
            let is_gone = cluster.count_at(&prefix, revision.saturating_sub(1)).await?.is_none();
            (if is_gone { &mut gone } else { &mut left }).push(format!("{} before revision {revision}", cluster.id));
        }
        if left.is_empty() {
            let what = format!("no old revision can be read any more: etcd cluster {}", gone.join(", "));
            let kine = etcd.clusters.iter().any(|cluster| cluster.is_kine).then(|| KEPT_BY_KINE.to_owned());
            let claim = Claim::shown(Witness::Etcd, what).until(Until::EtcdIsRestored).blind_to(kine);
            self.journal.claims.insert(Subject::Compaction, claim);
            self.journal.settled = Some(jiff::Timestamp::now());
            return Ok(true);
        }
        if time_is_over {
            let what = format!("old revisions can still be read: etcd cluster {}", left.join(", "));
            let remedy = if etcd.clusters.iter().any(|cluster| cluster.is_kine) {
                "they need the former key, and kine keeps the newest 1000 revisions whoever compacts it \
                 (--compact-min-retain): rotate-keys --resume once so many changes were stored, and the API servers have \
                 compacted (every 5 minutes unless told otherwise)"
            } else {
                "they need the former key until the API servers have compacted etcd (every 5 minutes unless told \
                 otherwise); rotate-keys --resume --compact does it now"
            };
            self.journal.claims.insert(Subject::Compaction, Claim::not_yet(Witness::Etcd, what, remedy));
        }
        Ok(time_is_over)
    }

    /// Without etcd the API servers tell: each is asked for each encrypted resource as of the first clean search.
    async fn old_lists_are_gone(&mut self, time_is_over: bool) -> Result<bool, RotationError> {
        if self.journal.clean_lists.is_empty() {
            let what = "something is still stored under a former key";
            let claim = Claim::not_yet(Witness::Api, what, "run again once it is gone");
            self.journal.claims.insert(Subject::Compaction, claim);
            return Ok(time_is_over);
        }
        let found = encrypted(self.cluster.entry(), &self.coverage).await?;
        let resources: Vec<_> = found.resources.into_iter().map(|(resource, _)| resource).collect();
        let servers = reached(&self.cluster, self.settings.accept_unproven).await?;
        let claim = by_lists(&servers, &resources, &self.journal.clean_lists).await;
        let is_gone = claim.is_shown();
        if is_gone {
            self.journal.settled = Some(jiff::Timestamp::now());
        }
        if is_gone || time_is_over {
            self.journal.claims.insert(Subject::Compaction, claim);
        }
        Ok(is_gone || time_is_over)
    }

    /// What may have come true since the rotation was done: a compaction, a snapshot.
    pub(super) async fn look_at_etcd_again(&mut self) -> Result<(), RotationError> {
        let seen = self.journal.claims.get(&Subject::Compaction).is_some_and(Claim::is_shown);
        if !seen {
            let etcd = self.etcd_clusters().await?;
            if let Some(etcd) = &etcd {
                self.compact_old_revisions(etcd).await;
            }
            self.old_revisions_are_gone(etcd.as_ref(), true).await?;
        }
        self.judge_snapshot().await
    }

    /// Reads what the named backups need. The snapshots that the verdict rests on are backups, too, and so is what was named
    /// before, as long as it is there.
    pub(super) async fn read_backups(&mut self) -> Result<(), RotationError> {
        let earlier: BTreeSet<_> = self.journal.backups.iter().map(|backup| backup.file.clone()).collect();
        let (named, snapshots) = (&self.settings.backups, &self.settings.snapshot_files);
        if named.is_empty() && earlier.is_empty() {
            return Ok(());
        }
        let now: BTreeSet<_> = named.iter().chain(snapshots).cloned().collect();
        let (there, gone): (Vec<_>, Vec<_>) = earlier.into_iter().partition(|file| now.contains(file) || file.exists());
        let etcd = self.etcd_clusters().await?;
        let cluster = ThisCluster {
            uid: self.journal.cluster.clone().unwrap_or_default(),
            members: etcd.iter().flat_map(|etcd| &etcd.clusters).flat_map(EtcdCluster::member_ids).collect(),
            prefix: &self.settings.etcd_prefix,
        };
        let files: BTreeSet<_> = now.into_iter().chain(there).collect();
        let read = files.iter().map(|file| SnapshotKeys::read(file, &cluster));
        self.journal.backups = read.collect::<Result<_, _>>()?;
        self.journal.backups_gone.extend(gone);
        self.journal.backups_gone.retain(|file| !self.journal.backups.iter().any(|backup| backup.file == *file));
        Ok(())
    }

    /// What is known of a snapshot that holds nothing under a former key.
    pub(super) async fn judge_snapshot(&mut self) -> Result<(), RotationError> {
        let files = &self.settings.snapshot_files;
        let taken = self.settings.snapshot_taken.or(self.journal.snapshot);
        let claim = match (&self.journal.verified, self.etcd_clusters().await?) {
            (Some(scan), Some(etcd)) if !files.is_empty() => {
                let mut scan = scan.clone();
                for cluster in &mut scan.clusters {
                    // A snapshot from after the first clean search holds nothing under a former key, even if it is from
                    // before the last search.
                    cluster.revision = *self.journal.clean_revisions.get(&cluster.id).unwrap_or(&cluster.revision);
                }
                let found =
                    encrypted(self.cluster.entry(), &self.coverage).await?.expected(&self.journal.targets.plugins);
                snapshots::from_files(files, &scan, &etcd, &self.settings.etcd_prefix, &found)?
            }
            (scan, _) => {
                let clusters = scan.iter().flat_map(|scan| &scan.clusters).filter(|cluster| cluster.keys > 0).count();
                snapshots::from_time(taken, self.journal.clean_since, clusters)
            }
        };
        if claim.is_shown() && !files.is_empty() {
            self.journal.snapshot = Some(claim.at);
        }
        self.journal.claims.insert(Subject::Snapshot, claim);
        Ok(())
    }
}

/// Looks at every value in etcd, and at whether the etcd that was given is this cluster's and all of it. After a search of this
/// process that found no leftover, only at what has changed since, where that tells everything.
///
/// # Errors
/// If etcd or the API server does not answer, or etcd holds nothing under the prefix.
pub async fn search_etcd(
    api: &Api,
    access: &EtcdAccess,
    prefix: &str,
    expected: &Expected,
    earlier: Option<&Scan>,
) -> Result<Scan, RotationError> {
    let etcd = EtcdClusters::connect(access, &slashed(prefix)).await?;
    let changed = match earlier {
        // A watch that fails says nothing against etcd itself.
        Some(earlier) => scan_changes(&etcd, prefix, expected, earlier).await.unwrap_or_default(),
        None => None,
    };
    let mut scan = match changed {
        Some(scan) => scan,
        None => scan_clusters(&etcd, prefix, expected).await?,
    };
    let resources = expected.resources.iter().map(|(resource, _)| resource);
    let homes = Homes::find(api, &etcd, &slashed(prefix), resources).await?;
    scan.whole = Some(homes::claim(&homes, &etcd, &scan));
    Ok(scan)
}
