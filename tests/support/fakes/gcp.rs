//! A stand-in for Google Cloud KMS and its token endpoint, over plain HTTP: checks what the real ones check.

mod federation;
mod key;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use serde_json::{Value, json};

pub use self::key::{Damage, Key, Version};
use super::form::url_form;

const ACCOUNT: &str = "plugin@project.iam.gserviceaccount.com";
const SCOPES: [&str; 2] =
    ["https://www.googleapis.com/auth/cloudkms", "https://www.googleapis.com/auth/cloud-platform"];

/// The server of one test.
pub struct GcpFake {
    pub address: SocketAddr,
    service: Arc<Mutex<Service>>,
    private_key_pem: String,
    task: tokio::task::JoinHandle<()>,
}

/// What it knows.
pub struct Service {
    pub keys: BTreeMap<String, Key>,
    /// What the account may do with every key.
    pub permissions: HashSet<&'static str>,
    /// How the answers are damaged on their way.
    pub damage: Damage,
    /// A rotation that happens after the next question for the key and before its answer is used.
    pub rotate_before_next_encrypt: bool,
    pub refuses_tokens: bool,
    pub tokens: HashMap<String, Instant>,
    pub tokens_given: usize,
    pub token_life: Duration,
    /// The other issuer's token that the pool accepts.
    pub subject_token: String,
    federated: HashSet<String>,
    token_uri: String,
    public_key: Vec<u8>,
}

type Reply = (StatusCode, [(&'static str, &'static str); 1], String);

fn reply(status: u16, body: &Value) -> Reply {
    let status = StatusCode::from_u16(status).expect("a status");
    (status, [("content-type", "application/json; charset=UTF-8")], body.to_string())
}

/// Google's error body.
pub fn refusal(code: u16, status: &str, message: &str, details: &Value) -> (u16, Value) {
    (code, json!({"error": {"code": code, "message": message, "status": status, "details": details}}))
}

fn invalid(message: &str) -> (u16, Value) {
    refusal(400, "INVALID_ARGUMENT", message, &json!([]))
}

impl GcpFake {
    pub async fn start() -> Self {
        let pair = KeyPair::generate(KeySize::Rsa2048).expect("an RSA key");
        let der: Pkcs8V1Der = pair.as_der().expect("PKCS#8");
        let text = BASE64_STANDARD.encode(der.as_ref());
        let lines: Vec<&str> = text.as_bytes().chunks(64).map(|l| std::str::from_utf8(l).expect("ascii")).collect();
        let private_key_pem = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n"));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let service = Arc::new(Mutex::new(Service {
            keys: BTreeMap::new(),
            permissions: HashSet::from([
                "get",
                "getVersion",
                "useToEncrypt",
                "useToDecrypt",
                "create",
                "update",
                "getAccessToken",
            ]),
            damage: Damage::None,
            rotate_before_next_encrypt: false,
            refuses_tokens: false,
            tokens: HashMap::new(),
            tokens_given: 0,
            token_life: Duration::from_hours(1),
            subject_token: "header.claims.signature".into(),
            federated: HashSet::new(),
            token_uri: format!("http://{address}/token"),
            public_key: pair.public_key().as_ref().to_vec(),
        }));
        let app = axum::Router::new().fallback(answer).with_state(service.clone());
        let task = tokio::spawn(async move { axum::serve(listener, app).await.expect("serves") });
        Self { address, service, private_key_pem, task }
    }

    /// Serves the metadata service's address as well.
    pub async fn serve_metadata(&self, address: &str) -> tokio::task::JoinHandle<()> {
        let listener = tokio::net::TcpListener::bind(address).await.expect("the metadata address");
        let app = axum::Router::new().fallback(answer).with_state(self.service.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.expect("serves") })
    }

    pub fn service(&self) -> MutexGuard<'_, Service> {
        self.service.lock().expect("not poisoned")
    }

    /// The account's key file, as the console gives it out.
    pub fn credentials(&self) -> String {
        json!({"type": "service_account", "project_id": "project", "private_key_id": "1",
            "private_key": self.private_key_pem, "client_email": ACCOUNT, "client_id": "1",
            "token_uri": self.service().token_uri})
        .to_string()
    }
}

