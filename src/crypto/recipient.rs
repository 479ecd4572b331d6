//! Sealing to a public key whose private half is elsewhere: HPKE (RFC 9180) in base mode, with DHKEM(X25519, HKDF-SHA256),
//! HKDF-SHA256 and AES-256-GCM.
//!
//! HPKE is rustls' own, for Encrypted Client Hello, over the agreement and the ciphers of aws-lc-rs; both are in this program
//! for TLS. Random numbers are those of aws-lc-rs, seeded by the operating system.

use std::fmt;

use aws_lc_rs::agreement::{PrivateKey, X25519};
use aws_lc_rs::encoding::{AsBigEndian, Curve25519SeedBin};
use rustls::crypto::aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256 as SUITE;
use rustls::crypto::hpke::{EncapsulatedSecret, Hpke, HpkePrivateKey, HpkePublicKey};
use zeroize::Zeroizing;

use super::seal::OpenError;

/// Bytes of a key of either half.
pub const KEY_BYTES: usize = 32;

/// Bytes of a sealed message beside the ciphertext: the encapsulated key and the tag.
pub const OVERHEAD: usize = KEY_BYTES + 16;

/// What the keys are used for, as HPKE's `info`: the same pair may serve another program.
const INFO: &[u8] = b"kube-envelope break-glass 1";

/// The public half of a pair of keys.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Recipient([u8; KEY_BYTES]);

impl Recipient {
    /// A public key of X25519. `None` for one to which nothing can be sealed.
    pub fn new(bytes: [u8; KEY_BYTES]) -> Option<Self> {
        let recipient = Self(bytes);
        // A point of small order agrees on zero with everybody, which the library refuses.
        recipient.seal(&[], &[]).ok().map(|_| recipient)
    }

    /// The key itself, which is not secret.
    pub fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// Seals `plain`, bound to `aad`: encapsulated key (32) ‖ ciphertext ‖ tag (16).
    ///
    /// # Errors
    /// [`OpenError`] for a key to which nothing can be sealed; one that [`Recipient::new`] took never is.
    pub fn seal(&self, aad: &[u8], plain: &[u8]) -> Result<Vec<u8>, OpenError> {
        let (key, message) = SUITE.seal(INFO, aad, plain, &HpkePublicKey(self.0.to_vec())).map_err(|_| OpenError)?;
        Ok([key.0, message].concat())
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recipient({})", hex::encode(self.0))
    }
}

/// The private half. Cleared when dropped, and never printed.
pub struct Identity {
    secret: HpkePrivateKey,
    recipient: Recipient,
}

impl Identity {
    /// A private key of X25519. `None` where it is none.
    pub fn new(secret: &[u8; KEY_BYTES]) -> Option<Self> {
        let key = PrivateKey::from_private_key(&X25519, secret).ok()?;
        let recipient = Recipient::new(key.compute_public_key().ok()?.as_ref().try_into().ok()?)?;
        Some(Self { secret: HpkePrivateKey::from(secret.to_vec()), recipient })
    }

    /// A new pair of keys.
    ///
    /// # Panics
    /// Where the operating system gives no random numbers.
    pub fn generate() -> Self {
        let made = || {
            let key = PrivateKey::generate(&X25519).ok()?;
            let secret: Curve25519SeedBin<'_> = key.as_be_bytes().ok()?;
            Self::new(secret.as_ref().try_into().ok()?)
        };
        made().expect("the operating system gives random numbers")
    }

    /// The public half.
    pub fn recipient(&self) -> Recipient {
        self.recipient
    }

    /// The key itself: to be written into its file, and nowhere else.
    pub fn expose(&self) -> &[u8] {
        self.secret.secret_bytes()
    }

    /// Opens what [`Recipient::seal`] made.
    ///
    /// # Errors
    /// [`OpenError`] when the key, `aad` or any byte differ, or `sealed` is too short.
    pub fn open(&self, aad: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, OpenError> {
        let (key, message) = sealed.split_at_checked(KEY_BYTES).ok_or(OpenError)?;
        let key = EncapsulatedSecret(key.to_vec());
        SUITE.open(&key, INFO, aad, message, &self.secret).map(Zeroizing::new).map_err(|_| OpenError)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity(… of {:?})", self.recipient)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_with_the_other_half_under_the_same_context_alone() {
        let identity = Identity::generate();
        let sealed = identity.recipient().seal(b"context", b"plain").unwrap();
        assert_eq!(sealed.len(), OVERHEAD + 5);
        assert_eq!(**identity.open(b"context", &sealed).unwrap(), *b"plain");
        assert!(identity.open(b"another", &sealed).is_err());
        assert!(Identity::generate().open(b"context", &sealed).is_err());
        for at in [0, KEY_BYTES, sealed.len() - 1] {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(identity.open(b"context", &changed).is_err(), "byte {at}");
        }
        assert!(identity.open(b"context", &sealed[..KEY_BYTES - 1]).is_err());
        assert_ne!(identity.recipient().seal(b"context", b"plain").unwrap(), sealed, "each message has its own key");
    }

    #[test]
    fn a_point_of_small_order_is_not_taken() {
        assert_eq!(Recipient::new([0; KEY_BYTES]), None);
        let mut one = [0; KEY_BYTES];
        one[0] = 1;
        assert_eq!(Recipient::new(one), None);
    }

    #[test]
    fn the_private_half_is_not_printed() {
        let identity = Identity::new(&[0xab; KEY_BYTES]).unwrap();
        assert!(!format!("{identity:?}").contains("abab"), "{identity:?}");
    }
}
