//! Status, Encrypt and Decrypt in terms of the domain. No wire types, no background work.

use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::watch;

use super::audit::{Audit, Event, Unrecorded};
use super::state::{self, Serving};
use crate::crypto::secret::{Dek, DekId, Seed};
use crate::dek::cache::{DekCache, MissingDek, digest_of};
use crate::dek::store::DekStore;
use crate::envelope::{Ciphertext, CiphertextError, SealError, WrappedDekSet, is_own};
use crate::generation::Generation;
use crate::kek::guard::DEADLINE;
use crate::kek::set::{KekSet, UnwrapError};
use crate::kek::takeover::{Stored, TakenOver, TakeoverError, Takeovers};
use crate::kek::{ClusterName, WrapContext};
use crate::telemetry::Metrics;

/// What the API server is served from. Shared by the RPCs and the refresh loop, which alone publishes into it.
#[derive(Debug)]
pub struct Service {
    cluster: ClusterName,
    serving: ArcSwap<Serving>,
    keks: Arc<ArcSwap<KekSet>>,
    takeovers: ArcSwap<Takeovers>,
    cache: Arc<DekCache>,
    store: Arc<DekStore>,
    audit: Arc<Audit>,
    /// Another cluster's name under which a generation of this very `key_id` sealed what was to be opened here.
    other_cluster: ArcSwapOption<ClusterName>,
    /// Told each time that the keys were cleared.
    cleared: watch::Sender<()>,
}

/// Why a request is not answered.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// Nothing can be sealed at this moment.
    #[error("{0}")]
    NotServing(String),
    /// The bytes are refused; no KEK was asked.
    #[error(transparent)]
    Ciphertext(#[from] CiphertextError),
    /// Nothing can be made of the seed; no KEK was asked.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// No KEK unwrapped the DEK.
    #[error("key {dek_id} of this ciphertext cannot be unwrapped: {source}")]
    Unwrap {
        /// The DEK, as the ciphertext names it.
        dek_id: DekId,
        /// What the KEKs said.
        source: Arc<UnwrapError>,
    },
    /// Another plugin's, and not opened.
    #[error(transparent)]
    Takeover(#[from] TakeoverError),
    /// The KEKs take longer than the API server waits; the unwrap goes on.
    #[error("key {0} of this ciphertext is still being unwrapped; ask again")]
    Slow(DekId),
    /// The use of the key could not be recorded, and has to be.
    #[error(transparent)]
    Unrecorded(#[from] Unrecorded),
}

impl ServiceError {
    /// Whether the same request may succeed a moment later with nobody doing anything.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::NotServing(_) | Self::Slow(_) | Self::Unrecorded(_) => true,
            Self::Ciphertext(_) | Self::Seal(_) | Self::Takeover(TakeoverError::NotRecognized(_)) => false,
            Self::Takeover(TakeoverError::Failed { error, .. }) => error.cause().is_transient(),
            Self::Unwrap { source, .. } => source.cause().is_transient(),
        }
    }
}

/// A decrypted seed.
#[derive(Debug)]
pub struct Decrypted {
    /// To be answered.
    pub seed: Seed,
    /// The DEK that it was sealed under.
    pub dek_id: DekId,
    /// Whether a KEK had to unwrap it.
    pub was_unwrapped: bool,
}

/// An encrypted seed.
#[derive(Debug)]
pub struct Encrypted {
    /// To be stored.
    pub ciphertext: Vec<u8>,
    /// The generation it was sealed under.
    pub generation: Arc<Generation>,
}

impl Service {
    /// A service that waits for its first generation.
    pub fn new(cluster: ClusterName, keks: KekSet, cache: Arc<DekCache>, store: Arc<DekStore>) -> Self {
        let waiting = Serving::Waiting { reason: "starting: no KEK has answered yet".into() };
        Self {
            cluster,
            serving: ArcSwap::from_pointee(waiting),
            keks: Arc::new(ArcSwap::from_pointee(keks)),
            takeovers: ArcSwap::default(),
            cache,
            store,
            audit: Arc::default(),
            other_cluster: ArcSwapOption::empty(),
            cleared: watch::Sender::new(()),
        }
    }

    /// The same, recording the uses of keys.
    #[must_use]
    pub fn with_audit(self, audit: Arc<Audit>) -> Self {
        Self { audit, ..self }
    }

    /// The same, opening what other plugins stored.
    #[must_use]
    pub fn with_takeovers(self, takeovers: Takeovers) -> Self {
        Self { takeovers: ArcSwap::from_pointee(takeovers), ..self }
    }

