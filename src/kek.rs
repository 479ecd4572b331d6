//! What a KEK must do, and the list of kinds there are.
//!
//! A new kind touches this file and `Cargo.toml`, beside its own file under `kek/`.

#[cfg(feature = "aws")]
pub mod aws;
#[cfg(feature = "azure")]
pub mod azure;
pub mod clock;
#[cfg(any(feature = "azure", feature = "gcp", feature = "transit"))]
mod connect;
mod error;
#[cfg(feature = "gcp")]
pub mod gcp;
pub mod guard;
#[cfg(any(feature = "azure", feature = "gcp"))]
mod http;
pub mod keyring;
#[cfg(feature = "pkcs11")]
pub mod pkcs11;
pub mod set;
#[cfg(feature = "transit")]
pub mod transit;

use std::fmt;

use async_trait::async_trait;
use serde::Deserialize;

use self::clock::ServerClock;
pub use self::error::{KekCause, KekError, joined};
use crate::crypto::seal::digest;
use crate::crypto::secret::{Dek, DekId};

/// A key-encryption key kept outside the cluster, with versions of which one is active.
///
/// Constructed means usable: there is no `init`. Implementations make no retries and hold no deadline;
/// [`guard::GuardedKek`] does both for all of them.
#[async_trait]
pub trait Kek: Send + Sync + fmt::Debug {
    /// Which KEK this is, known from its configuration without asking anybody.
    fn lineage(&self) -> Lineage;

    /// When the credentials now in use end, where they do and that is known. Asks nobody.
    fn credentials_expire(&self) -> Option<jiff::Timestamp>;

    /// The clock of the servers that were asked; `None` where none is. Asks nobody.
    fn server_clock(&self) -> Option<&ServerClock>;

    /// Which version is active, and that it is usable.
    async fn version(&self) -> Result<KekVersion, KekError>;

    /// Wraps `dek` under the active version, bound to `context`. The answer names the version that really
    /// wrapped, as the backend reports it in the same answer, or as pinned in the request.
    async fn wrap(&self, dek: &Dek, context: &WrapContext) -> Result<WrappedDek, KekError>;

    /// Unwraps what [`Kek::wrap`] made under any version that is not destroyed, and says which version it was.
    ///
    /// A version string that this kind cannot have made is [`KekCause::UnknownVersion`] without a remote call.
    async fn unwrap(&self, wrapped: &WrappedDek, context: &WrapContext) -> Result<Unwrapped, KekError>;
}

/// A KEK whose rotation this program may start. Held by the `rotate-keys` command only, never by the plugin.
#[async_trait]
pub trait RotateKek: Send + Sync + fmt::Debug {
    /// Makes a new version active and returns it.
    async fn rotate(&self) -> Result<KekVersion, KekError>;
}

/// Fingerprint of a KEK's home: kind and place (account and key id, address-free path, keyring id), 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lineage(pub [u8; 16]);

impl Lineage {
    /// Derives the fingerprint from the kind and the parts that make the home unique.
    pub fn derive(kind: &str, parts: &[&str]) -> Self {
        let mut all: Vec<&[u8]> = vec![b"kube-envelope lineage", kind.as_bytes()];
        all.extend(parts.iter().map(|part| part.as_bytes()));
        let mut lineage = [0; 16];
        lineage.copy_from_slice(&digest(&all)[..16]);
        Self(lineage)
    }
}

impl fmt::Display for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lineage({self})")
    }
}

/// One version of one KEK. `version` is the kind's own text; it holds whatever makes a recreated key another
/// version (creation time, material id), and no secret. At most [`MAX_VERSION_BYTES`].
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct KekVersion {
    /// Which KEK.
    pub lineage: Lineage,
    /// Which version of it.
    pub version: String,
}

/// The longest version text in bytes: it is stored with every object.
pub const MAX_VERSION_BYTES: usize = 256;

/// A DEK under one version of a KEK: what may be stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WrappedDek {
    /// The version that wrapped.
    pub version: KekVersion,
    /// The backend's answer; opaque to all but the KEK that made it.
    pub blob: Vec<u8>,
}

/// An unwrapped DEK and the version that had wrapped it, as the backend reports it.
#[derive(Debug)]
pub struct Unwrapped {
    /// The DEK; whether it is the right one is for the caller to check against its id.
    pub dek: Dek,
    /// The version that had wrapped it.
    pub version: KekVersion,
}

/// What a wrap is bound to, so that it opens nowhere else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrapContext {
    /// The configured name of the cluster.
    pub cluster: String,
    /// The DEK's id.
    pub dek_id: DekId,
}

impl WrapContext {
    /// The context as name and value, for backends that take a map (AWS: encryption context).
    pub fn pairs(&self) -> [(&'static str, String); 3] {
        [("purpose", "kube-envelope dek 1".into()), ("cluster", self.cluster.clone()), ("dek", self.dek_id.to_string())]
    }

    /// The context as bytes, for backends that take associated data: each value of [`WrapContext::pairs`] with
    /// its length before it (8 bytes, big endian).
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (_, value) in self.pairs() {
            bytes.extend((value.len() as u64).to_be_bytes());
            bytes.extend(value.as_bytes());
        }
        bytes
    }
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
