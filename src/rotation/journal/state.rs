//! [`State`]: where a rotation stands.

use serde::{Deserialize, Serialize};

/// Where a rotation stands. Each step may be begun again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum State {
    /// Which API servers, which resources, how many objects.
    Plan,
    /// May we, and would anything be refused?
    Preflight,
    /// Make the new KEK version active.
    RotateKek,
    /// Until every API server stores under the target key.
    AwaitAdoption,
    /// Note the revision from which on everything is stored under the target key.
    Agree,
    /// Make the API servers store every older object again.
    Rewrite,
    /// Again for what appeared meanwhile, until nothing changes.
    Resweep,
    /// Look for leftovers by other means.
    Verify,
    /// Until old revisions and continue tokens are gone.
    Settle,
    /// Is there a snapshot of etcd without the old key?
    Snapshot,
    /// The verdict is given.
    Done,
    /// Given up; both keys are still readable.
    Aborted,
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Plan => "plan",
            Self::Preflight => "preflight",
            Self::RotateKek => "rotate KEK",
            Self::AwaitAdoption => "await adoption",
            Self::Agree => "agree",
            Self::Rewrite => "rewrite",
            Self::Resweep => "resweep",
            Self::Verify => "verify",
            Self::Settle => "settle",
            Self::Snapshot => "snapshot",
            Self::Done => "done",
            Self::Aborted => "aborted",
        })
    }
}