impl GcpFake {
    /// What another plugin gets that asks for an encryption without associated data: the version's name, and the
    /// ciphertext.
    pub fn encrypt(&self, key: &str, plain: &[u8]) -> (String, Vec<u8>) {
        let service = self.service();
        let held = &service.keys[key];
        let body = with_checksums(&[("plaintext", plain), ("additionalAuthenticatedData", b"")]);
        let answer = held.encrypt(key, held.primary, &body, Damage::None).expect("encrypts");
        let ciphertext = BASE64_STANDARD.decode(answer["ciphertext"].as_str().expect("text")).expect("base64");
        (answer["name"].as_str().expect("a name").to_owned(), ciphertext)
    }

    /// What it gets for a decryption.
    pub fn decrypt(&self, key: &str, ciphertext: &[u8]) -> Option<Vec<u8>> {
        let body = with_checksums(&[("ciphertext", ciphertext), ("additionalAuthenticatedData", b"")]);
        let answer = self.service().keys[key].decrypt(key, &body, Damage::None).ok()?;
        BASE64_STANDARD.decode(answer["plaintext"].as_str()?).ok()
    }
}

fn with_checksums(fields: &[(&str, &[u8])]) -> Value {
    let both = |(name, bytes): &(&str, &[u8])| {
        let crc = (format!("{name}Crc32c"), json!(crc32c::crc32c(bytes).to_string()));
        [((*name).to_owned(), json!(BASE64_STANDARD.encode(bytes))), crc]
    };
    Value::Object(fields.iter().flat_map(both).collect())
}

