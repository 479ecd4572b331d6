//! The KEK made of one transit key: its versions, and the wraps under them.

use std::collections::BTreeMap;

use async_trait::async_trait;
use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::session::Session;
use crate::crypto::secret::Dek;
use crate::kek::clock::ServerClock;
use crate::kek::{
    Kek, KekCause, KekError, KekVersion, Lineage, RotateKek, Unwrapped, WrapContext, WrappedDek, unwrapped_dek,
};
use crate::key_stores::shared::secret_text::SecretText;

/// One transit key.
#[derive(Debug)]
pub(super) struct TransitKek {
    pub(super) session: Session,
    pub(super) mount: String,
    pub(super) key: String,
    pub(super) lineage: Lineage,
}

impl TransitKek {
    pub(super) async fn read_key(&self) -> Result<Key, KekError> {
        let path = format!("{}/keys/{}", self.mount, self.key);
        let key: Key = self.session.get(&path).await?;
        if key.derived {
            return Err(self.unfit("is derived; make one with derived=false"));
        }
        if !key.supports_encryption || !AEAD_TYPES.iter().any(|aead| key.kind.ends_with(aead)) {
            return Err(self.unfit(&format!("has type {:?}; make one of type aes256-gcm96", key.kind)));
        }
        Ok(key)
    }

    fn unfit(&self, why: &str) -> KekError {
        KekError::misconfigured(format!("transit key {}/{} {why}", self.mount, self.key))
    }

    fn kek_version(&self, version: Version) -> KekVersion {
        KekVersion { lineage: self.lineage, version: version.to_string() }
    }

    /// A failed decryption may mean that the version that wrapped is gone and another one bears its number.
    async fn explain(&self, error: KekError, version: Version) -> KekError {
        if error.cause() != KekCause::Rejected {
            return error;
        }
        match self.read_key().await {
            Ok(key) if key.version(version.number) == Some(version) => error,
            Ok(_) => KekError::new(
                KekCause::UnknownVersion,
                format!("transit key {}/{} has no version {version} (any more)", self.mount, self.key),
            )
            .with_source(error),
            Err(_) => error,
        }
    }
}

/// The types of transit keys that bind associated data.
const AEAD_TYPES: [&str; 3] = ["aes256-gcm96", "aes128-gcm96", "chacha20-poly1305"];

#[async_trait]
impl Kek for TransitKek {
    fn lineage(&self) -> Lineage {
        self.lineage
    }

    fn credentials_expire(&self) -> Option<jiff::Timestamp> {
        self.session.expires()
    }

    fn server_clock(&self) -> Option<&ServerClock> {
        Some(self.session.clock())
    }

    async fn version(&self) -> Result<KekVersion, KekError> {
        Ok(self.kek_version(self.read_key().await?.active()?))
    }

    async fn wrap(&self, dek: &Dek, context: &WrapContext) -> Result<WrappedDek, KekError> {
        let version = self.read_key().await?.active()?;
        let request = EncryptRequest {
            plaintext: SecretText::new(Zeroizing::new(BASE64_STANDARD.encode(dek.expose()))),
            associated_data: BASE64_STANDARD.encode(context.to_bytes()),
            key_version: version.number,
        };
        let path = format!("{}/encrypt/{}", self.mount, self.key);
        let answer: EncryptAnswer = self.session.post(&path, &request).await?;
        let blob = version.strip(&answer.ciphertext).ok_or_else(|| {
            KekError::unmapped(format!("asked to encrypt under version {}, the server used another", version.number))
        })?;
        // Numbers start again when a key is deleted and recreated: only if the key is still the one that was read, the number
        // in the ciphertext means the version named here.
        if self.read_key().await?.version(version.number) != Some(version) {
            return Err(KekError::unavailable(format!("transit key {}/{} was replaced", self.mount, self.key)));
        }
        Ok(WrappedDek { version: self.kek_version(version), blob })
    }

    async fn unwrap(&self, wrapped: &WrappedDek, context: &WrapContext) -> Result<Unwrapped, KekError> {
        let version = Version::parse(&wrapped.version.version).ok_or_else(|| {
            KekError::new(KekCause::UnknownVersion, "not a version of a transit key, which reads NUMBER@TIME")
        })?;
        if wrapped.version.lineage != self.lineage {
            return Err(KekError::new(KekCause::UnknownVersion, "wrapped by another KEK"));
        }
        let request = DecryptRequest {
            ciphertext: version.ciphertext(&wrapped.blob),
            associated_data: BASE64_STANDARD.encode(context.to_bytes()),
        };
        let path = format!("{}/decrypt/{}", self.mount, self.key);
        let answer: DecryptAnswer = match self.session.post(&path, &request).await {
            Ok(answer) => answer,
            Err(error) => return Err(self.explain(error, version).await),
        };
        let plain = BASE64_STANDARD.decode(answer.plaintext.expose());
        let plain = plain.map_err(|_| KekError::unmapped("the decrypted DEK is not base64"))?;
        Ok(Unwrapped { dek: unwrapped_dek(plain)?, version: self.kek_version(version) })
    }
}

