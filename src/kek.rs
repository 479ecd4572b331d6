//! The contract: what a KEK must do, and what is built around every one of them.
//!
//! Knows no key store. Deadline, retries and breaker are in [`guard`]; all configured KEKs together are a [`set::KekSet`].
//! Every kind of KEK implements what is public here, and every user of a KEK sees no more; so it is all in one place.

pub mod clock;
mod cluster_name;
mod error;
pub mod guard;
pub mod offline;
pub mod set;
pub mod takeover;

use std::fmt;

use async_trait::async_trait;

use self::clock::ServerClock;
pub use self::cluster_name::{ClusterName, NotAClusterName};
pub use self::error::{KekCause, KekError};
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

    /// Whether that is the name that its wraps have. A KEK that is a file does not know before it was read once; until then
    /// its lineage tells it from the other ones that are configured, and from nothing else. Asks nobody.
    fn is_identified(&self) -> bool {
        true
    }

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

    /// What the operator must do on the other nodes before [`RotateKek::rotate`], where nodes have copies of the KEK
    /// and not a server in common. `None` when it is done.
    async fn missing_preparation(&self) -> Result<Option<String>, KekError> {
        Ok(None)
    }

    /// What the operator must do on the other nodes after it.
    fn remaining_work(&self) -> Option<String> {
        None
    }
}

/// Fingerprint of a KEK's home: kind and place (account and key id, address-free path, keyring id), 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lineage(pub [u8; 16]);

impl Lineage {
    /// Derives the fingerprint from the kind and the parts that make the home unique.
    pub fn derive(kind: &str, parts: &[&str]) -> Self {
        // What it is a digest of comes first, so that no digest for another purpose can be the same.
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
    /// The KEK, by what it is and not by its configured name.
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

/// The DEK that a key store unwrapped.
///
/// # Errors
/// [`KekCause::Rejected`] for anything but 32 bytes.
pub fn unwrapped_dek(bytes: impl AsMut<[u8]>) -> Result<Dek, KekError> {
    Dek::from_unwrapped(bytes).ok_or_else(|| KekError::new(KekCause::Rejected, "the unwrapped DEK is not 32 bytes"))
}

/// What a wrap is bound to, so that it opens nowhere else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrapContext {
    /// As configured under `cluster`; the same text on all nodes.
    pub cluster: ClusterName,
    /// The DEK's id.
    pub dek_id: DekId,
}

impl WrapContext {
    /// The context as name and value, for backends that take a map (AWS: encryption context).
    pub fn pairs(&self) -> [(&'static str, String); 3] {
        [
            ("purpose", "kube-envelope dek 1".into()),
            ("cluster", self.cluster.to_string()),
            ("dek", self.dek_id.to_string()),
        ]
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
