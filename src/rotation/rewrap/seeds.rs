//! Seeds, each rewrapped once: decrypted by the plugin, encrypted by the plugin, and proven to be the same.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::crypto::seal::digest;
use crate::crypto::secret::Seed;
use crate::etcd::EncryptedObject;
use crate::kms::plugins::{PluginError, Plugins};
use crate::kms::v2::{DecryptRequest, EncryptResponse};
use crate::rotation::cluster::metrics::key_id_hash;

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

type Wrapped = Result<Arc<EncryptResponse>, SeedRefusal>;

/// Wraps seeds under the target keys.
#[derive(Debug)]
pub struct SeedWrapper<'a> {
    plugins: &'a Plugins,
    /// Provider → hash of the `key_id` that its plugin must use.
    targets: &'a BTreeMap<String, String>,
    wrapped: HashMap<[u8; 32], Wrapped>,
}

impl<'a> SeedWrapper<'a> {
    /// By these plugins, under these keys.
    pub fn new(plugins: &'a Plugins, targets: &'a BTreeMap<String, String>) -> Self {
        Self { plugins, targets, wrapped: HashMap::new() }
    }

    /// Whether a `key_id` is the target of its provider; `None` for a provider that has none.
    pub fn is_target(&self, provider: &str, key_id: &str) -> Option<bool> {
        self.targets.get(provider).map(|hash| *hash == key_id_hash(key_id))
    }

    /// How many seeds were wrapped.
    pub fn count(&self) -> usize {
        self.wrapped.values().filter(|wrapped| wrapped.is_ok()).count()
    }

    /// The object with its seed under the target key. Its data stay as they are.
    ///
    /// # Errors
    /// [`SeedRefusal`].
    pub async fn rewrap(&mut self, provider: &str, object: &EncryptedObject) -> Result<EncryptedObject, SeedRefusal> {
        object.check().map_err(SeedRefusal::Refused)?;
        let name = name(provider, object);
        let wrapped = match self.wrapped.get(&name) {
            Some(wrapped) => wrapped.clone(),
            None => {
                let wrapped = self.wrap(provider, object).await.map(Arc::new);
                if !matches!(wrapped, Err(SeedRefusal::Stop(_))) {
                    self.wrapped.insert(name, wrapped.clone());
                }
                wrapped
            }
        }?;
        let rewrapped = EncryptedObject {
            encrypted_data: object.encrypted_data.clone(),
            key_id: wrapped.key_id.clone(),
            encrypted_dek_source: wrapped.ciphertext.clone(),
            annotations: wrapped.annotations.clone().into_iter().collect(),
            encrypted_dek_source_type: object.encrypted_dek_source_type,
        };
        rewrapped
            .check()
            .map_err(|problem| SeedRefusal::Stop(format!("the plugin's answer cannot be stored: {problem}")))?;
        Ok(rewrapped)
    }

    async fn wrap(&self, provider: &str, object: &EncryptedObject) -> Result<EncryptResponse, SeedRefusal> {
        let seed = self.decrypt(provider, &object.key_id, &object.encrypted_dek_source, &object.annotations).await?;
        let answer = self.plugins.encrypt(provider, &seed).await.map_err(|error| stop(&error))?;
        if self.is_target(provider, &answer.key_id) != Some(true) {
            return Err(SeedRefusal::Stop(format!(
                "the plugin of provider {provider} encrypts under key_id {}, which is not the target: is the plugin on \
                 this machine the one of the API server here?",
                answer.key_id
            )));
        }
        // Whatever the plugin made of it is stored in place of something that opens: it must open, too, to the same.
        let annotations = answer.annotations.clone().into_iter().collect();
        let again = self.decrypt(provider, &answer.key_id, &answer.ciphertext, &annotations).await?;
        if again.expose() != seed.expose() {
            return Err(SeedRefusal::Stop(format!("the plugin of provider {provider} decrypts to another seed")));
        }
        Ok(answer)
    }

    async fn decrypt(
        &self,
        provider: &str,
        key_id: &str,
        ciphertext: &[u8],
        annotations: &BTreeMap<String, Vec<u8>>,
    ) -> Result<Seed, SeedRefusal> {
        let request = DecryptRequest {
            ciphertext: ciphertext.to_vec(),
            uid: "kube-envelope rewrap".into(),
            key_id: key_id.to_owned(),
            annotations: annotations.clone().into_iter().collect(),
        };
        self.plugins.decrypt(provider, &request).await.map_err(|error| {
            if error.passes { stop(&error) } else { SeedRefusal::Refused(format!("its seed does not open: {error}")) }
        })
    }
}

fn stop(error: &PluginError) -> SeedRefusal {
    SeedRefusal::Stop(error.to_string())
}

/// Everything that the plugin is asked with.
fn name(provider: &str, object: &EncryptedObject) -> [u8; 32] {
    let kind = object.encrypted_dek_source_type.to_be_bytes();
    let mut parts: Vec<&[u8]> =
        vec![provider.as_bytes(), &kind, object.key_id.as_bytes(), &object.encrypted_dek_source];
    for (name, value) in &object.annotations {
        parts.extend([name.as_bytes(), value]);
    }
    digest(&parts)
}
