//! What may change while the plugin runs.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::envelope::WrappedDekSet;
use crate::kek::Lineage;
use crate::kek::set::KekSet;
use crate::kek::takeover::Takeovers;

/// While a denial is being confirmed, the KEKs are asked this often.
pub(super) const SOON: Duration = Duration::from_secs(2);

/// What may change while the plugin runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Those that wrap, and the retired ones.
    pub keks: KekSet,
    /// What opens other plugins' data.
    pub takeovers: Takeovers,
    /// KEKs that left for good: what they alone unwrap is not kept any more.
    pub forget: BTreeSet<Lineage>,
    /// The value of `Config::epoch`: part of every `key_id`.
    pub epoch: u64,
    /// The value of `Config::max_offline_age`: how long to serve without any successful unwrap.
    pub max_offline_age: Duration,
    /// The value of `Config::refresh_interval`: how often KEKs name their active version.
    pub refresh_interval: Duration,
    /// The value of `Config::prove_interval`: how often the active generation is unwrapped.
    pub prove_interval: Duration,
}

impl Settings {
    /// Whether somebody has said that nothing needs this DEK any more. Of a KEK whose private half is elsewhere nobody has to:
    /// nothing here could unwrap with it.
    pub(super) fn forgets(&self, wrapped: &WrappedDekSet) -> bool {
        let offline: BTreeSet<_> = self.keks.offline().map(|(_, lineage, _)| lineage).collect();
        let mut lineages = wrapped.lineages();
        wrapped.lineages().any(|lineage| self.forget.contains(&lineage))
            && lineages.all(|lineage| self.forget.contains(&lineage) || offline.contains(&lineage))
    }

    /// How long a DEK may be used after its last unwrap: with `maxOfflineAge: 0s`, two refreshes may be missed.
    pub fn limit(&self) -> Duration {
        self.max_offline_age.max(self.refresh_interval.saturating_mul(2))
    }
}
