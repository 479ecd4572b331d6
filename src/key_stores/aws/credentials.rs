//! Credentials for AWS, from the SDK's providers: instance metadata, container, web identity, profile, environment.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::sts::AssumeRoleProvider;
use aws_config::{BehaviorVersion, Region};
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, future};
use aws_runtime::env_config::file::{EnvConfigFileKind, EnvConfigFiles};
use aws_sdk_kms::config::{Credentials as Keys, SharedHttpClient};
use aws_sdk_kms::error::ConnectorError;
use serde::Deserialize;

use super::process::Program;
use crate::kek::{KekCause, KekError};
use crate::key_stores::shared::credential_file::{self, Content};
use crate::key_stores::shared::renewing::{Loaded, Renewing, Source};
use crate::key_stores::shared::vendor_text::shortened;

/// Variables that lead to a token of an API server, as the webhooks of EKS set them (IRSA, Pod Identity).
const WEB_IDENTITY_FILE: &str = "AWS_WEB_IDENTITY_TOKEN_FILE";
const CONTAINER_TOKEN_FILE: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE";

/// A role to assume before KMS is asked.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct AssumeRole {
    /// ARN of the role.
    pub(super) role_arn: String,
    /// What the role's owner asks for against confused deputies.
    pub(super) external_id: Option<String>,
    /// How the session is called in `CloudTrail`; `kube-envelope` unless said otherwise.
    pub(super) session_name: Option<String>,
}

/// Where the credentials come from.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    pub(super) profile: Option<String>,
    pub(super) file: Option<PathBuf>,
    pub(super) program: Option<Program>,
    pub(super) role: Option<AssumeRole>,
}

impl Origin {
    fn is_default(&self) -> bool {
        self.profile.is_none() && self.file.is_none() && self.program.is_none()
    }

    /// Whether the environment says so.
    pub(super) fn is_an_api_server(&self) -> bool {
        self.is_default()
            && [WEB_IDENTITY_FILE, CONTAINER_TOKEN_FILE].iter().any(|variable| std::env::var_os(variable).is_some())
    }
}

/// Gets credentials by the SDK.
#[derive(Debug)]
pub(super) struct Aws {
    pub(super) origin: Origin,
    pub(super) region: Region,
    /// To STS and whoever else gives them out, where it is not the SDK's own.
    pub(super) http: Option<SharedHttpClient>,
}

#[async_trait]
impl Source for Aws {
    type Credential = Keys;

    fn name(&self) -> &'static str {
        "AWS credentials"
    }

    async fn content(&self) -> Result<Option<Content>, KekError> {
        match &self.origin.file {
            Some(file) => credential_file::read("AWS credentials", file).await.map(Some),
            None => Ok(None),
        }
    }

    /// By new providers each time: they read files once and keep them.
    async fn load(&self, _: Option<Content>) -> Result<Loaded<Keys>, KekError> {
        if self.origin.is_default() {
            token_file_exists(WEB_IDENTITY_FILE, "web identity token").await?;
            token_file_exists(CONTAINER_TOKEN_FILE, "container's authorization token").await?;
        }
        let keys = self.chain().await?.provide_credentials().await.map_err(|error| self.refusal(&error))?;
        let ends = keys.expiry();
        Ok(Loaded::until(Arc::new(keys), ends))
    }

    fn same(&self, one: &Keys, other: &Keys) -> bool {
        one.access_key_id() == other.access_key_id()
            && one.secret_access_key() == other.secret_access_key()
            && one.session_token() == other.session_token()
    }
}

async fn token_file_exists(variable: &str, what: &str) -> Result<(), KekError> {
    let Some(file) = std::env::var_os(variable).map(PathBuf::from) else { return Ok(()) };
    credential_file::read(&format!("{what} that {variable} names"), &file).await.map(drop)
}

impl Aws {
    async fn chain(&self) -> Result<SharedCredentialsProvider, KekError> {
        let base = match &self.origin.program {
            Some(program) => SharedCredentialsProvider::new(program.run().await?),
            None => self.base().await,
        };
        let Some(AssumeRole { role_arn, external_id, session_name }) = &self.origin.role else { return Ok(base) };
        let mut shared = aws_config::defaults(BehaviorVersion::latest())
            .region(self.region.clone())
            .credentials_provider(base.clone());
        if let Some(http) = &self.http {
            shared = shared.http_client(http.clone());
        }
        let shared = shared.load().await;
        let mut role = AssumeRoleProvider::builder(role_arn)
            .session_name(session_name.as_deref().unwrap_or("kube-envelope"))
            .region(self.region.clone())
            .configure(&shared);
        if let Some(id) = external_id {
            role = role.external_id(id);
        }
        Ok(SharedCredentialsProvider::new(role.build_from_provider(base).await))
    }

