//! A rotation from state to state. The journal is written after each; any state may be begun again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::outage::Outage;
use super::settings::Settings;
use super::turns::TurnsBack;
use crate::rotation::adoption::{Adoption, Obstacle, Reports, Wanted, attempt, joined, look, look_fresh};
use crate::rotation::cluster::Cluster;
use crate::rotation::cluster::api::{Api, chain};
use crate::rotation::cluster::canary::{NAMESPACE, canaries};
use crate::rotation::cluster::key_id_hash::KeyIdHash;
use crate::rotation::cluster::lease::{Holder, Lease};
use crate::rotation::cluster::resources::Coverage;
use crate::rotation::cluster::writer::StoredUnder;
use crate::rotation::conclusion::announcement::announce;
use crate::rotation::error::RotationError;
use crate::rotation::event::{Event, Reporter};
use crate::rotation::journal::verdict::Verdict;
use crate::rotation::journal::{Journal, State};
use crate::rotation::leftovers::judge::Expected;
use crate::rotation::leftovers::scan::Scan;
use crate::rotation::rewrite::pace::Pace;
use crate::rotation::run::plan::{coverage, encrypted, fill, reported_now};
use crate::rotation::run::preflight::dry_run;

/// How often a server is asked whether it has adopted the target key.
const LOOKS_EVERY: Duration = Duration::from_secs(2);
/// The same after a look has shown that a server cannot read what another one stores: each look stores something again.
const AFTER_CLOSED: Duration = Duration::from_secs(30);
/// How long a full disk is waited for.
const DISK_IS_FULL_FOR: Duration = Duration::from_mins(10);

/// Whether a proof goes on from an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Continuity {
    /// Nothing that voids it has happened since.
    Unbroken,
    /// It is the first, or something has happened: whatever was shown before must be shown again.
    Broken,
}

/// A rotation under way.
pub struct Run<'a> {
    pub(super) settings: Settings,
    pub(super) cluster: Cluster,
    pub(super) coverage: Coverage,
    pub(super) journal: Journal,
    pub(super) report: Reporter<'a>,
    /// Whether the adoption in the journal was seen by this process.
    pub(super) seen_adopted: bool,
    pub(super) turns_back: TurnsBack,
    /// What this process found when it last looked at every value in etcd, and what each was held against.
    pub(super) searched: Option<(Expected, Scan)>,
}

impl<'a> Run<'a> {
    /// Takes up a journal: a new one, or one that was left.
    ///
    /// # Errors
    /// The cluster cannot be reached, or is not the journal's.
    pub async fn start_or_resume(
        settings: Settings,
        journal: Journal,
        report: Reporter<'a>,
    ) -> Result<Self, RotationError> {
        let cluster = Cluster::connect(&settings.access).await?;
        let mut journal = journal;
        // An operator who resumes wants it tried again: what was left may be gone.
        journal.passes = 0;
        same_cluster(&cluster, &mut journal).await?;
        let coverage = coverage(&cluster, &settings).await?;
        let turns_back = TurnsBack::default();
        Ok(Self { settings, cluster, coverage, journal, report, seen_adopted: false, turns_back, searched: None })
    }

