//! Rewriting every encrypted object under the current key, and proving that nothing is left on an older one.
//!
//! Asks API servers and etcd; never the plugin's insides, so it serves every KMS v2 plugin. It reads no Secret data:
//! lists and answers are metadata only, and the rewrite is an empty patch. It disables and deletes no key.

pub mod adoption;
pub mod claim;
pub mod cluster;
pub mod conclusion;
pub mod error;
pub mod event;
pub mod journal;
pub mod keys;
pub mod leftovers;
pub mod rewrap;
pub mod rewrite;
pub mod run;
pub mod shards;
pub mod watch;
