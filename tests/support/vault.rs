//! A Vault or OpenBao server of one test, and the operator's hands on it.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const ROOT: &str = "root-of-this-test";

/// Whose server it is.
#[derive(Clone, Copy, Debug)]
pub enum Product {
    Vault,
    OpenBao,
}

/// A server in memory; ends with the test.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
    unseal_key: String,
    http: reqwest::Client,
    scheme: &'static str,
}

impl Server {
    pub async fn start() -> Self {
        Self::start_of(Product::Vault).await
    }

    pub async fn start_of(product: Product) -> Self {
        Self::spawn(product, "http", &[], reqwest::Client::new()).await
    }

    /// A server that speaks TLS and asks for client certificates; its issuer is `vault-ca.pem` in `folder`.
    pub async fn start_tls(folder: &Path) -> Self {
        let trusting = reqwest::Client::builder().tls_danger_accept_invalid_certs(true).build().expect("a client");
        let folder = format!("-dev-tls-cert-dir={}", folder.display());
        Self::spawn(Product::Vault, "https", &["-dev-tls", &folder], trusting).await
    }

    async fn spawn(product: Product, scheme: &'static str, more: &[&str], http: reqwest::Client) -> Self {
        let address = free_address();
        let mut child = Command::new(binary(product))
            .args(["server", "-dev", "-dev-no-store-token", &format!("-dev-root-token-id={ROOT}")])
            .arg(format!("-dev-listen-address={address}"))
            .args(more)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the server starts");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        let unseal_key = output
            .lines()
            .map_while(Result::ok)
            .find_map(|line| line.trim().strip_prefix("Unseal Key: ").map(str::to_owned))
            .expect("the server prints its unseal key");
        let server = Self { child, address, unseal_key, http, scheme };
        server.wait_until_ready().await;
        server
    }

    async fn wait_until_ready(&self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !self.http.get(self.url("sys/health")).send().await.is_ok_and(|answer| answer.status().is_success()) {
            assert!(Instant::now() < deadline, "the server is not ready after 30 s");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn url(&self, path: &str) -> String {
        format!("{}://{}/v1/{path}", self.scheme, self.address)
    }

    /// Does something as root, which must work.
    pub async fn write(&self, path: &str, body: Value) -> Value {
        let request = self.http.post(self.url(path)).header("x-vault-token", ROOT).json(&body);
        self.expect(request, path).await
    }

    pub async fn read(&self, path: &str) -> Value {
        let request = self.http.get(self.url(path)).header("x-vault-token", ROOT);
        self.expect(request, path).await
    }

    pub async fn delete(&self, path: &str) {
        let request = self.http.delete(self.url(path)).header("x-vault-token", ROOT);
        self.expect(request, path).await;
    }

    async fn expect(&self, request: reqwest::RequestBuilder, path: &str) -> Value {
        let answer = request.send().await.unwrap_or_else(|error| panic!("{path}: {error}"));
        let status = answer.status();
        let text = answer.text().await.expect("an answer");
        assert!(status.is_success(), "{path}: {status} {text}");
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }

    pub async fn exists(&self, path: &str) -> bool {
        let request = self.http.get(self.url(path)).header("x-vault-token", ROOT);
        request.send().await.expect("an answer").status().is_success()
    }

    /// The accessors of the tokens with the policy `plugin`.
    pub async fn plugin_accessors(&self) -> Vec<String> {
        let request = self.http.get(self.url("auth/token/accessors?list=true")).header("x-vault-token", ROOT);
        let keys = self.expect(request, "auth/token/accessors").await["data"]["keys"].clone();
        let mut found = Vec::new();
        for accessor in keys.as_array().expect("a list").iter().filter_map(Value::as_str) {
            let token = self.lookup(accessor).await;
            if token["data"]["policies"].as_array().is_some_and(|policies| policies.contains(&json!("plugin"))) {
                found.push(accessor.into());
            }
        }
        found
    }

    pub async fn was_renewed(&self, accessor: &str) -> bool {
        !self.lookup(accessor).await["data"]["last_renewal"].is_null()
    }

    /// What is known of a token, or nothing once it has ended.
    async fn lookup(&self, accessor: &str) -> Value {
        let request = self.http.post(self.url("auth/token/lookup-accessor")).header("x-vault-token", ROOT);
        let answer = request.json(&json!({ "accessor": accessor })).send().await.expect("an answer");
        answer.json().await.unwrap_or(Value::Null)
    }

    pub async fn seal(&self) {
        self.write("sys/seal", json!({})).await;
    }

    pub async fn unseal(&self) {
        self.write("sys/unseal", json!({ "key": self.unseal_key })).await;
        self.wait_until_ready().await;
    }

    pub async fn policy(&self, name: &str, rules: &str) {
        self.write(&format!("sys/policies/acl/{name}"), json!({ "policy": rules })).await;
    }

    /// A token with this policy that lives so many seconds.
    pub async fn token(&self, policy: &str, ttl: u64) -> String {
        let body = json!({ "policies": [policy], "ttl": format!("{ttl}s"), "no_default_policy": true });
        let made = self.write("auth/token/create-orphan", body).await;
        made["auth"]["client_token"].as_str().expect("a token").into()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("a bound address")
}

/// What `scripts/servers` finds or builds.
fn binary(product: Product) -> &'static Path {
    static VAULT: OnceLock<PathBuf> = OnceLock::new();
    static OPENBAO: OnceLock<PathBuf> = OnceLock::new();
    let (found, name, variable) = match product {
        Product::Vault => (&VAULT, "vault-server", "VAULT_SERVER="),
        Product::OpenBao => (&OPENBAO, "openbao-server", "OPENBAO_SERVER="),
    };
    found.get_or_init(|| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/servers");
        let output = Command::new(script).arg(name).stderr(Stdio::inherit()).output().expect("bash runs");
        let text = String::from_utf8(output.stdout).expect("paths are text");
        let path = text.lines().find_map(|line| line.strip_prefix(variable));
        path.unwrap_or_else(|| panic!("scripts/servers has no {name}: {text}")).into()
    })
}