    /// What was done so far.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Plans only: fills the journal in memory and writes nothing. `fresh`: a rotation follows, so what the plugins
    /// report must be of now.
    ///
    /// # Errors
    /// The cluster or etcd cannot be read, or plugins report different keys.
    pub async fn plan(&mut self, fresh: bool) -> Result<(), RotationError> {
        let found = encrypted(self.cluster.entry(), &self.coverage).await?;
        if self.settings.rotate_kek && self.coverage.providers().is_empty() {
            return Err(RotationError::Unusable(
                "--rotate-kek makes a new version of a KEK active, and by the EncryptionConfiguration no KMS v2 provider \
                 writes any more: leave it out to move everything to the provider that writes now"
                    .into(),
            ));
        }
        found.check_names("--skip", &self.settings.skip)?;
        found.check_names("--allow-changes", &self.settings.allow_changes)?;
        let found = found.for_rewriting(self.settings.include_events, &self.settings.skip);
        let seen = if fresh && self.settings.key_id.is_none() {
            let (active, report) = (self.active_by_keks().await, self.report);
            let waits =
                || report(Event::Waiting("every API server must ask its plugin for the key again, within 90 s"));
            let (providers, accept_unproven) = (self.coverage.providers(), self.settings.accept_unproven);
            look_fresh(&self.cluster, &providers, &active, accept_unproven, &waits).await
        } else {
            look(&self.cluster, Reports::AsTheyAre, true).await
        };
        let seen = seen.map_err(RotationError::from)?;
        self.journal.former = reported_now(&seen, &self.coverage)
            .or_else(|error| if self.settings.rotate_kek { Err(error) } else { Ok(BTreeMap::new()) })?;
        self.journal.inferred = self.coverage.is_inferred();
        if !fresh {
            self.recognise_plugin()?;
            self.aim().await?;
        }
        if let Some(key_id) = &self.settings.key_id {
            let hash = KeyIdHash::of(key_id);
            let all = self.coverage.providers().into_iter().map(|provider| (provider, hash.clone()));
            self.journal.targets = StoredUnder::from(all.collect::<BTreeMap<_, _>>());
        }
        fill(&mut self.journal, self.cluster.entry(), &found).await?;
        if fresh {
            let objects: u64 = self.journal.resources.iter().map(|progress| progress.objects).sum();
            let resources = self.journal.resources.len();
            (self.report)(Event::Note(&format!("{resources} encrypted resource(s), about {objects} object(s)")));
        }
        Ok(())
    }

    /// Tries the rewrite of every object without storing anything.
    ///
    /// # Errors
    /// The cluster or etcd cannot be read.
    pub async fn dry_run(&mut self) -> Result<(), RotationError> {
        self.look_ahead().await?;
        let report = self.report;
        let counts: BTreeMap<_, _> =
            self.journal.resources.iter().map(|progress| (progress.resource.clone(), progress.objects)).collect();
        let api = self.cluster.entry().clone();
        let (mut pace, keys, risks) = (self.pace(), self.keys_in_etcd().await?, self.risks(&api).await?);
        dry_run(&api, keys.as_ref(), &risks, &mut self.journal, &mut pace, &mut |resource, tally, concurrency| {
            let objects = counts.get(resource).copied().unwrap_or(0);
            report(Event::Progress { resource, tally, objects, concurrency });
        })
        .await?;
        self.foretell_too_large().await
    }

    /// Goes from state to state until the verdict.
    ///
    /// # Errors
    /// The journal then says where it stands; the same call with the journal read again goes on.
    pub async fn to_end(&mut self) -> Result<Verdict, RotationError> {
        let report = self.report;
        let waiting = |why: &str| report(Event::Waiting(why));
        self.write().await?;
        self.note_etcd().await?;
        self.etcd_takes_writes().await?;
        let lease = Lease::take(self.cluster.entry().patient(), Holder::this_process(), &waiting).await?;
        let ended = self.drive_under(&lease).await;
        lease.release().await;
        if let Ok(verdict) = &ended
            && let Err(error) = announce(self.cluster.entry(), verdict).await
        {
            (self.report)(Event::Note(&format!("the verdict was not posted as an Event: {error}")));
        }
        if ended.is_ok() {
            (self.report)(Event::Note(&format!("the namespace {NAMESPACE} stays, for the Event and for the next run")));
        }
        ended
    }

    pub(super) async fn drive(&mut self) -> Result<Verdict, RotationError> {
        self.journal.paused = None;
        let mut outage = Outage::default();
        loop {
            self.write().await?;
            let state = self.journal.state;
            (self.report)(Event::State(state));
            match self.step().await {
                Ok(None) => outage.went_well(state),
                Ok(Some(verdict)) => {
                    self.dismiss_shards().await;
                    return Ok(verdict);
                }
                Err(error) if self.begins_again(&error, &mut outage).await => {}
                Err(error) => return Err(self.paused(error).await),
            }
            if let Err(endless) = self.turns_back.count_if(self.journal.state < state) {
                return Err(self.paused(endless).await);
            }
        }
    }

