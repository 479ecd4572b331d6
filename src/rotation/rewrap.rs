//! Rewriting straight in etcd. KMS v2 stores the wrapped seed beside the encrypted data, outside of what is
//! authenticated: to bring a value under another key, only its seed is rewrapped, once for all values that share it,
//! and the same encrypted data are put back with it, by compare-and-swap. The API servers see an update like any other.
//!
//! What it does not do: replace seeds. Where a seed or a DEK may have leaked, objects must be re-encrypted, which only
//! an API server does.

mod batch;
pub mod behind;
pub mod pass;
pub mod seeds;

use std::fmt::Debug;

use async_trait::async_trait;

/// Whether an API server that starts now could read everything.
#[async_trait]
pub trait Rehearsal: Debug + Send + Sync {
    /// Opens every value; one sentence about it.
    ///
    /// # Errors
    /// What an API server could not read.
    async fn rehearse(&self) -> Result<String, String>;
}
