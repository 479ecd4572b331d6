//! Enters what was shown into the journal, as claims.

use std::collections::{BTreeMap, BTreeSet};

use super::states::Run;
use crate::etcd::{ClusterId, EtcdClusters};
use crate::rotation::adoption::shown::claims;
use crate::rotation::adoption::writers::{self, write_alike};
use crate::rotation::adoption::{Evidence, reached};
use crate::rotation::claim::Subject;
use crate::rotation::cluster::ledger::Account;
use crate::rotation::conclusion::claims::{configuration, searched};
use crate::rotation::error::RotationError;
use crate::rotation::event::Event;
use crate::rotation::leftovers::history::superseded;
use crate::rotation::leftovers::scan::Scan;
use crate::rotation::run::plan::encrypted;

impl Run<'_> {
    /// Enters what follows from the adoption, the search and the configuration.
    pub(super) fn enter_claims(&mut self) {
        let journal = &mut self.journal;
        if let Some(adoption) = &journal.adoption {
            let accounts: Vec<Account> = adoption.ledger.accounts().to_vec();
            journal.claims.extend(claims(adoption, journal.verified_at));
            let configuration = configuration(journal, &accounts);
            journal.claims.insert(Subject::Configuration, configuration);
        }
        let search =
            journal.verified.as_ref().map(|scan| searched(scan, journal.verified_at.unwrap_or(journal.started)));
        journal.claims.extend(search.map(|claim| (Subject::Search, claim)));
    }

    /// Whether every API server stores every encrypted resource alike: an empty patch of an object of each goes round.
    pub(super) async fn writers_agree(&mut self) -> Result<(), RotationError> {
        // Without metrics no server can be told from another, so that "all of them" would not be known to be all.
        let proven = self.journal.adoption.as_ref().is_some_and(|adoption| adoption.evidence == Evidence::WriteProof);
        if !proven {
            return Ok(());
        }
        // A resource that a rewrite would change is not touched, as little as the single objects of `left_alone`.
        let touched = self.journal.resources.iter().filter(|progress| progress.tally.withheld_all.is_none());
        let resources: Vec<_> = touched.map(|progress| progress.resource.clone()).collect();
        let servers = reached(&self.cluster, self.settings.accept_unproven).await?;
        let not_shown = write_alike(&servers, &resources, &self.left_alone()).await?;
        // Nor is what is skipped, and Events unless they are rewritten.
        let all = encrypted(self.cluster.entry(), &self.coverage).await?.resources.into_iter();
        let untouched = all.filter(|(resource, _)| !resources.contains(resource)).map(|(one, _)| one.to_string());
        let claim = writers::claim(servers.len(), resources.len(), &not_shown, untouched);
        self.journal.claims.insert(Subject::Writers, claim);
        Ok(())
    }

    /// Objects that are not to be touched again.
    fn left_alone(&self) -> BTreeSet<String> {
        let of = |progress: &crate::rotation::journal::Progress| {
            let tally = &progress.tally;
            let named = tally.refused.keys().chain(tally.undecryptable.keys()).chain(&tally.altered_named);
            let named = named.chain(tally.withheld.keys());
            named.cloned().collect::<Vec<_>>()
        };
        self.journal.resources.iter().flat_map(of).collect()
    }

    /// Looks at what was stored since the first clean search, superseded values included. Whether all of it was under the
    /// target key.
    pub(super) async fn history_is_clean(&mut self, scan: &Scan) -> Result<bool, RotationError> {
        let Some(etcd) = self.etcd_clusters().await? else { return Ok(true) };
        // A journal of an earlier version of this program does not tell where it would begin.
        if self.journal.history_from.is_empty() {
            return Ok(false);
        }
        let found = encrypted(self.cluster.entry(), &self.coverage).await?.expected(&self.journal.targets.plugins);
        let prefix = &self.settings.etcd_prefix;
        let looked = superseded(&etcd, prefix, &found, &self.journal.history_from, scan).await?;
        if looked.leftovers == 0 {
            self.journal.claims.insert(Subject::History, looked.claim());
            return Ok(true);
        }
        let named: Vec<_> = looked.named.iter().map(|(key, how)| format!("{key} ({how})")).collect();
        (self.report)(Event::Note(&format!(
            "{} value(s) were stored under another key since the first search and superseded again; old revisions and \
             snapshots from then hold them: {}",
            looked.leftovers,
            named.join(", ")
        )));
        Ok(false)
    }

    /// A rotation is about the etcd clusters that it began with, and none of them goes back in time.
    pub(super) fn same_etcd(&self, etcd: &EtcdClusters) -> Result<(), RotationError> {
        let now: BTreeSet<ClusterId> = etcd.clusters.iter().map(|cluster| cluster.id).collect();
        same_etcd(&self.journal.etcd_clusters.keys().copied().collect(), &now)
    }

    /// Notes the clusters, and the newest revision of each.
    ///
    /// # Errors
    /// [`RotationError::Paused`] when one is behind where it was: it was restored, and what was shown is void.
    pub(super) async fn note_etcd(&mut self) -> Result<(), RotationError> {
        let Some(etcd) = self.etcd_clusters().await? else { return Ok(()) };
        let mut now = BTreeMap::new();
        for cluster in &etcd.clusters {
            now.insert(cluster.id, cluster.revision().await?);
        }
        self.revisions_went_on(&now)
    }

    /// The same with revisions that are known.
    pub(super) fn revisions_went_on(&mut self, now: &BTreeMap<ClusterId, i64>) -> Result<(), RotationError> {
        went_on(&self.journal.etcd_clusters, now)?;
        self.journal.etcd_clusters.extend(now);
        Ok(())
    }
}

