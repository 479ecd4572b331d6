//! [`Stored`]: how a value in etcd is stored, read without any key.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::collections::HashMap;

use prost::Message;

use crate::encryption_config::ProviderName;
use crate::envelope::{ANNOTATION, WrappedDekSet};
use crate::kek::KekVersion;

/// How a value is stored.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stored {
    /// By a KMS v2 provider.
    KmsV2 {
        /// The provider's name.
        provider: ProviderName,
        /// The `key_id` that its plugin gave.
        key_id: String,
        /// The KEK versions of which any one opens it, as kube-envelope stores them beside each value; empty for the
        /// values of other plugins.
        keks: Vec<KekVersion>,
    },
    /// By another provider: the words of its prefix.
    Otherwise(String),
    /// In clear: `identity`, or a resource that no entry names.
    Plain,
}

/// The bytes around the plaintext in `EncryptedObject.encryptedData`: nonce and tag.
const SEALING: usize = 12 + 16;
/// And before them where the key is derived from a seed (`encryptedDEKSourceType` 1): info for the derivation.
const INFO: usize = 32;

/// The part of an API server's `EncryptedObject` that is not encrypted and matters here.
#[derive(Clone, PartialEq, Message)]
struct EncryptedObject {
    #[prost(string, tag = "2")]
    key_id: String,
    #[prost(map = "string, bytes", tag = "4")]
    annotations: HashMap<String, Vec<u8>>,
}

impl EncryptedObject {
    /// The KEK versions that wrapped the DEK, where kube-envelope made the value.
    fn keks(&self) -> Vec<KekVersion> {
        let annotation = self.annotations.get(ANNOTATION);
        // One that cannot be read is not judged here: the value counts as another plugin's, by its key_id.
        let wrapped = annotation.and_then(|annotation| WrappedDekSet::decode(annotation).ok());
        wrapped.map(|set| set.versions().cloned().collect()).unwrap_or_default()
    }
}

impl Stored {
    /// Reads from a value, without any key, how it is stored.
    pub fn of(value: &[u8]) -> Self {
        let Some(rest) = value.strip_prefix(b"k8s:enc:") else { return Self::Plain };
        // What comes after the third colon is the provider's own, colons included.
        let parts: Vec<&[u8]> = rest.splitn(4, |byte| *byte == b':').collect();
        let words: Vec<String> = parts.iter().take(3).map(|word| readable(word, parts.len() == 4)).collect();
        if let [kind, version, provider] = words.as_slice()
            && (kind.as_str(), version.as_str()) == ("kms", "v2")
            && let Some(body) = parts.get(3)
            && let Ok(object) = EncryptedObject::decode(*body)
        {
            let keks = object.keks();
            return Self::KmsV2 { provider: provider.as_str().into(), key_id: object.key_id, keks };
        }
        Self::Otherwise(words.join(" "))
    }
}

/// The length of what a value holds once it is decrypted, and whether a KMS v2 provider encrypted it. For other
/// providers the length of the value itself, which is a little more.
pub fn stored_length(value: &[u8]) -> (usize, bool) {
    let body = value.strip_prefix(b"k8s:enc:kms:v2:").and_then(|rest| {
        let name_ends = rest.iter().position(|byte| *byte == b':')?;
        rest.get(name_ends.saturating_add(1)..)
    });
    match body.map(SealedObject::decode) {
        Some(Ok(object)) => (object.plain_length(), true),
        _ => (value.len(), false),
    }
}

/// The length of what a value holds once it is decrypted, where that can be told without a key.
pub fn plain_length(value: &[u8]) -> Option<usize> {
    let (length, is_kms) = stored_length(value);
    (is_kms || Stored::of(value) == Stored::Plain).then_some(length)
}

/// The same message, for its length.
#[derive(Clone, PartialEq, Message)]
struct SealedObject {
    #[prost(bytes = "vec", tag = "1")]
    encrypted_data: Vec<u8>,
    #[prost(int32, tag = "5")]
    source_type: i32,
}

