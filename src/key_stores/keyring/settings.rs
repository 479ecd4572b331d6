//! The settings of a `keyring` KEK.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use serde::Deserialize;

use super::file::Keyring;
use super::kek::KeyringKek;
use crate::kek::{ClusterName, Kek, KekError, KekVersion, Lineage, RotateKek};
use crate::key_stores::shared::key_store::{Disabling, KeyStore, Parsed, Policy, Profile};
use crate::key_stores::shared::path;
use crate::shell::quoted;

/// Settings as they are written.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
        Keyring::read(&self.file).map_or_else(|_| unread(&self.file), |keyring| keyring.lineage())
    }

    fn unknown_lineage(&self) -> Option<Lineage> {
        Some(unread(&self.file))
    }

    fn asks_a_server(&self) -> bool {
        false
    }

    fn disabling(&self, version: &str, _: &str) -> Disabling {
        // A keyring has no disabled state: what keeps the version is a copy, so nothing is destroyed without one. A copy
        // that is there already is not replaced: by the second time the file has lost the version.
        let file = self.file.display().to_string();
        let copy = format!("{file}.before-{version}");
        let (copy, file) = (quoted(&copy), quoted(&file));
        Disabling::Command(format!(
            "test ! -e {copy} && cp -p {file} {copy} && kube-envelope keyring destroy {file} {version} --yes   # move {copy} off \
             this node and keep it as long as a snapshot from before must stay restorable; then {file} to every node"
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
            remark: "a file: anyone who can read it can decrypt everything, so it protects only backups and stolen etcd disks"
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
        Ok(Box::new(KeyringKek::open(&self.file)?.settled()))
    }
}

fn unread(file: &Path) -> Lineage {
    Lineage::derive("keyring file", &[&file.to_string_lossy()])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a line as a shell does; instead of the version, everything in the file is destroyed.
    fn obey(line: &str) -> bool {
        let (destroy, line) = ("destroy() { : >\"$1\"; }", line.replace("kube-envelope keyring destroy", "destroy"));
        std::process::Command::new("sh").arg("-c").arg(format!("{destroy}\n{line}")).status().unwrap().success()
    }

    #[test]
    fn the_command_that_disables_a_version_keeps_a_copy_of_it_and_destroys_nothing_without() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keyring.json");
        let Disabling::Command(command) = (KeyringFile { file: file.clone() }).disabling("v1", "v2") else {
            panic!("words");
        };
        std::fs::write(&file, "with v1").unwrap();
        let copy = folder.path().join("keyring.json.before-v1");
        assert!(obey(&command), "{command}");
        assert_eq!([&file, &copy].map(|file| std::fs::read_to_string(file).unwrap()), ["", "with v1"], "{command}");

        // When it is run twice, or where there is no room for a copy.
        assert!(!obey(&command), "{command}");
        assert_eq!(std::fs::read_to_string(&copy).unwrap(), "with v1", "{command}");
        std::fs::remove_file(&copy).unwrap();
        std::fs::write(&file, "with v1").unwrap();
        assert!(!obey(&command.replace("cp -p", "false")), "{command}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "with v1", "{command}");
    }
}
