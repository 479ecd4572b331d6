//! The `ConfigMap`s in which coordinator and shards tell each other what matters. Each is small and has one writer: etcd
//! stores the whole object again at each change, so what changes often must not lie beside what is large.
//!
//! What is only looked at comes from the API server's watch cache and costs etcd nothing. A cache that lags shows an
//! earlier beat, which counts as silence.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::assignment::Assignment;
use super::report::Report;
use crate::rotation::cluster::api::{Answer, Api, Metadata};
use crate::rotation::error::RotationError;

/// Where shards run and the `ConfigMap`s are.
pub(in crate::rotation) const NAMESPACE: &str = "kube-envelope";
/// The one with the orders; the names of the others begin with it.
pub(in crate::rotation) const NAME: &str = "rotate-keys";
/// A coordinator that has been silent for this long may be gone: then nobody watches over the API servers'
/// agreement, and shards stop.
pub(in crate::rotation) const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(20);
/// Labels the reports, with the number of the shard.
const SHARD_LABEL: &str = "kube-envelope.io/shard";
/// The key in each of them.
const CONTENT: &str = "content";
/// What the coordinator wants of the shards.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Orders {
    /// Which rotation: when it began.
    pub rotation: jiff::Timestamp,
    /// Counts the assignments. A shard starts over with each.
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

/// An assignment, and which orders it belongs to.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Assigned<A> {
    rotation: jiff::Timestamp,
    generation: u64,
    assignment: A,
}

#[derive(Deserialize)]
struct ConfigMap {
    metadata: Metadata,
    #[serde(default)]
    data: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct ConfigMaps {
    #[serde(default, deserialize_with = "crate::rotation::cluster::api::null_as_empty")]
    items: Vec<ConfigMap>,
}

/// From where something is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// From etcd, through the API server.
    Etcd,
    /// From the API server's watch cache.
    Cache,
}

/// The `ConfigMap`s of a cluster.
pub struct Board {
    api: Api,
}

impl Board {
    /// Through this server or balancer.
    pub fn new(api: Api) -> Self {
        Self { api }
    }

    /// Makes the namespace and the `ConfigMap` of the orders, unless they are there.
    ///
    /// # Errors
    /// If the API server refuses or does not answer, as all that follow.
    pub async fn ensure(&self) -> Result<(), RotationError> {
        let made = self.api.ensure("ConfigMap", "configmaps", NAMESPACE, NAME).await;
        made.map_err(failed("make", NAME))
    }

    /// The orders, and the version of their `ConfigMap`; nothing before the first one came.
    ///
    /// # Errors
    /// An error status of the API server, or no answer.
    pub async fn orders(&self, from: Source) -> Result<(String, Option<Orders>), RotationError> {
        self.read(NAME, from).await
    }

    /// The assignment that belongs to these orders, if it is posted.
    ///
    /// # Errors
    /// An error status of the API server, or no answer.
    pub async fn assignment(&self, orders: &Orders) -> Result<Option<Assignment>, RotationError> {
        let (_, posted): (_, Option<Assigned<Assignment>>) = self.read(&assignment_name(), Source::Cache).await?;
        let belongs =
            |posted: &Assigned<_>| (posted.rotation, posted.generation) == (orders.rotation, orders.generation);
        Ok(posted.filter(belongs).map(|posted| posted.assignment))
    }

    /// What one shard has reported last.
    ///
    /// # Errors
    /// An error status of the API server, or no answer.
    pub async fn reported(&self, index: u32) -> Result<Option<Report>, RotationError> {
        Ok(self.read(&report_name(index), Source::Cache).await?.1)
    }

    /// What every shard has reported last.
    ///
    /// # Errors
    /// An error status of the API server, or no answer.
    pub async fn reports(&self) -> Result<BTreeMap<u32, Report>, RotationError> {
        let mut reports = BTreeMap::new();
        for ConfigMap { metadata, data } in self.report_maps().await? {
            if let (Some(index), Some(text)) = (index_of(&metadata.name), data.get(CONTENT)) {
                reports.insert(index, parsed(&metadata.name, text)?);
            }
        }
        Ok(reports)
    }

    /// Makes a `ConfigMap` for the reports of each shard, unless it is there.
    ///
    /// # Errors
    /// An error status of the API server, or no answer.
    pub async fn ensure_reports(&self, shards: usize) -> Result<(), RotationError> {
        let there: Vec<_> = self.report_maps().await?.iter().filter_map(|map| index_of(&map.metadata.name)).collect();
        for index in (0..).take(shards).filter(|index| !there.contains(index)) {
            self.make(&report_name(index), &json!({SHARD_LABEL: index.to_string()})).await?;
        }
        Ok(())
    }

    /// Posts orders, unless the `ConfigMap` has changed since it had this version: the API server then answers 409.
    ///
    /// # Errors
    /// An error status of the API server, or no answer.
    pub async fn claim(&self, orders: &Orders, version: &str) -> Result<(), RotationError> {
        // With a resource version a patch becomes a compare-and-swap: of two coordinators only one gets through.
        let document = json!({"metadata": {"resourceVersion": version}, "data": {CONTENT: text(orders)}});
        self.patch(NAME, &document).await
    }

    /// Posts orders.
    ///
    /// # Errors
    /// An error status of the API server, or no answer.
    pub async fn order(&self, orders: &Orders) -> Result<(), RotationError> {
        self.patch(NAME, &json!({"data": {CONTENT: text(orders)}})).await
    }

