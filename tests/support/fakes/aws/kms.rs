//! A fake of KMS's protocol (JSON 1.1): keys with materials, aliases, replicas in Regions, users. It checks what
//! KMS checks: signature and clock of each request, permission, state, encryption context, key of a blob.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::{digest, hmac};
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::{Engine, prelude::BASE64_STANDARD};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

pub const ACCOUNT: &str = "111122223333";

/// The server; ends when dropped.
pub struct FakeKms {
    pub address: SocketAddr,
    state: Arc<Mutex<Kms>>,
    task: JoinHandle<()>,
}

/// What it holds. Tests change it as an administrator would.
#[derive(Default)]
pub struct Kms {
    pub keys: HashMap<String, Key>,
    /// Alias → key id.
    pub aliases: HashMap<String, String>,
    /// Access key → user.
    pub users: HashMap<String, User>,
    /// How far its clock is ahead.
    pub clock_ahead: SignedDuration,
    /// Rotate the key when the next Encrypt arrives, before it is answered.
    pub rotate_at_encrypt: bool,
    /// `DescribeKey` goes on showing the former material for so many answers after a rotation.
    pub describe_lag: usize,
    /// Decrypt's answers name no material, as `LocalStack`'s.
    pub hide_material_of_decrypt: bool,
    /// Decrypt looks for the key that a blob names, and does not find it.
    pub decrypt_finds_no_key: bool,
    pub requests: Vec<String>,
    lagging: usize,
}

pub struct Key {
    pub regions: Vec<&'static str>,
    pub state: &'static str,
    pub has_material_ids: bool,
    pub denied: Vec<&'static str>,
    pub created: f64,
    materials: Vec<Material>,
}

struct Material {
    id: String,
    key: [u8; 32],
}

#[derive(Clone)]
pub struct User {
    pub secret: String,
    /// The session token of credentials that are given out for a time.
    pub token: Option<String>,
    pub expired: bool,
    /// A role without the permission, whatever the key's own policy says.
    pub powerless: bool,
}

