//! `RotationError`: why a rotation or a check did not go on; `ApiError`: why a request to an API server failed.

use std::path::PathBuf;

use crate::etcd::EtcdError;
use crate::kek::KekError;

/// Why a rotation or a check did not go on.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    /// A request that cannot be done without failed.
    #[error("cannot {what}")]
    Api {
        /// What was to be done.
        what: String,
        /// What the API server answered, or that it did not.
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
        /// What its key store said.
        source: KekError,
    },
    /// A file could not be read or written.
    #[error("cannot {what} {}", .file.display())]
    File {
        /// What was to be done.
        what: &'static str,
        /// The file that was named.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Something that was given cannot be used.
    #[error("{0}")]
    Unusable(String),
    /// Something that a person must resolve before anything is rewritten.
    #[error("{}", .0.join("\n"))]
    Blocked(Vec<String>),
    /// Not every API server writes with the target key.
    #[error("{0}")]
    NotConverged(String),
    /// No API server answers.
    #[error("{0}")]
    Silent(String),
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

    /// Whether it may be otherwise in a moment, without anybody doing anything.
    pub fn passes_by_itself(&self) -> bool {
        match self {
            Self::Api { source, .. } => source.is_transient(),
            Self::Etcd(error) => error.is_transient(),
            Self::Silent(_) => true,
            _ => false,
        }
    }
}

/// Why a request did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// No answer: no connection, a broken one, or none in time.
    #[error("no answer from {address}: {problem}")]
    Unreachable {
        /// Who was asked.
        address: String,
        /// What the connection said, with its causes.
        problem: String,
    },
    /// An answer other than success.
    #[error("{address} answered {status}: {message}")]
    Refused {
        /// Who was asked.
        address: String,
        /// The HTTP status, any but 2xx.
        status: u16,
        /// The server's own words.
        message: String,
    },
    /// An answer that is not what the API promises.
    #[error("{address} sent an answer that cannot be read")]
    Malformed {
        /// Who was asked.
        address: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

impl ApiError {
    /// Whether it may be otherwise in a moment, without anybody doing anything: nobody answers, or the server is
    /// overloaded or being restarted. Refused credentials count, since whoever renews them does so in time.
    pub fn is_transient(&self) -> bool {
        // Not 404 or 409: those are answers about the object, and callers decide what they mean.
        self.status().is_none_or(|status| matches!(status, 401 | 408 | 429 | 500..))
            && !matches!(self, Self::Malformed { .. })
    }

    /// The HTTP status, where there was one.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }
}
