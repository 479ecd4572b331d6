//! `awsKms`: a symmetric key in AWS KMS. The DEK is wrapped by Encrypt and unwrapped by Decrypt; the context is
//! the encryption context. The SDK's own copies of a DEK (request and answer) cannot be cleared from here.

mod client;
mod credentials;
mod error;
mod key;
mod rotate;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use aws_sdk_kms::Client;
use aws_sdk_kms::config::http::HttpResponse;
use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{KeyManagerType, KeyMetadata, KeySpec, KeyState, KeyUsageType};
use serde::Deserialize;

use self::credentials::Credentials;
use self::error::{Action, Call, aws_code, kek_error};
use self::key::{KeyName, key_id_of, version_text};
use super::KekSettings;
use crate::crypto::secret::Dek;
use crate::kek::clock::ServerClock;
use crate::kek::{Kek, KekCause, KekError, KekVersion, Lineage, RotateKek, Unwrapped, WrapContext, WrappedDek};

/// Settings of an `awsKms` KEK. Credentials come from the SDK's usual places unless `profile` or
/// `credentialsFile` names one.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AwsConfig {
    /// The key: best its ARN, which says account and Region; else a key id, an alias or an alias ARN.
    pub key: String,
    /// The Region, where `key` names none.
    #[serde(default)]
    pub region: Option<String>,
    /// Another address than the Region's own: a VPC endpoint.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// Certificates (PEM) that the endpoint's own must come from, in place of the system's.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// The profile to take credentials from.
    #[serde(default)]
    pub profile: Option<String>,
    /// A file in the format of `~/.aws/credentials` to take credentials from; read again when it changes.
    #[serde(default)]
    pub credentials_file: Option<PathBuf>,
    /// A role to take on with those credentials.
    #[serde(default)]
    pub assume_role: Option<AssumeRole>,
}

/// A role to take on before KMS is asked.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AssumeRole {
    /// Which role.
    pub role_arn: String,
    /// What the role's owner asks for against confused deputies.
    #[serde(default)]
    pub external_id: Option<String>,
    /// How the session is called in `CloudTrail`; `kube-envelope` unless said otherwise.
    #[serde(default)]
    pub session_name: Option<String>,
}

#[async_trait]
impl KekSettings for AwsConfig {
    fn kind(&self) -> &'static str {
        "awsKms"
    }

    fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        match KeyName::parse(&self.key) {
            Err(problem) => problems.push(("key", problem)),
            Ok(key) => match (key.region(), &self.region) {
                (Some(of_key), Some(region)) if of_key != region => {
                    problems
                        .push(("region", format!("is {region}, and the key's ARN says {of_key}; leave region out")));
                }
                _ => {}
            },
        }
        if let Some(problem) = self.endpoint.as_deref().and_then(endpoint_problem) {
            problems.push(("endpoint", problem));
        }
        if let Some(role) = self.assume_role.as_ref().filter(|role| !is_role_arn(&role.role_arn)) {
            let problem = format!("{:?} is not the ARN of a role (arn:aws:iam::111122223333:role/NAME)", role.role_arn);
            problems.push(("assumeRole.roleArn", problem));
        }
        problems
    }

    fn advice(&self) -> Vec<(String, String)> {
        let mut advice = Vec::new();
        if KeyName::parse(&self.key).is_ok_and(|key| key.region().is_none()) {
            let so = format!("{} tells no account: credentials and Region decide which key it is", self.key);
            advice.push((so, "write the key's ARN, before anything is stored under this name".into()));
        }
        if credentials::come_from_an_api_server(self) {
            let so = "the credentials come by a token of an API server: if it is the one that waits for this plugin, they \
                      can be had only once it is up";
            advice.push((so.into(), "use the instance's role on the control plane's machines".into()));
        }
        advice
    }

    async fn build(&self) -> Result<Box<dyn Kek>, KekError> {
        Ok(Box::new(AwsKek::build(self).await?))
    }

    async fn build_rotating(&self) -> Result<Box<dyn RotateKek>, KekError> {
        Ok(Box::new(AwsKek::build(self).await?))
    }
}

/// A DEK goes over this line: in clear only where nobody else can listen.
fn endpoint_problem(endpoint: &str) -> Option<String> {
    let plain = endpoint.strip_prefix("http://");
    let authority = plain.or(endpoint.strip_prefix("https://")).map(|rest| rest.split('/').next().unwrap_or_default());
    let is_address = |text: &&str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | ':' | '[' | ']'))
    };
    let Some(authority) = authority.filter(is_address) else {
        return Some(format!("{endpoint:?} is no URL; write for example https://kms.example.internal"));
    };
    let is_local = ["127.0.0.1", "localhost", "[::1]"]
        .iter()
        .any(|local| authority.strip_prefix(local).is_some_and(|port| port.is_empty() || port.starts_with(':')));
    (plain.is_some() && !is_local)
        .then(|| format!("{endpoint:?} would send DEKs in clear; http is allowed on this machine only: use https"))
}

