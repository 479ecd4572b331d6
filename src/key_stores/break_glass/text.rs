//! Keys as age writes them: `age1…` and `AGE-SECRET-KEY-1…` (<https://age-encryption.org/v1>, "The X25519 recipient type"),
//! so that `age-keygen` makes them and a person knows them when seeing one.

use bech32::primitives::decode::CheckedHrpstring;
use bech32::{Bech32, Hrp};
use zeroize::Zeroizing;

use crate::crypto::recipient::{Identity, KEY_BYTES, Recipient};
use crate::crypto::seal::digest;

const PUBLIC: Hrp = Hrp::parse_unchecked("age");
const SECRET: Hrp = Hrp::parse_unchecked("AGE-SECRET-KEY-");

/// Reads a public half.
///
/// # Errors
/// What it is instead, and the fix.
pub(super) fn recipient(text: &str) -> Result<Recipient, String> {
    if text.to_ascii_uppercase().starts_with("AGE-SECRET-KEY-") {
        return Err(
            "is a private half, and everybody who read this file has it now: make another pair, and write its \
                    public half (age1…) here"
                .into(),
        );
    }
    let wrong = || {
        "is not the public half of an age X25519 key (age1 and 58 more characters); `kube-envelope break-glass create` and \
         `age-keygen` print it"
            .to_owned()
    };
    bytes(text, PUBLIC).and_then(|bytes| Recipient::new(*bytes)).ok_or_else(wrong)
}

/// Writes a public half.
pub(super) fn of_recipient(recipient: &Recipient) -> String {
    bech32::encode_lower::<Bech32>(PUBLIC, recipient.bytes()).expect("32 bytes are within the code's length")
}

/// Reads a private half; `None` where it is none.
pub(super) fn identity(text: &str) -> Option<Identity> {
    bytes(text, SECRET).and_then(|bytes| Identity::new(&bytes))
}

/// Writes a private half.
pub(super) fn of_identity(identity: &Identity) -> Zeroizing<String> {
    let text = bech32::encode_upper::<Bech32>(SECRET, identity.expose());
    Zeroizing::new(text.expect("32 bytes are within the code's length"))
}

/// The name of a public half where it is stored: whoever has only the backup does not learn the key, without which not even a
/// quantum computer opens what was sealed to it.
pub(super) fn fingerprint(recipient: &Recipient) -> String {
    hex::encode(&digest(&[b"kube-envelope break-glass recipient", recipient.bytes()])[..16])
}

fn bytes(text: &str, prefix: Hrp) -> Option<Zeroizing<[u8; KEY_BYTES]>> {
    let checked = CheckedHrpstring::new::<Bech32>(text).ok()?;
    // `Hrp` compares without regard to case, and age does not take the other one.
    let is_own = checked.hrp() == prefix && (prefix == SECRET) == text.starts_with(|c: char| c.is_ascii_uppercase());
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    let mut left = checked.byte_iter();
    if !is_own || left.len() != KEY_BYTES {
        return None;
    }
    key.iter_mut().zip(&mut left).for_each(|(to, byte)| *to = byte);
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pair of age's own tests (rage, age/src/native/x25519.rs).
    const SECRET_HALF: &str = "AGE-SECRET-KEY-1GQ9778VQXMMJVE8SK7J6VT8UJ4HDQAJUVSFCWCM02D8GEWQ72PVQ2Y5J33";
    const PUBLIC_HALF: &str = "age1t7rxyev2z3rw82stdlrrepyc39nvn86l5078zqkf5uasdy86jp6svpy7pa";

    #[test]
    fn keys_are_those_of_age() {
        let identity = identity(SECRET_HALF).expect("a private half");
        assert_eq!(of_recipient(&identity.recipient()), PUBLIC_HALF);
        assert_eq!(*of_identity(&identity), SECRET_HALF);
        assert_eq!(recipient(PUBLIC_HALF), Ok(identity.recipient()));
    }

    #[test]
    fn what_is_no_public_half_is_refused_and_says_what_it_is() {
        let refused = |text: &str| recipient(text).unwrap_err();
        assert!(refused(SECRET_HALF).contains("make another pair"));
        let zero = bech32::encode_lower::<Bech32>(PUBLIC, &[0; 32]).unwrap();
        let short = bech32::encode_lower::<Bech32>(PUBLIC, &[7; 31]).unwrap();
        let slip = PUBLIC_HALF.replace("t7rx", "t7rr");
        let upper = PUBLIC_HALF.to_uppercase();
        for text in ["", "age1", "ssh-ed25519 AAAA", &zero, &short, &slip, &upper] {
            assert!(refused(text).contains("is not the public half"), "{text}");
        }
        assert!(identity(PUBLIC_HALF).is_none() && identity(&SECRET_HALF.to_lowercase()).is_none());
    }

    #[test]
    fn the_fingerprint_is_stored_with_every_object_and_never_changes() {
        let stored = fingerprint(&recipient(PUBLIC_HALF).unwrap());
        assert_eq!(stored, "ad7982e6d420cfad42e672700962284a");
    }
}
