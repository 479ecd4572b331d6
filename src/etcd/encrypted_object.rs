//! [`EncryptedObject`]: what an API server stores behind `k8s:enc:kms:v2:PROVIDER:` (k8s.io/apiserver,
//! pkg/storage/value/encrypt/envelope/kmsv2/v2/api.proto). The encrypted data is authenticated together with the etcd
//! key alone; the wrapped seed and its annotations stand beside it.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::collections::BTreeMap;

use prost::Message;

use crate::crypto::seal::digest;
use crate::encryption_config::ProviderName;
use crate::envelope::{MAX_ANNOTATION_BYTES, MAX_CIPHERTEXT_BYTES};

const PREFIX: &[u8] = b"k8s:enc:kms:v2:";

/// The parts of an encrypted value.
#[derive(Clone, PartialEq, Message)]
pub struct EncryptedObject {
    /// The object, encrypted.
    #[prost(bytes = "vec", tag = "1")]
    pub encrypted_data: Vec<u8>,
    /// The plugin's name for its key.
    #[prost(string, tag = "2")]
    pub key_id: String,
    /// What the plugin made of the seed, or of the AES key.
    #[prost(bytes = "vec", tag = "3")]
    pub encrypted_dek_source: Vec<u8>,
    /// What the plugin wants back with it.
    #[prost(btree_map = "string, bytes", tag = "4")]
    pub annotations: BTreeMap<String, Vec<u8>>,
    /// How the key of `encrypted_data` comes from the plaintext of `encrypted_dek_source`; see [`DekSource`].
    #[prost(int32, tag = "5")]
    pub encrypted_dek_source_type: i32,
}

/// How the key of the data comes from what the plugin decrypts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DekSource {
    /// It is the AES-GCM key itself (before Kubernetes 1.29, where the feature `KMSv2KDF` was off).
    AesGcmKey,
    /// It is a seed, from which HKDF derives a key for each object.
    HkdfSeed,
}

impl EncryptedObject {
    /// The provider's name and the parts of a value that a KMS v2 provider stored; `None` for all others, also for one
    /// that is damaged.
    pub fn of(value: &[u8]) -> Option<(ProviderName, Self)> {
        let rest = value.strip_prefix(PREFIX)?;
        let name_ends = rest.iter().position(|byte| *byte == b':')?;
        let provider = std::str::from_utf8(&rest[..name_ends]).ok()?;
        Some((provider.into(), Self::decode(rest.get(name_ends.saturating_add(1)..)?).ok()?))
    }

    /// The value that an API server reads these parts from.
    pub fn to_value(&self, provider: &ProviderName) -> Vec<u8> {
        let mut value = [PREFIX, provider.as_str().as_bytes(), b":"].concat();
        self.encode(&mut value).unwrap_or_default();
        value
    }

    /// The name of its seed: two objects with the same one give the same seed, as all is the same that the plugin of
    /// `provider` is asked with.
    pub fn seed_digest(&self, provider: &ProviderName) -> [u8; 32] {
        let kind = self.encrypted_dek_source_type.to_be_bytes();
        let mut parts: Vec<&[u8]> =
            vec![provider.as_str().as_bytes(), &kind, self.key_id.as_bytes(), &self.encrypted_dek_source];
        for (name, value) in &self.annotations {
            parts.extend([name.as_bytes(), value]);
        }
        digest(&parts)
    }

    /// What an API server demands of the parts before it asks a plugin (kmsv2/envelope.go, `ValidateEncryptedObject`).
    ///
    /// # Errors
    /// What it would refuse.
    pub fn check(&self) -> Result<DekSource, String> {
        let source = self.dek_source().map_err(|number| format!("its encryptedDEKSourceType {number} is unknown"))?;
        for (what, length, most) in [
            ("encryptedData", self.encrypted_data.len(), usize::MAX),
            ("encryptedDEKSource", self.encrypted_dek_source.len(), MAX_CIPHERTEXT_BYTES),
            ("keyID", self.key_id.len(), MAX_CIPHERTEXT_BYTES),
        ] {
            if length == 0 || length > most {
                return Err(format!("its {what} has {length} bytes"));
            }
        }
        let annotations: usize =
            self.annotations.iter().map(|(name, value)| name.len().saturating_add(value.len())).sum();
        if annotations > MAX_ANNOTATION_BYTES {
            return Err(format!("its annotations have {annotations} bytes"));
        }
        Ok(source)
    }

    /// How the key of the data is made, or the number that this program does not know.
    ///
    /// # Errors
    /// The unknown number.
    pub fn dek_source(&self) -> Result<DekSource, i32> {
        match self.encrypted_dek_source_type {
            0 => Ok(DekSource::AesGcmKey),
            1 => Ok(DekSource::HkdfSeed),
            other => Err(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_taken_apart_and_put_together_again() {
        let object = EncryptedObject {
            encrypted_data: vec![1; 60],
            key_id: "k".into(),
            encrypted_dek_source: vec![2; 40],
            annotations: [("a.example.com".to_owned(), vec![3])].into(),
            encrypted_dek_source_type: 1,
        };
        let value = object.to_value(&"p".into());
        assert!(value.starts_with(b"k8s:enc:kms:v2:p:"));
        assert_eq!(EncryptedObject::of(&value), Some(("p".into(), object.clone())));
        assert_eq!(object.dek_source(), Ok(DekSource::HkdfSeed));
        assert_eq!(EncryptedObject::of(b"k8s:enc:aescbc:v1:k:"), None);
        assert_eq!(EncryptedObject::of(b"k8s:enc:kms:v2:p"), None);
        assert_eq!(EncryptedObject::of(b"k8s:enc:kms:v2:p:\xff"), None);
    }

    #[test]
    fn parts_that_no_api_server_would_take_are_refused() {
        let good = EncryptedObject {
            encrypted_data: vec![1],
            key_id: "k".into(),
            encrypted_dek_source: vec![1],
            encrypted_dek_source_type: 1,
            ..EncryptedObject::default()
        };
        let check = |object: EncryptedObject| object.check();
        assert!(check(good.clone()).is_ok());
        assert!(check(EncryptedObject { encrypted_dek_source_type: 7, ..good.clone() }).is_err());
        assert!(check(EncryptedObject { key_id: String::new(), ..good.clone() }).is_err());
        assert!(check(EncryptedObject { encrypted_dek_source: vec![1; 1_025], ..good.clone() }).is_err());
        let annotations = [("a.b".to_owned(), vec![0; MAX_ANNOTATION_BYTES])].into();
        assert!(check(EncryptedObject { annotations, ..good }).is_err());
    }
}
