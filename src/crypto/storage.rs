//! The ciphers that an API server itself encrypts with, for reading what it stored (k8s.io/apiserver,
//! pkg/storage/value/encrypt: `aes/aes.go`, `aes/aes_extended_nonce.go`, `secretbox/secretbox.go`). Nothing here seals.

use aes_gcm::aead::consts::U12;
use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::aes::{Aes128, Aes192, Aes256};
use aes_gcm::{Aes128Gcm, Aes256Gcm, AesGcm};
use cbc::cipher::block_padding::Pkcs7;
use cbc::cipher::{BlockModeDecrypt, KeyIvInit, StreamCipher};
use hkdf::Hkdf;
use poly1305::Poly1305;
use salsa20::XSalsa20;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::seal::OpenError;

const GCM_NONCE: usize = 12;
const HKDF_INFO: usize = 32;
const CBC_BLOCK: usize = 16;
const SECRETBOX_NONCE: usize = 24;
const SECRETBOX_TAG: usize = 16;

/// What was opened; cleared when dropped.
pub type Plaintext = Zeroizing<Vec<u8>>;

/// Opens AES-GCM: nonce (12) ‖ ciphertext ‖ tag (16), under a key of 16, 24 or 32 bytes. `aad` is the key in etcd.
///
/// # Errors
/// When key, `aad` or a byte of the message is another one.
pub fn open_gcm(key: &[u8], aad: &[u8], message: &[u8]) -> Result<Plaintext, OpenError> {
    match key.len() {
        16 => gcm::<Aes128Gcm>(key, aad, message),
        24 => gcm::<AesGcm<Aes192, U12>>(key, aad, message),
        32 => gcm::<Aes256Gcm>(key, aad, message),
        _ => Err(OpenError),
    }
}

fn gcm<C: AeadInOut + KeyInit>(key: &[u8], aad: &[u8], message: &[u8]) -> Result<Plaintext, OpenError> {
    let (nonce, sealed) = message.split_at_checked(GCM_NONCE).ok_or(OpenError)?;
    let nonce = nonce.try_into().map_err(|_| OpenError)?;
    let mut plain = Zeroizing::new(sealed.to_vec());
    let cipher = C::new_from_slice(key).map_err(|_| OpenError)?;
    cipher.decrypt_in_place(nonce, aad, &mut *plain).map_err(|_| OpenError)?;
    Ok(plain)
}

/// Opens AES-GCM under a key that HKDF-SHA256 expands from a seed of 32 bytes or more: info (32) ‖ what [`open_gcm`]
/// opens.
///
/// # Errors
/// When seed, `aad` or a byte of the message is another one.
pub fn open_extended_gcm(seed: &[u8], aad: &[u8], message: &[u8]) -> Result<Plaintext, OpenError> {
    let (info, sealed) = message.split_at_checked(HKDF_INFO).ok_or(OpenError)?;
    let mut key = Zeroizing::new([0_u8; 32]);
    // Expand without extract, as the API server does: its seed is uniformly random already.
    let seed = Hkdf::<Sha256>::from_prk(seed).map_err(|_| OpenError)?;
    seed.expand(info, key.as_mut_slice()).map_err(|_| OpenError)?;
    open_gcm(key.as_slice(), aad, sealed)
}

/// Opens AES-CBC with PKCS#7 padding: iv (16) ‖ ciphertext, under a key of 16, 24 or 32 bytes. Nothing is authenticated:
/// a wrong key shows as bad padding 255 times of 256, and a changed byte often not at all.
///
/// # Errors
/// When the length or the padding is wrong.
pub fn open_cbc(key: &[u8], message: &[u8]) -> Result<Plaintext, OpenError> {
    match key.len() {
        16 => unpadded(cbc::Decryptor::<Aes128>::new_from_slices, key, message),
        24 => unpadded(cbc::Decryptor::<Aes192>::new_from_slices, key, message),
        32 => unpadded(cbc::Decryptor::<Aes256>::new_from_slices, key, message),
        _ => Err(OpenError),
    }
}

fn unpadded<D: BlockModeDecrypt, E>(
    decryptor: impl FnOnce(&[u8], &[u8]) -> Result<D, E>,
    key: &[u8],
    message: &[u8],
) -> Result<Plaintext, OpenError> {
    let (iv, sealed) = message.split_at_checked(CBC_BLOCK).ok_or(OpenError)?;
    let mut plain = Zeroizing::new(sealed.to_vec());
    let decryptor = decryptor(key, iv).map_err(|_| OpenError)?;
    let length = decryptor.decrypt_padded::<Pkcs7>(&mut plain).map_err(|_| OpenError)?.len();
    plain.truncate(length);
    Ok(plain)
}

