//! The calls of Cloud KMS's REST interface, with checksums sent and checked both ways.

use std::sync::Arc;

use base64::{Engine, prelude::BASE64_STANDARD};
use reqwest::{Method, Request};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use zeroize::Zeroizing;

use super::credentials::Google;
use super::error::{Action, kek_error};
use crate::crypto::secret::Dek;
use crate::kek::KekError;
use crate::kek::clock::ServerClock;
use crate::key_stores::shared::http;
use crate::key_stores::shared::renewing::Renewing;
use crate::key_stores::shared::secret_text::SecretText;

/// The fields of a key that are used here.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CryptoKey {
    pub(super) purpose: String,
    pub(super) primary: Option<CryptoKeyVersion>,
    #[serde(default)]
    pub(super) rotation_period: Option<String>,
    #[serde(default)]
    pub(super) destroy_scheduled_duration: Option<String>,
}

/// The fields of a version that are used here.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CryptoKeyVersion {
    pub(super) name: String,
    pub(super) state: String,
    create_time: String,
}

impl CryptoKeyVersion {
    /// The version's text: its number and, in one spelling, the time when it was made.
    pub(super) fn label(&self, key: &str) -> Result<String, KekError> {
        let created: jiff::Timestamp = self.create_time.parse().map_err(|error| {
            KekError::unmapped(format!("createTime {:?} of {}", self.create_time, self.name)).with_source(error)
        })?;
        Ok(format!("{}@{created}", self.number(key)?))
    }

    pub(super) fn created(&self) -> &str {
        &self.create_time
    }

