//! One shard: rewrites what is assigned to it as long as the coordinator lives and says so, and reports what it did.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::assignment::{Assignment, Share};
use super::board::{Board, HEARTBEAT_TIMEOUT, Heartbeat, Orders, Phase, Source};
use super::report::{Counts, LOOKS_EVERY, Report, report_interval};
use crate::rotation::cluster::api::{Api, chain};
use crate::rotation::cluster::listing::namespaces;
use crate::rotation::cluster::{Access, Cluster};
use crate::rotation::error::RotationError;
use crate::rotation::event::{Event, Reporter};
use crate::rotation::rewrite::pace::Pace;
use crate::rotation::rewrite::risk::Risk;
use crate::rotation::rewrite::{Ask, Sweep, Tally};

/// A look that takes longer is given up, so that silence is noticed in time.
const LOOK_WITHIN: Duration = Duration::from_secs(8);

struct Worker<'a> {
    cluster: Cluster,
    coordinator: CoordinatorLink,
    /// What this shard has done of the assignment that it saw last.
    done: Option<Report>,
    report: Reporter<'a>,
}

/// Works as shard `index` until the rotation is over. Returns how many of its objects were refused.
///
/// # Errors
/// When the API server refuses to serve it, or does not answer any more; a new process goes on where this one was.
pub async fn work(access: &Access, index: u32, report: Reporter<'_>) -> Result<u64, RotationError> {
    let cluster = Cluster::connect(access).await?;
    let coordinator =
        CoordinatorLink { board: Board::new(cluster.entry().clone()), index, heartbeat: Heartbeat::default() };
    let mut worker = Worker { cluster, coordinator, done: None, report };
    let mut said = String::new();
    loop {
        let why = match worker.coordinator.look().await? {
            Some(orders) if orders.phase == Phase::Ended => return Ok(worker.refused()),
            Some(orders) => worker.turn(orders).await?,
            None => "no message from rotate-keys --shards yet".to_owned(),
        };
        if why != said {
            (worker.report)(Event::Waiting(&why));
            said = why;
        }
        tokio::time::sleep(LOOKS_EVERY).await;
    }
}

impl Worker<'_> {
    /// Does what there is to do, and says what it waits for then.
    async fn turn(&mut self, orders: Orders) -> Result<String, RotationError> {
        let Some(assignment) = self.coordinator.seen(self.coordinator.board.assignment(&orders)).await?.flatten()
        else {
            return Ok("nothing is assigned yet".into());
        };
        let Some(shares) = assignment.shares(self.coordinator.index as usize) else {
            return Err(RotationError::Unusable(format!(
                "there is no shard {} of {}: set the Job's completions to the value of --shards of rotate-keys",
                self.coordinator.index, assignment.shards
            )));
        };
        // After a restart, what the former process reported.
        let Some(posted) = self.coordinator.seen(self.coordinator.board.reported(self.coordinator.index)).await? else {
            return Ok("what this shard reported before cannot be read just now".into());
        };
        let report = self.done.take_if(|report| is_about(report, &orders));
        let report = report.or_else(|| posted.clone().filter(|one| is_about(one, &orders)));
        let report = report.unwrap_or_else(|| begun(&orders));
        // The coordinator sees in it that this shard has the orders, before any work is done.
        if posted.as_ref() != Some(&report) {
            self.coordinator.tell(&report).await;
        }
        if report.finished || orders.phase != Phase::Rewrite || !self.coordinator.heartbeat.is_alive(Instant::now()) {
            let why =
                if report.finished { "this shard is done; the others continue" } else { "the rewrite is suspended" };
            self.done = Some(report);
            return Ok(why.into());
        }
        (self.report)(Event::Note(&format!("generation {}: {} share(s)", orders.generation, shares.len())));
        let report = Mutex::new(Report { problem: None, ..report });
        let api = self.server(&assignment).await;
        let ended = tokio::select! {
            ended = rewrite(&api, &assignment, &shares, &report, self.report) => ended.map(|()| "done".to_owned()),
            why = self.coordinator.attend(&orders, &report, report_interval(assignment.shards)) => Ok(why),
        };
        let mut report = report.into_inner().expect("nothing panics while it is held");
        report.problem = ended.as_ref().err().map(|error| chain(error));
        self.coordinator.tell(&report).await;
        self.done = Some(report);
        ended
    }

    /// The API server that this shard asks: shards spread over those that have adopted the key.
    async fn server(&self, assignment: &Assignment) -> Api {
        let wanted = assignment.servers.iter().cycle().nth(self.coordinator.index as usize);
        let servers = self.cluster.servers().await.unwrap_or_default();
        let same = servers.into_iter().find(|api| wanted.is_some_and(|address| address == api.address()));
        // A server that is gone since: the balancer's address leads to one that has the key as well, or agreement is
        // lost.
        same.unwrap_or_else(|| self.cluster.entry().clone())
    }

    fn refused(&self) -> u64 {
        self.done.iter().flat_map(|report| report.counts.values()).map(|counts| counts.refused).sum()
    }
}

