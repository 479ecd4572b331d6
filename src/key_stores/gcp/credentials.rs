//! Access tokens for Cloud KMS from `gcp_auth`: fetched once for all callers, renewed ahead, and the credentials
//! file read again when its content changes.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use gcp_auth::{ConfigDefaultCredentials, CustomServiceAccount, MetadataServiceAccount, Token, TokenProvider};
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::crypto::seal::digest;
use crate::error_chain::joined;
use crate::kek::{KekCause, KekError};

const SCOPES: &[&str] = &["https://www.googleapis.com/auth/cloudkms"];
/// A token that ends sooner is replaced while it still serves.
const RENEW_AHEAD: Duration = Duration::from_mins(5);
/// A token that ends sooner than this may end on its way.
const MARGIN: Duration = Duration::from_secs(5);
/// The time a caller waits for a token; the fetch itself goes on and serves the next caller.
const WAIT: Duration = Duration::from_millis(1500);
/// The end of a fetch that nobody answers.
const FETCH: Duration = Duration::from_secs(15);
const MAX_FILE_BYTES: usize = 64 * 1024;

/// Where the credentials are.
#[derive(Clone, Debug)]
pub(super) enum Credentials {
    /// A service account's key in a JSON file.
    File {
        /// The file.
        file: PathBuf,
        /// Whether the token may be asked for over http.
        insecure_http: bool,
    },
    /// `gcloud auth application-default login`'s file, else the metadata server.
    Ambient,
}

impl Credentials {
    /// The configured file, else the one of `GOOGLE_APPLICATION_CREDENTIALS`, else what the machine has.
    pub(super) fn find(file: Option<&Path>, insecure_http: bool) -> Self {
        let from_environment = || std::env::var_os("GOOGLE_APPLICATION_CREDENTIALS").map(PathBuf::from);
        match file.map(Path::to_owned).or_else(from_environment) {
            Some(file) => Self::File { file, insecure_http },
            None => Self::Ambient,
        }
    }

    /// The file's content if it is a service account's key that can be used.
    pub(super) fn read(&self) -> Result<Option<Zeroizing<String>>, KekError> {
        let Self::File { file, insecure_http } = self else { return Ok(None) };
        let name = file.display();
        let text = std::fs::read_to_string(file).map(Zeroizing::new).map_err(|error| {
            KekError::misconfigured(format!("cannot read credentials file {name}")).with_source(error)
        })?;
        if text.len() > MAX_FILE_BYTES {
            return Err(KekError::misconfigured(format!(
                "credentials file {name} is larger than {MAX_FILE_BYTES} bytes"
            )));
        }
        let shape: Shape = serde_json::from_str(&text).map_err(|error| {
            // Only the place: the library's own text may quote the content.
            let (line, column) = (error.line(), error.column());
            KekError::misconfigured(format!("credentials file {name} is not JSON as expected, at {line}:{column}"))
        })?;
        if shape.kind != "service_account" {
            return Err(KekError::misconfigured(format!(
                "credentials file {name} is of type {:?}; only service_account is supported (no workload identity \
                 federation: inside Google Cloud leave credentialsFile out and let the metadata server give tokens)",
                shape.kind
            )));
        }
        if !shape.token_uri.starts_with("https://") && !insecure_http {
            return Err(KekError::misconfigured(format!(
                "token_uri of {name} is not https: whoever listens could use the credentials"
            )));
        }
        Ok(Some(text))
    }
}

/// What is looked at of a credentials file beside what `gcp_auth` reads.
#[derive(Deserialize)]
struct Shape {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    token_uri: String,
}

type Fetch = Shared<BoxFuture<'static, Result<Arc<Token>, Failure>>>;

/// A `KekError` that several callers can have.
#[derive(Clone, Debug)]
struct Failure {
    cause: KekCause,
    message: String,
}

/// The tokens of one KEK.
pub(super) struct Tokens {
    credentials: Credentials,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    credentials: Option<[u8; 32]>,
    token: Option<Arc<Token>>,
    fetch: Option<Fetch>,
}

impl Tokens {
    pub(super) fn new(credentials: Credentials) -> Self {
        Self { credentials, state: Mutex::default() }
    }

