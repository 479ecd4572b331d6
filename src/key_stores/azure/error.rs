//! The Azure SDK's errors → `KekError`: the one place that knows what Key Vault's and Entra's answers mean.

use std::error::Error as _;
use std::time::Duration;

use azure_core::Error;
use azure_core::error::ErrorKind;
use azure_core::http::RawResponse;
use azure_core::http::headers::{HeaderName, Headers};
use serde::Deserialize;

use crate::kek::{KekCause, KekError};

/// What was asked: some answers mean different things to different questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Question {
    /// The key and its latest version.
    Key,
    /// Wrap under a version.
    Wrap,
    /// Unwrap by a version.
    Unwrap,
    /// Make a new version.
    Rotate,
}

/// Key Vault's error body.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Body {
    error: Detail,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Detail {
    code: String,
    message: String,
    #[serde(alias = "innerError")]
    innererror: Option<Inner>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Inner {
    code: String,
}

/// What an error of the SDK means.
pub(super) fn map(question: Question, error: &Error) -> KekError {
    if let Some((cause, message)) = transport(error) {
        return KekError::new(cause, message);
    }
    match error.kind() {
        ErrorKind::HttpResponse { status, raw_response, .. } => {
            vault(question, u16::from(*status), raw_response.as_deref())
        }
        ErrorKind::Credential => identity(error),
        // The SDK's own text may quote the answer, and the answer may hold a DEK.
        ErrorKind::DataConversion => KekError::unmapped("answer of Key Vault is not as expected"),
        _ => KekError::unmapped(error.to_string()),
    }
}

/// Our own client's error, wherever in the chain the SDK put it.
fn transport(error: &Error) -> Option<(KekCause, String)> {
    let mut next = error.source();
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<KekError>() {
            let text = error.chain();
            return Some((error.cause(), text.strip_prefix("unavailable: ").unwrap_or(&text).to_owned()));
        }
        next = error.source();
    }
    None
}

fn vault(question: Question, status: u16, response: Option<&RawResponse>) -> KekError {
    let detail = response.and_then(|raw| serde_json::from_slice::<Body>(raw.body()).ok()).unwrap_or_default().error;
    let inner = detail.innererror.unwrap_or_default().code;
    // Key Vault's text names the key and the missing permission; it never holds data. Cut, since it is not ours.
    let text: String = detail.message.chars().filter(|c| !c.is_control()).take(400).collect();
    let message = format!("Key Vault answered {status} {} {inner}: {text}", detail.code);
    let wait = response.and_then(|raw| retry_after(raw.headers()));
    let cause = match status {
        401 => KekCause::Unauthenticated,
        // Where the node asks from is not allowed: the key is as good as before, so nothing is to be wiped.
        403 if matches!(inner.as_str(), "ForbiddenByFirewall" | "ForbiddenByConnection") => KekCause::Misconfigured,
        404 if question == Question::Unwrap => KekCause::UnknownVersion,
        403 | 404 => KekCause::Denied,
        // A key that is being deleted or recovered.
        409 if inner == "ObjectIsDeletedButRecoverable" => KekCause::Denied,
        400 if question == Question::Unwrap => KekCause::Rejected,
        400 => KekCause::Misconfigured,
        429 => KekCause::Throttled,
        500..=599 => KekCause::Unavailable,
        _ => return KekError::unmapped(message),
    };
    KekError::new(cause, message).with_retry_after(wait)
}

/// Entra or the metadata service gave no token.
fn identity(error: &Error) -> KekError {
    let inner = error.source().and_then(|source| source.downcast_ref::<Error>()).map(Error::kind);
    let (cause, wait) = match inner {
        Some(ErrorKind::HttpResponse { status, raw_response, .. }) => {
            let wait = raw_response.as_deref().and_then(|raw| retry_after(raw.headers()));
            match u16::from(*status) {
                429 => (KekCause::Throttled, wait),
                500..=599 => (KekCause::Unavailable, wait),
                _ => (KekCause::Unauthenticated, None),
            }
        }
        Some(ErrorKind::Connection | ErrorKind::Io | ErrorKind::DataConversion) => (KekCause::Unavailable, None),
        _ => (KekCause::Unauthenticated, None),
    };
    let detail = match inner {
        Some(ErrorKind::DataConversion) => "the answer is no token".into(),
        _ => error.to_string().lines().next().unwrap_or_default().chars().take(400).collect::<String>(),
    };
    KekError::new(cause, format!("no access token from Azure: {detail}")).with_retry_after(wait)
}

