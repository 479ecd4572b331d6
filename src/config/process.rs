//! What lies around the serving itself: the audit log, what the process gives up, and who holds its keys over a restart.

use std::path::PathBuf;

use serde::Deserialize;
use serde_saphyr::Spanned;

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
