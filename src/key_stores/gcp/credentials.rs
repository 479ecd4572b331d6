//! Access tokens for Cloud KMS: by a service account's key, a user's own credentials, the token of another issuer, or the
//! metadata server.
//!
//! `gcp_auth` signs; the requests are made here, since its own keep the status of a refusal to themselves, retry, and
//! log answers.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use gcp_auth::CustomServiceAccount;
use reqwest::{Method, Request};
use serde::Deserialize;
use serde_json::json;
use url::Url;
use zeroize::Zeroizing;

use super::federation::{ExternalAccount, impersonated};
use crate::kek::{KekCause, KekError};
use crate::key_stores::shared::address::{PlainHttp, is_loopback};
use crate::key_stores::shared::credential_file::{self, Content};
use crate::key_stores::shared::http;
use crate::key_stores::shared::renewing::{Loaded, Source};
use crate::key_stores::shared::secret_text::SecretText;
use crate::key_stores::shared::vendor_text::shortened;

const SCOPE: &str = "https://www.googleapis.com/auth/cloudkms";
const USER_TOKEN_URI: &str = "https://oauth2.googleapis.com/token";
/// By its address: its name needs a name server.
const METADATA: &str = "http://169.254.169.254/computeMetadata/v1/instance/service-accounts/default/token";
const USER_FILE: &str = ".config/gcloud/application_default_credentials.json";
/// Google takes assertions of at most an hour.
const ASSERTION_LIFE: u64 = 3600;

/// Where the credentials are.
#[derive(Clone, Debug)]
pub(super) enum CredentialSource {
    /// In a JSON file that the settings or the environment name.
    File { file: PathBuf, plain_http: PlainHttp },
    /// `gcloud auth application-default login`'s file where there is one, else the metadata server.
    Ambient { user_file: Option<PathBuf> },
}

impl CredentialSource {
    /// The configured file, else the one of `GOOGLE_APPLICATION_CREDENTIALS`, else what the machine has.
    pub(super) fn find(file: Option<PathBuf>, plain_http: PlainHttp) -> Self {
        let from_environment = || std::env::var_os("GOOGLE_APPLICATION_CREDENTIALS").map(PathBuf::from);
        match file.or_else(from_environment) {
            Some(file) => Self::File { file, plain_http },
            None => Self::Ambient { user_file: std::env::home_dir().map(|home| home.join(USER_FILE)) },
        }
    }
}

#[derive(Deserialize)]
struct Issued {
    access_token: SecretText,
    expires_in: u64,
}

/// The fields of a credentials file that are used here.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum CredentialsFile {
    ServiceAccount {
        client_email: String,
        private_key_id: Option<String>,
        token_uri: String,
    },
    AuthorizedUser {
        client_id: String,
        client_secret: SecretText,
        refresh_token: SecretText,
    },
    ExternalAccount(ExternalAccount),
    #[serde(other)]
    Other,
}

impl CredentialsFile {
    fn parse(content: &Content) -> Result<Self, KekError> {
        serde_json::from_str(&content.text).map_err(|error| {
            // Only the place: the library's own text may quote the content.
            let (name, line, column) = (content.file().display(), error.line(), error.column());
            KekError::misconfigured(format!("{name} is not a Google credentials file, at {line}:{column}"))
        })
    }
}

/// Gets tokens from Google.
pub(super) struct Google {
    from: CredentialSource,
    client: http::Client,
}

impl Google {
    pub(super) fn new(from: CredentialSource, proxy: Option<&Url>) -> Result<Self, KekError> {
        let reach = http::Reach { answer_within: http::LOGIN, proxy, ..http::Reach::default() };
        Ok(Self { from, client: http::client(&reach)? })
    }

