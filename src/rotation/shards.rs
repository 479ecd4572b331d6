//! The Rewrite step in several processes, for clusters of a million objects: `rotate-keys` coordinates, and the pods of
//! an Indexed Job do nothing but rewrite. They tell each other what matters in one `ConfigMap`.
//!
//! Nothing rests on what a shard says: the coordinator goes through everything once more afterwards, by itself.

pub mod assignment;
pub mod board;
pub mod coordinator;
pub mod worker;

use std::time::Duration;

/// How often each side looks at the `ConfigMap`, and reports.
const LOOKS_EVERY: Duration = Duration::from_secs(2);
/// A coordinator that has not been heard of for so long may be gone: then nobody watches over the API servers'
/// agreement, and shards stop.
const SILENCE: Duration = Duration::from_secs(20);
