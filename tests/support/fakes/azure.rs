//! A stand-in for Azure Key Vault, Managed HSM and Entra's token endpoint; the proxy before it ends TLS. Checks
//! what the real ones check, and answers as documented: a disabled key still wraps, for example.

mod certificate;
mod key;

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde_json::{Value, json};

pub use self::certificate::{Certificate, Listed};
pub use self::key::{Key, Version};
use super::form::url_form;
use super::jwt::{Signer, now};

pub const TENANT: &str = "7b795fb9-09d3-42f4-a494-38864f99ba3c";
pub const CLIENT: &str = "11111111-2222-3333-4444-555555555555";
pub const SUBJECT: &str = "system:serviceaccount:kube-system:kube-envelope";
const API_VERSIONS: [&str; 3] = ["7.4", "7.6", "2025-07-01"];
const ASSERTION: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// The server of one test.
pub struct AzureFake {
    pub address: SocketAddr,
    service: Arc<Mutex<Service>>,
    task: tokio::task::JoinHandle<()>,
}

/// What it knows.
pub struct Service {
    pub keys: BTreeMap<String, Key>,
    pub permissions: HashSet<&'static str>,
    /// The application's secret; none is accepted when empty.
    pub secret: String,
    /// The application's certificates.
    pub certificates: Listed,
    /// Tokens up to this number are not accepted any more.
    pub revoked_up_to: u64,
    pub tokens_given: u64,
    pub tokens_refused: u64,
    /// In seconds.
    pub token_life: u64,
    /// The host that `kid` has in answers.
    pub kid_host: String,
    /// The version that `kid` names in place of the true one.
    pub kid_version: Option<String>,
    /// The cluster's issuer of service account tokens, which Entra trusts.
    pub cluster: Signer,
    entra: Signer,
}

