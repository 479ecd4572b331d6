//! The settings of a `keyring` KEK.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use serde::Deserialize;

use super::file::Keyring;
use super::kek::KeyringKek;
use crate::kek::{ClusterName, Kek, KekError, KekVersion, Lineage, RotateKek};
use crate::key_stores::shared::key_store::{Disabling, KeyStore, Parsed, Policy, Profile};
use crate::key_stores::shared::path;

/// Settings as they are written.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Settings {
    /// The keyring file, made with `kube-envelope keyring create`; readable by its owner alone.
    file: PathBuf,
}

impl Settings {
    pub(in crate::key_stores) fn parse(self) -> Parsed {
        let mut mistakes = Vec::new();
        path::check(&mut mistakes, "file", &self.file);
        if mistakes.is_empty() { Ok(Arc::new(KeyringFile { file: self.file })) } else { Err(mistakes) }
    }
}

#[derive(Debug)]
struct KeyringFile {
    file: PathBuf,
}

#[async_trait]
impl KeyStore for KeyringFile {
    /// Of the keyring's own id. While the file cannot be read, one that no wrap has.
    fn lineage(&self) -> Lineage {
        let unread = || Lineage::derive("keyring file", &[&self.file.to_string_lossy()]);
        Keyring::read(&self.file).map_or_else(|_| unread(), |keyring| keyring.lineage())
    }

    fn asks_a_server(&self) -> bool {
        false
    }

    fn disabling(&self, version: &str, _: &str) -> Disabling {
        let file = self.file.display();
        Disabling::Command(format!(
            "kube-envelope keyring destroy {file} {version}   # keep a copy of {file} with the snapshots; then to every node"
        ))
    }

    async fn versions_on_file(&self) -> Vec<KekVersion> {
        let versions = |keyring: Keyring| keyring.versions().iter().map(|one| keyring.kek_version(one)).collect();
        Keyring::read(&self.file).map(versions).unwrap_or_default()
    }

    async fn profile(&self) -> Result<Profile, KekError> {
        let created = Keyring::read(&self.file)?.active()?.created;
        Ok(Profile { created: Some(created), ..Profile::default() })
    }

    fn policy(&self, _cluster: &ClusterName) -> Policy {
        Policy {
            remark: "a file: whoever reads it opens everything, so it guards backups and stolen etcd disks alone"
                .into(),
            plugin: format!(
                "{}: mode 0600, of the plugin's user, on every node; and one copy elsewhere",
                self.file.display()
            ),
            rotation: None,
        }
    }

    async fn open(&self) -> Result<Box<dyn Kek>, KekError> {
        Ok(Box::new(KeyringKek::open(&self.file)?))
    }

    async fn open_rotating(&self) -> Result<Box<dyn RotateKek>, KekError> {
        Ok(Box::new(KeyringKek::open(&self.file)?))
    }
}
