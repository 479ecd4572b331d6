//! [`Record`]: one key of etcd with what is stored there.

use super::proto::KeyValue;

/// A key with what is stored there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The whole key, prefix included; not always UTF-8.
    pub key: Vec<u8>,
    /// What is stored.
    pub value: Vec<u8>,
    /// The revision at which the key was created.
    pub create_revision: i64,
    /// The revision at which this value was stored.
    pub mod_revision: i64,
    /// The lease after whose end etcd removes the key; 0 for none.
    pub lease: i64,
}

impl From<KeyValue> for Record {
    fn from(pair: KeyValue) -> Self {
        let KeyValue { key, value, create_revision, mod_revision, lease, .. } = pair;
        Self { key, value, create_revision, mod_revision, lease }
    }
}
