//! The configuration as it is written: its fields, and what stands where one is left out.

use std::path::PathBuf;

use serde::Deserialize;
use serde_saphyr::Spanned;

use super::listen::DEFAULT_LISTEN;
use super::process::{Audit, HandoverItem, SandboxSettings, SealedStateItem};
use crate::key_stores::{KekItem, TakeoverItem};

/// Default of the socket's path.
pub const DEFAULT_SOCKET: &str = "/run/kube-envelope/kms.sock";

/// Default of the folder of the wrapped DEKs.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/kube-envelope";

/// The file as written. A field that is checked later carries its place.
#[derive(Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct File {
    /// The name of the cluster, bound into every ciphertext: other clusters' data never open here. Never change it while objects are
    /// stored.
    #[cfg_attr(test, schemars(with = "String"))]
    pub(super) cluster: Spanned<String>,
    /// Raised on all nodes, it forces new DEKs under unchanged KEKs. Default: 1.
    #[serde(default = "default_epoch")]
    #[cfg_attr(test, schemars(with = "u64"))]
    pub(super) epoch: Spanned<u64>,
    /// The endpoint in the API server's EncryptionConfiguration: an absolute path, or `unix:///@NAME` for an abstract socket. Default:
    /// `/run/kube-envelope/kms.sock`.
    #[serde(default = "default_socket")]
    #[cfg_attr(test, schemars(with = "String"))]
    pub(super) socket: Spanned<String>,
    /// The mode of the socket's file, in octal and in quotes. Default: `0600`; `0660` with socketGroup, `0666` with allowedUids alone.
    #[serde(default)]
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub(super) socket_mode: Option<Spanned<String>>,
    /// The group of the socket's file: a name of /etc/group, or a number.
    #[serde(default)]
    pub(super) socket_group: Option<String>,
    /// The uids that may connect. Default: whoever may open the socket.
    #[serde(default)]
    pub(super) allowed_uids: Option<Vec<u32>>,
    /// The folder of the wrapped DEKs, a cache that is useless without a KEK. Default: `/var/lib/kube-envelope`.
    #[serde(default = "default_state_dir")]
    #[cfg_attr(test, schemars(with = "PathBuf"))]
    pub(super) state_dir: Spanned<PathBuf>,
    /// The KEKs. Each wraps every DEK, and any one can unwrap it.
    #[cfg_attr(test, schemars(with = "Vec<KekItem>"))]
    pub(super) keks: Spanned<Vec<Spanned<KekItem>>>,
    /// KEKs that only unwrap what they wrapped earlier, while `kube-envelope rotate-keys` moves the objects off them.
    #[serde(default)]
    #[cfg_attr(test, schemars(with = "Vec<KekItem>"))]
    pub(super) retired: Vec<Spanned<KekItem>>,
    /// Opens what other KMS v2 plugins stored under the same provider, until `rotate-keys` has rewritten it.
    #[serde(default)]
    #[cfg_attr(test, schemars(with = "Vec<TakeoverItem>"))]
    pub(super) takeover: Vec<Spanned<TakeoverItem>>,
    /// KEKs that left for good, by their lineage: kept DEKs that only they could unwrap are given up.
    #[serde(default)]
    #[cfg_attr(test, schemars(with = "Vec<String>"))]
    pub(super) forget: Vec<Spanned<String>>,
    /// How long DEKs are used while no KEK can be reached; `0s` for not at all. Default: `24h`.
    #[serde(default = "default_max_offline_age")]
    #[cfg_attr(test, schemars(with = "String"))]
    pub(super) max_offline_age: Spanned<String>,
    /// How often each KEK is asked for its active version and state. Default: `60s`.
    #[serde(default = "default_refresh_interval")]
    #[cfg_attr(test, schemars(with = "String"))]
    pub(super) refresh_interval: Spanned<String>,
    /// How often each KEK is asked to unwrap the active DEK again. Default: `10m`.
    #[serde(default = "default_prove_interval")]
    #[cfg_attr(test, schemars(with = "String"))]
    pub(super) prove_interval: Spanned<String>,
    /// Where `/livez`, `/readyz`, `/metrics` and `/status` are served.
    #[serde(default)]
    pub(super) health: Health,
    /// The audit log. Default: none.
    #[serde(default)]
    pub(super) audit: Option<Audit>,
    /// What the process gives up after its start.
    #[serde(default)]
    pub(super) sandbox: SandboxSettings,
    /// A process that holds the DEKs in memory over a restart (`kube-envelope hold`). Default: none.
    #[serde(default)]
    pub(super) handover: Option<HandoverItem>,
    /// Seals the DEKs in stateDir for a start after a reboot while no KEK answers. Default: none.
    #[serde(default)]
    pub(super) sealed_state: Option<SealedStateItem>,
}

#[derive(Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct Health {
    /// `ADDRESS:PORT`, `unix:///PATH`, or `off`. Default: `127.0.0.1:8380`.
    #[serde(default = "default_listen")]
    #[cfg_attr(test, schemars(with = "String"))]
    pub(super) listen: Spanned<String>,
    /// Names by which it may be asked, besides addresses.
    #[serde(default)]
    pub(super) hosts: Vec<String>,
}

impl Default for Health {
    fn default() -> Self {
        Self { listen: default_listen(), hosts: Vec::new() }
    }
}

fn default_listen() -> Spanned<String> {
    unplaced(DEFAULT_LISTEN.into())
}

fn default_epoch() -> Spanned<u64> {
    unplaced(1)
}
fn default_socket() -> Spanned<String> {
    unplaced(DEFAULT_SOCKET.into())
}
fn default_state_dir() -> Spanned<PathBuf> {
    unplaced(DEFAULT_STATE_DIR.into())
}
fn default_max_offline_age() -> Spanned<String> {
    unplaced("24h".into())
}
fn default_refresh_interval() -> Spanned<String> {
    unplaced("60s".into())
}
fn default_prove_interval() -> Spanned<String> {
    unplaced("10m".into())
}
// Defaults are within their bounds, so this place never reaches a message.
pub(super) fn unplaced<T>(value: T) -> Spanned<T> {
    Spanned { value, referenced: serde_saphyr::Location::UNKNOWN, defined: serde_saphyr::Location::UNKNOWN }
}
