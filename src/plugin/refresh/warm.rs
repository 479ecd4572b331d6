//! Unwraps every kept DEK that is not in memory, ahead of need, so that a later outage finds all of them there.
//!
//! Side by side and in a task of its own: neither a bad DEK nor a slow KEK holds up the others, or the loop.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::stream::{self, StreamExt};
use tokio::task::JoinSet;
use tracing::warn;

use super::coverage::Kept;
use crate::crypto::secret::DekId;
use crate::dek::contacts::Standing;
use crate::kek::KekVersion;
use crate::plugin::service::{Service, ServiceError};

/// Unwraps at once; a Decrypt that needs the KEK meanwhile finds room.
const SIDE_BY_SIDE: usize = 4;

/// Of DEKs that were refused, one of each set of versions is tried at each turn, for this many sets at most.
const SETS_AT_ONCE: usize = 4;

/// The task, and what it did not bring into memory.
#[derive(Debug, Default)]
pub(super) struct Warm {
    task: JoinSet<()>,
    missing: Arc<Mutex<BTreeMap<DekId, Missing>>>,
}

/// Why a kept DEK is not in memory.
#[derive(Clone, Debug)]
pub(super) struct Missing {
    /// What its KEKs said.
    pub reason: String,
    /// Since when they have said that they never will unwrap it; `None` while they may.
    pub lost_since: Option<Duration>,
    versions: BTreeSet<KekVersion>,
    /// When it was refused. `None` where its KEKs did not answer, or have unwrapped another one since.
    refused: Option<Duration>,
}

impl Warm {
    /// Begins to unwrap what is missing, unless it is under way.
    pub fn start(&mut self, service: &Arc<Service>) {
        // The set keeps what has ended until it is asked for it.
        while self.task.try_join_next().is_some() {}
        if !self.task.is_empty() {
            return;
        }
        let (cache, kept) = (service.cache(), service.store().kept());
        let absent: Vec<Kept> = kept
            .into_iter()
            .filter(|(id, wrapped)| wrapped.cluster == *service.cluster() && cache.remaining(*id).is_none())
            .collect();
        let due = {
            let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
            // What a Decrypt has unwrapped since is not missing any more.
            missing.retain(|id, _| absent.iter().any(|(absent, _)| absent == id));
            due(absent, &missing)
        };
        if !due.is_empty() {
            self.task.spawn(unwrap_all(service.clone(), due, self.missing.clone()));
        }
    }

    /// What was tried, and is not in memory.
    pub fn missing(&self) -> BTreeMap<DekId, Missing> {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Everything that may have been unwrapped only not yet, and of what was refused the one that waits longest, for each set
/// of versions: once it is unwrapped, the others of its set are due as well.
fn due(absent: Vec<Kept>, missing: &BTreeMap<DekId, Missing>) -> Vec<Kept> {
    let mut due = Vec::new();
    let mut refused: BTreeMap<BTreeSet<KekVersion>, (Duration, Kept)> = BTreeMap::new();
    for kept in absent {
        match missing.get(&kept.0).and_then(|missing| missing.refused) {
            None => due.push(kept),
            Some(at) => {
                let first = refused.entry(kept.1.versions().cloned().collect()).or_insert_with(|| (at, kept.clone()));
                if at < first.0 {
                    *first = (at, kept);
                }
            }
        }
    }
    let mut refused: Vec<_> = refused.into_values().collect();
    refused.sort_by_key(|(at, _)| *at);
    due.extend(refused.into_iter().take(SETS_AT_ONCE).map(|(_, kept)| kept));
    due
}

async fn unwrap_all(service: Arc<Service>, due: Vec<Kept>, missing: Arc<Mutex<BTreeMap<DekId, Missing>>>) {
    stream::iter(due)
        .for_each_concurrent(SIDE_BY_SIDE, async |(id, wrapped)| {
            let unwrapped = service.unwrap(id, (*wrapped).clone()).await;
            let (now, versions) = (service.cache().now(), wrapped.versions().cloned().collect());
            let mut missing = missing.lock().unwrap_or_else(PoisonError::into_inner);
            let Err(error) = unwrapped else {
                missing.remove(&id);
                // Its KEK unwraps again, so whatever it refused before is worth another attempt at once.
                for other in missing.values_mut().filter(|other| other.versions == versions) {
                    other.refused = None;
                }
                return;
            };
            let before = missing.get(&id);
            let reason = error.to_string();
            // Those of a version that is gone are as many as the nodes and their starts: the first is told, all are counted.
            if !missing.values().any(|other| other.versions == versions) {
                warn!(dek_id = %id, reason, "a kept DEK is not in memory");
            }
            let lost_since = is_final(&error).then(|| before.and_then(|missing| missing.lost_since).unwrap_or(now));
            let refused = (!error.is_transient()).then_some(now);
            missing.insert(id, Missing { reason, lost_since, versions, refused });
        })
        .await;
}

/// Whether asking again cannot help: the data or the version are not what a KEK has.
pub(super) fn is_final(error: &ServiceError) -> bool {
    match error {
        ServiceError::Unwrap { source, .. } => Standing::from(source.cause()) == Standing::Lost,
        _ => false,
    }
}
