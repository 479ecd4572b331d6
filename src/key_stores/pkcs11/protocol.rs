//! What the plugin and the module's process say to each other: frames of JSON, and beside it one secret that JSON never
//! holds.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::io::{self, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::mechanism::Mechanism;
use crate::kek::KekCause;

/// Above every context, blob and error text.
const MAX_FRAME_BYTES: usize = 64 * 1024;

/// The token and the key in it. Its secret is the PIN.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Opening {
    pub(super) module: std::path::PathBuf,
    pub(super) token_label: String,
    pub(super) key_label: String,
    pub(super) mechanism: Option<Mechanism>,
}

/// What the module's process is asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Call {
    /// Load the module. The first call, and only once.
    Open(Opening),
    /// Name the active version.
    Version,
    /// Name it, and say whether it can be taken out.
    Profile,
    /// Wrap the secret.
    Wrap { context: Vec<u8> },
    /// Unwrap: the answer's secret.
    Unwrap { version: String, blob: Vec<u8>, context: Vec<u8> },
    /// Make a new version.
    Rotate,
}

/// A call with its number.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Request {
    pub(super) number: u64,
    pub(super) call: Call,
}

/// The answer to the call of this number.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Response {
    pub(super) number: u64,
    pub(super) result: Result<Done, Failed>,
}

/// What was done.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Done {
    /// The version that is active, has wrapped, or was made.
    pub(super) version: String,
    pub(super) blob: Vec<u8>,
    /// Whether the active version can be taken out of the token; only where that was asked.
    #[serde(default)]
    pub(super) extractable: bool,
}

/// Why it was not.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Failed {
    pub(super) cause: KekCause,
    pub(super) text: String,
    /// The token refused the PIN: it must not be shown again.
    pub(super) pin_refused: bool,
}

/// The bytes of a frame: two lengths (4 bytes each, big endian), the JSON, the secret.
pub(super) fn frame(message: &impl Serialize, secret: &[u8]) -> Zeroizing<Vec<u8>> {
    let json = serde_json::to_vec(message).expect("these messages have only string keys");
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes();
    // In one piece from the start: a growing vector leaves copies behind.
    let mut bytes =
        Zeroizing::new(Vec::with_capacity([json.len(), secret.len()].into_iter().fold(8, usize::saturating_add)));
    bytes.extend_from_slice(&length(&json));
    bytes.extend_from_slice(&length(secret));
    bytes.extend_from_slice(&json);
    bytes.extend_from_slice(secret);
    bytes
}

/// The two lengths that a frame begins with.
///
/// # Errors
/// A frame that is longer than any of ours.
pub(super) fn lengths(head: [u8; 8]) -> io::Result<(usize, usize)> {
    let length = |bytes: &[u8]| bytes.iter().fold(0_usize, |length, byte| (length << 8) | usize::from(*byte));
    let (json, secret) = (length(&head[..4]), length(&head[4..]));
    if json.saturating_add(secret) > MAX_FRAME_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame of an impossible length"));
    }
    Ok((json, secret))
}

/// The message and the secret of a frame's body.
pub(super) fn parse<T: DeserializeOwned>(body: &[u8], json: usize) -> io::Result<(T, Zeroizing<Vec<u8>>)> {
    let (message, secret) = body.split_at(json);
    Ok((serde_json::from_slice(message)?, Zeroizing::new(secret.to_vec())))
}

/// Reads a frame; `None` at the end.
pub(super) fn read<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<Option<(T, Zeroizing<Vec<u8>>)>> {
    let mut head = [0; 8];
    match from.read_exact(&mut head) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        result => result?,
    }
    let (json, secret) = lengths(head)?;
    let mut body = Zeroizing::new(vec![0; json.saturating_add(secret)]);
    from.read_exact(&mut body)?;
    parse(&body, json).map(Some)
}

/// Writes a frame.
pub(super) fn write(to: &mut impl Write, message: &impl Serialize, secret: &[u8]) -> io::Result<()> {
    to.write_all(&frame(message, secret))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_read_as_it_was_written_and_its_secret_is_not_in_the_json() {
        let call = Call::Wrap { context: vec![1, 2, 3] };
        let bytes = frame(&Request { number: 7, call }, &[0xab; 32]);
        let (read, secret): (Request, _) = read(&mut bytes.as_slice()).unwrap().unwrap();
        assert_eq!((read.number, secret.as_slice()), (7, [0xab; 32].as_slice()));
        assert!(matches!(read.call, Call::Wrap { context } if context == [1, 2, 3]));
        assert!(!bytes[..bytes.len() - 32].windows(4).any(|part| part == [0xab; 4]));
    }

    #[test]
    fn a_cut_or_impossible_frame_is_refused() {
        let bytes = frame(&Request { number: 1, call: Call::Version }, &[]);
        assert!(read::<Request>(&mut &bytes[..bytes.len() - 1]).is_err());
        assert!(read::<Request>(&mut [0xff; 8].as_slice()).is_err());
        assert!(read::<Request>(&mut [].as_slice()).unwrap().is_none());
    }
}
