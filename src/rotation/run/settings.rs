//! What a rotation is run with, as the command line and the journal's intent say.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::config::Config;
use crate::etcd::EtcdAccess;
use crate::rotation::cluster::Access;
use crate::rotation::cluster::resources::Resource;
use crate::rotation::journal::intent::Method;
use crate::rotation::rewrap::Rehearsal;

/// What a rotation is run with.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub struct Settings {
    /// How the cluster is reached.
    pub access: Access,
    /// The configuration file of the API servers.
    pub encryption_config: Option<PathBuf>,
    /// How etcd is reached, if it is.
    pub etcd: Option<EtcdAccess>,
    /// The API servers' prefix in etcd.
    pub etcd_prefix: String,
    /// The configuration of kube-envelope, where it is the plugin and the configuration was given or found.
    pub plugin: Option<Config>,
    /// Whether that configuration was named, and not merely found in its usual place.
    pub plugin_named: bool,
    /// Whether to rotate its KEKs first.
    pub rotate_kek: bool,
    /// Keys that are to be shown to be unused besides those that are found: `KEK`, `KEK:VERSION`, or a `key_id`.
    pub former: Vec<String>,
    /// The target, where it is known beforehand.
    pub key_id: Option<String>,
    /// Where the journal is.
    pub journal: PathBuf,
    /// Whether Events are rewritten, too.
    pub include_events: bool,
    /// Whether to go on where the servers' metrics cannot be read.
    pub accept_unproven: bool,
    /// Requests a second, at most.
    pub rate: Option<f64>,
    /// Requests at once, at most.
    pub concurrency: usize,
    /// How objects are stored again.
    pub method: Method,
    /// Tried before a verdict about values that were stored past the API servers.
    pub rehearsal: Option<Arc<dyn Rehearsal>>,
    /// How many processes rewrite, where it is not this one.
    pub shards: Option<usize>,
    /// How long to wait after the last rewrite.
    pub settle: Duration,
    /// How long adoption may take.
    pub adoption_timeout: Duration,
    /// How often adoption is checked again.
    pub agreement_interval: Duration,
    /// How long an API server lets a write be under way.
    pub request_timeout: Duration,
    /// Whether etcd is compacted where old revisions are in the way.
    pub compact: bool,
    /// Resources that are not rewritten.
    pub skip: Vec<String>,
    /// Resources whose objects may be changed by being stored again; `*` for all.
    pub allow_changes: Vec<String>,
    /// Snapshots of etcd, one for each cluster.
    pub snapshot_files: Vec<PathBuf>,
    /// Backups that must stay readable.
    pub backups: Vec<PathBuf>,
    /// When a snapshot of etcd was taken.
    pub snapshot_taken: Option<jiff::Timestamp>,
    /// A command that takes a snapshot of etcd.
    pub snapshot_command: Option<String>,
}

impl Settings {
    /// Whether objects of this resource may be changed by being stored again.
    pub fn may_change(&self, resource: &Resource) -> bool {
        self.allow_changes.iter().any(|allowed| allowed == "*" || *allowed == resource.to_string())
    }
}
