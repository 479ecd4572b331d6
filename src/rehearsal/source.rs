//! Where seeds come from: the plugins, asked as an API server asks them, or the KEKs themselves.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::stream::{self, StreamExt};

use super::without::Without;
use crate::backup::DekInUse;
use crate::crypto::seal::digest;
use crate::crypto::secret::Seed;
use crate::dek::cache::DekCache;
use crate::dek::clock::BootClock;
use crate::encryption_config::{EncryptionConfiguration, ProviderName};
use crate::envelope::{ANNOTATION, Ciphertext, WrappedDekSet, is_own};
use crate::etcd::EncryptedObject;
use crate::kek::set::{KekSet, UnwrapError};
use crate::kek::takeover::{Stored, TakeoverError, Takeovers};
use crate::kek::{ClusterName, KekVersion, WrapContext};
use crate::kms::plugins::Plugins;
use crate::kms::v2::DecryptRequest;

/// A DEK that was unwrapped stays for the whole run.
const FOR_THE_RUN: std::time::Duration = std::time::Duration::from_hours(1000);

/// So many wraps are tried at once.
const MAX_CONCURRENT: usize = 8;

/// Why a seed cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    /// The source that could open it does not.
    #[error("{0}")]
    Refused(String),
    /// Nobody was asked.
    #[error("{0}")]
    NotAsked(String),
}

/// Where seeds may come from, and which keys may not be used.
#[derive(Debug, Default)]
pub struct Sources {
    /// The plugins at the sockets of the EncryptionConfiguration.
    pub plugins: Option<PluginSource>,
    /// The KEKs of a configuration of kube-envelope; they come first.
    pub keks: Option<KekSource>,
    /// Keys that are taken to be gone.
    pub without: Vec<Without>,
}

impl Sources {
    /// Opens the seed of an object.
    pub(super) async fn open(&self, provider: &ProviderName, object: &EncryptedObject) -> Result<Seed, SeedError> {
        // What is taken to be gone must not be asked, however well it answers now.
        if let Some(gone) = self.without.iter().find(|without| without.removes_key_id(&object.key_id)) {
            return Err(SeedError::Refused(format!("its seed opens only with {gone}, which is assumed to be gone")));
        }
        let wrapped = object.annotations.get(ANNOTATION).map(|annotation| WrappedDekSet::decode(annotation));
        if let Some(Ok(wrapped)) = &wrapped {
            // Before any plugin is asked: a running plugin may open it from its memory, which a restarted one could
            // not.
            self.refuse_if_all_gone(wrapped)?;
        }
        if let (None, Some(keks)) = (&wrapped, &self.keks) {
            match keks.take_over(object).await {
                Ok(Some(seed)) => return Ok(seed),
                Ok(None) => {}
                // Its plugin may still be there.
                Err(TakeoverError::NotRecognized(_)) if self.plugins.is_some() => {}
                Err(error) => return Err(SeedError::Refused(format!("its seed does not open: {error}"))),
            }
        }
        match (&wrapped, &self.keks, &self.plugins) {
            // The KEKs come before the plugin: what it holds in memory is not there after a restart, and the KEKs are.
            (Some(wrapped), Some(keks), _) => {
                let wrapped = wrapped.as_ref().map_err(|error| SeedError::Refused(error.to_string()))?;
                keks.open(object, wrapped, &self.without).await
            }
            (_, _, Some(plugins)) => plugins.open(provider, object).await,
            (_, _, None) => Err(SeedError::NotAsked(format!(
                "nothing that was given opens seeds of provider {provider}: give --encryption-config, to ask its plugin, \
                 or --config of kube-envelope, to ask the KEKs"
            ))),
        }
    }

    /// A value is lost only if every KEK version that wrapped its DEK is gone.
    fn refuse_if_all_gone(&self, wrapped: &WrappedDekSet) -> Result<(), SeedError> {
        let gone = |version: &KekVersion| self.without.iter().find(|without| without.removes(version));
        let all: Option<Vec<_>> = wrapped.versions().map(gone).collect();
        let Some(all) = all.filter(|all| !all.is_empty()) else { return Ok(()) };
        let mut names: Vec<_> = all.iter().map(ToString::to_string).collect();
        names.dedup();
        Err(SeedError::Refused(format!("its seed opens only with {}, which is assumed to be gone", names.join(" or "))))
    }

    /// Asks every plugin for its Status; what is wrong with each.
    pub async fn unhealthy_plugins(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if let Some(plugins) = &self.plugins {
            for provider in plugins.plugins.providers() {
                problems.extend(plugins.plugins.check(provider).await.err().map(|error| error.to_string()));
            }
        }
        problems
    }

    /// How often a key store was asked, or a plugin, which then asks its own.
    pub fn calls(&self) -> u64 {
        let plugins = self.plugins.as_ref().map_or(0, |plugins| plugins.calls.load(Ordering::Relaxed));
        plugins + self.keks.as_ref().map_or(0, |keks| keks.unwraps.load(Ordering::Relaxed))
    }
}

/// The plugins at the sockets of an EncryptionConfiguration.
#[derive(Debug)]
pub struct PluginSource {
    plugins: Plugins,
    calls: AtomicU64,
}

impl PluginSource {
    /// Every KMS v2 plugin that is named.
    pub fn of(configuration: &EncryptionConfiguration) -> Self {
        Self { plugins: Plugins::of(configuration), calls: AtomicU64::new(0) }
    }