    async fn step(&mut self) -> Result<Option<Verdict>, RotationError> {
        let state = self.journal.state;
        // After a stop nobody knows what the servers did meanwhile; also when all was done but the verdict.
        if state > State::AwaitAdoption && state != State::Aborted && !self.seen_adopted {
            let continuity = self.await_adoption().await?;
            if continuity == Continuity::Broken && state > State::Agree {
                self.journal.state = State::Agree;
                return Ok(None);
            }
        }
        self.journal.state = match state {
            State::Plan => {
                self.plan(true).await?;
                State::Preflight
            }
            State::Preflight => {
                self.preflight().await?;
                self.may_rewrap().await?;
                if self.settings.rotate_kek { State::RotateKek } else { State::AwaitAdoption }
            }
            State::RotateKek => {
                self.rotate_keks().await?;
                State::AwaitAdoption
            }
            State::AwaitAdoption => {
                self.await_adoption().await?;
                State::Agree
            }
            State::Agree => self.agree().await?,
            State::Rewrite => self.rewrite().await?,
            State::Resweep => self.resweep().await?,
            State::Verify => self.verify().await?,
            State::Settle => self.settle().await?,
            State::Snapshot => self.snapshot().await?,
            State::Done => match self.confirm().await? {
                None => {
                    if self.snapshot_is_outdated() {
                        self.snapshot().await?;
                    }
                    self.look_at_etcd_again().await?;
                    self.rehearse().await?;
                    return self.conclude().await.map(Some);
                }
                Some(back) => back,
            },
            State::Aborted => return self.conclude().await.map(Some),
        };
        Ok(None)
    }

    /// Writes the journal. A disk that is full is waited for.
    pub(super) async fn write(&self) -> Result<(), RotationError> {
        let began = Instant::now();
        let mut said = false;
        loop {
            match self.journal.write(&self.settings.journal) {
                Err(RotationError::File { file, source, .. })
                    if is_full(&source) && began.elapsed() < DISK_IS_FULL_FOR =>
                {
                    if !said {
                        (self.report)(Event::Waiting(&format!(
                            "{} cannot be written ({source}): make room on that disk; the rotation waits for up to {}",
                            file.display(),
                            humantime::format_duration(DISK_IS_FULL_FOR)
                        )));
                        said = true;
                    }
                    tokio::time::sleep(LOOKS_EVERY).await;
                }
                ended => return ended,
            }
        }
    }

    pub(super) fn pace(&self) -> Pace {
        Pace::new(self.settings.concurrency, self.settings.rate, Instant::now())
    }

    pub(super) fn wanted(&self) -> Wanted {
        let rotated = !self.journal.keks_rotated.is_empty() && self.journal.targets.is_empty();
        let resources = || self.journal.resources.iter();
        let mut targets = self.journal.targets.clone();
        // A local provider has no key_id, and is what it is: its target is known from the start.
        targets.local.extend(self.coverage.local_writers());
        Wanted {
            providers: self.coverage.providers(),
            canaries: canaries(&self.coverage),
            targets,
            former: if rotated { self.journal.former.clone() } else { BTreeMap::new() },
            was_adopted: self.journal.adoption.is_some(),
            accept_unproven: self.settings.accept_unproven,
            resources: resources().map(|progress| progress.resource.clone()).filter(|one| !one.is_event()).collect(),
            writers: resources().map(|progress| (progress.resource.to_string(), progress.writer.clone())).collect(),
            elsewhere: self.coverage.other_prefixes(),
            names: self.journal.names.clone(),
            on_file: None,
        }
    }

