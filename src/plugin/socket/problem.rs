//! A folder that does not protect what lies in it.

/// Why a folder cannot hold the socket: whoever can change it could replace the socket.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}; fix with: {fix}")]
pub struct FolderProblem {
    /// What is wrong, with the folder.
    pub problem: String,
    /// The command that puts it right.
    pub fix: String,
}
