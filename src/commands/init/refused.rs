//! Why a command refuses to begin.

/// A wrong or missing argument: exit code 2, and nothing was touched.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub(in crate::commands) String);
