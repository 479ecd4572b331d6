//! What the loop remembers between its turns.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rand::rngs::StdRng;
use tokio::time::Instant;

use super::health::KekHealth;
use super::proofs::Proofs;
use super::recover::Recovery;
use super::settings::Settings;
use super::warm::Warm;
use crate::crypto::secret::{Dek, DekId};
use crate::kek::set::Unidentified;
use crate::kek::{KekCause, KekVersion, Lineage};
use crate::plugin::handover::SealedStateFile;
use crate::plugin::service::Service;
use crate::telemetry::Metrics;

/// Where the plugin's DEKs come from.
pub type MakeDek = Arc<dyn Fn() -> Dek + Send + Sync>;

/// The loop and what it remembers between its turns.
pub struct Refresh {
    pub(super) service: Arc<Service>,
    pub(super) settings: Settings,
    pub(super) metrics: Arc<Metrics>,
    pub(super) health: Arc<ArcSwap<Vec<KekHealth>>>,
    pub(super) make_dek: MakeDek,
    pub(super) proofs: Proofs,
    pub(super) warm: Warm,
    pub(super) recovery: Option<Recovery>,
    /// Where something may have been sealed before a reboot.
    pub(super) sealed: Option<Arc<SealedStateFile>>,
    /// Stored generations of this node that no KEK will unwrap again, as they say.
    pub(super) lost: BTreeSet<DekId>,
    /// Those of them that were told of; again only after something was served.
    pub(super) told_lost: BTreeSet<DekId>,
    /// Until when that is believed while nothing is served.
    pub(super) lost_until: Instant,
    /// The last attempt at a new generation that failed.
    pub(super) attempt: Option<Attempt>,
    /// Why the configuration on disk is not the one in use.
    pub(super) refused: Option<String>,
    /// What the KEKs said when they were asked for their versions.
    pub(super) failures: BTreeMap<Lineage, (KekCause, String)>,
    /// The versions that the KEKs called active, and the KEKs that have just named another one.
    pub(super) named: BTreeMap<Lineage, String>,
    pub(super) renamed: BTreeSet<Lineage>,
    /// KEKs of which it is not known which they are.
    pub(super) unidentified: Unidentified,
    /// Turns in a row without a generation.
    pub(super) waits: u32,
    /// Of the pauses between turns, which differ from node to node.
    pub(super) random: StdRng,
}

/// A failed attempt at a generation of these versions.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) expected: Vec<KekVersion>,
    pub(super) next: Instant,
    pub(super) reason: String,
}

/// The moment that is this far away; one that the clock cannot express counts as reached.
pub(super) fn after(pause: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(pause).unwrap_or(now)
}

/// Whether `at` has come.
pub(super) fn is_over(at: Instant) -> bool {
    at <= Instant::now()
}
