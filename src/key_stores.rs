//! The key stores that can hold a KEK: the registry, and one folder for each kind.
//!
//! A new kind touches this file and `Cargo.toml`, besides its own folder: the fields, names and features of all kinds stay
//! together here for that, however many items this makes. Kinds do not know each other; what several
//! of them need is in `shared`.

#[cfg(feature = "aws")]
pub mod aws;
#[cfg(feature = "azure")]
pub mod azure;
mod break_glass;
#[cfg(feature = "gcp")]
pub mod gcp;
pub mod keyring;
mod opening;
#[cfg(feature = "pkcs11")]
pub mod pkcs11;
mod shared;
#[cfg(feature = "transit")]
pub mod transit;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

pub use self::break_glass::{Identities, proof_of};
use self::opening::OpenedOnUse;
pub use self::shared::key_store::{Advice, Disabling, Mistake, Policy, Profile};
use self::shared::key_store::{KeyStore, Parsed, ParsedTakeover};
use crate::kek::guard::GuardedKek;
use crate::kek::offline::OfflineKey;
use crate::kek::set::KekSet;
use crate::kek::takeover::{FormerPlugin, Takeovers};
use crate::kek::{ClusterName, Kek, KekError, KekVersion, RotateKek};
use crate::telemetry::Metrics;

/// Opens every KEK of a configuration: those that wrap, and those that only unwrap.
///
/// # Errors
/// The name of a KEK that is the same key as an earlier one.
pub fn open_set(
    active: &[KekConfig],
    retired: &[KekConfig],
    metrics: &Arc<Metrics>,
) -> Result<KekSet, (String, KekError)> {
    let open = |kek: &KekConfig| Arc::new(open_one(kek, metrics));
    KekSet::new(active.iter().map(open).collect(), retired.iter().map(open).collect())
}

/// Opens one KEK alone.
pub(crate) fn open_one(kek: &KekConfig, metrics: &Arc<Metrics>) -> GuardedKek {
    GuardedKek::new(kek.name.clone(), kek.open(), metrics.clone()).with_offline(kek.offline())
}

/// Everything that opens what other plugins stored.
pub(crate) fn open_takeovers(entries: &[TakeoverConfig], metrics: &Arc<Metrics>) -> Takeovers {
    Takeovers::new(entries.iter().map(|entry| (entry.name.clone(), entry.plugin.clone())).collect(), metrics)
}

/// One item of the configuration's `keks:`, read and checked.
#[derive(Clone, Debug)]
pub struct KekConfig {
    /// How logs, metrics and commands call it. Not stored anywhere; may change.
    pub name: String,
    key_store: Arc<dyn KeyStore>,
}

impl KekConfig {
    /// What works and could be better.
    pub fn advice(&self) -> Vec<Advice> {
        self.key_store.advice()
    }

    /// What the key store says of the key. Asks it.
    ///
    /// # Errors
    /// It does not answer, or does not allow the question.
    pub async fn profile(&self) -> Result<Profile, KekError> {
        self.key_store.profile().await
    }

    /// When the version that is active was made, where the key store tells. Asks it.
    ///
    /// # Errors
    /// It does not answer, or does not allow the question.
    pub async fn made(&self) -> Result<Option<jiff::Timestamp>, KekError> {
        self.key_store.made().await
    }

    /// The least policy that a KEK of this cluster needs at its vendor.
    pub fn policy(&self, cluster: &ClusterName) -> Policy {
        self.key_store.policy(cluster)
    }

    /// Whether it runs a vendor's library, in a process of its own.
    pub(crate) fn hosts_a_library(&self) -> bool {
        self.key_store.hosts_a_library()
    }

    /// The program that it starts for credentials, where the settings name one.
    pub(crate) fn program(&self) -> Option<&Path> {
        self.key_store.program()
    }

    /// The KEK. Whatever it needs and cannot get now (a file, a module, a certificate) makes its calls fail with that
    /// reason, until it can be had.
    pub fn open(&self) -> Box<dyn Kek> {
        Box::new(OpenedOnUse::new(self.key_store.clone()))
    }

    /// Its public half, where the private half is not here: then it wraps, and never unwraps.
    pub fn offline(&self) -> Option<OfflineKey> {
        self.key_store.offline()
    }

    /// The same with its private half, where `identities` has that of the recipient in use.
    pub fn unlocked(&self, identities: &Identities) -> Option<Self> {
        Some(Self { name: self.name.clone(), key_store: self.key_store.unlocked(identities.all())? })
    }

    /// The versions that can be listed without asking a server.
    pub async fn versions_on_file(&self) -> Vec<KekVersion> {
        self.key_store.versions_on_file().await
    }

    /// How an operator disables `version`, now that `active` is in use.
    pub fn disabling(&self, version: &str, active: &str) -> Disabling {
        self.key_store.disabling(version, active)
    }