/// An error as KMS words it.
pub struct Refusal(&'static str, String);

impl FakeKms {
    pub async fn start() -> Self {
        let state = Arc::new(Mutex::new(Kms::default()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound address");
        let app = Router::new().fallback(answer).with_state(state.clone());
        let task = tokio::spawn(async move { axum::serve(listener, app).await.expect("serves") });
        Self { address, state, task }
    }

    pub fn shared(&self) -> Arc<Mutex<Kms>> {
        self.state.clone()
    }

    pub fn state(&self) -> MutexGuard<'_, Kms> {
        self.state.lock().expect("not poisoned")
    }
}

impl Drop for FakeKms {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Key {
    pub fn in_regions(regions: &[&'static str]) -> Self {
        let mut key = Self {
            regions: regions.to_vec(),
            state: "Enabled",
            has_material_ids: true,
            denied: Vec::new(),
            created: 1_700_000_000.125,
            materials: Vec::new(),
        };
        key.rotate();
        key
    }

    pub fn rotate(&mut self) {
        let key: [u8; 32] = rand::random();
        self.materials.push(Material { id: hex::encode(digest::digest(&digest::SHA256, &key)), key });
    }

    pub fn current_material(&self) -> &str {
        &self.materials.last().expect("a key has material").id
    }
}

async fn answer(State(kms): State<Arc<Mutex<Kms>>>, headers: HeaderMap, body: axum::body::Bytes) -> Response {
    let mut kms = kms.lock().expect("not poisoned");
    let now = Timestamp::now() + kms.clock_ahead;
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let operation = header("x-amz-target").strip_prefix("TrentService.").unwrap_or_default().to_owned();
    kms.requests.push(operation.clone());
    let result = check_signature(&kms.users, &headers, &body, now, "kms").and_then(|region| {
        let request =
            serde_json::from_slice(&body).map_err(|error| Refusal("SerializationException", error.to_string()))?;
        kms.perform(&operation, &region, &request)
    });
    let date = [("date", now.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string())];
    let json = [("content-type", "application/x-amz-json-1.1")];
    match result {
        Ok(answer) => (date, json, answer.to_string()).into_response(),
        Err(Refusal(code, message)) => {
            let status = if code == "KMSInternalException" { 500 } else { 400 };
            let body = json!({ "__type": code, "message": message }).to_string();
            (StatusCode::from_u16(status).expect("a status"), date, json, body).into_response()
        }
    }
}

impl Kms {
    /// A key in `region` for tests to use, with an alias; returns its id.
    pub fn add_key(&mut self, key: Key, alias: &str, multi_region: bool) -> String {
        let random = hex::encode(rand::random::<[u8; 16]>());
        let id = if multi_region {
            format!("mrk-{random}")
        } else {
            [&random[..8], &random[8..12], &random[12..16], &random[16..20], &random[20..]].join("-")
        };
        self.keys.insert(id.clone(), key);
        self.aliases.insert(alias.into(), id.clone());
        id
    }

    fn perform(&mut self, operation: &str, region: &str, request: &Value) -> Result<Value, Refusal> {
        let id = self.resolve(request["KeyId"].as_str().unwrap_or_default(), region)?;
        let arn = format!("arn:aws:kms:{region}:{ACCOUNT}:key/{id}");
        let key = self.keys.get_mut(&id).expect("resolved");
        if key.denied.contains(&operation) {
            return Err(Refusal(
                "AccessDeniedException",
                format!("User: arn:aws:iam::{ACCOUNT}:user/plugin is not authorized to perform: kms:{operation}"),
            ));
        }
        match (operation, key.state) {
            ("DescribeKey", _) | (_, "Enabled") => {}
            (_, "Disabled") => return Err(Refusal("DisabledException", format!("{arn} is disabled."))),
            (_, "PendingDeletion") => {
                return Err(Refusal("KMSInvalidStateException", format!("{arn} is pending deletion.")));
            }
            (_, state) => return Err(Refusal("KMSInvalidStateException", format!("{arn} is {state}."))),
        }
        match operation {
            "DescribeKey" => Ok(self.describe(&id, &arn)),
            "Encrypt" => Ok(self.encrypt(&id, &arn, request)),
            "Decrypt" => self.decrypt(&id, &arn, request),
            "RotateKeyOnDemand" => {
                key.rotate();
                self.lagging = self.describe_lag;
                Ok(json!({ "KeyId": arn }))
            }
            _ => Err(Refusal("UnknownOperationException", String::new())),
        }
    }

    fn resolve(&self, name: &str, region: &str) -> Result<String, Refusal> {
        let not_found = || Refusal("NotFoundException", format!("Key '{name}' does not exist"));
        let local = match name.strip_prefix("arn:") {
            Some(_) => name.strip_prefix(&format!("arn:aws:kms:{region}:{ACCOUNT}:")).ok_or_else(not_found)?,
            None => name,
        };
        let id = match local.strip_prefix("alias/") {
            Some(alias) => self.aliases.get(alias).ok_or_else(not_found)?,
            None => local.strip_prefix("key/").unwrap_or(local),
        };
        match self.keys.get(id) {
            Some(key) if key.regions.contains(&region) => Ok(id.to_owned()),
            _ => Err(not_found()),
        }
    }

    fn describe(&mut self, id: &str, arn: &str) -> Value {
        let key = &self.keys[id];
        let behind = usize::from(self.lagging > 0);
        self.lagging = self.lagging.saturating_sub(1);
        let mut metadata = json!({
            "KeyId": id, "Arn": arn, "AWSAccountId": ACCOUNT, "Enabled": key.state == "Enabled",
            "KeyState": key.state, "KeyUsage": "ENCRYPT_DECRYPT", "KeySpec": "SYMMETRIC_DEFAULT",
            "KeyManager": "CUSTOMER", "Origin": "AWS_KMS", "CreationDate": key.created,
        });
        if key.has_material_ids {
            metadata["CurrentKeyMaterialId"] = json!(key.materials[key.materials.len() - 1 - behind].id);
        }
        json!({ "KeyMetadata": metadata })
    }

    /// A blob is the key's id, a zero, the number of the material, a nonce, and the sealed plaintext.
    fn encrypt(&mut self, id: &str, arn: &str, request: &Value) -> Value {
        let key = self.keys.get_mut(id).expect("resolved");
        if std::mem::take(&mut self.rotate_at_encrypt) {
            key.rotate();
            self.lagging = self.describe_lag;
        }
        let number = key.materials.len() - 1;
        let nonce: [u8; 12] = rand::random();
        let mut sealed = BASE64_STANDARD.decode(request["Plaintext"].as_str().expect("a plaintext")).expect("base64");
        let (cipher, context) = (cipher(&key.materials[number]), context(request));
        cipher
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(context), &mut sealed)
            .expect("sealed");
        let blob = [id.as_bytes(), &[0, u8::try_from(number).expect("few materials")], &nonce, &sealed].concat();
        json!({ "CiphertextBlob": BASE64_STANDARD.encode(blob), "KeyId": arn, "EncryptionAlgorithm": "SYMMETRIC_DEFAULT" })
    }

    fn decrypt(&self, id: &str, arn: &str, request: &Value) -> Result<Value, Refusal> {
        if self.decrypt_finds_no_key {
            return Err(Refusal("NotFoundException", "Invalid keyID".into()));
        }
        let invalid = || Refusal("InvalidCiphertextException", String::new());
        let blob =
            BASE64_STANDARD.decode(request["CiphertextBlob"].as_str().unwrap_or_default()).map_err(|_| invalid())?;
        let end = blob.iter().position(|byte| *byte == 0).ok_or_else(invalid)?;
        let named = std::str::from_utf8(&blob[..end]).map_err(|_| invalid())?;
        let key = self.keys.get(named).ok_or_else(invalid)?;
        if named != id {
            let text = "The key ID in the request does not identify a CMK that can perform this operation.";
            return Err(Refusal("IncorrectKeyException", text.into()));
        }
        let number = usize::from(*blob.get(end + 1).ok_or_else(invalid)?);
        let nonce = blob.get(end + 2..end + 14).and_then(|nonce| nonce.try_into().ok()).ok_or_else(invalid)?;
        let material = key.materials.get(number).ok_or_else(invalid)?;
        let mut sealed = blob[end + 14..].to_vec();
        let nonce = Nonce::assume_unique_for_key(nonce);
        let plain =
            cipher(material).open_in_place(nonce, Aad::from(context(request)), &mut sealed).map_err(|_| invalid())?;
        let mut answer = json!({ "Plaintext": BASE64_STANDARD.encode(plain), "KeyId": arn, "EncryptionAlgorithm": "SYMMETRIC_DEFAULT" });
        if key.has_material_ids && !self.hide_material_of_decrypt {
            answer["KeyMaterialId"] = json!(material.id);
        }
        Ok(answer)
    }
}

fn cipher(material: &Material) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &material.key).expect("32 bytes"))
}