fn same_etcd(begun: &BTreeSet<ClusterId>, now: &BTreeSet<ClusterId>) -> Result<(), RotationError> {
    if begun.is_empty() || begun == now {
        return Ok(());
    }
    let list = |ids: &BTreeSet<ClusterId>| ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    Err(RotationError::Unusable(format!(
        "--etcd leads to etcd cluster {} now, and the rotation began with {}: it is about another cluster, or one of them \
         does not answer. Reach the same ones and resume, or give this rotation up (rotate-keys --abort)",
        list(now),
        list(begun)
    )))
}

fn went_on(before: &BTreeMap<ClusterId, i64>, now: &BTreeMap<ClusterId, i64>) -> Result<(), RotationError> {
    // An etcd that was restored goes on from the revision of its snapshot, and is noticed as long as it is behind.
    let back =
        before.iter().find_map(|(id, before)| now.get(id).filter(|now| *now < before).map(|now| (id, before, now)));
    let Some((id, before, now)) = back else { return Ok(()) };
    Err(RotationError::Paused(format!(
        "etcd cluster {id} is at revision {now} and was at {before}: it was restored from a snapshot, and nothing that was \
         shown before holds. Give this rotation up (rotate-keys --abort) and begin again"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_etcd_cluster_or_one_that_is_missing_is_refused() {
        let (one, two) = (ClusterId(1), ClusterId(2));
        assert!(same_etcd(&BTreeSet::new(), &[one].into()).is_ok(), "it begins");
        assert!(same_etcd(&[one, two].into(), &[two, one].into()).is_ok());
        for now in [[two].into(), [one, two].into(), BTreeSet::new()] {
            let refused = same_etcd(&[one].into(), &now).unwrap_err().to_string();
            assert!(refused.contains("began with 1"), "{refused}");
        }
    }

    #[test]
    fn an_etcd_that_went_back_was_restored() {
        let at = |revision| BTreeMap::from([(ClusterId(1), revision)]);
        assert!(went_on(&at(7), &at(7)).is_ok());
        assert!(went_on(&at(7), &at(6)).unwrap_err().to_string().contains("at revision 6 and was at 7"));
    }
}
