//! The background loop: what works is served first, then what is new is proven and adopted, and what no KEK vouches
//! for any more is dropped.
//!
//! The only place that publishes. Status and Encrypt read what it published and never wait for it. What follows from
//! the KEKs' answers is pure (`decision`, `coverage`, `prove`, [`crate::dek::contacts`]).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

mod accept;
mod adopt;
mod coverage;
mod decision;
mod health;
mod memory;
mod proofs;
mod prove;
mod recover;
mod report;
mod settings;
mod warm;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::{error, info, warn};

use self::coverage::{Choice, Kept, Uncovered, stored_generation};
use self::decision::{Known, Step, decide, lowered};
pub use self::health::{KekHealth, VersionHealth};
pub use self::memory::{MakeDek, Refresh};
use self::memory::{after, is_over};
use self::proofs::Proofs;
use self::recover::Recovery;
use self::settings::SOON;
pub use self::settings::Settings;
use self::warm::Warm;
use super::handover::SealedStateFile;
use super::service::Service;
use super::state::Serving;
use crate::crypto::seal::os_random;
use crate::crypto::secret::Dek;
use crate::kek::KekVersion;
use crate::kek::set::{Answer, KekSet, Unidentified};
use crate::telemetry::Metrics;

/// While nothing is served: serving resumes within a second of a KEK's first good answer.
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// After this, the KEKs that disowned the stored generation are asked about it again: one that was replaced by another for
/// a while, or that had not caught up, would otherwise keep the plugin down for good.
const LOST_FOR: Duration = Duration::from_secs(10);

impl Refresh {
    /// The loop for `service`, going on where its store says that this node was.
    pub fn new(
        service: Arc<Service>,
        settings: Settings,
        metrics: Arc<Metrics>,
        health: Arc<ArcSwap<Vec<KekHealth>>>,
    ) -> Self {
        let make_dek: MakeDek = Arc::new(|| Dek::generate(&mut os_random()));
        let refresh = Self {
            service,
            settings,
            metrics,
            health,
            make_dek,
            proofs: Proofs::default(),
            warm: Warm::default(),
            recovery: None,
            sealed: None,
            lost: BTreeSet::new(),
            told_lost: BTreeSet::new(),
            lost_until: Instant::now(),
            attempt: None,
            refused: None,
            failures: BTreeMap::new(),
            named: BTreeMap::new(),
            renamed: BTreeSet::new(),
            unidentified: BTreeMap::new(),
            // Nothing is served yet: the first turn begins at once.
            waits: 1,
            random: StdRng::from_rng(&mut rand::rng()),
        };
        refresh.configure();
        refresh
    }

    /// Has DEKs made by `make_dek`, so that a simulation can be repeated.
    #[must_use]
    pub fn with_deks(mut self, make_dek: MakeDek) -> Self {
        self.make_dek = make_dek;
        self
    }

