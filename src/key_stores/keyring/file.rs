//! The keyring file: its content, its checks, and how it is written. Knows nothing of KEKs beside their errors.
//!
//! The file is JSON: `{"format":1,"id":…,"versions":[{"id":…,"state":…,"created":…,"key":base64}]}`.
//! It is replaced by rename, never overwritten in place.

use std::fs;
use std::path::Path;

use base64::{Engine, prelude::BASE64_STANDARD};
use rand::CryptoRng;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use crate::crypto::seal::key_fingerprint;
use crate::files;
use crate::kek::{KekCause, KekError, KekVersion, Lineage};
use crate::key_stores::shared::private_file;

/// The content of a keyring file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keyring {
    format: u32,
    id: String,
    versions: Vec<Version>,
}

/// One version in a keyring file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Version {
    /// Fingerprint of the key, hex.
    pub id: String,
    /// What it may be used for.
    pub state: VersionState,
    /// When it was made.
    pub created: jiff::Timestamp,
    pub(super) key: KeyBytes,
}

/// What a version may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VersionState {
    /// Opens, and is not yet used to wrap: being copied to all nodes.
    Pending,
    /// Wraps and opens; exactly one.
    Active,
    /// Opens what it wrapped; nothing is wrapped with it any more.
    Retired,
}

impl std::fmt::Display for VersionState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Retired => "retired",
        })
    }
}

const FORMAT: u32 = 1;

impl Keyring {
    /// A new keyring with one active version.
    pub fn create(rng: &mut impl CryptoRng) -> Self {
        let mut id = [0; 16];
        rng.fill_bytes(&mut id);
        let mut keyring = Self { format: FORMAT, id: hex::encode(id), versions: Vec::new() };
        keyring.add(rng);
        keyring.versions[0].state = VersionState::Active;
        keyring
    }

    /// Reads and checks a keyring file.
    ///
    /// # Errors
    /// [`KekCause::Misconfigured`], naming the file and the fix, when others can read it or it is not a keyring;
    /// [`KekCause::Unavailable`] when it is absent or cannot be read now.
    pub fn read(file: &Path) -> Result<Self, KekError> {
        let name = file.display();
        let text = private_file::read("keyring file", file).map_err(|problem| match problem {
            // Never the advice to create one: another keyring opens nothing that this one has wrapped.
            private_file::Problem::Missing => KekError::unavailable(format!(
                "keyring file {name} does not exist; copy it here from another node or from its backup"
            )),
            private_file::Problem::Other(error) => error,
        })?;
        let keyring: Self = serde_json::from_str(&text).map_err(|error| {
            // serde_json's text can quote the value it stumbled over: give the place alone.
            KekError::misconfigured(format!(
                "{name} is not a keyring file (line {}, column {}); restore it from its backup",
                error.line(),
                error.column()
            ))
        })?;
        keyring.check(file)?;
        Ok(keyring)
    }

