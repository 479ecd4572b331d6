//! The settings of a `pkcs11` KEK.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use serde::Deserialize;

use super::client::{Client, TokenKey};
use super::kek::Pkcs11Kek;
use super::mechanism::Mechanism;
use super::profile;
use super::protocol::Call;
use crate::kek::{ClusterName, Kek, KekError, Lineage, RotateKek};
use crate::key_stores::shared::key_store::{Disabling, KeyStore, Mistake, Parsed, Policy, Profile};
use crate::key_stores::shared::path;

/// Settings as they are written.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Settings {
    /// The PKCS#11 module, a shared library of the token's vendor.
    module: PathBuf,
    /// The token's label. Slot numbers change; they are not used.
    token_label: String,
    /// The label that all versions of the key bear. The one with the highest `CKA_ID` is active.
    key_label: String,
    /// A file with the user's PIN.
    pin_file: PathBuf,
    /// How DEKs are wrapped from now on; by default the best that the token offers.
    mechanism: Option<Mechanism>,
}

impl Settings {
    pub(in crate::key_stores) fn parse(self) -> Parsed {
        let mut mistakes = Vec::new();
        path::check(&mut mistakes, "module", &self.module);
        path::check(&mut mistakes, "pinFile", &self.pin_file);
        let token_label = self.token_label.trim_end().to_owned();
        for (field, label) in [("tokenLabel", token_label.as_str()), ("keyLabel", self.key_label.trim())] {
            if label.is_empty() {
                mistakes.push(Mistake::new(field, "is empty; write the label"));
            }
        }
        let Self { module, key_label, pin_file, mechanism, .. } = self;
        if mistakes.is_empty() {
            Ok(Arc::new(TokenKey { module, token_label, key_label, pin_file, mechanism }))
        } else {
            Err(mistakes)
        }
    }
}

impl TokenKey {
    fn kek(&self) -> Pkcs11Kek {
        Pkcs11Kek { lineage: self.lineage(), client: Arc::new(Client::new(self.clone())) }
    }
}

#[async_trait]
impl KeyStore for TokenKey {
    fn hosts_a_library(&self) -> bool {
        true
    }

    fn lineage(&self) -> Lineage {
        Lineage::derive("pkcs11", &[&self.token_label, &self.key_label])
    }

    fn asks_a_server(&self) -> bool {
        false
    }

    async fn profile(&self) -> Result<Profile, KekError> {
        let (done, _) = self.kek().client.call(Call::Profile, &[]).await?;
        Ok(profile::of(&done, &self.key_label))
    }

    fn policy(&self, _cluster: &ClusterName) -> Policy {
        Policy {
            remark: format!(
                "PKCS#11 knows no policies: what counts is who has the PIN of token {:?}, and the key's own attributes",
                self.token_label
            ),
            plugin: format!(
                "{pin}: mode 0600, of the plugin's user\n\
                 key {key:?}: CKA_SENSITIVE true, CKA_EXTRACTABLE false, CKA_MODIFIABLE false; and only what its mechanism \
                 needs: CKA_ENCRYPT and CKA_DECRYPT, or CKA_WRAP and CKA_UNWRAP",
                pin = self.pin_file.display(),
                key = self.key_label
            ),
            rotation: None,
        }
    }

    fn disabling(&self, version: &str, _: &str) -> Disabling {
        Disabling::ByHand(format!(
            "with the token vendor's tool: move the object with CKA_ID {} out of token {}, and keep a backup of it",
            version.split('-').next().unwrap_or(version),
            self.token_label
        ))
    }

    async fn open(&self) -> Result<Box<dyn Kek>, KekError> {
        Ok(Box::new(self.kek()))
    }

    async fn open_rotating(&self) -> Result<Box<dyn RotateKek>, KekError> {
        Ok(Box::new(self.kek()))
    }
}
