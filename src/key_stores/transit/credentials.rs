//! Tokens for Vault and OpenBao: each way to log in, and the file that holds a token.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::client::{Client, Failure};
use super::request::{Action, Data, Request, json};
use crate::kek::{KekCause, KekError};
use crate::key_stores::shared::credential_file::{self, Content};
use crate::key_stores::shared::renewing::{Loaded, Source};
use crate::key_stores::shared::secret_text::SecretText;

/// How the plugin gets its token.
#[derive(Clone, Debug)]
pub(super) enum Login {
    TokenFile { file: PathBuf },
    AppRole { path: String, role_id: String, secret_id_file: PathBuf },
    UserPass { path: String, password_file: PathBuf },
    Jwt { path: String, role: String, jwt_file: PathBuf },
    Kubernetes { path: String, role: String, jwt_file: PathBuf },
    Cert { path: String, role: Option<String> },
}

impl Login {
    /// The file that is shown, or whose content is.
    pub(super) fn file(&self) -> Option<&Path> {
        match self {
            Self::TokenFile { file } => Some(file),
            Self::AppRole { secret_id_file, .. } => Some(secret_id_file),
            Self::UserPass { password_file, .. } => Some(password_file),
            Self::Jwt { jwt_file, .. } | Self::Kubernetes { jwt_file, .. } => Some(jwt_file),
            Self::Cert { .. } => None,
        }
    }

    fn what(&self) -> &'static str {
        match self {
            Self::TokenFile { .. } => "token",
            Self::AppRole { .. } => "AppRole secret id",
            Self::UserPass { .. } => "password",
            Self::Jwt { .. } | Self::Kubernetes { .. } => "JWT",
            Self::Cert { .. } => "client certificate",
        }
    }

    /// Where to log in and with what; `None` where the content is the token.
    fn request(&self, content: Option<&Content>) -> Option<Request> {
        let secret = || SecretText::new(content.map(|content| content.text.clone()).unwrap_or_default());
        let (path, body) = match self {
            Self::TokenFile { .. } => return None,
            Self::AppRole { path, role_id, .. } => (path, Body::AppRole { role_id, secret_id: secret() }),
            Self::UserPass { path, .. } => (path, Body::UserPass { password: secret() }),
            Self::Jwt { path, role, .. } | Self::Kubernetes { path, role, .. } => {
                (path, Body::Jwt { role, jwt: secret() })
            }
            Self::Cert { path, role } => (path, Body::Cert { name: role.as_deref() }),
        };
        let body = Some(json(&body));
        Some(Request { action: Action::Login, method: Method::POST, path: path.clone(), body, idempotent: true })
    }
}

