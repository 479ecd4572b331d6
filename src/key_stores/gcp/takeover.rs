//! What k8s-cloudkms-plugin stored: the ciphertext of Cloud KMS as it is, without associated data. No annotations;
//! `key_id` is the name of the version that encrypted, with `:SUFFIX` after it where the plugin had a `--key-suffix`.
//!
//! Read from its source (GoogleCloudPlatform/k8s-cloudkms-plugin, `plugin/v2/plugin.go` at a88bafe). It takes the key's
//! name out of `key_id`; here only the key of the configuration is asked.

use std::sync::Arc;

use async_trait::async_trait;
use serde::Deserialize;

use super::kek::GcpKek;
use super::settings::{self, CloudKmsKey};
use crate::crypto::secret::Seed;
use crate::kek::KekError;
use crate::kek::takeover::{FormerKey, FormerPlugin, Stored, opened_seed, shown};
use crate::key_stores::shared::former_key::{KeyOnUse, OpenKek};
use crate::key_stores::shared::http;
use crate::key_stores::shared::key_store::{Mistake, ParsedTakeover};

/// Nonce and tag of AES-256-GCM, which Cloud KMS's symmetric keys use, and one byte between them.
const SHORTEST_BLOB: usize = 12 + 16 + 1;

/// Settings of an entry as they are written.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Settings {
    /// The key that plugin used, and the way to it.
    gcp_kms: settings::Settings,
}

impl Settings {
    pub(in crate::key_stores) fn parse(self) -> ParsedTakeover {
        let key = self.gcp_kms.parse_key().map_err(|mistakes| Mistake::within("gcpKms", mistakes))?;
        Ok(Arc::new(CloudKmsPlugin { key: KeyOnUse::new(key) }))
    }
}

/// See the file's own words.
#[derive(Debug)]
struct CloudKmsPlugin {
    key: KeyOnUse<CloudKmsKey>,
}

#[async_trait]
impl OpenKek for CloudKmsKey {
    type Kek = GcpKek;

    async fn open_kek(&self) -> Result<GcpKek, KekError> {
        self.kek(http::ATTEMPT)
    }
}

/// Whether `key_id` names a version of `key`, or `key` itself, with or without a suffix.
fn names(key_id: &str, key: &str) -> bool {
    let Some(rest) = key_id.strip_prefix(key) else { return false };
    let (version, suffix) = rest.split_once(':').map_or((rest, None), |(version, suffix)| (version, Some(suffix)));
    let number = version.strip_prefix("/cryptoKeyVersions/");
    // `u64` also reads `01` and `+1`; Cloud KMS writes neither.
    let is_version = number.is_some_and(|number| number.parse::<u64>().is_ok_and(|n| n.to_string() == number));
    (version.is_empty() || is_version) && suffix != Some("")
}

#[async_trait]
impl FormerPlugin for CloudKmsPlugin {
    fn plugin(&self) -> &'static str {
        "k8s-cloudkms-plugin"
    }

    fn key(&self) -> &dyn FormerKey {
        &self.key
    }

    fn marks(&self) -> Vec<String> {
        vec![format!("k8s-cloudkms-plugin, key {}", self.key.store.key)]
    }

    fn recognize(&self, stored: &Stored) -> Result<(), String> {
        stored.without_annotations()?;
        if !names(&stored.key_id, &self.key.store.key) {
            return Err(format!("key_id {:?} names no version of {}", shown(&stored.key_id), self.key.store.key));
        }
        if stored.ciphertext.len() < SHORTEST_BLOB {
            return Err("it is too short for a ciphertext of Cloud KMS".into());
        }
        Ok(())
    }

    async fn open(&self, stored: &Stored) -> Result<Seed, KekError> {
        // The key is enough: which of its versions encrypted is in the ciphertext.
        let mut plain = self.key.kek().await?.client.decrypt(&stored.ciphertext, &[]).await?;
        opened_seed(std::mem::take(&mut *plain))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "projects/p/locations/europe-west3/keyRings/r/cryptoKeys/k";

    fn entry() -> Arc<dyn FormerPlugin> {
        let settings: Settings = serde_saphyr::from_str(&format!("{{gcpKms: {{key: '{KEY}'}}}}")).expect("settings");
        settings.parse().expect("an entry")
    }

    #[test]
    fn only_what_names_a_version_of_its_key_is_taken() {
        let entry = entry();
        let stored = |key_id: &str, length| Stored {
            ciphertext: vec![10; length],
            key_id: key_id.into(),
            annotations: [].into(),
        };
        for good in ["", "/cryptoKeyVersions/1", "/cryptoKeyVersions/12:2026-a", ":suffix"] {
            assert_eq!(entry.recognize(&stored(&format!("{KEY}{good}"), 113)), Ok(()), "{good}");
        }
        for bad in [
            "x",
            "/",
            "/cryptoKeyVersions/",
            "/cryptoKeyVersions/01",
            "/cryptoKeyVersions/1/x",
            "/cryptoKeyVersions/1:",
            ":",
        ] {
            let said = entry.recognize(&stored(&format!("{KEY}{bad}"), 113)).expect_err(bad);
            assert!(said.contains("names no version"), "{said}");
        }
        assert!(entry.recognize(&stored("1", 113)).is_err());
        assert!(entry.recognize(&stored(KEY, 28)).expect_err("short").contains("too short"));
        let annotated = Stored { annotations: [("a.b".into(), vec![1])].into(), ..stored(KEY, 113) };
        assert!(entry.recognize(&annotated).expect_err("another plugin's").contains("annotations"));
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        let settings: Settings = serde_saphyr::from_str("{gcpKms: {key: k}}").expect("settings");
        assert_eq!(settings.parse().expect_err("mistakes")[0].field, "gcpKms.key");
    }
}
