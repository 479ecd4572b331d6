//! Requests with a token: got when it is needed, renewed at 2/3 of its life, replaced once the server refuses it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use prost::bytes::Bytes;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::SecretText;
use super::client::{Answer, Client, Failure};
use super::credentials::read_secret;
use super::request::{Asked, Request};
use super::settings::Auth;
use crate::kek::clock::ServerClock;
use crate::kek::{KekCause, KekError};

/// After a renewal that failed, the next try.
const RENEW_AGAIN: Duration = Duration::from_secs(5);

/// A client and the token it shows.
#[derive(Clone, Debug)]
pub(super) struct Session(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    client: Client,
    auth: Auth,
    held: Mutex<Option<Held>>,
    renewing: AtomicBool,
}

/// A token and its life.
#[derive(Clone, Debug)]
struct Held {
    token: SecretText,
    /// `None`: lives until revoked, or it is not known.
    life: Option<Life>,
}

#[derive(Clone, Copy, Debug)]
struct Life {
    /// How long it was when the token was got.
    whole: Duration,
    renew_at: Instant,
    ends: Instant,
    renewable: bool,
}

impl Life {
    /// Of a token that lives `seconds` from now. Zero is the servers' word for "for ever".
    fn new(seconds: u64, renewable: bool) -> Option<Self> {
        let whole = Duration::from_secs(seconds);
        let now = Instant::now();
        (seconds > 0).then(|| Self { whole, renew_at: now + whole * 2 / 3, ends: now + whole, renewable })
    }
}

#[derive(Deserialize)]
struct Data<T> {
    data: T,
}

#[derive(Deserialize)]
struct LoggedIn {
    auth: TokenIssued,
}

#[derive(Deserialize)]
struct TokenIssued {
    client_token: SecretText,
    lease_duration: u64,
    renewable: bool,
}

#[derive(Deserialize)]
struct TokenLookup {
    ttl: u64,
    #[serde(default)]
    renewable: bool,
}

impl Session {
    pub fn new(client: Client, auth: Auth) -> Self {
        Self(Arc::new(Inner { client, auth, held: Mutex::new(None), renewing: AtomicBool::new(false) }))
    }

    /// When the token in use ends. Not known for the moment in which another one is being got.
    pub fn expires(&self) -> Option<jiff::Timestamp> {
        let left = self.0.held.try_lock().ok()?.as_ref()?.life?.ends.saturating_duration_since(Instant::now());
        jiff::Timestamp::now().checked_add(left).ok()
    }

    /// The clock of the servers.
    pub fn clock(&self) -> &ServerClock {
        self.0.client.clock()
    }

    /// Reads `path` and gives the answer's `data`.
    pub async fn get<T: for<'de> Deserialize<'de>>(&self, path: &str) -> Result<T, KekError> {
        let request = Request { method: Method::GET, ..engine_request(path, None) };
        self.call(&request).await?.parse().map(|Data { data }| data)
    }

    /// Posts to `path` and gives the answer's `data`.
    pub async fn post<T: for<'de> Deserialize<'de>>(&self, path: &str, body: &impl Serialize) -> Result<T, KekError> {
        self.call(&engine_request(path, Some(json(body)))).await?.parse().map(|Data { data }| data)
    }

    /// Posts to `path` what must not be done twice.
    pub async fn post_once(&self, path: &str) -> Result<(), KekError> {
        let request = Request { repeatable: false, ..engine_request(path, Some(json(&serde_json::json!({})))) };
        self.call(&request).await.map(drop)
    }

    async fn call(&self, request: &Request) -> Result<Answer, KekError> {
        let token = self.token().await?;
        match self.0.client.send(request, Some(&token)).await {
            Err(Failure { forbidden: true, error, .. }) => {
                // 403 means a bad token as well as a policy; the token asked about itself tells which.
                if self.0.is_accepted(&token).await? { Err(error) } else { self.call_anew(request, &token).await }
            }
            other => Ok(other?),
        }
    }

    /// The same request, once, with another token than `refused`.
    async fn call_anew(&self, request: &Request, refused: &SecretText) -> Result<Answer, KekError> {
        let token = self.0.replace(refused).await?;
        match self.0.client.send(request, Some(&token)).await {
            Err(Failure { forbidden: true, .. })
                if matches!(self.0.auth, Auth::TokenFile(_)) && !self.0.is_accepted(&token).await? =>
            {
                Err(self.0.refused())
            }
            // A token just issued is good: then it is the policy.
            other => Ok(other?),
        }
    }

    async fn token(&self) -> Result<SecretText, KekError> {
        let mut slot = self.0.held.lock().await;
        if let Auth::TokenFile(file) = &self.0.auth {
            let now = read_secret("token", file).await?;
            if slot.as_ref().is_none_or(|held| held.token != now) {
                *slot = Some(self.0.adopt(now).await?);
            }
        }
        let usable = slot.as_ref().filter(|held| held.life.is_none_or(|life| Instant::now() < life.ends));
        let held = match usable {
            Some(held) => held.clone(),
            None => slot.insert(self.0.obtain().await?).clone(),
        };
        drop(slot);
        if held.life.is_some_and(|life| Instant::now() >= life.renew_at) {
            self.renew_behind(held.clone());
        }
        Ok(held.token)
    }

