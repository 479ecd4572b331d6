//! An application's certificates: made here as an operator makes them, and assertions checked as Entra checks them.

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{RSA_PSS_2048_8192_SHA256, UnparsedPublicKey};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use rcgen::{CertificateParams, DnType, KeyPair, PKCS_RSA_SHA256, PublicKeyData};
use serde_json::{Value, json};

use super::super::jwt::now;
use super::{ASSERTION, CLIENT, Service, TENANT};

/// A key and its certificate.
pub struct Certificate {
    /// Both, in the form of the plugin's file.
    pub pem: String,
    /// The key alone.
    pub key: String,
    thumbprint: String,
    public: Vec<u8>,
}

impl Certificate {
    pub fn rsa() -> Self {
        Self::of(&KeyPair::generate_for(&PKCS_RSA_SHA256).expect("an RSA key"))
    }

    /// Of a kind that Entra does not take.
    pub fn elliptic() -> Self {
        Self::of(&KeyPair::generate().expect("an ECDSA key"))
    }

    fn of(key: &KeyPair) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name.push(DnType::CommonName, "kube-envelope");
        let certificate = params.self_signed(key).expect("a certificate");
        Self {
            pem: key.serialize_pem() + &certificate.pem(),
            key: key.serialize_pem(),
            thumbprint: BASE64_URL_SAFE_NO_PAD.encode(digest(&SHA256, certificate.der())),
            public: key.subject_public_key_info(),
        }
    }
}

/// What the application lists: the key of each certificate, by thumbprint; and the assertions that were shown.
#[derive(Default)]
pub struct Listed {
    keys: Vec<(String, Vec<u8>)>,
    shown: Vec<String>,
}

impl Listed {
    pub fn add(&mut self, certificate: &Certificate) {
        self.keys.push((certificate.thumbprint.clone(), certificate.public.clone()));
    }

    /// The thumbprint of one certificate beside the key of another, to see that signatures are checked.
    pub fn add_with_key_of(&mut self, certificate: &Certificate, other: &Certificate) {
        self.keys.push((certificate.thumbprint.clone(), other.public.clone()));
    }

    pub fn clear(&mut self) {
        self.keys.clear();
    }
}

impl Service {
    /// Whether an assertion has the thumbprint of a certificate in its header.
    pub(super) fn is_by_certificate(assertion: &str) -> bool {
        part(assertion, 0).is_some_and(|header| header["x5t#S256"].is_string())
    }

    /// Why an assertion is refused, with Entra's number.
    pub(super) fn check_certificate(&mut self, assertion: &str, kind: &str) -> Result<(), (u32, &'static str)> {
        let unsigned = (700_027, "Client assertion failed signature validation.");
        let (signed, signature) = assertion.rsplit_once('.').ok_or(unsigned)?;
        let signature = BASE64_URL_SAFE_NO_PAD.decode(signature).map_err(|_| unsigned)?;
        if kind != ASSERTION {
            return Err((900_144, "The request body must contain the following parameter: 'client_assertion_type'."));
        }
        let (header, claims) = part(assertion, 0).zip(part(assertion, 1)).ok_or(unsigned)?;
        let listed = self.certificates.keys.iter().find(|(thumbprint, _)| header["x5t#S256"] == json!(thumbprint));
        let (_, key) = listed.filter(|_| header["alg"] == "PS256" && header["typ"] == "JWT").ok_or(unsigned)?;
        let key = UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA256, key);
        key.verify(signed.as_bytes(), &signature).map_err(|_| unsigned)?;
        let audience = claims["aud"].as_str().unwrap_or_default();
        if !audience.starts_with("https://") || !audience.ends_with(&format!("/{TENANT}/oauth2/v2.0/token")) {
            return Err((700_023, "Client assertion audience claim does not match Realm issuer."));
        }
        if claims["iss"] != CLIENT || claims["sub"] != CLIENT {
            return Err((700_021, "Client assertion application identifier doesn't match 'client_id' parameter."));
        }
        let time = |name: &str| claims[name].as_u64().unwrap_or_default();
        if time("nbf") > now() + 300 || time("exp") <= now() || time("exp") > now() + 600 {
            return Err((700_024, "Client assertion is not within its valid time range."));
        }
        let id = claims["jti"].as_str().unwrap_or_default().to_owned();
        if id.len() < 16 || self.certificates.shown.contains(&id) {
            return Err((50_013, "Assertion failed: its id was shown before."));
        }
        self.certificates.shown.push(id);
        Ok(())
    }
}

fn part(assertion: &str, at: usize) -> Option<Value> {
    serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(assertion.split('.').nth(at)?).ok()?).ok()
}
