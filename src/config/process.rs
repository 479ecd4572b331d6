//! What lies around the serving itself: the audit log, what the process gives up, and who holds its keys over a restart or
//! a reboot.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde_saphyr::Spanned;

use crate::key_stores::{KekConfig, KekItem};

/// The audit log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditSettings {
    /// Where records are appended; absolute. Its `.head` file lies beside it.
    pub file: PathBuf,
    /// Whether a key is used only if that is recorded.
    pub required: bool,
}

/// What the process gives up after its start.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct SandboxSettings {
    /// Whether it gives up anything.
    pub enabled: bool,
    /// Files and folders that it reads, besides those that are known to be needed.
    pub read_paths: Vec<PathBuf>,
}

impl Default for SandboxSettings {
    fn default() -> Self {
        Self { enabled: true, read_paths: Vec::new() }
    }
}

#[derive(Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct HandoverItem {
    /// The socket of the process that holds them.
    #[cfg_attr(test, schemars(with = "PathBuf"))]
    pub(super) socket: Spanned<PathBuf>,
}

/// How the keys in memory outlive a reboot of the node.
#[derive(Clone, Debug)]
pub struct SealedStateSettings {
    /// The KEK that they are sealed under: one of this machine, which wraps nothing else.
    pub kek: KekConfig,
    /// How long they may be used after a KEK unwrapped last.
    pub max_age: Duration,
}

#[derive(Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct SealedStateItem {
    /// The KEK that they are sealed under: a kind whose key lies on this machine, and a key that is used for nothing else.
    #[cfg_attr(test, schemars(with = "KekItem"))]
    pub(super) kek: Spanned<KekItem>,
    /// How long they may be used after a KEK unwrapped last. Default: `maxOfflineAge`.
    #[serde(default)]
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub(super) max_age: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct Audit {
    /// Where it is written; an absolute path.
    #[cfg_attr(test, schemars(with = "PathBuf"))]
    pub(super) file: Spanned<PathBuf>,
    /// Whether no key is used unrecorded: a full disk then stops writes.
    #[serde(default)]
    pub(super) required: bool,
}
