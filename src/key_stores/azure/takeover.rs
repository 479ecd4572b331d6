//! What Azure's kubernetes-kms stored: RSA-OAEP-256 under one version of a key, as the base64url text that Key Vault
//! returned. `key_id` is the SHA-256 of the version's URL in hex; five annotations, of which two are checked.
//!
//! Read from its source (Azure/kubernetes-kms, `pkg/plugin/keyvault.go` at f25f71c). A hash tells no version, so the
//! versions are listed in the configuration.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::kek::{Algorithm, AzureKek, is_version};
use super::settings::{self, VaultKey};
use crate::crypto::secret::Seed;
use crate::kek::takeover::{FormerKey, FormerPlugin, Stored, opened_seed, shown};
use crate::kek::{KekCause, KekError};
use crate::key_stores::shared::former_key::{KeyOnUse, OpenKek};
use crate::key_stores::shared::http;
use crate::key_stores::shared::key_store::{Mistake, ParsedTakeover};

/// Lengths of what RSA keys of 2048, 3072 and 4096 bits encrypt.
const BLOBS: [usize; 3] = [256, 384, 512];

/// The annotations that are checked, and what they hold.
const CHECKED: [(&str, &str); 2] = [("algorithm.azure.akv.io", "RSA-OAEP-256"), ("version.azure.akv.io", "1")];

/// The annotations with details of the request.
const OTHERS: [&str; 3] = ["date.azure.akv.io", "x-ms-request-id.azure.akv.io", "x-ms-keyvault-region.azure.akv.io"];

/// Settings of an entry as they are written.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Settings {
    /// The key that plugin used, and the way to it.
    azure_key_vault: settings::Settings,
    /// Its `--key-version`; every one that something may be stored under.
    key_versions: Vec<String>,
}

impl Settings {
    pub(in crate::key_stores) fn parse(self) -> ParsedTakeover {
        let mut mistakes = Vec::new();
        if self.key_versions.is_empty() {
            mistakes.push(Mistake::new("keyVersions", "is empty; list what kubernetes-kms had as --key-version"));
        }
        for (index, version) in self.key_versions.iter().enumerate().filter(|(_, version)| !is_version(version)) {
            let problem = format!("{:?} is not a version of a key: 32 hexadecimal digits", shown(version));
            mistakes.push(Mistake::new(format!("keyVersions[{index}]"), problem));
        }
        let key = self.azure_key_vault.parse_key();
        let key = key.map_err(|more| mistakes.extend(Mistake::within("azureKeyVault", more)));
        if let Ok(key) = &key
            && key.algorithm != Algorithm::RsaOaep256
        {
            let problem = "leave it out: kubernetes-kms encrypts with RSA-OAEP-256 alone";
            mistakes.push(Mistake::new("azureKeyVault.algorithm", problem));
        }
        match key {
            Ok(key) if mistakes.is_empty() => {
                let versions = self.key_versions.into_iter().map(|version| (key_id(&key, &version), version)).collect();
                Ok(Arc::new(KubernetesKms { key: KeyOnUse::new(key), versions }))
            }
            _ => Err(mistakes),
        }
    }
}

/// What kubernetes-kms reports for a version: the hash of its URL, which has no port.
fn key_id(key: &VaultKey, version: &str) -> String {
    hex::encode(Sha256::digest(format!("https://{}/keys/{}/{version}", key.host, key.key)))
}

/// See the file's own words.
#[derive(Debug)]
struct KubernetesKms {
    key: KeyOnUse<VaultKey>,
    /// `key_id` → version.
    versions: BTreeMap<String, String>,
}

#[async_trait]
impl OpenKek for VaultKey {
    type Kek = AzureKek;

    async fn open_kek(&self) -> Result<AzureKek, KekError> {
        self.kek(http::ATTEMPT)
    }
}

