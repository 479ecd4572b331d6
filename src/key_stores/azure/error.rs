//! The Azure SDK's errors → `KekError`: the one place that knows what Key Vault's and Entra's answers mean.

use std::error::Error as _;
use std::time::Duration;

use azure_core::Error;
use azure_core::error::ErrorKind;
use azure_core::http::RawResponse;
use azure_core::http::headers::{HeaderName, Headers};
use serde::Deserialize;

use crate::kek::{KekCause, KekError};
use crate::key_stores::shared::retry_after;
use crate::key_stores::shared::vendor_text::shortened;

/// What was asked: some answers mean different things for different actions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// The key and its latest version.
    Key,
    /// Wrap under a version.
    Wrap,
    /// Unwrap by a version.
    Unwrap,
    /// Make a new version.
    Rotate,
}

/// Key Vault's error body (<https://learn.microsoft.com/azure/key-vault/general/authentication-requests-and-responses>).
#[derive(Deserialize)]
struct Body {
    error: Detail,
}

#[derive(Deserialize)]
struct Detail {
    code: String,
    #[serde(default)]
    message: String,
    #[serde(default, alias = "innerError")]
    innererror: Option<Inner>,
}

#[derive(Deserialize)]
struct Inner {
    #[serde(default)]
    code: String,
}

/// The inner codes of `403 Forbidden` (<https://learn.microsoft.com/azure/key-vault/general/rest-error-codes>).
const FORBIDDEN: [(&str, Forbidden); 9] = [
    ("KeyDisabled", Forbidden::State),
    ("KeyExpired", Forbidden::State),
    ("KeyNotYetValid", Forbidden::State),
    ("ForbiddenByPolicy", Forbidden::Permission),
    ("ForbiddenByRbac", Forbidden::Permission),
    ("AccessDenied", Forbidden::Permission),
    // Where the node asks from is not allowed: the key is as good as before, and nothing is to be cleared.
    ("ForbiddenByFirewall", Forbidden::Network),
    ("ForbiddenByConnection", Forbidden::Network),
    ("ForbiddenByPerimeter", Forbidden::Network),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Forbidden {
    State,
    Permission,
    Network,
}

/// What an error of the SDK means.
pub(super) fn kek_error(action: Action, error: &Error) -> KekError {
    // The SDK wraps what its transport and credentials return, which are this program's; sorted once is enough.
    if let Some(error) = our_own(error) {
        return error;
    }
    match error.kind() {
        ErrorKind::HttpResponse { status, raw_response, .. } => {
            vault(action, u16::from(*status), raw_response.as_deref())
        }
        ErrorKind::Credential => login_refusal(error),
        // The SDK's own text may quote the answer, and the answer may hold a DEK.
        ErrorKind::DataConversion => KekError::unmapped("answer of Key Vault is not as expected"),
        _ => KekError::unmapped(error.to_string()),
    }
}

/// What an error answer means to each request, and to one for an access token.
pub(in crate::key_stores) fn meanings(status: u16, retry_after: Option<&str>, body: &[u8]) -> Vec<KekError> {
    let mut headers = Headers::new();
    if let Some(wait) = retry_after {
        headers.insert("retry-after", wait.to_owned());
    }
    let raw = RawResponse::from_bytes(status.into(), headers, body.to_vec());
    let answered = Error::from(ErrorKind::HttpResponse {
        status: status.into(),
        error_code: None,
        raw_response: Some(Box::new(raw)),
    });
    let mut all = vec![login_refusal(&answered)];
    all.extend([Action::Key, Action::Wrap, Action::Unwrap, Action::Rotate].map(|action| kek_error(action, &answered)));
    all
}

/// An error that was made here, wherever in the chain the SDK put it.
fn our_own(error: &Error) -> Option<KekError> {
    let mut next = error.source();
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<KekError>() {
            return Some(KekError::new(error.cause(), error.problem()).with_retry_after(error.retry_after()));
        }
        next = error.source();
    }
    None
}

fn vault(action: Action, status: u16, response: Option<&RawResponse>) -> KekError {
    let wait = response.and_then(|raw| wait(raw.headers()));
    let parsed = response.and_then(|raw| serde_json::from_slice::<Body>(raw.body()).ok());
    let Some(Body { error: detail }) = parsed.filter(|body| !body.error.code.is_empty()) else {
        return foreign(status).with_retry_after(wait);
    };
    let inner = detail.innererror.map(|inner| inner.code).unwrap_or_default();
    // Key Vault's text names the key and the missing permission; it never holds data. Cut, since it is not ours.
    let text = shortened(&detail.message, 400);
    let message = format!("Key Vault answered {status} {} {inner}: {text}", detail.code);
    let cause = match (status, detail.code.as_str()) {
        (401, _) => KekCause::Unauthenticated,
        (403, _) => return forbidden(&inner, &detail.message, message),
        // This version is gone, and others may be there. For the key itself the same answer means that it was deleted.
        (404, "KeyNotFound") if action == Action::Unwrap => KekCause::UnknownVersion,
        (404, "KeyNotFound") => KekCause::Denied,
        // A key that is being deleted or recovered.
        (409, _) if inner == "ObjectIsDeletedButRecoverable" => KekCause::Denied,
        // Of an unwrap, only the blob can be wrong: the rest is the same in each request.
        (400, _) if action == Action::Unwrap => KekCause::Rejected,
        (400, _) => KekCause::Misconfigured,
        (429, _) => KekCause::Throttled,
        (500..=599, _) => KekCause::Unavailable,
        _ => return KekError::unmapped(message),
    };
    KekError::new(cause, message).with_retry_after(wait)
}