    /// The part that may rotate.
    ///
    /// # Errors
    /// Whatever keeps the KEK from being opened now.
    pub async fn open_rotating(&self) -> Result<Box<dyn RotateKek>, KekError> {
        self.key_store.open_rotating().await
    }
}

/// One item of the configuration's `keks:` as it is written: a name, and settings under the name of a kind.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(extend("minProperties" = 2, "maxProperties" = 2)))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct KekItem {
    /// How logs, metrics and commands call it.
    pub name: String,
    #[serde(default)]
    keyring: Option<keyring::Settings>,
    #[serde(default)]
    break_glass: Option<break_glass::Settings>,
    #[cfg(feature = "aws")]
    #[serde(default)]
    aws_kms: Option<aws::Settings>,
    #[cfg(feature = "gcp")]
    #[serde(default)]
    gcp_kms: Option<gcp::Settings>,
    #[cfg(feature = "azure")]
    #[serde(default)]
    azure_key_vault: Option<azure::Settings>,
    #[cfg(feature = "transit")]
    #[serde(default)]
    transit: Option<transit::Settings>,
    #[cfg(feature = "pkcs11")]
    #[serde(default)]
    pkcs11: Option<pkcs11::Settings>,
}

/// The kinds that this build knows, as the configuration names them.
pub const KINDS: &[&str] = &[
    "keyring",
    "breakGlass",
    #[cfg(feature = "aws")]
    "awsKms",
    #[cfg(feature = "gcp")]
    "gcpKms",
    #[cfg(feature = "azure")]
    "azureKeyVault",
    #[cfg(feature = "transit")]
    "transit",
    #[cfg(feature = "pkcs11")]
    "pkcs11",
];

/// How the names of environment variables begin by which SDKs are told of files.
pub(crate) const ENVIRONMENT: &[&str] =
    &["AWS_", "AZURE_", "CLOUDSDK_", "CREDENTIALS_DIRECTORY", "GOOGLE_", "IDENTITY_", "SSL_CERT_", "VAULT_"];

impl KekItem {
    /// Checks the settings and turns them into values. Looks at nothing but the settings: whether a file, a token or
    /// a server is there is asked when it is needed, again and again.
    ///
    /// # Errors
    /// Every mistake, with its field and the fix.
    pub fn parse(self) -> Result<KekConfig, Vec<Mistake>> {
        let name = self.name.clone();
        let key_store = only(self.kinds(), |kinds| match kinds {
            [] => format!("KEK {name:?} has no kind; add one of: {}", KINDS.join(", ")),
            _ => format!("KEK {name:?} has several kinds ({}); give each its own item under keks", kinds.join(", ")),
        })?;
        Ok(KekConfig { name, key_store })
    }

    /// The same for a KEK that is to be there while no network is.
    ///
    /// # Errors
    /// As of [`KekItem::parse`], and for a kind that asks a server.
    pub fn parse_local(self) -> Result<KekConfig, Vec<Mistake>> {
        let kek = self.parse()?;
        if kek.key_store.asks_a_server() {
            let problem = "asks a server, which may be away when the node starts; use a kind whose key lies on this \
                           machine: a keyring file, or pkcs11 with a token of this machine";
            return Err(vec![Mistake::new("", problem)]);
        }
        Ok(kek)
    }

    /// The kinds that have settings here; a valid item has exactly one.
    fn kinds(self) -> Vec<(&'static str, Parsed)> {
        let all: [Option<Parsed>; KINDS.len()] = [
            self.keyring.map(keyring::Settings::parse),
            self.break_glass.map(break_glass::Settings::parse),
            #[cfg(feature = "aws")]
            self.aws_kms.map(aws::Settings::parse),
            #[cfg(feature = "gcp")]
            self.gcp_kms.map(gcp::Settings::parse),
            #[cfg(feature = "azure")]
            self.azure_key_vault.map(azure::Settings::parse),
            #[cfg(feature = "transit")]
            self.transit.map(transit::Settings::parse),
            #[cfg(feature = "pkcs11")]
            self.pkcs11.map(pkcs11::Settings::parse),
        ];
        KINDS.iter().copied().zip(all).filter_map(|(kind, parsed)| Some((kind, parsed?))).collect()
    }
}

/// One item of the configuration's `takeover:`, read and checked.
#[derive(Clone, Debug)]
pub struct TakeoverConfig {
    /// How logs, metrics and commands call it.
    pub name: String,
    plugin: Arc<dyn FormerPlugin>,
}

impl TakeoverConfig {
    /// What opens what that plugin stored.
    pub fn plugin(&self) -> &dyn FormerPlugin {
        &*self.plugin
    }
}

