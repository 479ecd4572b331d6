//! The background loop: which versions are active, prove them, adopt them; notice denial and silence.
//!
//! The only place that publishes. Status and Encrypt read what it published and never wait for it.

mod decision;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rand::RngExt;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::{error, info, warn};

use self::decision::{Step, decide};
use super::service::{Service, ServiceError};
use super::state::{Serving, Trouble};
use crate::crypto::seal::{dek_id, os_random};
use crate::crypto::secret::{Dek, DekId};
use crate::dek::store::Adopted;
use crate::envelope::WrappedDekSet;
use crate::generation::Generation;
use crate::kek::set::{Answer, KekSet};
use crate::kek::{KekCause, KekError, KekVersion, Lineage, WrapContext};
use crate::key_id::KeyId;
use crate::telemetry::Metrics;

/// While something is missing or a denial is being confirmed, the KEKs are asked this often.
const SOON: Duration = Duration::from_secs(2);

/// While nothing was served yet: twice as long each time, so that a wrong policy does not cost a call every moment.
const AT_ONCE: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// A denial that is repeated over this time is definite.
const CONFIRMATION: Duration = Duration::from_secs(10);

/// What may change while the plugin runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The KEKs.
    pub keks: KekSet,
    /// See `Config::epoch`.
    pub epoch: u64,
    /// See `Config::max_offline_age`.
    pub max_offline_age: Duration,
    /// See `Config::refresh_interval`.
    pub refresh_interval: Duration,
    /// See `Config::prove_interval`.
    pub prove_interval: Duration,
}

/// What `/status` tells of one KEK.
#[derive(Clone, Debug)]
pub struct KekHealth {
    /// Its configured name.
    pub name: String,
    /// Which KEK.
    pub lineage: Lineage,
    /// Its active version, as last heard.
    pub version: Option<String>,
    /// When it last answered well.
    pub last_contact: Option<jiff::Timestamp>,
    /// Why it did not, the last time.
    pub error: Option<String>,
}

/// What a KEK was asked when it denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Probe {
    Version,
    Unwrap,
}

/// The loop and what it remembers between its turns.
#[derive(Debug)]
pub struct Refresh {
    service: Arc<Service>,
    settings: Settings,
    metrics: Arc<Metrics>,
    health: Arc<ArcSwap<Vec<KekHealth>>>,
    /// The newest generation adopted here, as stored; its DEK may be out of memory.
    current: Option<(DekId, WrappedDekSet)>,
    adopted: Vec<KeyId>,
    proven: Option<Instant>,
    /// Turns in a row that ended without a generation.
    waits: u32,
    /// The first and the last denial in a row.
    denials: HashMap<(Lineage, Probe), (Instant, Instant)>,
    /// What was logged of each KEK's failure, until it answers well again.
    failures: HashMap<(Lineage, Probe), String>,
    /// DEKs in the store that no KEK will unwrap again.
    hopeless: HashSet<DekId>,
}

impl Refresh {
    /// The loop for `service`, going on where the state folder says this node was.
    pub fn new(
        service: Arc<Service>,
        settings: Settings,
        metrics: Arc<Metrics>,
        health: Arc<ArcSwap<Vec<KekHealth>>>,
    ) -> Self {
        let adopted = service.store().adopted();
        let current = adopted.as_ref().and_then(|adopted| {
            let wrapped = service.store().find(adopted.dek_id)?;
            (wrapped.cluster == service.cluster()).then_some((adopted.dek_id, wrapped))
        });
        Self {
            service,
            settings,
            metrics,
            health,
            current,
            adopted: adopted.map(|adopted| adopted.key_ids).unwrap_or_default(),
            proven: None,
            waits: 0,
            denials: HashMap::new(),
            failures: HashMap::new(),
            hopeless: HashSet::new(),
        }
    }