/// What a login sends.
#[derive(Serialize)]
#[serde(untagged)]
enum Body<'a> {
    AppRole { role_id: &'a str, secret_id: SecretText },
    UserPass { password: SecretText },
    Jwt { role: &'a str, jwt: SecretText },
    Cert { name: Option<&'a str> },
}

#[derive(Deserialize)]
struct LoggedIn {
    auth: Issued,
}

#[derive(Deserialize)]
struct Issued {
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

/// A token, and what is known of it.
pub(super) struct Token {
    pub(super) text: SecretText,
    renewable: bool,
    /// When a login issued it; a token from a file was issued by somebody else.
    issued: Option<Instant>,
    /// Its life when it was new: near its longest life a token is renewed for ever shorter times.
    whole: Option<Duration>,
}

impl Token {
    pub(super) fn is_issued_since(&self, moment: Instant) -> bool {
        self.issued.is_some_and(|issued| issued >= moment)
    }
}

/// Gets tokens from the servers.
pub(super) struct Tokens {
    pub(super) client: Arc<Client>,
    pub(super) login: Login,
}

impl Tokens {
    /// Finds out how long a token lives that somebody else has made.
    async fn adopt(&self, content: &Content) -> Result<Loaded<Token>, KekError> {
        let text = SecretText::new(content.text.clone());
        // A token from a file does not tell when it ends.
        let lookup = match self.client.send(&token_request(Method::GET, "lookup-self"), Some(&text)).await {
            Ok(answer) => Some(answer.parse::<Data<TokenLookup>>()?.data),
            Err(failure) if failure.is_invalid_token() => {
                let file = content.file().display();
                let text = format!("the token in {file} is expired, revoked or unknown; put a new one there");
                return Err(KekError::new(KekCause::Unauthenticated, text));
            }
            // It may not ask about itself: what it is used for will show.
            Err(Failure { forbidden: true, .. }) => None,
            Err(failure) => return Err(failure.error),
        };
        let life = lookup.as_ref().and_then(|lookup| life(lookup.ttl));
        let renewable = lookup.is_some_and(|lookup| lookup.renewable);
        if life.is_some() && !renewable {
            tracing::warn!(
                lives = in_words(life),
                "the token in the token file cannot be renewed; replace the file in time"
            );
        }
        let token = Token { text, renewable, issued: None, whole: life };
        Ok(Loaded::for_time(Arc::new(token), life))
    }

    async fn renew_self(&self, held: &Token) -> Result<Loaded<Token>, KekError> {
        let request = token_request(Method::POST, "renew-self");
        let issued: LoggedIn = self.client.send(&request, Some(&held.text)).await?.parse()?;
        let life = life(issued.auth.lease_duration);
        tracing::debug!(lives = in_words(life), "token renewed");
        let token = Token { text: held.text.clone(), renewable: issued.auth.renewable, ..*held };
        Ok(Loaded::for_time(Arc::new(token), life))
    }
}

/// Zero is the servers' word for "for ever".
fn life(seconds: u64) -> Option<Duration> {
    (seconds > 0).then(|| Duration::from_secs(seconds))
}

/// Vault answers 500 to this, as to a fault of its own; only the words tell them apart.
fn is_past_longest_life(error: &KekError) -> bool {
    error.chain().contains("past the max TTL")
}

pub(super) fn token_request(method: Method, what: &str) -> Request {
    let body = (method == Method::POST).then(|| json(&serde_json::json!({})));
    Request { action: Action::Token, method, path: format!("auth/token/{what}"), body, idempotent: true }
}

#[async_trait]
impl Source for Tokens {
    type Credential = Token;

    fn name(&self) -> &'static str {
        "transit tokens"
    }

    async fn content(&self) -> Result<Option<Content>, KekError> {
        let certificate = || self.client.certificate_file().filter(|_| matches!(self.login, Login::Cert { .. }));
        match self.login.file().or_else(certificate) {
            Some(file) => credential_file::read(self.login.what(), file).await.map(Some),
            None => Ok(None),
        }
    }

    /// A service account's token is refused, too, while the API server that reviews it is down; and one of the server's own
    /// tokens while a replica or a restored server does not know it yet. Neither locks anything.
    fn remembers_refusals(&self) -> bool {
        !matches!(self.login, Login::Kubernetes { .. } | Login::TokenFile { .. })
    }

    async fn load(&self, content: Option<Content>) -> Result<Loaded<Token>, KekError> {
        let Some(request) = self.login.request(content.as_ref()) else {
            let content = content.ok_or_else(|| KekError::unavailable("the token file was not read"))?;
            return self.adopt(&content).await;
        };
        if let Login::Cert { .. } = self.login
            && let Err(error) = self.client.reload()
        {
            // The former pair must not be shown, and be refused, in the name of this one.
            return Err(KekError::unavailable("the client certificate cannot be used now").with_source(error));
        }
        let LoggedIn { auth } = self.client.send(&request, None).await?.parse()?;
        let life = life(auth.lease_duration);
        tracing::info!(path = request.path, lives = in_words(life), "logged in");
        let token =
            Token { text: auth.client_token, renewable: auth.renewable, issued: Some(Instant::now()), whole: life };
        Ok(Loaded::for_time(Arc::new(token), life))
    }

    async fn renew(&self, held: &Loaded<Token>, content: Option<Content>) -> Result<Loaded<Token>, KekError> {
        let token = &held.credential;
        if !token.renewable {
            return self.load(content).await;
        }
        match self.renew_self(token).await {
            Ok(renewed) if token.issued.is_none() || renewed.life() >= token.whole.map(|whole| whole / 2) => {
                Ok(renewed)
            }
            Err(error) if error.cause().is_transient() && !is_past_longest_life(&error) => Err(error),
            _ => self.load(content).await,
        }
    }

    fn same(&self, one: &Token, other: &Token) -> bool {
        one.text == other.text
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").field("login", &self.login).finish_non_exhaustive()
    }
}
fn in_words(life: Option<Duration>) -> String {
    life.map_or("without end".into(), |life| humantime::format_duration(life).to_string())
}
