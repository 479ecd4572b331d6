//! The one `ConfigMap` in which coordinator and shards tell each other what matters. Each writes keys of its own.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::assignment::Assignment;
use crate::rotation::cluster::api::{Api, Metadata};
use crate::rotation::error::RotationError;
use crate::rotation::rewrite::Tally;

/// Where shards run and the `ConfigMap` is.
pub const NAMESPACE: &str = "kube-envelope";
/// Its name.
pub const NAME: &str = "rotate-keys";

const ORDERS: &str = "orders";
const ASSIGNMENT: &str = "assignment";
const REPORT: &str = "shard-";

/// How often each side looks at the `ConfigMap`, and reports.
pub const LOOKS_EVERY: Duration = Duration::from_secs(2);
/// A coordinator that has not been heard of for so long may be gone: then nobody watches over the API servers'
/// agreement, and shards stop.
pub const SILENCE: Duration = Duration::from_secs(20);

/// What the coordinator wants of the shards.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Orders {
    /// Which rotation: when it began.
    pub rotation: jiff::Timestamp,
    /// Counts the assignments. A shard begins anew with each.
    pub generation: u64,
    /// What is to be done.
    pub phase: Phase,
    /// Grows as long as the coordinator lives and the API servers agree.
    pub beat: u64,
}

/// What shards are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Phase {
    /// Rewrite what is assigned.
    Rewrite,
    /// Send nothing, and wait.
    Paused,
    /// The rotation is over.
    Ended,
}

/// What a shard has done since the assignment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Report {
    /// Of which rotation.
    pub rotation: jiff::Timestamp,
    /// Of which assignment.
    pub generation: u64,
    /// So many shares are done, in their order.
    pub shares_done: usize,
    /// Whether all are.
    pub finished: bool,
    /// Requests under way, at most, just now.
    pub concurrency: usize,
    /// By resource.
    pub counts: BTreeMap<String, Counts>,
    /// Why it stopped, if it did.
    pub problem: Option<String>,
}

/// What happened to objects, without their names: whatever was refused is asked again by the coordinator, who names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Stored again.
    pub rewritten: u64,
    /// Found stored under the server's key already.
    pub fresh: u64,
    /// Stored after all servers had adopted the key: not asked.
    pub newer: u64,
    /// Deleted meanwhile.
    pub gone: u64,
    /// Changed by an admission webhook.
    pub altered: u64,
    /// Refused, or not readable.
    pub refused: u64,
}

impl Counts {
    /// Those of a tally.
    pub fn of(tally: &Tally) -> Self {
        let &Tally { rewritten, fresh, newer, gone, altered, .. } = tally;
        let refused = (tally.refused.len() + tally.undecryptable.len()) as u64;
        Self { rewritten, fresh, newer, gone, altered, refused }
    }

    /// The sum.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            rewritten: self.rewritten + other.rewritten,
            fresh: self.fresh + other.fresh,
            newer: self.newer + other.newer,
            gone: self.gone + other.gone,
            altered: self.altered + other.altered,
            refused: self.refused + other.refused,
        }
    }

    /// As a tally, which names no object.
    pub fn tally(self) -> Tally {
        let Self { rewritten, fresh, newer, gone, altered, refused: _ } = self;
        Tally { rewritten, fresh, newer, gone, altered, ..Tally::default() }
    }
}

/// All that is posted.
#[derive(Debug, Default)]
pub struct Posted {
    /// Resource version of the `ConfigMap`.
    pub version: String,
    /// What the coordinator wants; nothing before the first one came.
    pub orders: Option<Orders>,
    /// Who rewrites what.
    pub assignment: Option<Assignment>,
    /// What each shard has done.
    pub reports: BTreeMap<u32, Report>,
}

#[derive(Deserialize)]
struct ConfigMap {
    metadata: Metadata,
    #[serde(default)]
    data: BTreeMap<String, String>,
}

/// The `ConfigMap` of a cluster.
pub struct Board {
    api: Api,
}

impl Board {
    /// Through this server or balancer.
    pub fn new(api: Api) -> Self {
        Self { api }
    }

    /// Makes the namespace and the `ConfigMap`, unless they are there.
    pub async fn ensure(&self) -> Result<(), RotationError> {
        let made = self.api.ensure("ConfigMap", "configmaps", NAMESPACE, NAME).await;
        made.map_err(RotationError::api(format!("make the ConfigMap {NAME} in {NAMESPACE}")))
    }

