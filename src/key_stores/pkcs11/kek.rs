//! The KEK made of one key in one token, as the module's process serves it.

use std::sync::Arc;

use async_trait::async_trait;

use super::client::Client;
use super::key::KeyId;
use super::mechanism::Mechanism;
use super::protocol::Call;
use crate::crypto::secret::Dek;
use crate::kek::clock::ServerClock;
use crate::kek::{
    Kek, KekCause, KekError, KekVersion, Lineage, RotateKek, Unwrapped, WrapContext, WrappedDek, unwrapped_dek,
};

/// One key in one token.
#[derive(Debug)]
pub(super) struct Pkcs11Kek {
    pub(super) lineage: Lineage,
    pub(super) client: Arc<Client>,
}

impl Pkcs11Kek {
    /// The version that the module's process named.
    fn kek_version(&self, text: String) -> Result<KekVersion, KekError> {
        match KeyId::parse(&text) {
            Some(_) => Ok(KekVersion { lineage: self.lineage, version: text }),
            None => Err(KekError::unmapped(format!("the module's process names a version {text:?}"))),
        }
    }
}

#[async_trait]
impl Kek for Pkcs11Kek {
    fn lineage(&self) -> Lineage {
        self.lineage
    }

    /// The only credential is the PIN; the token does not say when it expires.
    fn credentials_expire(&self) -> Option<jiff::Timestamp> {
        None
    }

    fn server_clock(&self) -> Option<&ServerClock> {
        None
    }

    async fn version(&self) -> Result<KekVersion, KekError> {
        self.client.renew();
        let (done, _) = self.client.call(Call::Version, &[]).await?;
        self.kek_version(done.version)
    }

    async fn wrap(&self, dek: &Dek, context: &WrapContext) -> Result<WrappedDek, KekError> {
        let call = Call::Wrap { context: context.to_bytes() };
        let (done, _) = self.client.call(call, dek.expose()).await?;
        Ok(WrappedDek { version: self.kek_version(done.version)?, blob: done.blob })
    }

    async fn unwrap(&self, wrapped: &WrappedDek, context: &WrapContext) -> Result<Unwrapped, KekError> {
        let unknown = |why| KekError::new(KekCause::UnknownVersion, why);
        let id = KeyId::parse(&wrapped.version.version)
            .ok_or_else(|| unknown("not a version of a PKCS#11 key, which reads ID-CHECKVALUE"))?;
        if wrapped.version.lineage != self.lineage {
            return Err(unknown("wrapped by another KEK"));
        }
        // What no mechanism can have made is not shown to the vendor's library.
        if Mechanism::of_blob(&wrapped.blob).is_none_or(|(by, _)| by.is_rsa() != id.is_rsa()) {
            let text = format!("{} bytes that no mechanism wraps a DEK as", wrapped.blob.len());
            return Err(KekError::new(KekCause::Rejected, text));
        }
        let (version, blob, context) = (id.to_string(), wrapped.blob.clone(), context.to_bytes());
        let (_, dek) = self.client.call(Call::Unwrap { version, blob, context }, &[]).await?;
        Ok(Unwrapped { dek: unwrapped_dek(dek)?, version: wrapped.version.clone() })
    }
}

#[async_trait]
impl RotateKek for Pkcs11Kek {
    async fn rotate(&self) -> Result<KekVersion, KekError> {
        let (done, _) = self.client.call(Call::Rotate, &[]).await?;
        self.kek_version(done.version)
    }
}
