//! The KEK made of a key in AWS KMS: what is asked, and what its answers mean for a DEK.

use std::sync::Arc;

use async_trait::async_trait;
use aws_sdk_kms::Client;
use aws_sdk_kms::config::http::HttpResponse;
use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{KeyManagerType, KeyMetadata, KeySpec, KeyState, KeyUsageType};

use super::credentials::Aws;
use super::error::{Action, Call, aws_code, kek_error};
use super::key::{KeyName, key_id_of, version_text};
use crate::crypto::secret::Dek;
use crate::kek::clock::ServerClock;
use crate::kek::{Kek, KekCause, KekError, KekVersion, Lineage, Unwrapped, WrapContext, WrappedDek, unwrapped_dek};
use crate::key_stores::shared::renewing::Renewing;

/// A key in AWS KMS.
#[derive(Debug)]
pub(super) struct AwsKek {
    pub(super) key: KeyName,
    pub(super) lineage: Lineage,
    pub(super) client: Client,
    pub(super) credentials: Renewing<Aws>,
    pub(super) clock: Arc<ServerClock>,
}

/// What `DescribeKey` says about a key that can be used.
pub(super) struct Usable {
    /// The key's own ARN, whatever alias led to it: requests that name it cannot meet another key.
    pub(super) arn: String,
    pub(super) version: KekVersion,
}

impl AwsKek {
    pub(super) async fn describe(&self) -> Result<Usable, KekError> {
        let metadata = self.metadata().await?;
        let created = metadata.creation_date.and_then(|date| date.to_millis().ok());
        let version = version_text(&metadata.key_id, metadata.current_key_material_id.as_deref(), created);
        Ok(Usable {
            arn: metadata.arn.unwrap_or_else(|| self.key.sibling(&metadata.key_id)),
            version: KekVersion { lineage: self.lineage, version },
        })
    }

    /// What AWS says of the key, if it can be used.
    pub(super) async fn metadata(&self) -> Result<KeyMetadata, KekError> {
        let name = self.key.to_string();
        let call = Call { action: Action::DescribeKey, key: &name, by_alias: self.key.is_alias() };
        let metadata = self
            .ask(call, || self.client.describe_key().key_id(&name).send())
            .await?
            .key_metadata
            .ok_or_else(|| KekError::unmapped(format!("{} answered without key metadata", call.action)))?;
        check_usable(&metadata)?;
        if !self.key.may_be(&metadata.key_id) {
            return Err(KekError::unmapped(format!("asked about {name}, but the answer is about {}", metadata.key_id)));
        }
        Ok(metadata)
    }

    /// Whether AWS makes new material every year; `None` where it does not say.
    pub(super) async fn rotates_yearly(&self, key: &KeyMetadata) -> Option<bool> {
        let call = Call { action: Action::GetKeyRotationStatus, key: &key.key_id, by_alias: false };
        let arn = key.arn.as_deref().unwrap_or(&key.key_id);
        let status = self.ask(call, || self.client.get_key_rotation_status().key_id(arn).send()).await;
        status.ok().map(|status| status.key_rotation_enabled)
    }

    /// Sends a request, and once more when AWS refuses the credentials and others can be had.
    pub(super) async fn ask<T, E, F>(&self, call: Call<'_>, request: impl Fn() -> F) -> Result<T, KekError>
    where
        F: Future<Output = Result<T, SdkError<E, HttpResponse>>>,
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        // The client takes the credentials from the same place.
        self.credentials.with(|_| async { request().await.map_err(|error| kek_error(call, error)) }).await
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
        // By the ARN that was described and not by the alias, which may lead to another key by now.
        let call = Call { action: Action::Encrypt, key: &arn, by_alias: false };
        let blob = self
            .ask(call, || request.clone().send())
            .await?
            .ciphertext_blob
            .ok_or_else(|| KekError::unmapped(format!("{} answered without a ciphertext", call.action)))?
            .into_inner();
        // Encrypt does not say which material it used. If the same one was current before and after, it was that one.
        if self.describe().await?.version == version {
            Ok(WrappedDek { version, blob })
        } else {
            Err(KekError::unavailable(format!("{arn} was rotated while it wrapped; asked again")))
        }
    }

    async fn unwrap(&self, wrapped: &WrappedDek, context: &WrapContext) -> Result<Unwrapped, KekError> {
        let key_id = key_id_of(&wrapped.version.version)?;
        if !self.key.may_be(key_id) {
            let text = format!("{} is not a version of {}", wrapped.version.version, self.key);
            return Err(KekError::new(KekCause::UnknownVersion, text));
        }
        // Not sent: KMS would call the request invalid, as if the plugin had made it wrong.
        if !(1..=MAX_CIPHERTEXT_BYTES).contains(&wrapped.blob.len()) {
            return Err(KekError::new(KekCause::Rejected, "the wrapped DEK has a length that AWS KMS never makes"));
        }
        // Named, though KMS would find the key by itself: a blob that names another key is refused.
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
        let dek = unwrapped_dek(plain.into_inner())?;
        let answered = answer.key_id.unwrap_or_default();
        // Compared by id: a multi-Region key answers with the ARN of the Region that was asked.
        if answered.rsplit('/').next() != Some(key_id) {
            return Err(KekError::new(KekCause::Rejected, format!("asked {key} to unwrap, but {answered:?} did")));
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
            denied(format!("{id} is scheduled for deletion; cancel that with kms:CancelKeyDeletion, then enable it"))
        }
        Some(KeyState::PendingImport) => denied(format!("{id} has no key material (any more); import it again")),
        Some(KeyState::Unavailable) => {
            Err(KekError::unavailable(format!("the custom key store of {id} is disconnected; connect it")))
        }
        Some(KeyState::Creating) => Err(KekError::unavailable(format!("{id} is still being created"))),
        state => Err(KekError::unmapped(format!("{id} is in the state {state:?}"))),
    }
}