    async fn base(&self) -> SharedCredentialsProvider {
        let mut surroundings = ProviderConfig::default()
            .with_behavior_version(Some(BehaviorVersion::latest()))
            .with_region(Some(self.region.clone()));
        if let Some(http) = &self.http {
            surroundings = surroundings.with_http_client(http.clone());
        }
        if self.origin.is_default() {
            let chain = DefaultCredentialsChain::builder().region(self.region.clone()).configure(surroundings);
            return SharedCredentialsProvider::new(chain.build().await);
        }
        let mut named = ProfileFileCredentialsProvider::builder().configure(&surroundings);
        if let Some(name) = &self.origin.profile {
            named = named.profile_name(name);
        }
        if let Some(file) = &self.origin.file {
            named =
                named.profile_files(EnvConfigFiles::builder().with_file(EnvConfigFileKind::Credentials, file).build());
        }
        SharedCredentialsProvider::new(named.build())
    }

    /// Why there are none, in one line: the SDK's own chain of errors is printed nowhere.
    fn refusal(&self, error: &CredentialsError) -> KekError {
        let chain = chain_of(error);
        let from = match &self.origin {
            Origin { file: Some(file), .. } => format!("from {}", file.display()),
            Origin { profile: Some(profile), .. } => format!("of profile {profile}"),
            Origin { program: Some(program), .. } => format!("by {}", program.file().display()),
            _ => "from environment, profile, web identity, container and instance metadata".into(),
        };
        let failed = |cause, why: &str| KekError::new(cause, format!("no AWS credentials {from}: {why}"));
        let found = |parts: &[&'static str]| parts.iter().copied().find(|part| chain.contains(part));
        // Searched for in the text: a `CredentialsError` carries no code.
        if let Some(code) = found(&STS_REFUSALS) {
            return failed(KekCause::Unauthenticated, &format!("STS refuses them: {code}"));
        }
        for (word, why) in UNSUPPORTED {
            if chain.contains(word) {
                return failed(KekCause::Misconfigured, why);
            }
        }
        if let CredentialsError::CredentialsNotLoaded(_) = error {
            // What the SDK adds is the list of all places where it looked.
            return failed(KekCause::Unauthenticated, NOTHING_FOUND);
        }
        match error {
            CredentialsError::InvalidConfiguration(_) => {
                failed(KekCause::Misconfigured, "the profile cannot be used; check its settings")
            }
            CredentialsError::ProviderTimedOut(_) => failed(KekCause::Unavailable, NO_METADATA),
            _ if is_unreached(error) || found(&["IMDS", "imds", "timed out", "timeout"]).is_some() => {
                failed(KekCause::Unavailable, NO_METADATA)
            }
            _ => failed(KekCause::Unavailable, "the place that gives them out failed"),
        }
        .with_source(shortened(&chain, 300))
    }
}

/// Codes with which STS refuses who asks (AWS STS API Reference: `AssumeRole`, `AssumeRoleWithWebIdentity`, common errors).
const STS_REFUSALS: [&str; 9] = [
    "AccessDenied",
    "ExpiredToken",
    "IDPRejectedClaim",
    "InvalidIdentityToken",
    "InvalidClientTokenId",
    "SignatureDoesNotMatch",
    "UnrecognizedClient",
    "MalformedPolicyDocument",
    "RegionDisabled",
];

/// Words of a profile that this build does not follow, and what to do.
const UNSUPPORTED: [(&str, &str); 3] = [
    // As the SDK calls the feature that it was built without.
    (
        "credentials-process",
        "the profile has a credential_process, and only a program that this configuration names is started: write its \
         words as the list credentialProcess",
    ),
    (
        "sso",
        "the profile signs in by IAM Identity Center; for the plugin use a role, and for a person's commands \
         credentialProcess: [/usr/bin/aws, configure, export-credentials, --format, process, --profile, NAME]",
    ),
    ("login_session", "the profile is for a person; use a role or a credentialsFile"),
];

const NOTHING_FOUND: &str = "none are there; give the machine a role (to be seen from within a container, it needs \
                             HttpPutResponseHopLimit 2 or more), or set profile or credentialsFile";
const NO_METADATA: &str = "the service that gives them out did not answer; for instance metadata from within a \
                           container, the instance needs HttpPutResponseHopLimit 2 or more";

fn chain_of(error: &dyn Error) -> String {
    crate::error_chain::joined(error.to_string(), error.source())
}

fn is_unreached(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.downcast_ref::<ConnectorError>().is_some() {
            return true;
        }
        next = error.source();
    }
    false
}

/// Hands the credentials in use to the client.
#[derive(Debug)]
pub(super) struct InUse(pub(super) Renewing<Aws>);

impl ProvideCredentials for InUse {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        // Those in use now, for each request: the SDK must not keep any that were refused.
        future::ProvideCredentials::new(async {
            let loaded = self.0.get().await.map_err(|error| CredentialsError::not_loaded(error.chain()))?;
            Ok(Keys::clone(&loaded.credential))
        })
    }
}
