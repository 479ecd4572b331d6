//! The coordinator's side: takes the shards of a cluster, hands out the work, follows it, and lets them go.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::assignment::Assignment;
use super::board::{Board, HEARTBEAT_TIMEOUT, Heartbeat, Orders, Phase, Source};
use super::report::{Counts, LOOKS_EVERY, Report, report_interval};
use crate::rotation::cluster::api::{Api, ApiError};
use crate::rotation::error::RotationError;

/// A shard that has reported nothing new for this long is named; at least, see [`named_after`].
const NAMED_AFTER: Duration = Duration::from_secs(20);
/// A shard that has been silent for this long counts as gone.
const GONE_AFTER: Duration = Duration::from_mins(10);
/// How long the `ConfigMap`s may be unreachable.
const BLIND_FOR: Duration = Duration::from_mins(2);

/// What is heard while the shards work.
pub enum Heard<'a> {
    /// What is done, by resource, and with how many requests in flight.
    Progress(&'a BTreeMap<String, Counts>, usize),
    /// Something that a person should know.
    Concern(&'a str),
}

/// The one process that directs the shards of a cluster.
pub struct Coordinator {
    board: Board,
    orders: Orders,
}

impl Coordinator {
    /// Takes the shards over for a rotation, unless another rotation lives.
    ///
    /// # Errors
    /// Another rotation whose coordinator is alive.
    pub async fn take(api: Api, rotation: jiff::Timestamp) -> Result<Self, RotationError> {
        let board = Board::new(api);
        board.ensure().await?;
        let orders = Orders { rotation, generation: 0, phase: Phase::Paused, beat: 0 };
        let mut coordinator = Self { board, orders };
        let (began, mut heartbeat) = (Instant::now(), Heartbeat::default());
        loop {
            let Some(theirs) = coordinator.board.orders(Source::Etcd).await?.1 else { return Ok(coordinator) };
            // Counted on from the former coordinator: a shard that still works for it sees a greater number and starts
            // over.
            coordinator.orders.generation = theirs.generation;
            if theirs.rotation == rotation || theirs.phase == Phase::Ended || began.elapsed() > HEARTBEAT_TIMEOUT {
                return Ok(coordinator);
            }
            heartbeat.observe(&theirs, Instant::now());
            if heartbeat.is_alive(Instant::now()) {
                return Err(RotationError::Unusable(format!(
                    "another rotate-keys, begun at {}, has the shards of this cluster: let it end, or stop it",
                    theirs.rotation
                )));
            }
            tokio::time::sleep(LOOKS_EVERY).await;
        }
    }

    /// Hands out the work and follows it until every shard is done. Returns what they did, by resource.
    ///
    /// # Errors
    /// [`RotationError::Paused`] when a shard does not come any more, or another coordinator has taken them.
    pub async fn direct(
        &mut self,
        assignment: &Assignment,
        heard: &(dyn Fn(Heard<'_>) + Send + Sync),
    ) -> Result<BTreeMap<String, Counts>, RotationError> {
        self.hand_out(assignment).await?;
        let mut roll = Roll::call(assignment.shards);
        let mut seen = Instant::now();
        loop {
            tokio::time::sleep(LOOKS_EVERY).await;
            match self.look(&mut roll).await {
                Ok(()) => seen = Instant::now(),
                // The shards stop by themselves as long as nothing can be posted.
                Err(RotationError::Api { source, .. }) if is_transient(&source) && seen.elapsed() < BLIND_FOR => {
                    continue;
                }
                Err(error) => return Err(error),
            }
            heard(Heard::Progress(&roll.counts(), roll.concurrency()));
            if roll.all_finished() {
                return Ok(roll.counts());
            }
            for concern in roll.concerns(Instant::now())? {
                heard(Heard::Concern(&concern));
            }
        }
    }

    /// Posts the next generation. The command that posts it first has the shards; these begin once they see its assignment.
    async fn hand_out(&mut self, assignment: &Assignment) -> Result<(), RotationError> {
        self.board.ensure_reports(assignment.shards).await?;
        let (version, posted) = self.board.orders(Source::Etcd).await?;
        if posted.is_some_and(|orders| orders.generation != self.orders.generation) {
            return Err(taken());
        }
        (self.orders.phase, self.orders.beat) = (Phase::Paused, 0);
        self.orders.generation += 1;
        match self.board.claim(&self.orders, &version).await {
            Err(RotationError::Api { source, .. }) if source.status() == Some(409) => return Err(taken()),
            ended => ended?,
        }
        // The orders before the assignment, paused: a command that loses the race has then given out no work.
        self.board.assign(&self.orders, assignment).await?;
        self.orders.phase = Phase::Rewrite;
        self.beat().await
    }

    async fn look(&mut self, roll: &mut Roll) -> Result<(), RotationError> {
        roll.take(self.board.reports().await?, &self.orders, Instant::now());
        self.beat().await
    }

    async fn beat(&mut self) -> Result<(), RotationError> {
        let posted = self.board.orders(Source::Etcd).await?.1;
        let own =
            |orders: &Orders| (orders.rotation, orders.generation) == (self.orders.rotation, self.orders.generation);
        // Read from etcd before each beat: two coordinators that both write would keep each other's shards alive.
        if !posted.as_ref().is_some_and(own) {
            return Err(taken());
        }
        self.orders.beat += 1;
        self.board.order(&self.orders).await
    }

    /// Has the shards stop where they are, and wait.
    ///
    /// # Errors
    /// An error status of the API server, or no answer.
    pub async fn pause(&mut self) -> Result<(), RotationError> {
        self.leave(Phase::Paused).await
    }

    /// Lets the shards end.
    ///
    /// # Errors
    /// An error status of the API server, or no answer.
    pub async fn dismiss(&mut self) -> Result<(), RotationError> {
        self.leave(Phase::Ended).await
    }

    async fn leave(&mut self, phase: Phase) -> Result<(), RotationError> {
        let posted = self.board.orders(Source::Etcd).await?.1;
        if posted.is_some_and(|orders| orders.rotation != self.orders.rotation) {
            return Ok(());
        }
        self.orders.phase = phase;
        self.board.order(&self.orders).await
    }
}

/// When a shard that reports nothing new is named: with more shards, each reports less often.
fn named_after(shards: usize) -> Duration {
    NAMED_AFTER.max(3 * report_interval(shards))
}

fn taken() -> RotationError {
    RotationError::Paused("another rotate-keys has taken the shards of this cluster".into())
}

/// Whether it may be over in a moment.
fn is_transient(error: &ApiError) -> bool {
    error.status().is_none_or(|status| status == 429 || status >= 500)
}

/// What is known of each shard.
struct Roll {
    shards: Vec<Entry>,
}

struct Entry {
    report: Option<Report>,
    changed: Instant,
    concern: Option<String>,
}

impl Roll {
    fn call(shards: usize) -> Self {
        let entry = || Entry { report: None, changed: Instant::now(), concern: None };
        Self { shards: (0..shards).map(|_| entry()).collect() }
    }

    fn take(&mut self, mut reports: BTreeMap<u32, Report>, orders: &Orders, now: Instant) {
        for (index, entry) in (0..).zip(&mut self.shards) {
            let report = reports.remove(&index);
            let report =
                report.filter(|report| (report.rotation, report.generation) == (orders.rotation, orders.generation));
            if report.is_some() && report != entry.report {
                *entry = Entry { report, changed: now, concern: None };
            }
        }
    }

    fn all_finished(&self) -> bool {
        self.shards.iter().all(Entry::is_finished)
    }

    fn counts(&self) -> BTreeMap<String, Counts> {
        let mut all: BTreeMap<String, Counts> = BTreeMap::new();
        for (resource, counts) in self.reports().flat_map(|report| &report.counts) {
            let sum = all.entry(resource.clone()).or_default();
            *sum = sum.plus(*counts);
        }
        all
    }

    fn concurrency(&self) -> usize {
        self.reports().filter(|report| !report.finished).map(|report| report.concurrency).sum()
    }

    fn reports(&self) -> impl Iterator<Item = &Report> {
        self.shards.iter().filter_map(|entry| entry.report.as_ref())
    }

    /// What is new and worth saying; fails when a shard does not come any more.
    fn concerns(&mut self, now: Instant) -> Result<Vec<String>, RotationError> {
        let mut concerns = Vec::new();
        let named_after = named_after(self.shards.len());
        for (index, entry) in self.shards.iter_mut().enumerate().filter(|(_, entry)| !entry.is_finished()) {
            let silent = now.duration_since(entry.changed);
            let problem = entry.report.as_ref().and_then(|report| report.problem.as_ref());
            let concern = match problem {
                Some(problem) => format!("shard {index} stopped: {problem}"),
                None if silent >= named_after => {
                    format!(
                        "nothing new from shard {index}: look at its pod; its Job is manifests/rotate-keys-job.yaml"
                    )
                }
                None => continue,
            };
            if silent >= GONE_AFTER {
                return Err(RotationError::Paused(format!(
                    "{concern} (for {} min); continue with --resume, with or without --shards",
                    GONE_AFTER.as_secs() / 60
                )));
            }
            if entry.concern.as_ref() != Some(&concern) {
                entry.concern = Some(concern.clone());
                concerns.push(concern);
            }
        }
        Ok(concerns)
    }
}

impl Entry {
    fn is_finished(&self) -> bool {
        self.report.as_ref().is_some_and(|report| report.finished)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn orders() -> Orders {
        Orders { rotation: jiff::Timestamp::UNIX_EPOCH, generation: 2, phase: Phase::Rewrite, beat: 0 }
    }

    fn report(generation: u64, finished: bool, rewritten: u64) -> Report {
        let counts = Counts { rewritten, ..Counts::default() };
        Report {
            rotation: jiff::Timestamp::UNIX_EPOCH,
            generation,
            shares_done: 0,
            finished,
            concurrency: 4,
            counts: [("secrets".to_owned(), counts)].into(),
            problem: None,
        }
    }

    #[test]
    fn a_report_on_a_former_assignment_counts_for_nothing() {
        let mut roll = Roll::call(2);
        roll.take([(0, report(2, true, 5)), (1, report(1, true, 7))].into(), &orders(), Instant::now());
        assert!(!roll.all_finished());
        assert_eq!(roll.counts()["secrets"].rewritten, 5);
        roll.take([(0, report(2, true, 5)), (1, report(2, true, 9))].into(), &orders(), Instant::now());
        assert!(roll.all_finished());
        assert_eq!((roll.counts()["secrets"].rewritten, roll.concurrency()), (14, 0));
    }

    #[test]
    fn a_silent_shard_is_named_once_and_given_up_at_last() {
        let mut roll = Roll::call(2);
        let now = Instant::now();
        roll.take([(0, report(2, true, 5))].into(), &orders(), now);
        assert!(roll.concerns(now).unwrap().is_empty());
        assert!(roll.concerns(now + NAMED_AFTER).unwrap()[0].contains("shard 1"));
        assert!(roll.concerns(now + NAMED_AFTER).unwrap().is_empty());
        let given_up = roll.concerns(now + GONE_AFTER + NAMED_AFTER).unwrap_err();
        assert!(matches!(given_up, RotationError::Paused(why) if why.contains("shard 1")));
    }
}
