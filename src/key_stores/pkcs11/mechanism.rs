//! The ways in which a token wraps a DEK: which of them one offers, and how each marks what it made.

use std::fmt;

use cryptoki::mechanism::MechanismType;
use serde::{Deserialize, Serialize};

use crate::crypto::secret::DEK_BYTES;

/// How a token wraps a DEK.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum Mechanism {
    /// `CKM_AES_GCM`, with the context as associated data.
    AesGcm,
    /// `CKM_AES_KEY_WRAP_PAD` (RFC 5649).
    AesKeyWrapPad,
    /// `CKM_AES_KEY_WRAP` (RFC 3394).
    AesKeyWrap,
    /// `CKM_RSA_PKCS_OAEP` with SHA-256 for both hash and mask.
    RsaOaep,
    /// The same with SHA-1, for tokens that know no other.
    RsaOaepSha1,
}

impl fmt::Display for Mechanism {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AesGcm => "aesGcm",
            Self::AesKeyWrapPad => "aesKeyWrapPad",
            Self::AesKeyWrap => "aesKeyWrap",
            Self::RsaOaep => "rsaOaep",
            Self::RsaOaepSha1 => "rsaOaepSha1",
        })
    }
}

/// Bytes of AES-GCM's nonce, before the ciphertext.
pub(super) const IV_BYTES: usize = 12;
/// Bytes of its tag, after the ciphertext.
pub(super) const TAG_BYTES: usize = 16;
/// IV, DEK and tag of AES-GCM: the one blob that has no mark.
const GCM_BYTES: usize = IV_BYTES + DEK_BYTES + TAG_BYTES;
/// A wrapped key of 32 bytes: 8 more of its own, and another 8 where a token pads a length that needs none.
const KEY_WRAP_BYTES: [usize; 2] = [DEK_BYTES + 8, DEK_BYTES + 16];
/// Of an RSA key's modulus: 2048 to 8192 bits.
pub(super) const MODULUS_BYTES: std::ops::RangeInclusive<usize> = 256..=1024;

/// In the order in which they are preferred. SHA-1 is taken only if it is asked for.
const AUTOMATIC: [Mechanism; 4] =
    [Mechanism::AesGcm, Mechanism::AesKeyWrapPad, Mechanism::AesKeyWrap, Mechanism::RsaOaep];
const MARKED: [Mechanism; 4] =
    [Mechanism::AesKeyWrapPad, Mechanism::AesKeyWrap, Mechanism::RsaOaep, Mechanism::RsaOaepSha1];

impl Mechanism {
    /// The wanted one if the token offers it, or else the best of those that it offers.
    ///
    /// # Errors
    /// What is wrong, with the mechanisms that were looked for and those that are there.
    pub(super) fn choose(wanted: Option<Self>, offered: &[MechanismType]) -> Result<Self, String> {
        let candidates = wanted.as_ref().map_or(AUTOMATIC.as_slice(), std::slice::from_ref);
        let fitting = candidates.iter().find(|mechanism| offered.contains(&mechanism.needs()));
        fitting.copied().ok_or_else(|| {
            let sought: Vec<_> = candidates.iter().map(|mechanism| mechanism.needs().to_string()).collect();
            let names = offered.iter().map(ToString::to_string);
            let there: Vec<_> = names.filter(|name| name.contains("AES") || name.contains("RSA")).collect();
            let there = if there.is_empty() { "none for AES or RSA".into() } else { there.join(", ") };
            let sought = sought.join(" nor ");
            match wanted {
                Some(_) => format!("does not offer {sought}, which mechanism names; it offers {there}"),
                None => format!("offers neither {sought}; it offers {there}"),
            }
        })
    }

    fn needs(self) -> MechanismType {
        match self {
            Self::AesGcm => MechanismType::AES_GCM,
            Self::AesKeyWrapPad => MechanismType::AES_KEY_WRAP_PAD,
            Self::AesKeyWrap => MechanismType::AES_KEY_WRAP,
            Self::RsaOaep | Self::RsaOaepSha1 => MechanismType::RSA_PKCS_OAEP,
        }
    }

    /// Whether the key is a pair, and not a secret key.
    pub(super) fn is_rsa(self) -> bool {
        matches!(self, Self::RsaOaep | Self::RsaOaepSha1)
    }

