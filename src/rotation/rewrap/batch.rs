//! Swaps in batches: as many to a transaction as etcd takes, several transactions under way.

use std::time::{Duration, Instant};

use tokio::task::{JoinError, JoinSet};

use crate::etcd::{EtcdCluster, EtcdError, Swap, Swapped};
use crate::rotation::rewrite::pace::Pace;

/// etcd takes 128 operations in a transaction unless `--max-txn-ops` says otherwise.
const OPERATIONS: usize = 100;
/// And 1.5 MiB in a request unless `--max-request-bytes` says otherwise.
const BYTES: usize = 1 << 20;

/// How often a transaction without an answer is sent. If it was done twice it does no harm: the second attempt finds
/// the keys changed.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(500);

/// What became of a batch.
pub(super) struct Sent {
    pub(super) swaps: Vec<Swap>,
    pub(super) result: Result<Swapped, EtcdError>,
    began: Instant,
    answered: Instant,
}

/// Transactions under way, to one cluster. Those that are dropped may be done all the same: each is whole.
pub(super) struct Batches<'a> {
    cluster: &'a EtcdCluster,
    under_way: JoinSet<Sent>,
}

impl<'a> Batches<'a> {
    pub(super) fn new(cluster: &'a EtcdCluster) -> Self {
        Self { cluster, under_way: JoinSet::new() }
    }

    /// How many are under way.
    pub(super) fn len(&self) -> usize {
        self.under_way.len()
    }

    /// Sends a batch.
    pub(super) fn send(&mut self, swaps: Vec<Swap>) {
        let cluster = self.cluster.clone();
        self.under_way.spawn(async move {
            let mut tries = 1;
            loop {
                let began = Instant::now();
                let result = cluster.swap(&swaps).await;
                if tries == TRIES || !result.as_ref().is_err_and(EtcdError::is_transient) {
                    return Sent { swaps, result, began, answered: Instant::now() };
                }
                tries += 1;
                tokio::time::sleep(PAUSE).await;
            }
        });
    }

    /// The next one that is answered; `None` when none is under way.
    pub(super) async fn next(&mut self, pace: &mut Pace) -> Option<Sent> {
        loop {
            if let Some(sent) = answered(self.under_way.join_next().await?, pace) {
                return Some(sent);
            }
        }
    }

    /// One that is answered already.
    pub(super) fn answered(&mut self, pace: &mut Pace) -> Option<Sent> {
        loop {
            if let Some(sent) = answered(self.under_way.try_join_next()?, pace) {
                return Some(sent);
            }
        }
    }
}

fn answered(joined: Result<Sent, JoinError>, pace: &mut Pace) -> Option<Sent> {
    match joined {
        Ok(sent) => {
            // When it was answered, and not when somebody asks.
            let took = sent.answered.duration_since(sent.began);
            match &sent.result {
                Ok(_) => pace.answered(took, Instant::now()),
                Err(_) => pace.throttled(None, Instant::now()),
            }
            Some(sent)
        }
        // It panicked: what it held is found again by the next pass.
        Err(error) => {
            tracing::error!(%error, "a transaction was lost");
            None
        }
    }
}

/// Cuts swaps into batches that etcd takes.
pub(super) fn batches(swaps: Vec<Swap>) -> Vec<Vec<Swap>> {
    let (mut batches, mut batch, mut bytes) = (Vec::new(), Vec::new(), 0);
    for swap in swaps {
        // The key is in the comparison, too.
        let more = swap.value.len() + 2 * swap.key.len() + 64;
        if !batch.is_empty() && (batch.len() == OPERATIONS || bytes + more > BYTES) {
            batches.push(std::mem::take(&mut batch));
            bytes = 0;
        }
        bytes += more;
        batch.push(swap);
    }
    if !batch.is_empty() {
        batches.push(batch);
    }
    batches
}

/// The two halves of a batch that was not taken whole.
pub(super) fn halves(mut swaps: Vec<Swap>) -> [Vec<Swap>; 2] {
    let second = swaps.split_off(swaps.len() / 2);
    [swaps, second]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn swap(bytes: usize) -> Swap {
        Swap { key: b"/registry/secrets/a/b".to_vec(), replaces: 1, value: vec![0; bytes] }
    }

    #[test]
    fn a_batch_is_what_etcd_takes_and_nothing_is_left_out() {
        let sizes = |swaps: Vec<Swap>| batches(swaps).iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(sizes(vec![swap(2_000); 250]), [100, 100, 50]);
        assert_eq!(sizes(vec![swap(400_000); 5]), [2, 2, 1]);
        assert_eq!(sizes(vec![swap(1_400_000), swap(10)]), [1, 1]);
        assert!(sizes(Vec::new()).is_empty());
        assert_eq!(halves(vec![swap(1); 5]).map(|half| half.len()), [2, 3]);
    }
}
