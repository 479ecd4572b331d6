//! Keys: what their versions encrypt, when they refuse, and how an answer is damaged on its way.

use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::{Outcome, invalid, refusal};

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    None,
    Plaintext,
    Ciphertext,
    PlaintextNotVerified,
    AadNotVerified,
    OtherVersion,
}

pub struct Key {
    pub purpose: &'static str,
    pub primary: usize,
    pub versions: Vec<Version>,
}

pub struct Version {
    pub state: &'static str,
    pub(super) created: String,
    material: [u8; 32],
}

impl Key {
    pub fn new() -> Self {
        Self { purpose: "ENCRYPT_DECRYPT", primary: 1, versions: vec![Version::new("ENABLED")] }
    }

    pub fn rotate(&mut self) {
        self.versions.push(Version::new("ENABLED"));
        self.primary = self.versions.len();
    }
}

impl Version {
    pub(super) fn new(state: &'static str) -> Self {
        let mut material = [0; 32];
        aws_lc_rs::rand::fill(&mut material).expect("random");
        // Nine digits, as a protobuf timestamp in JSON has them.
        let created = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%9fZ").to_string();
        Self { state, created, material }
    }

    pub(super) fn json(&self, key: &str, number: usize) -> Value {
        json!({"name": version_name(key, number), "state": self.state, "createTime": self.created,
            "protectionLevel": "SOFTWARE", "algorithm": "GOOGLE_SYMMETRIC_ENCRYPTION"})
    }
}

fn version_name(key: &str, number: usize) -> String {
    format!("{key}/cryptoKeyVersions/{number}")
}

impl Key {
    pub(super) fn make_primary(&mut self, key: &str, body: &Value) -> Outcome {
        fields(body, &["cryptoKeyVersionId"])?;
        let number = body["cryptoKeyVersionId"].as_str().and_then(|id| id.parse().ok()).unwrap_or(0);
        if number == 0 || number > self.versions.len() {
            return Err(refusal(404, "NOT_FOUND", "CryptoKeyVersion not found.", &json!([])));
        }
        self.primary = number;
        Ok(json!({"name": key, "purpose": self.purpose, "primary": self.versions[number - 1].json(key, number)}))
    }

    fn usable(&self, key: &str, number: usize) -> Result<&Version, (u16, Value)> {
        let version = &self.versions[number - 1];
        if version.state == "ENABLED" {
            return Ok(version);
        }
        let (name, state) = (version_name(key, number), version.state);
        let details = json!([{"@type": "type.googleapis.com/google.rpc.PreconditionFailure",
            "violations": [{"type": format!("KEY_{state}"), "subject": name}]}]);
        let message = format!("{name} is not enabled, current state is: {state}.");
        Err(refusal(400, "FAILED_PRECONDITION", &message, &details))
    }

    /// A ciphertext tells its key and version, as Google's does: number ‖ nonce ‖ AES-GCM.
    pub(super) fn encrypt(&self, key: &str, number: usize, body: &Value, damage: Damage) -> Outcome {
        fields(
            body,
            &["plaintext", "plaintextCrc32c", "additionalAuthenticatedData", "additionalAuthenticatedDataCrc32c"],
        )?;
        let plaintext = checked(body, "plaintext")?;
        let aad = checked(body, "additionalAuthenticatedData")?;
        let version = self.usable(key, number)?;
        let cipher = RandomizedNonceKey::new(&AES_256_GCM, &version.material).expect("a key");
        let mut sealed = plaintext;
        let nonce = cipher.seal_in_place_append_tag(Aad::from(aad), &mut sealed).expect("seals");
        let mut ciphertext = [&(number as u64).to_be_bytes()[..], nonce.as_ref(), &sealed].concat();
        let crc = crc32c::crc32c(&ciphertext);
        if damage == Damage::Ciphertext {
            ciphertext[20] ^= 1;
        }
        let named = if damage == Damage::OtherVersion { number + 1 } else { number };
        Ok(json!({"name": version_name(key, named), "ciphertext": BASE64_STANDARD.encode(&ciphertext),
            "ciphertextCrc32c": crc.to_string(), "verifiedPlaintextCrc32c": damage != Damage::PlaintextNotVerified,
            "verifiedAdditionalAuthenticatedDataCrc32c": damage != Damage::AadNotVerified, "protectionLevel": "SOFTWARE"}))
    }

    pub(super) fn decrypt(&self, key: &str, body: &Value, damage: Damage) -> Outcome {
        fields(
            body,
            &["ciphertext", "ciphertextCrc32c", "additionalAuthenticatedData", "additionalAuthenticatedDataCrc32c"],
        )?;
        let ciphertext = checked(body, "ciphertext")?;
        let aad = checked(body, "additionalAuthenticatedData")?;
        let failed = || invalid("Decryption failed: the ciphertext is invalid.");
        let (number, rest) = ciphertext.split_first_chunk().ok_or_else(failed)?;
        let (nonce, sealed) = rest.split_first_chunk::<12>().ok_or_else(failed)?;
        let number = usize::try_from(u64::from_be_bytes(*number)).map_err(|_| failed())?;
        if number == 0 || number > self.versions.len() {
            return Err(failed());
        }
        let version = self.usable(key, number)?;
        let cipher = RandomizedNonceKey::new(&AES_256_GCM, &version.material).expect("a key");
        let mut sealed = sealed.to_vec();
        let opened = cipher.open_in_place(Nonce::from(nonce), Aad::from(aad), &mut sealed);
        let plain = opened.map_err(|_| failed())?;
        let crc = crc32c::crc32c(plain);
        if damage == Damage::Plaintext {
            plain[0] ^= 1;
        }
        Ok(json!({"plaintext": BASE64_STANDARD.encode(plain), "plaintextCrc32c": crc.to_string(),
            "usedPrimary": number == self.primary, "protectionLevel": "SOFTWARE"}))
    }
}

/// A field of bytes, and the checksum that must be with it and right.
fn checked(body: &Value, field: &str) -> Result<Vec<u8>, (u16, Value)> {
    let text = body[field].as_str().unwrap_or_default();
    let bytes =
        BASE64_STANDARD.decode(text).map_err(|_| invalid(&format!("Invalid value at '{field}' (TYPE_BYTES)")))?;
    // A 64-bit number is a string in JSON; this fake also insists that there is one.
    let sent = body[format!("{field}Crc32c")].as_str().and_then(|crc| crc.parse::<u32>().ok());
    if sent == Some(crc32c::crc32c(&bytes)) {
        Ok(bytes)
    } else {
        Err(invalid(&format!("The checksum in field {field}_crc32c did not match the data in field {field}.")))
    }
}

fn fields(body: &Value, known: &[&str]) -> Result<(), (u16, Value)> {
    match body.as_object().into_iter().flatten().find(|(name, _)| !known.contains(&name.as_str())) {
        Some((name, _)) => Err(invalid(&format!("Invalid JSON payload received. Unknown name \"{name}\""))),
        None => Ok(()),
    }
}
