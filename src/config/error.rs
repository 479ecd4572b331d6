//! What is wrong with a configuration file.

use std::fmt;
use std::path::PathBuf;

/// What is wrong with a configuration, where, and how it is put right.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read configuration {}; name another one with --config", .file.display())]
    Read {
        /// The configuration, as it was named.
        file: PathBuf,
        /// What the system said when it was read.
        source: std::io::Error,
    },
    /// The file is not the YAML that is expected.
    #[error("{}:{problem}", .file.display())]
    Syntax {
        /// The configuration, as it was named.
        file: PathBuf,
        /// Line, column, field and fix.
        problem: String,
    },
    /// Values that cannot work, one line each.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Invalid(Vec<Problem>),
}

/// One value that cannot work.
#[derive(Debug, PartialEq, Eq)]
pub struct Problem {
    /// The configuration, as it was named.
    pub file: PathBuf,
    /// Line and column of the value, from 1; none where the whole file is meant.
    pub at: Option<(u64, u64)>,
    /// The field, as a path.
    pub field: String,
    /// What is wrong, and the fix.
    pub problem: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, at, field, problem } = self;
        let place = at.map(|(line, column)| format!(":{line}:{column}")).unwrap_or_default();
        write!(f, "{}{place}: {field}: {problem}", file.display())
    }
}
