//! The Rewrite step in several processes, for clusters of a million objects: `rotate-keys` coordinates, and the pods of
//! an Indexed Job only rewrite. They communicate through a few small `ConfigMap`s.
//!
//! Nothing rests on what a shard says: the coordinator goes through everything once more afterwards, by itself.

pub mod assignment;
pub mod board;
pub mod coordinator;
pub mod report;
pub mod worker;