    /// Posts the assignment that belongs to these orders.
    ///
    /// # Errors
    /// An error status of the API server, or no answer.
    pub async fn assign(&self, orders: &Orders, assignment: &Assignment) -> Result<(), RotationError> {
        self.make(&assignment_name(), &json!({})).await?;
        let assigned = Assigned { rotation: orders.rotation, generation: orders.generation, assignment };
        self.patch(&assignment_name(), &json!({"data": {CONTENT: text(&assigned)}})).await
    }

    /// Posts what a shard has done.
    ///
    /// # Errors
    /// An error status of the API server, or no answer.
    pub async fn report(&self, index: u32, report: &Report) -> Result<(), RotationError> {
        self.patch(&report_name(index), &json!({"data": {CONTENT: text(report)}})).await
    }

    async fn read<T: DeserializeOwned>(&self, name: &str, from: Source) -> Result<(String, Option<T>), RotationError> {
        let cached = if from == Source::Cache { "?resourceVersion=0" } else { "" };
        let answer = self.get(name, &format!("{}/{name}{cached}", folder())).await?;
        if answer.status == 404 {
            return Ok((String::new(), None));
        }
        let body = self.api.success(answer).map_err(failed("read", name))?;
        let ConfigMap { metadata, data } = self.api.parse(&body).map_err(failed("read", name))?;
        let content = data.get(CONTENT).map(|text| parsed(name, text)).transpose()?;
        Ok((metadata.resource_version, content))
    }

    async fn report_maps(&self) -> Result<Vec<ConfigMap>, RotationError> {
        let label = crate::rotation::cluster::api::escaped(SHARD_LABEL);
        let path = format!("{}?labelSelector={label}&resourceVersion=0", folder());
        let answer = self.get("rotate-keys-shard-…", &path).await?;
        let failed = || failed("list", "rotate-keys-shard-…");
        let body = self.api.success(answer).map_err(failed())?;
        Ok(self.api.parse::<ConfigMaps>(&body).map_err(failed())?.items)
    }

    async fn get(&self, name: &str, path: &str) -> Result<Answer, RotationError> {
        self.api.get(path, "application/json").await.map_err(failed("read", name))
    }

    async fn make(&self, name: &str, labels: &Value) -> Result<(), RotationError> {
        let metadata = json!({"name": name, "namespace": NAMESPACE, "labels": labels});
        let document = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata});
        let answer = self.api.post(&folder(), &document).await.map_err(failed("make", name))?;
        // It exists, from an earlier rotation or made at this moment by somebody else; what is in it is patched anyway.
        if answer.status == 409 {
            return Ok(());
        }
        self.api.success(answer).map(|_| ()).map_err(failed("make", name))
    }

    async fn patch(&self, name: &str, document: &Value) -> Result<(), RotationError> {
        let answer = self.api.patch(&format!("{}/{name}", folder()), &document.to_string()).await;
        self.api.success(answer.map_err(failed("write", name))?).map(|_| ()).map_err(failed("write", name))
    }
}

fn failed(what: &str, name: &str) -> impl FnOnce(crate::rotation::cluster::api::ApiError) -> RotationError + use<> {
    RotationError::api(format!("{what} the ConfigMap {name} in {NAMESPACE}"))
}

fn folder() -> String {
    format!("/api/v1/namespaces/{NAMESPACE}/configmaps")
}

fn assignment_name() -> String {
    format!("{NAME}-assignment")
}

fn report_name(index: u32) -> String {
    format!("{NAME}-shard-{index}")
}

fn index_of(name: &str) -> Option<u32> {
    name.strip_prefix(NAME)?.strip_prefix("-shard-")?.parse().ok()
}

fn text(value: &impl Serialize) -> Value {
    Value::String(serde_json::to_string(value).expect("what is posted has only string keys"))
}

fn parsed<T: DeserializeOwned>(name: &str, text: &str) -> Result<T, RotationError> {
    serde_json::from_str(text).map_err(|error| {
        RotationError::Unusable(format!(
            "the ConfigMap {name} in {NAMESPACE} cannot be read ({error}): run the same version of this program \
             everywhere, or delete the ConfigMap"
        ))
    })
}

/// Whether a coordinator lives, by its beat and by one's own clock.
#[derive(Debug, Default)]
pub(in crate::rotation) struct Heartbeat {
    last: Option<(u64, u64)>,
    grew: Option<Instant>,
}

impl Heartbeat {
    /// Takes a look into account.
    pub(in crate::rotation) fn observe(&mut self, orders: &Orders, now: Instant) {
        let beat = (orders.generation, orders.beat);
        // Two API servers behind a balancer may show beats of different age: only a greater one is a sign of life.
        if self.last.is_some_and(|last| beat > last) {
            self.grew = Some(now);
        }
        self.last = self.last.max(Some(beat));
    }

    /// Whether it was felt lately.
    pub(in crate::rotation) fn is_alive(&self, now: Instant) -> bool {
        self.grew.is_some_and(|at| now.duration_since(at) < HEARTBEAT_TIMEOUT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_dead_coordinator_left_is_no_pulse_and_a_living_one_is_alive_at_its_second_beat() {
        let mut orders =
            Orders { rotation: jiff::Timestamp::UNIX_EPOCH, generation: 3, phase: Phase::Rewrite, beat: 7 };
        let (mut heartbeat, now) = (Heartbeat::default(), Instant::now());
        for _ in 0..3 {
            heartbeat.observe(&orders, now);
            assert!(!heartbeat.is_alive(now));
        }
        orders.beat += 1;
        heartbeat.observe(&orders, now);
        assert!(heartbeat.is_alive(now));
        for beat in [7, 8, 7, 8] {
            orders.beat = beat;
            heartbeat.observe(&orders, now + HEARTBEAT_TIMEOUT);
        }
        assert!(!heartbeat.is_alive(now + HEARTBEAT_TIMEOUT), "two caches of different age are no heartbeat");
    }
}
