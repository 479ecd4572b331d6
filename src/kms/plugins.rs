//! The plugins that an EncryptionConfiguration names, asked as an API server asks them.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use tonic::{Code, Status};

use super::v2::{DecryptRequest, EncryptRequest, EncryptResponse, StatusRequest};
use super::{Client, connect};
use crate::crypto::secret::Seed;
use crate::encryption_config::{EncryptionConfiguration, Endpoint, KmsVersion, ProviderName};

/// A plugin that does not answer just now is asked again, as an API server lists again.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(500);

/// Why a plugin did not do what it was asked for.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the plugin of provider {provider}: {problem}")]
pub struct PluginError {
    /// The provider's name.
    pub provider: ProviderName,
    /// What is wrong.
    pub problem: String,
    /// Whether it may go well later, with the same request.
    pub passes: bool,
}

/// The KMS v2 plugins of a configuration, by the names of their providers.
#[derive(Debug)]
pub struct Plugins {
    sockets: BTreeMap<ProviderName, Endpoint>,
    clients: tokio::sync::Mutex<HashMap<ProviderName, Client>>,
}

impl Plugins {
    /// Every KMS v2 plugin that is named.
    pub fn of(configuration: &EncryptionConfiguration) -> Self {
        let v2 = configuration.kms().filter(|kms| kms.version == KmsVersion::V2);
        let sockets = v2.map(|kms| (kms.name.clone(), kms.endpoint.clone())).collect();
        Self { sockets, clients: tokio::sync::Mutex::default() }
    }

    /// The names of the providers.
    pub fn providers(&self) -> impl Iterator<Item = &ProviderName> {
        self.sockets.keys()
    }

    /// Has a seed decrypted.
    ///
    /// # Errors
    /// When the plugin refuses, or does not answer.
    pub async fn decrypt(&self, provider: &ProviderName, request: &DecryptRequest) -> Result<Seed, PluginError> {
        let mut attempt = 1;
        loop {
            let answer = self.client(provider).await?.decrypt(request.clone()).await;
            match answer {
                Ok(answer) => return Ok(Seed::new(answer.into_inner().plaintext)),
                Err(status) => again(provider, "Decrypt", &status, &mut attempt).await?,
            }
        }
    }

    /// Has a seed encrypted.
    ///
    /// # Errors
    /// When the plugin refuses, or does not answer.
    pub async fn encrypt(&self, provider: &ProviderName, seed: &Seed) -> Result<EncryptResponse, PluginError> {
        let mut attempt = 1;
        loop {
            // The message owns its bytes; the allocator clears them as they are freed, like all memory.
            let request = EncryptRequest { plaintext: seed.expose().to_vec(), uid: uid() };
            match self.client(provider).await?.encrypt(request).await {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) => again(provider, "Encrypt", &status, &mut attempt).await?,
            }
        }
    }

    /// The `key_id` that a plugin encrypts under.
    ///
    /// # Errors
    /// What is wrong with its Status, as [`Self::check`] says.
    pub async fn key_id(&self, provider: &ProviderName) -> Result<String, PluginError> {
        let failed = |problem| PluginError { provider: provider.clone(), problem, passes: true };
        let answer = self.client(provider).await?.status(StatusRequest {}).await;
        let status = answer.map_err(|status| failed(format!("Status was refused: {}", status.message())))?.into_inner();
        match (status.healthz.as_str(), status.version.as_str(), status.key_id.is_empty()) {
            // API servers accept both; plugins from before Kubernetes 1.29 report v2beta1.
            ("ok", "v2" | "v2beta1", false) => Ok(status.key_id),
            ("ok", "v2" | "v2beta1", true) => Err(failed("Status has no key_id".into())),
            ("ok", version, _) => Err(failed(format!("Status reports version {version:?}, not v2"))),
            (healthz, ..) => Err(failed(format!("Status reports {healthz:?}, not ok"))),
        }
    }

    /// Whether a plugin's Status is what an API server demands of it before it is ready.
    ///
    /// # Errors
    /// What is wrong with it.
    pub async fn check(&self, provider: &ProviderName) -> Result<(), PluginError> {
        self.key_id(provider).await.map(drop)
    }

    async fn client(&self, provider: &ProviderName) -> Result<Client, PluginError> {
        let failed = |problem, passes| PluginError { provider: provider.clone(), problem, passes };
        // Held while connecting, so that many values at once make one connection.
        let mut clients = self.clients.lock().await;
        if let Some(client) = clients.get(provider) {
            return Ok(client.clone());
        }
        let Some(socket) = self.sockets.get(provider) else {
            return Err(failed("the EncryptionConfiguration has no KMS v2 provider of this name".into(), false));
        };
        let client = connect(socket).await.map_err(|error| failed(error.to_string(), true))?;
        clients.insert(provider.clone(), client.clone());
        Ok(client)
    }
}

/// An id for the plugin's own log.
fn uid() -> String {
    format!("kube-envelope-{:016x}", rand::random::<u64>())
}

/// Waits before another attempt, or gives up.
async fn again(provider: &ProviderName, rpc: &str, status: &Status, attempt: &mut u32) -> Result<(), PluginError> {
    let passes =
        matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted | Code::Cancelled);
    if passes && *attempt < ATTEMPTS {
        *attempt += 1;
        tokio::time::sleep(PAUSE).await;
        return Ok(());
    }
    let problem = format!("{rpc} was refused: {}", status.message());
    Err(PluginError { provider: provider.clone(), problem, passes })
}