type Refusal = (u16, Vec<(&'static str, String)>, Value);
type Outcome = Result<Value, Refusal>;

fn refusal(status: u16, code: &str, message: &str, inner: Option<&str>) -> Refusal {
    let mut error = json!({"code": code, "message": message});
    if let Some(inner) = inner {
        error["innererror"] = json!({"code": inner});
    }
    (status, Vec::new(), json!({"error": error}))
}

impl AzureFake {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let service = Arc::new(Mutex::new(Service {
            keys: BTreeMap::new(),
            permissions: HashSet::from(["get", "wrapkey", "unwrapkey", "rotate"]),
            secret: "s3cret~value".into(),
            certificates: Listed::default(),
            revoked_up_to: 0,
            tokens_given: 0,
            tokens_refused: 0,
            token_life: 3600,
            kid_host: "kek.vault.azure.net".into(),
            kid_version: None,
            cluster: Signer::new(),
            entra: Signer::new(),
        }));
        let app = axum::Router::new().fallback(answer).with_state(service.clone());
        let task = tokio::spawn(async move { axum::serve(listener, app).await.expect("serves") });
        Self { address, service, task }
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

    /// What another plugin gets that asks for an encryption: the version's URL, and the ciphertext in base64url.
    pub fn encrypt(&self, name: &str, plain: &[u8]) -> (String, String) {
        let service = self.service();
        let version = service.keys[name].versions.last().expect("a version");
        let body = json!({"alg": "RSA-OAEP-256", "value": BASE64_URL_SAFE_NO_PAD.encode(plain)}).to_string();
        let sealed = version.operate("encrypt", "application/json", body.as_bytes()).expect("encrypts");
        let kid = format!("https://{}/keys/{name}/{}", service.kid_host, version.id);
        (kid, BASE64_URL_SAFE_NO_PAD.encode(sealed))
    }

    /// What it gets for a decryption by that URL.
    pub fn decrypt(&self, kid: &str, sealed: &str) -> Option<Vec<u8>> {
        let service = self.service();
        let mut versions = service.keys.values().flat_map(|key| &key.versions);
        let version = versions.find(|version| kid.ends_with(&version.id))?;
        let body = json!({"alg": "RSA-OAEP-256", "value": sealed}).to_string();
        version.operate("decrypt", "application/json", body.as_bytes()).ok()
    }

    /// A token of the cluster for the plugin's service account.
    pub fn service_account_token(&self, subject: &str) -> String {
        let claims = json!({"iss": "https://k.local", "sub": subject, "aud": ["api://AzureADTokenExchange"],
            "iat": now(), "nbf": now(), "exp": now() + 3600});
        self.service().cluster.sign(&claims)
    }
}

impl Drop for AzureFake {
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
) -> axum::response::Response {
    let mut service = service.lock().expect("not poisoned");
    let outcome = if uri.path() == format!("/{TENANT}/oauth2/v2.0/token") {
        let given = service.give_token(&body);
        service.tokens_refused += u64::from(given.is_err());
        given
    } else if uri.path() == "/metadata/identity/oauth2/token" {
        service.metadata(&uri, &headers)
    } else {
        service.vault(&method, &uri, &headers, &body)
    };
    let (status, extra, body) = outcome.map_or_else(|refusal| refusal, |body| (200, Vec::new(), body));
    let mut response = axum::response::Response::builder()
        .status(StatusCode::from_u16(status).expect("a status"))
        .header("content-type", "application/json; charset=utf-8");
    for (name, value) in extra {
        response = response.header(name, value);
    }
    response.body(body.to_string().into()).expect("an answer")
}

impl Service {
    fn give_token(&mut self, body: &[u8]) -> Outcome {
        let form = url_form(body);
        let field = |name: &str| form.get(name).map_or("", String::as_str);
        let refuse = |status, error: &str, code: u32, text: &str| {
            let description = format!("AADSTS{code}: {text}");
            let body = json!({"error": error, "error_description": description, "error_codes": [code]});
            Err((status, Vec::new(), body))
        };
        if field("grant_type") != "client_credentials" {
            return refuse(400, "unsupported_grant_type", 70003, "The app requested an unsupported grant type");
        }
        if field("client_id") != CLIENT {
            return refuse(400, "unauthorized_client", 700_016, "Application was not found in the directory.");
        }
        let assertion = field("client_assertion");
        if assertion.is_empty() {
            if self.secret.is_empty() || field("client_secret") != self.secret {
                return refuse(401, "invalid_client", 7_000_215, "Invalid client secret provided.");
            }
        } else if Self::is_by_certificate(assertion) {
            if let Err((code, text)) = self.check_certificate(assertion, field("client_assertion_type")) {
                return refuse(401, "invalid_client", code, text);
            }
        } else {
            let claims = self.cluster.verify(assertion).filter(|_| field("client_assertion_type") == ASSERTION);
            let Some(claims) = claims else {
                return refuse(401, "invalid_client", 700_027, "Client assertion failed signature validation.");
            };
            if !claims["aud"].as_array().is_some_and(|aud| aud.contains(&json!("api://AzureADTokenExchange"))) {
                return refuse(
                    401,
                    "invalid_client",
                    700_212,
                    "No matching federated identity record found for audience.",
                );
            }
            if claims["exp"].as_u64().is_none_or(|exp| exp <= now()) {
                return refuse(401, "invalid_client", 700_024, "Client assertion is not within its valid time range.");
            }
            if claims["sub"] != SUBJECT || claims["iss"] != "https://k.local" {
                return refuse(
                    401,
                    "invalid_client",
                    700_213,
                    "No matching federated identity record found for subject.",
                );
            }
        }
        let Some(audience) = field("scope").strip_suffix("/.default") else {
            return refuse(
                400,
                "invalid_scope",
                70011,
                "The provided value for the input parameter 'scope' is not valid.",
            );
        };
        let token = self.new_token(audience);
        Ok(
            json!({"token_type": "Bearer", "expires_in": self.token_life - 1, "ext_expires_in": self.token_life - 1, "access_token": token}),
        )
    }

    fn new_token(&mut self, audience: &str) -> String {
        self.tokens_given += 1;
        let claims = json!({"aud": audience, "iss": format!("https://sts.windows.net/{TENANT}/"), "appid": CLIENT,
            "uti": self.tokens_given, "iat": now(), "nbf": now(), "exp": now() + self.token_life});
        self.entra.sign(&claims)
    }

    /// The metadata service of a virtual machine with a user-assigned identity, and no other.
    fn metadata(&mut self, uri: &Uri, headers: &HeaderMap) -> Outcome {
        let query = url_form(uri.query().unwrap_or_default().as_bytes());
        let refuse = |why: &str| Err((400, Vec::new(), json!({"error": "invalid_request", "error_description": why})));
        if headers.get("metadata").is_none_or(|value| value != "true") {
            return refuse("Required metadata header not specified");
        }
        if query.get("api-version").map(String::as_str) < Some("2018-02-01") {
            return refuse("Required api-version not specified");
        }
        if query.get("client_id").map(String::as_str) != Some(CLIENT) {
            return refuse("Identity not found");
        }
        let Some(resource) = query.get("resource") else { return refuse("Required audience parameter not specified") };
        let token = self.new_token(resource);
        Ok(json!({"access_token": token, "expires_on": (now() + 3599).to_string(), "expires_in": "3599",
            "resource": resource, "token_type": "Bearer", "client_id": CLIENT}))
    }

    fn vault(&mut self, method: &Method, uri: &Uri, headers: &HeaderMap, body: &[u8]) -> Outcome {
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let hsm = header("host").contains(".managedhsm.azure.net");
        let resource = if hsm { "https://managedhsm.azure.net" } else { "https://vault.azure.net" };
        let claims = header("authorization").strip_prefix("Bearer ").and_then(|token| self.entra.verify(token));
        let accepted = claims.is_some_and(|claims| {
            claims["aud"] == resource
                && claims["exp"].as_u64().is_some_and(|exp| exp > now())
                && claims["uti"].as_u64().is_some_and(|number| number > self.revoked_up_to)
        });
        if !accepted {
            let challenge =
                format!(r#"Bearer authorization="https://login.microsoftonline.com/{TENANT}", resource="{resource}""#);
            let (status, _, body) =
                refusal(401, "Unauthorized", "AKV10000: Request is missing a Bearer or PoP token.", None);
            return Err((status, vec![("www-authenticate", challenge)], body));
        }
        let version = uri.query().unwrap_or_default().split('&').find_map(|pair| pair.strip_prefix("api-version="));
        if !version.is_some_and(|version| API_VERSIONS.contains(&version)) {
            return Err(refusal(400, "BadParameter", "api-version must be specified", None));
        }
        let segments: Vec<String> = uri.path().split('/').skip(1).map(str::to_lowercase).collect();
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        let (operation, name, version) = match (method.as_str(), segments.as_slice()) {
            ("GET", ["keys", name, version]) => ("get", *name, *version),
            ("GET", ["keys", name]) => ("get", *name, ""),
            ("POST", ["keys", name, "rotate"]) => ("rotate", *name, ""),
            ("POST", ["keys", name, version, operation @ ("wrapkey" | "unwrapkey" | "encrypt" | "decrypt")]) => {
                (*operation, *name, *version)
            }
            _ => return Err(refusal(404, "NotFound", "no such resource", None)),
        };
        if !self.permissions.contains(operation) {
            let message = format!("The user does not have keys {operation} permission on key vault 'kek'.");
            return Err(refusal(403, "Forbidden", &message, Some("ForbiddenByPolicy")));
        }
        if operation == "rotate" {
            self.keys.get_mut(name).ok_or_else(|| not_found(name))?.rotate();
        }
        let key = self.keys.get(name).filter(|key| key.hsm == hsm).ok_or_else(|| not_found(name))?;
        let version = key.versions.iter().rfind(|held| version.is_empty() || held.id == version);
        let version = version.ok_or_else(|| not_found(name))?;
        let named = self.kid_version.as_ref().unwrap_or(&version.id);
        let kid = format!("https://{}/keys/{name}/{named}", self.kid_host);
        match operation {
            "get" | "rotate" => Ok(json!({"attributes": {"enabled": version.enabled, "created": now()},
                "key": {"kid": kid, "kty": if hsm { "oct-HSM" } else { "RSA" }, "key_ops": ["wrapKey", "unwrapKey"]}})),
            _ => {
                let value = version.operate(operation, header("content-type"), body)?;
                Ok(json!({"kid": kid, "value": BASE64_URL_SAFE_NO_PAD.encode(value)}))
            }
        }
    }
}

fn not_found(name: &str) -> Refusal {
    let message = format!("A key with (name/id) {name} was not found in this key vault.");
    refusal(404, "KeyNotFound", &message, None)
}

/// How a vault that is asked too often answers.
pub fn throttled() -> (u16, Vec<(String, String)>, String) {
    let (status, _, body) =
        refusal(429, "Throttled", "Request was not processed because too many requests were received.", None);
    (status, vec![("retry-after".into(), "3".into())], body.to_string())
}
