//! Requests to the servers of one Vault or OpenBao cluster: which is asked, over which TLS, and how much of an
//! answer is read.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwap;
use reqwest::header::{DATE, HeaderMap, HeaderValue};
use reqwest::{Identity, Response};
use serde::Deserialize;
use url::Url;
use zeroize::Zeroizing;

use super::error::{is_about_the_token, kek_error, messages};
use super::request::{Action, Request};
use crate::kek::clock::ServerClock;
use crate::kek::{KekCause, KekError};
use crate::key_stores::shared::secret_text::SecretText;
use crate::key_stores::shared::{retry_after, tls};

/// No answer that is of use here comes near it: a key with thousands of versions takes less.
const MAX_ANSWER_BYTES: usize = 1 << 20;
/// For one address of several, so that the next one is asked within the deadline of a call.
const TIMEOUT_OF_SEVERAL: Duration = Duration::from_secs(1);
const TIMEOUT_OF_ONE: Duration = Duration::from_secs(2);
/// A login goes on when its caller gives up, and some take their time (an LDAP, a review of a token).
const LOGIN_TIMEOUT_OF_SEVERAL: Duration = Duration::from_secs(5);
const LOGIN_TIMEOUT_OF_ONE: Duration = Duration::from_secs(15);

/// The servers of one cluster, and how they are reached.
#[derive(Clone, Debug)]
pub(super) struct Servers {
    pub(super) addresses: Vec<Url>,
    /// Without slashes around it; empty for the root namespace.
    pub(super) namespace: String,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) proxy: Option<Url>,
    pub(super) client_certificate: Option<ClientCertificate>,
}

/// A client certificate and its key, PEM. Read again at each login.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct ClientCertificate {
    /// The certificate, its issuers after it.
    pub(super) cert_file: PathBuf,
    /// Its private key.
    pub(super) key_file: PathBuf,
}

/// The servers of one cluster.
#[derive(Debug)]
pub(super) struct Client {
    servers: Servers,
    http: ArcSwap<reqwest::Client>,
    /// The address that answered last.
    preferred: AtomicUsize,
    clock: ServerClock,
}

/// A request that was answered with something else than 2xx, or not at all.
#[derive(Debug)]
pub(super) struct Failure {
    pub error: KekError,
    /// The answer was 403, which may mean the token or the policy.
    pub forbidden: bool,
    /// The server said that it does not know the token; older ones do not tell it from a policy.
    invalid_token: bool,
    connected: bool,
}

impl From<Failure> for KekError {
    fn from(failure: Failure) -> Self {
        failure.error
    }
}

impl Client {
    /// # Errors
    /// `Misconfigured` for a certificate or key that cannot be used.
    pub fn new(servers: Servers) -> Result<Self, KekError> {
        let http = ArcSwap::from_pointee(connect(&servers)?);
        Ok(Self { servers, http, preferred: AtomicUsize::new(0), clock: ServerClock::default() })
    }

    /// The clock of the server that answered last.
    pub fn clock(&self) -> &ServerClock {
        &self.clock
    }

    /// The client certificate that is shown, where there is one.
    pub fn certificate_file(&self) -> Option<&Path> {
        self.servers.client_certificate.as_ref().map(|certificate| certificate.cert_file.as_path())
    }

    /// Takes changed certificate files in. What cannot be read leaves the former ones in use.
    ///
    /// # Errors
    /// What cannot be read, or does not fit together: certificate and key are two files, and replaced one after the other.
    pub fn reload(&self) -> Result<(), KekError> {
        self.http.store(connect(&self.servers)?.into());
        Ok(())
    }

    /// Asks one address after the other until one answers; the one that did is asked first the next time.
    ///
    /// # Errors
    /// The last address' failure.
    pub async fn send(&self, request: &Request, token: Option<&SecretText>) -> Result<Answer, Failure> {
        let count = self.servers.addresses.len();
        let first = self.preferred.load(Relaxed);
        let mut last = None;
        for index in (0..count).map(|step| (first + step) % count) {
            match self.send_to(self.servers.addresses[index].as_str(), request, token).await {
                Ok(answer) => {
                    // A server that is away costs its time limit once, and not with each request.
                    self.preferred.store(index, Relaxed);
                    return Ok(answer);
                }
                Err(failure) if failure.another_may_answer(request) => last = Some(failure),
                Err(failure) => return Err(failure),
            }
        }
        let failure = last.unwrap_or_else(|| Failure::of(KekError::misconfigured("addresses lists no server")));
        if !failure.connected && (self.servers.ca_file.is_some() || self.servers.client_certificate.is_some()) {
            // Perhaps the server has a certificate of a new issuer by now.
            if let Err(error) = self.reload() {
                tracing::warn!(error = error.chain(), "certificate files not reloaded");
            }
        }
        Err(failure)
    }

