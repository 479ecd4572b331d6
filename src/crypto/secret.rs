//! The types that secret bytes live in: they cannot be printed and are cleared when dropped.

use std::fmt;

use rand::CryptoRng;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Length of a DEK in bytes.
pub const DEK_BYTES: usize = 32;

/// A data-encryption key: 32 bytes that seal seeds, and are themselves stored only wrapped.
// On the heap: a value on the stack leaves a copy behind each time that it is moved.
pub struct Dek(Box<[u8; DEK_BYTES]>);

impl Dek {
    /// A new DEK from `rng`, which in production is seeded by the operating system.
    pub fn generate(rng: &mut impl CryptoRng) -> Self {
        let mut bytes = Box::new([0; DEK_BYTES]);
        rng.fill_bytes(bytes.as_mut_slice());
        Self(bytes)
    }

    /// Takes over the bytes a KEK gave back, and clears them. `None` when there are not exactly 32.
    pub fn from_unwrapped(mut bytes: impl AsMut<[u8]>) -> Option<Self> {
        let bytes = bytes.as_mut();
        let mut key = Box::new([0; DEK_BYTES]);
        let fits = bytes.len() == DEK_BYTES;
        if fits {
            key.copy_from_slice(bytes);
        }
        // Also when they do not fit: they may be a key all the same.
        bytes.zeroize();
        fits.then_some(Self(key))
    }

    /// The key itself: for a cipher, or for the KEK that is to wrap it, and nothing else.
    pub fn expose(&self) -> &[u8; DEK_BYTES] {
        &self.0
    }
}

impl Drop for Dek {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl ZeroizeOnDrop for Dek {}

impl fmt::Debug for Dek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dek(…)")
    }
}

/// What the API server hands over to be encrypted (`plaintext` on the wire, today 32 bytes). Opaque.
pub struct Seed(Vec<u8>);

impl Seed {
    /// Takes the bytes over without a copy.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The bytes, to be sealed.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Hands the bytes to the answer of a Decrypt; clearing them is then the receiver's.
    pub fn into_answer(mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl ZeroizeOnDrop for Seed {}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Seed({} bytes)", self.0.len())
    }
}

/// The public name of a DEK: 16 bytes that commit to it, so that another key cannot pass for it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DekId(pub [u8; 16]);

impl fmt::Display for DekId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for DekId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DekId({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_do_not_print_their_bytes() {
        let dek = Dek::from_unwrapped([0xab; 32]).expect("32 bytes");
        let seed = Seed::new(vec![0xab; 32]);
        let printed = format!("{dek:?} {seed:?}");
        assert_eq!(printed, "Dek(…) Seed(32 bytes)");
    }

    #[test]
    fn a_dek_of_another_length_is_refused_and_its_bytes_are_cleared() {
        let mut short = [7_u8; 31];
        assert!(Dek::from_unwrapped(&mut short).is_none());
        assert_eq!(short, [0; 31]);
    }
}