fn is_role_arn(text: &str) -> bool {
    let parts: Vec<_> = text.splitn(6, ':').collect();
    matches!(parts[..], ["arn", _, "iam", "", _, role] if role.starts_with("role/"))
}

/// A key in AWS KMS.
#[derive(Debug)]
struct AwsKek {
    key: KeyName,
    lineage: Lineage,
    client: Client,
    credentials: Credentials,
    clock: Arc<ServerClock>,
}

/// What `DescribeKey` says about a key that can be used.
struct Usable {
    /// The key's own ARN, whatever alias led to it: requests that name it cannot meet another key.
    arn: String,
    version: KekVersion,
}

impl AwsKek {
    async fn build(config: &AwsConfig) -> Result<Self, KekError> {
        let key = KeyName::parse(&config.key).map_err(KekError::misconfigured)?;
        let region = client::region(config, &key).await?;
        let clock = Arc::<ServerClock>::default();
        let credentials = Credentials::start(config, region.clone());
        let client = client::kms(config, region, &credentials, clock.clone()).await?;
        Ok(Self { lineage: key.lineage(config.region.as_deref()), key, client, credentials, clock })
    }

    async fn describe(&self) -> Result<Usable, KekError> {
        let name = self.key.to_string();
        let call = Call { action: Action::DescribeKey, key: &name, by_alias: self.key.is_alias() };
        let metadata = self
            .ask(call, || self.client.describe_key().key_id(&name).send())
            .await?
            .key_metadata
            .ok_or_else(|| KekError::unmapped(format!("{} answered without key metadata", call.action)))?;
        check_usable(&metadata)?;
        if !self.key.may_be(&metadata.key_id) {
            return Err(KekError::unmapped(format!("asked about {name}, and told about {}", metadata.key_id)));
        }
        let created = metadata.creation_date.and_then(|date| date.to_millis().ok());
        let version = version_text(&metadata.key_id, metadata.current_key_material_id.as_deref(), created);
        Ok(Usable {
            arn: metadata.arn.unwrap_or_else(|| self.key.sibling(&metadata.key_id)),
            version: KekVersion { lineage: self.lineage, version },
        })
    }

    /// Sends a request, and once more when AWS refuses the credentials and others can be had.
    async fn ask<T, E, F>(&self, call: Call<'_>, request: impl Fn() -> F) -> Result<T, KekError>
    where
        F: Future<Output = Result<T, SdkError<E, HttpResponse>>>,
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let used = self.credentials.ready().await?;
        match request().await.map_err(|error| kek_error(call, error)) {
            Err(error) if error.cause() == KekCause::Unauthenticated && self.credentials.renew(&used).await => {
                request().await.map_err(|error| kek_error(call, error))
            }
            result => result,
        }
    }
}

#[async_trait]
impl Kek for AwsKek {
    fn lineage(&self) -> Lineage {
        self.lineage
    }

    fn credentials_expire(&self) -> Option<jiff::Timestamp> {
        self.credentials.expire()
    }

    fn server_clock(&self) -> Option<&ServerClock> {
        Some(&self.clock)
    }

    async fn version(&self) -> Result<KekVersion, KekError> {
        self.describe().await.map(|usable| usable.version)
    }

    /// Encrypt's answer does not name the material. The key must be the same version before and after; a change
    /// that even this misses is seen by the proving unwrap, whose answer names the material.
    async fn wrap(&self, dek: &Dek, context: &WrapContext) -> Result<WrappedDek, KekError> {
        let Usable { arn, version } = self.describe().await?;
        let mut request = self.client.encrypt().key_id(&arn).plaintext(Blob::new(dek.expose().as_slice()));
        for (name, value) in context.pairs() {
            request = request.encryption_context(name, value);
        }
        let call = Call { action: Action::Encrypt, key: &arn, by_alias: false };
        let blob = self
            .ask(call, || request.clone().send())
            .await?
            .ciphertext_blob
            .ok_or_else(|| KekError::unmapped(format!("{} answered without a ciphertext", call.action)))?
            .into_inner();
        if self.describe().await?.version == version {
            Ok(WrappedDek { version, blob })
        } else {
            Err(KekError::unavailable(format!("{arn} was rotated while it wrapped; asked again")))
        }
    }