    /// Has its pauses follow from `seed`, for the same reason.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.random = StdRng::seed_from_u64(seed);
        self
    }

    /// Takes up what was sealed before a reboot when no KEK answers.
    #[must_use]
    pub fn with_sealed_state(mut self, sealed: Option<Arc<SealedStateFile>>) -> Self {
        self.sealed = sealed;
        self
    }

    /// Runs until it is dropped; takes over each new value of `settings` that what is kept allows.
    pub async fn run(mut self, mut settings: watch::Receiver<Settings>) {
        loop {
            tokio::select! {
                // A new configuration first: the turn that follows then runs under it.
                biased;
                Ok(()) = settings.changed() => {
                    let new = settings.borrow_and_update().clone();
                    self.reload(new).await;
                }
                () = sleep(self.pause()) => {}
                // Beside the pause, for the sake of the clock: the pause is of running time, and the age of a DEK of
                // time that passes while the machine sleeps, too.
                () = overdue(&self.service) => {}
            }
            self.turn().await;
        }
    }

    /// One turn: load what is stored, ask, decide, adopt or keep, prove, drop what is too old.
    pub async fn turn(&mut self) {
        // Before anything is asked: after a long sleep the keys are cleared first, however slowly the KEKs answer.
        self.stop_overdue();
        self.service.store().look_soon();
        // The stored generation needs no answer about active versions; it is unwrapped while the KEKs are asked for them.
        self.recover();
        let answers = self.settings.keks.versions().await;
        self.note(&answers);
        self.unidentified = self.settings.keks.identify(&answers).await;
        // Only now is it known which keyring a file holds.
        self.configure();
        self.recover();
        // Before anything new is made, which takes its time where a KEK or the disk is slow: an outage that begins meanwhile
        // has to find everything in memory.
        self.warm_up();
        let objection = self.objection();
        let history = self.service.store().history();
        let current = self.current();
        let known = Known {
            current: current.as_ref().map(|(_, wrapped)| &**wrapped),
            epoch: self.settings.epoch,
            answers: &answers,
            history: &history,
            objection: objection.as_deref(),
        };
        let trouble = match decide(known) {
            Step::Keep { trouble } => {
                self.wait(trouble.as_deref());
                trouble
            }
            Step::Adopt(expected) => self.adopt(&expected, &answers).await,
            Step::Wait { reason } => {
                self.wait(Some(&reason));
                None
            }
        };
        self.prove().await;
        self.enforce(trouble);
        // A recovery that ends after this look is followed by another turn within a second, not by a whole interval.
        let serves = self.service.serving().generation().is_some();
        self.waits = if serves { 0 } else { self.waits.saturating_add(1) };
        self.warm_up();
        self.report(&answers);
    }

    fn warm_up(&mut self) {
        if self.service.serving().generation().is_some() {
            self.warm.start(&self.service);
        }
    }

    /// The generation that is served, or that will be once a KEK unwraps it.
    fn current(&self) -> Option<Kept> {
        if let Some(generation) = self.service.serving().generation() {
            return Some((generation.dek_id(), Arc::new(generation.wrapped().clone())));
        }
        // What a restart would not find is only gone on with where there is nothing else.
        let store = self.service.store();
        let written = store.written_history();
        let is_any_written = written.deks().any(|id| store.find_written(id).is_some());
        let history = if is_any_written { written } else { store.history() };
        let choice =
            Choice { history: &history, keks: &self.settings.keks, cluster: self.service.cluster(), lost: &self.lost };
        stored_generation(&choice, |id| if is_any_written { store.find_written(id) } else { store.find(id) })
    }

    /// While nothing is served, has the stored generation unwrapped by whichever KEK does it first, beside all else.
    fn recover(&mut self) {
        if self.service.serving().generation().is_some() {
            self.recovery = None;
            self.told_lost.clear();
            return;
        }
        if let Some(recovery) = self.recovery.as_ref().filter(|recovery| recovery.is_lost()) {
            if self.told_lost.insert(recovery.dek_id()) {
                let reason = recovery.words();
                warn!(dek_id = %recovery.dek_id(), reason, "the stored key of the newest generation is lost");
            }
            self.lost.insert(recovery.dek_id());
            self.lost_until = after(LOST_FOR);
            self.recovery = None;
        }
        if is_over(self.lost_until) {
            self.lost.clear();
        }
        self.recovery.take_if(|recovery| recovery.is_over());
        let current = self.current();
        // A reload, or a disk that was read late, may have made another generation the newest.
        if self.recovery.as_ref().map(Recovery::dek_id) != current.as_ref().map(|(id, _)| *id) {
            let keks = self.settings.keks.clone();
            // Under a lowered epoch what is there is of the highest.
            let epoch = self.settings.epoch.max(self.service.store().history().epoch());
            let before = self.sealed.clone().map(|sealed| (sealed, epoch));
            self.recovery = current.map(|kept| Recovery::start(self.service.clone(), keks, kept, before));
        }
    }

    /// Why nothing new may be made: what this node has stored belongs to a cluster of another name, or kept DEKs would need a
    /// KEK that is not configured.
    fn objection(&self) -> Option<String> {
        let lowered = || lowered(self.settings.epoch, &self.service.store().history());
        if let Some(reason) = self.renamed_cluster().or_else(lowered) {
            return Some(reason);
        }
        let uncovered = Uncovered::of(&self.kept(), &self.settings.keks.lineages());
        (!uncovered.is_empty()).then(|| self.advice(&uncovered, &self.settings.keks, &self.unidentified))
    }

    /// The name of the cluster is bound into everything that is stored: under another one nothing opens, and what is written
    /// until somebody notices opens nowhere else. The `key_id` does not show it, so no API server would.
    fn renamed_cluster(&self) -> Option<String> {
        let (store, now) = (self.service.store(), self.service.cluster());
        let newest = store.history().deks().find_map(|id| store.find(id))?;
        (newest.cluster != *now).then(|| {
            format!(
                "cluster is {:?}, and this node has encrypted for cluster {:?}: correct the name in the configuration, or, if \
                 nothing that is stored was encrypted for that cluster, empty stateDir",
                now.as_str(),
                newest.cluster.as_str()
            )
        })
    }

    fn advice(&self, uncovered: &Uncovered, keks: &KekSet, unidentified: &Unidentified) -> String {
        let history = self.service.store().history();
        let former = |lineage| {
            let now = self.settings.keks.name(lineage).map(str::to_owned);
            now.or_else(|| history.name(lineage).map(str::to_owned))
        };
        uncovered.advice(&former, keks, unidentified)
    }

    /// The DEKs of this cluster that are kept.
    fn kept(&self) -> Vec<Kept> {
        let mut kept = self.service.store().kept();
        kept.retain(|(_, wrapped)| wrapped.cluster == *self.service.cluster());
        kept
    }

    /// Has the cache count by the KEKs in use, and forgets what is not kept any more.
    fn configure(&self) {
        let keks = self.settings.keks.lineages();
        for (id, wrapped) in self.kept() {
            if self.settings.forgets(&wrapped) && wrapped.lineages().all(|lineage| !keks.contains(&lineage)) {
                info!(dek_id = %id, "no longer kept: the KEK that wrapped it is listed under forget");
                self.service.store().forget(id);
            }
        }
        self.service.cache().configure(keks, self.settings.limit());
    }

    /// Says why nothing is served; a plugin that serves goes on as it is.
    fn wait(&self, reason: Option<&str>) {
        let recovery = self.recovery.as_ref().map(Recovery::words).filter(|words| !words.is_empty());
        let reasons: Vec<_> = recovery.as_deref().into_iter().chain(reason).collect();
        let reason = if reasons.is_empty() { "no KEK has answered yet".into() } else { reasons.join("; ") };
        // What was stopped stays stopped until it serves again, and keeps the reason.
        if !matches!(&*self.service.serving(), Serving::Stopped { .. }) {
            self.service.publish_first(Serving::Waiting { reason });
        }
    }

    /// Remembers which KEKs name no version, and logs a failure once, not at every turn that finds it unchanged.
    fn note(&mut self, answers: &[Answer<KekVersion>]) {
        for answer in answers {
            match &answer.result {
                Ok(version) => {
                    self.failures.remove(&answer.lineage);
                    let before = self.named.insert(answer.lineage, version.version.clone());
                    if before.is_some_and(|before| before != version.version) {
                        self.renamed.insert(answer.lineage);
                    }
                }
                Err(error) => {
                    let said = (error.cause(), error.chain());
                    if self.failures.get(&answer.lineage).map(|(cause, _)| *cause) != Some(said.0) {
                        warn!(kek = answer.name, error = said.1, "KEK does not name its active version");
                    }
                    self.failures.insert(answer.lineage, said);
                }
            }
        }
    }

    /// Drops what is denied or too old, and says so where nothing is left to serve.
    fn stop_overdue(&self) {
        let cache = self.service.cache();
        cache.sweep();
        let serving = self.service.serving();
        let Some(generation) = serving.generation() else { return };
        if cache.remaining(generation.dek_id()).is_some() {
            return;
        }
        let versions: Vec<_> = generation.wrapped().versions().cloned().collect();
        let reason = if cache.is_denied(&versions) {
            "every KEK of the active generation denies its use; its keys were cleared from memory".to_owned()
        } else {
            let limit = humantime::format_duration(self.settings.limit());
            format!("no KEK has unwrapped the active key for {limit}; it was cleared from memory")
        };
        error!(reason, "stopped");
        self.service.publish(Serving::Stopped { reason });
    }

    /// Publishes what is left to serve, and why it deserves a look.
    fn enforce(&mut self, trouble: Option<String>) {
        self.stop_overdue();
        let serving = self.service.serving();
        let Serving::Ready { generation, trouble: before } = &*serving else { return };
        let trouble = self.trouble(trouble, generation);
        if trouble != *before {
            // The words may change with each turn, and are in /status.
            if trouble.as_ref().map(std::mem::discriminant) != before.as_ref().map(std::mem::discriminant) {
                match &trouble {
                    Some(trouble) => warn!(reason = trouble.reason(), "serving goes on"),
                    None => info!("all KEKs answer again, and everything that is kept is in memory"),
                }
            }
            self.service.publish(Serving::Ready { generation: generation.clone(), trouble });
        }
    }

    fn pause(&mut self) -> Duration {
        let Settings { refresh_interval, .. } = self.settings;
        let serving = self.service.serving();
        if self.waits > 0 {
            return FIRST_RETRY.saturating_mul(1 << self.waits.min(8)).min(LONGEST_WAIT);
        }
        let regular = refresh_interval.min(self.rhythm().active);
        let left = serving.generation().and_then(|generation| self.service.cache().remaining(generation.dek_id()));
        match left {
            _ if self.is_doubtful() => SOON.min(regular),
            // What is about to end is checked when it does.
            Some(left) if left < regular => left.max(FIRST_RETRY),
            // Nodes that were started together would otherwise ask the KEKs at the same moments for ever.
            _ => regular.mul_f64(self.random.random_range(0.9..1.0)),
        }
    }
}

impl std::fmt::Debug for Refresh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Refresh").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// Returns when the generation that is served may not be served any more. The timer of a turn does not tell: it stands
/// still while the machine sleeps.
async fn overdue(service: &Service) {
    loop {
        sleep(LONGEST_WAIT).await;
        let serving = service.serving();
        if serving.generation().is_some_and(|generation| service.cache().remaining(generation.dek_id()).is_none()) {
            return;
        }
    }
}
