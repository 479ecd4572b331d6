//! What aws-encryption-provider stored: `1`, and then the ciphertext of AWS KMS as it is. No annotations; `key_id` is
//! its `--key`, word for word.
//!
//! Read from its source (kubernetes-sigs/aws-encryption-provider, `pkg/plugin/plugin_v2.go` at 6d4f71e). It asks KMS to
//! decrypt without naming a key; here the key of the configuration is named.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use aws_sdk_kms::primitives::Blob;
use serde::Deserialize;

use super::client::KmsKey;
use super::error::{Action, Call};
use super::kek::AwsKek;
use super::settings;
use crate::crypto::secret::Seed;
use crate::kek::KekError;
use crate::kek::takeover::{FormerKey, FormerPlugin, Stored, opened_seed, shown};
use crate::key_stores::shared::former_key::{KeyOnUse, OpenKek};
use crate::key_stores::shared::key_store::{KeyStore, Mistake, ParsedTakeover};

const STORAGE_VERSION: u8 = b'1';

/// A ciphertext of KMS holds, beside the seed, the key's name and some 100 bytes; nothing shorter is one.
const SHORTEST_BLOB: usize = 64;

/// Bounds of an encryption context's names and values together (AWS KMS Developer Guide, quotas: 8 KiB).
const MAX_CONTEXT_BYTES: usize = 8192;

/// Settings of an entry as they are written.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Settings {
    /// The key that plugin used, and the way to it.
    aws_kms: settings::Settings,
    /// Its `--key`, which it stored as `key_id`; `awsKms.key` unless said otherwise.
    key_id: Option<String>,
    /// Its `--encryption-context`, which it stored nowhere.
    #[serde(default)]
    encryption_context: BTreeMap<String, String>,
}

impl Settings {
    pub(in crate::key_stores) fn parse(self) -> ParsedTakeover {
        let key_id = self.key_id.unwrap_or_else(|| self.aws_kms.key().to_owned());
        let mut mistakes = Vec::new();
        if key_id.is_empty() {
            mistakes.push(Mistake::new("keyId", "is empty; write what aws-encryption-provider had as --key"));
        }
        let length: usize = self.encryption_context.iter().map(|(name, value)| name.len() + value.len()).sum();
        if length > MAX_CONTEXT_BYTES || self.encryption_context.keys().any(String::is_empty) {
            let problem = "is none that AWS KMS takes: no name may be empty, and all must fit into 8 KiB";
            mistakes.push(Mistake::new("encryptionContext", problem));
        }
        let key = self.aws_kms.parse_key().map_err(|more| mistakes.extend(Mistake::within("awsKms", more)));
        match key {
            Ok(key) if mistakes.is_empty() => {
                let context = self.encryption_context;
                Ok(Arc::new(AwsEncryptionProvider { key: KeyOnUse::new(key), key_id, context }))
            }
            _ => Err(mistakes),
        }
    }
}

/// See the file's own words.
#[derive(Debug)]
struct AwsEncryptionProvider {
    key: KeyOnUse<KmsKey>,
    key_id: String,
    context: BTreeMap<String, String>,
}

#[async_trait]
impl OpenKek for KmsKey {
    type Kek = AwsKek;

    async fn open_kek(&self) -> Result<AwsKek, KekError> {
        self.kek().await
    }
}

#[async_trait]
impl FormerPlugin for AwsEncryptionProvider {
    fn plugin(&self) -> &'static str {
        "aws-encryption-provider"
    }

    fn key(&self) -> &dyn FormerKey {
        &self.key
    }

    fn program(&self) -> Option<&Path> {
        self.key.store.program()
    }

    fn marks(&self) -> Vec<String> {
        vec![format!("aws-encryption-provider, key_id {}", self.key_id)]
    }

    fn recognize(&self, stored: &Stored) -> Result<(), String> {
        stored.without_annotations()?;
        if stored.key_id != self.key_id {
            return Err(format!("key_id {:?} is not its {:?}", shown(&stored.key_id), self.key_id));
        }
        match stored.ciphertext.split_first() {
            Some((&STORAGE_VERSION, blob)) if blob.len() >= SHORTEST_BLOB => Ok(()),
            Some((&STORAGE_VERSION, _)) => Err("it is too short for a ciphertext of AWS KMS".into()),
            _ => Err("it does not begin with the storage version 1".into()),
        }
    }

    async fn open(&self, stored: &Stored) -> Result<Seed, KekError> {
        let (kek, key) = (self.key.kek().await?, self.key.store.key.to_string());
        let blob = Blob::new(stored.ciphertext.get(1..).unwrap_or_default());
        let mut request = kek.client.decrypt().key_id(&key).ciphertext_blob(blob);
        for (name, value) in &self.context {
            request = request.encryption_context(name, value);
        }
        // AWS KMS would find the key by itself; named, a ciphertext that was made with another key is refused.
        let call = Call { action: Action::Decrypt, key: &key, by_alias: self.key.store.key.is_alias() };
        let answer = kek.ask(call, || request.clone().send()).await?;
        let plain = answer.plaintext.map(Blob::into_inner);
        opened_seed(plain.ok_or_else(|| KekError::unmapped(format!("{} answered without a plaintext", call.action)))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";

    fn entry(more: &str) -> Result<Arc<dyn FormerPlugin>, Vec<Mistake>> {
        let settings: Settings =
            serde_saphyr::from_str(&format!("{{awsKms: {{key: '{KEY}'}}{more}}}")).expect("settings");
        settings.parse()
    }

    fn stored(key_id: &str, ciphertext: &[u8]) -> Stored {
        Stored { ciphertext: ciphertext.to_vec(), key_id: key_id.into(), annotations: [].into() }
    }

    #[test]
    fn only_what_has_its_form_and_its_key_id_is_taken() {
        let entry = entry(", keyId: alias/k8s").expect("an entry");
        let blob = [&b"1"[..], &[7; 160]].concat();
        assert_eq!(entry.recognize(&stored("alias/k8s", &blob)), Ok(()));
        for (refused, why) in [
            (stored(KEY, &blob), "is not its"),
            (stored("alias/k8s", b"1"), "too short"),
            (stored("alias/k8s", &blob[1..]), "storage version"),
            (stored("alias/k8s", b""), "storage version"),
            (Stored { annotations: [("a.b".into(), vec![1])].into(), ..stored("alias/k8s", &blob) }, "annotations"),
        ] {
            let said = entry.recognize(&refused).expect_err("refused");
            assert!(said.contains(why), "{said}");
        }
    }

    #[test]
    fn the_key_is_the_key_id_unless_another_is_given_and_mistakes_are_named() {
        let blob = [&b"1"[..], &[7; 160]].concat();
        assert_eq!(entry("").expect("an entry").recognize(&stored(KEY, &blob)), Ok(()));
        let mistakes = entry(", keyId: '', encryptionContext: {'': x}").expect_err("mistakes");
        assert_eq!(
            mistakes.iter().map(|mistake| mistake.field.as_str()).collect::<Vec<_>>(),
            ["keyId", "encryptionContext"]
        );
        let settings: Settings = serde_saphyr::from_str("{awsKms: {key: no key}}").expect("settings");
        assert_eq!(settings.parse().expect_err("mistakes")[0].field, "awsKms.key");
    }
}