#[async_trait]
impl FormerPlugin for KubernetesKms {
    fn plugin(&self) -> &'static str {
        "kubernetes-kms"
    }

    fn key(&self) -> &dyn FormerKey {
        &self.key
    }

    fn marks(&self) -> Vec<String> {
        self.versions.keys().map(|key_id| format!("kubernetes-kms, key_id {key_id}")).collect()
    }

    fn recognize(&self, stored: &Stored) -> Result<(), String> {
        if !self.versions.contains_key(&stored.key_id) {
            let key_id = shown(&stored.key_id);
            return Err(format!("key_id {key_id:?} is not that of {} with any of keyVersions", self.key.store.key));
        }
        for (name, value) in CHECKED {
            match stored.annotations.get(name) {
                Some(held) if held == value.as_bytes() => {}
                Some(held) => {
                    return Err(format!("{name} is {:?}, not {value}", shown(&String::from_utf8_lossy(held))));
                }
                None => return Err(format!("it lacks the annotation {name}")),
            }
        }
        let known = |name: &str| OTHERS.contains(&name) || CHECKED.iter().any(|(checked, _)| *checked == name);
        if let Some(other) = stored.annotations.keys().find(|name| !known(name)) {
            // An annotation that kubernetes-kms does not write tells that another plugin stored the value.
            return Err(format!("the annotation {} is not one of kubernetes-kms", shown(other)));
        }
        match BASE64_URL_SAFE_NO_PAD.decode(&stored.ciphertext) {
            Ok(blob) if BLOBS.contains(&blob.len()) => Ok(()),
            Ok(blob) => Err(format!("no RSA key encrypts to {} bytes", blob.len())),
            Err(_) => Err("it is not base64url".into()),
        }
    }

    async fn open(&self, stored: &Stored) -> Result<Seed, KekError> {
        let rejected = |text: &str| KekError::new(KekCause::Rejected, text);
        let version = self.versions.get(&stored.key_id).ok_or_else(|| rejected("it has another key_id"))?;
        let blob = BASE64_URL_SAFE_NO_PAD.decode(&stored.ciphertext).map_err(|_| rejected("it is not base64url"))?;
        let mut plain = self.key.kek().await?.decrypt(version, &blob).await?;
        opened_seed(std::mem::take(&mut *plain))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERSION: &str = "0123456789abcdef0123456789abcdef";
    /// `printf https://kek.vault.azure.net/keys/k8s/0123456789abcdef0123456789abcdef | sha256sum`
    const KEY_ID: &str = "0035fa8dc9184e68f08273bd04763a60cd928147f4aaae4b94abd8b523b72b67";

    fn parse(versions: &str) -> ParsedTakeover {
        let settings: Settings = serde_saphyr::from_str(&format!(
            "{{keyVersions: [{versions}], azureKeyVault: {{vault: 'https://Kek.vault.azure.net', key: k8s, \
             credential: {{managedIdentity: {{}}}}}}}}"
        ))
        .expect("settings");
        settings.parse()
    }

    fn stored() -> Stored {
        let annotations = CHECKED.map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()));
        let others = OTHERS.map(|name| (name.to_owned(), b"westeurope".to_vec()));
        Stored {
            ciphertext: BASE64_URL_SAFE_NO_PAD.encode([0xa5; 256]).into_bytes(),
            key_id: KEY_ID.into(),
            annotations: annotations.into_iter().chain(others).collect(),
        }
    }

    fn changed(change: impl Fn(&mut Stored)) -> Stored {
        let mut stored = stored();
        change(&mut stored);
        stored
    }

    #[test]
    fn only_what_has_its_form_its_annotations_and_the_hash_of_a_listed_version_is_taken() {
        let entry = parse(&format!("'{VERSION}'")).expect("an entry");
        assert_eq!(entry.recognize(&stored()), Ok(()));
        let annotate = |name: &'static str, value: &'static str| {
            changed(move |stored| drop(stored.annotations.insert(name.into(), value.into())))
        };
        for (refused, why) in [
            (changed(|stored| stored.key_id = "0".repeat(64)), "is not that of k8s"),
            (changed(|stored| stored.annotations.clear()), "lacks the annotation algorithm"),
            (annotate("algorithm.azure.akv.io", "RSA1_5"), "not RSA-OAEP-256"),
            (annotate("version.azure.akv.io", "2"), "not 1"),
            (annotate("dek.example", "x"), "is not one of kubernetes-kms"),
            (changed(|stored| stored.ciphertext.truncate(100)), "no RSA key encrypts to"),
            (changed(|stored| stored.ciphertext[0] = b'+'), "not base64url"),
            (changed(|stored| stored.ciphertext[0] = 0), "not base64url"),
        ] {
            let said = entry.recognize(&refused).expect_err(why);
            assert!(said.contains(why), "{said}");
        }
    }

    #[test]
    fn versions_are_listed_and_have_their_form() {
        let fields = |versions: &str| -> Vec<String> {
            parse(versions).err().unwrap_or_default().into_iter().map(|mistake| mistake.field).collect()
        };
        assert_eq!(fields(""), ["keyVersions"]);
        assert_eq!(fields(&format!("'{VERSION}', latest")), ["keyVersions[1]"]);
    }
}
