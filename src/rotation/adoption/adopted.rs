//! What is to be adopted, what was, and what is in the way.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::encryption_config::ProviderName;
use crate::rotation::cluster::canary::Canary;
use crate::rotation::cluster::key_id_hash::KeyIdHash;
use crate::rotation::cluster::ledger::{Account, Breach, Ledger};
use crate::rotation::cluster::resources::Resource;
use crate::rotation::cluster::roster::Doubt;
use crate::rotation::cluster::writer::{StoredUnder, Writer};
use crate::rotation::error::RotationError;
use crate::rotation::keys::active::OnFile;
use crate::rotation::keys::name::{KeyName, KeyNames};

/// How well it is known that every API server stores under the target key, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Evidence {
    /// Every server stored a write of ours under the target key, by its own metrics, and an empty patch went round
    /// all of them twice without a change.
    WriteProof,
    /// Not every server's metrics could be read: time has passed, and empty patches changed nothing.
    Waited,
}

/// What is to be adopted.
#[derive(Debug, Default)]
pub struct Wanted {
    /// The providers that write something.
    pub providers: BTreeSet<ProviderName>,
    /// What is written to see it.
    pub canaries: Vec<Canary>,
    /// What is to be stored under, as far as it is known.
    pub targets: StoredUnder,
    /// Provider → hash of the `key_id` before the KEK was rotated: waiting goes on until another is reported.
    pub former: BTreeMap<ProviderName, KeyIdHash>,
    /// Whether all servers had adopted the targets already: another report then means another rotation.
    pub was_adopted: bool,
    /// Go on with servers whose metrics cannot be read.
    pub accept_unproven: bool,
    /// Encrypted resources: whether each server covers them is seen at an object of theirs.
    pub resources: Vec<Resource>,
    /// Encrypted resource → who writes it.
    pub writers: BTreeMap<String, Writer>,
    /// How prefixes begin that the configuration has some resource written with, by no KMS v2 provider.
    pub elsewhere: BTreeSet<String>,
    /// What keys are called.
    pub names: KeyNames,
    /// What the keyring files of this node open, where keyrings are used.
    pub on_file: Option<OnFile>,
}

impl Wanted {
    /// The name of the key of a provider whose `key_id` has this hash.
    pub fn name(&self, provider: &ProviderName, hash: &KeyIdHash) -> String {
        self.names.show(&KeyName::KeyIdHash { provider: provider.clone(), hash: hash.clone() })
    }
}

/// That every API server stores under the target key.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Adoption {
    /// How well it is known.
    pub evidence: Evidence,
    /// What all servers were seen to store under.
    pub targets: StoredUnder,
    /// Each server, and what it stored under.
    pub servers: Vec<ServerAdoption>,
    /// Providers of which no canary shows the key.
    pub without_canary: Vec<ProviderName>,
    /// When it was seen.
    pub at: jiff::Timestamp,
    /// Since when nothing that voids it has happened, across looks that proved it again.
    #[serde(default = "never")]
    pub since: jiff::Timestamp,
    /// What every server had stored at `since`.
    #[serde(default)]
    pub ledger: Ledger,
    /// What happened before `since` and voided an earlier adoption.
    #[serde(default)]
    pub broken_by: Vec<Breach>,
    /// Servers that may exist and were not met.
    #[serde(default)]
    pub doubts: Vec<Doubt>,
    /// Encrypted resources that were not shown to be covered by every server, since they have no object.
    #[serde(default)]
    pub not_shown: Vec<String>,
}

fn never() -> jiff::Timestamp {
    // In a journal that does not say since when: later than every search, so that none counts.
    jiff::Timestamp::MAX
}

/// What one API server stored a write of ours under, and what it was seen to read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerAdoption {
    /// How the server was reached.
    pub address: String,
    /// Hash of its identity Lease.
    pub identity: Option<String>,
    /// What it stored under.
    pub stored_under: StoredUnder,
    /// Resources that it stored an object of under the target key.
    #[serde(default)]
    pub wrote: Vec<String>,
    /// What it had stored right after; nothing where its metrics cannot be read.
    #[serde(skip)]
    pub account: Option<Account>,
}

/// Why adoption is not complete.
#[derive(Debug)]
pub enum Obstacle {
    /// It may be, a little later.
    NotYet(String),
    /// The plugins report another key than the one this rotation is about.
    TargetChanged(String),
    /// A server cannot read what another one stores: whatever is written to find out may harm it.
    Closed(String),
    /// The metrics of a server cannot be read, so that nothing can be proven.
    Unreadable(String),
    /// Something else went wrong.
    Failed(RotationError),
}

impl From<RotationError> for Obstacle {
    fn from(error: RotationError) -> Self {
        Self::Failed(error)
    }
}

impl From<Obstacle> for RotationError {
    fn from(obstacle: Obstacle) -> Self {
        match obstacle {
            Obstacle::NotYet(why) | Obstacle::Closed(why) | Obstacle::TargetChanged(why) => Self::NotConverged(why),
            Obstacle::Unreadable(why) => Self::NotConverged(format!(
                "{why}; without them nothing is proven (--accept-unproven continues anyway)"
            )),
            Obstacle::Failed(error) => error,
        }
    }
}
