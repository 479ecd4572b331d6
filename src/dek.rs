//! DEKs of this and other nodes: unwrapped in memory, wrapped on disk, and which KEK still unwraps them.

pub mod cache;
pub mod clock;
pub mod contacts;
pub mod handover;
pub mod history;
pub mod sealed;
pub mod store;