    fn number(&self, key: &str) -> Result<u64, KekError> {
        let number = self.name.strip_prefix(key).and_then(|rest| rest.strip_prefix("/cryptoKeyVersions/"));
        number.and_then(|number| number.parse().ok()).ok_or_else(|| {
            KekError::unmapped(format!("the key's version is called {:?}, which is none of {key}", self.name))
        })
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EncryptRequest<'a> {
    plaintext: &'a str,
    plaintext_crc32c: String,
    additional_authenticated_data: String,
    additional_authenticated_data_crc32c: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EncryptResponse {
    name: String,
    ciphertext: String,
    #[serde(default)]
    ciphertext_crc32c: Option<Crc>,
    #[serde(default)]
    verified_plaintext_crc32c: bool,
    #[serde(default)]
    verified_additional_authenticated_data_crc32c: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DecryptRequest {
    ciphertext: String,
    ciphertext_crc32c: String,
    additional_authenticated_data: String,
    additional_authenticated_data_crc32c: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DecryptResponse {
    #[serde(default)]
    plaintext: SecretText,
    #[serde(default)]
    plaintext_crc32c: Option<Crc>,
}

/// A CRC32C: Google writes 64-bit numbers in JSON as strings.
#[derive(PartialEq, Eq)]
struct Crc(u32);

impl<'de> Deserialize<'de> for Crc {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Self).map_err(|_| serde::de::Error::custom("a CRC32C is a number of 32 bits"))
    }
}

fn crc(bytes: &[u8]) -> String {
    crc32c::crc32c(bytes).to_string()
}

/// One key in Cloud KMS.
#[derive(Debug)]
pub(super) struct Client {
    http: http::Client,
    base: String,
    name: String,
    tokens: Renewing<Google>,
}

impl Client {
    /// For the key `name` at `endpoint`, which ends with a slash.
    pub(super) fn new(http: http::Client, endpoint: &str, name: &str, google: Google) -> Self {
        Self { http, base: format!("{endpoint}v1/"), name: name.into(), tokens: Renewing::new(google) }
    }

    /// The clock of Google's servers.
    pub(super) fn clock(&self) -> &ServerClock {
        self.http.clock()
    }

    /// When the access token in use ends.
    pub(super) fn credentials_expire(&self) -> Option<jiff::Timestamp> {
        self.tokens.expire()
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The key with its primary version.
    pub(super) async fn key(&self) -> Result<CryptoKey, KekError> {
        self.call(Action::Key, Method::GET, &self.name, None).await
    }

    /// One version of the key, by its full name.
    pub(super) async fn version(&self, name: &str) -> Result<CryptoKeyVersion, KekError> {
        self.call(Action::Version, Method::GET, name, None).await
    }

    /// The full name of the version of this number.
    pub(super) fn version_name(&self, number: &str) -> String {
        format!("{}/cryptoKeyVersions/{number}", self.name)
    }

    pub(super) async fn create_version(&self) -> Result<CryptoKeyVersion, KekError> {
        let path = format!("{}/cryptoKeyVersions", self.name);
        self.call(Action::Rotate, Method::POST, &path, Some(b"{}")).await
    }

    pub(super) async fn make_primary(&self, version: &CryptoKeyVersion) -> Result<(), KekError> {
        let id = version.number(&self.name)?;
        let body = format!(r#"{{"cryptoKeyVersionId":"{id}"}}"#);
        let path = format!("{}:updatePrimaryVersion", self.name);
        let _: CryptoKey = self.call(Action::Rotate, Method::POST, &path, Some(body.as_bytes())).await?;
        Ok(())
    }

    /// Encrypts under exactly the version of this full name.
    pub(super) async fn encrypt(&self, version: &str, dek: &Dek, aad: &[u8]) -> Result<Vec<u8>, KekError> {
        let plaintext = Zeroizing::new(BASE64_STANDARD.encode(dek.expose()));
        let request = EncryptRequest {
            plaintext: &plaintext,
            plaintext_crc32c: crc(dek.expose()),
            additional_authenticated_data: BASE64_STANDARD.encode(aad),
            additional_authenticated_data_crc32c: crc(aad),
        };
        let body = Zeroizing::new(serde_json::to_vec(&request).expect("a request has only string keys"));
        let path = format!("{version}:encrypt");
        let answer: EncryptResponse = self.call(Action::Encrypt, Method::POST, &path, Some(&body)).await?;
        // False also where a checksum never arrived at Cloud KMS.
        if !answer.verified_plaintext_crc32c || !answer.verified_additional_authenticated_data_crc32c {
            return Err(damaged("Cloud KMS did not verify the checksums of what was sent"));
        }
        let ciphertext = BASE64_STANDARD
            .decode(&answer.ciphertext)
            .map_err(|_| damaged("the ciphertext from Cloud KMS is not base64"))?;
        if answer.ciphertext_crc32c != Some(Crc(crc32c::crc32c(&ciphertext))) {
            return Err(damaged("the ciphertext from Cloud KMS does not match its checksum"));
        }
        if answer.name != version {
            return Err(KekError::unmapped(format!("asked {version} to encrypt, but {} did", answer.name)));
        }
        Ok(ciphertext)
    }

    /// Decrypts; the key itself finds the version.
    pub(super) async fn decrypt(&self, ciphertext: &[u8], aad: &[u8]) -> Result<Zeroizing<Vec<u8>>, KekError> {
        let request = DecryptRequest {
            ciphertext: BASE64_STANDARD.encode(ciphertext),
            ciphertext_crc32c: crc(ciphertext),
            additional_authenticated_data: BASE64_STANDARD.encode(aad),
            additional_authenticated_data_crc32c: crc(aad),
        };
        let body = serde_json::to_vec(&request).expect("a request has only string keys");
        let path = format!("{}:decrypt", self.name);
        let answer: DecryptResponse = self.call(Action::Decrypt, Method::POST, &path, Some(&body)).await?;
        let plain = BASE64_STANDARD.decode(answer.plaintext.expose()).map(Zeroizing::new);
        let plain = plain.map_err(|_| damaged("the plaintext from Cloud KMS is not base64"))?;
        if answer.plaintext_crc32c != Some(Crc(crc32c::crc32c(&plain))) {
            return Err(damaged("the plaintext from Cloud KMS does not match its checksum"));
        }
        Ok(plain)
    }

    async fn call<T: DeserializeOwned>(
        &self,
        action: Action,
        method: Method,
        path: &str,
        body: Option<&[u8]>,
    ) -> Result<T, KekError> {
        self.tokens.with(|token| self.attempt(action, &method, path, body, token)).await
    }

    async fn attempt<T: DeserializeOwned>(
        &self,
        action: Action,
        method: &Method,
        path: &str,
        body: Option<&[u8]>,
        token: Arc<SecretText>,
    ) -> Result<T, KekError> {
        let answer = http::send(&self.http, self.request(method, path, body, token.expose())?).await?;
        if answer.status != 200 {
            return Err(kek_error(action, &answer));
        }
        serde_json::from_slice(&answer.body).map_err(|error| {
            // Only the place: the library's own text may quote the answer, and the answer may hold a DEK.
            let (line, column) = (error.line(), error.column());
            KekError::unmapped(format!("answer of Cloud KMS is not as expected, at {line}:{column}"))
        })
    }

    fn request(&self, method: &Method, path: &str, body: Option<&[u8]>, token: &str) -> Result<Request, KekError> {
        let mut request = self.http.request(method.clone(), format!("{}{path}", self.base)).bearer_auth(token);
        if let Some(body) = body {
            // The client wants a copy of its own; the allocator clears it as it is freed, like all memory.
            request = request.header("content-type", "application/json").body(body.to_vec());
        }
        request.build().map_err(|error| {
            KekError::misconfigured("the request to Cloud KMS cannot be made").with_source(error.without_url())
        })
    }
}

/// Damaged on its way: the same again may arrive whole.
fn damaged(what: &str) -> KekError {
    KekError::unavailable(what)
}