    async fn send_to(&self, address: &str, request: &Request, token: Option<&SecretText>) -> Result<Answer, Failure> {
        let url = format!("{}/v1/{}", address.trim_end_matches('/'), request.path);
        let timeout = match (request.action, self.servers.addresses.len()) {
            (Action::Login, 1) => LOGIN_TIMEOUT_OF_ONE,
            (Action::Login, _) => LOGIN_TIMEOUT_OF_SEVERAL,
            (_, 1) => TIMEOUT_OF_ONE,
            _ => TIMEOUT_OF_SEVERAL,
        };
        let mut builder = self.http.load().request(request.method.clone(), &url).timeout(timeout);
        builder = builder.headers(self.headers(token)?);
        if let Some(body) = &request.body {
            builder = builder.header("content-type", "application/json").body(body.clone());
        }
        let response = builder.send().await.map_err(|error| Failure {
            connected: !error.is_connect(),
            forbidden: false,
            invalid_token: false,
            error: KekError::unavailable(format!("no answer from {address}")).with_source(error.without_url()),
        })?;
        let status = response.status().as_u16();
        let wait = retry_after::of(response.headers());
        if let Some(date) = response.headers().get(DATE).and_then(|date| date.to_str().ok()) {
            self.clock.note(date);
        }
        let body = read(response, address).await?;
        if (200..300).contains(&status) {
            return Ok(Answer { body, path: request.path.clone() });
        }
        let messages = messages(&body);
        let invalid_token = status == 403 && messages.iter().flatten().any(|said| is_about_the_token(said));
        // A 403 without Vault's form is somebody's in between, and says nothing about the token.
        let forbidden = status == 403 && messages.is_some();
        let error = kek_error(request, status, messages.as_deref(), wait);
        Err(Failure { error, forbidden, invalid_token, connected: true })
    }

    fn headers(&self, token: Option<&SecretText>) -> Result<HeaderMap, Failure> {
        let mut headers = HeaderMap::new();
        // Vault Agent and Proxy can be set to demand it (`require_request_header`), against forged requests.
        headers.insert("x-vault-request", HeaderValue::from_static("true"));
        let namespace = &self.servers.namespace;
        if !namespace.is_empty() {
            let value = HeaderValue::from_str(namespace)
                .map_err(|_| Failure::of(KekError::misconfigured("namespace cannot be sent in a header")))?;
            headers.insert("x-vault-namespace", value);
        }
        if let Some(token) = token {
            let mut value = HeaderValue::from_str(token.expose()).map_err(|_| {
                Failure::of(KekError::misconfigured("the token has characters that cannot be sent in a header"))
            })?;
            value.set_sensitive(true);
            headers.insert("x-vault-token", value);
        }
        Ok(headers)
    }
}

impl Failure {
    fn of(error: KekError) -> Self {
        Self { error, forbidden: false, invalid_token: false, connected: true }
    }

    /// Whether it is the token and nothing else.
    pub fn is_invalid_token(&self) -> bool {
        self.invalid_token
    }

    fn another_may_answer(&self, request: &Request) -> bool {
        !self.connected || (request.idempotent && self.error.cause() == KekCause::Unavailable)
    }
}

/// An answer of 2xx.
#[derive(Debug)]
pub(super) struct Answer {
    body: Zeroizing<Vec<u8>>,
    path: String,
}

impl Answer {
    /// The answer as JSON of this shape.
    ///
    /// # Errors
    /// `Unavailable`: the answer is not the server's own.
    pub fn parse<T: for<'de> Deserialize<'de>>(&self) -> Result<T, KekError> {
        // serde_json's text can quote the value it stumbled over: give the place alone.
        serde_json::from_slice(&self.body).map_err(|error| {
            KekError::unmapped(format!(
                "{} answered with other JSON than expected (line {}, column {})",
                self.path,
                error.line(),
                error.column()
            ))
        })
    }
}

async fn read(mut response: Response, address: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let too_long = || Failure::of(KekError::unavailable(format!("{address} answered over {MAX_ANSWER_BYTES} bytes")));
    let announced = response.content_length().unwrap_or_default();
    let capacity = usize::try_from(announced).ok().filter(|&length| length <= MAX_ANSWER_BYTES).ok_or_else(too_long)?;
    // In one piece from the start where the length is known: a growing vector leaves copies behind.
    let mut body = Zeroizing::new(Vec::with_capacity(capacity.max(4096)));
    loop {
        let chunk = response.chunk().await.map_err(|error| {
            Failure::of(KekError::unavailable(format!("the answer of {address} broke off")).with_source(error))
        })?;
        match chunk {
            None => return Ok(body),
            Some(chunk) if body.len() + chunk.len() > MAX_ANSWER_BYTES => return Err(too_long()),
            Some(chunk) => body.extend_from_slice(&chunk),
        }
    }
}

fn connect(servers: &Servers) -> Result<reqwest::Client, KekError> {
    // Also against a mistake elsewhere: where https alone is configured, nothing else is ever spoken.
    let encrypted_only = servers.addresses.iter().all(|address| address.scheme() == "https");
    let mut builder = tls::builder(servers.ca_file.as_deref(), servers.proxy.as_ref())?.https_only(encrypted_only);
    if let Some(certificate) = &servers.client_certificate {
        builder = builder.identity(identity(certificate)?);
    }
    tls::build(builder)
}

fn identity(ClientCertificate { cert_file, key_file }: &ClientCertificate) -> Result<Identity, KekError> {
    let mut pem = read_file("clientCertificate.certFile", cert_file)?;
    pem.push(b'\n');
    let key = read_file("clientCertificate.keyFile", key_file)?;
    // Once and exactly: growing by itself would copy the key a second time.
    pem.reserve_exact(key.len());
    pem.extend_from_slice(&key);
    Identity::from_pem(&pem).map_err(|_| {
        KekError::misconfigured(format!(
            "clientCertificate: {} and {} are not a PEM certificate and its key",
            cert_file.display(),
            key_file.display()
        ))
    })
}

fn read_file(field: &str, file: &Path) -> Result<Zeroizing<Vec<u8>>, KekError> {
    crate::files::read(file, crate::files::MAX_PEM_BYTES)
        .map(Zeroizing::new)
        .map_err(|error| KekError::unavailable(format!("cannot read {field} {}", file.display())).with_source(error))
}
