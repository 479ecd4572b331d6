//! [`Watch`]: follows every etcd cluster, and counts everything again where something was missed.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::{Duration, Instant};

use futures::stream::{self, SelectAll, Stream, StreamExt};
use tokio::time::MissedTickBehavior;

use super::aims::Aims;
use super::suspects::Suspects;
use super::view::{ClusterView, Told, View, together};
use crate::etcd::{Before, Change, ClusterId, EtcdAccess, EtcdCluster, EtcdClusters, EtcdError, Followed, Stored};
use crate::rotation::cluster::api::chain;
use crate::rotation::cluster::{Access, Cluster};
use crate::rotation::conclusion::announcement::post;
use crate::rotation::error::RotationError;
use crate::rotation::leftovers::census::Census;
use crate::rotation::leftovers::scan::slashed;

/// How often the API servers are asked which keys they write with.
const ASKS_EVERY: Duration = Duration::from_mins(1);
/// How soon they are asked again because of a write.
const ASKS_AGAIN: Duration = Duration::from_secs(1);
/// How long to wait before the first new attempt after a failure, and at most.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// How soon an etcd that did not answer is tried again while others are followed.
const MISSING_AGAIN: Duration = Duration::from_secs(30);

/// What is watched.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How the API servers are reached.
    pub access: Access,
    /// The EncryptionConfiguration; read again each time, since it may change.
    pub encryption_config: Option<PathBuf>,
    /// The one right `key_id`, where it is not the one that the plugins report.
    pub key_id: Option<String>,
    /// How etcd is reached.
    pub etcd: EtcdAccess,
    /// The API servers' prefix.
    pub prefix: String,
    /// How often the state is told.
    pub interval: Duration,
    /// Up to which revision an earlier watch saw everything.
    pub followed: BTreeMap<ClusterId, i64>,
}

/// A watch on etcd and on the API servers.
pub struct Watch<'a> {
    settings: Settings,
    cluster: Cluster,
    aims: Aims,
    asked: Instant,
    clusters: BTreeMap<ClusterId, OneCluster>,
    suspects: Suspects,
    censuses: u64,
    posts_events: bool,
    tell: &'a (dyn Fn(Told<'_>) + Send + Sync),
}

/// What is known of one cluster.
#[derive(Default)]
struct OneCluster {
    /// `None` where everything must be counted first.
    census: Option<Census>,
    /// Everything up to this revision was seen; 0 where nothing is known.
    seen: i64,
    /// What etcd said last about how far it has sent everything. etcd before 3.5.8 may say so too early, so that it
    /// counts from the next answer on.
    told: i64,
    /// The newest revision at a moment, and that moment.
    mark: Option<(i64, jiff::Timestamp)>,
    complete_at: Option<jiff::Timestamp>,
}

impl OneCluster {
    fn reach(&mut self, revision: i64) {
        self.seen = revision.max(self.seen);
        if let Some((_, at)) = self.mark.take_if(|(mark, _)| *mark <= revision) {
            self.complete_at = Some(at);
        }
    }
}

type Steps = SelectAll<Pin<Box<dyn Stream<Item = (ClusterId, Result<Followed, EtcdError>)> + Send>>>;

