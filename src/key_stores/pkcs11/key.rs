//! The versions of a key as objects in a token: their names, how they are found and made.

use std::cmp::Ordering;
use std::fmt;

use cryptoki::mechanism::Mechanism as Call;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;

use super::error::Trouble;
use super::mechanism::{MODULUS_BYTES, Mechanism};
use crate::crypto::seal::digest;
use crate::kek::KekError;

/// PKCS#11 fixes the length of a secret key's check value (v3.1, 4.10.2).
const CHECK_BYTES: usize = 3;
/// Bytes of the hash of an RSA key's modulus, used in place of the check value that key pairs do not have.
const MODULUS_HASH_BYTES: usize = 8;
/// Bytes of the hash of `CKA_UNIQUE_ID`, for a secret key that has no check value, and whose token computes none.
const UNIQUE_ID_HASH_BYTES: usize = 16;
/// Ids are small numbers or hashes; longer ones would not fit a version's text.
const MAX_ID_BYTES: usize = 64;

/// Names one version: `CKA_ID`, and a check value, since an id can be given again. Written `ID-CHECKVALUE` in
/// lower-case hex.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeyId {
    id: Vec<u8>,
    check: Vec<u8>,
}

impl KeyId {
    pub fn parse(text: &str) -> Option<Self> {
        let (id, check) = text.split_once('-')?;
        let id = hex::decode(id).ok().filter(|id| (1..=MAX_ID_BYTES).contains(&id.len()))?;
        let check = hex::decode(check).ok()?;
        if ![CHECK_BYTES, MODULUS_HASH_BYTES, UNIQUE_ID_HASH_BYTES].contains(&check.len()) {
            return None;
        }
        let parsed = Self { id, check };
        // Only the one way of writing it, so that one version has one text.
        (parsed.to_string() == text).then_some(parsed)
    }

    /// Whether it names a key pair, and not a secret key.
    pub fn is_rsa(&self) -> bool {
        self.check.len() == MODULUS_HASH_BYTES
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
        write!(f, "{}-{}", hex::encode(&self.id), hex::encode(&self.check))
    }
}

/// One version in the token.
#[derive(Debug)]
pub(super) struct Key {
    pub id: KeyId,
    /// The secret key, or the public half of a pair.
    pub(super) wraps_with: ObjectHandle,
    /// The secret key, or the private half.
    pub(super) unwraps_with: ObjectHandle,
    /// Whether it has the right to wrap by the mechanism that it was looked up for, and is whole.
    pub wraps: bool,
    pub unwraps: bool,
    /// Of the pair; 0 for a secret key.
    pub modulus_bytes: usize,
}

/// All versions with this label that are of the mechanism's kind.
pub(super) fn keys(session: &Session, label: &str, by: Mechanism) -> Result<Vec<Key>, Trouble> {
    let describe = if by.is_rsa() { describe_pair } else { describe_secret };
    let (class, key_type) =
        if by.is_rsa() { (ObjectClass::PRIVATE_KEY, KeyType::RSA) } else { (ObjectClass::SECRET_KEY, KeyType::AES) };
    let wanted =
        [Attribute::Class(class), Attribute::KeyType(key_type), Attribute::Token(true), Attribute::Label(label.into())];
    session.find_objects(&wanted)?.into_iter().map(|handle| describe(session, label, by, handle)).collect()
}

/// Whether the token gives the key out: in clear if it is not sensitive, and wrapped if it is extractable.
pub(super) fn is_extractable(session: &Session, key: ObjectHandle) -> Result<bool, Trouble> {
    let told = session.get_attributes(key, &[AttributeType::Sensitive, AttributeType::Extractable])?;
    Ok(told.iter().any(|one| matches!(one, Attribute::Sensitive(false) | Attribute::Extractable(true))))
}

/// Whether a key of this label is there, of the kind that `by` is not for.
pub(super) fn is_there_as_other_kind(session: &Session, label: &str, by: Mechanism) -> Result<bool, Trouble> {
    let (class, key_type) =
        if by.is_rsa() { (ObjectClass::SECRET_KEY, KeyType::AES) } else { (ObjectClass::PRIVATE_KEY, KeyType::RSA) };
    let other =
        [Attribute::Class(class), Attribute::KeyType(key_type), Attribute::Token(true), Attribute::Label(label.into())];
    Ok(!session.find_objects(&other)?.is_empty())
}

/// The attributes that matter, of any kind of key.
#[derive(Default)]
struct Described {
    id: Vec<u8>,
    check: Vec<u8>,
    modulus: Vec<u8>,
    rights: Vec<AttributeType>,
}

impl Described {
    fn read(session: &Session, handle: ObjectHandle, asked: &[AttributeType]) -> Result<Self, Trouble> {
        let mut described = Self::default();
        for attribute in session.get_attributes(handle, asked)? {
            match attribute {
                Attribute::Id(value) => described.id = value,
                Attribute::CheckValue(value) => described.check = value,
                // Some tokens write a zero before it, as for a signed number.
                Attribute::Modulus(value) => described.modulus = value.into_iter().skip_while(|&b| b == 0).collect(),
                Attribute::Encrypt(true)
                | Attribute::Decrypt(true)
                | Attribute::Wrap(true)
                | Attribute::Unwrap(true) => {
                    described.rights.push(attribute.attribute_type());
                }
                _ => {}
            }
        }
        Ok(described)
    }

    fn may(&self, right: AttributeType) -> bool {
        self.rights.contains(&right)
    }
}

