//! Writing to etcd: values are put in place of others, and only where nobody else wrote in between.

use tonic::{Code, Status};

use super::cluster::EtcdCluster;
use super::connect::EtcdError;
use super::proto::compare::{CompareResult, CompareTarget, TargetUnion};
use super::proto::kv_client::KvClient;
use super::proto::request_op::Request;
use super::proto::{Compare, PutRequest, RequestOp, TxnRequest};

/// A value to be put in place of another one.
#[derive(Clone, Debug)]
pub struct Swap {
    /// The whole key, prefix included.
    pub key: Vec<u8>,
    /// The revision at which the value was stored that is to be replaced.
    pub replaces: i64,
    /// The new value.
    pub value: Vec<u8>,
}

/// What became of several swaps, which are done together or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swapped {
    /// All are done, each key with the lease that it had, at this revision.
    Done(i64),
    /// None is done: a key was written or deleted meanwhile.
    Overtaken,
    /// None is done: they are too many, or too long, for one transaction.
    TooMany,
}

impl EtcdCluster {
    /// Puts all values in place, in one transaction, if every key is still as it was.
    ///
    /// Where a member breaks off, another one is asked; if the first had done it all the same, the answer is
    /// [`Swapped::Overtaken`], by ourselves.
    ///
    /// # Errors
    /// [`EtcdError::Refused`] if etcd answers with an error: without the right to write, or without room.
    pub async fn swap(&self, swaps: &[Swap]) -> Result<Swapped, EtcdError> {
        let request = transaction(swaps);
        let mut last = Status::unavailable("the cluster has no member");
        for channel in self.channels() {
            match KvClient::new(channel).txn(request.clone()).await {
                Ok(answer) if answer.get_ref().succeeded => {
                    let header = answer.into_inner().header.unwrap_or_default();
                    return Ok(Swapped::Done(header.revision));
                }
                // A transaction that is repeated after its answer was lost ends here as well: the revision has changed
                // by its own hand.
                Ok(_) => return Ok(Swapped::Overtaken),
                Err(status) if is_too_much(&status) && swaps.len() > 1 => return Ok(Swapped::TooMany),
                Err(status) if matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Unknown) => {
                    last = status;
                }
                Err(status) => return Err(EtcdError::Refused(Box::new(status))),
            }
        }
        Err(EtcdError::Refused(Box::new(last)))
    }
}

fn transaction(swaps: &[Swap]) -> TxnRequest {
    let unchanged = |swap: &Swap| Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Mod.into(),
        key: swap.key.clone(),
        target_union: Some(TargetUnion::ModRevision(swap.replaces)),
    };
    let put = |swap: &Swap| RequestOp {
        request: Some(Request::RequestPut(PutRequest {
            key: swap.key.clone(),
            value: swap.value.clone(),
            // Events and others with a lease keep theirs; a put would take it away.
            ignore_lease: true,
        })),
    };
    TxnRequest { compare: swaps.iter().map(unchanged).collect(), success: swaps.iter().map(put).collect() }
}

/// etcd's limits: `--max-txn-ops` and `--max-request-bytes`.
fn is_too_much(status: &Status) -> bool {
    let words = status.message();
    words.contains("too many operations") || words.contains("request is too large") || words.contains("larger than max")
}
