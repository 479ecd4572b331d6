//! Rewriting every encrypted object under the current key, and proving that nothing is left on an older one.
//!
//! Asks API servers and etcd; never the plugin's insides, so it serves every KMS v2 plugin. It reads no Secret data:
//! lists and answers are metadata only, and the rewrite is an empty patch. It disables and deletes no key.

pub mod active;
pub mod adoption;
pub mod announcement;
pub mod api;
pub mod canary;
pub mod claim;
pub mod cluster;
pub mod discovery;
mod error;
pub mod evidence;
pub mod former;
pub mod group;
pub mod homes;
pub mod intent;
pub mod journal;
pub mod key_name;
pub mod keys_in_etcd;
pub mod layout;
pub mod lease;
pub mod ledger;
pub mod listing;
pub mod metrics;
pub mod pace;
pub mod plan;
pub mod preflight;
pub mod rbac;
pub mod reads;
pub mod resources;
pub mod rewrite;
pub mod room;
pub mod roster;
pub mod run;
pub mod shards;
pub mod sizes;
pub mod snapshots;
pub mod verdict;
pub mod verify;
pub mod webhooks;
pub mod wording;

pub use self::error::RotationError;
pub use self::run::{Event, Run, Settings};