fn describe_secret(session: &Session, label: &str, by: Mechanism, handle: ObjectHandle) -> Result<Key, Trouble> {
    use AttributeType::{CheckValue, Decrypt, Encrypt, Id, Unwrap, Wrap};
    let described = Described::read(session, handle, &[Id, CheckValue, Encrypt, Decrypt, Wrap, Unwrap])?;
    let check = match described.check.len() {
        CHECK_BYTES => described.check.clone(),
        _ => check_value(session, handle).or_else(|| unique_id(session, handle)).ok_or_else(|| {
            unfit(
                label,
                "has neither CKA_CHECK_VALUE nor CKA_UNIQUE_ID, and may not encrypt by CKM_AES_ECB to find one",
            )
        })?,
    };
    let (wraps, unwraps) = match by {
        Mechanism::AesGcm => (described.may(Encrypt), described.may(Decrypt)),
        _ => (described.may(Wrap), described.may(Unwrap)),
    };
    let id = KeyId { id: checked_id(label, described.id)?, check };
    Ok(Key { id, wraps_with: handle, unwraps_with: handle, wraps, unwraps, modulus_bytes: 0 })
}

/// The check value as the standard defines it, so that it is the same whether the token tells it or not: the first
/// bytes of an encrypted block of zeros (v3.1, 4.10.2). Nothing else is ever encrypted so.
fn check_value(session: &Session, key: ObjectHandle) -> Option<Vec<u8>> {
    let encrypted = session.encrypt(&Call::AesEcb, key, &[0; 16]).ok()?;
    encrypted.get(..CHECK_BYTES).map(<[u8]>::to_vec)
}

fn unique_id(session: &Session, key: ObjectHandle) -> Option<Vec<u8>> {
    let attributes = session.get_attributes(key, &[AttributeType::UniqueId]).ok()?;
    attributes.into_iter().find_map(|attribute| match attribute {
        Attribute::UniqueId(id) if !id.is_empty() => {
            Some(digest(&[b"pkcs11 unique id", &id])[..UNIQUE_ID_HASH_BYTES].to_vec())
        }
        _ => None,
    })
}

fn describe_pair(session: &Session, label: &str, _by: Mechanism, handle: ObjectHandle) -> Result<Key, Trouble> {
    use AttributeType::{Decrypt, Encrypt, Id, Modulus};
    let private = Described::read(session, handle, &[Id, Modulus, Decrypt])?;
    let (modulus_bytes, unwraps) = (private.modulus.len(), private.may(Decrypt));
    if !MODULUS_BYTES.contains(&modulus_bytes) {
        return Err(unfit(label, "is an RSA key of other than 2048 to 8192 bits"));
    }
    let id = checked_id(label, private.id)?;
    let halves = [
        Attribute::Class(ObjectClass::PUBLIC_KEY),
        Attribute::KeyType(KeyType::RSA),
        Attribute::Token(true),
        Attribute::Label(label.into()),
        Attribute::Id(id.clone()),
    ];
    let (mut wraps_with, mut wraps) = (handle, false);
    for half in session.find_objects(&halves)? {
        let public = Described::read(session, half, &[Modulus, Encrypt])?;
        // Label and id may be given twice; the modulus shows which half belongs to it.
        if public.modulus == private.modulus {
            (wraps_with, wraps) = (half, public.may(Encrypt));
        }
    }
    let check = digest(&[b"pkcs11 rsa modulus", &private.modulus])[..MODULUS_HASH_BYTES].to_vec();
    let id = KeyId { id, check };
    Ok(Key { id, wraps_with, unwraps_with: handle, wraps, unwraps, modulus_bytes })
}

fn checked_id(label: &str, id: Vec<u8>) -> Result<Vec<u8>, Trouble> {
    if (1..=MAX_ID_BYTES).contains(&id.len()) {
        return Ok(id);
    }
    Err(unfit(label, "has no CKA_ID of 1 to 64 bytes; versions are told apart by it"))
}

fn unfit(label: &str, why: &str) -> Trouble {
    KekError::misconfigured(format!("a key labelled {label:?} {why}")).into()
}

/// Makes a new version that never leaves the token: an AES-256 key, or a pair as long as `former`.
pub(super) fn generate(session: &Session, label: &str, by: Mechanism, former: &Key) -> Result<(), Trouble> {
    let id = former.id.next();
    let named = [Attribute::Token(true), Attribute::Label(label.into()), Attribute::Id(id)];
    // Also where the token's defaults are other ones.
    let kept = [Attribute::Private(true), Attribute::Sensitive(true), Attribute::Extractable(false)];
    if by.is_rsa() {
        let bits = u64::try_from(former.modulus_bytes * 8).expect("a modulus has at most 8192 bits");
        let size = [Attribute::ModulusBits(bits.into()), Attribute::PublicExponent(vec![1, 0, 1])];
        let public = [&named[..], &size, &[Attribute::Encrypt(true)]].concat();
        let private = [&named[..], &kept, &[Attribute::Decrypt(true)]].concat();
        session.generate_key_pair(&Call::RsaPkcsKeyPairGen, &public, &private)?;
    } else {
        let mut rights = vec![Attribute::Encrypt(true), Attribute::Decrypt(true)];
        if by != Mechanism::AesGcm {
            rights = vec![Attribute::Wrap(true), Attribute::Unwrap(true)];
        }
        let template = [&named[..], &kept, &rights, &[Attribute::ValueLen(32.into())]].concat();
        session.generate_key(&Call::AesKeyGen, &template)?;
    }
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
        assert!(id("01-0102030405060708").is_rsa() && !id("01-a1b2c3").is_rsa());
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