fn forbidden(inner: &str, said: &str, message: String) -> KekError {
    let known = FORBIDDEN.iter().find(|(code, _)| *code == inner).map(|(_, kind)| *kind);
    match known {
        Some(Forbidden::State) => KekError::new(KekCause::Denied, message),
        Some(Forbidden::Permission) => KekError::denied_by_policy(message),
        Some(Forbidden::Network) => {
            KekError::unavailable(format!("the vault's firewall refuses this network; allow it there; {message}"))
        }
        // Access policies name the permission, without an inner code.
        None if inner.is_empty() && said.contains("does not have keys ") => KekError::denied_by_policy(message),
        // A 403 that is not known counts as temporary: a wrong "denied" would clear keys from memory.
        None => KekError::unmapped(message),
    }
}

fn foreign(status: u16) -> KekError {
    let text = format!("whatever serves the vault's name answered {status}, and not in the form of Key Vault");
    let cause = if status == 429 { KekCause::Throttled } else { KekCause::Unavailable };
    KekError::new(cause, text + "; check vault, address and proxies")
}

/// OAuth 2.0's error answer (RFC 6749, 5.2), of Entra and of the metadata service.
#[derive(Deserialize)]
struct OauthError {
    error: String,
    #[serde(default)]
    error_description: String,
}

/// The codes that refuse who asks (<https://learn.microsoft.com/entra/identity-platform/reference-error-codes>).
const REFUSALS: [&str; 6] =
    ["invalid_client", "invalid_grant", "unauthorized_client", "invalid_request", "invalid_scope", "invalid_resource"];

/// Entra or the metadata service gave no token.
pub(super) fn login_refusal(error: &Error) -> KekError {
    if let Some(error) = our_own(error) {
        return error;
    }
    let answer = answer_within(error).map(|(status, raw)| {
        let refusal = raw.and_then(|raw| serde_json::from_slice::<OauthError>(raw.body()).ok());
        (status, refusal, raw.and_then(|raw| wait(raw.headers())))
    });
    match answer {
        Some((_, Some(OauthError { error, error_description }), _)) if REFUSALS.contains(&error.as_str()) => {
            let said: String = error_description.chars().filter(|c| !c.is_control()).take(400).collect();
            KekError::new(KekCause::Unauthenticated, format!("no access token from Azure: {error}: {said}"))
        }
        Some((429, _, wait)) => {
            KekError::new(KekCause::Throttled, "Azure was asked too often for an access token").with_retry_after(wait)
        }
        Some((status, _, wait)) => {
            KekError::unavailable(format!("no access token from Azure: it answered {status}")).with_retry_after(wait)
        }
        None => {
            let said: String = error.to_string().lines().next().unwrap_or_default().chars().take(400).collect();
            KekError::unavailable(format!("no access token from Azure: {said}"))
        }
    }
}

fn answer_within(error: &Error) -> Option<(u16, Option<&RawResponse>)> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let ErrorKind::HttpResponse { status, raw_response, .. } = error.kind() {
            return Some((u16::from(*status), raw_response.as_deref()));
        }
        next = error.source().and_then(|source| source.downcast_ref::<Error>());
    }
    None
}

fn wait(headers: &Headers) -> Option<Duration> {
    retry_after::parse(headers.get_optional_str(&HeaderName::from_static("retry-after"))?)
}

#[cfg(test)]
mod tests {
    use azure_core::http::StatusCode;
    use serde_json::{Value, json};

    use super::*;

    fn answered(status: u16, body: &str, headers: Headers) -> Error {
        let status = StatusCode::from(status);
        let raw = RawResponse::from_bytes(status, headers, body.to_owned());
        Error::from(ErrorKind::HttpResponse { status, error_code: None, raw_response: Some(Box::new(raw)) })
    }

    fn asked(action: Action, status: u16, code: &str, inner: &str, text: &str) -> KekError {
        let mut body = json!({"error": {"code": code, "message": text}});
        if !inner.is_empty() {
            body["error"]["innererror"] = json!({"code": inner});
        }
        kek_error(action, &answered(status, &body.to_string(), Headers::new()))
    }