#[async_trait]
impl RotateKek for TransitKek {
    async fn rotate(&self) -> Result<KekVersion, KekError> {
        let before = self.read_key().await?.active()?;
        self.session.post_once(&format!("{}/keys/{}/rotate", self.mount, self.key)).await?;
        let after = self.read_key().await?.active()?;
        if after.number <= before.number {
            return Err(KekError::unavailable(format!("version {} is still active after the rotation", before.number)));
        }
        Ok(self.kek_version(after))
    }
}

/// A version of a transit key: its number, and when it was made, since a recreated key starts at 1 again.
/// Written `NUMBER@SECONDS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Version {
    number: u64,
    created: u64,
}

impl Version {
    fn parse(text: &str) -> Option<Self> {
        let (number, created) = text.split_once('@')?;
        let version = Self { number: number.parse().ok()?, created: created.parse().ok()? };
        // Only the one way of writing it, so that one version has one text.
        (version.number > 0 && version.to_string() == text).then_some(version)
    }

    pub(super) fn created(self) -> Option<jiff::Timestamp> {
        i64::try_from(self.created).ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok())
    }

    fn prefix(self) -> String {
        format!("vault:v{}:", self.number)
    }

    /// The bytes of a ciphertext that this version made: the text form holds nothing else but the number.
    fn strip(self, ciphertext: &str) -> Option<Vec<u8>> {
        BASE64_STANDARD.decode(ciphertext.strip_prefix(&self.prefix())?).ok()
    }

    fn ciphertext(self, blob: &[u8]) -> String {
        self.prefix() + &BASE64_STANDARD.encode(blob)
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.number, self.created)
    }
}

/// What reading a key tells.
#[derive(Deserialize)]
#[allow(clippy::struct_excessive_bools, reason = "they are the server's")]
pub(super) struct Key {
    #[serde(rename = "type")]
    kind: String,
    latest_version: u64,
    #[serde(default)]
    derived: bool,
    supports_encryption: bool,
    #[serde(default)]
    pub(super) exportable: bool,
    #[serde(default)]
    pub(super) allow_plaintext_backup: bool,
    #[serde(default)]
    pub(super) deletion_allowed: bool,
    /// In seconds; 0 for never, and where the server is too old to do it.
    #[serde(default)]
    pub(super) auto_rotate_period: u64,
    /// Number → Unix time; other key types have another value there.
    keys: BTreeMap<String, serde_json::Value>,
}

impl Key {
    pub(super) fn active(&self) -> Result<Version, KekError> {
        self.version(self.latest_version)
            .ok_or_else(|| KekError::unmapped("the key's latest version is not among its versions"))
    }

    fn version(&self, number: u64) -> Option<Version> {
        let created = self.keys.get(&number.to_string())?.as_u64()?;
        Some(Version { number, created })
    }
}

#[derive(Serialize)]
struct EncryptRequest {
    plaintext: SecretText,
    associated_data: String,
    key_version: u64,
}

#[derive(Deserialize)]
struct EncryptAnswer {
    ciphertext: String,
}

#[derive(Serialize)]
struct DecryptRequest {
    ciphertext: String,
    associated_data: String,
}

#[derive(Deserialize)]
struct DecryptAnswer {
    plaintext: SecretText,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_has_one_text_alone() {
        let version = Version { number: 3, created: 1_795_557_972 };
        assert_eq!(Version::parse("3@1795557972"), Some(version));
        for text in ["", "3", "3@", "@3", "03@1795557972", "+3@1795557972", "0@1", "3@1795557972 ", "3@1@2", "-1@2"] {
            assert_eq!(Version::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_ciphertext_of_another_version_is_not_taken() {
        let version = Version { number: 1, created: 1 };
        assert_eq!(version.strip("vault:v1:AAEC"), Some(vec![0, 1, 2]));
        assert_eq!(version.ciphertext(&[0, 1, 2]), "vault:v1:AAEC");
        for other in ["vault:v2:AAEC", "vault:v11:AAEC", "AAEC", "vault:v1:?"] {
            assert_eq!(version.strip(other), None, "{other}");
        }
    }
}
