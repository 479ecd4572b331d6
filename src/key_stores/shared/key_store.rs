//! What each kind gives to the registry, and what it says about settings that cannot work or could be better.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;

use crate::crypto::recipient::Identity;
use crate::kek::offline::OfflineKey;
use crate::kek::takeover::FormerPlugin;
use crate::kek::{ClusterName, Kek, KekError, KekVersion, Lineage, RotateKek};

/// A key in a key store, as the configuration describes it: what each kind gives to the registry.
#[async_trait]
pub trait KeyStore: fmt::Debug + Send + Sync {
    /// The value of [`Kek::lineage`], known from the settings alone.
    fn lineage(&self) -> Lineage;

    /// What [`KeyStore::lineage`] gives where the settings alone do not tell, and a file that does cannot be read.
    fn unknown_lineage(&self) -> Option<Lineage> {
        None
    }

    /// Whether it is a server that is asked, which has a clock of its own.
    fn asks_a_server(&self) -> bool {
        true
    }

    /// Whether it runs a vendor's library, in a process of its own.
    fn hosts_a_library(&self) -> bool {
        false
    }

    /// The program that it starts for credentials, where the settings name one.
    fn program(&self) -> Option<&Path> {
        None
    }

    /// Its public half, where the private half is not here: then it wraps, and never unwraps.
    fn offline(&self) -> Option<OfflineKey> {
        None
    }

    /// The same with its private half, where `identities` has that of the recipient in use.
    fn unlocked(&self, _identities: &[Arc<Identity>]) -> Option<Arc<dyn KeyStore>> {
        None
    }

    /// What works and could be better.
    fn advice(&self) -> Vec<Advice> {
        Vec::new()
    }

    /// What the key store says of the key that an operator should know. Asks it, with no more rights than
    /// [`KeyStore::policy`] gives, unless that is said in the kind's own words.
    async fn profile(&self) -> Result<Profile, KekError>;

    /// When the version that is active was made, where the key store tells exactly that. Asks it as [`KeyStore::profile`] does.
    async fn made(&self) -> Result<Option<jiff::Timestamp>, KekError> {
        Ok(self.profile().await?.created)
    }

    /// The least policy that the KEK needs at its vendor, for a cluster of that name.
    fn policy(&self, cluster: &ClusterName) -> Policy;

    /// How an operator disables `version`, now that `active` is in use.
    fn disabling(&self, version: &str, active: &str) -> Disabling;

    /// The versions that can be listed without asking a server.
    async fn versions_on_file(&self) -> Vec<KekVersion> {
        Vec::new()
    }

    /// Reads the files that the KEK is made of. Asks no server.
    async fn open(&self) -> Result<Box<dyn Kek>, KekError>;

    /// The same for the part that may rotate.
    async fn open_rotating(&self) -> Result<Box<dyn RotateKek>, KekError>;
}

/// What settings become: the key store's values, or every mistake at once.
pub type Parsed = Result<Arc<dyn KeyStore>, Vec<Mistake>>;

/// The same for an entry of `takeover:`.
pub type ParsedTakeover = Result<Arc<dyn FormerPlugin>, Vec<Mistake>>;

/// What a vendor must allow, in the vendor's own words: to be pasted there. `policy` prints it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Where it belongs, and to whom it is given.
    pub remark: String,
    /// For the plugin.
    pub plugin: String,
    /// What `rotate-keys --rotate-kek` needs, for the user that runs it and not for the plugin; none where it needs nothing.
    pub rotation: Option<String>,
}

/// How an operator disables a version of a KEK. This program never does it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Disabling {
    /// By this command of the vendor.
    Command(String),
    /// Not by a command that is the same everywhere; in words.
    ByHand(String),
}

/// What a key store says of a key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// When the active version was made, where that is known.
    pub created: Option<jiff::Timestamp>,
    /// The one place that the key lies in, where its vendor has several.
    pub only_in: Option<String>,
    /// What could be better.
    pub advice: Vec<Advice>,
}

/// What works and could be better; `doctor` shows it as advice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advice {
    /// What was found.
    pub finding: String,
    /// What to do about it.
    pub advice: String,
}

impl Advice {
    #[cfg_attr(
        not(any(feature = "aws", feature = "azure", feature = "gcp", feature = "pkcs11", feature = "transit")),
        expect(dead_code)
    )]
    pub(in crate::key_stores) fn new(finding: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { finding: finding.into(), advice: advice.into() }
    }
}

/// A value of the configuration that cannot work, found without looking beyond the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The field, as a path below the item; empty where the item itself is meant.
    pub field: String,
    /// What is wrong, and the fix.
    pub problem: String,
}

impl Mistake {
    pub(in crate::key_stores) fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { field: field.into(), problem: problem.into() }
    }

    /// Mistakes in what is written under `part`.
    pub(in crate::key_stores) fn within(part: &str, mistakes: Vec<Self>) -> Vec<Self> {
        let within = |Self { field, problem }| Self::new(format!("{part}.{field}"), problem);
        mistakes.into_iter().map(within).collect()
    }
}