    /// Row by row: what Key Vault answers, and what it means.
    #[test]
    fn each_answer_of_key_vault_says_what_the_operator_must_do() {
        use Action::{Key, Rotate, Unwrap, Wrap};
        use KekCause::{Denied, Misconfigured, Rejected, Throttled, Unauthenticated, Unavailable, UnknownVersion};
        let policy =
            "The user, group or application 'appid=x' does not have keys unwrapKey permission on key vault 'v'.";
        for (action, status, code, inner, text, cause) in [
            (Key, 401, "Unauthorized", "", "AKV10032: Invalid issuer.", Unauthenticated),
            (Unwrap, 403, "Forbidden", "KeyDisabled", "", Denied),
            (Unwrap, 403, "Forbidden", "KeyExpired", "", Denied),
            (Wrap, 403, "Forbidden", "KeyNotYetValid", "", Denied),
            (Unwrap, 403, "Forbidden", "ForbiddenByPolicy", "", Denied),
            (Unwrap, 403, "Forbidden", "ForbiddenByRbac", "", Denied),
            (Unwrap, 403, "Forbidden", "AccessDenied", "", Denied),
            (Unwrap, 403, "Forbidden", "", policy, Denied),
            (Unwrap, 403, "Forbidden", "ForbiddenByFirewall", "", Unavailable),
            (Unwrap, 403, "Forbidden", "ForbiddenByConnection", "", Unavailable),
            (Unwrap, 403, "Forbidden", "SomethingNew", "", Unavailable),
            (Unwrap, 403, "Forbidden", "", "something new", Unavailable),
            (Unwrap, 404, "KeyNotFound", "", "", UnknownVersion),
            (Key, 404, "KeyNotFound", "", "", Denied),
            (Key, 404, "ResourceNotFound", "", "", Unavailable),
            (Unwrap, 409, "Conflict", "ObjectIsDeletedButRecoverable", "", Denied),
            (Rotate, 409, "Conflict", "", "", Unavailable),
            (Unwrap, 400, "BadParameter", "", "", Rejected),
            (Wrap, 400, "BadParameter", "", "", Misconfigured),
            (Wrap, 429, "Throttled", "", "", Throttled),
            (Key, 500, "InternalServerError", "", "", Unavailable),
            (Key, 503, "ServiceUnavailable", "", "", Unavailable),
        ] {
            let error = asked(action, status, code, inner, text);
            assert_eq!(error.cause(), cause, "{action:?} {status} {code} {inner} {text}: {error}");
            assert!(error.to_string().contains(code), "{error}");
        }
    }

    #[test]
    fn an_answer_that_is_not_key_vaults_is_never_a_denial() {
        for status in [302, 400, 401, 403, 404, 409, 418, 500, 503] {
            for body in ["", "default backend - 404", "<html>403</html>", "{}", r#"{"error":"forbidden"}"#] {
                for action in [Action::Key, Action::Unwrap] {
                    let error = kek_error(action, &answered(status, body, Headers::new()));
                    assert_eq!(error.cause(), KekCause::Unavailable, "{status} {body}");
                }
            }
        }
    }

    #[test]
    fn a_throttled_call_carries_the_time_to_wait() {
        let mut headers = Headers::new();
        headers.insert("retry-after", "9");
        let body = json!({"error": {"code": "Throttled"}}).to_string();
        let error = kek_error(Action::Wrap, &answered(429, &body, headers));
        assert_eq!((error.cause(), error.retry_after()), (KekCause::Throttled, Some(Duration::from_secs(9))));
    }

    #[test]
    fn only_entras_own_words_refuse_a_credential() {
        let cause = |status, body: &Value| {
            let inner = answered(status, &body.to_string(), Headers::new());
            login_refusal(&Error::with_error(ErrorKind::Credential, inner, "authentication failed")).cause()
        };
        for code in REFUSALS {
            assert_eq!(cause(401, &json!({"error": code})), KekCause::Unauthenticated, "{code}");
        }
        assert_eq!(cause(400, &json!({"error": "temporarily_unavailable"})), KekCause::Unavailable);
        assert_eq!(cause(401, &json!("")), KekCause::Unavailable);
        assert_eq!(cause(503, &json!({})), KekCause::Unavailable);
        assert_eq!(cause(429, &json!({})), KekCause::Throttled);
    }

    #[test]
    fn an_entra_that_does_not_answer_is_waited_for() {
        let inner = Error::new(ErrorKind::Io, KekError::unavailable("login: no answer in time"));
        let silent = Error::with_error(ErrorKind::Credential, inner, "authentication failed");
        let error = kek_error(Action::Key, &silent);
        assert_eq!(error.cause(), KekCause::Unavailable);
        assert!(error.to_string().contains("no answer in time"), "{error}");
    }
}
