//! The line by which a configuration tells that the private half was tried: `2026-11-28 0123456789abcdef`, a date and a check
//! sum over it and the public half.
//!
//! It is not a signature: it keeps the proof of one recipient from standing beside another, and a slip from passing.

use jiff::civil::Date;
use jiff::tz::Offset;

use super::text::of_recipient;
use crate::crypto::recipient::Recipient;
use crate::crypto::seal::digest;
use crate::kek::KekError;

/// The line for a proof that was given today, for the public half `recipient`.
///
/// # Errors
/// What `recipient` is instead.
pub fn proof_of(recipient: &str) -> Result<String, KekError> {
    let recipient = super::text::recipient(recipient).map_err(KekError::misconfigured)?;
    Ok(line(&recipient, Offset::UTC.to_datetime(jiff::Timestamp::now()).date()))
}

pub(super) fn line(recipient: &Recipient, date: Date) -> String {
    let sum =
        digest(&[b"kube-envelope break-glass proof", of_recipient(recipient).as_bytes(), date.to_string().as_bytes()]);
    format!("{date} {}", hex::encode(&sum[..8]))
}

/// When the proof was given; `None` where it is that of another recipient.
///
/// # Errors
/// What is wrong with the line.
pub(super) fn read(text: &str, recipient: &Recipient) -> Result<Option<jiff::Timestamp>, String> {
    let date = text.split_once(' ').and_then(|(date, sum)| (sum.len() == 16).then(|| date.parse::<Date>().ok())?);
    let at = date.and_then(|date| Some((date, Offset::UTC.to_timestamp(date.at(0, 0, 0, 0)).ok()?)));
    let (date, at) =
        at.ok_or("is not a proof; write the line that `kube-envelope break-glass prove` prints, in quotes")?;
    Ok((line(recipient, date) == text).then_some(at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::recipient::Identity;

    #[test]
    fn a_proof_is_of_one_day_and_one_recipient() {
        let [one, other] = [Identity::generate(), Identity::generate()].map(|identity| identity.recipient());
        let proof = proof_of(&of_recipient(&one)).unwrap();
        let at = read(&proof, &one).unwrap().expect("its own");
        let age = jiff::Timestamp::now().duration_since(at);
        assert!(!age.is_negative() && age.as_hours() < 25, "{age}");
        assert_eq!(read(&proof, &other), Ok(None));
        let later = proof.replacen(&proof[..4], "2099", 1);
        assert_eq!(read(&later, &one), Ok(None), "another date");
        for wrong in ["", "today", "2026-02-30 0123456789abcdef", "2026-01-01", "2026-01-01 abc"] {
            assert!(read(wrong, &one).unwrap_err().contains("break-glass prove"), "{wrong}");
        }
    }
}