    /// The generation that the API server shall write with. No I/O.
    ///
    /// Whether a KEK still vouches for its DEK is checked now: time may have passed while nothing
    /// here did.
    ///
    /// # Errors
    /// Why nothing may be written now.
    pub fn status(&self) -> Result<Arc<Generation>, ServiceError> {
        match &**self.serving.load() {
            Serving::Ready { generation, .. } if self.cache.remaining(generation.dek_id()).is_some() => {
                Ok(generation.clone())
            }
            // The loop publishes that it stopped only at its next look, and a machine may have slept through it.
            Serving::Ready { .. } => Err(ServiceError::NotServing(state::OVERDUE.into())),
            Serving::Waiting { reason } | Serving::Stopped { reason } => Err(ServiceError::NotServing(reason.clone())),
        }
    }

    /// Seals a seed under the active DEK. No I/O.
    ///
    /// # Errors
    /// As of [`Service::status`], or a seed that is empty or too long.
    pub fn encrypt(&self, seed: &Seed) -> Result<Encrypted, ServiceError> {
        let generation = self.status()?;
        Ok(Encrypted { ciphertext: generation.seal(seed)?, generation })
    }

    /// Opens what any node of this cluster sealed. Asks a KEK only for a DEK that is not in memory.
    ///
    /// # Errors
    /// What is wrong with the request, or why its DEK cannot be unwrapped.
    pub async fn decrypt(
        &self,
        ciphertext: &[u8],
        key_id: &str,
        annotation: Option<&[u8]>,
    ) -> Result<Decrypted, ServiceError> {
        let ciphertext = Ciphertext::parse(ciphertext)?;
        let dek_id = ciphertext.dek_id;
        let annotation = annotation.ok_or(CiphertextError::NoAnnotation)?;
        // The common case first, without parsing the annotation: most of what an API server asks for after a start was
        // sealed by the plugin beside it.
        if let Some(generation) = self.serving.load().generation()
            && generation.is_own_envelope(ciphertext.dek_id, key_id, annotation)
            && self.cache.remaining(ciphertext.dek_id).is_some()
        {
            let seed = ciphertext.open(generation.dek(), &self.cluster, key_id)?;
            return Ok(Decrypted { seed, dek_id, was_unwrapped: false });
        }
        let wrapped = WrappedDekSet::decode(annotation)?;
        // Before any KEK is asked: a request with a foreign cluster or an invented key_id costs no remote call.
        wrapped.check(&self.cluster, key_id).inspect_err(|error| self.note_other_cluster(error, key_id))?;
        let cached = self.cache.get(dek_id);
        let was_unwrapped = cached.is_none();
        let dek = match cached {
            Some(dek) => dek,
            // The API server waits for 3 s. The unwrap goes on in the task of the cache, so that its next attempt finds
            // the DEK.
            None => tokio::time::timeout(DEADLINE, self.unwrap(dek_id, wrapped))
                .await
                .map_err(|_| ServiceError::Slow(dek_id))??,
        };
        Ok(Decrypted { seed: ciphertext.open(&dek, &self.cluster, key_id)?, dek_id, was_unwrapped })
    }

    /// Opens what another plugin stored, where one is configured and kube-envelope did not make it: then the key store of
    /// that plugin's key is asked, each time. `None` where [`Service::decrypt`] has to tell.
    ///
    /// # Errors
    /// [`ServiceError::Takeover`].
    pub(super) async fn take_over(
        &self,
        stored: &Stored,
        has_annotation: bool,
    ) -> Result<Option<TakenOver>, ServiceError> {
        let takeovers = self.takeovers.load_full();
        // What is ours is shown to no key of another plugin, even when no KEK opens it: its error must be the one about
        // KEKs.
        if takeovers.is_empty() || stored.ciphertext.is_empty() || is_own(&stored.ciphertext, has_annotation) {
            return Ok(None);
        }
        Ok(Some(takeovers.open(stored).await?))
    }

    /// Unwraps a DEK into the cache and keeps it in the store; one call for all that ask for the same DEK.
    ///
    /// # Errors
    /// What the KEKs said.
    pub(super) async fn unwrap(&self, dek_id: DekId, wrapped: WrappedDekSet) -> Result<Arc<Dek>, ServiceError> {
        // Also before the cache: what no KEK can unwrap must not take a place among the running unwraps.
        if let Some(error) = self.keks.load().hopeless(&wrapped.wraps) {
            return Err(ServiceError::Unwrap { dek_id, source: Arc::new(error) });
        }
        let context = WrapContext { cluster: self.cluster.clone(), dek_id };
        let (wraps, keks, store) = (digest_of(&wrapped), self.keks.clone(), self.store.clone());
        let unwrapped = self.cache.unwrap(MissingDek { context, wrapped, wraps, keks, store }).await;
        unwrapped.map_err(|source| ServiceError::Unwrap { dek_id, source })
    }

