//! From the agreement of all servers to the verdict: note where it began, rewrite what is older, look for leftovers,
//! wait.

use std::collections::BTreeMap;

use super::agreement::{look_again, lost, watch};
use super::checks::take_snapshot;
use super::patience::still_to_wait;
use super::states::{Continuity, Run, clock};
use crate::etcd::Room;
use crate::rotation::adoption::{Adoption, Obstacle, Wanted, still_holds};
use crate::rotation::claim::{Claim, Question, Subject, Witness};
use crate::rotation::cluster::api::chain;
use crate::rotation::cluster::listing::{Folder, revision};
use crate::rotation::conclusion::evidence::weigh;
use crate::rotation::conclusion::wording::describe;
use crate::rotation::error::RotationError;
use crate::rotation::event::Event;
use crate::rotation::journal::State;
use crate::rotation::journal::verdict::Verdict;
use crate::rotation::leftovers::keys_in_etcd::KeysInEtcd;
use crate::rotation::rewrite::{Ask, Sweep, Tally};
use crate::rotation::run::plan::{Encrypted, encrypted};

/// How often everything is rewritten again when leftovers are found.
const PASSES: u32 = 3;

/// How a pass ended.
pub(super) enum Pass {
    /// Everything was gone through; this many objects were stored again.
    Complete(u64),
    /// The API servers do not agree any more.
    AgreementLost(String),
}

/// What ended the sweep over one resource.
enum Ended {
    Swept(Result<(), RotationError>),
    Lost(Result<String, RotationError>),
    /// etcd has no room for more revisions.
    Full(Room),
}

