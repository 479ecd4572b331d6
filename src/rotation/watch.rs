//! Following etcd: how many values are stored under each key at this moment, and the first write under a former one.
//!
//! What is kept in memory grows with the number of keys and resources, not with that of the values: etcd tells with each
//! change what the key held before.

mod aims;
mod follow;
mod suspects;
mod view;

pub use self::aims::Aims;
pub use self::follow::{Settings, Watch};
pub use self::suspects::OldKeyWrite;
pub use self::view::{ClusterView, Told, View};
