//! The HTTP client of the KEKs that are asked by REST: the time for an answer, and a limit on what is read of it. What an
//! answer means is for each kind's own mapping.

use std::error::Error;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{DATE, HeaderMap};
use reqwest::{Method, Request, RequestBuilder};
use url::Url;
use zeroize::Zeroizing;

use super::tls;
use crate::kek::KekError;
use crate::kek::clock::ServerClock;

/// The time for one request, from connecting to the last byte: two of them fit into the guard's deadline.
pub(in crate::key_stores) const ATTEMPT: Duration = Duration::from_secs(1);
/// The same for a login, which goes on when its caller gives up.
pub(in crate::key_stores) const LOGIN: Duration = Duration::from_secs(15);
/// The same where a person waits and nothing may be done twice: an HSM takes its time to make a key.
pub(in crate::key_stores) const UNHURRIED: Duration = Duration::from_secs(30);
/// The most that is read of an answer; a key's description and a wrapped DEK are far below.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// What came back: whatever its status, but whole and small.
pub(in crate::key_stores) struct Answer {
    pub(in crate::key_stores) status: u16,
    pub(in crate::key_stores) headers: HeaderMap,
    pub(in crate::key_stores) body: Zeroizing<Vec<u8>>,
}

/// The client of one KEK, and what its answers told of the servers' clock.
#[derive(Clone, Debug)]
pub(in crate::key_stores) struct Client {
    client: reqwest::Client,
    clock: Arc<ServerClock>,
}

impl Client {
    /// Begins a request; [`send`] sends it.
    pub(in crate::key_stores) fn request(&self, method: Method, url: impl reqwest::IntoUrl) -> RequestBuilder {
        self.client.request(method, url)
    }

    pub(in crate::key_stores) fn clock(&self) -> &ServerClock {
        &self.clock
    }
}

/// Whom to trust, where to connect, how long to wait.
pub(in crate::key_stores) struct Reach<'a> {
    /// PEM file with the only authorities to trust, instead of the system's.
    pub(in crate::key_stores) ca_file: Option<&'a Path>,
    /// The proxy to go through.
    pub(in crate::key_stores) proxy: Option<&'a Url>,
    /// A host name that is not looked up, and its address.
    pub(in crate::key_stores) pinned: Option<(&'a str, SocketAddr)>,
    /// The time for one request.
    pub(in crate::key_stores) answer_within: Duration,
}

impl Default for Reach<'_> {
    fn default() -> Self {
        Self { ca_file: None, proxy: None, pinned: None, answer_within: ATTEMPT }
    }
}

/// Makes the client. Follows no redirect, and uses no proxy but the configured one.
pub(in crate::key_stores) fn client(reach: &Reach) -> Result<Client, KekError> {
    let mut builder = tls::builder(reach.ca_file, reach.proxy)?.timeout(reach.answer_within);
    if let Some((host, address)) = reach.pinned {
        builder = builder.resolve(host, address);
    }
    let client = tls::build(builder)?;
    Ok(Client { client, clock: Arc::default() })
}

/// Sends `request` once and reads the answer.
///
/// # Errors
/// `Unavailable` when the answer is incomplete or too large.
pub(in crate::key_stores) async fn send(client: &Client, request: Request) -> Result<Answer, KekError> {
    let host = request.url().host_str().unwrap_or_default().to_owned();
    let mut response = client.client.execute(request).await.map_err(|error| no_answer(&host, error))?;
    let status = response.status().as_u16();
    let headers = std::mem::take(response.headers_mut());
    if let Some(date) = headers.get(DATE).and_then(|date| date.to_str().ok()) {
        client.clock.note(date);
    }
    // Never grown while it fills: growing would leave copies of a DEK behind.
    let mut body = Zeroizing::new(Vec::with_capacity(MAX_ANSWER_BYTES));
    while let Some(chunk) = response.chunk().await.map_err(|error| no_answer(&host, error))? {
        // Counted, not read from Content-Length: the server may announce anything.
        if body.len() + chunk.len() > MAX_ANSWER_BYTES {
            return Err(KekError::unavailable(format!("{host} answered with more than {MAX_ANSWER_BYTES} bytes")));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Answer { status, headers, body })
}

fn no_answer(host: &str, error: reqwest::Error) -> KekError {
    let what = if is_untrusted(&error) {
        "the TLS certificate is not trusted; check that nobody intercepts the connection, or set caFile"
    } else if error.is_timeout() {
        "no answer in time"
    } else if error.is_connect() {
        "cannot connect"
    } else {
        "the connection broke"
    };
    // The address may hold names of keys and tenants; the host is told anyway.
    KekError::unavailable(format!("{host}: {what}")).with_source(error.without_url())
}

/// An `io::Error` gives as source what its content has as source, and not its content.
fn is_untrusted(error: &(dyn Error + 'static)) -> bool {
    let content = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    matches!(error.downcast_ref(), Some(rustls::Error::InvalidCertificate(_)))
        || content.is_some_and(|content| is_untrusted(content))
        || error.source().is_some_and(is_untrusted)
}
