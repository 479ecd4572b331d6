//! Who the plugin is to Azure: the configured credential, exchanged for access tokens by the Azure SDK.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use azure_core::cloud::CustomConfiguration;
use azure_core::credentials::{AccessToken, Secret, TokenCredential, TokenRequestOptions};
use azure_core::error::ErrorKind;
use azure_core::http::ClientOptions;
use azure_core::time::OffsetDateTime;
use azure_core::{Error, Result};
use azure_identity::{
    ClientAssertionCredential, ClientAssertionCredentialOptions, ClientSecretCredential, ClientSecretCredentialOptions,
    ManagedIdentityCredential, ManagedIdentityCredentialOptions, UserAssignedId, WorkloadIdentityCredential,
    WorkloadIdentityCredentialOptions,
};
use url::Url;

use super::certificate::Assertion;
use super::client;
use super::error::login_refusal;
use crate::kek::KekError;
use crate::key_stores::shared::credential_file::{self, Content};
use crate::key_stores::shared::http::Client;
use crate::key_stores::shared::renewing::{Loaded, Renewing, Source};

/// Which identity the plugin has.
#[derive(Clone, Debug)]
pub(super) enum Credential {
    /// The identity of the virtual machine.
    ManagedIdentity { client_id: Option<String> },
    /// A token of a Kubernetes service account.
    WorkloadIdentity { tenant_id: String, client_id: String, token_file: PathBuf },
    /// An application with a secret in a file.
    ClientSecret { tenant_id: String, client_id: String, secret_file: PathBuf },
    /// An application with a certificate, which lies in a file with its key.
    ClientCertificate { tenant_id: String, client_id: String, certificate_file: PathBuf },
}

impl Credential {
    pub(super) fn tenant(&self) -> Option<&str> {
        match self {
            Self::ManagedIdentity { .. } => None,
            Self::WorkloadIdentity { tenant_id, .. }
            | Self::ClientSecret { tenant_id, .. }
            | Self::ClientCertificate { tenant_id, .. } => Some(tenant_id),
        }
    }

    /// The SDK's own, which reads a token file once in ten minutes and a secret never again: made for one token.
    fn make(
        &self,
        content: Option<&Content>,
        options: &ClientOptions,
        authority: Option<&Url>,
    ) -> Result<Arc<dyn TokenCredential>> {
        let client_options = options.clone();
        Ok(match self {
            Self::ManagedIdentity { client_id } => {
                let user_assigned_id = client_id.clone().map(UserAssignedId::ClientId);
                let options = ManagedIdentityCredentialOptions { user_assigned_id, client_options };
                ManagedIdentityCredential::new(Some(options))?
            }
            Self::WorkloadIdentity { tenant_id, client_id, token_file } => {
                WorkloadIdentityCredential::new(Some(WorkloadIdentityCredentialOptions {
                    credential_options: ClientAssertionCredentialOptions { client_options },
                    client_id: Some(client_id.clone()),
                    tenant_id: Some(tenant_id.clone()),
                    token_file_path: Some(token_file.clone()),
                }))?
            }
            Self::ClientSecret { tenant_id, client_id, .. } => ClientSecretCredential::new(
                tenant_id,
                client_id.clone(),
                Secret::new(content.map(|content| content.text.to_string()).unwrap_or_default()),
                Some(ClientSecretCredentialOptions { client_options }),
            )?,
            Self::ClientCertificate { tenant_id, client_id, .. } => {
                let unread = || KekError::unavailable("the client certificate was not read");
                let content = content.ok_or_else(|| Error::new(ErrorKind::Credential, unread()))?;
                let assertion = Assertion::sign(content, (tenant_id, client_id), authority)
                    .map_err(|error| Error::new(ErrorKind::Credential, error))?;
                let options = ClientAssertionCredentialOptions { client_options };
                ClientAssertionCredential::new(tenant_id.clone(), client_id.clone(), assertion, Some(options))?
            }
        })
    }
}

/// Gets tokens from Entra or the machine's metadata service.
pub(super) struct Entra {
    credential: Credential,
    scope: String,
    authority: Option<Url>,
    options: ClientOptions,
}

impl Entra {
    pub(super) fn new(credential: Credential, scope: String, client: &Client, authority: Option<&Url>) -> Self {
        let mut options = client::options(client);
        options.cloud = authority.map(|url| {
            let mut cloud = CustomConfiguration::default();
            cloud.authority_host = url.to_string();
            Arc::new(cloud.into())
        });
        Self { credential, scope, authority: authority.cloned(), options }
    }
}

#[async_trait]
impl Source for Entra {
    type Credential = AccessToken;

    fn name(&self) -> &'static str {
        "Azure access tokens"
    }

    async fn content(&self) -> std::result::Result<Option<Content>, KekError> {
        match &self.credential {
            Credential::ManagedIdentity { .. } => Ok(None),
            Credential::WorkloadIdentity { token_file, .. } => {
                credential_file::read("service account's token", token_file).await.map(Some)
            }
            Credential::ClientSecret { secret_file, .. } => {
                credential_file::read("client secret", secret_file).await.map(Some)
            }
            Credential::ClientCertificate { certificate_file, .. } => {
                credential_file::read("client certificate", certificate_file).await.map(Some)
            }
        }
    }

    async fn load(&self, content: Option<Content>) -> std::result::Result<Loaded<AccessToken>, KekError> {
        // Created for each token: the SDK's credentials keep tokens in a cache of their own, from which one that was
        // refused would come back.
        let made = self.credential.make(content.as_ref(), &self.options, self.authority.as_ref());
        let token = async { made?.get_token(&[&self.scope], None).await };
        let token = token.await.map_err(|error| login_refusal(&error))?;
        let ends = token.expires_on.into();
        Ok(Loaded::until(Arc::new(token), Some(ends)))
    }

    fn same(&self, one: &AccessToken, other: &AccessToken) -> bool {
        one.token.secret() == other.token.secret()
    }
}

impl fmt::Debug for Entra {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entra").field("credential", &self.credential).finish_non_exhaustive()
    }
}

/// Hands the tokens in use to the SDK.
#[derive(Debug)]
pub(super) struct Identity(pub(super) Renewing<Entra>);

impl Identity {
    pub(super) fn new(entra: Entra) -> Self {
        Self(Renewing::new(entra))
    }
}

#[async_trait]
impl TokenCredential for Identity {
    async fn get_token(&self, _: &[&str], _: Option<TokenRequestOptions<'_>>) -> Result<AccessToken> {
        let loaded = self.0.get().await.map_err(|error| Error::new(ErrorKind::Credential, error))?;
        // Ends at once to the SDK, which would otherwise keep it beside this engine, and after it was refused.
        Ok(AccessToken::new(loaded.credential.token.clone(), OffsetDateTime::now_utc()))
    }
}