    async fn by_file(&self, content: &Content) -> Result<Loaded<SecretText>, KekError> {
        let name = content.file().display();
        match CredentialsFile::parse(content)? {
            CredentialsFile::ServiceAccount { client_email, private_key_id, token_uri } => {
                let token_uri = self.token_uri(&token_uri, content)?;
                let assertion = assertion(content, &client_email, private_key_id.as_deref(), token_uri.as_str())?;
                let form = [("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer"), ("assertion", &assertion)];
                self.exchange(token_uri, &form).await
            }
            CredentialsFile::AuthorizedUser { client_id, client_secret, refresh_token } => {
                let form = [
                    ("grant_type", "refresh_token"),
                    ("client_id", client_id.as_str()),
                    ("client_secret", client_secret.expose()),
                    ("refresh_token", refresh_token.expose()),
                ];
                self.exchange(Url::parse(USER_TOKEN_URI).expect("a URL of this file"), &form).await
            }
            CredentialsFile::ExternalAccount(account) => self.by_another_issuer(&account, content).await,
            CredentialsFile::Other => Err(KekError::misconfigured(format!(
                "{name} is none of service_account, authorized_user and external_account; no other type is supported (inside \
                 Google Cloud leave credentialsFile out and let the metadata server give tokens)"
            ))),
        }
    }

    async fn by_another_issuer(
        &self,
        account: &ExternalAccount,
        content: &Content,
    ) -> Result<Loaded<SecretText>, KekError> {
        let subject = content.named.as_ref().ok_or_else(|| KekError::unavailable("the issuer's token was not read"))?;
        let form = account.exchange(subject, SCOPE)?;
        let form: Vec<_> = form.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let federated = self.exchange(self.token_uri(&account.token_url, content)?, &form).await?;
        let Some(url) = &account.service_account_impersonation_url else { return Ok(federated) };
        let request = self.client.request(Method::POST, self.token_uri(url, content)?);
        let request = request.bearer_auth(federated.credential.expose()).header("content-type", "application/json");
        let answer = self.ask(request.body(json!({"scope": [SCOPE]}).to_string()).build()).await?;
        let (token, ends) = impersonated(&answer)?;
        Ok(Loaded::until(Arc::new(token), ends))
    }

    fn token_uri(&self, text: &str, content: &Content) -> Result<Url, KekError> {
        let anywhere = matches!(self.from, CredentialSource::File { plain_http: PlainHttp::Anywhere, .. });
        match Url::parse(text) {
            Ok(url) if url.scheme() == "https" || (url.scheme() == "http" && (anywhere || is_loopback(&url))) => {
                Ok(url)
            }
            _ => Err(KekError::misconfigured(format!(
                "{text:?} in {} is not https: anyone who listens could use the credentials",
                content.file().display()
            ))),
        }
    }

    async fn exchange(&self, uri: Url, form: &[(&str, &str)]) -> Result<Loaded<SecretText>, KekError> {
        let body = Zeroizing::new(url::form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish());
        let request = self.client.request(Method::POST, uri);
        let request = request.header("content-type", "application/x-www-form-urlencoded").body(body.to_string());
        self.issue(request.build(), "Google's token endpoint").await
    }

    async fn by_metadata(&self, looked_for: &str) -> Result<Loaded<SecretText>, KekError> {
        let request = self.client.request(Method::GET, METADATA).header("metadata-flavor", "Google").build();
        self.issue(request, "the metadata server").await.map_err(|error| {
            let text = format!(
                "no Google credentials found: credentialsFile and GOOGLE_APPLICATION_CREDENTIALS are not set, \
                 {looked_for} does not exist, and the metadata server gave none"
            );
            KekError::new(error.cause(), text).with_source(error)
        })
    }

    async fn ask(&self, request: reqwest::Result<Request>) -> Result<http::Answer, KekError> {
        let request = request.map_err(|error| {
            KekError::misconfigured("the request for a token cannot be made").with_source(error.without_url())
        })?;
        http::send(&self.client, request).await
    }

    async fn issue(&self, request: reqwest::Result<Request>, what: &str) -> Result<Loaded<SecretText>, KekError> {
        let answer = self.ask(request).await?;
        if answer.status != 200 {
            return Err(refusal(what, &answer));
        }
        let issued: Issued = serde_json::from_slice(&answer.body)
            .map_err(|_| KekError::unavailable(format!("{what} answered with something other than a token")))?;
        Ok(Loaded::for_time(Arc::new(issued.access_token), Some(Duration::from_secs(issued.expires_in))))
    }
}

/// OAuth 2.0's error answer (RFC 6749, 5.2).
#[derive(Deserialize)]
struct OauthError {
    error: String,
    #[serde(default)]
    error_description: String,
}

/// The codes that refuse the credentials; any other answer is one of a server in trouble, or of somebody in between.
const REFUSALS: [&str; 4] = ["invalid_grant", "invalid_client", "unauthorized_client", "invalid_scope"];