    /// Renews without making the caller wait; one renewal at a time.
    fn renew_behind(&self, held: Held) {
        if self.0.renewing.swap(true, Ordering::AcqRel) {
            return;
        }
        let inner = self.0.clone();
        tokio::spawn(async move {
            let renewed = inner.renew(&held).await;
            let mut slot = inner.held.lock().await;
            if let Some(current) = slot.as_mut().filter(|current| current.token == held.token) {
                match renewed {
                    Ok(renewed) => *current = renewed,
                    Err(error) => {
                        tracing::warn!(error = error.chain(), "token not renewed");
                        if let Some(life) = &mut current.life {
                            life.renew_at = Instant::now() + RENEW_AGAIN;
                        }
                    }
                }
            }
            inner.renewing.store(false, Ordering::Release);
        });
    }
}

impl Inner {
    /// A token in place of `refused`.
    async fn replace(&self, refused: &SecretText) -> Result<SecretText, KekError> {
        let mut slot = self.held.lock().await;
        match slot.as_ref().filter(|held| held.token != *refused) {
            Some(held) => Ok(held.token.clone()),
            None => Ok(slot.insert(self.obtain().await?).token.clone())
                .and_then(|token| if token == *refused { Err(self.refused()) } else { Ok(token) }),
        }
    }

    fn refused(&self) -> KekError {
        let fix = match &self.auth {
            Auth::TokenFile(file) => format!("; put a new one into {}", file.display()),
            _ => String::new(),
        };
        KekError::new(KekCause::Unauthenticated, format!("the token is expired, revoked or unknown{fix}"))
    }

    /// Logs in, or takes the token from its file.
    async fn obtain(&self) -> Result<Held, KekError> {
        let Some((path, credentials)) = self.auth.credentials().await? else {
            let Auth::TokenFile(file) = &self.auth else { unreachable!("only a token file needs no login") };
            return self.adopt(read_secret("token", file).await?).await;
        };
        if let Auth::Cert(_) = self.auth {
            self.client.reload();
        }
        let body = Some(json(&credentials));
        let request = Request { asked: Asked::Login, method: Method::POST, path, body, repeatable: true };
        let issued: LoggedIn = self.client.send(&request, None).await?.parse()?;
        let life = Life::new(issued.auth.lease_duration, issued.auth.renewable);
        tracing::info!(by = self.auth.name(), lives = ?life.map(|life| life.whole), "logged in");
        Ok(Held { token: issued.auth.client_token, life })
    }

    /// Finds out how long a token lives that somebody else has made.
    async fn adopt(&self, token: SecretText) -> Result<Held, KekError> {
        let life = match self.client.send(&token_request(Method::GET, "lookup-self"), Some(&token)).await {
            Ok(answer) => {
                answer.parse().map(|Data { data: TokenLookup { ttl, renewable } }| Life::new(ttl, renewable))?
            }
            // A bad token, or one that may not ask about itself: what it is used for will show.
            Err(Failure { forbidden: true, .. }) => None,
            Err(failure) => return Err(failure.error),
        };
        if let Some(life) = life.filter(|life| !life.renewable) {
            tracing::warn!(lives = ?life.whole, "the token in the token file cannot be renewed; replace the file in time");
        }
        Ok(Held { token, life })
    }

    async fn is_accepted(&self, token: &SecretText) -> Result<bool, KekError> {
        match self.client.send(&token_request(Method::GET, "lookup-self"), Some(token)).await {
            Ok(_) => Ok(true),
            Err(Failure { forbidden: true, .. }) => Ok(false),
            Err(failure) => Err(failure.error),
        }
    }

    /// Lengthens the token's life, or logs in anew where that is no longer possible.
    async fn renew(&self, held: &Held) -> Result<Held, KekError> {
        let by_file = matches!(self.auth, Auth::TokenFile(_));
        let renewed = match held.life {
            Some(life) if life.renewable => self.renew_self(&held.token).await,
            _ if by_file => return Ok(held.clone()),
            _ => return self.obtain().await,
        };
        match renewed {
            // Near its longest life a token is renewed for ever shorter times.
            Ok(life) if by_file || life.is_none_or(|life| life.whole * 2 >= held.whole()) => {
                Ok(Held { token: held.token.clone(), life: life.map(|life| Life { whole: held.whole(), ..life }) })
            }
            Err(error) if by_file || error.cause().is_transient() => Err(error),
            _ => self.obtain().await,
        }
    }

    async fn renew_self(&self, token: &SecretText) -> Result<Option<Life>, KekError> {
        let issued: LoggedIn =
            self.client.send(&token_request(Method::POST, "renew-self"), Some(token)).await?.parse()?;
        let life = Life::new(issued.auth.lease_duration, issued.auth.renewable);
        tracing::debug!(lives = ?life.map(|life| life.whole), "token renewed");
        Ok(life)
    }
}

impl Held {
    fn whole(&self) -> Duration {
        self.life.map_or(Duration::ZERO, |life| life.whole)
    }
}

fn engine_request(path: &str, body: Option<Bytes>) -> Request {
    Request { asked: Asked::Engine, method: Method::POST, path: path.into(), body, repeatable: true }
}

fn token_request(method: Method, what: &str) -> Request {
    let body = (method == Method::POST).then(|| json(&serde_json::json!({})));
    Request { asked: Asked::Token, method, path: format!("auth/token/{what}"), body, repeatable: true }
}

/// JSON in memory that is cleared once the last copy is dropped.
fn json(body: &impl Serialize) -> Bytes {
    // Room for all that is sent here at once: a growing vector leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(16 << 10));
    serde_json::to_writer(&mut *bytes, body).expect("these bodies have only string keys");
    Bytes::from_owner(bytes)
}
