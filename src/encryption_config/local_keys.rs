//! Keys in the EncryptionConfiguration itself: of the providers aescbc, aesgcm and secretbox.

use std::fmt;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use zeroize::{Zeroize, Zeroizing};

/// The keys of one provider, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalKeys {
    /// The name of the field: `aescbc`, `aesgcm` or `secretbox`.
    pub kind: &'static str,
    /// The first one writes, all of them read.
    pub keys: Vec<LocalKey>,
}

/// One entry of a provider's list of `keys`.
#[derive(Clone, PartialEq, Eq)]
pub struct LocalKey {
    /// Its name, stored before every value that it encrypts.
    pub name: String,
    /// The key; `None` where the file has none of a length that the provider takes. An API server refuses such a file;
    /// here it is taken, since a copy on another machine may well have been stripped of its secrets.
    pub secret: Option<Zeroizing<Vec<u8>>>,
}

impl fmt::Debug for LocalKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LocalKey({:?})", self.name)
    }
}

/// The field as written.
#[derive(Deserialize)]
pub(super) struct RawKeys {
    #[serde(default)]
    keys: Vec<RawKey>,
}

#[derive(Deserialize)]
struct RawKey {
    #[serde(default)]
    name: String,
    #[serde(default)]
    secret: String,
}

impl RawKeys {
    /// The name of the key that writes.
    pub(super) fn first_name(&self) -> Option<&str> {
        self.keys.first().map(|key| key.name.as_str()).filter(|name| !name.is_empty())
    }

    pub(super) fn keys(self, kind: &'static str) -> LocalKeys {
        let lengths: &[usize] = if kind == "secretbox" { &[32] } else { &[16, 24, 32] };
        let key = |mut raw: RawKey| {
            let secret = BASE64_STANDARD.decode(&raw.secret).ok().map(Zeroizing::new);
            // The decoded key is cleared when it is dropped; this is the same key in base64.
            raw.secret.zeroize();
            LocalKey { name: raw.name, secret: secret.filter(|secret| lengths.contains(&secret.len())) }
        };
        LocalKeys { kind, keys: self.keys.into_iter().map(key).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_and_never_shown() {
        let raw = |secret: &str| RawKeys { keys: vec![RawKey { name: "k".into(), secret: secret.into() }] };
        let keys = raw("c2VjcmV0IGlzIHNlY3VyZQ==").keys("aescbc");
        assert_eq!(keys.keys[0].secret.as_ref().map(|secret| secret.as_slice()), Some(b"secret is secure".as_slice()));
        assert!(!format!("{keys:?}").contains("secret is secure") && !format!("{keys:?}").contains("115"));
        assert_eq!(raw("c2VjcmV0IGlzIHNlY3VyZQ==").keys("secretbox").keys[0].secret, None, "secretbox takes 32 bytes");
        assert_eq!(raw("REDACTED").keys("aescbc").keys[0].secret, None);
    }
}
