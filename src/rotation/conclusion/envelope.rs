//! A DSSE envelope (secure-systems-lab/dsse, protocol.md and envelope.md, version 1.0): what is signed is the type of the
//! payload and its bytes as they are, so that nothing has to be brought into a canonical form.

use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE};
use base64::{DecodeError, Engine};
use serde::{Deserialize, Serialize};

/// A signed payload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<EnvelopeSignature>,
}

/// One entry of `signatures`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct EnvelopeSignature {
    /// A hint, which nothing is decided by.
    #[serde(default)]
    keyid: String,
    sig: String,
}

/// Why an envelope says nothing.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// It holds something else.
    #[error("its payload is of type {0:?}, not {1}")]
    Type(String, &'static str),
    /// It cannot be decoded.
    #[error("its payload or a signature is not base64")]
    Base64(#[from] DecodeError),
    /// Nobody who counts signed it.
    #[error("none of its {0} signature(s) was made with the given key: it was changed, or signed by somebody else")]
    NotSigned(usize),
}

/// What is signed for a payload.
pub fn signed_bytes(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    // PAE of protocol.md: with both lengths in front, no other pair of type and payload gives the same bytes.
    let head = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

impl Envelope {
    /// Puts a payload and the signature of [`signed_bytes`] together.
    pub fn new(payload_type: &str, payload: &[u8], keyid: &str, signature: &[u8]) -> Self {
        let signature = EnvelopeSignature { keyid: keyid.to_owned(), sig: BASE64_STANDARD.encode(signature) };
        Self {
            payload: BASE64_STANDARD.encode(payload),
            payload_type: payload_type.to_owned(),
            signatures: vec![signature],
        }
    }

    /// The payload, if `verifies` holds for one of the signatures.
    ///
    /// # Errors
    /// [`EnvelopeError`].
    pub fn opened(
        &self,
        payload_type: &'static str,
        verifies: impl Fn(&[u8], &[u8]) -> bool,
    ) -> Result<Vec<u8>, EnvelopeError> {
        let payload = self.payload_unchecked(payload_type)?;
        let message = signed_bytes(&self.payload_type, &payload);
        for signature in &self.signatures {
            if verifies(&message, &decoded(&signature.sig)?) {
                return Ok(payload);
            }
        }
        Err(EnvelopeError::NotSigned(self.signatures.len()))
    }

    /// The payload, without checking any signature.
    ///
    /// # Errors
    /// [`EnvelopeError`].
    pub fn payload_unchecked(&self, payload_type: &'static str) -> Result<Vec<u8>, EnvelopeError> {
        if self.payload_type != payload_type {
            return Err(EnvelopeError::Type(self.payload_type.clone(), payload_type));
        }
        Ok(decoded(&self.payload)?)
    }
}

/// Either alphabet is allowed.
fn decoded(text: &str) -> Result<Vec<u8>, DecodeError> {
    BASE64_STANDARD.decode(text).or_else(|_| BASE64_URL_SAFE.decode(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_signed_is_what_the_protocol_has_as_its_example() {
        let signed = signed_bytes("http://example.com/HelloWorld", b"hello world");
        assert_eq!(signed, b"DSSEv1 29 http://example.com/HelloWorld 11 hello world");
    }

    #[test]
    fn a_payload_comes_out_only_under_its_type_and_with_a_signature_that_counts() {
        let envelope = Envelope::new("t", b"payload", "k", b"signature");
        let is_right =
            |message: &[u8], signature: &[u8]| message == b"DSSEv1 1 t 7 payload" && signature == b"signature";
        assert_eq!(envelope.opened("t", is_right).unwrap(), b"payload");
        assert!(matches!(envelope.opened("u", is_right), Err(EnvelopeError::Type(..))));
        assert!(matches!(envelope.opened("t", |_, _| false), Err(EnvelopeError::NotSigned(1))));
        let read: Envelope =
            serde_json::from_str(r#"{"payload":"_-8=","payloadType":"t","signatures":[],"x":1}"#).unwrap();
        assert_eq!(
            read.payload_unchecked("t").unwrap(),
            [0xFF, 0xEF],
            "the URL-safe alphabet, and a field that is new"
        );
    }
}
