//! What may change while the plugin runs.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::kek::Lineage;
use crate::kek::set::KekSet;
use crate::kek::takeover::Takeovers;

/// While a denial is being confirmed, the KEKs are asked this often.
pub(super) const SOON: Duration = Duration::from_secs(2);

/// What may change while the plugin runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The KEKs.
    pub keks: KekSet,
    /// What opens other plugins' data.
    pub takeovers: Takeovers,
    /// KEKs that left for good: what they alone unwrap is not kept any more.
    pub forget: BTreeSet<Lineage>,
    /// See `Config::epoch`.
    pub epoch: u64,
    /// See `Config::max_offline_age`.
    pub max_offline_age: Duration,
    /// See `Config::refresh_interval`.
    pub refresh_interval: Duration,
    /// See `Config::prove_interval`.
    pub prove_interval: Duration,
}

impl Settings {
    /// How long a DEK may be used after its last unwrap: with `maxOfflineAge: 0s`, two refreshes may be missed.
    pub fn limit(&self) -> Duration {
        self.max_offline_age.max(self.refresh_interval.saturating_mul(2))
    }
}