impl Drop for GcpFake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(
    State(service): State<Arc<Mutex<Service>>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Reply {
    let mut service = service.lock().expect("not poisoned");
    let outcome = match uri.path() {
        "/token" => service.give_token(&body),
        "/v1/token" => service.exchange_token(&body),
        path if path.ends_with(":generateAccessToken") => service.lend_token(&headers, &body),
        path if path.starts_with("/computeMetadata/v1/") => return service.metadata(path, &headers),
        _ => service.kms(&method, &uri, &headers, &body),
    };
    match outcome {
        Ok(body) => reply(200, &body),
        Err((status, body)) => reply(status, &body),
    }
}

type Outcome = Result<Value, (u16, Value)>;

impl Service {
    fn give_token(&mut self, body: &[u8]) -> Outcome {
        let refuse = |why: &str| Err((400, json!({"error": "invalid_grant", "error_description": why})));
        let form = url_form(body);
        if form.get("grant_type").map(String::as_str) != Some("urn:ietf:params:oauth:grant-type:jwt-bearer") {
            return Err((400, json!({"error": "unsupported_grant_type"})));
        }
        let assertion = form.get("assertion").map_or("", String::as_str);
        let Some((signed, signature)) = assertion.rsplit_once('.') else { return refuse("no JWT") };
        let signature = BASE64_URL_SAFE_NO_PAD.decode(signature).unwrap_or_default();
        let key = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, &self.public_key);
        if self.refuses_tokens || key.verify(signed.as_bytes(), &signature).is_err() {
            return refuse("Invalid JWT Signature.");
        }
        let claims = signed.split_once('.').and_then(|(_, claims)| BASE64_URL_SAFE_NO_PAD.decode(claims).ok());
        let claims: Value = serde_json::from_slice(&claims.unwrap_or_default()).unwrap_or_default();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
        let (issued, ends) = (claims["iat"].as_u64().unwrap_or(0), claims["exp"].as_u64().unwrap_or(0));
        if issued > now + 60 || ends <= now || ends > issued + 3600 {
            return refuse("Invalid JWT: Token must be a short-lived token and in a reasonable timeframe.");
        }
        if claims["iss"] != ACCOUNT || claims["aud"] != self.token_uri.as_str() {
            return refuse("Invalid JWT: wrong issuer or audience.");
        }
        if !claims["scope"].as_str().unwrap_or("").split(' ').any(|scope| SCOPES.contains(&scope)) {
            return Err((400, json!({"error": "invalid_scope"})));
        }
        Ok(self.new_token())
    }

    fn new_token(&mut self) -> Value {
        self.tokens_given += 1;
        let token = format!("ya29.fake-{}", self.tokens_given);
        self.tokens.insert(token.clone(), Instant::now() + self.token_life);
        json!({"access_token": token, "expires_in": self.token_life.as_secs(), "token_type": "Bearer"})
    }

    fn metadata(&mut self, path: &str, headers: &HeaderMap) -> Reply {
        if headers.get("metadata-flavor").is_none_or(|flavor| flavor != "Google") {
            return reply(403, &json!("Missing Metadata-Flavor:Google header."));
        }
        match path.trim_start_matches("/computeMetadata/v1/") {
            "instance/service-accounts/default/token" => reply(200, &self.new_token()),
            "project/project-id" => (StatusCode::OK, [("content-type", "application/text")], "project".into()),
            _ => reply(404, &json!("Not Found")),
        }
    }

    fn kms(&mut self, method: &Method, uri: &Uri, headers: &HeaderMap, body: &[u8]) -> Outcome {
        let token = headers.get("authorization").and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        if token.and_then(|token| self.tokens.get(token)).is_none_or(|ends| *ends <= Instant::now()) {
            let details = json!([{"@type": "type.googleapis.com/google.rpc.ErrorInfo",
                "reason": "ACCESS_TOKEN_EXPIRED", "domain": "googleapis.com"}]);
            let message = "Request had invalid authentication credentials. Expected OAuth 2 access token.";
            return Err(refusal(401, "UNAUTHENTICATED", message, &details));
        }
        let path = uri.path().strip_prefix("/v1/").unwrap_or_default();
        let (resource, verb) = path.rsplit_once(':').unwrap_or((path, ""));
        let (key, version) = match resource.split_once("/cryptoKeyVersions") {
            Some((key, version)) => (key, Some(version.trim_start_matches('/'))),
            None => (resource, None),
        };
        let body: Value = if body.is_empty() {
            json!({})
        } else {
            serde_json::from_slice(body).map_err(|_| invalid("Invalid JSON payload received."))?
        };
        let permission = match (method.as_str(), verb, version) {
            ("GET", "", None) => "get",
            ("GET", "", Some(_)) => "getVersion",
            ("POST", "", Some("")) => "create",
            ("POST", "encrypt", _) => "useToEncrypt",
            ("POST", "decrypt", None) => "useToDecrypt",
            ("POST", "updatePrimaryVersion", None) => "update",
            _ => return Err((404, json!("<html>The requested URL was not found on this server.</html>"))),
        };
        if !self.permissions.contains(permission) {
            let message =
                format!("Permission 'cloudkms.{permission}' denied on resource '{resource}' (or it may not exist).");
            let details =
                json!([{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "IAM_PERMISSION_DENIED"}]);
            return Err(refusal(403, "PERMISSION_DENIED", &message, &details));
        }
        if verb == "encrypt" && std::mem::take(&mut self.rotate_before_next_encrypt) {
            self.keys.get_mut(key).expect("a key to rotate").rotate();
        }
        let damage = self.damage;
        let Some(held) = self.keys.get_mut(key) else {
            return Err(refusal(404, "NOT_FOUND", &format!("CryptoKey {key} not found."), &json!([])));
        };
        let number = version.filter(|text| !text.is_empty()).map(|text| text.parse().unwrap_or(0));
        if number.is_some_and(|number: usize| number == 0 || number > held.versions.len()) {
            return Err(refusal(404, "NOT_FOUND", &format!("CryptoKeyVersion {resource} not found."), &json!([])));
        }
        match permission {
            "get" => Ok(json!({"name": key, "purpose": held.purpose, "createTime": held.versions[0].created,
                "primary": held.versions[held.primary - 1].json(key, held.primary)})),
            "getVersion" => number.map(|n| held.versions[n - 1].json(key, n)).ok_or_else(|| invalid("no version")),
            "create" => {
                held.versions.push(Version::new("PENDING_GENERATION"));
                let made = held.versions.len();
                let answer = held.versions[made - 1].json(key, made);
                held.versions[made - 1].state = "ENABLED";
                Ok(answer)
            }
            "update" => held.make_primary(key, &body),
            "useToEncrypt" => held.encrypt(key, number.unwrap_or(held.primary), &body, damage),
            _ => held.decrypt(key, &body, damage),
        }
    }
}
