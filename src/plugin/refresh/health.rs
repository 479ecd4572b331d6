//! What is known of each KEK.

use crate::dek::contacts::Standing;
use crate::kek::Lineage;
use crate::kek::offline::OfflineKey;

/// What `/status` shows about one KEK.
#[derive(Clone, Debug)]
pub struct KekHealth {
    /// Its configured name.
    pub name: String,
    /// What its `key_id`s and stored wraps name it by.
    pub lineage: Lineage,
    /// Whether it only unwraps.
    pub is_retired: bool,
    /// Its active version, as last heard.
    pub version: Option<String>,
    /// When it last unwrapped.
    pub last_contact: Option<jiff::Timestamp>,
    /// What it said when it last failed: to unwrap, or to name its version.
    pub error: Option<String>,
    /// Its versions that kept DEKs need, and what each did with the last one.
    pub versions: Vec<VersionHealth>,
    /// What is known of it where its private half is elsewhere.
    pub offline: Option<OfflineKey>,
}

/// One version of a KEK.
#[derive(Clone, Debug)]
pub struct VersionHealth {
    /// The kind's own text, as [`KekVersion::version`](crate::kek::KekVersion).
    pub version: String,
    /// What it did when it was last asked to unwrap.
    pub standing: Standing,
}