fn retry_after(headers: &Headers) -> Option<Duration> {
    let seconds = headers.get_optional_str(&HeaderName::from_static("retry-after"))?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use azure_core::http::StatusCode;
    use serde_json::{Value, json};

    fn answered(status: u16, body: &Value, headers: Headers) -> Error {
        let status = StatusCode::from(status);
        let raw = RawResponse::from_bytes(status, headers, body.to_string());
        Error::from(ErrorKind::HttpResponse { status, error_code: None, raw_response: Some(Box::new(raw)) })
    }

    fn asked(question: Question, status: u16, code: &str, inner: &str) -> KekError {
        let body = json!({"error": {"code": code, "message": "text of the service", "innererror": {"code": inner}}});
        map(question, &answered(status, &body, Headers::new()))
    }

    fn cause(question: Question, status: u16, code: &str, inner: &str) -> KekCause {
        asked(question, status, code, inner).cause()
    }

    #[test]
    fn a_token_that_is_not_accepted_is_unauthenticated() {
        assert_eq!(cause(Question::Key, 401, "Unauthorized", ""), KekCause::Unauthenticated);
    }

    #[test]
    fn a_disabled_or_expired_key_and_a_missing_permission_are_denied_and_named() {
        for inner in ["KeyDisabled", "KeyExpired", "ForbiddenByPolicy", "ForbiddenByRbac", "AccessDenied"] {
            let error = asked(Question::Unwrap, 403, "Forbidden", inner);
            assert_eq!(error.cause(), KekCause::Denied, "{inner}");
            assert!(error.to_string().contains(inner), "{error}");
        }
    }

    #[test]
    fn a_firewall_is_a_mistake_in_the_setup_and_no_reason_to_wipe() {
        assert_eq!(cause(Question::Unwrap, 403, "Forbidden", "ForbiddenByFirewall"), KekCause::Misconfigured);
    }

    #[test]
    fn a_deleted_key_is_denied_and_a_version_that_is_not_there_unknown() {
        assert_eq!(cause(Question::Unwrap, 404, "KeyNotFound", ""), KekCause::UnknownVersion);
        assert_eq!(cause(Question::Key, 404, "KeyNotFound", ""), KekCause::Denied);
        assert_eq!(cause(Question::Unwrap, 409, "Conflict", "ObjectIsDeletedButRecoverable"), KekCause::Denied);
    }

    #[test]
    fn data_that_do_not_unwrap_are_rejected_and_a_bad_request_is_a_mistake_in_the_setup() {
        assert_eq!(cause(Question::Unwrap, 400, "BadParameter", ""), KekCause::Rejected);
        assert_eq!(cause(Question::Wrap, 400, "BadParameter", ""), KekCause::Misconfigured);
    }

    #[test]
    fn a_throttled_call_carries_the_time_to_wait() {
        let mut headers = Headers::new();
        headers.insert("retry-after", "9");
        let error = map(Question::Wrap, &answered(429, &json!({"error": {"code": "Throttled"}}), headers));
        assert_eq!((error.cause(), error.retry_after()), (KekCause::Throttled, Some(Duration::from_secs(9))));
    }

    #[test]
    fn the_services_own_faults_are_unavailable_and_what_nobody_knows_is_unmapped() {
        for status in [500, 502, 503] {
            let error = map(Question::Key, &answered(status, &json!("bad gateway"), Headers::new()));
            assert_eq!(error.cause(), KekCause::Unavailable);
            assert!(!error.to_string().contains("unmapped"), "{error}");
        }
        for status in [302, 418] {
            let error = map(Question::Key, &answered(status, &json!(""), Headers::new()));
            assert_eq!(error.cause(), KekCause::Unavailable);
            assert!(error.to_string().contains("unmapped"), "{error}");
        }
    }

    #[test]
    fn a_client_secret_that_entra_refuses_is_unauthenticated_and_a_silent_entra_is_waited_for() {
        let credential = |inner: Error| Error::with_error(ErrorKind::Credential, inner, "authentication failed");
        let refused = credential(answered(401, &json!({"error": "invalid_client"}), Headers::new()));
        assert_eq!(map(Question::Key, &refused).cause(), KekCause::Unauthenticated);
        let down = credential(answered(503, &json!({}), Headers::new()));
        assert_eq!(map(Question::Key, &down).cause(), KekCause::Unavailable);
        let busy = credential(answered(429, &json!({}), Headers::new()));
        assert_eq!(map(Question::Key, &busy).cause(), KekCause::Throttled);
        let silent = credential(Error::new(ErrorKind::Io, KekError::unavailable("login: no answer in time")));
        let error = map(Question::Key, &silent);
        assert_eq!(error.cause(), KekCause::Unavailable);
        assert!(error.to_string().contains("no answer in time"), "{error}");
    }
}