impl<'a> Watch<'a> {
    /// Asks the API servers what everything is to be stored under.
    ///
    /// # Errors
    /// If none answers, or their metrics may not be read.
    pub async fn begin(settings: Settings, tell: &'a (dyn Fn(Told<'_>) + Send + Sync)) -> Result<Self, RotationError> {
        let cluster = Cluster::connect(&settings.access).await?;
        let aims = Aims::ask(&cluster, settings.encryption_config.as_deref(), settings.key_id.as_deref()).await?;
        let known = |(id, seen): (&ClusterId, &i64)| (*id, OneCluster { seen: *seen, ..OneCluster::default() });
        let clusters = settings.followed.iter().map(known).collect();
        Ok(Self {
            settings: Settings { prefix: slashed(&settings.prefix), ..settings },
            cluster,
            aims,
            asked: Instant::now(),
            clusters,
            suspects: Suspects::default(),
            censuses: 0,
            posts_events: true,
            tell,
        })
    }

    /// Follows until it is dropped. What does not answer is tried again.
    ///
    /// # Errors
    /// When etcd cannot be read at the beginning.
    pub async fn run(&mut self) -> Result<Infallible, RotationError> {
        let (mut pause, mut said, mut turn) = (PAUSE, String::new(), 0_usize);
        loop {
            match self.session(turn).await {
                Ok(()) => pause = PAUSE,
                // Before anything was counted, a wrong address or a missing right is more likely than an outage.
                Err(error) if self.censuses == 0 => return Err(error),
                Err(error) => {
                    let why = chain(&error);
                    if why != said {
                        (self.tell)(Told::Note(&format!("etcd is not followed at the moment: {why}")));
                        said = why;
                    }
                    pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
                }
            }
            (self.tell)(Told::View(&self.view()));
            tokio::time::sleep(pause).await;
            turn = turn.wrapping_add(1);
        }
    }

    /// Where it stands.
    pub fn view(&self) -> View {
        let view = |one: &OneCluster| ClusterView { revision: one.seen, complete_at: one.complete_at };
        View {
            counted: together(self.clusters.values().filter_map(|one| one.census.as_ref()), &self.aims.wanted),
            clusters: self.clusters.iter().map(|(id, one)| (*id, view(one))).collect(),
            agree: self.aims.agree(),
            asked_at: self.aims.at,
            censuses: self.censuses,
        }
    }

    /// Follows until something must be counted or connected again.
    async fn session(&mut self, turn: usize) -> Result<(), RotationError> {
        let etcd = EtcdClusters::connect(&self.settings.etcd, &self.settings.prefix).await?;
        let is_missing = self.meet(&etcd);
        let began = Instant::now();
        let mut steps: Steps = SelectAll::new();
        for cluster in &etcd.clusters {
            let revision = cluster.revision().await?;
            let one = self.one(cluster.id);
            // An etcd that went back was restored from a snapshot: what was counted is not what it holds now.
            if one.census.is_none() || revision < one.seen {
                self.count(cluster).await?;
            }
            let after = self.one(cluster.id).seen;
            let follower = cluster.follow(&self.settings.prefix, after, turn).await?;
            let id = cluster.id;
            steps.push(Box::pin(stream::unfold(follower, move |mut follower| async move {
                let step = follower.next().await;
                Some(((id, step), follower))
            })));
        }
        let mut ticks = tokio::time::interval(self.settings.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some((id, step)) = steps.next() => {
                    if !self.take(id, step?) {
                        return Ok(());
                    }
                }
                _ = ticks.tick() => {
                    self.mark(&etcd).await?;
                    if self.asked.elapsed() >= ASKS_EVERY {
                        self.ask().await;
                    }
                    (self.tell)(Told::View(&self.view()));
                }
            }
            if !self.suspects.is_empty() && self.asked.elapsed() >= ASKS_AGAIN {
                self.ask().await;
            }
            if is_missing && began.elapsed() >= MISSING_AGAIN {
                return Ok(());
            }
        }
    }

    /// Forgets clusters that are gone for good. Whether one is missing that may come back.
    fn meet(&mut self, etcd: &EtcdClusters) -> bool {
        let is_here = |id: &ClusterId| etcd.clusters.iter().any(|cluster| cluster.id == *id);
        // While an endpoint does not answer, it may be the one of the missing cluster.
        if etcd.unknown.is_empty() {
            for id in self.clusters.keys().filter(|id| !is_here(id)) {
                (self.tell)(Told::Note(&format!(
                    "etcd cluster {id} is not at any endpoint any more, and not counted: was it restored as a new one?"
                )));
            }
            self.clusters.retain(|id, _| is_here(id));
        }
        !etcd.unknown.is_empty()
    }

    fn one(&mut self, id: ClusterId) -> &mut OneCluster {
        self.clusters.entry(id).or_default()
    }

    /// Counts everything, and looks through what was stored since the last revision that was seen.
    async fn count(&mut self, cluster: &EtcdCluster) -> Result<(), RotationError> {
        let prefix = self.settings.prefix.clone();
        let short = |key: &str| key.strip_prefix(&prefix).unwrap_or(key).to_owned();
        let (census, revision, newest) = loop {
            let (mut census, mut newest) = (Census::default(), 0);
            let scanned = cluster.scan(&prefix, |key, value, stored_at| {
                newest = stored_at.max(newest);
                census.add(&short(key), &Stored::of(value));
            });
            let scanned = scanned.await?;
            // Part of it as of one revision and part as of another is the state of no moment.
            if scanned.from_revision == scanned.revision {
                break (census, scanned.revision, newest);
            }
        };
        let since = self.one(cluster.id).seen;
        if since > revision {
            (self.tell)(Told::Note(&format!(
                "etcd cluster {} went back from revision {since} to {revision}: was it restored from a snapshot?",
                cluster.id
            )));
        } else if since > 0 && since < revision {
            let (wanted, suspects) = (&self.aims.wanted, &mut self.suspects);
            let each = |change: &Change| {
                if let Some(stored) = &change.now {
                    suspects.note(wanted, &short(&change.key), stored, change.revision);
                }
            };
            let seen = cluster.history(&prefix, since, revision, newest, each).await?;
            if seen.from > since.saturating_add(1) {
                (self.tell)(Told::Note(&format!(
                    "etcd cluster {} was compacted to revision {} before everything since {since} was seen: of what was \
                     stored and superseded in between nothing is known",
                    cluster.id, seen.from
                )));
            }
        }
        self.censuses = self.censuses.saturating_add(1);
        let census = Some(census);
        *self.one(cluster.id) = OneCluster { census, seen: revision, told: revision, ..OneCluster::default() };
        Ok(())
    }

    /// Takes a step into account. Whether it can go on.
    fn take(&mut self, id: ClusterId, step: Followed) -> bool {
        match step {
            Followed::Changes(changes) => self.apply(id, &changes),
            Followed::UpTo(revision) => {
                let one = self.one(id);
                let before = std::mem::replace(&mut one.told, revision);
                one.reach(before.min(revision));
                true
            }
            // Changes were missed, so the sums may be wrong.
            Followed::Compacted(_) => {
                self.one(id).census = None;
                false
            }
        }
    }

    fn apply(&mut self, id: ClusterId, changes: &[Change]) -> bool {
        let one = self.clusters.entry(id).or_default();
        let (Some(census), wanted) = (&mut one.census, &self.aims.wanted) else { return false };
        let mut is_right = true;
        for change in changes {
            let key = change.key.strip_prefix(&self.settings.prefix).unwrap_or(&change.key);
            is_right &= match &change.before {
                Before::Absent => true,
                Before::Value(stored) => census.remove(key, stored),
                // What the key held before cannot be taken off the sums.
                Before::Compacted => false,
            };
            if let Some(stored) = &change.now {
                census.add(key, stored);
                self.suspects.note(wanted, key, stored, change.revision);
            }
        }
        if !is_right {
            one.census = None;
        }
        // A later revision would not have been sent before all of an earlier one.
        one.reach(changes.iter().map(|change| change.revision).max().unwrap_or_default());
        is_right
    }

    /// Asks each cluster how far it is now, to tell later as of when everything was seen.
    async fn mark(&mut self, etcd: &EtcdClusters) -> Result<(), RotationError> {
        for cluster in &etcd.clusters {
            if self.one(cluster.id).mark.is_none() {
                let now = jiff::Timestamp::now();
                let revision = cluster.revision().await?;
                let one = self.one(cluster.id);
                if revision < one.seen {
                    return Err(RotationError::Silent(format!("etcd cluster {} went back", cluster.id)));
                }
                one.mark = Some((revision, now));
            }
        }
        Ok(())
    }

    /// Asks the API servers again, and tells what was stored under none of their keys.
    async fn ask(&mut self) {
        self.asked = Instant::now();
        let (file, key_id) = (self.settings.encryption_config.as_deref(), self.settings.key_id.as_deref());
        let aims = match Aims::ask(&self.cluster, file, key_id).await {
            Ok(aims) => aims,
            Err(error) => {
                tracing::debug!(error = %chain(&error), "the API servers could not be asked");
                Aims { unasked: vec![chain(&error)], ..self.aims.clone() }
            }
        };
        let changed = aims.targets() != self.aims.targets();
        self.aims = aims;
        for write in self.suspects.judge(&self.aims, changed) {
            (self.tell)(Told::OldKey(&write));
            if write.first && self.posts_events {
                let message = format!(
                    "{}{} was stored under a former key (revision {}): run kube-envelope verify",
                    self.settings.prefix, write.key, write.revision
                );
                if let Err(error) = post(self.cluster.entry(), "Warning", "WrittenUnderFormerKey", &message).await {
                    self.posts_events = false;
                    (self.tell)(Told::Note(&format!("no Events are posted: {error}")));
                }
            }
        }
    }
}
