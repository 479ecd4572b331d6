//! Whether anything is still stored under a former key: in etcd, in its old revisions, in snapshots of it.

pub mod beside;
pub mod census;
pub mod compaction;
pub mod former;
pub mod history;
pub mod homes;
pub mod judge;
pub mod keys_in_etcd;
pub mod layout;
pub mod scan;
mod scanned_cluster;
pub mod sizes;
pub mod snapshots;