    /// Runs until it is dropped, after a first [`Refresh::turn`]; takes over each new value of `settings`.
    pub async fn run(mut self, mut settings: watch::Receiver<Settings>) {
        loop {
            self.unwrap_ahead().await;
            tokio::select! {
                () = sleep(self.pause()) => {}
                Ok(()) = settings.changed() => {
                    self.settings = settings.borrow_and_update().clone();
                    self.service.replace_keks(self.settings.keks.clone());
                    self.hopeless.clear();
                    self.proven = None;
                }
            }
            self.turn().await;
        }
    }

    /// One turn: ask, decide, adopt or keep, clear what is too old.
    pub async fn turn(&mut self) {
        let answers = self.settings.keks.versions().await;
        self.note(&answers, Probe::Version);
        let wrapped = self.current.as_ref().map(|(_, wrapped)| wrapped);
        let step = decide(wrapped, self.settings.epoch, &answers, &self.adopted);
        let trouble = match step {
            Step::Keep { trouble } => self.keep(trouble).await,
            Step::Adopt => match self.adopt().await {
                // What is stored still serves.
                Some(reason) if self.service.serving().generation().is_none() => self.keep(Some(reason)).await,
                trouble => trouble,
            },
            Step::Wait { reason } => {
                self.wait(reason);
                None
            }
        };
        self.prove_again().await;
        self.enforce(trouble, &answers);
        self.report(&answers);
    }

    /// Goes on with the current generation, or takes it up after a start or a stop.
    async fn keep(&mut self, trouble: Option<String>) -> Option<String> {
        let Some((dek_id, wrapped)) = self.current.clone() else { return trouble };
        if self.service.serving().generation().is_some_and(|generation| generation.dek_id() == dek_id) {
            return trouble;
        }
        match self.service.unwrap(dek_id, wrapped.clone()).await {
            Ok(dek) => match Generation::new(dek, wrapped) {
                Ok(generation) => self.take_up(generation, "goes on with its generation"),
                Err(error) => self.wait(error.to_string()),
            },
            // Its KEKs are there and will never unwrap this one: a new DEK of the same generation.
            Err(error) if is_final(&error) => {
                warn!(%dek_id, %error, "the stored DEK is lost; making a new one");
                return self.adopt().await;
            }
            Err(error) => self.wait(error.to_string()),
        }
        trouble
    }

    /// Makes a DEK, has it wrapped and proven by every KEK, keeps it, and only then publishes it.
    async fn adopt(&mut self) -> Option<String> {
        match self.make_generation().await {
            Ok(generation) => {
                self.current = Some((generation.dek_id(), generation.wrapped().clone()));
                self.proven = Some(Instant::now());
                self.metrics.adopted();
                self.take_up(generation, "adopted a generation");
                None
            }
            Err(reason) => {
                warn!(reason, "a new generation was not adopted");
                self.wait(reason.clone());
                Some(reason)
            }
        }
    }

    async fn make_generation(&mut self) -> Result<Generation, String> {
        let dek = Dek::generate(&mut os_random());
        let id = dek_id(&dek);
        let context = WrapContext { cluster: self.service.cluster().to_owned(), dek_id: id };
        let wraps = self.settings.keks.wrap_and_prove(&dek, &context).await;
        let wraps = wraps.map_err(|(name, error)| format!("KEK {name}: {}", error.chain()))?;
        let wrapped = WrappedDekSet { cluster: context.cluster, epoch: self.settings.epoch, wraps };
        let key_id = wrapped.key_id();
        if self.adopted.last() != Some(&key_id) && self.adopted.contains(&key_id) {
            return Err(decision::went_back(&key_id));
        }
        let generation = Generation::new(Arc::new(dek), wrapped).map_err(|error| error.to_string())?;
        self.keep_record(&generation)?;
        let lineages = generation.wrapped().versions().map(|version| version.lineage).collect();
        self.service.cache().insert(id, generation.dek().clone(), lineages);
        Ok(generation)
    }

