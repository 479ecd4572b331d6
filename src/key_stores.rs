//! The key stores that can hold a KEK: the registry, and one folder for each kind.
//!
//! A new kind touches this file and `Cargo.toml`, besides its own folder. Kinds do not know each other; what several
//! of them need is in `shared`.

#[cfg(feature = "aws")]
pub mod aws;
#[cfg(feature = "azure")]
pub mod azure;
#[cfg(feature = "gcp")]
pub mod gcp;
pub mod keyring;
#[cfg(feature = "pkcs11")]
pub mod pkcs11;
mod shared;
#[cfg(feature = "transit")]
pub mod transit;

use std::sync::Arc;

use async_trait::async_trait;
use serde::Deserialize;

use crate::kek::guard::GuardedKek;
use crate::kek::set::KekSet;
use crate::kek::{Kek, KekError, RotateKek};
use crate::telemetry::Metrics;

/// Builds every KEK of a configuration: those that wrap, and those that only unwrap.
///
/// # Errors
/// The name of the first KEK that cannot be built, and why.
pub async fn build_set(
    active: &[KekConfig],
    retired: &[KekConfig],
    metrics: &Arc<Metrics>,
) -> Result<KekSet, (String, KekError)> {
    KekSet::new(build_all(active, metrics).await?, build_all(retired, metrics).await?)
}

async fn build_all(configs: &[KekConfig], metrics: &Arc<Metrics>) -> Result<Vec<Arc<GuardedKek>>, (String, KekError)> {
    let mut built = Vec::new();
    for config in configs {
        let kek = config.build().await.map_err(|error| (config.name.clone(), error))?;
        built.push(Arc::new(GuardedKek::new(config.name.clone(), kek, metrics.clone())));
    }
    Ok(built)
}

/// One item of the configuration's `keks:`: a name, and the settings under the name of its kind.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct KekConfig {
    /// How logs, metrics and commands call it. Not stored anywhere; may change.
    pub name: String,
    #[serde(default)]
    keyring: Option<keyring::KeyringConfig>,
    #[cfg(feature = "aws")]
    #[serde(default)]
    aws_kms: Option<aws::AwsConfig>,
    #[cfg(feature = "gcp")]
    #[serde(default)]
    gcp_kms: Option<gcp::GcpConfig>,
    #[cfg(feature = "azure")]
    #[serde(default)]
    azure_key_vault: Option<azure::AzureConfig>,
    #[cfg(feature = "transit")]
    #[serde(default)]
    transit: Option<transit::TransitConfig>,
    #[cfg(feature = "pkcs11")]
    #[serde(default)]
    pkcs11: Option<pkcs11::Pkcs11Config>,
}

impl KekConfig {
    /// The file of a local keyring: the one kind whose versions a person carries from node to node.
    pub fn keyring_file(&self) -> Option<&std::path::Path> {
        self.keyring.as_ref().map(|settings| settings.file.as_path())
    }

    /// The kinds that this item has settings for; a valid one has exactly one.
    pub fn kinds(&self) -> Vec<&'static str> {
        self.settings().map(KekSettings::kind).collect()
    }

    /// The kind of a valid item.
    pub fn kind(&self) -> &'static str {
        self.kinds().first().copied().unwrap_or("none")
    }

    /// Makes the KEK. Reads its files; asks no server unless the kind cannot be constructed without.
    pub async fn build(&self) -> Result<Box<dyn Kek>, KekError> {
        self.only()?.build().await
    }

    /// Makes the part that may rotate, or says how this kind is rotated.
    pub async fn build_rotating(&self) -> Result<Box<dyn RotateKek>, KekError> {
        self.only()?.build_rotating().await
    }

    fn only(&self) -> Result<&dyn KekSettings, KekError> {
        self.settings().next().ok_or_else(|| KekError::misconfigured(format!("KEK {} names no kind", self.name)))
    }

    fn settings(&self) -> impl Iterator<Item = &dyn KekSettings> {
        let all: [Option<&dyn KekSettings>; KINDS.len()] = [
            self.keyring.as_ref().map(|settings| settings as _),
            #[cfg(feature = "aws")]
            self.aws_kms.as_ref().map(|settings| settings as _),
            #[cfg(feature = "gcp")]
            self.gcp_kms.as_ref().map(|settings| settings as _),
            #[cfg(feature = "azure")]
            self.azure_key_vault.as_ref().map(|settings| settings as _),
            #[cfg(feature = "transit")]
            self.transit.as_ref().map(|settings| settings as _),
            #[cfg(feature = "pkcs11")]
            self.pkcs11.as_ref().map(|settings| settings as _),
        ];
        all.into_iter().flatten()
    }
}

/// The settings of one kind: what each file under `kek/` gives to this one.
#[async_trait]
pub trait KekSettings: Send + Sync {
    /// The name of the kind in the configuration.
    fn kind(&self) -> &'static str;

    /// Problems that can be seen without asking a server: (field, problem and fix).
    fn problems(&self) -> Vec<(&'static str, String)>;

    /// What works and could be better: (what is so, what to do). `doctor` tells it.
    fn advice(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    /// Makes the KEK.
    async fn build(&self) -> Result<Box<dyn Kek>, KekError>;

    /// Makes the part that may rotate. [`KekCause::Misconfigured`] with instructions where rotation belongs
    /// elsewhere.
    async fn build_rotating(&self) -> Result<Box<dyn RotateKek>, KekError>;
}

impl KekConfig {
    /// What works and could be better: (what is so, what to do).
    pub fn advice(&self) -> Vec<(String, String)> {
        self.settings().flat_map(KekSettings::advice).collect()
    }

    /// Problems of this item that can be seen without asking a server: (field, problem and fix); the field is empty
    /// where the item itself is meant.
    pub fn problems(&self) -> Vec<(String, String)> {
        match self.kinds().as_slice() {
            [] => vec![(String::new(), format!("KEK {:?} names no kind; add one of: {}", self.name, KINDS.join(", ")))],
            [kind] => self
                .settings()
                .flat_map(KekSettings::problems)
                .map(|(field, problem)| (format!("{kind}.{field}"), problem))
                .collect(),
            several => vec![(
                String::new(),
                format!(
                    "KEK {:?} names several kinds ({}); give each its own item under keks",
                    self.name,
                    several.join(", ")
                ),
            )],
        }
    }
}

/// The kinds that this build knows, as the configuration names them.
pub const KINDS: &[&str] = &[
    "keyring",
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
