//! A keyring file, changed with the `keyring` command of the binary under test.

use std::path::{Path, PathBuf};
use std::process::Command;

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::Value;

/// A keyring file in a folder of its own.
pub struct KeyringFile {
    folder: tempfile::TempDir,
}

impl KeyringFile {
    /// A new keyring with one active version.
    pub fn create() -> Self {
        let keyring = Self { folder: tempfile::Builder::new().prefix("keyring-").tempdir().unwrap() };
        keyring.command(&["create"], &[]);
        keyring
    }

    /// The same keyring on another node.
    pub fn copied(&self) -> Self {
        let copy = Self { folder: tempfile::Builder::new().prefix("keyring-").tempdir().unwrap() };
        copy.copy_from(self);
        copy
    }

    /// Brings another node's file here, as an operator would: beside, then renamed.
    pub fn copy_from(&self, other: &Self) {
        let beside = self.folder.path().join("beside");
        std::fs::copy(other.path(), &beside).unwrap();
        std::fs::rename(beside, self.path()).unwrap();
    }

    /// The file.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("keyring.json")
    }

    /// The part of a configuration that names cluster `cluster` and this keyring as the one KEK, `primary`.
    pub fn settings(&self, cluster: &str) -> String {
        format!("cluster: {cluster}\nkeks: [{{name: primary, keyring: {{file: {}}}}}]", self.path().display())
    }

    /// Adds a version and makes it active, as an operator does.
    pub fn rotate(&self) {
        self.command(&["add"], &[]);
        self.command(&["activate"], &[]);
    }

    /// Destroys the one version that is retired.
    pub fn destroy_retired(&self) {
        let versions = self.versions();
        let retired = versions.iter().find(|version| version["state"] == "retired").unwrap();
        self.command(&["destroy"], &[retired["id"].as_str().unwrap()]);
    }

    /// Removes the file and creates another keyring under the same name.
    pub fn recreate(&self) {
        std::fs::remove_file(self.path()).unwrap();
        self.command(&["create"], &[]);
    }

    /// `keyring NAME… FILE ARGUMENTS…`
    pub fn command(&self, name: &[&str], arguments: &[&str]) {
        run(name, &self.path(), arguments);
    }

    /// Its content.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.path()).unwrap()).unwrap()
    }

    /// Its versions, oldest first.
    pub fn versions(&self) -> Vec<Value> {
        self.json()["versions"].as_array().unwrap().clone()
    }

    /// Puts other content in its place, in one step.
    pub fn replace(&self, json: &Value) {
        let beside = self.folder.path().join("beside");
        std::fs::write(&beside, serde_json::to_vec(json).unwrap()).unwrap();
        std::fs::set_permissions(&beside, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::rename(beside, self.path()).unwrap();
    }

    /// Every key in it.
    pub fn keys(&self) -> Vec<Vec<u8>> {
        self.versions()
            .iter()
            .map(|version| BASE64_STANDARD.decode(version["key"].as_str().unwrap()).unwrap())
            .collect()
    }
}

fn run(name: &[&str], file: &Path, arguments: &[&str]) {
    let output = Command::new(env!("CARGO_BIN_EXE_kube-envelope"))
        .arg("keyring")
        .args(name)
        .arg(file)
        .args(arguments)
        .args((name == ["destroy"]).then_some("--yes"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{name:?}: {}", String::from_utf8_lossy(&output.stderr));
}