fn is_final(error: &RotationError) -> bool {
    match error {
        RotationError::Api { source, .. } => matches!(source.status(), Some(401 | 403)),
        _ => true,
    }
}

fn is_about(report: &Report, orders: &Orders) -> bool {
    (report.rotation, report.generation) == (orders.rotation, orders.generation)
}

fn begun(orders: &Orders) -> Report {
    Report {
        rotation: orders.rotation,
        generation: orders.generation,
        shares_done: 0,
        finished: false,
        concurrency: 0,
        counts: std::collections::BTreeMap::new(),
        problem: None,
    }
}

/// Goes through the shares that are not done.
async fn rewrite(
    api: &Api,
    assignment: &Assignment,
    shares: &[Share<'_>],
    report: &Mutex<Report>,
    tell: Reporter<'_>,
) -> Result<(), RotationError> {
    let locked = || report.lock().expect("nothing panics while it is held");
    let namespaces = namespaces(api).await?;
    let mut pace = Pace::new(assignment.concurrency, assignment.rate, Instant::now());
    let begin = locked().shares_done;
    for share in &shares[begin.min(shares.len())..] {
        let name = share.of.resource.to_string();
        let risk = Risk { mutators: share.of.mutators.clone(), ..Risk::default() };
        let before = locked().counts.get(&name).copied().unwrap_or_default();
        let mut tally = Tally::default();
        let sweep = Sweep {
            api,
            folders: share.folders(&namespaces),
            ask: Ask::Rewrite,
            adopted_at: share.of.adopted_at,
            risk: Some(&risk),
            pace: &mut pace,
            tally: &mut tally,
            keys: None,
        };
        let mut seen = |tally: &Tally, concurrency: usize| {
            let mut report = locked();
            report.concurrency = concurrency;
            report.counts.insert(name.clone(), before.plus(Counts::of(tally)));
        };
        sweep.run(&mut seen).await?;
        let counts = before.plus(Counts::of(&tally));
        for (path, why) in tally.refused.iter().chain(&tally.withheld).chain(&tally.undecryptable) {
            tell(Event::Note(&format!("refused: {path}: {why}")));
        }
        if let Some(why) = &tally.unlistable {
            tell(Event::Note(&format!("cannot list {name}: {why}")));
        }
        let mut report = locked();
        report.counts.insert(name, counts);
        // Only a whole share counts. One that was left half way is begun again, and skips what is current.
        report.shares_done += 1;
    }
    locked().finished = true;
    Ok(())
}

/// What a shard hears of the coordinator, and tells it. Each look has its time, so that silence is noticed.
struct CoordinatorLink {
    board: Board,
    index: u32,
    heartbeat: Heartbeat,
}

impl CoordinatorLink {
    /// Looks at the orders; nothing if they cannot be seen just now.
    async fn look(&mut self) -> Result<Option<Orders>, RotationError> {
        let seen = self.seen(self.board.orders(Source::Cache)).await?.and_then(|(_, orders)| orders);
        if let Some(orders) = &seen {
            self.heartbeat.observe(orders, Instant::now());
        }
        Ok(seen)
    }

    /// What is read; nothing if it cannot be read just now.
    async fn seen<T>(&self, reads: impl Future<Output = Result<T, RotationError>>) -> Result<Option<T>, RotationError> {
        match tokio::time::timeout(LOOK_WITHIN, reads).await {
            Ok(Ok(seen)) => Ok(Some(seen)),
            // Rights that are missing do not come by waiting.
            Ok(Err(error)) if is_final(&error) => Err(error),
            Ok(Err(_)) | Err(_) => Ok(None),
        }
    }

    /// Posts what was done; whether it arrived.
    async fn tell(&self, report: &Report) -> bool {
        let told = tokio::time::timeout(LOOK_WITHIN, self.board.report(self.index, report)).await;
        matches!(told, Ok(Ok(())))
    }

    /// Reports again and again, and looks whether the rewrite may go on; ends, with the reason, when it may not.
    async fn attend(&mut self, orders: &Orders, report: &Mutex<Report>, interval: Duration) -> String {
        let (mut last, mut told) = (None, Instant::now());
        loop {
            tokio::time::sleep(LOOKS_EVERY).await;
            if told.elapsed() >= interval {
                let now = report.lock().expect("nothing panics while it is held").clone();
                if last.as_ref() != Some(&now) {
                    last = self.tell(&now).await.then_some(now);
                }
                told = Instant::now();
            }
            // What keeps it from being seen is told once the rewrite has stopped for it.
            if let Ok(Some(now)) = self.look().await
                && (now.rotation, now.generation, now.phase) != (orders.rotation, orders.generation, Phase::Rewrite)
            {
                return "the coordinator stopped the rewrite".into();
            }
            if !self.heartbeat.is_alive(Instant::now()) {
                return format!("no message from the coordinator for {} s", HEARTBEAT_TIMEOUT.as_secs());
            }
        }
    }
}
