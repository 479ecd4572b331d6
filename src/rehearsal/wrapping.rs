//! Wrapping seeds with the KEKs themselves, where no plugin runs.

use std::sync::Arc;

use async_trait::async_trait;

use super::source::Sources;
use crate::crypto::seal::{dek_id, os_random};
use crate::crypto::secret::{Dek, Seed};
use crate::encryption_config::ProviderName;
use crate::envelope::{ANNOTATION, WrappedDekSet};
use crate::etcd::EncryptedObject;
use crate::generation::Generation;
use crate::kek::set::KekSet;
use crate::kek::{ClusterName, WrapContext};
use crate::key_id::KeyId;
use crate::kms::v2::EncryptResponse;
use crate::rotation::rewrap::seeds::{SeedKeeper, SeedRefusal};

/// Opens seeds with everything that is configured, and wraps them under a DEK that it made, as a plugin does.
#[derive(Debug)]
pub struct KekKeeper {
    sources: Sources,
    generation: Generation,
}

impl KekKeeper {
    /// Makes a DEK, and has every KEK wrap it with its active version and unwrap it again.
    ///
    /// # Errors
    /// Which KEK did not.
    pub async fn new(sources: Sources, cluster: ClusterName, epoch: u64, keks: &KekSet) -> Result<Self, String> {
        let dek = Dek::generate(&mut os_random());
        let context = WrapContext { cluster, dek_id: dek_id(&dek) };
        // All of them, as for a new generation: a backup that only some KEKs open would have none of the failover that
        // live data have.
        let wraps = keks.wrap_and_prove(&dek, &context, &|_| {}).await;
        let wraps = wraps.map_err(|(name, error)| format!("KEK {name}: {}", error.chain()))?;
        let wrapped = WrappedDekSet { cluster: context.cluster, epoch, wraps };
        let generation = Generation::new(Arc::new(dek), wrapped).map_err(|error| error.to_string())?;
        Ok(Self { sources, generation })
    }

    /// The name of the generation that it wraps under.
    pub fn key_id(&self) -> &KeyId {
        self.generation.key_id()
    }
}

#[async_trait]
impl SeedKeeper for KekKeeper {
    async fn open(&self, provider: &ProviderName, object: &EncryptedObject) -> Result<Seed, SeedRefusal> {
        self.sources.open(provider, object).await.map_err(|error| SeedRefusal::Refused(error.to_string()))
    }

    async fn wrap(&self, _: &ProviderName, seed: &Seed) -> Result<EncryptResponse, SeedRefusal> {
        let ciphertext = self.generation.seal(seed).map_err(|error| SeedRefusal::Refused(error.to_string()))?;
        Ok(EncryptResponse {
            ciphertext,
            key_id: self.generation.key_id().to_string(),
            annotations: [(ANNOTATION.to_owned(), self.generation.annotation().to_vec())].into(),
        })
    }
}
