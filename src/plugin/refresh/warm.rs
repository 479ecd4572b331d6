//! Unwraps every kept DEK that is not in memory, ahead of need, so that a later outage finds all of them there.
//!
//! Side by side and in a task of its own: neither a bad DEK nor a slow KEK holds up the others, or the loop.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::stream::{self, StreamExt};
use tokio::task::JoinSet;
use tracing::warn;

use super::adopt::is_final;
use super::coverage::Kept;
use crate::crypto::secret::DekId;
use crate::plugin::service::Service;

/// Unwraps at once; a Decrypt that needs the KEK meanwhile finds room.
const SIDE_BY_SIDE: usize = 4;

/// A DEK that its KEKs refuse is tried again after this; one that they do not answer for, at the next turn.
const AFTER_REFUSAL: Duration = Duration::from_mins(10);

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
    next: Duration,
}

impl Warm {
    /// Begins to unwrap what is missing, unless it is under way.
    pub fn start(&mut self, service: &Arc<Service>) {
        while self.task.try_join_next().is_some() {}
        if !self.task.is_empty() || service.serving().generation().is_none() {
            return;
        }
        let cache = service.cache();
        let (now, kept) = (cache.now(), service.store().kept());
        let absent: Vec<Kept> = kept
            .into_iter()
            .filter(|(id, wrapped)| wrapped.cluster == *service.cluster() && cache.remaining(*id).is_none())
            .collect();
        let due = {
            let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
            missing.retain(|id, _| absent.iter().any(|(absent, _)| absent == id));
            let is_due = |(id, _): &Kept| missing.get(id).is_none_or(|missing| missing.next <= now);
            absent.into_iter().filter(is_due).collect::<Vec<_>>()
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

async fn unwrap_all(service: Arc<Service>, due: Vec<Kept>, missing: Arc<Mutex<BTreeMap<DekId, Missing>>>) {
    stream::iter(due)
        .for_each_concurrent(SIDE_BY_SIDE, async |(id, wrapped)| {
            let unwrapped = service.unwrap(id, (*wrapped).clone()).await;
            let now = service.cache().now();
            let mut missing = missing.lock().unwrap_or_else(PoisonError::into_inner);
            let Err(error) = unwrapped else {
                missing.remove(&id);
                return;
            };
            let before = missing.get(&id);
            let reason = error.to_string();
            if before.is_none() {
                warn!(dek_id = %id, reason, "a kept DEK is not in memory");
            }
            let lost_since = is_final(&error).then(|| before.and_then(|missing| missing.lost_since).unwrap_or(now));
            let next = if error.is_transient() { now } else { now + AFTER_REFUSAL };
            missing.insert(id, Missing { reason, lost_since, next });
        })
        .await;
}
