//! Why a socket cannot be had.

use std::io;
use std::path::PathBuf;

use super::problem::FolderProblem;

/// Why the socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A living process has it.
    #[error("{0} is served by another process; stop that one first")]
    Served(String),
    /// Something else lies there.
    #[error("{} exists and is not a socket; remove it or configure another path", .0.display())]
    NotASocket(PathBuf),
    /// Others could put their own socket there.
    #[error(transparent)]
    Folder(#[from] FolderProblem),
    /// The system refused a step.
    #[error("cannot {step} {place}")]
    System {
        /// What was tried.
        step: &'static str,
        /// The path or the abstract name that it was tried on.
        place: String,
        /// What the system said.
        source: io::Error,
    },
}

pub(super) fn failed(step: &'static str, place: &dyn std::fmt::Display, source: io::Error) -> SocketError {
    SocketError::System { step, place: place.to_string(), source }
}