/// One item of the configuration's `takeover:` as it is written: a name, and settings under the name of a plugin.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(extend("minProperties" = 2, "maxProperties" = 2)))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct TakeoverItem {
    /// How logs, metrics and commands call it.
    pub name: String,
    #[cfg(feature = "aws")]
    #[serde(default)]
    aws_encryption_provider: Option<aws::TakeoverSettings>,
    #[cfg(feature = "gcp")]
    #[serde(default)]
    k8s_cloudkms_plugin: Option<gcp::TakeoverSettings>,
    #[cfg(feature = "azure")]
    #[serde(default)]
    kubernetes_kms: Option<azure::TakeoverSettings>,
    #[cfg(feature = "transit")]
    #[serde(default)]
    vault_kubernetes_kms: Option<transit::TakeoverSettings>,
}

/// The plugins whose data this build opens, as the configuration names them.
pub const FORMER_PLUGINS: &[&str] = &[
    #[cfg(feature = "aws")]
    "awsEncryptionProvider",
    #[cfg(feature = "gcp")]
    "k8sCloudkmsPlugin",
    #[cfg(feature = "azure")]
    "kubernetesKms",
    #[cfg(feature = "transit")]
    "vaultKubernetesKms",
];

impl TakeoverItem {
    /// Checks the settings and turns them into values, as [`KekItem::parse`] does. `taken` is what the entries before it
    /// take, each with its entry's name; what this one takes is added.
    ///
    /// # Errors
    /// Every mistake, with its field and the fix.
    pub fn parse(self, taken: &mut BTreeMap<String, String>) -> Result<TakeoverConfig, Vec<Mistake>> {
        let name = self.name.clone();
        let plugin = only(self.plugins(), |plugins| match plugins {
            [] => format!("{name:?} names no plugin; add one of: {}", FORMER_PLUGINS.join(", ")),
            _ => format!("{name:?} names several plugins ({}); give each its own item", plugins.join(", ")),
        })?;
        let mut mistakes = Vec::new();
        for mark in plugin.marks() {
            if let Some(other) = taken.insert(mark.clone(), name.clone()) {
                mistakes.push(Mistake::new("", format!("takes the same as {other:?} ({mark}); keep one of them")));
            }
        }
        if mistakes.is_empty() { Ok(TakeoverConfig { name, plugin }) } else { Err(mistakes) }
    }

    fn plugins(self) -> Vec<(&'static str, ParsedTakeover)> {
        let all: [Option<ParsedTakeover>; FORMER_PLUGINS.len()] = [
            #[cfg(feature = "aws")]
            self.aws_encryption_provider.map(aws::TakeoverSettings::parse),
            #[cfg(feature = "gcp")]
            self.k8s_cloudkms_plugin.map(gcp::TakeoverSettings::parse),
            #[cfg(feature = "azure")]
            self.kubernetes_kms.map(azure::TakeoverSettings::parse),
            #[cfg(feature = "transit")]
            self.vault_kubernetes_kms.map(transit::TakeoverSettings::parse),
        ];
        // Paired by their order. The compiler holds the two lists to the same length, whatever features are on.
        FORMER_PLUGINS.iter().copied().zip(all).filter_map(|(field, parsed)| Some((field, parsed?))).collect()
    }
}

/// The value of the one field that is set; of all that are set, `problem` says what is wrong with so many or so few.
fn only<T>(
    mut set: Vec<(&'static str, Result<T, Vec<Mistake>>)>,
    problem: impl FnOnce(&[&str]) -> String,
) -> Result<T, Vec<Mistake>> {
    match (set.pop(), set.as_slice()) {
        (Some((field, parsed)), []) => parsed.map_err(|mistakes| Mistake::within(field, mistakes)),
        (last, others) => {
            let fields: Vec<&str> = others.iter().chain(&last).map(|(field, _)| *field).collect();
            Err(vec![Mistake::new("", problem(&fields))])
        }
    }
}

/// What an error answer, whatever it is, means to each kind and each of its questions. For the fuzz target.
#[doc(hidden)]
pub fn meanings(status: u16, retry_after: Option<&str>, body: &[u8]) -> Vec<(&'static str, Vec<KekError>)> {
    // A build without these kinds has nobody to ask.
    let _ = (status, retry_after, body);
    vec![
        #[cfg(feature = "aws")]
        ("awsKms", aws::meanings(status, retry_after, body)),
        #[cfg(feature = "gcp")]
        ("gcpKms", gcp::meanings(status, retry_after, body)),
        #[cfg(feature = "azure")]
        ("azureKeyVault", azure::meanings(status, retry_after, body)),
        #[cfg(feature = "transit")]
        ("transit", transit::meanings(status, retry_after, body)),
    ]
}

/// Hosts the library of a kind in this process, for the plugin that started it: see `kube-envelope key-store-host`.
///
/// # Errors
/// A kind that needs no host, or a connection that broke.
pub(crate) fn host(kind: &str) -> std::io::Result<()> {
    match kind {
        #[cfg(feature = "pkcs11")]
        "pkcs11" => pkcs11::host::serve(),
        other => Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, format!("{other} needs no host"))),
    }
}