    /// Writes a new file; an existing one is never touched.
    ///
    /// # Errors
    /// [`KekCause::Misconfigured`] when the file exists or cannot be written.
    pub fn write_new(&self, file: &Path) -> Result<(), KekError> {
        let name = file.display();
        files::create(file, self.text().as_bytes()).map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => KekError::misconfigured(format!(
                "{name} exists already; choose another name, or add a version with: kube-envelope keyring add {name}"
            )),
            _ => KekError::misconfigured(format!("cannot create {name}")).with_source(error),
        })
    }

    /// Replaces the file in one step: a reader sees the old or the new content, whole.
    ///
    /// # Errors
    /// [`KekCause::Misconfigured`] when the file is not there or cannot be written.
    pub fn replace(&self, file: &Path) -> Result<(), KekError> {
        let failed = |problem: &str, file: &Path, error: std::io::Error| {
            KekError::misconfigured(format!("cannot {problem} {}", file.display())).with_source(error)
        };
        // The path may be a symlink, which renaming over it would replace.
        let target = fs::canonicalize(file).map_err(|error| failed("find", file, error))?;
        files::replace(&target, self.text().as_bytes()).map_err(|error| failed("replace", &target, error))
    }

    /// Adds a pending version and returns its id.
    pub fn add(&mut self, rng: &mut impl CryptoRng) -> String {
        let mut key = KeyBytes(Box::new([0; 32]));
        rng.fill_bytes(key.0.as_mut_slice());
        let id = hex::encode(key_fingerprint(&key.0));
        self.versions.push(Version {
            id: id.clone(),
            state: VersionState::Pending,
            created: jiff::Timestamp::now(),
            key,
        });
        id
    }

    /// Makes a pending version active; the one that was active becomes retired.
    ///
    /// # Errors
    /// No pending version of that id.
    pub fn activate(&mut self, id: &str) -> Result<(), KekError> {
        let state = self.find(id)?.state;
        if state != VersionState::Pending {
            return Err(KekError::misconfigured(format!(
                "version {id} is {state}; only a pending version can be activated (add one with: kube-envelope keyring add)"
            )));
        }
        for version in &mut self.versions {
            if version.id == id {
                version.state = VersionState::Active;
            } else if version.state == VersionState::Active {
                version.state = VersionState::Retired;
            }
        }
        Ok(())
    }

    /// Retires a pending version that shall never become active.
    ///
    /// # Errors
    /// No pending version of that id.
    pub fn retire(&mut self, id: &str) -> Result<(), KekError> {
        if self.find(id)?.state == VersionState::Active {
            return Err(KekError::misconfigured(format!(
                "version {id} is active; activate another one, which retires it"
            )));
        }
        for version in self.versions.iter_mut().filter(|version| version.id == id) {
            version.state = VersionState::Retired;
        }
        Ok(())
    }

    /// Removes a retired version permanently. What only it wrapped is lost: run `verify` first.
    ///
    /// # Errors
    /// No retired version of that id.
    pub fn destroy(&mut self, id: &str) -> Result<(), KekError> {
        let state = self.find(id)?.state;
        if state != VersionState::Retired {
            return Err(KekError::misconfigured(format!(
                "version {id} is {state}; only a retired version can be destroyed"
            )));
        }
        self.versions.retain(|version| version.id != id);
        Ok(())
    }

    /// Takes over the versions of another file of this keyring that are missing here, and says which: those that were not
    /// pending there become retired.
    ///
    /// # Errors
    /// A file of another keyring.
    pub fn merge(&mut self, other: Self) -> Result<Vec<(String, VersionState)>, KekError> {
        if other.id != self.id {
            return Err(KekError::misconfigured(
                "they are files of two keyrings, whose versions do not mix; to open what the other one wrapped, list it \
                 under `retired` in the configuration",
            ));
        }
        let mut added = Vec::new();
        for mut version in other.versions {
            if self.find(&version.id).is_err() {
                if version.state == VersionState::Active {
                    version.state = VersionState::Retired;
                }
                added.push((version.id.clone(), version.state));
                self.versions.push(version);
            }
        }
        self.versions.sort_by_key(|version| version.created);
        Ok(added)
    }

    /// The versions, oldest first.
    pub fn versions(&self) -> &[Version] {
        &self.versions
    }

    /// The keyring's own id: random, the same in all copies of the file.
    pub fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn lineage(&self) -> Lineage {
        Lineage::derive("keyring", &[&self.id])
    }

    pub(super) fn kek_version(&self, version: &Version) -> KekVersion {
        KekVersion { lineage: self.lineage(), version: version.id.clone() }
    }

    pub(super) fn active(&self) -> Result<&Version, KekError> {
        self.versions
            .iter()
            .find(|version| version.state == VersionState::Active)
            .ok_or_else(|| KekError::new(KekCause::Denied, "the keyring has no active version"))
    }

    pub(super) fn find(&self, id: &str) -> Result<&Version, KekError> {
        self.versions
            .iter()
            .find(|version| version.id == id)
            .ok_or_else(|| KekError::new(KekCause::UnknownVersion, format!("the keyring has no version {id:?}")))
    }

    fn check(&self, file: &Path) -> Result<(), KekError> {
        let bad = |problem: String| Err(KekError::misconfigured(format!("{}: {problem}", file.display())));
        if self.format != FORMAT {
            return bad(format!("keyring format {} is not known; this program reads format {FORMAT}", self.format));
        }
        let active = self.versions.iter().filter(|version| version.state == VersionState::Active).count();
        if active != 1 {
            return bad(format!("{active} active versions; a keyring has exactly one"));
        }
        for (index, version) in self.versions.iter().enumerate() {
            // A changed byte in a key would otherwise be found at the first unwrap that fails.
            if version.id != hex::encode(key_fingerprint(&version.key.0)) {
                return bad(format!("version {} does not match its key; restore the file from its backup", version.id));
            }
            if self.versions[..index].iter().any(|earlier| earlier.id == version.id) {
                return bad(format!("version {} is listed twice", version.id));
            }
        }
        Ok(())
    }

    fn text(&self) -> Zeroizing<String> {
        let mut text = serde_json::to_string_pretty(self).expect("a keyring has only string keys");
        text.push('\n');
        Zeroizing::new(text)
    }
}

/// A key in a keyring file: base64 on disk, cleared when dropped, never printed.
pub(super) struct KeyBytes(pub(super) Box<[u8; 32]>);

impl Drop for KeyBytes {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl std::fmt::Debug for KeyBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyBytes(…)")
    }
}

impl Serialize for KeyBytes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = Zeroizing::new(BASE64_STANDARD.encode(self.0.as_slice()));
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for KeyBytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        let bytes = Zeroizing::new(BASE64_STANDARD.decode(text.as_bytes()).map_err(|_| wrong_key())?);
        let mut key = Box::new([0; 32]);
        if bytes.len() != key.len() {
            return Err(wrong_key());
        }
        key.copy_from_slice(&bytes);
        Ok(Self(key))
    }
}

fn wrong_key<E: serde::de::Error>() -> E {
    E::custom("a key is 32 bytes in base64")
}