impl SealedObject {
    fn plain_length(&self) -> usize {
        let info = if self.source_type == 1 { INFO } else { 0 };
        self.encrypted_data.len().saturating_sub(SEALING).saturating_sub(info)
    }
}

/// A word of the prefix. An API server accepts a provider's name of any length; only what is not a whole prefix, or not
/// text, is cut short.
fn readable(word: &[u8], whole: bool) -> String {
    match std::str::from_utf8(word) {
        Ok(text) if whole && !text.contains(char::is_control) => text.to_owned(),
        _ => String::from_utf8_lossy(&word[..word.len().min(100)]).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kek::{Lineage, WrappedDek};

    #[test]
    fn how_a_value_is_stored_can_be_read_without_a_key() {
        let object = EncryptedObject { key_id: "k1".into(), annotations: HashMap::new() }.encode_to_vec();
        let value = [b"k8s:enc:kms:v2:p:".as_slice(), &object].concat();
        assert_eq!(Stored::of(&value), Stored::KmsV2 { provider: "p".into(), key_id: "k1".into(), keks: Vec::new() });
        assert_eq!(Stored::of(b"k8s:enc:aescbc:v1:key1:\x01\x02:"), Stored::Otherwise("aescbc v1 key1".into()));
        assert_eq!(Stored::of(b"k8s:enc:kms:v2:p:\xff\xff"), Stored::Otherwise("kms v2 p".into()));
        assert_eq!(Stored::of(b"k8s\0\n\x0c"), Stored::Plain);
    }

    #[test]
    fn a_provider_is_known_by_its_whole_name_however_long() {
        let name = "p".repeat(3_000);
        let object = EncryptedObject { key_id: "k1".into(), annotations: HashMap::new() }.encode_to_vec();
        let value = [format!("k8s:enc:kms:v2:{name}:").as_bytes(), &object].concat();
        let Stored::KmsV2 { provider, .. } = Stored::of(&value) else { panic!("a KMS v2 provider stored it") };
        assert_eq!(provider, *name);
        let Stored::Otherwise(words) = Stored::of(format!("k8s:enc:kms:v1:{name}:x").as_bytes()) else { panic!() };
        assert_eq!(words, format!("kms v1 {name}"));
        let Stored::Otherwise(words) = Stored::of(&[b"k8s:enc:".as_slice(), &[7; 3_000]].concat()) else { panic!() };
        assert_eq!(words.len(), 100);
    }

    #[test]
    fn the_length_of_the_plaintext_is_known_without_a_key() {
        let sealed = |source_type, length: usize| {
            let object = SealedObject { encrypted_data: vec![0; length], source_type }.encode_to_vec();
            [b"k8s:enc:kms:v2:p:".as_slice(), &object].concat()
        };
        assert_eq!(plain_length(&sealed(1, 160)), Some(100));
        assert_eq!(plain_length(&sealed(0, 128)), Some(100));
        assert_eq!(plain_length(&[b'x'; 100]), Some(100));
        assert_eq!(plain_length(b"k8s:enc:aescbc:v1:key1:xxxx"), None);
    }

    #[test]
    fn the_kek_versions_that_open_a_value_can_be_read_from_its_annotation() {
        let version = |home: &str| KekVersion { lineage: Lineage::derive("test", &[home]), version: "3".into() };
        let wraps = ["a", "b"].map(|home| WrappedDek { version: version(home), blob: vec![1] });
        let set = WrappedDekSet { cluster: "c".parse().unwrap(), epoch: 1, wraps: wraps.into() };
        let annotations = HashMap::from([(ANNOTATION.to_owned(), set.encode().unwrap())]);
        let object = EncryptedObject { key_id: set.key_id().to_string(), annotations }.encode_to_vec();
        let Stored::KmsV2 { keks, .. } = Stored::of(&[b"k8s:enc:kms:v2:p:".as_slice(), &object].concat()) else {
            panic!("a KMS v2 provider stored it")
        };
        assert_eq!(keks, [version("a"), version("b")]);
    }
}
