//! The metrics and their names. Labels are enums and configured names, never text from outside.

use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram};
use prometheus_client::registry::Registry;

use super::labels::{KekOperation, KekOutcome, Outcome, Rpc};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RpcLabels {
    method: Rpc,
    outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RpcMethod {
    method: Rpc,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KekLabels {
    kek: String,
    operation: KekOperation,
    outcome: KekOutcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KekMethod {
    kek: String,
    operation: KekOperation,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KekName {
    kek: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KekVersionLabels {
    kek: String,
    version: String,
    verdict: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KeyIdLabels {
    key_id: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReloadLabels {
    result: &'static str,
}

/// Every metric of the plugin. Labels are enums, configured names, `key_id`s, and versions that a configured KEK itself
/// named; never a text that a request brought.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    rpcs: Family<RpcLabels, Counter>,
    rpc_seconds: Family<RpcMethod, Histogram, fn() -> Histogram>,
    kek_calls: Family<KekLabels, Counter>,
    kek_requests: Family<KekMethod, Counter>,
    kek_seconds: Family<KekMethod, Histogram, fn() -> Histogram>,
    kek_last_contact: Family<KekName, Gauge<f64, AtomicU64>>,
    credentials_expire: Family<KekName, Gauge<f64, AtomicU64>>,
    break_glass_proven: Family<KekName, Gauge<f64, AtomicU64>>,
    adoptions: Counter,
    serving: Gauge,
    coasting: Gauge,
    cached_deks: Gauge,
    refresh_turn_age: Gauge<f64, AtomicU64>,
    socket_in_place: Gauge,
    last_turn: Mutex<Instant>,
    audit_records: Gauge,
    audit_lost: Gauge,
    audit_failing: Gauge,
    kept_deks: Gauge,
    missing_deks: Gauge,
    memory_only_deks: Gauge,
    coasting_ends: Gauge<f64, AtomicU64>,
    sealed_state_ends: Gauge<f64, AtomicU64>,
    kek_versions: Family<KekVersionLabels, Gauge>,
    key_id: Family<KeyIdLabels, Gauge>,
    reloads: Family<ReloadLabels, Counter>,
    reload_succeeded: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All metrics at zero, registered under the prefix `kube_envelope_`.
    pub fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("kube_envelope"),
            rpcs: Family::default(),
            rpc_seconds: Family::new_with_constructor(fast_histogram),
            kek_calls: Family::default(),
            kek_requests: Family::default(),
            kek_seconds: Family::new_with_constructor(remote_histogram),
            kek_last_contact: Family::default(),
            credentials_expire: Family::default(),
            break_glass_proven: Family::default(),
            adoptions: Counter::default(),
            serving: Gauge::default(),
            coasting: Gauge::default(),
            cached_deks: Gauge::default(),
            refresh_turn_age: Gauge::default(),
            socket_in_place: Gauge::default(),
            last_turn: Mutex::new(Instant::now()),
            audit_records: Gauge::default(),
            audit_lost: Gauge::default(),
            audit_failing: Gauge::default(),
            kept_deks: Gauge::default(),
            missing_deks: Gauge::default(),
            memory_only_deks: Gauge::default(),
            coasting_ends: Gauge::default(),
            sealed_state_ends: Gauge::default(),
            kek_versions: Family::default(),
            key_id: Family::default(),
            reloads: Family::default(),
            reload_succeeded: Gauge::default(),
        };
        // What the plugin starts with was read without an error, or it would not start.
        metrics.reload_succeeded.set(1);
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register("rpcs", "RPCs answered, by method and outcome", self.rpcs.clone());
        registry.register("rpc_duration_seconds", "Time to answer an RPC", self.rpc_seconds.clone());
        registry.register(
            "kek_calls",
            "Operations asked of a KEK, by outcome, retries counted once",
            self.kek_calls.clone(),
        );
        registry.register("kek_requests", "Requests sent to a KEK, each retry counted", self.kek_requests.clone());
        registry.register(
            "kek_duration_seconds",
            "Time of an operation of a KEK, retries included",
            self.kek_seconds.clone(),
        );
        registry.register(
            "kek_last_contact_timestamp_seconds",
            "When a KEK last unwrapped a DEK",
            self.kek_last_contact.clone(),
        );
        registry.register(
            "kek_credentials_expire_timestamp_seconds",
            "When the credentials for a KEK expire, where they do",
            self.credentials_expire.clone(),
        );
        registry.register(
            "break_glass_proven_timestamp_seconds",
            "When the private half of a break-glass KEK was last tried; 0 where that was never shown",
            self.break_glass_proven.clone(),
        );
        registry.register("adoptions", "Generations adopted since the start", self.adoptions.clone());
        registry.register("serving", "1 while Status answers ok", self.serving.clone());
        registry.register("coasting", "1 while no KEK can be reached and the cache serves", self.coasting.clone());
        registry.register("cached_deks", "Unwrapped DEKs in memory", self.cached_deks.clone());
        registry.register(
            "refresh_turn_age_seconds",
            "Time since the refresh loop last ended a turn; grows beyond refreshInterval when it stands still",
            self.refresh_turn_age.clone(),
        );
        registry.register(
            "socket_in_place",
            "Whether the socket is where the plugin put it, so that API servers can connect",
            self.socket_in_place.clone(),
        );
        registry.register("audit_last_record", "Number of the audit log's last record", self.audit_records.clone());
        registry.register(
            "audit_lost_records",
            "Audit records lost and not yet noted in the log",
            self.audit_lost.clone(),
        );
        registry.register("audit_failing", "1 while the audit log cannot be written", self.audit_failing.clone());
        self.register_health();
    }

    fn register_health(&mut self) {
        let registry = &mut self.registry;
        registry.register("kept_deks", "Wrapped DEKs in stateDir", self.kept_deks.clone());
        registry.register(
            "missing_deks",
            "Kept DEKs that are not in memory: what an outage of the KEKs would miss",
            self.missing_deks.clone(),
        );
        registry.register(
            "memory_only_deks",
            "DEKs in memory that no KEK would unwrap again: run rotate-keys before any restart",
            self.memory_only_deks.clone(),
        );
        registry.register(
            "coasting_ends_seconds",
            "How long the active DEK may be used if no KEK unwraps it again",
            self.coasting_ends.clone(),
        );
        registry.register(
            "sealed_state_ends_timestamp_seconds",
            "Until when a start after a reboot finds DEKs that it may use without a KEK; 0 where it finds none",
            self.sealed_state_ends.clone(),
        );
        registry.register(
            "kek_version_verdict",
            "1 for what each version of a KEK did when it was last asked to unwrap: opens, denies, lost, silent",
            self.kek_versions.clone(),
        );
        registry.register("key_id", "1 for the key_id of the active generation", self.key_id.clone());
        registry.register("config_reloads", "Changed configurations, by what became of them", self.reloads.clone());
        registry.register(
            "config_reload_succeeded",
            "0 while the configuration on disk was refused",
            self.reload_succeeded.clone(),
        );
        registry.register(
            "build",
            "What is running",
            prometheus_client::metrics::info::Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
    }

    /// Counts an RPC that was answered.
    pub(crate) fn rpc(&self, method: Rpc, outcome: Outcome, took: Duration) {
        self.rpcs.get_or_create(&RpcLabels { method, outcome }).inc();
        self.rpc_seconds.get_or_create(&RpcMethod { method }).observe(took.as_secs_f64());
    }

    /// Counts an operation of a KEK.
    pub(crate) fn kek_call(&self, kek: &str, operation: KekOperation, outcome: KekOutcome, took: Duration) {
        self.kek_calls.get_or_create(&KekLabels { kek: kek.into(), operation, outcome }).inc();
        self.kek_seconds.get_or_create(&KekMethod { kek: kek.into(), operation }).observe(took.as_secs_f64());
        if outcome == KekOutcome::Ok && operation == KekOperation::Unwrap {
            self.kek_last_contact.get_or_create(&KekName { kek: kek.into() }).set(unix_seconds());
        }
    }

    /// Counts one request to a KEK.
    pub(crate) fn kek_request(&self, kek: &str, operation: KekOperation) {
        self.kek_requests.get_or_create(&KekMethod { kek: kek.into(), operation }).inc();
    }

    /// Notes when the credentials for a KEK expire.
    pub(crate) fn credentials_expire(&self, kek: &str, at: jiff::Timestamp) {
        self.credentials_expire.get_or_create(&KekName { kek: kek.into() }).set(seconds(at));
    }

    /// Notes when the private half of a break-glass KEK was last tried.
    pub(crate) fn break_glass_proven(&self, kek: &str, at: jiff::Timestamp) {
        #[allow(clippy::cast_precision_loss, reason = "seconds since 1970 fit a double's 53 bits")]
        self.break_glass_proven.get_or_create(&KekName { kek: kek.into() }).set(at.as_second() as f64);
    }

    /// Counts an adoption.
    pub(crate) fn adopted(&self) {
        self.adoptions.inc();
    }

    /// Notes what a turn of the refresh loop ended with: whether Status answers ok, and whether from the cache alone.
    pub(crate) fn serving(&self, serving: bool, coasting: bool) {
        *self.last_turn.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.serving.set(i64::from(serving));
        self.coasting.set(i64::from(coasting));
    }

    /// Notes how many DEKs are kept, and how many are in memory.
    pub(crate) fn deks(&self, kept: usize, cached: usize) {
        set(&self.kept_deks, kept);
        set(&self.cached_deks, cached);
    }

    /// Notes how many kept DEKs could not be brought into memory.
    pub(crate) fn missing_deks(&self, count: usize) {
        set(&self.missing_deks, count);
    }

    /// Notes how many DEKs in memory no KEK would unwrap again.
    pub(crate) fn deks_in_memory_only(&self, count: usize) {
        set(&self.memory_only_deks, count);
    }

    /// Notes how long the active DEK may still be used if no KEK unwraps it again.
    pub(crate) fn coasting_ends_in(&self, left: Duration) {
        self.coasting_ends.set(left.as_secs_f64());
    }

    /// Notes whether the socket is where it was put.
    pub(crate) fn socket_in_place(&self, is_there: bool) {
        self.socket_in_place.set(is_there.into());
    }

    /// Notes until when a start after a reboot finds something.
    pub(crate) fn sealed_state_ends(&self, end: Option<jiff::Timestamp>) {
        self.sealed_state_ends.set(end.map_or(0.0, seconds));
    }

    /// Notes what each version of each KEK did when it was last asked to unwrap: KEK, version, word.
    pub(crate) fn kek_versions<'a>(&self, versions: impl Iterator<Item = (&'a str, &'a str, &'static str)>) {
        // A series that is not set again would keep its last value until the process ends.
        self.kek_versions.clear();
        for (kek, version, verdict) in versions {
            let labels = KekVersionLabels { kek: kek.into(), version: version.into(), verdict };
            self.kek_versions.get_or_create(&labels).set(1);
        }
    }

    /// Notes the active generation.
    pub(crate) fn key_id(&self, key_id: Option<&str>) {
        self.key_id.clear();
        if let Some(key_id) = key_id {
            self.key_id.get_or_create(&KeyIdLabels { key_id: key_id.into() }).set(1);
        }
    }

    /// Counts a changed configuration that was taken, or refused.
    pub(crate) fn reloaded(&self, taken: bool) {
        self.reloads.get_or_create(&ReloadLabels { result: if taken { "ok" } else { "refused" } }).inc();
        self.reload_succeeded.set(i64::from(taken));
    }

    /// Notes how the audit log stands.
    pub(crate) fn audit(&self, last_record: u64, lost: u64, failing: bool) {
        self.audit_records.set(i64::try_from(last_record).unwrap_or(i64::MAX));
        self.audit_lost.set(i64::try_from(lost).unwrap_or(i64::MAX));
        self.audit_failing.set(i64::from(failing));
    }

    /// How long ago [`Metrics::serving`] was called last; before the first turn, the time since the start.
    pub(crate) fn refresh_turn_age(&self) -> Duration {
        self.last_turn.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    /// The metrics as `OpenMetrics` text, version 1.0.0.
    pub fn encode(&self) -> String {
        // Computed at the scrape: a loop that hangs sets nothing.
        self.refresh_turn_age.set(self.refresh_turn_age().as_secs_f64());
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)
            .expect("writing to a string does not fail");
        text
    }
}

#[allow(clippy::cast_precision_loss, reason = "seconds since 1970 fit a double's 53 bits")]
fn seconds(at: jiff::Timestamp) -> f64 {
    at.as_second() as f64
}

fn set(gauge: &Gauge, count: usize) {
    gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
}

fn fast_histogram() -> Histogram {
    Histogram::new([0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.005, 0.025, 0.1, 0.5, 3.0])
}

fn remote_histogram() -> Histogram {
    Histogram::new([0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5])
}

fn unix_seconds() -> f64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
