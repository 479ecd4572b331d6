//! Requests to the servers of one Vault or OpenBao cluster: which is asked, over which TLS, and how much of an
//! answer is read.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwap;
use reqwest::header::{DATE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Identity, Response};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::SecretText;
use super::error::failure;
use super::request::Request;
use super::settings::{ClientCertificate, TransitConfig};
use crate::kek::KekError;
use crate::kek::clock::ServerClock;
use crate::key_stores::shared::tls;

/// No answer that is of use here comes near it: a key with thousands of versions takes less.
const MAX_ANSWER_BYTES: usize = 1 << 20;
/// For one address of several, so that the next one is asked within the deadline of a call.
const TIMEOUT_OF_SEVERAL: Duration = Duration::from_secs(1);
const TIMEOUT_OF_ONE: Duration = Duration::from_secs(2);

/// The servers of one cluster.
#[derive(Debug)]
pub(super) struct Client {
    settings: TransitConfig,
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
    connected: bool,
}

impl From<Failure> for KekError {
    fn from(failure: Failure) -> Self {
        failure.error
    }
}

impl Client {
    pub fn new(settings: &TransitConfig) -> Result<Self, KekError> {
        if settings.insecure_http {
            tracing::warn!("insecureHttp is set: tokens and DEKs may cross the network in clear");
        }
        let http = ArcSwap::from_pointee(connect(settings)?);
        Ok(Self { settings: settings.clone(), http, preferred: AtomicUsize::new(0), clock: ServerClock::default() })
    }

    /// The clock of the server that answered last.
    pub fn clock(&self) -> &ServerClock {
        &self.clock
    }

    /// Takes changed certificate files in. What cannot be read leaves the former ones in use.
    pub fn reload(&self) {
        match connect(&self.settings) {
            Ok(http) => self.http.store(http.into()),
            Err(error) => tracing::warn!(error = error.chain(), "certificate files not reloaded"),
        }
    }

    /// Asks one address after the other until one answers; the one that did is asked first the next time.
    pub async fn send(&self, request: &Request, token: Option<&SecretText>) -> Result<Answer, Failure> {
        let count = self.settings.addresses.len();
        let first = self.preferred.load(Relaxed);
        let mut last = None;
        for index in (0..count).map(|step| (first + step) % count) {
            match self.send_to(&self.settings.addresses[index], request, token).await {
                Ok(answer) => {
                    self.preferred.store(index, Relaxed);
                    return Ok(answer);
                }
                Err(failure) if failure.another_may_answer(request) => last = Some(failure),
                Err(failure) => return Err(failure),
            }
        }
        let failure = last.unwrap_or_else(|| Failure::of(KekError::misconfigured("addresses lists no server")));
        if !failure.connected && (self.settings.ca_file.is_some() || self.settings.client_certificate.is_some()) {
            // Perhaps the server has a certificate of a new issuer by now.
            self.reload();
        }
        Err(failure)
    }

    async fn send_to(&self, address: &str, request: &Request, token: Option<&SecretText>) -> Result<Answer, Failure> {
        let url = format!("{}/v1/{}", address.trim_end_matches('/'), request.path);
        let timeout = if self.settings.addresses.len() > 1 { TIMEOUT_OF_SEVERAL } else { TIMEOUT_OF_ONE };
        let mut builder = self.http.load().request(request.method.clone(), &url).timeout(timeout);
        builder = builder.headers(self.headers(token)?);
        if let Some(body) = &request.body {
            builder = builder.header("content-type", "application/json").body(body.clone());
        }
        let response = builder.send().await.map_err(|error| Failure {
            connected: !error.is_connect(),
            forbidden: false,
            error: KekError::unavailable(format!("no answer from {address}")).with_source(error),
        })?;
        let status = response.status().as_u16();
        let wait = retry_after(response.headers());
        if let Some(date) = response.headers().get(DATE).and_then(|date| date.to_str().ok()) {
            self.clock.note(date);
        }
        let body = read(response, address).await?;
        if (200..300).contains(&status) {
            return Ok(Answer { body, path: request.path.clone() });
        }
        let messages = serde_json::from_slice(&body).map_or_else(|_| Vec::new(), |Messages { errors }| errors);
        let error = failure(request, status, &messages, wait);
        Err(Failure { error, forbidden: status == 403, connected: true })
    }

    fn headers(&self, token: Option<&SecretText>) -> Result<HeaderMap, Failure> {
        let mut headers = HeaderMap::new();
        headers.insert("x-vault-request", HeaderValue::from_static("true"));
        let namespace = self.settings.namespace();
        if !namespace.is_empty() {
            let value = HeaderValue::from_str(namespace)
                .map_err(|_| Failure::of(KekError::misconfigured("namespace holds characters that no header may")))?;
            headers.insert("x-vault-namespace", value);
        }
        if let Some(token) = token {
            let mut value = HeaderValue::from_str(&token.0)
                .map_err(|_| Failure::of(KekError::misconfigured("the token holds characters that no header may")))?;
            value.set_sensitive(true);
            headers.insert("x-vault-token", value);
        }
        Ok(headers)
    }
}

impl Failure {
    fn of(error: KekError) -> Self {
        Self { error, forbidden: false, connected: true }
    }

    fn another_may_answer(&self, request: &Request) -> bool {
        !self.connected || (request.repeatable && self.error.cause() == crate::kek::KekCause::Unavailable)
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

#[derive(Deserialize)]
struct Messages {
    errors: Vec<String>,
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

/// The header's form in seconds; the form as a date is not used by these servers.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok().map(Duration::from_secs)
}

fn connect(settings: &TransitConfig) -> Result<reqwest::Client, KekError> {
    let encrypted_only = settings.addresses.iter().all(|address| address.starts_with("https:"));
    let mut builder = tls::builder(settings.ca_file.as_deref())?.https_only(encrypted_only);
    if let Some(certificate) = &settings.client_certificate {
        builder = builder.identity(identity(certificate)?);
    }
    tls::build(builder)
}

fn identity(ClientCertificate { cert_file, key_file }: &ClientCertificate) -> Result<Identity, KekError> {
    let mut pem = read_file("clientCertificate.certFile", cert_file)?;
    pem.push(b'\n');
    let key = read_file("clientCertificate.keyFile", key_file)?;
    pem.reserve_exact(key.len());
    pem.extend_from_slice(&key);
    Identity::from_pem(&pem).map_err(|_| {
        KekError::misconfigured(format!(
            "clientCertificate: {} and {} hold no PEM certificate with its key",
            cert_file.display(),
            key_file.display()
        ))
    })
}

fn read_file(field: &str, file: &std::path::Path) -> Result<Zeroizing<Vec<u8>>, KekError> {
    std::fs::read(file)
        .map(Zeroizing::new)
        .map_err(|error| KekError::misconfigured(format!("cannot read {field} {}", file.display())).with_source(error))
}
