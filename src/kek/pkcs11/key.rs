//! The versions of a key as objects in a token: their names, how they are found, used and made.

use std::cmp::Ordering;
use std::fmt;

use cryptoki::error::Error;
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;

use super::failure::Trouble;
use crate::kek::KekError;

/// Bytes of the nonce before the ciphertext.
pub(super) const IV_BYTES: usize = 12;
/// Bytes of the tag behind it.
pub(super) const TAG_BYTES: usize = 16;
/// PKCS#11 fixes the length of a check value (v3.1, 4.10.2).
const CHECK_BYTES: usize = 3;
/// Ids are small numbers or hashes; longer ones would not fit a version's text.
const MAX_ID_BYTES: usize = 64;

/// Names one version: `CKA_ID`, and the key check value, since an id can be given again. Written
/// `ID-CHECKVALUE` in lower-case hex.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeyId {
    id: Vec<u8>,
    check: [u8; CHECK_BYTES],
}

impl KeyId {
    pub fn parse(text: &str) -> Option<Self> {
        let (id, check) = text.split_once('-')?;
        let id = hex::decode(id).ok().filter(|id| (1..=MAX_ID_BYTES).contains(&id.len()))?;
        let parsed = Self { id, check: hex::decode(check).ok()?.try_into().ok()? };
        // Only the one way of writing it, so that one version has one text.
        (parsed.to_string() == text).then_some(parsed)
    }

    /// The id that comes after this one.
    pub fn next(&self) -> Vec<u8> {
        let mut id = self.id.clone();
        for byte in id.iter_mut().rev() {
            *byte = byte.wrapping_add(1);
            if *byte != 0 {
                return id;
            }
        }
        id.insert(0, 1);
        id
    }

    /// Whether both ids are the same number, whatever their keys.
    pub fn same_number(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }

    /// Ids as the numbers they write, most significant byte first.
    pub fn cmp(&self, other: &Self) -> Ordering {
        let number = |id: &Self| id.id.iter().copied().skip_while(|&byte| byte == 0).collect::<Vec<_>>();
        let (one, two) = (number(self), number(other));
        one.len().cmp(&two.len()).then_with(|| one.cmp(&two))
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", hex::encode(&self.id), hex::encode(self.check))
    }
}

/// One version in the token.
#[derive(Debug)]
pub(super) struct Key {
    handle: ObjectHandle,
    pub id: KeyId,
    pub encrypts: bool,
    pub decrypts: bool,
}

/// All AES keys with this label.
pub(super) fn keys(session: &Session, label: &str) -> Result<Vec<Key>, Trouble> {
    let wanted = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Token(true),
        Attribute::Label(label.into()),
    ];
    session.find_objects(&wanted)?.into_iter().map(|handle| describe(session, label, handle)).collect()
}

fn describe(session: &Session, label: &str, handle: ObjectHandle) -> Result<Key, Trouble> {
    let asked = [AttributeType::Id, AttributeType::CheckValue, AttributeType::Encrypt, AttributeType::Decrypt];
    let (mut id, mut check, mut encrypts, mut decrypts) = (Vec::new(), Vec::new(), false, false);
    for attribute in session.get_attributes(handle, &asked)? {
        match attribute {
            Attribute::Id(value) => id = value,
            Attribute::CheckValue(value) => check = value,
            Attribute::Encrypt(value) => encrypts = value,
            Attribute::Decrypt(value) => decrypts = value,
            _ => {}
        }
    }
    let unfit = |why: &str| Trouble::from(KekError::misconfigured(format!("a key labelled {label:?} {why}")));
    if !(1..=MAX_ID_BYTES).contains(&id.len()) {
        return Err(unfit("has no CKA_ID of 1 to 64 bytes; versions are told apart by it"));
    }
    let check = check.try_into().map_err(|_| unfit("has no CKA_CHECK_VALUE; versions are told apart by it"))?;
    Ok(Key { handle, id: KeyId { id, check }, encrypts, decrypts })
}

impl Key {
    /// IV, ciphertext and tag of AES-GCM. Some tokens put an IV of their own in place of the given one.
    pub fn encrypt(&self, session: &Session, iv: [u8; IV_BYTES], aad: &[u8], plain: &[u8]) -> Result<Vec<u8>, Error> {
        let mut iv = iv;
        let mechanism = gcm(&mut iv, aad)?;
        let sealed = session.encrypt(&mechanism, self.handle, plain)?;
        Ok([iv.as_slice(), &sealed].concat())
    }

    /// Opens what [`Key::encrypt`] made.
    pub fn decrypt(&self, session: &Session, blob: &[u8], aad: &[u8]) -> Result<Vec<u8>, Error> {
        let (iv, sealed) = blob.split_at(IV_BYTES);
        let mut iv: [u8; IV_BYTES] = iv.try_into().map_err(Error::TryFromSlice)?;
        session.decrypt(&gcm(&mut iv, aad)?, self.handle, sealed)
    }
}

fn gcm<'a>(iv: &'a mut [u8; IV_BYTES], aad: &'a [u8]) -> Result<Mechanism<'a>, Error> {
    const TAG_BITS: u64 = 8 * TAG_BYTES as u64;
    Ok(Mechanism::AesGcm(GcmParams::new(iv, aad, TAG_BITS.into())?))
}

/// Makes a new AES-256 key that never leaves the token.
pub(super) fn generate(session: &Session, label: &str, id: &[u8]) -> Result<(), Trouble> {
    let template = [
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
        Attribute::ValueLen(32.into()),
        Attribute::Label(label.into()),
        Attribute::Id(id.into()),
    ];
    session.generate_key(&Mechanism::AesKeyGen, &template)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> KeyId {
        KeyId::parse(text).unwrap_or_else(|| panic!("{text}"))
    }

    #[test]
    fn a_version_has_one_text_alone() {
        assert_eq!(id("01-a1b2c3").to_string(), "01-a1b2c3");
        for text in
            ["", "01", "01-", "-a1b2c3", "01-A1B2C3", "1-a1b2c3", "01-a1b2", "01-a1b2c3d4", "01-a1b2c3-", "zz-a1b2c3"]
        {
            assert!(KeyId::parse(text).is_none(), "{text:?}");
        }
        assert!(KeyId::parse(&format!("{}-a1b2c3", "00".repeat(65))).is_none(), "too long");
    }

    #[test]
    fn the_highest_id_is_the_highest_number() {
        let mut ids: Vec<_> = ["0100-000000", "02-ffffff", "0a-000000", "0001-000000"].map(id).into();
        ids.sort_by(KeyId::cmp);
        let sorted: Vec<_> = ids.iter().map(ToString::to_string).collect();
        assert_eq!(sorted, ["0001-000000", "02-ffffff", "0a-000000", "0100-000000"]);
        assert!(id("0001-000000").same_number(&id("01-ffffff")));
    }

    #[test]
    fn the_next_id_is_one_higher() {
        for (now, next) in [("01", "02"), ("00ff", "0100"), ("ff", "0100"), ("ffff", "010000")] {
            assert_eq!(hex::encode(id(&format!("{now}-000000")).next()), next);
        }
    }
}