    /// The same KEKs and versions make the same `key_id`, whatever the cluster is called: then it is not another cluster
    /// whose ciphertext came here, but a node that is configured otherwise.
    fn note_other_cluster(&self, error: &CiphertextError, key_id: &str) {
        let serving = self.serving.load();
        let is_ours = serving.generation().is_some_and(|generation| generation.key_id().as_str() == key_id);
        if let CiphertextError::OtherCluster { theirs, .. } = error
            && is_ours
        {
            self.other_cluster.store(Some(Arc::new(theirs.clone())));
        }
    }

    /// What another node calls the cluster that seals under this `key_id`, since the plugin was started.
    pub(super) fn other_cluster(&self) -> Option<Arc<ClusterName>> {
        self.other_cluster.load_full()
    }

    /// What is published at this moment.
    pub fn serving(&self) -> Arc<Serving> {
        self.serving.load_full()
    }

    /// Publishes, in one step for all three RPCs.
    pub(super) fn publish(&self, serving: Serving) {
        let serving = Arc::new(serving);
        let before = self.serving.swap(serving.clone());
        // Buffers of HTTP/2 still hold seeds of earlier answers; connections end, so that these are freed and cleared.
        if matches!(*serving, Serving::Stopped { .. }) {
            self.cleared.send_replace(());
        }
        self.record(&before, &serving);
    }

    /// Publishes where no generation is served; one that is served stays. Whether it was published.
    pub(super) fn publish_first(&self, serving: Serving) -> bool {
        let serving = Arc::new(serving);
        // The loop may have adopted a newer generation while the stored one was being unwrapped. `rcu` may call this
        // more than once, so nothing else happens in it.
        let before = self.serving.rcu(|now| if now.generation().is_some() { now.clone() } else { serving.clone() });
        let is_published = before.generation().is_none();
        if is_published {
            self.record(&before, &serving);
        }
        is_published
    }

    /// Notes a generation that came into use, and one that went out of use.
    fn record(&self, before: &Serving, serving: &Serving) {
        match (before, serving) {
            (_, Serving::Ready { generation, .. })
                if before.generation().is_none_or(|before| before.dek_id() != generation.dek_id()) =>
            {
                let (key_id, dek_id) = (generation.key_id().to_string(), generation.dek_id().to_string());
                self.audit.note(Event::Adopted { key_id, dek_id });
            }
            (Serving::Waiting { .. } | Serving::Ready { .. }, Serving::Stopped { reason }) => {
                self.audit.note(Event::Denied { reason: reason.clone() });
            }
            _ => {}
        }
    }

    /// Measures what changes without anybody doing anything.
    pub(super) fn measure(&self, metrics: &Metrics) {
        let serving = self.serving.load();
        let remaining = serving.generation().and_then(|generation| self.cache.remaining(generation.dek_id()));
        metrics.coasting_ends_in(remaining.unwrap_or_default());
        metrics.deks(self.store.count(), self.cache.held());
    }

    /// Changes each time that the keys were cleared: what a connection still has in its buffers goes with it.
    pub(crate) fn cleared(&self) -> watch::Receiver<()> {
        self.cleared.subscribe()
    }

    /// The KEKs in use.
    pub fn keks(&self) -> Arc<KekSet> {
        self.keks.load_full()
    }

    /// Takes other KEKs into use, after a change of the configuration.
    pub(super) fn replace_keks(&self, keks: KekSet) {
        self.keks.store(Arc::new(keks));
    }

    /// What opens other plugins' data.
    pub(super) fn takeovers(&self) -> Arc<Takeovers> {
        self.takeovers.load_full()
    }

    /// The same after a change of the configuration. Entries that did not change start counting from zero.
    pub(super) fn replace_takeovers(&self, takeovers: Takeovers) {
        self.takeovers.store(Arc::new(takeovers));
    }

    /// The cluster that this plugin serves.
    pub(super) fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// Where uses of keys are recorded.
    pub(super) fn audit(&self) -> &Arc<Audit> {
        &self.audit
    }

    /// The DEKs in memory.
    pub fn cache(&self) -> &Arc<DekCache> {
        &self.cache
    }

    /// The DEKs on disk.
    pub fn store(&self) -> &Arc<DekStore> {
        &self.store
    }
}