pub(super) fn refusal(what: &str, answer: &http::Answer) -> KekError {
    match serde_json::from_slice::<OauthError>(&answer.body) {
        Ok(OauthError { error, error_description }) if REFUSALS.contains(&error.as_str()) => {
            let said = shortened(&error_description, 300);
            KekError::new(KekCause::Unauthenticated, format!("{what} refuses the credentials: {error} ({said})"))
        }
        _ if answer.status == 429 => KekError::new(KekCause::Throttled, format!("{what} was asked too often"))
            .with_retry_after(crate::key_stores::shared::retry_after::of(&answer.headers)),
        _ => KekError::unavailable(format!("{what} answered {}", answer.status)),
    }
}

/// A signed statement of who asks (RFC 7523).
fn assertion(
    content: &Content,
    email: &str,
    key_id: Option<&str>,
    audience: &str,
) -> Result<Zeroizing<String>, KekError> {
    let unusable = || KekError::misconfigured(format!("{} holds no usable private key", content.file().display()));
    let account = CustomServiceAccount::from_json(&content.text).map_err(|_| unusable())?;
    // Google refuses an assertion from the future; a machine whose clock is wrong is told so by `doctor`.
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let header = json!({"alg": "RS256", "typ": "JWT", "kid": key_id});
    let claims = json!({"iss": email, "scope": SCOPE, "aud": audience, "iat": now, "exp": now + ASSERTION_LIFE});
    let encode = |part: &serde_json::Value| BASE64_URL_SAFE_NO_PAD.encode(part.to_string());
    let signed = format!("{}.{}", encode(&header), encode(&claims));
    let signature = account.signer().sign(signed.as_bytes()).map_err(|_| unusable())?;
    Ok(Zeroizing::new(format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))))
}

#[async_trait]
impl Source for Google {
    type Credential = SecretText;

    fn name(&self) -> &'static str {
        "Google access tokens"
    }

    async fn content(&self) -> Result<Option<Content>, KekError> {
        match &self.from {
            CredentialSource::File { file, .. } => {
                let mut content = credential_file::read("Google credentials", file).await?;
                if let Ok(CredentialsFile::ExternalAccount(account)) = CredentialsFile::parse(&content) {
                    // Another token of the issuer's is another content: a refused one is not shown again.
                    let subject = credential_file::read("token of another issuer", account.subject_file()?).await?;
                    content.named = Some(Box::new(subject));
                }
                Ok(Some(content))
            }
            CredentialSource::Ambient { user_file: Some(file) }
                // Only if the file exists: without it the metadata server is used, which is not an error.
                if tokio::fs::try_exists(file).await.unwrap_or(false) =>
            {
                credential_file::read("Google user credentials", file).await.map(Some)
            }
            CredentialSource::Ambient { .. } => Ok(None),
        }
    }

    async fn load(&self, content: Option<Content>) -> Result<Loaded<SecretText>, KekError> {
        match (content, &self.from) {
            (Some(content), _) => self.by_file(&content).await,
            (None, CredentialSource::Ambient { user_file: Some(file) }) => {
                self.by_metadata(&file.display().to_string()).await
            }
            (None, _) => self.by_metadata(USER_FILE).await,
        }
    }

    fn same(&self, one: &SecretText, other: &SecretText) -> bool {
        one == other
    }
}

impl fmt::Debug for Google {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Google").field("from", &self.from).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderMap;

    use super::*;

    #[test]
    fn only_a_refusal_in_the_words_of_oauth_is_one() {
        let cause = |status, body: &str| {
            let body = Zeroizing::new(body.as_bytes().to_vec());
            refusal("it", &http::Answer { status, headers: HeaderMap::new(), body }).cause()
        };
        for code in REFUSALS {
            assert_eq!(cause(400, &format!(r#"{{"error":"{code}"}}"#)), KekCause::Unauthenticated, "{code}");
        }
        assert_eq!(cause(429, ""), KekCause::Throttled);
        for (status, body) in [
            (400, r#"{"error":"temporarily_unavailable"}"#),
            (401, ""),
            (403, "<html>Forbidden</html>"),
            (404, "default backend - 404"),
            (503, r#"{"error":"internal_failure"}"#),
        ] {
            assert_eq!(cause(status, body), KekCause::Unavailable, "{status} {body}");
        }
    }
}