    /// Writes the adoption down. A full disk is reported, and does not stop a plugin that has nothing to go back to: the
    /// folder is a cache. A generation that follows one on the disk is not taken up before it is written: a restart would
    /// go back to the former one, and write under keys that were disabled since.
    fn keep_record(&mut self, generation: &Generation) -> Result<(), String> {
        let key_id = generation.key_id();
        let mut key_ids = self.adopted.clone();
        if key_ids.last() != Some(key_id) {
            key_ids.push(key_id.clone());
        }
        let adopted = Adopted { dek_id: generation.dek_id(), key_ids };
        let store = self.service.store();
        if let Err(error) = store.keep(generation.dek_id(), generation.wrapped()).and_then(|()| store.adopt(&adopted)) {
            let stored = store.adopted().and_then(|adopted| adopted.key_ids.last().cloned());
            if let Some(former) = stored.filter(|stored| stored != key_id) {
                return Err(format!(
                    "cannot write to stateDir ({error}), and a restart would go back from {key_id} to {former}: make room"
                ));
            }
            error!(%error, "cannot write to stateDir; a restart will need every KEK");
        }
        self.adopted = adopted.key_ids;
        Ok(())
    }

    fn take_up(&self, generation: Generation, what: &str) {
        info!(key_id = %generation.key_id(), dek_id = %generation.dek_id(), "{what}");
        self.service.publish(Serving::Ready { generation: Arc::new(generation), trouble: None });
    }

    /// Says why nothing is served; a plugin that serves goes on as it is.
    fn wait(&self, reason: String) {
        if self.service.serving().generation().is_none() {
            self.service.publish(Serving::Waiting { reason });
        }
    }

    /// Has each KEK unwrap the active DEK again when it is time: notices a permission that was withdrawn.
    async fn prove_again(&mut self) {
        let due = self.proven.is_none_or(|proven| proven.elapsed() >= self.settings.prove_interval);
        let doubtful = self.denials.keys().any(|(_, probe)| *probe == Probe::Unwrap);
        let Some((dek_id, wrapped)) = self.current.clone().filter(|_| due || doubtful) else { return };
        let answers = self.settings.keks.prove(&wrapped.wraps, &wrapped.context(dek_id)).await;
        self.note(&answers, Probe::Unwrap);
        if answers.iter().any(|answer| answer.result.is_ok()) {
            self.proven = Some(Instant::now());
        }
    }

    /// Remembers who answered, and who denied since when.
    fn note(&mut self, answers: &[Answer<KekVersion>], probe: Probe) {
        for answer in answers {
            let key = (answer.lineage, probe);
            match &answer.result {
                Ok(_) => {
                    self.failures.remove(&key);
                    self.denials.remove(&key);
                    if !self.denials.contains_key(&(answer.lineage, Probe::Unwrap)) {
                        self.service.cache().contact(answer.lineage);
                    }
                }
                Err(error) => {
                    self.log_failure(answer.lineage, &answer.name, probe, error);
                    match error.cause() {
                        KekCause::Denied => {
                            let now = Instant::now();
                            self.denials.entry(key).or_insert((now, now)).1 = now;
                        }
                        cause if cause.is_transient() => {}
                        _ => {
                            self.denials.remove(&key);
                        }
                    }
                }
            }
        }
    }

    /// Logs a failure once, not at every turn that finds it unchanged.
    fn log_failure(&mut self, lineage: Lineage, name: &str, probe: Probe, error: &KekError) {
        let text = error.chain();
        if self.failures.get(&(lineage, probe)) != Some(&text) {
            warn!(kek = name, error = %text, "KEK did not answer well");
            self.failures.insert((lineage, probe), text);
        }
    }

