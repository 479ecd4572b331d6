//! Opening one value as an API server does (k8s.io/apiserver, pkg/storage/value and pkg/server/options/encryptionconfig):
//! the first provider whose prefix the value has.

use std::sync::Arc;

use zeroize::Zeroizing;

use super::layout::providers;
use super::seeds::Seeds;
use super::source::SeedError;
use crate::crypto::storage::{Plaintext, open_cbc, open_extended_gcm, open_gcm, open_secretbox};
use crate::encryption_config::{EncryptionConfiguration, KmsVersion, LocalKeys, Provider};
use crate::etcd::{DekSource, EncryptedObject};

/// What every encrypted value begins with.
const ENCRYPTED: &[u8] = b"k8s:enc:";

/// Why a value does not open.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Refusal {
    /// The configuration has no provider for it.
    #[error("no provider of the EncryptionConfiguration reads what begins with {0}")]
    NoProvider(String),
    /// It is stored in clear where only encrypted values are read.
    #[error("it is stored in clear, and the EncryptionConfiguration has no identity provider for its resource")]
    InClear,
    /// It cannot be taken apart.
    #[error("it is damaged: {0}")]
    Damaged(String),
    /// Its seed cannot be had.
    #[error(transparent)]
    Seed(Arc<SeedError>),
    /// It is authenticated, and not what was stored under this key.
    #[error("it does not open: it was changed, or stored under another key in etcd")]
    Changed,
    /// The configuration names the key, and does not hold it.
    #[error("key {0} has no usable secret in the EncryptionConfiguration")]
    NoSecret(String),
    /// It was not looked at.
    #[error("not looked at: {0}")]
    Unchecked(String),
}

impl Refusal {
    /// Whether it says nothing about the value.
    pub fn is_unchecked(&self) -> bool {
        matches!(self, Self::Unchecked(_))
    }
}

/// Opens values as an API server would: by what each one begins with, and by the entry for its folder.
#[derive(Debug)]
pub struct Opener<'a> {
    /// The configuration of the API servers; without it, only KMS v2 and clear values are understood.
    pub configuration: Option<&'a EncryptionConfiguration>,
    /// Where seeds come from.
    pub seeds: &'a Seeds,
}

impl Opener<'_> {
    /// Opens the value of a key. `folder` is the key's, below the prefix.
    ///
    /// # Errors
    /// Why an API server could not read it.
    pub async fn open(&self, key: &[u8], folder: &str, value: &[u8]) -> Result<Plaintext, Refusal> {
        let clear = !value.starts_with(ENCRYPTED);
        let Some(configuration) = self.configuration else {
            return if clear { Ok(Zeroizing::new(value.to_vec())) } else { self.by_kms_alone(key, value).await };
        };
        for provider in providers(configuration, folder) {
            match provider {
                Provider::Identity if clear => return Ok(Zeroizing::new(value.to_vec())),
                // The colon at the end matters: without it, provider `a` would claim what `ab` stored.
                Provider::Kms(kms)
                    if value.starts_with(prefix_of(&format!("kms:{}:{}", kms.version, kms.name)).as_bytes()) =>
                {
                    return match kms.version {
                        KmsVersion::V2 => self.by_kms(key, value).await,
                        KmsVersion::V1 => Err(Refusal::Unchecked("KMS v1 is not understood".into())),
                    };
                }
                Provider::LocalKeys(keys) => {
                    if let Some(rest) = value.strip_prefix(prefix_of(&format!("{}:v1", keys.kind)).as_bytes()) {
                        return by_local_key(keys, key, rest);
                    }
                }
                Provider::Identity | Provider::Kms(_) => {}
            }
        }
        if clear { Err(Refusal::InClear) } else { Err(Refusal::NoProvider(shown_prefix(value))) }
    }

    async fn by_kms_alone(&self, key: &[u8], value: &[u8]) -> Result<Plaintext, Refusal> {
        if value.starts_with(b"k8s:enc:kms:v2:") {
            return self.by_kms(key, value).await;
        }
        let prefix = shown_prefix(value);
        Err(Refusal::Unchecked(format!("{prefix} is opened by the EncryptionConfiguration: give --encryption-config")))
    }

    async fn by_kms(&self, key: &[u8], value: &[u8]) -> Result<Plaintext, Refusal> {
        let (provider, object) =
            EncryptedObject::of(value).ok_or_else(|| Refusal::Damaged("it is not an EncryptedObject".into()))?;
        let source = object.check().map_err(Refusal::Damaged)?;
        let seed = self.seeds.get(&provider, &object).await.map_err(|error| match &*error {
            // A seed that was not asked for says nothing about the value; one that was refused means that an API server
            // could not read it.
            SeedError::NotAsked(why) => Refusal::Unchecked(why.clone()),
            SeedError::Refused(_) => Refusal::Seed(error),
        })?;
        let opened = match source {
            DekSource::AesGcmKey => open_gcm(seed.expose(), key, &object.encrypted_data),
            DekSource::HkdfSeed => open_extended_gcm(seed.expose(), key, &object.encrypted_data),
        };
        opened.map_err(|_| Refusal::Changed)
    }
}

