//! DEKs of this and other nodes: unwrapped in memory, wrapped on disk.

pub mod cache;
pub mod store;
