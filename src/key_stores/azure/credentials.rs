//! Who the plugin is to Azure: the configured credential, made anew when its file changes or a token was refused.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use azure_core::cloud::CustomConfiguration;
use azure_core::credentials::{AccessToken, Secret, TokenCredential, TokenRequestOptions};
use azure_core::error::ErrorKind;
use azure_core::http::ClientOptions;
use azure_core::{Error, Result};
use azure_identity::{
    ClientAssertionCredentialOptions, ClientSecretCredential, ClientSecretCredentialOptions, ManagedIdentityCredential,
    ManagedIdentityCredentialOptions, UserAssignedId, WorkloadIdentityCredential, WorkloadIdentityCredentialOptions,
};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::client;
use crate::crypto::seal::digest;
use crate::kek::KekError;
use crate::key_stores::shared::http::Client;

/// The time a caller waits for a token; the fetch itself goes on and serves the next caller.
const WAIT: Duration = Duration::from_millis(1500);
const MAX_FILE_BYTES: usize = 64 * 1024;

/// Which identity the plugin has.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub enum Credential {
    /// The identity of the virtual machine, from its metadata service.
    ManagedIdentity(ManagedIdentity),
    /// A token of a Kubernetes service account, exchanged at Entra.
    WorkloadIdentity(WorkloadIdentity),
    /// An application with a secret in a file.
    ClientSecret(ClientSecret),
}

/// Settings of a managed identity.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ManagedIdentity {
    /// Of a user-assigned identity; the system-assigned one without it.
    pub client_id: Option<String>,
}

/// Settings of a workload identity; what is left out comes from the variables that AKS's webhook sets.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct WorkloadIdentity {
    /// The directory (`AZURE_TENANT_ID`).
    pub tenant_id: Option<String>,
    /// The application (`AZURE_CLIENT_ID`).
    pub client_id: Option<String>,
    /// File with the service account's token (`AZURE_FEDERATED_TOKEN_FILE`).
    pub token_file: Option<PathBuf>,
}

/// Settings of an application with a secret.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ClientSecret {
    /// The directory.
    pub tenant_id: String,
    /// The application.
    pub client_id: String,
    /// File with the secret, and nothing else but white space around it.
    pub secret_file: PathBuf,
}

impl Credential {
    /// The file that the credential is read from.
    fn file(&self) -> Option<PathBuf> {
        match self {
            Self::ManagedIdentity(_) => None,
            Self::WorkloadIdentity(settings) => settings
                .token_file
                .clone()
                .or_else(|| std::env::var_os("AZURE_FEDERATED_TOKEN_FILE").map(PathBuf::from)),
            Self::ClientSecret(settings) => Some(settings.secret_file.clone()),
        }
    }

    /// What can be seen to be wrong without asking anybody.
    pub(super) fn problem(&self, client: &Client) -> Option<String> {
        match self.file().as_deref().map(read).transpose() {
            Ok(text) => {
                let text = text.as_deref().map_or("", String::as_str);
                self.make(text, &client::options(client)).err().map(|error| error.to_string())
            }
            Err(error) => Some(error.to_string()),
        }
    }

    fn make(&self, secret: &str, options: &ClientOptions) -> Result<Arc<dyn TokenCredential>> {
        let client_options = options.clone();
        Ok(match self {
            Self::ManagedIdentity(settings) => {
                let user_assigned_id = settings.client_id.clone().map(UserAssignedId::ClientId);
                let options = ManagedIdentityCredentialOptions { user_assigned_id, client_options };
                ManagedIdentityCredential::new(Some(options))?
            }
            Self::WorkloadIdentity(settings) => {
                WorkloadIdentityCredential::new(Some(WorkloadIdentityCredentialOptions {
                    credential_options: ClientAssertionCredentialOptions { client_options },
                    client_id: settings.client_id.clone(),
                    tenant_id: settings.tenant_id.clone(),
                    token_file_path: settings.token_file.clone(),
                }))?
            }
            Self::ClientSecret(settings) => ClientSecretCredential::new(
                &settings.tenant_id,
                settings.client_id.clone(),
                Secret::new(secret.trim().to_owned()),
                Some(ClientSecretCredentialOptions { client_options }),
            )?,
        })
    }
}

fn read(file: &Path) -> std::result::Result<Zeroizing<String>, KekError> {
    let name = file.display();
    let text = std::fs::read_to_string(file)
        .map(Zeroizing::new)
        .map_err(|error| KekError::misconfigured(format!("cannot read credential file {name}")).with_source(error))?;
    if text.trim().is_empty() || text.len() > MAX_FILE_BYTES {
        return Err(KekError::misconfigured(format!("credential file {name} is empty or too large")));
    }
    Ok(text)
}

/// The SDK's credential as it is now.
pub(super) struct Identity {
    credential: Credential,
    options: ClientOptions,
    current: Mutex<Option<Current>>,
    /// Unix time of the end of the token that was got last.
    ends: AtomicI64,
}

struct Current {
    content: [u8; 32],
    credential: Arc<dyn TokenCredential>,
}

impl Identity {
    pub(super) fn new(credential: Credential, client: &Client, authority: Option<&str>) -> Self {
        let mut options = client::options(client);
        options.cloud = authority.map(|host| {
            let mut cloud = CustomConfiguration::default();
            cloud.authority_host = host.into();
            Arc::new(cloud.into())
        });
        Self { credential, options, current: Mutex::default(), ends: AtomicI64::new(0) }
    }

    /// When the token in use ends.
    pub(super) fn expires(&self) -> Option<jiff::Timestamp> {
        let ends = Some(self.ends.load(Ordering::Relaxed)).filter(|&ends| ends > 0)?;
        jiff::Timestamp::from_second(ends).ok()
    }

    /// Gives up every token got so far: the vault did not accept one.
    pub(super) fn forget(&self) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The SDK reads a token file once in ten minutes and a secret never again: a changed file is a new credential.
    fn current(&self) -> Result<Arc<dyn TokenCredential>> {
        let as_credential = |error: KekError| Error::new(ErrorKind::Credential, error);
        let text = self.credential.file().as_deref().map(read).transpose().map_err(as_credential)?;
        let text = text.as_deref().map_or("", String::as_str);
        let content = digest(&[text.as_bytes()]);
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(current) = current.as_ref().filter(|current| current.content == content) {
            return Ok(current.credential.clone());
        }
        let credential = self.credential.make(text, &self.options)?;
        *current = Some(Current { content, credential: credential.clone() });
        Ok(credential)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("credential", &self.credential).finish_non_exhaustive()
    }
}

#[async_trait]
impl TokenCredential for Identity {
    /// In a task of its own: a caller that gives up does not end the fetch, and finds its result the next time.
    async fn get_token(&self, scopes: &[&str], _: Option<TokenRequestOptions<'_>>) -> Result<AccessToken> {
        let credential = self.current()?;
        let scopes: Vec<String> = scopes.iter().map(|&scope| scope.into()).collect();
        let fetch = tokio::spawn(async move {
            let scopes: Vec<&str> = scopes.iter().map(String::as_str).collect();
            credential.get_token(&scopes, None).await
        });
        let late = |what: String| Error::new(ErrorKind::Credential, KekError::unavailable(what));
        match tokio::time::timeout(WAIT, fetch).await {
            Ok(Ok(token)) => {
                token.inspect(|token| self.ends.store(token.expires_on.unix_timestamp(), Ordering::Relaxed))
            }
            Ok(Err(error)) => Err(late(format!("the token fetch ended early: {error}"))),
            Err(_) => Err(late(format!("no access token from Azure within {WAIT:?}"))),
        }
    }
}
