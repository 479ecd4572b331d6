//! `azureKeyVault`: a key in Azure Key Vault or Managed HSM, by the Azure SDK.
//!
//! Each wrap is made under a version pinned in the request. RSA takes no associated data: that a DEK is the right
//! one is told by its id, which commits to it and is checked after every unwrap (`set.rs`).

mod client;
mod credentials;
mod error;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use azure_core::http::RequestContent;
use azure_security_keyvault_keys::models::{
    EncryptionAlgorithm, Key, KeyClientWrapKeyOptions, KeyOperationParameters, KeyOperationResult,
};
use azure_security_keyvault_keys::{KeyClient, KeyClientOptions, ResourceExt};
use serde::Deserialize;
use zeroize::Zeroizing;

use self::credentials::Identity;
pub use self::credentials::{ClientSecret, Credential, ManagedIdentity, WorkloadIdentity};
use self::error::{Question, map};
use super::KekSettings;
use super::shared::http;
use crate::crypto::secret::Dek;
use crate::kek::clock::ServerClock;
use crate::kek::{Kek, KekCause, KekError, KekVersion, Lineage, RotateKek, Unwrapped, WrapContext, WrappedDek};

/// Settings of an `azureKeyVault` KEK.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AzureConfig {
    /// The vault's URL: `https://NAME.vault.azure.net` or `https://NAME.managedhsm.azure.net`.
    pub vault: String,
    /// The key's name, without a version.
    pub key: String,
    /// How the DEK is wrapped.
    #[serde(default)]
    pub algorithm: Algorithm,
    /// Who the plugin is.
    pub credential: Credential,
    /// Entra's address in another cloud than the public one.
    pub authority_host: Option<String>,
    /// The vault's address where its name shall not be looked up (a private endpoint, a node without DNS).
    pub address: Option<IpAddr>,
    /// PEM file with the only authorities to trust, for the vault and Entra.
    pub ca_file: Option<PathBuf>,
}

/// How the DEK is wrapped.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
pub enum Algorithm {
    /// An RSA key of 2048 bits or more.
    #[default]
    #[serde(rename = "RSA-OAEP-256")]
    RsaOaep256,
    /// An AES key of 256 bits; Managed HSM only.
    #[serde(rename = "A256KW")]
    A256Kw,
}

impl AzureConfig {
    fn host(&self) -> Option<String> {
        let url = reqwest::Url::parse(&self.vault).ok()?;
        let plain = url.path() == "/" && url.query().is_none() && url.username().is_empty();
        (url.scheme() == "https" && plain).then(|| url.host_str().map(str::to_lowercase)).flatten()
    }

    fn make(&self, patient: bool) -> Result<AzureKek, KekError> {
        if let Some((field, problem)) = self.problems().into_iter().next() {
            return Err(KekError::misconfigured(format!("azureKeyVault.{field}: {problem}")));
        }
        let host = self.host().expect("a vault without problems has a host");
        // The port is the URL's.
        let pinned = self.address.map(|address| (host.as_str(), SocketAddr::new(address, 0)));
        let http = http::client(&http::Reach { ca_file: self.ca_file.as_deref(), pinned, patient })?;
        let identity = Arc::new(Identity::new(self.credential.clone(), &http, self.authority_host.as_deref()));
        let options = KeyClientOptions { client_options: client::options(&http), ..KeyClientOptions::default() };
        let client = KeyClient::new(&self.vault, identity.clone(), Some(options)).map_err(|error| {
            KekError::misconfigured(format!("no client for {}", self.vault)).with_source(error.to_string())
        })?;
        let lineage = Lineage::derive("azureKeyVault", &[&host, &self.key.to_lowercase()]);
        Ok(AzureKek { lineage, client, http, identity, key: self.key.clone(), algorithm: self.algorithm })
    }
}

#[async_trait]
impl KekSettings for AzureConfig {
    fn kind(&self) -> &'static str {
        "azureKeyVault"
    }

    fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        if self.host().is_none() {
            problems.push(("vault", format!("{:?} is not of the form https://NAME.vault.azure.net", self.vault)));
        }
        if !is_key_name(&self.key) {
            let fix = "write the key's name alone: 1 to 127 letters, digits and hyphens";
            problems.push(("key", format!("{:?} is not the name of a key; {fix}", self.key)));
        }
        if self.authority_host.as_deref().is_some_and(|host| !host.starts_with("https://")) {
            problems.push(("authorityHost", "must be an https URL".into()));
        }
        match http::client(&http::Reach { ca_file: self.ca_file.as_deref(), ..http::Reach::default() }) {
            Ok(client) => problems.extend(self.credential.problem(&client).map(|problem| ("credential", problem))),
            Err(error) => problems.push(("caFile", error.to_string())),
        }
        problems
    }

    fn advice(&self) -> Vec<(String, String)> {
        let Credential::WorkloadIdentity(_) = self.credential else { return Vec::new() };
        let so = "a workload identity's token comes from the API server that waits for this plugin, unless it is made by other means";
        vec![(so.into(), "use a managed identity on the control plane's machines".into())]
    }

    async fn build(&self) -> Result<Box<dyn Kek>, KekError> {
        Ok(Box::new(self.make(false)?))
    }

    async fn build_rotating(&self) -> Result<Box<dyn RotateKek>, KekError> {
        Ok(Box::new(self.make(true)?))
    }
}

fn is_key_name(name: &str) -> bool {
    (1..=127).contains(&name.len()) && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}

/// Key Vault makes up a version's id: 32 hexadecimal digits, never the same again for another key.
fn is_version(text: &str) -> bool {
    text.len() == 32 && text.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'))
}

/// The KEK made of a key in a vault.
struct AzureKek {
    lineage: Lineage,
    client: KeyClient,
    http: http::Client,
    identity: Arc<Identity>,
    key: String,
    algorithm: Algorithm,
}

impl AzureKek {
    /// The latest version, if it can be used.
    async fn latest(&self) -> Result<String, KekError> {
        let key: Key =
            self.twice(Question::Key, || async { self.client.get_key(&self.key, None).await?.into_model() }).await?;
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

    /// The version that an answer names. Its host is looked at by nobody.
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

    /// One call. A token that is not accepted is replaced, and the call made once more.
    async fn twice<T, F>(&self, question: Question, call: impl Fn() -> F) -> Result<T, KekError>
    where
        F: Future<Output = azure_core::Result<T>>,
    {
        match call().await.map_err(|error| map(question, &error)) {
            Err(error) if error.cause() == KekCause::Unauthenticated => {
                self.identity.forget();
                call().await.map_err(|error| map(question, &error))
            }
            result => result,
        }
    }

    async fn unwrap_by(&self, version: &str, blob: &[u8]) -> Result<KeyOperationResult, KekError> {
        self.twice(Question::Unwrap, || async {
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
        self.identity.expires()
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
            .twice(Question::Wrap, || async {
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
            return Err(KekError::unmapped("Key Vault wrapped into nothing"));
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
        let mut value = self.value_of(answer, version)?;
        let dek = Dek::from_unwrapped(value.as_mut_slice())
            .ok_or_else(|| KekError::new(KekCause::Rejected, "unwrapped DEK is not 32 bytes"))?;
        Ok(Unwrapped { dek, version: wrapped.version.clone() })
    }
}

#[async_trait]
impl RotateKek for AzureKek {
    async fn rotate(&self) -> Result<KekVersion, KekError> {
        let key: Key = self
            .twice(Question::Rotate, || async { self.client.rotate_key(&self.key, None).await?.into_model() })
            .await?;
        Ok(KekVersion { lineage: self.lineage, version: self.version_of(&key)? })
    }
}
