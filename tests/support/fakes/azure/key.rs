//! Keys of the vault: what their versions wrap, and when they refuse.

use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrap};
use aws_lc_rs::rsa::{
    KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, OaepPublicEncryptingKey, PrivateDecryptingKey,
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde_json::Value;

use super::{Refusal, refusal};

pub struct Key {
    pub versions: Vec<Version>,
    pub(super) hsm: bool,
}

pub struct Version {
    pub id: String,
    pub enabled: bool,
    material: Material,
}

enum Material {
    Rsa(PrivateDecryptingKey),
    Aes([u8; 32]),
}

impl Key {
    pub fn rsa() -> Self {
        let mut key = Self { versions: Vec::new(), hsm: false };
        key.rotate();
        key
    }

    pub fn aes() -> Self {
        let mut key = Self { versions: Vec::new(), hsm: true };
        key.rotate();
        key
    }

    pub fn rotate(&mut self) {
        let mut random = [0; 48];
        aws_lc_rs::rand::fill(&mut random).expect("random");
        let (id, material) = random.split_at(16);
        let material = if self.hsm {
            Material::Aes(material.try_into().expect("32 bytes"))
        } else {
            Material::Rsa(PrivateDecryptingKey::generate(KeySize::Rsa2048).expect("an RSA key"))
        };
        self.versions.push(Version { id: hex::encode(id), enabled: true, material });
    }
}

impl Version {
    pub(super) fn operate(&self, operation: &str, content_type: &str, body: &[u8]) -> Result<Vec<u8>, Refusal> {
        let bad = |message: &str| refusal(400, "BadParameter", message, None);
        // Only what needs the private part is refused on a disabled key.
        if ["unwrapkey", "decrypt"].contains(&operation) && !self.enabled {
            let message = "Operation unwrapKey is not allowed on a disabled key.";
            return Err(refusal(403, "Forbidden", message, Some("KeyDisabled")));
        }
        let body: Value = serde_json::from_slice(body).map_err(|_| bad("Request body is not valid JSON"))?;
        let strange =
            body.as_object().is_none_or(|body| body.keys().any(|name| !["alg", "value"].contains(&name.as_str())));
        if strange || !content_type.starts_with("application/json") {
            return Err(bad("Property is not allowed"));
        }
        let value = BASE64_URL_SAFE_NO_PAD.decode(body["value"].as_str().unwrap_or_default());
        let value =
            value.ok().filter(|value| !value.is_empty()).ok_or_else(|| bad("Property has invalid value: value"))?;
        match (&self.material, body["alg"].as_str(), operation) {
            (Material::Rsa(key), Some("RSA-OAEP-256"), "wrapkey" | "encrypt") => {
                let key = OaepPublicEncryptingKey::new(key.public_key()).expect("a key");
                let mut wrapped = vec![0; key.ciphertext_size()];
                key.encrypt(&OAEP_SHA256_MGF1SHA256, &value, &mut wrapped, None)
                    .map_err(|_| bad("value is too long"))?;
                Ok(wrapped)
            }
            (Material::Rsa(key), Some("RSA-OAEP-256"), _) => {
                let key = OaepPrivateDecryptingKey::new(key.clone()).expect("a key");
                let mut plain = vec![0; key.min_output_size()];
                let plain = key.decrypt(&OAEP_SHA256_MGF1SHA256, &value, &mut plain, None);
                plain.map(|plain| plain.to_vec()).map_err(|_| bad("The parameter is incorrect."))
            }
            (Material::Aes(key), Some("A256KW"), "wrapkey") => {
                let mut wrapped = vec![0; value.len() + 8];
                let kek = AesKek::new(&AES_256, key).expect("a key");
                kek.wrap(&value, &mut wrapped)
                    .map(|wrapped| wrapped.to_vec())
                    .map_err(|_| bad("value has a wrong length"))
            }
            (Material::Aes(key), Some("A256KW"), _) => {
                let mut plain = vec![0; value.len()];
                let kek = AesKek::new(&AES_256, key).expect("a key");
                kek.unwrap(&value, &mut plain)
                    .map(|plain| plain.to_vec())
                    .map_err(|_| bad("The parameter is incorrect."))
            }
            _ => Err(bad("Key and signing algorithm are incompatible: alg")),
        }
    }
}
