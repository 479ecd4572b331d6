//! How an application proves to Entra that it has the key of its certificate: by a signed assertion in place of a secret
//! (<https://learn.microsoft.com/entra/identity-platform/certificate-credentials>). The SDK's own needs OpenSSL; here the
//! library signs that TLS has.

use std::fmt;
use std::time::SystemTime;

use async_trait::async_trait;
use azure_core::http::ClientMethodOptions;
use azure_identity::ClientAssertion;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use rand::Rng;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys, SignatureScheme};
use serde_json::json;
use sha2::{Digest, Sha256};
use url::Url;
use zeroize::Zeroizing;

use crate::crypto::seal::os_random;
use crate::kek::KekError;
use crate::key_stores::shared::credential_file::Content;

const PUBLIC_CLOUD: &str = "https://login.microsoftonline.com";

/// In seconds: it is made for one request.
const LIFE: u64 = 300;

/// A signed assertion.
pub(super) struct Assertion(Zeroizing<String>);

impl Assertion {
    /// Signs one with the key in `content`, a PEM file with key and certificate, for `client_id` of the directory
    /// `tenant_id`.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub(super) fn sign(
        content: &Content,
        (tenant_id, client_id): (&str, &str),
        authority: Option<&Url>,
    ) -> Result<Self, KekError> {
        let (thumbprint, pair) = read(content)?;
        let signer = pair.key.choose_scheme(&[SignatureScheme::RSA_PSS_SHA256]);
        let signer = signer.ok_or_else(|| wrong(content, "holds a key that is not RSA, and Entra takes no other"))?;
        // Entra refuses what is from the future; a machine whose clock is wrong is told so by `doctor`.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut id = [0; 16];
        os_random().fill_bytes(&mut id);
        let header = json!({"alg": "PS256", "typ": "JWT", "x5t#S256": thumbprint});
        let claims = json!({"aud": endpoint(authority, tenant_id), "iss": client_id, "sub": client_id,
            "jti": hex::encode(id), "nbf": now, "iat": now, "exp": now.saturating_add(LIFE)});
        let encode = |part: &serde_json::Value| BASE64_URL_SAFE_NO_PAD.encode(part.to_string());
        let signed = format!("{}.{}", encode(&header), encode(&claims));
        let signature = signer.sign(signed.as_bytes()).map_err(|_| wrong(content, "holds a key that does not sign"))?;
        Ok(Self(Zeroizing::new(format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature)))))
    }
}

#[async_trait]
impl ClientAssertion for Assertion {
    async fn secret(&self, _: Option<ClientMethodOptions<'_>>) -> azure_core::Result<String> {
        Ok(self.0.to_string())
    }
}

impl fmt::Debug for Assertion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Assertion(…)")
    }
}

/// Where the SDK will show it: configured, of the environment, or in the public cloud.
fn endpoint(authority: Option<&Url>, tenant_id: &str) -> String {
    let host = authority.map(Url::to_string).or_else(|| std::env::var("AZURE_AUTHORITY_HOST").ok());
    let host = host.unwrap_or_else(|| PUBLIC_CLOUD.to_owned());
    format!("{}/{tenant_id}/oauth2/v2.0/token", host.trim_end_matches('/'))
}

/// The thumbprint of the certificate, and its key.
fn read(content: &Content) -> Result<(String, CertifiedKey), KekError> {
    let pem = content.text.as_bytes();
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let chain = chain.map_err(|_| wrong(content, "is not PEM"))?;
    let first = chain.first().ok_or_else(|| wrong(content, "holds no certificate; append it to the key"))?;
    let thumbprint = BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(first));
    let key = PrivateKeyDer::from_pem_slice(pem)
        .map_err(|_| wrong(content, "holds no private key without a passphrase; put both into one file"))?;
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let pair = CertifiedKey::from_der(chain, key, &provider).map_err(|error| match error {
        Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            wrong(content, "begins with the certificate of another key; put that of the key first")
        }
        Error::InvalidCertificate(_) => {
            wrong(content, "holds a certificate that is not X.509 version 3; issue it again")
        }
        _ => wrong(content, "holds a private key that cannot be used; Entra takes RSA with 2048 bits or more"),
    })?;
    Ok((thumbprint, pair))
}

fn wrong(content: &Content, why: &str) -> KekError {
    KekError::misconfigured(format!("certificateFile {} {why}", content.file().display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_for_the_endpoint_of_the_directory_in_the_cloud_that_is_configured() {
        let custom = Url::parse("https://login.microsoftonline.us").unwrap();
        assert_eq!(endpoint(Some(&custom), "t"), "https://login.microsoftonline.us/t/oauth2/v2.0/token");
        assert_eq!(endpoint(None, "t"), "https://login.microsoftonline.com/t/oauth2/v2.0/token");
    }
}
