//! `--method rewrap`: what a rotation does in etcd itself before it asks the API servers for the rest.

use super::agreement::watch;
use super::passes::Pass;
use super::states::Run;
use crate::etcd::{EtcdClusters, Room, Swap};
use crate::kms::plugins::Plugins;
use crate::rotation::adoption::reached;
use crate::rotation::error::RotationError;
use crate::rotation::event::Event;
use crate::rotation::journal::intent::Method;
use crate::rotation::leftovers::layout::{folder, folder_of};
use crate::rotation::leftovers::scan::slashed;
use crate::rotation::rewrap::behind::Watchers;
use crate::rotation::rewrap::pass::{Aim, Rewrapped, explained};
use crate::rotation::rewrap::seeds::SeedWrapper;
use crate::rotation::rewrap::{self};
use crate::rotation::rewrite::pace::Pace;
use crate::rotation::run::plan::encrypted;

/// What it cannot do, and the verdict must not hide.
const KEPT: &str = "seeds and DEKs were kept (--method rewrap): anyone who may have learnt one before can still read what it \
                    sealed; after a suspected leak rewrite with --method patch";

/// What ended a pass.
enum Ended {
    Passed(Result<(), RotationError>),
    Lost(Result<String, RotationError>),
    Full(Room),
}

impl Run<'_> {
    /// Whether everything is there that rewrapping needs.
    pub(super) async fn may_rewrap(&mut self) -> Result<(), RotationError> {
        if self.settings.method != Method::Rewrap {
            return Ok(());
        }
        if self.settings.shards.is_some() {
            return Err(missing("one process is enough: leave out --shards"));
        }
        let (plugins, etcd) = (self.plugins()?, self.etcd_clusters().await?);
        let etcd = etcd.ok_or_else(|| missing("give --etcd"))?;
        if let Some(kine) = etcd.clusters.iter().find(|cluster| cluster.is_kine) {
            let endpoint = kine.endpoints().next().unwrap_or_default();
            return Err(missing(&format!(
                "{endpoint} is kine, which stores neither several keys at once nor the lease of one: leave \
                                         out --method rewrap"
            )));
        }
        let snapshot = self.journal.snapshot_before.is_some() || self.settings.snapshot_taken.is_some();
        if !snapshot && self.settings.snapshot_files.is_empty() {
            return Err(missing(
                "a snapshot of etcd must exist before anything is stored past the API servers: give --snapshot-command, \
                 or --snapshot-file of one that was taken just now",
            ));
        }
        for provider in self.coverage.providers() {
            plugins.check(&provider).await.map_err(|error| missing(&error.to_string()))?;
        }
        // Nothing has this revision, so nothing is stored; the right to is asked for all the same.
        let key = format!("{}kube-envelope/may-write", slashed(&self.settings.etcd_prefix)).into_bytes();
        let probe = [Swap { key, replaces: i64::MAX, value: Vec::new() }];
        for cluster in &etcd.clusters {
            cluster.swap(&probe).await.map_err(explained)?;
        }
        (self.report)(Event::Note(KEPT));
        Ok(())
    }

    /// Rewraps what can be, and says what is left for the API servers: resources without any are done.
    pub(super) async fn rewrap(&mut self) -> Result<Pass, RotationError> {
        if self.settings.method != Method::Rewrap || self.journal.targets.is_empty() {
            return Ok(Pass::Complete(0));
        }
        let Some(adoption) = self.journal.adoption.clone() else {
            return Ok(Pass::AgreementLost("no adoption was seen".into()));
        };
        let (plugins, etcd, aim, wanted) =
            (self.plugins()?, self.etcd_clusters().await?, self.rewrap_aim().await?, self.wanted());
        let etcd = etcd.ok_or_else(|| missing("give --etcd"))?;
        let targets = self.journal.targets.plugins.clone();
        let (mut seeds, mut pace) = (SeedWrapper::new(&plugins, &targets), self.pace());
        let mut watchers = self.watchers().await?;
        let mut stored = 0;
        loop {
            let mut tally = Rewrapped::default();
            let ended = self
                .rewrap_once(&etcd, &aim, (&mut seeds, &mut pace, &mut watchers), &mut tally, &wanted, &adoption)
                .await;
            // What somebody else wrote meanwhile may be under the former key, so a further pass has to look.
            stored += tally.total() + tally.overtaken;
            self.enter(&tally);
            self.write().await?;
            match ended {
                Ended::Passed(passed) => {
                    passed?;
                    return Ok(Pass::Complete(stored));
                }
                Ended::Lost(lost) => return lost.map(Pass::AgreementLost),
                Ended::Full(full) => self.wait_for_room(Some(&etcd), full).await?,
            }
        }
    }

    async fn rewrap_once(
        &self,
        etcd: &EtcdClusters,
        aim: &Aim,
        (seeds, pace, watchers): (&mut SeedWrapper<'_>, &mut Pace, &mut Watchers),
        tally: &mut Rewrapped,
        wanted: &crate::rotation::adoption::Wanted,
        adoption: &crate::rotation::adoption::Adoption,
    ) -> Ended {
        let prefix = slashed(&self.settings.etcd_prefix);
        let report = self.report;
        let say = |text: &str| report(Event::Note(text));
        let pass = rewrap::pass::Pass { etcd, prefix: &prefix, aim, seeds, pace, watchers, tally };
        tokio::select! {
            passed = pass.run(&say) => Ended::Passed(passed),
            lost = watch(&self.cluster, wanted, adoption, self.settings.agreement_interval) => Ended::Lost(lost),
            full = self.until_full(Some(etcd)) => Ended::Full(full),
        }
    }

    /// The API servers, each of which must see what is stored past it.
    async fn watchers(&self) -> Result<Watchers, RotationError> {
        let resources =
            self.journal.resources.iter().map(|progress| (folder(&progress.resource), progress.resource.clone()));
        let servers = reached(&self.cluster, self.settings.accept_unproven).await?;
        Ok(Watchers::new(servers, resources.collect()))
    }

    /// What is written to whom, and what is left alone.
    async fn rewrap_aim(&self) -> Result<Aim, RotationError> {
        let resources = self.journal.resources.iter();
        let folders = resources.map(|progress| (folder(&progress.resource), progress.writer.clone()));
        let mut aim = Aim { folders: folders.collect(), ..Aim::default() };
        let all = encrypted(self.cluster.entry(), &self.coverage).await?;
        let all = all.resources.iter().map(|(resource, _)| folder(resource));
        aim.skip = all.filter(|folder| !aim.folders.contains_key(folder)).collect();
        Ok(aim)
    }

    /// Notes what a pass did, and which resources it leaves to the API servers.
    fn enter(&mut self, tally: &Rewrapped) {
        let prefix = slashed(&self.settings.etcd_prefix);
        let refused: Vec<&str> =
            tally.refused.keys().map(|key| folder_of(key.strip_prefix(prefix.as_str()).unwrap_or(key))).collect();
        for progress in &mut self.journal.resources {
            let own = folder(&progress.resource);
            progress.tally.rewritten += tally.done.get(&own).copied().unwrap_or(0);
            // What is left is stored again by the API servers, in the pass that follows.
            progress.done = !tally.left.contains_key(&own) && !refused.contains(&own.as_str());
        }
        // A damaged etcd would fill the screen; the search that follows names what is left.
        for (key, why) in tally.refused.iter().take(20) {
            (self.report)(Event::Note(&format!("{key} is left as it is: {why}")));
        }
    }

    /// What a verdict about rewrapped values says in addition.
    pub(super) fn kept_by_rewrapping(&self) -> Option<String> {
        (self.settings.method == Method::Rewrap).then(|| KEPT.to_owned())
    }

    /// Before a verdict: everything must still open.
    pub(super) async fn rehearse(&self) -> Result<(), RotationError> {
        let Some(rehearsal) = self.settings.rehearsal.as_ref().filter(|_| self.settings.method == Method::Rewrap)
        else {
            return Ok(());
        };
        match rehearsal.rehearse().await {
            Ok(said) => (self.report)(Event::Note(&said)),
            Err(why) => {
                return Err(RotationError::Paused(format!(
                    "an API server that starts now could not read everything, so there is no verdict: {why}"
                )));
            }
        }
        Ok(())
    }

    fn plugins(&self) -> Result<Plugins, RotationError> {
        let configuration = self.coverage.configuration();
        configuration
            .map(Plugins::of)
            .ok_or_else(|| missing("give --encryption-config, which names the plugin's socket"))
    }
}

fn missing(what: &str) -> RotationError {
    RotationError::Blocked(vec![format!("--method rewrap: {what}")])
}