    /// Clears what is denied or too old, and publishes what is left to serve.
    fn enforce(&mut self, trouble: Option<String>, answers: &[Answer<KekVersion>]) {
        let denied: Vec<Lineage> = self.confirmed_denials();
        self.service.cache().wipe(&denied);
        let age = self.settings.max_offline_age.max(self.settings.refresh_interval * 2);
        self.service.cache().sweep(age);
        let serving = self.service.serving();
        let Serving::Ready { generation, trouble: before } = &*serving else { return };
        if self.service.cache().get(generation.dek_id()).is_none() {
            let reason = if denied.is_empty() {
                format!("no KEK answered for {}", humantime::format_duration(age))
            } else {
                "every KEK of the active generation denies its use; its keys were cleared from memory".into()
            };
            error!(reason, "stopped");
            return self.service.publish(Serving::Stopped { reason });
        }
        let silent = answers.iter().all(|answer| answer.result.is_err());
        let trouble = trouble.map(|reason| if silent { Trouble::Coasting(reason) } else { Trouble::Degraded(reason) });
        if trouble != *before {
            if let Some(trouble) = &trouble {
                warn!(reason = trouble.reason(), "serving goes on");
            } else {
                info!("all KEKs answer again");
            }
            self.service.publish(Serving::Ready { generation: generation.clone(), trouble });
        }
    }

    fn confirmed_denials(&self) -> Vec<Lineage> {
        let confirmed = self.denials.iter().filter(|(_, (first, last))| *last - *first >= CONFIRMATION);
        confirmed.map(|((lineage, _), _)| *lineage).collect()
    }

    fn report(&self, answers: &[Answer<KekVersion>]) {
        let serving = self.service.serving();
        let coasting = matches!(&*serving, Serving::Ready { trouble: Some(Trouble::Coasting(_)), .. });
        self.metrics.serving(serving.generation().is_some(), coasting);
        let before = self.health.load();
        let health = answers.iter().map(|answer| {
            let last = before.iter().find(|health| health.lineage == answer.lineage);
            let (version, last_contact) = match &answer.result {
                Ok(version) => (Some(version.version.clone()), Some(jiff::Timestamp::now())),
                Err(_) => last.map_or((None, None), |last| (last.version.clone(), last.last_contact)),
            };
            let error = answer.result.as_ref().err().map(KekError::chain);
            KekHealth { name: answer.name.clone(), lineage: answer.lineage, version, last_contact, error }
        });
        self.health.store(Arc::new(health.collect()));
    }

    /// Unwraps every stored DEK that is not in memory, so that a later outage finds all of them there.
    async fn unwrap_ahead(&mut self) {
        if self.service.serving().generation().is_none() {
            return;
        }
        for (dek_id, wrapped) in self.service.store().kept() {
            let wanted = wrapped.cluster == self.service.cluster() && !self.hopeless.contains(&dek_id);
            if !wanted || self.service.cache().get(dek_id).is_some() {
                continue;
            }
            match self.service.unwrap(dek_id, wrapped).await {
                Ok(_) => {}
                Err(error) if is_final(&error) => {
                    warn!(%error, "a stored DEK cannot be unwrapped any more");
                    self.hopeless.insert(dek_id);
                }
                // The KEK is away: the next turn tries again.
                Err(_) => return,
            }
        }
    }

    fn pause(&mut self) -> Duration {
        let serving = self.service.serving();
        self.waits = if matches!(&*serving, Serving::Waiting { .. }) { self.waits.saturating_add(1) } else { 0 };
        match &*serving {
            Serving::Waiting { .. } => AT_ONCE.saturating_mul(1 << self.waits.min(8)).min(LONGEST_WAIT),
            Serving::Stopped { .. } => SOON,
            Serving::Ready { .. } if !self.denials.is_empty() => SOON.min(self.settings.refresh_interval),
            Serving::Ready { .. } => self.settings.refresh_interval.mul_f64(rand::rng().random_range(0.9..1.0)),
        }
    }
}

/// Whether asking again cannot help: the data or the version are not what a KEK has.
fn is_final(error: &ServiceError) -> bool {
    match error {
        ServiceError::Unwrap { source, .. } => matches!(source.cause(), KekCause::Rejected | KekCause::UnknownVersion),
        _ => false,
    }
}