    /// The letters differ in more than one bit. AES-GCM was there before the others and has none.
    fn mark(self) -> Option<u8> {
        match self {
            Self::AesGcm => None,
            Self::AesKeyWrapPad => Some(b'P'),
            Self::AesKeyWrap => Some(b'K'),
            Self::RsaOaep => Some(b'R'),
            Self::RsaOaepSha1 => Some(b'1'),
        }
    }

    fn has_length(self, made: usize) -> bool {
        match self {
            Self::AesGcm => made == GCM_BYTES,
            Self::AesKeyWrapPad | Self::AesKeyWrap => KEY_WRAP_BYTES.contains(&made),
            Self::RsaOaep | Self::RsaOaepSha1 => MODULUS_BYTES.contains(&made),
        }
    }

    /// The blob for what the token made, unless that cannot be.
    pub(super) fn blob(self, made: &[u8]) -> Option<Vec<u8>> {
        let blob = self.mark().into_iter().chain(made.iter().copied()).collect();
        self.has_length(made.len()).then_some(blob)
    }

    /// What a blob was made with, and what the token had made.
    pub(super) fn of_blob(blob: &[u8]) -> Option<(Self, &[u8])> {
        // The length alone tells AES-GCM: no marked blob is as long, with its mark.
        if Self::AesGcm.has_length(blob.len()) {
            return Some((Self::AesGcm, blob));
        }
        let (&mark, made) = blob.split_first()?;
        let by = MARKED.into_iter().find(|mechanism| mechanism.mark() == Some(mark))?;
        by.has_length(made.len()).then_some((by, made))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_mechanism_that_the_token_offers_is_taken_unless_one_is_named() {
        let (gcm, wrap, oaep) = (MechanismType::AES_GCM, MechanismType::AES_KEY_WRAP, MechanismType::RSA_PKCS_OAEP);
        assert_eq!(Mechanism::choose(None, &[oaep, wrap, gcm]), Ok(Mechanism::AesGcm));
        assert_eq!(Mechanism::choose(None, &[oaep, wrap]), Ok(Mechanism::AesKeyWrap));
        assert_eq!(Mechanism::choose(None, &[oaep]), Ok(Mechanism::RsaOaep));
        assert_eq!(Mechanism::choose(Some(Mechanism::RsaOaepSha1), &[oaep, gcm]), Ok(Mechanism::RsaOaepSha1));
    }

    #[test]
    fn a_token_that_offers_none_is_refused_with_the_names_of_what_it_offers() {
        let offered = [MechanismType::AES_CBC, MechanismType::SHA256];
        let refused = Mechanism::choose(None, &offered).expect_err("none fits");
        for name in ["CKM_AES_GCM", "CKM_AES_KEY_WRAP_PAD", "CKM_AES_KEY_WRAP", "CKM_RSA_PKCS_OAEP", "CKM_AES_CBC"] {
            assert!(refused.contains(name), "{name}: {refused}");
        }
        let refused = Mechanism::choose(Some(Mechanism::AesGcm), &offered).expect_err("not offered");
        assert!(refused.contains("CKM_AES_GCM, which mechanism names; it offers CKM_AES_CBC"), "{refused}");
    }

    #[test]
    fn a_blob_tells_what_it_was_made_with_and_nothing_else_is_taken_for_one() {
        for (by, length, whole) in [
            (Mechanism::AesGcm, 60, 60),
            (Mechanism::AesKeyWrapPad, 40, 41),
            (Mechanism::AesKeyWrapPad, 48, 49),
            (Mechanism::AesKeyWrap, 40, 41),
            (Mechanism::RsaOaep, 256, 257),
            (Mechanism::RsaOaepSha1, 512, 513),
        ] {
            let made = vec![7; length];
            let blob = by.blob(&made).expect("a possible length");
            assert_eq!(blob.len(), whole);
            assert_eq!(Mechanism::of_blob(&blob), Some((by, made.as_slice())));
        }
        for no_blob in [&b""[..], b"K", &[b'?'; 41], &[b'K'; 59], &[b'R'; 255]] {
            assert_eq!(Mechanism::of_blob(no_blob), None, "{} bytes", no_blob.len());
        }
    }
}
