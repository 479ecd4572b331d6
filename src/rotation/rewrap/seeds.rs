//! Seeds, each rewrapped once: opened, wrapped, opened again, and proven to be the same.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;

use crate::crypto::secret::Seed;
use crate::encryption_config::ProviderName;
use crate::etcd::EncryptedObject;
use crate::kms::plugins::{PluginError, Plugins};
use crate::kms::v2::{DecryptRequest, EncryptResponse};
use crate::rotation::cluster::key_id_hash::KeyIdHash;

/// Why a seed was not rewrapped.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SeedRefusal {
    /// The plugin refuses this seed permanently: the values that need it stay as they are.
    #[error("{0}")]
    Refused(String),
    /// Nothing can be done now.
    #[error("{0}")]
    Stop(String),
}

/// Who opens seeds, and wraps them under the target keys.
#[async_trait]
pub trait SeedKeeper: Debug + Send + Sync {
    /// Opens the seed of an object.
    ///
    /// # Errors
    /// [`SeedRefusal`].
    async fn open(&self, provider: &ProviderName, object: &EncryptedObject) -> Result<Seed, SeedRefusal>;

    /// Wraps a seed for a provider.
    ///
    /// # Errors
    /// [`SeedRefusal`].
    async fn wrap(&self, provider: &ProviderName, seed: &Seed) -> Result<EncryptResponse, SeedRefusal>;
}

#[async_trait]
impl SeedKeeper for Plugins {
    async fn open(&self, provider: &ProviderName, object: &EncryptedObject) -> Result<Seed, SeedRefusal> {
        let request = DecryptRequest {
            ciphertext: object.encrypted_dek_source.clone(),
            // The plugin's audit log shows it in the place of an API server's request, so that these reads can be told apart.
            uid: "kube-envelope rewrap".into(),
            key_id: object.key_id.clone(),
            annotations: object.annotations.clone().into_iter().collect(),
        };
        self.decrypt(provider, &request).await.map_err(|error| {
            if error.passes { stop(&error) } else { SeedRefusal::Refused(format!("its seed does not open: {error}")) }
        })
    }

    async fn wrap(&self, provider: &ProviderName, seed: &Seed) -> Result<EncryptResponse, SeedRefusal> {
        self.encrypt(provider, seed).await.map_err(|error| stop(&error))
    }
}

type Wrapped = Result<Arc<EncryptResponse>, SeedRefusal>;

/// Wraps seeds under the target keys.
#[derive(Debug)]
pub struct SeedWrapper<'a> {
    keeper: &'a dyn SeedKeeper,
    /// Provider → hash of the `key_id` that its plugin must use.
    targets: &'a BTreeMap<ProviderName, KeyIdHash>,
    wrapped: HashMap<[u8; 32], Wrapped>,
}

impl<'a> SeedWrapper<'a> {
    /// By this keeper, under these keys.
    pub fn new(keeper: &'a dyn SeedKeeper, targets: &'a BTreeMap<ProviderName, KeyIdHash>) -> Self {
        Self { keeper, targets, wrapped: HashMap::new() }
    }

    /// Whether a `key_id` is the target of its provider; `None` for a provider that has none.
    pub fn is_target(&self, provider: &ProviderName, key_id: &str) -> Option<bool> {
        self.targets.get(provider).map(|hash| *hash == KeyIdHash::of(key_id))
    }

    /// How many seeds were wrapped.
    pub fn count(&self) -> usize {
        self.wrapped.values().filter(|wrapped| wrapped.is_ok()).count()
    }

    /// The object with its seed under the target key. Its data stay as they are.
    ///
    /// # Errors
    /// [`SeedRefusal`].
    pub async fn rewrap(
        &mut self,
        provider: &ProviderName,
        object: &EncryptedObject,
    ) -> Result<EncryptedObject, SeedRefusal> {
        object.check().map_err(SeedRefusal::Refused)?;
        let name = object.seed_digest(provider);
        let wrapped = match self.wrapped.get(&name) {
            Some(wrapped) => wrapped.clone(),
            None => {
                let wrapped = self.wrap(provider, object).await.map(Arc::new);
                // A refusal is kept as well: a seed that does not open is that of many values. What passes is not: the
                // next pass asks again.
                if !matches!(wrapped, Err(SeedRefusal::Stop(_))) {
                    self.wrapped.insert(name, wrapped.clone());
                }
                wrapped
            }
        }?;
        let rewrapped = rewrapped(object, &wrapped);
        rewrapped
            .check()
            .map_err(|problem| SeedRefusal::Stop(format!("the rewrapped seed cannot be stored: {problem}")))?;
        Ok(rewrapped)
    }

    async fn wrap(&self, provider: &ProviderName, object: &EncryptedObject) -> Result<EncryptResponse, SeedRefusal> {
        let seed = self.keeper.open(provider, object).await?;
        let answer = self.keeper.wrap(provider, &seed).await?;
        if self.is_target(provider, &answer.key_id) != Some(true) {
            return Err(SeedRefusal::Stop(format!(
                "the plugin of provider {provider} encrypts under key_id {}, which is not the target: is the plugin on \
                 this machine the one of the API server here?",
                answer.key_id
            )));
        }
        // Whatever was made of it is stored in place of something that opens: it must open, too, to the same.
        let again = self.keeper.open(provider, &rewrapped(object, &answer)).await?;
        if again.expose() != seed.expose() {
            return Err(SeedRefusal::Stop(format!(
                "the seed that provider {provider} wrapped opens to a different seed"
            )));
        }
        Ok(answer)
    }
}

/// The object with another wrap of its seed.
fn rewrapped(object: &EncryptedObject, answer: &EncryptResponse) -> EncryptedObject {
    EncryptedObject {
        encrypted_data: object.encrypted_data.clone(),
        key_id: answer.key_id.clone(),
        encrypted_dek_source: answer.ciphertext.clone(),
        annotations: answer.annotations.clone().into_iter().collect(),
        encrypted_dek_source_type: object.encrypted_dek_source_type,
    }
}

fn stop(error: &PluginError) -> SeedRefusal {
    SeedRefusal::Stop(error.to_string())
}
