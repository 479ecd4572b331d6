//! The KEK made of a key in a vault: its versions, and the wraps under them.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use azure_core::http::RequestContent;
use azure_security_keyvault_keys::models::{
    EncryptionAlgorithm, Key, KeyClientWrapKeyOptions, KeyOperationParameters, KeyOperationResult,
};
use azure_security_keyvault_keys::{KeyClient, ResourceExt};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::credentials::Identity;
use super::error::{Action, kek_error};
use crate::crypto::secret::Dek;
use crate::kek::clock::ServerClock;
use crate::kek::{
    Kek, KekCause, KekError, KekVersion, Lineage, RotateKek, Unwrapped, WrapContext, WrappedDek, unwrapped_dek,
};
use crate::key_stores::shared::http;

/// Key Vault makes up a version's id: 32 hexadecimal digits, never the same again for another key.
pub(super) fn is_version(text: &str) -> bool {
    text.len() == 32 && text.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'))
}

/// How the DEK is wrapped.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Algorithm {
    /// An RSA key of 2048 bits or more.
    #[default]
    #[serde(rename = "RSA-OAEP-256")]
    RsaOaep256,
    /// An AES key of 256 bits; Managed HSM only.
    #[serde(rename = "A256KW")]
    A256Kw,
}

/// The KEK made of a key in a vault.
pub(super) struct AzureKek {
    pub(super) lineage: Lineage,
    pub(super) client: KeyClient,
    pub(super) http: http::Client,
    pub(super) identity: Arc<Identity>,
    pub(super) key: String,
    pub(super) algorithm: Algorithm,
}

impl AzureKek {
    /// The latest version, if it can be used.
    async fn latest(&self) -> Result<String, KekError> {
        let key = self.latest_key().await?;
        let version = self.version_of(&key)?;
        // Key Vault wraps under a disabled key, and refuses to unwrap again.
        match key.attributes.as_ref().and_then(|attributes| attributes.enabled) {
            Some(true) => Ok(version),
            Some(false) => Err(KekError::new(
                KekCause::Denied,
                format!("version {version} of key {} is disabled; enable it again", self.key),
            )),
            None => Err(KekError::unmapped(format!("Key Vault does not say whether key {} is enabled", self.key))),
        }
    }

    /// The key with its latest version.
    pub(super) async fn latest_key(&self) -> Result<Key, KekError> {
        self.ask(Action::Key, || async { self.client.get_key(&self.key, None).await?.into_model() }).await
    }

    /// The version that an answer names; its host is ignored.
    fn version_of(&self, answer: &impl ResourceExt) -> Result<String, KekError> {
        let id = answer.resource_id().map_err(|_| KekError::unmapped("answer of Key Vault names no key"))?;
        match id.version {
            Some(version) if id.name.eq_ignore_ascii_case(&self.key) && is_version(&version) => Ok(version),
            version => Err(KekError::unmapped(format!(
                "answer of Key Vault names {:?} version {version:?}, and key {} was asked",
                id.name, self.key
            ))),
        }
    }

    /// The value that version `version` gave, and no other.
    fn value_of(&self, mut answer: KeyOperationResult, version: &str) -> Result<Zeroizing<Vec<u8>>, KekError> {
        let value = Zeroizing::new(answer.result.take().unwrap_or_default());
        let named = self.version_of(&answer)?;
        if named == version {
            Ok(value)
        } else {
            Err(KekError::unmapped(format!("asked version {version} of key {}, and {named} answered", self.key)))
        }
    }

    fn parameters(&self, value: &[u8]) -> KeyOperationParameters {
        let algorithm = match self.algorithm {
            Algorithm::RsaOaep256 => EncryptionAlgorithm::RsaOaep256,
            Algorithm::A256Kw => EncryptionAlgorithm::A256Kw,
        };
        KeyOperationParameters {
            algorithm: Some(algorithm),
            value: Some(value.to_vec()),
            ..KeyOperationParameters::default()
        }
    }

