//! What a token does to a DEK with one version of the key, by each mechanism.

use cryptoki::error::Error;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource};
use cryptoki::mechanism::{Mechanism as Call, MechanismType};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use rand::Rng;
use zeroize::Zeroize;

use super::key::Key;
use super::mechanism::{IV_BYTES, Mechanism, TAG_BYTES};
use crate::crypto::seal::os_random;
use crate::crypto::secret::DEK_BYTES;

impl Key {
    /// Wraps `plain`. Only AES-GCM binds `context`; for the others the DEK's id does.
    ///
    /// # Errors
    /// What the module returned.
    pub fn wrap(&self, session: &Session, by: Mechanism, context: &[u8], plain: &[u8]) -> Result<Vec<u8>, Error> {
        match by {
            Mechanism::AesGcm => seal(session, self.wraps_with, context, plain),
            Mechanism::AesKeyWrapPad => wrap_object(session, &Call::AesKeyWrapPad, self.wraps_with, plain),
            Mechanism::AesKeyWrap => wrap_object(session, &Call::AesKeyWrap, self.wraps_with, plain),
            Mechanism::RsaOaep | Mechanism::RsaOaepSha1 => session.encrypt(&oaep(by), self.wraps_with, plain),
        }
    }

    /// Unwraps what [`Key::wrap`] made by the same mechanism.
    ///
    /// # Errors
    /// What the module returned.
    pub fn unwrap(&self, session: &Session, by: Mechanism, context: &[u8], made: &[u8]) -> Result<Vec<u8>, Error> {
        match by {
            Mechanism::AesGcm => open(session, self.unwraps_with, context, made),
            Mechanism::AesKeyWrapPad => unwrap_object(session, &Call::AesKeyWrapPad, self.unwraps_with, made),
            Mechanism::AesKeyWrap => unwrap_object(session, &Call::AesKeyWrap, self.unwraps_with, made),
            Mechanism::RsaOaep | Mechanism::RsaOaepSha1 => session.decrypt(&oaep(by), self.unwraps_with, made),
        }
    }
}

/// IV, ciphertext and tag. Some tokens put an IV of their own in place of the given one.
fn seal(session: &Session, key: ObjectHandle, context: &[u8], plain: &[u8]) -> Result<Vec<u8>, Error> {
    let mut iv = [0; IV_BYTES];
    os_random().fill_bytes(&mut iv);
    let mechanism = gcm(&mut iv, context)?;
    let sealed = session.encrypt(&mechanism, key, plain)?;
    Ok([iv.as_slice(), &sealed].concat())
}

fn open(session: &Session, key: ObjectHandle, context: &[u8], made: &[u8]) -> Result<Vec<u8>, Error> {
    let (iv, sealed) = made.split_at(IV_BYTES);
    let mut iv: [u8; IV_BYTES] = iv.try_into().map_err(Error::TryFromSlice)?;
    session.decrypt(&gcm(&mut iv, context)?, key, sealed)
}

fn gcm<'a>(iv: &'a mut [u8; IV_BYTES], context: &'a [u8]) -> Result<Call<'a>, Error> {
    const TAG_BITS: u64 = 8 * TAG_BYTES as u64;
    Ok(Call::AesGcm(GcmParams::new(iv, context, TAG_BITS.into())?))
}

/// No label: few tokens take one.
fn oaep(by: Mechanism) -> Call<'static> {
    let (hash, mask) = match by {
        Mechanism::RsaOaepSha1 => (MechanismType::SHA1, PkcsMgfType::MGF1_SHA1),
        _ => (MechanismType::SHA256, PkcsMgfType::MGF1_SHA256),
    };
    Call::RsaPkcsOaep(PkcsOaepParams::new(hash, mask, PkcsOaepSource::empty()))
}

/// Key wrapping takes an object and not bytes: the DEK becomes one that ends with the call.
fn wrap_object(session: &Session, by: &Call, key: ObjectHandle, plain: &[u8]) -> Result<Vec<u8>, Error> {
    let mut template = [Attribute::Value(plain.to_vec())].into_iter().chain(session_key_template()).collect::<Vec<_>>();
    // Cleared before the answer is examined, so that an error leaves no copy behind.
    let made = session.create_object(&template);
    for attribute in &mut template {
        if let Attribute::Value(value) = attribute {
            value.zeroize();
        }
    }
    let dek = made?;
    let wrapped = session.wrap_key(by, key, dek);
    session.destroy_object(dek)?;
    wrapped.map(trim_zero_padding)
}

fn unwrap_object(session: &Session, by: &Call, key: ObjectHandle, made: &[u8]) -> Result<Vec<u8>, Error> {
    let dek = session.unwrap_key(by, key, made, &session_key_template())?;
    // Removed before the answer is examined, so that an error leaves no DEK in the token.
    let value = session.get_attributes(dek, &[AttributeType::Value]);
    session.destroy_object(dek)?;
    let value = value?.into_iter().find_map(|attribute| match attribute {
        Attribute::Value(value) => Some(value),
        _ => None,
    });
    Ok(value.unwrap_or_default())
}

/// An object of the session that can be read.
fn session_key_template() -> [Attribute; 6] {
    [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::GENERIC_SECRET),
        // Of this session alone: it is gone when the session ends, also if the process is killed.
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(false),
        Attribute::Extractable(true),
    ]
}

/// Without the zeros that stand behind a wrapped key where the token gave too great a length first.
fn trim_zero_padding(mut wrapped: Vec<u8>) -> Vec<u8> {
    const LENGTH: usize = DEK_BYTES + 8;
    if wrapped.len() > LENGTH && wrapped[LENGTH..].iter().all(|&byte| byte == 0) {
        wrapped.truncate(LENGTH);
    }
    wrapped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_behind_a_wrapped_key_are_cut_and_padding_is_not() {
        assert_eq!(trim_zero_padding([[7; 40].as_slice(), &[0; 24]].concat()), [7; 40]);
        assert_eq!(trim_zero_padding(vec![7; 40]), [7; 40]);
        assert_eq!(trim_zero_padding(vec![7; 48]), [7; 48]);
        assert_eq!(trim_zero_padding(vec![0; 30]), [0; 30]);
    }
}