    async fn open(&self, provider: &ProviderName, object: &EncryptedObject) -> Result<Seed, SeedError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let request = DecryptRequest {
            ciphertext: object.encrypted_dek_source.clone(),
            // The API server sends a random one; the plugin only records it, and this one tells who asked.
            uid: "kube-envelope rehearse".into(),
            key_id: object.key_id.clone(),
            annotations: object.annotations.clone().into_iter().collect(),
        };
        let opened = self.plugins.decrypt(provider, &request).await;
        opened
            .map_err(|error| SeedError::Refused(format!("its seed (key_id {}) does not open: {error}", object.key_id)))
    }
}

/// The KEKs of a configuration of kube-envelope, asked without a plugin.
#[derive(Debug)]
pub struct KekSource {
    cluster: ClusterName,
    keks: Arc<KekSet>,
    takeovers: Takeovers,
    deks: Arc<DekCache>,
    unwraps: Arc<AtomicU64>,
}

impl KekSource {
    /// The KEKs, for the values of one cluster, and what opens those that other plugins stored.
    pub fn new(cluster: ClusterName, keks: KekSet, takeovers: Takeovers) -> Self {
        let deks = DekCache::new(Arc::new(BootClock));
        deks.configure(keks.lineages(), FOR_THE_RUN);
        Self { cluster, keks: Arc::new(keks), takeovers, deks: Arc::new(deks), unwraps: Arc::default() }
    }

    /// Opens what another plugin stored; `None` where kube-envelope made it, or takes over from nobody.
    async fn take_over(&self, object: &EncryptedObject) -> Result<Option<Seed>, TakeoverError> {
        if self.takeovers.is_empty() || is_own(&object.encrypted_dek_source, false) {
            return Ok(None);
        }
        let stored = Stored {
            ciphertext: object.encrypted_dek_source.clone(),
            key_id: object.key_id.clone(),
            annotations: object.annotations.clone().into_iter().collect(),
        };
        self.unwraps.fetch_add(1, Ordering::Relaxed);
        self.takeovers.open(&stored).await.map(|taken| Some(taken.seed))
    }

    async fn open(
        &self,
        object: &EncryptedObject,
        wrapped: &WrappedDekSet,
        without: &[Without],
    ) -> Result<Seed, SeedError> {
        let refused = |error: &dyn std::fmt::Display| SeedError::Refused(format!("its seed does not open: {error}"));
        let ciphertext = Ciphertext::parse(&object.encrypted_dek_source).map_err(|error| refused(&error))?;
        wrapped.check(&self.cluster, &object.key_id).map_err(|error| refused(&error))?;
        let mut wraps = wrapped.wraps.clone();
        wraps.retain(|wrap| !without.iter().any(|gone| gone.removes(&wrap.version)));
        let versions = wraps.iter().map(|wrap| wrap.version.clone()).collect();
        let name = digest(&wraps.iter().map(|wrap| wrap.blob.as_slice()).collect::<Vec<_>>());
        let context = WrapContext { cluster: self.cluster.clone(), dek_id: ciphertext.dek_id };
        let (keks, unwraps) = (self.keks.clone(), self.unwraps.clone());
        let unwrap = async move {
            unwraps.fetch_add(1, Ordering::Relaxed);
            keks.unwrap(&wraps, &context).await
        };
        let dek = if let Some(dek) = self.deks.get(ciphertext.dek_id) {
            dek
        } else {
            let unwrapped = self.deks.get_or_unwrap(ciphertext.dek_id, name, versions, unwrap).await;
            unwrapped.map_err(|error| {
                SeedError::Refused(format!("its key {} cannot be unwrapped: {error}", ciphertext.dek_id))
            })?
        };
        ciphertext.open(&dek, &self.cluster, &object.key_id).map_err(|error| refused(&error))
    }
}

/// Tries for every KEK version whether it still unwraps each of these DEKs: `Err` with the reason where it does not,
/// and no entry where no KEK of its lineage is configured.
pub async fn opens<'a>(
    keks: &KekSet,
    deks: impl Iterator<Item = &'a DekInUse>,
) -> BTreeMap<KekVersion, Result<(), String>> {
    let wraps = deks.flat_map(|dek| dek.wrapped.wraps.iter().map(move |wrap| (dek, wrap)));
    let tried = wraps.map(|(dek, wrap)| async move {
        // One wrap at a time: given all of them, the set would be content with whichever KEK answers first.
        let context = dek.wrapped.context(dek.id);
        let opened = keks.unwrap(std::slice::from_ref(wrap), &context).await;
        (wrap.version.clone(), opened.map(|_| ()))
    });
    let mut answers = BTreeMap::new();
    let mut tried = stream::iter(tried).buffer_unordered(MAX_CONCURRENT);
    while let Some((version, opened)) = tried.next().await {
        match opened {
            Ok(()) => {
                // One DEK that does not open outweighs all that do: what is asked is whether every one opens.
                answers.entry(version).or_insert(Ok(()));
            }
            Err(UnwrapError::NoKek | UnwrapError::Unidentified(_) | UnwrapError::OnlyBreakGlass(_)) => {}
            Err(error) => {
                answers.insert(version, Err(error.to_string()));
            }
        }
    }
    answers
}