    /// One call, and once more with another token when this one is refused.
    async fn ask<T, F>(&self, action: Action, call: impl Fn() -> F) -> Result<T, KekError>
    where
        F: Future<Output = azure_core::Result<T>>,
    {
        // The SDK takes the token from the same place.
        self.identity.0.with(|_| async { call().await.map_err(|error| kek_error(action, &error)) }).await
    }

    /// Decrypts by exactly this version: the operation of its own that other plugins use.
    pub(super) async fn decrypt(&self, version: &str, blob: &[u8]) -> Result<Zeroizing<Vec<u8>>, KekError> {
        let answer = self.ask(Action::Unwrap, || async {
            let content = content(self.parameters(blob))?;
            self.client.decrypt(&self.key, version, content, None).await?.into_model()
        });
        self.value_of(answer.await?, version)
    }

    async fn unwrap_by(&self, version: &str, blob: &[u8]) -> Result<KeyOperationResult, KekError> {
        self.ask(Action::Unwrap, || async {
            let content = content(self.parameters(blob))?;
            self.client.unwrap_key(&self.key, version, content, None).await?.into_model()
        })
        .await
    }
}

impl fmt::Debug for AzureKek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let endpoint = self.client.endpoint().as_str();
        f.debug_struct("AzureKek").field("vault", &endpoint).field("key", &self.key).finish_non_exhaustive()
    }
}

/// The request's body, and the clear text in `parameters` cleared.
fn content(mut parameters: KeyOperationParameters) -> azure_core::Result<RequestContent<KeyOperationParameters>> {
    let body = azure_core::json::to_json(&parameters);
    drop(Zeroizing::new(parameters.value.take()));
    Ok(body?.into())
}

#[async_trait]
impl Kek for AzureKek {
    fn lineage(&self) -> Lineage {
        self.lineage
    }

    fn credentials_expire(&self) -> Option<jiff::Timestamp> {
        self.identity.0.expire()
    }

    fn server_clock(&self) -> Option<&ServerClock> {
        Some(self.http.clock())
    }

    async fn version(&self) -> Result<KekVersion, KekError> {
        Ok(KekVersion { lineage: self.lineage, version: self.latest().await? })
    }

    async fn wrap(&self, dek: &Dek, _context: &WrapContext) -> Result<WrappedDek, KekError> {
        let version = self.latest().await?;
        let answer = self
            .ask(Action::Wrap, || async {
                let content = content(self.parameters(dek.expose()))?;
                let options = KeyClientWrapKeyOptions {
                    key_version: Some(version.clone()),
                    ..KeyClientWrapKeyOptions::default()
                };
                self.client.wrap_key(&self.key, content, Some(options)).await?.into_model()
            })
            .await?;
        let blob = self.value_of(answer, &version)?.to_vec();
        if blob.is_empty() {
            return Err(KekError::unmapped("Key Vault returned an empty wrapped key"));
        }
        Ok(WrappedDek { version: KekVersion { lineage: self.lineage, version }, blob })
    }

    async fn unwrap(&self, wrapped: &WrappedDek, _context: &WrapContext) -> Result<Unwrapped, KekError> {
        let version = &wrapped.version.version;
        if wrapped.version.lineage != self.lineage || !is_version(version) {
            return Err(KekError::new(KekCause::UnknownVersion, format!("Key Vault has no version {version:?}")));
        }
        let answer = match self.unwrap_by(version, &wrapped.blob).await {
            // Only this version, or the whole key? The latter is a denial, and told by the key's own answer.
            Err(error) if error.cause() == KekCause::UnknownVersion => {
                self.latest().await?;
                return Err(error);
            }
            result => result?,
        };
        let value = self.value_of(answer, version)?;
        Ok(Unwrapped { dek: unwrapped_dek(value)?, version: wrapped.version.clone() })
    }
}

#[async_trait]
impl RotateKek for AzureKek {
    async fn rotate(&self) -> Result<KekVersion, KekError> {
        let key: Key =
            self.ask(Action::Rotate, || async { self.client.rotate_key(&self.key, None).await?.into_model() }).await?;
        Ok(KekVersion { lineage: self.lineage, version: self.version_of(&key)? })
    }
}