    /// Waits until every API server has proven that it uses the target key; says whether that holds since an earlier
    /// proof without a gap.
    pub(super) async fn await_adoption(&mut self) -> Result<Continuity, RotationError> {
        let began = Instant::now();
        let until = jiff::Timestamp::now().checked_add(self.settings.adoption_timeout).unwrap_or(jiff::Timestamp::MAX);
        let mut said = String::new();
        loop {
            let mut pause = LOOKS_EVERY;
            let why = match attempt(&self.cluster, &self.wanted_here().await, self.journal.adoption.as_ref()).await {
                Ok(adoption) => {
                    if !adoption.servers.is_empty() && self.waited_enough(began, &adoption) {
                        return Ok(self.adopted(adoption));
                    }
                    "metrics cannot be read; waiting instead".to_owned()
                }
                Err(Obstacle::NotYet(why)) => why,
                Err(Obstacle::Closed(why)) => {
                    pause = AFTER_CLOSED;
                    why
                }
                Err(Obstacle::Failed(error)) if error.passes_by_itself() => chain(&error),
                Err(Obstacle::TargetChanged(why)) => {
                    return Err(RotationError::Paused(format!(
                        "{why}: another rotation began meanwhile; give this one up (--abort) and start over"
                    )));
                }
                Err(other) => return Err(other.into()),
            };
            if began.elapsed() >= self.settings.adoption_timeout {
                let said = [&[why], self.journal.kek_answers.as_slice()].concat().join("; ");
                return Err(RotationError::NotConverged(said));
            }
            if said != why {
                (self.report)(Event::Waiting(&format!("{why} (until {}, --adoption-timeout)", clock(until))));
                said = why;
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Without proof, the whole adoption timeout has to pass.
    fn waited_enough(&self, began: Instant, adoption: &Adoption) -> bool {
        adoption.evidence == crate::rotation::adoption::Evidence::WriteProof
            || began.elapsed() + LOOKS_EVERY >= self.settings.adoption_timeout
    }

    fn adopted(&mut self, adoption: Adoption) -> Continuity {
        self.seen_adopted = true;
        self.journal.targets.clone_from(&adoption.targets);
        let earlier = self.journal.adoption.replace(adoption);
        let adoption = self.journal.adoption.as_ref().expect("it was just put there");
        match earlier {
            // Without metrics there are no counters to compare, so nothing is ever shown to hold or to be broken: the
            // verdict is *not proven* at best, and going back would never end.
            Some(_) if adoption.evidence == crate::rotation::adoption::Evidence::Waited => return Continuity::Unbroken,
            Some(earlier) if earlier.since == adoption.since => return Continuity::Unbroken,
            Some(_) => {
                let why = joined(&adoption.broken_by);
                (self.report)(Event::Note(&format!("what was proven before no longer holds: {why}")));
                self.turns_back.because(&why);
            }
            None => {}
        }
        // What was stored under a former key meanwhile may lie in old revisions and in the snapshot as well.
        (self.journal.clean_since, self.journal.settled, self.journal.snapshot) = (None, None, None);
        self.journal.passes = 0;
        Continuity::Broken
    }

    /// The server that everything is asked of: one of those that were seen to store under the target key.
    pub(super) async fn converged(&self) -> Result<Api, RotationError> {
        let adopted = self.journal.adoption.as_ref().and_then(|adoption| adoption.servers.first());
        let servers = self.cluster.servers().await.unwrap_or_default();
        let same = servers.into_iter().find(|api| adopted.is_some_and(|server| server.address == api.address()));
        Ok(same.unwrap_or_else(|| self.cluster.entry().clone()))
    }
}

/// A moment as it is written in messages.
pub(super) fn clock(moment: jiff::Timestamp) -> String {
    moment.strftime("%H:%M:%SZ").to_string()
}

fn is_full(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
}

/// A journal is about one cluster, whatever the kubeconfig says now.
async fn same_cluster(cluster: &Cluster, journal: &mut Journal) -> Result<(), RotationError> {
    let uid = cluster.uid().await?;
    let begun = journal.cluster.get_or_insert_with(|| uid.clone());
    if *begun == uid {
        return Ok(());
    }
    Err(RotationError::Unusable(format!(
        "the rotation in the journal is about another cluster: the namespace kube-system has uid {uid} at {}, and had \
         {begun} when the rotation began",
        cluster.entry().address()
    )))
}
