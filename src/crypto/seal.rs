//! Sealing under a key that never meets a cipher itself: each message has its own subkey.
//! The only file that names a cipher crate.
//!
//! `key' = HKDF-SHA256(key, salt, info = purpose ‖ format)`, then AES-256-GCM under `key'` with a random
//! nonce (RFC 5869, NIST SP 800-38D). With a fresh 32-byte salt for each message no subkey repeats, so no
//! number of messages forces a key to be changed.

use aes_gcm::{AeadInOut, Aes256Gcm, KeyInit};
use hkdf::Hkdf;
use rand::CryptoRng;
use rand::rand_core::UnwrapErr;
use rand::rngs::SysRng;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::secret::{Dek, DekId, Seed};

/// Bytes of a sealed message beside the ciphertext: salt, nonce and tag.
pub const OVERHEAD: usize = SALT_BYTES + NONCE_BYTES + TAG_BYTES;

const SALT_BYTES: usize = 32;
const NONCE_BYTES: usize = 12;
const TAG_BYTES: usize = 16;

/// What a key is used for: separates the subkeys of one key from each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A seed under a DEK.
    Seed,
    /// A DEK under a key of a local keyring.
    Wrap,
    /// The DEKs of a process, for the next one after a reboot, under a key of their own.
    SealedState,
}

impl Purpose {
    fn info(self) -> &'static [u8] {
        match self {
            Self::Seed => b"kube-envelope seed\x01",
            Self::Wrap => b"kube-envelope wrap\x01",
            Self::SealedState => b"kube-envelope sealed state\x01",
        }
    }
}

/// The operating system's random numbers, asked for at each use: a generator in the process would go on with the same
/// numbers in every copy of a virtual machine that is resumed from one snapshot.
pub fn os_random() -> impl CryptoRng {
    UnwrapErr(SysRng)
}

/// The data do not belong together: another key, other associated data, or changed bytes. Which of these
/// it is cannot be told, by design of the cipher.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("authentication failed: another key, another context, or changed data")]
pub struct OpenError;

/// Seals `plain` under `key`: salt (32) ‖ nonce (12) ‖ ciphertext ‖ tag (16).
///
/// ```
/// use kube_envelope::crypto::seal::{OVERHEAD, Purpose, open, os_random, seal};
///
/// let key = [7; 32];
/// let sealed = seal(&key, Purpose::Wrap, b"context", b"plain", &mut os_random());
/// assert_eq!(sealed.len(), b"plain".len() + OVERHEAD);
/// assert_eq!(*open(&key, Purpose::Wrap, b"context", &sealed)?, *b"plain");
/// assert!(open(&key, Purpose::Wrap, b"another context", &sealed).is_err());
/// assert!(open(&key, Purpose::Seed, b"context", &sealed).is_err());
/// # Ok::<(), kube_envelope::crypto::seal::OpenError>(())
/// ```
///
/// # Panics
/// Never: AES-GCM refuses only messages over 64 GiB.
pub fn seal(key: &[u8; 32], purpose: Purpose, aad: &[u8], plain: &[u8], rng: &mut impl CryptoRng) -> Vec<u8> {
    let mut sealed = vec![0; SALT_BYTES + NONCE_BYTES];
    rng.fill_bytes(&mut sealed);
    let cipher = cipher(key, &sealed[..SALT_BYTES], purpose);
    let nonce = nonce(&sealed[SALT_BYTES..]);
    // With its final size, so that the tag does not move the seed to another buffer.
    let mut message = Vec::with_capacity(plain.len() + TAG_BYTES);
    message.extend_from_slice(plain);
    cipher.encrypt_in_place(&nonce, aad, &mut message).expect("a message under 64 GiB is never refused");
    sealed.append(&mut message);
    sealed
}