fn by_local_key(keys: &LocalKeys, key: &[u8], rest: &[u8]) -> Result<Plaintext, Refusal> {
    let named = |name: &str| rest.strip_prefix(format!("{name}:").as_bytes());
    let Some((own, message)) = keys.keys.iter().find_map(|own| Some((own, named(&own.name)?))) else {
        let name = rest.split(|byte| *byte == b':').next().unwrap_or_default();
        return Err(Refusal::NoProvider(format!("k8s:enc:{}:v1:{}:", keys.kind, readable(name))));
    };
    let Some(secret) = &own.secret else { return Err(Refusal::NoSecret(format!("{} of {}", own.name, keys.kind))) };
    let opened = match keys.kind {
        "aescbc" => open_cbc(secret, message),
        "aesgcm" => open_gcm(secret, key, message),
        // The reader of the EncryptionConfiguration lets no other kind through.
        _ => open_secretbox(secret, message),
    };
    opened.map_err(|_| Refusal::Changed)
}

fn prefix_of(words: &str) -> String {
    format!("k8s:enc:{words}:")
}

/// `k8s:enc:kms:v2:name:` of a value.
fn shown_prefix(value: &[u8]) -> String {
    let words = value.splitn(6, |byte| *byte == b':').take(5).map(readable).collect::<Vec<_>>();
    words.join(":") + ":"
}

fn readable(word: &[u8]) -> String {
    String::from_utf8_lossy(&word[..word.len().min(60)]).replace(char::is_control, "?")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rehearsal::source::Sources;

    async fn open(configuration: &str, folder: &str, value: &[u8]) -> Result<Vec<u8>, String> {
        let text = format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n{configuration}"
        );
        let configuration = EncryptionConfiguration::parse(&text).unwrap();
        let seeds = Seeds::new(Sources::default());
        let opener = Opener { configuration: Some(&configuration), seeds: &seeds };
        let outcome = opener.open(b"/registry/k", folder, value).await;
        outcome.map(|plain| plain.to_vec()).map_err(|refusal| refusal.to_string())
    }

    const CBC: &str = "- resources: [secrets]\n  providers: [{aescbc: {keys: [{name: a, secret: REDACTED}]}}]\n";

    #[tokio::test]
    async fn clear_text_is_read_only_where_identity_is_a_provider() {
        assert_eq!(open(CBC, "pods", b"k8s\0x").await.unwrap(), b"k8s\0x");
        assert!(open(CBC, "secrets", b"k8s\0x").await.unwrap_err().contains("no identity provider"));
        let both = CBC.replace("}]}}]", "}]}}, {identity: {}}]");
        assert_eq!(open(&both, "secrets", b"k8s\0x").await.unwrap(), b"k8s\0x");
        assert!(open(&both, "secrets", b"k8s:enc:secretbox:v1:b:x").await.unwrap_err().contains("secretbox:v1:b:"));
    }

    #[tokio::test]
    async fn a_key_that_is_missing_is_named() {
        assert!(open(CBC, "secrets", b"k8s:enc:aescbc:v1:b:xy").await.unwrap_err().contains("aescbc:v1:b:"));
        assert!(open(CBC, "secrets", b"k8s:enc:aescbc:v1:a:xy").await.unwrap_err().contains("key a of aescbc"));
    }
}
