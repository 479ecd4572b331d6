//! The KEK made of a keyring file.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::file::{Keyring, VersionState};
use crate::crypto::seal::{Purpose, open, os_random, seal};
use crate::crypto::secret::Dek;
use crate::kek::clock::ServerClock;
use crate::kek::{
    Kek, KekCause, KekError, KekVersion, Lineage, RotateKek, Unwrapped, WrapContext, WrappedDek, unwrapped_dek,
};

/// The KEK made of a keyring file. Reads the file at each call, so that it never holds a key between calls
/// and a destroyed version is gone at once.
#[derive(Debug)]
pub(super) struct KeyringKek {
    file: PathBuf,
    identity: Mutex<Identity>,
}

/// Which keyring it is.
#[derive(Clone, Copy, Debug)]
struct Identity {
    lineage: Lineage,
    /// Before anything was wrapped or unwrapped with it, it is whatever keyring the file holds: a wrong file is put right
    /// without a restart. Afterwards another one in its place is a mistake.
    is_settled: bool,
}

impl KeyringKek {
    /// The keyring that the file holds now, or another one that it holds when it is first used.
    pub(super) fn open(file: &Path) -> Result<Self, KekError> {
        let identity = Identity { lineage: Keyring::read(file)?.lineage(), is_settled: false };
        Ok(Self { file: file.to_owned(), identity: Mutex::new(identity) })
    }

    /// The keyring that the file holds now, and no other.
    pub(super) fn settled(self) -> Self {
        self.identity().is_settled = true;
        self
    }

    fn identity(&self) -> MutexGuard<'_, Identity> {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// On a thread that may block: the file may lie on a disk that hangs.
    async fn keyring(&self) -> Result<Keyring, KekError> {
        let file = self.file.clone();
        let read = tokio::task::spawn_blocking(move || Keyring::read(&file)).await;
        let keyring = read.unwrap_or_else(|_| Err(KekError::unavailable("reading the keyring file was cancelled")))?;
        let mut identity = self.identity();
        if identity.lineage != keyring.lineage() && identity.is_settled {
            return Err(KekError::misconfigured(format!(
                "{} is a different keyring now (its id changed), which opens nothing of the former one; restore the \
                 former file from another node or from its backup",
                self.file.display()
            )));
        }
        identity.lineage = keyring.lineage();
        Ok(keyring)
    }

    /// This keyring has wrapped or unwrapped something.
    fn settle(&self, keyring: &Keyring) {
        let mut identity = self.identity();
        if !identity.is_settled {
            *identity = Identity { lineage: keyring.lineage(), is_settled: true };
        }
    }
}

#[async_trait]
impl Kek for KeyringKek {
    fn lineage(&self) -> Lineage {
        self.identity().lineage
    }

    /// The only credential is the file's mode.
    fn credentials_expire(&self) -> Option<jiff::Timestamp> {
        None
    }

    fn server_clock(&self) -> Option<&ServerClock> {
        None
    }

    async fn version(&self) -> Result<KekVersion, KekError> {
        let keyring = self.keyring().await?;
        Ok(keyring.kek_version(keyring.active()?))
    }

    async fn wrap(&self, dek: &Dek, context: &WrapContext) -> Result<WrappedDek, KekError> {
        let keyring = self.keyring().await?;
        let active = keyring.active()?;
        let blob = seal(&active.key.0, Purpose::Wrap, &context.to_bytes(), dek.expose(), &mut os_random());
        self.settle(&keyring);
        Ok(WrappedDek { version: keyring.kek_version(active), blob })
    }

    async fn unwrap(&self, wrapped: &WrappedDek, context: &WrapContext) -> Result<Unwrapped, KekError> {
        let keyring = self.keyring().await?;
        let version = keyring.find(&wrapped.version.version)?;
        let plain = open(&version.key.0, Purpose::Wrap, &context.to_bytes(), &wrapped.blob)
            .map_err(|error| KekError::new(KekCause::Rejected, "wrapped DEK does not open").with_source(error))?;
        self.settle(&keyring);
        Ok(Unwrapped { dek: unwrapped_dek(plain)?, version: keyring.kek_version(version) })
    }
}

#[async_trait]
impl RotateKek for KeyringKek {
    async fn rotate(&self) -> Result<KekVersion, KekError> {
        let mut keyring = self.keyring().await?;
        // A version that was copied to every node beforehand; without one, the others cannot open what this node writes
        // until they have the file.
        let pending = match keyring.versions().iter().rev().find(|version| version.state == VersionState::Pending) {
            Some(version) => version.id.clone(),
            None => keyring.add(&mut os_random()),
        };
        keyring.activate(&pending)?;
        keyring.replace(&self.file)?;
        Ok(keyring.kek_version(keyring.active()?))
    }

    async fn missing_preparation(&self) -> Result<Option<String>, KekError> {
        let keyring = self.keyring().await?;
        let file = self.file.display();
        Ok(keyring.versions().iter().all(|version| version.state != VersionState::Pending).then(|| {
            format!(
                "keyring {file} has no pending version: run `kube-envelope keyring add {file}`, copy the file to every \
                 node, and run this again; otherwise the other API servers could not read what this one writes"
            )
        }))
    }

    fn remaining_work(&self) -> Option<String> {
        let file = self.file.display();
        Some(format!("copy the keyring file {file} to every node now; this run waits for all of them"))
    }
}