/// Opens what [`seal`] made.
///
/// # Errors
/// [`OpenError`] when key, purpose, associated data or any byte differ, or `sealed` is too short.
pub fn open(key: &[u8; 32], purpose: Purpose, aad: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, OpenError> {
    if sealed.len() < OVERHEAD {
        return Err(OpenError);
    }
    let (salt, rest) = sealed.split_at(SALT_BYTES);
    let (nonce_bytes, message) = rest.split_at(NONCE_BYTES);
    // Decrypted in its place, so that there is no second buffer to clear.
    let mut plain = Zeroizing::new(message.to_vec());
    cipher(key, salt, purpose).decrypt_in_place(&nonce(nonce_bytes), aad, &mut *plain).map_err(|_| OpenError)?;
    Ok(plain)
}

/// Seals a seed under a DEK; see [`seal`].
pub fn seal_seed(dek: &Dek, aad: &[u8], seed: &Seed, rng: &mut impl CryptoRng) -> Vec<u8> {
    seal(dek.expose(), Purpose::Seed, aad, seed.expose(), rng)
}

/// Opens a sealed seed; see [`open`].
///
/// # Errors
/// [`OpenError`], as of [`open`].
pub fn open_seed(dek: &Dek, aad: &[u8], sealed: &[u8]) -> Result<Seed, OpenError> {
    open(dek.expose(), Purpose::Seed, aad, sealed).map(|mut plain| Seed::new(std::mem::take(&mut *plain)))
}

/// The id of a DEK: 16 bytes of `HKDF-SHA256(DEK, no salt, info = "kube-envelope id")`. It commits to the key.
pub fn dek_id(dek: &Dek) -> DekId {
    DekId(derive(dek.expose(), b"kube-envelope id"))
}

/// A public name for a key, from which the key cannot be found: 16 bytes of HKDF-SHA256 with its own info.
pub fn key_fingerprint(key: &[u8; 32]) -> [u8; 16] {
    derive(key, b"kube-envelope fingerprint")
}

/// SHA-256 over `parts`, each with its length before it (8 bytes, big endian), so that no two lists collide.
pub fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

fn derive(key: &[u8; 32], info: &[u8]) -> [u8; 16] {
    let mut out = [0; 16];
    Hkdf::<Sha256>::new(None, key).expand(info, &mut out).expect("16 bytes are fewer than HKDF's limit of 8160");
    out
}

fn cipher(key: &[u8; 32], salt: &[u8], purpose: Purpose) -> Aes256Gcm {
    let mut subkey = Zeroizing::new([0_u8; 32]);
    Hkdf::<Sha256>::new(Some(salt), key)
        .expand(purpose.info(), subkey.as_mut_slice())
        .expect("32 bytes are fewer than HKDF's limit of 8160");
    Aes256Gcm::new((&*subkey).into())
}

fn nonce(bytes: &[u8]) -> aes_gcm::aead::Nonce<Aes256Gcm> {
    bytes.try_into().expect("callers split off exactly 12 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 32] = [7; 32];

    #[test]
    fn opens_only_with_the_same_key_purpose_context_and_bytes() {
        let sealed = seal(&KEY, Purpose::Seed, b"context", b"seed", &mut rand::rng());
        assert_eq!(open(&KEY, Purpose::Seed, b"context", &sealed).unwrap().as_slice(), b"seed");
        assert!(open(&[8; 32], Purpose::Seed, b"context", &sealed).is_err());
        assert!(open(&KEY, Purpose::Wrap, b"context", &sealed).is_err());
        assert!(open(&KEY, Purpose::Seed, b"other", &sealed).is_err());
        for bit in 0..sealed.len() * 8 {
            let mut changed = sealed.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(open(&KEY, Purpose::Seed, b"context", &changed).is_err(), "bit {bit}");
        }
        for length in 0..sealed.len() {
            assert!(open(&KEY, Purpose::Seed, b"context", &sealed[..length]).is_err(), "length {length}");
        }
    }

    /// The same construction, built a second time on another implementation of HKDF and AES-GCM.
    #[test]
    fn agrees_with_aws_lc() {
        use aws_lc_rs::{aead, hkdf};
        let sealed = seal(&KEY, Purpose::Seed, b"context", b"seed", &mut rand::rng());
        let info = [Purpose::Seed.info()];
        let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, &sealed[..32]).extract(&KEY);
        let subkey = prk.expand(&info, &aead::AES_256_GCM).unwrap();
        let opening = aead::LessSafeKey::new(aead::UnboundKey::from(subkey));
        let nonce = aead::Nonce::try_assume_unique_for_key(&sealed[32..44]).unwrap();
        let mut message = sealed[44..].to_vec();
        let plain = opening.open_in_place(nonce, aead::Aad::from(b"context"), &mut message).unwrap();
        assert_eq!(plain, b"seed");
    }

    #[test]
    fn digest_separates_its_parts() {
        assert_ne!(digest(&[b"ab", b"c"]), digest(&[b"a", b"bc"]));
    }
}
