//! `RotationError`: why a rotation or a check did not go on.

use std::path::PathBuf;

use crate::etcd::EtcdError;
use crate::kek::KekError;
use crate::rotation::cluster::api::ApiError;

/// Why a rotation or a check did not go on.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    /// A request that cannot be done without failed.
    #[error("cannot {what}")]
    Api {
        /// What was to be done.
        what: String,
        /// Why not.
        source: ApiError,
    },
    /// etcd could not be read.
    #[error("cannot scan etcd")]
    Etcd(#[from] EtcdError),
    /// A KEK could not be rotated.
    #[error("cannot rotate KEK {name}")]
    Kek {
        /// Its name in the configuration.
        name: String,
        /// Why not.
        source: KekError,
    },
    /// A file could not be read or written.
    #[error("cannot {what} {}", .file.display())]
    File {
        /// What was to be done.
        what: &'static str,
        /// The file.
        file: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Something that was given cannot be used.
    #[error("{0}")]
    Unusable(String),
    /// Something stands in the way that a person must look at before anything is rewritten.
    #[error("{}", .0.join("\n"))]
    Blocked(Vec<String>),
    /// Not every API server writes with the target key.
    #[error("{0}")]
    NotConverged(String),
    /// The rotation stands still until it is resumed.
    #[error("{0}")]
    Paused(String),
}

impl RotationError {
    /// Wraps the failure of a request with what it was for.
    pub fn api(what: impl Into<String>) -> impl FnOnce(ApiError) -> Self {
        let what = what.into();
        move |source| Self::Api { what, source }
    }
}