/// Opens `NaCl`'s secretbox, XSalsa20-Poly1305: nonce (24) ‖ tag (16) ‖ ciphertext, under a key of 32 bytes.
///
/// # Errors
/// When the key or a byte of the message is another one.
pub fn open_secretbox(key: &[u8], message: &[u8]) -> Result<Plaintext, OpenError> {
    let (nonce, boxed) = message.split_at_checked(SECRETBOX_NONCE).ok_or(OpenError)?;
    let (tag, sealed) = boxed.split_at_checked(SECRETBOX_TAG).ok_or(OpenError)?;
    let mut stream = XSalsa20::new_from_slices(key, nonce).map_err(|_| OpenError)?;
    // secretbox takes the first 32 bytes of the key stream for Poly1305, and goes on with the rest for the message.
    let mut one_time_key = Zeroizing::new([0_u8; 32]);
    stream.apply_keystream(one_time_key.as_mut_slice());
    let own = Poly1305::new((&*one_time_key).into()).compute_unpadded(sealed);
    // Timing tells an attacker nothing: the tag in a backup is public.
    if own.as_slice() != tag {
        return Err(OpenError);
    }
    let mut plain = Zeroizing::new(sealed.to_vec());
    stream.apply_keystream(&mut plain);
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::aead::{AES_128_GCM, AES_192_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
    use aws_lc_rs::cipher::{AES_128, AES_192, AES_256, DecryptionContext, PaddedBlockEncryptingKey, UnboundCipherKey};

    use super::*;

    const KEY: [u8; 32] = [7; 32];
    const TEXT: &[u8] = b"k8s\0 an object of more than one block";

    /// The same message sealed by another implementation.
    fn sealed_gcm(key: &[u8], aad: &[u8]) -> Vec<u8> {
        let algorithm = [&AES_128_GCM, &AES_192_GCM, &AES_256_GCM][key.len() / 8 - 2];
        let key = LessSafeKey::new(UnboundKey::new(algorithm, key).unwrap());
        let mut message = TEXT.to_vec();
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key([5; 12]), Aad::from(aad), &mut message).unwrap();
        [[5; 12].as_slice(), &message].concat()
    }

    /// Every bit of `message` counts, and every length.
    fn opens_only_whole(message: &[u8], open: impl Fn(&[u8]) -> Result<Plaintext, OpenError>) {
        assert_eq!(open(message).unwrap().as_slice(), TEXT);
        for bit in 0..message.len() * 8 {
            let mut changed = message.to_vec();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(open(&changed).is_err(), "bit {bit}");
        }
        for length in 0..message.len() {
            assert!(open(&message[..length]).is_err(), "length {length}");
        }
    }

    #[test]
    fn gcm_agrees_with_aws_lc_for_all_key_sizes() {
        for length in [16, 24, 32] {
            let message = sealed_gcm(&KEY[..length], b"/registry/secrets/a/b");
            opens_only_whole(&message, |message| open_gcm(&KEY[..length], b"/registry/secrets/a/b", message));
            assert!(open_gcm(&KEY[..length], b"/registry/secrets/a/c", &message).is_err(), "of another key in etcd");
        }
        assert!(open_gcm(&KEY[..15], b"", &sealed_gcm(&KEY, b"")).is_err());
    }

    #[test]
    fn a_key_for_each_object_is_expanded_from_the_seed() {
        let info = [9; 32];
        let prk = aws_lc_rs::hkdf::Prk::new_less_safe(aws_lc_rs::hkdf::HKDF_SHA256, &KEY);
        let mut key = [0; 32];
        prk.expand(&[&info], &aws_lc_rs::aead::AES_256_GCM).unwrap();
        let infos = [info.as_slice()];
        let okm = prk.expand(&infos, aws_lc_rs::hkdf::HKDF_SHA256).unwrap();
        okm.fill(&mut key).unwrap();
        let message = [info.as_slice(), &sealed_gcm(&key, b"key")].concat();
        opens_only_whole(&message, |message| open_extended_gcm(&KEY, b"key", message));
        assert!(open_extended_gcm(&KEY[..31], b"key", &message).is_err(), "no seed has 31 bytes");
    }

    #[test]
    fn cbc_agrees_with_aws_lc_for_all_key_sizes() {
        for length in [16, 24, 32] {
            let algorithm = [&AES_128, &AES_192, &AES_256][length / 8 - 2];
            let key = UnboundCipherKey::new(algorithm, &KEY[..length]).unwrap();
            let mut message = TEXT.to_vec();
            let context = PaddedBlockEncryptingKey::cbc_pkcs7(key).unwrap().encrypt(&mut message).unwrap();
            let DecryptionContext::Iv128(iv) = &context else { panic!("CBC has an iv") };
            let message = [iv.as_ref().as_slice(), &message].concat();
            assert_eq!(open_cbc(&KEY[..length], &message).unwrap().as_slice(), TEXT);
            for length in [0, 15, 16, message.len() - 1] {
                assert!(open_cbc(&KEY, &message[..length]).is_err(), "length {length}");
            }
        }
    }

    /// The example of `NaCl` (tests/secretbox.c), whose key, nonce and box are printed in "Cryptography in `NaCl`".
    #[test]
    fn secretbox_opens_what_nacl_made() {
        let key = hex::decode("1b27556473e985d462cd51197a9a46c76009549eac6474f206c4ee0844f68389").unwrap();
        let nonce = hex::decode("69696ee955b62b73cd62bda875fc73d68219e0036b7a0b37").unwrap();
        let boxed = hex::decode(concat!(
            "f3ffc7703f9400e52a7dfb4b3d3305d98e993b9f48681273c29650ba32fc76ce48332ea7164d96a4476fb8c531a1186a",
            "c0dfc17c98dce87b4da7f011ec48c97271d2c20f9b928fe2270d6fb863d51738b48eeee314a7cc8ab932164548e526ae",
            "90224368517acfeabd6bb3732bc0e9da99832b61ca01b6de56244a9e88d5f9b37973f622a43d14a6599b1f654cb45a74",
            "e355a5"
        ))
        .unwrap();
        let message = [nonce, boxed].concat();
        let plain = open_secretbox(&key, &message).unwrap();
        assert!(hex::encode(&plain).starts_with("be075fc53c81f2d5cf141316ebeb0c7b5228c52a4c62cbd44b66849b64244ffc"));
        assert_eq!(plain.len(), 131);
        for at in [0, 24, 40, message.len() - 1] {
            let mut changed = message.clone();
            changed[at] ^= 1;
            assert!(open_secretbox(&key, &changed).is_err(), "byte {at}");
        }
        assert!(open_secretbox(&KEY, &message).is_err());
        assert!(open_secretbox(&key[..16], &message).is_err());
    }
}
