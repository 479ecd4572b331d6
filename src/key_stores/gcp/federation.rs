//! Workload identity federation: a token of another issuer, in a file that something else keeps fresh, is exchanged for one
//! of Google's (<https://google.aip.dev/auth/4117>).

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde_json::Value;
use zeroize::Zeroizing;

use crate::kek::{KekCause, KekError};
use crate::key_stores::shared::credential_file::Content;
use crate::key_stores::shared::http::Answer;
use crate::key_stores::shared::secret_text::SecretText;
use crate::key_stores::shared::vendor_text::shortened;

const GRANT: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";
/// What a token that impersonates needs; the impersonated account's own token has the narrow scope.
const CLOUD_PLATFORM: &str = "https://www.googleapis.com/auth/cloud-platform";

/// The fields of an `external_account` file that are used here.
#[derive(Deserialize)]
pub(super) struct ExternalAccount {
    audience: String,
    subject_token_type: String,
    pub(super) token_url: String,
    credential_source: Subject,
    pub(super) service_account_impersonation_url: Option<String>,
}

/// Where the other issuer's token is.
#[derive(Deserialize)]
struct Subject {
    file: Option<PathBuf>,
    #[serde(default)]
    format: Format,
}

#[derive(Default, Deserialize)]
struct Format {
    /// The token's field where the file is JSON.
    subject_token_field_name: Option<String>,
}

impl ExternalAccount {
    /// The file with the other issuer's token.
    pub(super) fn subject_file(&self) -> Result<&PathBuf, KekError> {
        self.credential_source.file.as_ref().ok_or_else(|| {
            KekError::misconfigured(
                "the credential_source of the external_account file names no file; other sources (url, executable, AWS) are not \
                 supported",
            )
        })
    }

    fn subject_token(&self, content: &Content) -> Result<Zeroizing<String>, KekError> {
        let Some(field) = &self.credential_source.format.subject_token_field_name else {
            return Ok(content.text.clone());
        };
        let parsed = serde_json::from_str::<Value>(&content.text).ok();
        let token = parsed.as_ref().and_then(|parsed| parsed.get(field)?.as_str());
        token.map(|token| Zeroizing::new(token.to_owned())).ok_or_else(|| {
            KekError::misconfigured(format!("{} is not JSON with a text {field:?}", content.file().display()))
        })
    }

    /// The form that asks for Google's token, with the narrow scope where nobody is impersonated.
    pub(super) fn exchange(&self, content: &Content, scope: &str) -> Result<Vec<(&str, Zeroizing<String>)>, KekError> {
        let plain = |text: &str| Zeroizing::new(text.to_owned());
        let scope = if self.service_account_impersonation_url.is_some() { CLOUD_PLATFORM } else { scope };
        Ok(vec![
            ("grant_type", plain(GRANT)),
            ("audience", plain(&self.audience)),
            ("scope", plain(scope)),
            ("requested_token_type", plain(ACCESS_TOKEN)),
            ("subject_token_type", plain(&self.subject_token_type)),
            ("subject_token", self.subject_token(content)?),
        ])
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Impersonated {
    access_token: SecretText,
    expire_time: jiff::Timestamp,
}

/// The token of the impersonated account, and when it ends.
pub(super) fn impersonated(answer: &Answer) -> Result<(SecretText, Option<SystemTime>), KekError> {
    const WHAT: &str = "Google's IAM credentials service";
    if answer.status == 200 {
        let issued: Impersonated = serde_json::from_slice(&answer.body)
            .map_err(|_| KekError::unavailable(format!("{WHAT} answered with something other than a token")))?;
        let ends = Duration::from_secs(issued.expire_time.as_second().try_into().unwrap_or(0));
        return Ok((issued.access_token, SystemTime::UNIX_EPOCH.checked_add(ends)));
    }
    // Only in Google's own form: another 403 is of somebody in between.
    let said = serde_json::from_slice::<Value>(&answer.body).unwrap_or_default();
    let (status, message) = (said["error"]["status"].as_str(), said["error"]["message"].as_str().unwrap_or_default());
    let cause = match status {
        Some("PERMISSION_DENIED" | "NOT_FOUND" | "UNAUTHENTICATED" | "INVALID_ARGUMENT") => KekCause::Unauthenticated,
        Some("RESOURCE_EXHAUSTED") => KekCause::Throttled,
        _ => KekCause::Unavailable,
    };
    let hint = match status {
        Some("PERMISSION_DENIED") => ": grant roles/iam.workloadIdentityUser on the service account",
        _ => "",
    };
    Err(KekError::new(cause, format!("{WHAT} answered {}{hint} ({})", answer.status, shortened(message, 300))))
}
