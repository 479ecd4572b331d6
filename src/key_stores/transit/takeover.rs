//! What vault-kubernetes-kms stored: the text that transit's encrypt returned, `vault:vN:` and base64, without
//! associated data. No annotations; `key_id` is the key's latest version as a number (the time of its creation in
//! versions before 5569bab), and says nothing about which key it is.
//!
//! Read from its source (FalcoSuessgott/vault-kubernetes-kms, `pkg/vault/transit.go` at c3bc385).

use std::sync::Arc;

use async_trait::async_trait;
use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{Deserialize, Serialize};

use super::kek::TransitKek;
use super::settings::{self, TransitKey};
use crate::crypto::secret::Seed;
use crate::kek::takeover::{FormerKey, FormerPlugin, Stored, opened_seed, shown};
use crate::kek::{KekCause, KekError};
use crate::key_stores::shared::former_key::{KeyOnUse, OpenKek};
use crate::key_stores::shared::key_store::{Mistake, ParsedTakeover};
use crate::key_stores::shared::secret_text::SecretText;

/// Nonce and tag of every cipher that transit has for encryption, and one byte between them.
const SHORTEST_BLOB: usize = 12 + 16 + 1;

/// Settings of an entry as they are written.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Settings {
    /// The key that plugin used, and the way to it.
    transit: settings::Settings,
}

impl Settings {
    pub(in crate::key_stores) fn parse(self) -> ParsedTakeover {
        let key = self.transit.parse_key().map_err(|mistakes| Mistake::within("transit", mistakes))?;
        Ok(Arc::new(VaultKubernetesKms { key: KeyOnUse::new(key) }))
    }
}

/// See the file's own words.
#[derive(Debug)]
struct VaultKubernetesKms {
    key: KeyOnUse<TransitKey>,
}

#[async_trait]
impl OpenKek for TransitKey {
    type Kek = TransitKek;

    async fn open_kek(&self) -> Result<TransitKek, KekError> {
        self.kek()
    }
}

/// The text of a ciphertext of transit: the prefix with a version, and base64 of a possible length.
fn ciphertext(bytes: &[u8]) -> Result<&str, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not text")?;
    let (version, encoded) =
        text.strip_prefix("vault:v").and_then(|rest| rest.split_once(':')).ok_or("it does not begin with vault:vN:")?;
    if !is_number(version) {
        return Err("vault:v is not followed by a version".into());
    }
    let blob = BASE64_STANDARD.decode(encoded).map_err(|_| "what follows the version is not base64")?;
    if blob.len() < SHORTEST_BLOB {
        return Err("it is too short for a ciphertext of transit".into());
    }
    Ok(text)
}

/// A number as Go writes it: no sign, no zero before it.
fn is_number(text: &str) -> bool {
    text.parse::<u64>().is_ok_and(|number| number > 0 && number.to_string() == text)
}

#[derive(Serialize)]
struct Request<'a> {
    ciphertext: &'a str,
}

#[derive(Deserialize)]
struct Answer {
    plaintext: SecretText,
}

#[async_trait]
impl FormerPlugin for VaultKubernetesKms {
    fn plugin(&self) -> &'static str {
        "vault-kubernetes-kms"
    }

    fn key(&self) -> &dyn FormerKey {
        &self.key
    }

    fn marks(&self) -> Vec<String> {
        vec!["vault-kubernetes-kms, whose key_id does not tell the key".into()]
    }

    fn recognize(&self, stored: &Stored) -> Result<(), String> {
        stored.without_annotations()?;
        if !is_number(&stored.key_id) {
            return Err(format!("key_id {:?} is not a number", shown(&stored.key_id)));
        }
        ciphertext(&stored.ciphertext).map(drop)
    }

    async fn open(&self, stored: &Stored) -> Result<Seed, KekError> {
        let ciphertext = ciphertext(&stored.ciphertext).map_err(|why| KekError::new(KekCause::Rejected, why))?;
        // The text goes back as it is stored: transit reads the key's version from its prefix.
        let path = format!("{}/decrypt/{}", self.key.store.mount, self.key.store.key);
        let answer: Answer = self.key.kek().await?.session.post(&path, &Request { ciphertext }).await?;
        let plain = BASE64_STANDARD.decode(answer.plaintext.expose());
        opened_seed(plain.map_err(|_| KekError::unmapped("what was decrypted is not base64"))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Arc<dyn FormerPlugin> {
        let settings: Settings = serde_saphyr::from_str(
            "{transit: {addresses: ['https://vault.example:8200'], key: kms, auth: {tokenFile: /t}}}",
        )
        .expect("settings");
        settings.parse().expect("an entry")
    }

    fn stored(key_id: &str, ciphertext: &str) -> Stored {
        Stored { ciphertext: ciphertext.as_bytes().to_vec(), key_id: key_id.into(), annotations: [].into() }
    }

    #[test]
    fn only_what_has_its_form_is_taken() {
        let (entry, blob) = (entry(), BASE64_STANDARD.encode([7; 60]));
        for (key_id, version) in [("1", "1"), ("2", "1"), ("1710744203", "12")] {
            assert_eq!(entry.recognize(&stored(key_id, &format!("vault:v{version}:{blob}"))), Ok(()));
        }
        let good = format!("vault:v1:{blob}");
        for (key_id, text, why) in [
            ("kleidi-kms-plugin_1_2", good.as_str(), "not a number"),
            ("01", &good, "not a number"),
            ("", &good, "not a number"),
            ("1", "", "does not begin"),
            ("1", "vault:v1", "does not begin"),
            ("1", &blob, "does not begin"),
            ("1", &good.replace("v1", "v0"), "not followed by a version"),
            ("1", &good.replace("v1", "v+1"), "not followed by a version"),
            ("1", &good.replace('B', "?"), "not base64"),
            ("1", &format!("{good}\n"), "not base64"),
            ("1", "vault:v1:AAAA", "too short"),
        ] {
            let said = entry.recognize(&stored(key_id, text)).expect_err(text);
            assert!(said.contains(why), "{text}: {said}");
        }
        let kleidi = Stored { annotations: [("v2.kleidi.beezy.dev".into(), vec![b'1'])].into(), ..stored("1", &good) };
        assert!(entry.recognize(&kleidi).expect_err("another plugin's").contains("annotations"));
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        let settings: Settings =
            serde_saphyr::from_str("{transit: {addresses: [], key: kms, auth: {tokenFile: /t}}}").expect("settings");
        assert_eq!(settings.parse().expect_err("mistakes")[0].field, "transit.addresses");
        assert!(serde_saphyr::from_str::<Settings>("{transit: {}, keyId: x}").is_err());
    }
}
