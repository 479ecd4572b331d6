//! The hash of a `key_id`.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The first letters of a hash, `sha256:` and twelve digits, are enough to tell keys apart.
const SHORT: usize = 19;

/// What the metrics of API servers show of a `key_id`: `sha256:` and its hash in hex.
///
/// Any text is taken from metrics: it is only compared, and a hash of a form that this program does not know is still
/// that of another key, which has to count.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyIdHash(String);

impl KeyIdHash {
    /// The hash that metrics show of `key_id`.
    pub fn of(key_id: &str) -> Self {
        Self(hash(key_id))
    }

    /// Its first letters, for people.
    pub fn short(&self) -> &str {
        self.0.get(..SHORT).unwrap_or(&self.0)
    }
}

/// The hash that API servers show in place of a name: of a `key_id`, or of their own identity Lease.
pub(super) fn hash(name: &str) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(name.as_bytes())))
}

impl From<String> for KeyIdHash {
    fn from(label: String) -> Self {
        Self(label)
    }
}

impl From<&str> for KeyIdHash {
    fn from(label: &str) -> Self {
        Self(label.to_owned())
    }
}

impl fmt::Display for KeyIdHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_that_of_the_api_server() {
        let expected = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(KeyIdHash::of("abc").to_string(), expected);
        assert_eq!(KeyIdHash::of("abc").short(), "sha256:ba7816bf8f01");
        assert_eq!(KeyIdHash::from("short").short(), "short");
    }
}