    /// A token that is valid now.
    ///
    /// # Errors
    /// `Unauthenticated` when the token endpoint refuses the credentials, `Unavailable` when it does not answer.
    pub(super) async fn get(&self) -> Result<Arc<Token>, KekError> {
        let fetch = {
            let content = self.credentials.read();
            let mut state = self.state();
            let content = match (content, &state.token) {
                (Ok(content), _) => content,
                // A file that is away for a moment ends nothing that still holds.
                (Err(_), Some(token)) if lasts(token, MARGIN) => return Ok(token.clone()),
                (Err(error), _) => return Err(error),
            };
            state.note_credentials(content.as_deref().map(|text| digest(&[text.as_bytes()])));
            state.take_fetched();
            let fresh = state.token.as_ref().is_some_and(|token| lasts(token, RENEW_AHEAD));
            if !fresh && state.fetch.is_none() {
                state.fetch = Some(start(content));
            }
            match (&state.token, &state.fetch) {
                (Some(token), _) if lasts(token, MARGIN) => return Ok(token.clone()),
                (_, Some(fetch)) => fetch.clone(),
                (_, None) => unreachable!("a token that does not last has a fetch"),
            }
        };
        match tokio::time::timeout(WAIT, fetch).await {
            Ok(Ok(token)) => Ok(token),
            Ok(Err(failure)) => Err(KekError::new(failure.cause, failure.message)),
            Err(_) => Err(KekError::unavailable(format!("no access token from Google within {WAIT:?}"))),
        }
    }

    /// When the token in use ends.
    pub(super) fn expire(&self) -> Option<jiff::Timestamp> {
        let mut state = self.state();
        state.take_fetched();
        let end = state.token.as_ref()?.expires_at();
        jiff::Timestamp::try_from(SystemTime::from(end)).ok()
    }

    /// Forgets a token that Cloud KMS did not accept.
    pub(super) fn refused(&self, token: &Arc<Token>) {
        let mut state = self.state();
        if state.token.as_ref().is_some_and(|held| Arc::ptr_eq(held, token)) {
            state.token = None;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").field("credentials", &self.credentials).finish_non_exhaustive()
    }
}

impl State {
    /// Tokens of former credentials serve no more.
    fn note_credentials(&mut self, credentials: Option<[u8; 32]>) {
        if self.credentials != credentials {
            *self = Self { credentials, ..Self::default() };
        }
    }

    /// Nobody waits for a renewal: its result is looked for whenever somebody comes by.
    fn take_fetched(&mut self) {
        if let Some(result) = self.fetch.clone().and_then(FutureExt::now_or_never) {
            self.fetch = None;
            match result {
                Ok(token) => self.token = Some(token),
                Err(failure) => tracing::warn!(cause = %failure.cause, "no new Google token: {}", failure.message),
            }
        }
    }
}

fn lasts(token: &Token, time: Duration) -> bool {
    SystemTime::from(token.expires_at()).duration_since(SystemTime::now()).is_ok_and(|left| left > time)
}

/// Fetches in a task of its own: a caller that gives up does not end it.
fn start(content: Option<Zeroizing<String>>) -> Fetch {
    let task = tokio::spawn(async move {
        tokio::time::timeout(FETCH, fetch(content)).await.unwrap_or_else(|_| {
            Err(Failure { cause: KekCause::Unavailable, message: format!("no access token from Google in {FETCH:?}") })
        })
    });
    async move {
        task.await.unwrap_or_else(|error| {
            Err(Failure { cause: KekCause::Unavailable, message: format!("the token fetch ended early: {error}") })
        })
    }
    .boxed()
    .shared()
}

/// Always by a new provider: those of `gcp_auth` keep a token to its last seconds, and cannot be told to renew.
async fn fetch(content: Option<Zeroizing<String>>) -> Result<Arc<Token>, Failure> {
    let fetched = match content {
        Some(text) => {
            let Ok(account) = CustomServiceAccount::from_json(&text) else {
                let message = "the credentials file holds no usable private key".into();
                return Err(Failure { cause: KekCause::Misconfigured, message });
            };
            account.token(SCOPES).await
        }
        None => ambient().await,
    };
    fetched.map_err(|error| map(&error))
}

/// The user's own file where there is one, as the Google tools do it; else the metadata server. Starts no program.
async fn ambient() -> Result<Arc<Token>, gcp_auth::Error> {
    match ConfigDefaultCredentials::new().await {
        Ok(user) => user.token(SCOPES).await,
        Err(_) => MetadataServiceAccount::new().await?.token(SCOPES).await,
    }
}

/// `gcp_auth` keeps the status to itself (its log has it): an answer that is no token counts as a refusal.
fn map(error: &gcp_auth::Error) -> Failure {
    use gcp_auth::Error;
    use std::error::Error as _;
    let (cause, what) = match error {
        Error::Str("token request failed") => (KekCause::Unauthenticated, "refuses the credentials or failed"),
        Error::Http(..) | Error::Other(..) => (KekCause::Unavailable, "does not answer"),
        Error::Json(..) => (KekCause::Unavailable, "answered with something that is no token"),
        _ => (KekCause::Unauthenticated, "gives no token"),
    };
    // The text of a JSON error may quote the token.
    let detail =
        if matches!(error, Error::Json(..)) { String::new() } else { joined(format!(": {error}"), error.source()) };
    Failure { cause, message: format!("Google's token endpoint {what}{detail}") }
}