impl Run<'_> {
    /// Notes for each resource the revision from which on everything is stored under the target key.
    pub(super) async fn agree(&mut self) -> Result<State, RotationError> {
        self.rediscover().await?;
        let api = self.converged().await?;
        for progress in &mut self.journal.resources {
            // A resource without a revision is rewritten whole: patching what is current already only costs time.
            (progress.adopted_at, progress.done) = (None, false);
            match revision(&api, &progress.resource).await {
                Ok((now, objects)) => {
                    progress.adopted_at = Some(now);
                    progress.objects = objects;
                    progress.tally.unlistable = None;
                }
                Err(error) => progress.tally.unlistable = Some(chain(&error)),
            }
        }
        Ok(State::Rewrite)
    }

    pub(super) async fn rewrite(&mut self) -> Result<State, RotationError> {
        let ended = match self.settings.shards {
            Some(shards) => self.sharded_pass(shards).await?,
            None => self.pass().await?,
        };
        match ended {
            Pass::Complete(_) => Ok(State::Resweep),
            Pass::AgreementLost(why) => Ok(self.agreement_lost(&why)),
        }
    }

    /// Again, until a pass changes nothing and no new resource appears.
    pub(super) async fn resweep(&mut self) -> Result<State, RotationError> {
        for _ in 0..=PASSES {
            let appeared = self.rediscover().await?;
            self.journal.resources.iter_mut().for_each(|progress| progress.done = false);
            match self.pass().await? {
                Pass::AgreementLost(why) => return Ok(self.agreement_lost(&why)),
                // Nothing was older than the agreement: a fixpoint.
                Pass::Complete(0) if !appeared => break,
                Pass::Complete(_) => {}
            }
        }
        self.journal.rewritten = Some(jiff::Timestamp::now());
        self.journal.passes += 1;
        Ok(State::Verify)
    }

    pub(super) async fn verify(&mut self) -> Result<State, RotationError> {
        if self.journal.targets.is_empty() {
            (self.report)(Event::Note("the target key is not known (no metrics): nothing can be verified"));
            return Ok(State::Settle);
        }
        // What follows from it was shown for an earlier search.
        self.journal.settled = None;
        self.journal.claims.retain(|subject, _| !matches!(subject, Subject::Compaction | Subject::Snapshot));
        self.writes_have_arrived().await;
        let left = self.search().await?;
        if left > 0 && self.journal.passes < PASSES {
            self.leftovers_found(left);
            return Ok(State::AwaitAdoption);
        }
        // Where no key went out of use there is nothing to wait for.
        let scan = self.journal.verified.as_ref();
        let expiring = scan.is_some_and(|scan| scan.expiring > 0);
        Ok(if self.journal.former_keys().is_empty() && !expiring { State::Done } else { State::Settle })
    }

    /// Looks for leftovers, and enters what was found. How many of them a further pass may rewrite.
    async fn search(&mut self) -> Result<u64, RotationError> {
        let scan = self.survey().await?;
        (self.report)(Event::Note(&describe(&scan)));
        self.revisions_went_on(&scan.revisions().collect())?;
        self.journal.claims.extend(scan.whole.clone().map(|claim| (Subject::Etcd, claim)));
        self.remember_all(&scan).await;
        if scan.leftovers == 0 && self.journal.clean_since.is_some() && !self.history_is_clean(&scan).await? {
            self.forget_clean();
        }
        let refused = (self.journal.refused().len() + self.journal.withheld()) as u64;
        // Another pass would not rewrite these either; the verdict names them.
        let left = scan.leftovers.saturating_sub(scan.expiring).saturating_sub(refused);
        let now = jiff::Timestamp::now();
        if scan.leftovers > 0 {
            self.journal.clean_revisions.clear();
            self.journal.history_from.clear();
            self.journal.clean_lists.clear();
            let what = "something is still stored under a former key, so its old revisions are not all old yet";
            let claim = Claim::not_yet(Witness::Etcd, what, "run again once it is gone");
            self.journal.claims.insert(Subject::History, claim);
        } else if self.journal.clean_since.is_none() {
            // What was said while something was left: the history to be looked at begins here.
            self.journal.claims.remove(&Subject::History);
            self.journal.clean_revisions = scan.revisions().collect();
            self.journal.history_from =
                scan.clusters.iter().map(|cluster| (cluster.id, cluster.from_revision)).collect();
            self.journal.clean_lists = self.lists_now().await?;
        }
        // A search is of one moment. From the first clean one on, history and counters have to show that nothing came
        // back.
        self.journal.clean_since = if scan.leftovers == 0 { self.journal.clean_since.or(Some(now)) } else { None };
        (self.journal.verified, self.journal.verified_at) = (Some(scan), Some(now));
        Ok(left)
    }

    /// Whether the last search was the first clean one, so that nothing is known of what comes after it.
    fn history_begins_anew(&self) -> bool {
        let is_known = self.journal.claims.contains_key(&Subject::History);
        self.journal.is_by_etcd() && self.journal.clean_since.is_some() && !is_known
    }

    /// What was clean is not any more: old revisions and snapshots from before now count as such from before the rewrite.
    fn forget_clean(&mut self) {
        (self.journal.clean_since, self.journal.settled, self.journal.snapshot) = (None, None, None);
        let void = |subject: &Subject| matches!(subject, Subject::Compaction | Subject::Snapshot | Subject::History);
        self.journal.claims.retain(|subject, _| !void(subject));
    }

    /// The revision of each encrypted resource now, for a search that has no etcd to ask.
    async fn lists_now(&self) -> Result<BTreeMap<String, u64>, RotationError> {
        let mut lists = BTreeMap::new();
        if self.settings.etcd.is_some() {
            return Ok(lists);
        }
        let api = self.converged().await?;
        for (resource, _) in encrypted(self.cluster.entry(), &self.coverage).await?.resources {
            // One that cannot be listed is missing, and then not shown to be compacted.
            if let Ok((now, _)) = revision(&api, &resource).await {
                lists.insert(resource.to_string(), now);
            }
        }
        Ok(lists)
    }

    /// Evidence ages: before a verdict, every server proves again that it uses the target key, its counters since the
    /// adoption are compared, and everything is searched once more. Where that does not hold, says where to go back to.
    pub(super) async fn confirm(&mut self) -> Result<Option<State>, RotationError> {
        if self.await_adoption().await? == Continuity::Broken {
            return Ok(Some(State::Agree));
        }
        if self.journal.targets.is_empty() {
            return Ok(None);
        }
        self.writes_have_arrived().await;
        self.writers_agree().await?;
        let left = self.search().await?;
        self.keks_have_stayed().await;
        self.plugins_have_moved().await?;
        if self.history_begins_anew() && self.journal.passes < PASSES {
            // What was stored and superseded until now must be compacted, and another snapshot taken.
            self.journal.passes += 1;
            self.journal.rewritten = Some(jiff::Timestamp::now());
            return Ok(Some(State::Settle));
        }
        if left == 0 || self.journal.passes >= PASSES {
            return Ok(None);
        }
        self.leftovers_found(left);
        Ok(Some(State::Agree))
    }

    fn leftovers_found(&mut self, left: u64) {
        let found = format!("{left} leftover(s) found");
        (self.report)(Event::Note(&format!("{found}: going through everything once more")));
        self.turns_back.because(&found);
    }

    /// A value may have been encrypted under a former key before its server proved the new one, and reach etcd after: a
    /// search counts only when no such write can be under way any more.
    async fn writes_have_arrived(&self) {
        let Some(adoption) = &self.journal.adoption else { return };
        // A sixth more, for clocks and for what comes after the request's own deadline.
        let wait = self.settings.request_timeout.saturating_mul(7) / 6;
        if let Some(left) = still_to_wait(adoption.since, jiff::Timestamp::now(), wait) {
            let until = clock(jiff::Timestamp::now().checked_add(left).unwrap_or(jiff::Timestamp::MAX));
            (self.report)(Event::Waiting(&format!("earlier writes may still be on their way to etcd, until {until}")));
            tokio::time::sleep(left).await;
        }
    }

    pub(super) async fn settle(&mut self) -> Result<State, RotationError> {
        let seconds = i64::try_from(self.settings.settle.as_secs()).unwrap_or(i64::MAX / 2);
        let rewritten = self.journal.rewritten.unwrap_or(self.journal.started);
        let until = rewritten.saturating_add(jiff::SignedDuration::from_secs(seconds)).unwrap_or(jiff::Timestamp::MAX);
        let (mut missed, mut said) = (0, false);
        let etcd = self.etcd_clusters().await?;
        if let Some(etcd) = &etcd {
            self.compact_old_revisions(etcd).await;
        }
        loop {
            let left = until.duration_since(jiff::Timestamp::now());
            if self.old_revisions_are_gone(etcd.as_ref(), !left.is_positive()).await? {
                return Ok(State::Snapshot);
            }
            if !std::mem::replace(&mut said, true) {
                (self.report)(Event::Waiting(&format!(
                    "old revisions and continue tokens still need the former key; they are gone by {} at the latest (--settle{})",
                    clock(until),
                    if etcd.is_some() { "; --compact has it at once" } else { "" }
                )));
            }
            // A wait may last hours. The servers' agreement is checked meanwhile, so that a loss is found now
            // and not at the end.
            tokio::time::sleep(left.unsigned_abs().min(self.settings.agreement_interval)).await;
            // Without an adoption there is nothing that could be lost while time passes.
            let Some(adoption) = self.journal.adoption.clone() else { continue };
            if let Some(why) = look_again(&self.cluster, &self.wanted(), &adoption, &mut missed).await? {
                return Ok(self.agreement_lost(&why));
            }
        }
    }

    /// Whether the command has another snapshot to take: what the last one holds was still under a former key.
    pub(super) fn snapshot_is_outdated(&self) -> bool {
        let clean = self.journal.clean_since;
        self.settings.snapshot_command.is_some() && clean.is_some_and(|clean| self.journal.snapshot < Some(clean))
    }

    pub(super) async fn snapshot(&mut self) -> Result<State, RotationError> {
        if let Some(command) = &self.settings.snapshot_command {
            match take_snapshot(command).await {
                Ok(taken) => self.journal.snapshot = Some(taken),
                Err(why) => (self.report)(Event::Note(&why)),
            }
        }
        Ok(State::Done)
    }

    /// Writes the verdict down. May be called again when more is known.
    pub(super) async fn conclude(&mut self) -> Result<Verdict, RotationError> {
        if self.settings.snapshot_taken.is_some() {
            self.journal.snapshot = self.settings.snapshot_taken;
        }
        self.journal.disabling = self.ways_to_disable();
        self.enter_claims();
        self.read_backups().await?;
        let mut verdict = weigh(&self.journal, Question::MayBeDisabled);
        verdict.not_looked_at.extend(self.kept_by_rewrapping());
        self.journal.verdict = Some(verdict.clone());
        self.write().await?;
        Ok(verdict)
    }

    pub(super) fn agreement_lost(&mut self, why: &str) -> State {
        (self.report)(Event::Note(&format!("agreement lost, everything in doubt is repeated: {why}")));
        self.turns_back.because(why);
        State::AwaitAdoption
    }

    /// Looks again which resources there are. Whether some appeared.
    async fn rediscover(&mut self) -> Result<bool, RotationError> {
        let found = encrypted(self.cluster.entry(), &self.coverage).await?;
        let Encrypted { resources, .. } = found.for_rewriting(self.settings.include_events, &self.settings.skip);
        let before = self.journal.resources.len();
        for (resource, writer) in &resources {
            self.journal.resource_mut(resource, writer);
        }
        Ok(self.journal.resources.len() > before)
    }

    /// Goes through every resource that is not done, while the servers' agreement is checked at intervals.
    async fn pass(&mut self) -> Result<Pass, RotationError> {
        let mut rewritten = match self.rewrap().await? {
            Pass::Complete(rewrapped) => rewrapped,
            lost @ Pass::AgreementLost(_) => return Ok(lost),
        };
        let wanted = self.wanted();
        let Some(adoption) = self.journal.adoption.clone() else {
            return Ok(Pass::AgreementLost("no adoption was seen".into()));
        };
        let (api, mut pace) = (self.converged().await?, self.pace());
        let keys = self.keys_in_etcd().await?;
        let etcd = keys.as_ref().map(KeysInEtcd::clusters);
        let risks = self.risks(&api).await?;
        let cluster = &self.cluster;
        while let Some(at) = self.journal.resources.iter().position(|progress| !progress.done) {
            let progress = &self.journal.resources[at];
            let (resource, objects) = (progress.resource.clone(), progress.objects);
            let risk = risks.get(at).and_then(Option::as_ref);
            let mut tally = Tally { withheld_all: progress.tally.withheld_all.clone(), ..Tally::default() };
            if let (Some(keys), Some(risk)) = (&keys, risk)
                && tally.withheld_all.is_none()
            {
                let shown = self.pioneers(&api, keys, &resource, progress.adopted_at, risk).await?;
                (tally.rewritten, tally.withheld_all) = (shown.rewritten, shown.changed);
            }
            let report = self.report;
            let mut seen = |tally: &Tally, concurrency: usize| {
                report(Event::Progress { resource: &resource, tally, objects, concurrency });
            };
            let sweep = Sweep {
                api: &api,
                folders: vec![Folder::all(&resource)],
                ask: Ask::Rewrite,
                adopted_at: progress.adopted_at,
                risk,
                pace: &mut pace,
                tally: &mut tally,
                keys: keys.as_ref(),
            };
            // A sweep that is dropped half way costs nothing: its requests are patches without content, and the
            // resource is not marked as done, so that the next pass begins it again and skips what is newer.
            let ended = tokio::select! {
                ended = sweep.run(&mut seen) => Ended::Swept(ended),
                lost = watch(cluster, &wanted, &adoption, self.settings.agreement_interval) => Ended::Lost(lost),
                full = self.until_full(etcd) => Ended::Full(full),
            };
            rewritten += tally.rewritten;
            let progress = &mut self.journal.resources[at];
            // Also of a sweep that did not end: those objects were stored again.
            progress.tally.add(tally);
            progress.done = matches!(ended, Ended::Swept(Ok(())));
            self.write().await?;
            match ended {
                Ended::Swept(Err(RotationError::Paused(why))) => return self.no_answer(why, &wanted, &adoption).await,
                Ended::Swept(done) => done?,
                Ended::Lost(lost) => return lost.map(Pass::AgreementLost),
                Ended::Full(full) => self.wait_for_room(etcd, full).await?,
            }
        }
        // The interval between two looks may be longer than a small pass.
        self.still_agreed(&wanted, &adoption, rewritten).await
    }

    /// The server that everything is asked of may be gone, before the next look would tell; another one can go on then.
    async fn no_answer(&self, why: String, wanted: &Wanted, adoption: &Adoption) -> Result<Pass, RotationError> {
        match still_holds(&self.cluster, wanted, adoption).await {
            Ok(()) | Err(Obstacle::Unreadable(_)) => Err(RotationError::Paused(why)),
            Err(obstacle) => lost(obstacle).map(Pass::AgreementLost),
        }
    }

    /// What was written since the last look counts only if the servers still agree.
    pub(super) async fn still_agreed(
        &self,
        wanted: &Wanted,
        adoption: &Adoption,
        rewritten: u64,
    ) -> Result<Pass, RotationError> {
        match still_holds(&self.cluster, wanted, adoption).await {
            Ok(()) => Ok(Pass::Complete(rewritten)),
            Err(obstacle) => lost(obstacle).map(Pass::AgreementLost),
        }
    }
}