/// The encryption context in one order: `serde_json`'s maps are sorted by name.
fn context(request: &Value) -> String {
    request["EncryptionContext"].to_string()
}

/// Checks Signature Version 4 as AWS's own documentation describes it; returns the Region that was signed for.
pub fn check_signature(
    users: &HashMap<String, User>,
    headers: &HeaderMap,
    body: &[u8],
    now: Timestamp,
    service: &str,
) -> Result<String, Refusal> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().trim();
    let authorization = header("authorization");
    let part = |name: &str| {
        let from = authorization.split_once(name)?.1;
        Some(from.split([',', ' ']).next().unwrap_or_default())
    };
    let missing = || Refusal("MissingAuthenticationTokenException", "Missing Authentication Token".into());
    let (credential, signed, signature) = (
        part("Credential=").ok_or_else(missing)?,
        part("SignedHeaders=").ok_or_else(missing)?,
        part("Signature=").ok_or_else(missing)?,
    );
    let scope: Vec<_> = credential.split('/').collect();
    let [access_key, day, region, signed_service, "aws4_request"] = scope[..] else { return Err(missing()) };
    if signed_service != service {
        return Err(missing());
    }
    let user = users.get(access_key).ok_or_else(|| {
        Refusal("UnrecognizedClientException", "The security token included in the request is invalid.".into())
    })?;
    let canonical_headers: Vec<_> = signed.split(';').map(|name| format!("{name}:{}\n", header(name))).collect();
    let canonical_headers = canonical_headers.concat();
    let hash = |bytes: &[u8]| hex::encode(digest::digest(&digest::SHA256, bytes));
    let canonical = format!("POST\n/\n\n{canonical_headers}\n{signed}\n{}", hash(body));
    let time = header("x-amz-date");
    let to_sign =
        format!("AWS4-HMAC-SHA256\n{time}\n{day}/{region}/{service}/aws4_request\n{}", hash(canonical.as_bytes()));
    let sign =
        |key: &[u8], text: &str| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec();
    let key = [day, region, service, "aws4_request"]
        .iter()
        .fold(format!("AWS4{}", user.secret).into_bytes(), |key, text| sign(&key, text));
    if hex::encode(sign(&key, &to_sign)) != signature {
        return Err(Refusal("InvalidSignatureException", "The request signature we calculated does not match".into()));
    }
    let signed_at = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", time).map_err(|_| missing())?;
    let signed_at = jiff::tz::TimeZone::UTC.to_timestamp(signed_at).map_err(|_| missing())?;
    if now.duration_since(signed_at).abs() > SignedDuration::from_mins(5) {
        return Err(Refusal(
            "InvalidSignatureException",
            format!("Signature expired: {time} is now earlier than {now}"),
        ));
    }
    if user.token.as_deref().is_some_and(|token| token != header("x-amz-security-token")) {
        return Err(Refusal(
            "UnrecognizedClientException",
            "The security token included in the request is invalid.".into(),
        ));
    }
    if user.expired {
        return Err(Refusal("ExpiredTokenException", "The security token included in the request is expired".into()));
    }
    if user.powerless {
        let text = format!("User: arn:aws:iam::{ACCOUNT}:user/{access_key} is not authorized to perform this");
        return Err(Refusal("AccessDeniedException", text));
    }
    Ok(region.to_owned())
}
