//! `KeyId`: the public name of a generation, as Kubernetes stores it with every object.

use std::fmt;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};

use crate::crypto::seal::digest;
use crate::kek::KekVersion;

/// The longest `key_id` in bytes that kube-apiserver accepts (k8s.io/apiserver, kmsv2/envelope.go).
pub const MAX_KEY_ID_BYTES: usize = 1024;

/// Names one generation: a function of the KEKs' lineages and versions and the configuration's `epoch` alone.
///
/// Equal on all nodes, stable over restarts, different for another key, and tells nothing secret: it is
/// `ke1-` and 32 characters of base64url, 24 bytes of SHA-256.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct KeyId(String);

impl KeyId {
    /// Derives the name. The order of `versions` does not matter: nodes may list their KEKs differently.
    ///
    /// ```
    /// use kube_envelope::kek::{KekVersion, Lineage};
    /// use kube_envelope::key_id::KeyId;
    ///
    /// let version = |home: &str, version: &str| KekVersion {
    ///     lineage: Lineage::derive("transit", &[home]),
    ///     version: version.into(),
    /// };
    /// let (eu, us) = (version("vault-eu", "3"), version("vault-us", "7"));
    /// let key_id = KeyId::derive(1, [&eu, &us]);
    /// assert_eq!(key_id, KeyId::derive(1, [&us, &eu]));
    /// assert_ne!(key_id, KeyId::derive(1, [&version("vault-eu", "4"), &us]));
    /// assert_ne!(key_id, KeyId::derive(2, [&eu, &us]), "raising the epoch asks for a new generation");
    /// ```
    pub fn derive<'a>(epoch: u64, versions: impl IntoIterator<Item = &'a KekVersion>) -> Self {
        let mut versions: Vec<_> = versions.into_iter().collect();
        // Nodes may list their KEKs in different orders.
        versions.sort();
        let epoch = epoch.to_be_bytes();
        let mut parts: Vec<&[u8]> = vec![b"kube-envelope key_id 1", &epoch];
        for version in versions {
            parts.push(&version.lineage.0);
            parts.push(version.version.as_bytes());
        }
        let hash = digest(&parts);
        // 192 bits: no two generations have the same one by chance, and it is stored with every object.
        Self(format!("ke1-{}", BASE64_URL_SAFE_NO_PAD.encode(&hash[..24])))
    }

    /// The text, as it goes over the wire.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kek::Lineage;

    fn version(home: &str, version: &str) -> KekVersion {
        KekVersion { lineage: Lineage::derive("test", &[home]), version: version.into() }
    }

    #[test]
    fn key_id_is_the_same_on_all_nodes_and_never_reused_for_another_key() {
        let (a, b) = (version("a", "1"), version("b", "1"));
        let id = KeyId::derive(1, [&a, &b]);
        assert_eq!(id, KeyId::derive(1, [&b, &a]));
        assert_ne!(id, KeyId::derive(2, [&a, &b]), "epoch");
        assert_ne!(id, KeyId::derive(1, [&a]), "a KEK fewer");
        assert_ne!(id, KeyId::derive(1, [&a, &version("b", "2")]), "another version");
        assert_ne!(id, KeyId::derive(1, [&a, &version("c", "1")]), "another lineage");
        assert!(id.as_str().len() <= MAX_KEY_ID_BYTES);
    }
}
