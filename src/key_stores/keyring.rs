//! `keyring`: a KEK whose versions lie in a local file. The file is read at each call, so that a change is seen at once.

mod file;

use std::path::PathBuf;

use async_trait::async_trait;
use serde::Deserialize;

pub use self::file::{Keyring, Version, VersionState};
use super::KekSettings;
use crate::crypto::seal::{Purpose, open, seal};
use crate::crypto::secret::Dek;
use crate::kek::clock::ServerClock;
use crate::kek::{Kek, KekCause, KekError, KekVersion, Lineage, RotateKek, Unwrapped, WrapContext, WrappedDek};

/// Settings of a `keyring` KEK.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct KeyringConfig {
    /// The keyring file, made with `kube-envelope keyring create`; readable by its owner alone.
    pub file: PathBuf,
}

#[async_trait]
impl KekSettings for KeyringConfig {
    fn kind(&self) -> &'static str {
        "keyring"
    }

    fn problems(&self) -> Vec<(&'static str, String)> {
        Keyring::read(&self.file).err().map(|error| ("file", error.problem())).into_iter().collect()
    }

    async fn build(&self) -> Result<Box<dyn Kek>, KekError> {
        let keyring = Keyring::read(&self.file)?;
        Ok(Box::new(KeyringKek { file: self.file.clone(), lineage: keyring.lineage() }))
    }

    async fn build_rotating(&self) -> Result<Box<dyn RotateKek>, KekError> {
        let keyring = Keyring::read(&self.file)?;
        Ok(Box::new(KeyringKek { file: self.file.clone(), lineage: keyring.lineage() }))
    }
}

/// The KEK made of a keyring file. Reads the file at each call, so that it never holds a key between calls
/// and a destroyed version is gone at once.
#[derive(Debug)]
struct KeyringKek {
    file: PathBuf,
    lineage: Lineage,
}

impl KeyringKek {
    fn keyring(&self) -> Result<Keyring, KekError> {
        let keyring = Keyring::read(&self.file)?;
        if keyring.lineage() != self.lineage {
            return Err(KekError::misconfigured(format!(
                "{} is another keyring now (its id changed); put the former file back, or restart to use this one",
                self.file.display()
            )));
        }
        Ok(keyring)
    }
}

#[async_trait]
impl Kek for KeyringKek {
    fn lineage(&self) -> Lineage {
        self.lineage
    }

    /// There are no credentials but the file's mode.
    fn credentials_expire(&self) -> Option<jiff::Timestamp> {
        None
    }

    fn server_clock(&self) -> Option<&ServerClock> {
        None
    }

    async fn version(&self) -> Result<KekVersion, KekError> {
        let keyring = self.keyring()?;
        Ok(keyring.kek_version(keyring.active()?))
    }

    async fn wrap(&self, dek: &Dek, context: &WrapContext) -> Result<WrappedDek, KekError> {
        let keyring = self.keyring()?;
        let active = keyring.active()?;
        let blob = seal(&active.key.0, Purpose::Wrap, &context.to_bytes(), dek.expose(), &mut rand::rng());
        Ok(WrappedDek { version: keyring.kek_version(active), blob })
    }

    async fn unwrap(&self, wrapped: &WrappedDek, context: &WrapContext) -> Result<Unwrapped, KekError> {
        let keyring = self.keyring()?;
        let version = keyring.find(&wrapped.version.version)?;
        let mut plain = open(&version.key.0, Purpose::Wrap, &context.to_bytes(), &wrapped.blob)
            .map_err(|error| KekError::new(KekCause::Rejected, "wrapped DEK does not open").with_source(error))?;
        let dek = Dek::from_unwrapped(plain.as_mut_slice())
            .ok_or_else(|| KekError::new(KekCause::Rejected, "unwrapped DEK is not 32 bytes"))?;
        Ok(Unwrapped { dek, version: keyring.kek_version(version) })
    }
}

#[async_trait]
impl RotateKek for KeyringKek {
    async fn rotate(&self) -> Result<KekVersion, KekError> {
        let mut keyring = self.keyring()?;
        let pending = match keyring.versions().iter().rev().find(|version| version.state == VersionState::Pending) {
            Some(version) => version.id.clone(),
            None => keyring.add(&mut rand::rng()),
        };
        keyring.activate(&pending)?;
        keyring.replace(&self.file)?;
        Ok(keyring.kek_version(keyring.active()?))
    }
}
