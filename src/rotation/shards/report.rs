//! What a shard tells the coordinator, and how often.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::rotation::rewrite::Tally;

/// How often each side looks at the orders.
pub const LOOKS_EVERY: Duration = Duration::from_secs(2);

/// Added to the pause between two reports of a shard for each shard: each report makes etcd write, answer and
/// announce about 5 KB, so that all of them together stay near 12 KB a second.
const REPORT_PAUSE_EACH: Duration = Duration::from_millis(400);

/// How long a shard waits between two reports.
pub fn report_interval(shards: usize) -> Duration {
    let shards = u32::try_from(shards).unwrap_or(u32::MAX);
    LOOKS_EVERY.max(REPORT_PAUSE_EACH.saturating_mul(shards))
}

/// What a shard has done since the assignment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Report {
    /// Of which rotation.
    pub rotation: jiff::Timestamp,
    /// Of which assignment.
    pub generation: u64,
    /// So many shares are done, in their order.
    pub shares_done: usize,
    /// Whether all are.
    pub finished: bool,
    /// Requests under way, at most, just now.
    pub concurrency: usize,
    /// What was done so far, by resource.
    pub counts: BTreeMap<String, Counts>,
    /// Why it stopped, if it did.
    pub problem: Option<String>,
}

/// What happened to objects, without their names: whatever was refused is asked again by the coordinator, who names it.
/// Zeros are left out, as there are many of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Counts {
    /// Stored again under the target key.
    #[serde(skip_serializing_if = "is_zero")]
    pub rewritten: u64,
    /// Found stored under the server's key already.
    #[serde(skip_serializing_if = "is_zero")]
    pub fresh: u64,
    /// Stored after all servers had adopted the key: not asked.
    #[serde(skip_serializing_if = "is_zero")]
    pub newer: u64,
    /// Deleted between the list and the patch.
    #[serde(skip_serializing_if = "is_zero")]
    pub gone: u64,
    /// Changed by an admission webhook.
    #[serde(skip_serializing_if = "is_zero")]
    pub altered: u64,
    /// Refused, left since they would be changed, or not readable.
    #[serde(skip_serializing_if = "is_zero")]
    pub refused: u64,
}

impl Counts {
    /// Those of a tally.
    pub fn of(tally: &Tally) -> Self {
        let &Tally { rewritten, fresh, newer, gone, altered, .. } = tally;
        let lists = [tally.refused.len(), tally.withheld.len(), tally.undecryptable.len()];
        let refused = lists.into_iter().fold(0, usize::saturating_add) as u64;
        Self { rewritten, fresh, newer, gone, altered, refused }
    }

    /// The sum of both; a count that would overflow stays at its maximum.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            rewritten: self.rewritten.saturating_add(other.rewritten),
            fresh: self.fresh.saturating_add(other.fresh),
            newer: self.newer.saturating_add(other.newer),
            gone: self.gone.saturating_add(other.gone),
            altered: self.altered.saturating_add(other.altered),
            refused: self.refused.saturating_add(other.refused),
        }
    }

    /// As a tally, which names no object.
    pub fn tally(self) -> Tally {
        let Self { rewritten, fresh, newer, gone, altered, refused: _ } = self;
        Tally { rewritten, fresh, newer, gone, altered, ..Tally::default() }
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "it is what serde passes")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_short_and_all_together_stay_below_20_kib_a_second() {
        let counts = Counts { rewritten: 1_234_567, fresh: 1_234_567, ..Counts::default() };
        let report = |resources: usize| Report {
            rotation: jiff::Timestamp::UNIX_EPOCH,
            generation: 3,
            shares_done: resources,
            finished: false,
            concurrency: 64,
            counts: (0..resources).map(|at| (format!("widgets{at:02}.example.com"), counts)).collect(),
            problem: None,
        };
        let length = serde_json::to_string(&report(12)).unwrap().len();
        assert!(length < 1_000, "{length}");
        let costs = 4_500.0 + f64::from(u32::try_from(length).unwrap());
        for shards in [1_u32, 4, 16, 64, 256] {
            let a_second = f64::from(shards) * costs / report_interval(shards as usize).as_secs_f64();
            assert!(a_second < 20.0 * 1024.0, "{shards} shards: {a_second} bytes a second");
        }
    }
}
