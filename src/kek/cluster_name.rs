//! The name of a cluster.

use std::fmt;
use std::str::FromStr;

const MAX_BYTES: usize = 63;

/// Name of a cluster; bound into every wrap and every ciphertext, so that one cluster's data open in no other.
///
/// 1 to 63 letters, digits, `-`, `.` or `_` of ASCII.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterName(String);

/// A text that is no [`ClusterName`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be 1 to {MAX_BYTES} letters, digits, '-', '.' or '_'; it is bound into every ciphertext")]
pub struct NotAClusterName;

impl ClusterName {
    /// The text, as it is bound into ciphertexts.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ClusterName {
    type Err = NotAClusterName;

    fn from_str(text: &str) -> Result<Self, NotAClusterName> {
        let fits = (1..=MAX_BYTES).contains(&text.len())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'));
        if fits { Ok(Self(text.to_owned())) } else { Err(NotAClusterName) }
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_short_and_plain() {
        for good in ["a", "prod-eu.1_b", &"x".repeat(63)] {
            assert_eq!(good.parse::<ClusterName>().unwrap().as_str(), good);
        }
        for bad in ["", "a b", "a/b", "ä", "a\n", &"x".repeat(64)] {
            assert_eq!(bad.parse::<ClusterName>(), Err(NotAClusterName), "{bad:?}");
        }
    }
}
