//! An etcd cluster that was searched.

use serde::{Deserialize, Serialize};

use crate::etcd::ClusterId;

/// One etcd cluster of which every value was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ScannedCluster {
    /// The id that its members report.
    pub id: ClusterId,
    /// Where it was asked.
    pub endpoints: Vec<String>,
    /// The revision up to which it was read.
    pub revision: i64,
    /// The oldest revision at which one of its keys was read: another one only where etcd was compacted meanwhile.
    #[serde(default)]
    pub from_revision: i64,
    /// The newest revision at which one of the values was stored.
    #[serde(default)]
    pub newest: i64,
    /// How many keys.
    pub keys: u64,
}
