//! A pass in which the shards rewrite and this process watches over the agreement of the API servers.

use std::collections::BTreeMap;

use super::agreement::watch;
use super::passes::Pass;
use super::states::Run;
use crate::rotation::error::RotationError;
use crate::rotation::event::{Event, Reporter};
use crate::rotation::journal::Progress;
use crate::rotation::rewrite::Tally;
use crate::rotation::rewrite::risk::Risk;
use crate::rotation::shards::assignment::{Assignment, divide};
use crate::rotation::shards::coordinator::{Coordinator, Heard};
use crate::rotation::shards::report::Counts;

impl Run<'_> {
    /// Has the shards go through every resource.
    pub(super) async fn sharded_pass(&mut self, shards: usize) -> Result<Pass, RotationError> {
        let Some(adoption) = self.journal.adoption.clone() else {
            return Ok(Pass::AgreementLost("no adoption was seen".into()));
        };
        let api = self.converged().await?;
        let risks = self.risks(&api).await?;
        // What needs a look at each object's fields, or is left as a whole, is for the pass afterwards.
        let simple = |risk: &Risk| risk.converted.is_none() && risk.schemas.is_none();
        let of_shards = self.journal.resources.iter().zip(&risks).filter_map(|(progress, risk)| match risk {
            None => Some((progress, Vec::new())),
            Some(risk) => simple(risk).then(|| (progress, risk.mutators.clone())),
        });
        let of_shards: Vec<_> = of_shards.collect();
        let assignment = Assignment {
            servers: adoption.servers.iter().map(|server| server.address.clone()).collect(),
            #[allow(clippy::cast_precision_loss, reason = "a count of shards fits a double")]
            rate: self.settings.rate.map(|rate| rate / shards as f64),
            concurrency: (self.settings.concurrency / shards).max(1),
            shards,
            resources: divide(&api, &of_shards, shards).await?,
        };
        let mut coordinator = self.take_shards().await?;
        let (wanted, resources, report) = (self.wanted(), &self.journal.resources, self.report);
        let heard = |heard: Heard<'_>| match heard {
            Heard::Progress(counts, concurrency) => show(report, resources, counts, concurrency),
            Heard::Concern(concern) => report(Event::Note(concern)),
        };
        let etcd = self.etcd_clusters().await?;
        let ended = tokio::select! {
            ended = coordinator.direct(&assignment, &heard) => Ok(ended),
            full = self.until_full(etcd.as_ref()) => {
                let _ = coordinator.pause().await;
                self.wait_for_room(etcd.as_ref(), full).await?;
                return Ok(Pass::AgreementLost("etcd had no room, and the shards were stopped until it had".into()));
            }
            lost = watch(&self.cluster, &wanted, &adoption, self.settings.agreement_interval) => Err(lost),
        };
        // Where this cannot be posted, shards that go on stop by themselves.
        let _ = coordinator.pause().await;
        let counts = match ended {
            Ok(counts) => counts?,
            Err(lost) => return lost.map(Pass::AgreementLost),
        };
        for progress in &mut self.journal.resources {
            let counts = counts.get(&progress.resource.to_string()).copied().unwrap_or_default();
            progress.tally.add(counts.tally());
            // What a shard could not do, or did not know of, is found when everything is gone through again
            // (`resweep`).
            progress.done = true;
        }
        self.still_agreed(&wanted, &adoption, counts.values().map(|counts| counts.rewritten).sum()).await
    }

    /// Lets the shards end. The verdict stands, whatever comes of it.
    pub(super) async fn dismiss_shards(&self) {
        if self.settings.shards.is_none() {
            return;
        }
        let dismissed = async { self.take_shards().await?.dismiss().await };
        if let Err(error) = dismissed.await {
            (self.report)(Event::Note(&format!(
                "the shards could not be told that the rotation is over; delete the Job: {error}"
            )));
        }
    }

    /// Takes the shards over, unless another rotation has them.
    pub(super) async fn take_shards(&self) -> Result<Coordinator, RotationError> {
        Coordinator::take(self.cluster.entry().clone(), self.journal.started).await
    }
}

/// Shows the first resource that is not done.
fn show(report: Reporter<'_>, resources: &[Progress], counts: &BTreeMap<String, Counts>, concurrency: usize) {
    let tally = |progress: &Progress| -> Tally {
        counts.get(&progress.resource.to_string()).copied().unwrap_or_default().tally()
    };
    let unfinished = resources.iter().find(|progress| tally(progress).total() < progress.objects);
    if let Some(progress) = unfinished.or(resources.last()) {
        let (resource, objects) = (&progress.resource, progress.objects);
        report(Event::Progress { resource, tally: &tally(progress), objects, concurrency });
    }
}
