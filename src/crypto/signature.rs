//! Signing with a key in a file, and checking signatures by whatever kind of key a key store signs with.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ED25519, Ed25519KeyPair, KeyPair, RSA_PKCS1_2048_8192_SHA256,
    RSA_PSS_2048_8192_SHA256, UnparsedPublicKey, VerificationAlgorithm,
};
use base64::{Engine, prelude::BASE64_STANDARD};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// Before the 32 bytes of an Ed25519 key in a `SubjectPublicKeyInfo` (RFC 8410).
const ED25519_HEADER: [u8; 12] = [0x30, 0x2A, 0x30, 0x05, 0x06, 0x03, 0x2B, 0x65, 0x70, 0x03, 0x21, 0x00];

/// What a public key may be for. A signature that is right by any of these is right: which one is the key's own affair.
const ALGORITHMS: [&dyn VerificationAlgorithm; 5] = [
    &ED25519,
    &ECDSA_P256_SHA256_ASN1,
    &ECDSA_P384_SHA384_ASN1,
    &RSA_PSS_2048_8192_SHA256,
    &RSA_PKCS1_2048_8192_SHA256,
];

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SignatureKeyError {
    /// Something else is in the file.
    #[error("it has no PEM block {0:?}")]
    NoBlock(&'static str),
    /// It is of another kind.
    #[error("it is not an Ed25519 key in PKCS#8, as openssl genpkey -algorithm ed25519 makes it")]
    NotEd25519,
}

/// A private Ed25519 key.
#[derive(Debug)]
pub struct SigningKey(Ed25519KeyPair);

impl SigningKey {
    /// Reads PEM, `PRIVATE KEY`.
    ///
    /// # Errors
    /// [`SignatureKeyError`].
    pub fn from_pem(pem: &str) -> Result<Self, SignatureKeyError> {
        let der = Zeroizing::new(block(pem, "PRIVATE KEY")?);
        Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der).map(Self).map_err(|_| SignatureKeyError::NotEd25519)
    }

    /// The Ed25519 signature of `message`: 64 bytes.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.0.sign(message).as_ref().to_vec()
    }

    /// Its public half.
    pub fn public(&self) -> PublicKey {
        PublicKey([&ED25519_HEADER, self.0.public_key().as_ref()].concat())
    }
}

/// A public key, as a `SubjectPublicKeyInfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey(Vec<u8>);

impl PublicKey {
    /// Reads PEM, `PUBLIC KEY`: Ed25519, ECDSA with P-256 or P-384, or RSA.
    ///
    /// # Errors
    /// [`SignatureKeyError`].
    pub fn from_pem(pem: &str) -> Result<Self, SignatureKeyError> {
        block(pem, "PUBLIC KEY").map(Self)
    }

    /// Whether it is the key of this signature.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let by = |algorithm| UnparsedPublicKey::new(algorithm, &self.0).verify(message, signature).is_ok();
        // Trying all is safe: each algorithm refuses a key of another kind, so a key cannot be used under the wrong one.
        ALGORITHMS.into_iter().any(by)
    }

    /// A name for it: its SHA-256, in hex.
    pub fn id(&self) -> String {
        hex::encode(Sha256::digest(&self.0))
    }
}

/// What a PEM block of this kind holds.
fn block(pem: &str, kind: &'static str) -> Result<Vec<u8>, SignatureKeyError> {
    let (begin, end) = (format!("-----BEGIN {kind}-----"), format!("-----END {kind}-----"));
    let content = pem.split_once(&begin).and_then(|(_, rest)| rest.split_once(&end)).map(|(content, _)| content);
    let text = content.map(|content| Zeroizing::new(content.split_whitespace().collect::<String>()));
    text.and_then(|text| BASE64_STANDARD.decode(text.as_bytes()).ok()).ok_or(SignatureKeyError::NoBlock(kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8410, section 10.3 and 10.1.
    const PRIVATE: &str = "-----BEGIN PRIVATE KEY-----\n\
                           MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
                           -----END PRIVATE KEY-----\n";
    const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\n\
                          MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n\
                          -----END PUBLIC KEY-----\n";

    #[test]
    fn what_the_key_of_the_rfc_signs_its_public_half_verifies() {
        let (key, public) = (SigningKey::from_pem(PRIVATE).unwrap(), PublicKey::from_pem(PUBLIC).unwrap());
        assert_eq!(key.public(), public);
        let signature = key.sign(b"message");
        assert!(public.verifies(b"message", &signature));
        assert!(!public.verifies(b"massage", &signature));
        assert!(!public.verifies(b"message", &signature[1..]));
        assert!(SigningKey::from_pem(PUBLIC).is_err());
        assert!(PublicKey::from_pem(PRIVATE).is_err());
    }
}