    async fn unwrap(&self, wrapped: &WrappedDek, context: &WrapContext) -> Result<Unwrapped, KekError> {
        let key_id = key_id_of(&wrapped.version.version)?;
        if !self.key.may_be(key_id) {
            let text = format!("{} is no version of {}", wrapped.version.version, self.key);
            return Err(KekError::new(KekCause::UnknownVersion, text));
        }
        if !(1..=MAX_CIPHERTEXT_BYTES).contains(&wrapped.blob.len()) {
            return Err(KekError::new(KekCause::Rejected, "the wrapped DEK has a length that AWS KMS never makes"));
        }
        let key = self.key.sibling(key_id);
        let mut request = self.client.decrypt().key_id(&key).ciphertext_blob(Blob::new(wrapped.blob.clone()));
        for (name, value) in context.pairs() {
            request = request.encryption_context(name, value);
        }
        let call = Call { action: Action::Decrypt, key: &key, by_alias: self.key.is_alias() };
        let answer = match self.ask(call, || request.clone().send()).await {
            // The key that is not found may be one that the blob names: damage to it must not pass for a
            // deleted key.
            Err(error) if error.cause() == KekCause::Denied && aws_code(&error) == Some("NotFoundException") => {
                self.describe().await?;
                return Err(
                    KekError::new(KekCause::Rejected, format!("{key} did not make this data")).with_source(error)
                );
            }
            answer => answer?,
        };
        let plain = answer
            .plaintext
            .ok_or_else(|| KekError::unmapped(format!("{} answered without a plaintext", call.action)))?;
        let dek = Dek::from_unwrapped(plain.into_inner())
            .ok_or_else(|| KekError::new(KekCause::Rejected, "unwrapped DEK is not 32 bytes"))?;
        let answered = answer.key_id.unwrap_or_default();
        if answered.rsplit('/').next() != Some(key_id) {
            return Err(KekError::new(KekCause::Rejected, format!("asked {key} to unwrap, and {answered:?} did")));
        }
        let version = match answer.key_material_id {
            Some(material) => version_text(key_id, Some(&material), None),
            None => wrapped.version.version.clone(),
        };
        Ok(Unwrapped { dek, version: KekVersion { lineage: self.lineage, version } })
    }
}

/// Bound of Decrypt's `CiphertextBlob` (AWS KMS API Reference, Decrypt).
const MAX_CIPHERTEXT_BYTES: usize = 6144;

/// Whether the key can wrap and unwrap now, and if not, whether that is definite.
fn check_usable(metadata: &KeyMetadata) -> Result<(), KekError> {
    let id = &metadata.key_id;
    if metadata.key_manager == Some(KeyManagerType::Aws) {
        return Err(KekError::misconfigured(format!(
            "AWS manages {id} for its own services; make a customer managed key"
        )));
    }
    if metadata.key_usage != Some(KeyUsageType::EncryptDecrypt) || metadata.key_spec != Some(KeySpec::SymmetricDefault)
    {
        return Err(KekError::misconfigured(format!(
            "{id} is not a symmetric encryption key (usage ENCRYPT_DECRYPT, spec SYMMETRIC_DEFAULT); make one"
        )));
    }
    let denied = |text: String| Err(KekError::new(KekCause::Denied, text));
    match metadata.key_state.as_ref() {
        // While the primary Region changes, a key can be used all the same.
        Some(KeyState::Enabled | KeyState::Updating) => Ok(()),
        Some(KeyState::Disabled) => denied(format!("{id} is disabled; enable it with kms:EnableKey")),
        Some(KeyState::PendingDeletion | KeyState::PendingReplicaDeletion) => {
            denied(format!("{id} is to be deleted; stop that with kms:CancelKeyDeletion, then enable it"))
        }
        Some(KeyState::PendingImport) => denied(format!("{id} has no key material (any more); import it again")),
        Some(KeyState::Unavailable) => {
            Err(KekError::unavailable(format!("the custom key store of {id} is disconnected; connect it")))
        }
        Some(KeyState::Creating) => Err(KekError::unavailable(format!("{id} is still being made"))),
        state => Err(KekError::unmapped(format!("{id} is in the state {state:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";

    fn problems(settings: &str) -> Vec<(&'static str, String)> {
        let config: AwsConfig = serde_saphyr::from_str(settings).expect("settings");
        config.problems()
    }

    #[test]
    fn settings_that_can_work_have_no_problems() {
        for more in [
            "",
            ", region: eu-central-1",
            ", endpoint: 'https://vpce-1.kms.eu-central-1.vpce.amazonaws.com'",
            ", endpoint: 'http://127.0.0.1:4566'",
            ", endpoint: 'http://[::1]:4566/'",
            ", endpoint: 'http://[::1]'",
            ", assumeRole: {roleArn: 'arn:aws:iam::111122223333:role/path/name', externalId: x}",
        ] {
            assert_eq!(problems(&format!("{{key: '{KEY}'{more}}}")), [], "{more}");
        }
    }

    #[test]
    fn settings_that_cannot_work_are_named_with_the_fix() {
        for (more, field, fix) in [
            (", region: eu-west-1", "region", "leave region out"),
            (", endpoint: 'http://kms.example'", "endpoint", "use https"),
            (", endpoint: 'http://127.0.0.1.example:80'", "endpoint", "use https"),
            (", endpoint: 'http://localhost:80@evil.example'", "endpoint", "write for example"),
            (", endpoint: kms.example", "endpoint", "write for example"),
            (", assumeRole: {roleArn: name}", "assumeRole.roleArn", "not the ARN of a role"),
        ] {
            let found = problems(&format!("{{key: '{KEY}'{more}}}"));
            assert!(matches!(&found[..], [(name, text)] if *name == field && text.contains(fix)), "{more}: {found:?}");
        }
        assert_eq!(problems("{key: 'no key'}")[0].0, "key");
        assert!(serde_saphyr::from_str::<AwsConfig>(&format!("{{key: '{KEY}', accessKey: x}}")).is_err());
    }
}