    /// Reads everything; `None` where there is no `ConfigMap` yet.
    pub async fn read(&self) -> Result<Option<Posted>, RotationError> {
        let failed = || RotationError::api(format!("read the ConfigMap {NAME} in {NAMESPACE}"));
        let answer = self.api.get(&path(), "application/json").await.map_err(failed())?;
        if answer.status == 404 {
            return Ok(None);
        }
        let body = self.api.success(answer).map_err(failed())?;
        let ConfigMap { metadata, data } = self.api.parse(&body).map_err(failed())?;
        let mut posted = Posted { version: metadata.resource_version, ..Posted::default() };
        for (key, text) in &data {
            match key.strip_prefix(REPORT).map(str::parse) {
                Some(Ok(index)) => _ = posted.reports.insert(index, parsed(key, text)?),
                _ if key == ORDERS => posted.orders = Some(parsed(key, text)?),
                _ if key == ASSIGNMENT => posted.assignment = Some(parsed(key, text)?),
                _ => {}
            }
        }
        Ok(Some(posted))
    }

    /// Posts orders with a new assignment, and takes the reports on former ones away. Fails if the `ConfigMap` has
    /// changed since it was read.
    pub async fn assign(&self, orders: &Orders, assignment: &Assignment, read: &Posted) -> Result<(), RotationError> {
        let mut data: Map<String, Value> =
            read.reports.keys().map(|index| (format!("{REPORT}{index}"), Value::Null)).collect();
        data.insert(ORDERS.into(), text(orders));
        data.insert(ASSIGNMENT.into(), text(assignment));
        self.patch(json!({"metadata": {"resourceVersion": read.version}, "data": data})).await
    }

    /// Posts orders alone.
    pub async fn order(&self, orders: &Orders) -> Result<(), RotationError> {
        self.patch(json!({"data": {ORDERS: text(orders)}})).await
    }

    /// Posts what a shard has done.
    pub async fn report(&self, index: u32, report: &Report) -> Result<(), RotationError> {
        self.patch(json!({"data": {format!("{REPORT}{index}"): text(report)}})).await
    }

    async fn patch(&self, document: Value) -> Result<(), RotationError> {
        let failed = || RotationError::api(format!("write the ConfigMap {NAME} in {NAMESPACE}"));
        let answer = self.api.patch(&path(), &document.to_string()).await.map_err(failed())?;
        self.api.success(answer).map(|_| ()).map_err(failed())
    }
}

fn path() -> String {
    format!("/api/v1/namespaces/{NAMESPACE}/configmaps/{NAME}")
}

fn text(value: &impl Serialize) -> Value {
    Value::String(serde_json::to_string(value).expect("what is posted has only string keys"))
}

fn parsed<T: DeserializeOwned>(key: &str, text: &str) -> Result<T, RotationError> {
    serde_json::from_str(text).map_err(|error| {
        RotationError::Unusable(format!(
            "{key} in the ConfigMap {NAME} in {NAMESPACE} cannot be read ({error}): run the same version of this \
             program everywhere, or delete the ConfigMap"
        ))
    })
}

/// Whether a coordinator lives, by its beat and by one's own clock.
#[derive(Debug, Default)]
pub struct Pulse {
    last: Option<(u64, u64)>,
    grew: Option<Instant>,
}

impl Pulse {
    /// Takes a look into account.
    pub fn feel(&mut self, orders: &Orders, now: Instant) {
        let beat = (orders.generation, orders.beat);
        if self.last.is_some_and(|last| last != beat) {
            self.grew = Some(now);
        }
        self.last = Some(beat);
    }

    /// Whether it was felt lately.
    pub fn is_felt(&self, now: Instant) -> bool {
        self.grew.is_some_and(|at| now.duration_since(at) < SILENCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_dead_coordinator_left_is_no_pulse_and_a_living_one_is_felt_at_its_second_beat() {
        let mut orders =
            Orders { rotation: jiff::Timestamp::UNIX_EPOCH, generation: 3, phase: Phase::Rewrite, beat: 7 };
        let (mut pulse, now) = (Pulse::default(), Instant::now());
        for _ in 0..3 {
            pulse.feel(&orders, now);
            assert!(!pulse.is_felt(now));
        }
        orders.beat += 1;
        pulse.feel(&orders, now);
        assert!(pulse.is_felt(now));
        pulse.feel(&orders, now + SILENCE);
        assert!(!pulse.is_felt(now + SILENCE));
    }
}
