//! Cloud KMS's error answers → `KekError`: the one place that knows what they mean.

use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderValue, RETRY_AFTER};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::credentials::refusal;
use crate::kek::{KekCause, KekError};
use crate::key_stores::shared::http::Answer;
use crate::key_stores::shared::retry_after;
use crate::key_stores::shared::vendor_text::shortened;

/// What was asked: some answers mean different things for different actions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// The key and its primary version.
    Key,
    /// One version, to see its state.
    Version,
    /// Encrypt under a version.
    Encrypt,
    /// Decrypt: under whichever version encrypted.
    Decrypt,
    /// Make a version or make it primary.
    Rotate,
}

/// Google's error body: `google.rpc.Status` in JSON (<https://cloud.google.com/apis/design/errors#http_mapping>).
#[derive(Deserialize)]
struct Body {
    error: Status,
}

#[derive(Deserialize)]
struct Status {
    #[serde(rename = "code")]
    http: u16,
    #[serde(rename = "status")]
    code: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    details: Vec<Detail>,
}

/// The fields that are used of `PreconditionFailure`, `RetryInfo` and `ErrorInfo` (`google/rpc/error_details.proto`).
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Detail {
    violations: Vec<Violation>,
    retry_delay: Option<String>,
    reason: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Violation {
    r#type: String,
}

/// `CryptoKeyVersionState` of Cloud KMS, and what it means for a call that the state forbids.
const KEY_STATES: [(&str, KekCause); 5] = [
    ("DISABLED", KekCause::Denied),
    ("DESTROY_SCHEDULED", KekCause::Denied),
    ("DESTROYED", KekCause::Denied),
    ("PENDING_GENERATION", KekCause::Unavailable),
    ("PENDING_IMPORT", KekCause::Unavailable),
];

/// The reasons of `PERMISSION_DENIED` that concern neither key nor permission (`google/api/error_reason.proto`): the key
/// is as good as before, and nothing is to be cleared.
const ABOUT_THE_PROJECT: [(&str, &str); 12] = [
    ("BILLING_DISABLED", "billing of the project is disabled; enable it"),
    ("SERVICE_DISABLED", "the Cloud KMS API is disabled in the project; enable cloudkms.googleapis.com"),
    ("CONSUMER_SUSPENDED", "the project is suspended"),
    ("CONSUMER_INVALID", "the project is not valid for quota and billing"),
    ("USER_PROJECT_DENIED", "the project that is billed may not be used by this account"),
    ("SECURITY_POLICY_VIOLATED", "a VPC Service Controls perimeter refuses this network"),
    ("ORG_RESTRICTION_VIOLATION", "an organization restriction refuses this network"),
    ("ORG_RESTRICTION_HEADER_INVALID", "an organization restriction refuses this network"),
    ("LOCATION_ORG_POLICY_VIOLATED", "an organization policy refuses this location"),
    ("LOCATION_POLICY_VIOLATED", "a location policy refuses this network"),
    ("RESOURCE_USAGE_RESTRICTION_VIOLATED", "an organization policy restricts the use of Cloud KMS"),
    ("SYSTEM_PARAMETER_UNSUPPORTED", "a proxy adds a parameter that Cloud KMS does not take"),
];

/// What an answer that is not 200 means. One that is not in Google's own form is of somebody in between.
pub(super) fn kek_error(action: Action, answer: &Answer) -> KekError {
    let status = match serde_json::from_slice::<Body>(&answer.body) {
        Ok(Body { error }) if error.http == answer.status => error,
        _ => return foreign(answer),
    };
    let message = describe(answer.status, &status);
    let cause = match status.code.as_str() {
        "UNAUTHENTICATED" => KekCause::Unauthenticated,
        "PERMISSION_DENIED" => return permission(&status, message),
        // Where a version was asked for, it is the version that is not there.
        "NOT_FOUND" if matches!(action, Action::Encrypt | Action::Version) => KekCause::UnknownVersion,
        "NOT_FOUND" if status.is_about_a_key() => KekCause::Denied,
        "FAILED_PRECONDITION" => match status.key_state() {
            Some(cause) => cause,
            None => return KekError::unmapped(message),
        },
        // What we sent was damaged on its way: the same again may arrive whole.
        "INVALID_ARGUMENT" if status.is_checksum() => KekCause::Unavailable,
        "INVALID_ARGUMENT" if action == Action::Decrypt => KekCause::Rejected,
        "INVALID_ARGUMENT" => KekCause::Misconfigured,
        "RESOURCE_EXHAUSTED" => {
            let wait = status.retry_delay().or_else(|| retry_after::of(&answer.headers));
            return KekError::new(KekCause::Throttled, message).with_retry_after(wait);
        }
        "INTERNAL" | "UNAVAILABLE" | "DEADLINE_EXCEEDED" | "UNKNOWN" | "ABORTED" | "CANCELLED" => {
            return KekError::unavailable(message).with_retry_after(retry_after::of(&answer.headers));
        }
        _ => return KekError::unmapped(message),
    };
    KekError::new(cause, message)
}

/// What an error answer means to each request, and to one for an access token.
pub(in crate::key_stores) fn meanings(status: u16, retry_after: Option<&str>, body: &[u8]) -> Vec<KekError> {
    let headers = retry_after.and_then(|text| Some((RETRY_AFTER, HeaderValue::from_str(text).ok()?)));
    let headers = HeaderMap::from_iter(headers);
    let answer = Answer { status, headers, body: Zeroizing::new(body.to_vec()) };
    let mut all = vec![refusal("Google's token endpoint", &answer)];
    all.extend(
        [Action::Key, Action::Version, Action::Encrypt, Action::Decrypt, Action::Rotate]
            .map(|action| kek_error(action, &answer)),
    );
    all
}

/// Only what Google says of a permission is a denial.
fn permission(status: &Status, message: String) -> KekError {
    match status.reason() {
        Some("ACCESS_TOKEN_SCOPE_INSUFFICIENT") => KekError::new(KekCause::Unauthenticated, message),
        Some("IAM_PERMISSION_DENIED") => KekError::denied_by_policy(message),
        Some(reason) => match ABOUT_THE_PROJECT.iter().find(|(known, _)| *known == reason) {
            Some((_, what)) => KekError::unavailable(format!("{what}; {message}")),
            None => KekError::unmapped(message),
        },
        None if status.message.starts_with("Permission '") && status.message.contains("' denied") => {
            KekError::denied_by_policy(message)
        }
        None => KekError::unmapped(message),
    }
}

fn foreign(answer: &Answer) -> KekError {
    let text = format!("answered {}, and not in the form of Cloud KMS", answer.status);
    let cause = if answer.status == 429 { KekCause::Throttled } else { KekCause::Unavailable };
    KekError::new(cause, format!("whatever serves the endpoint {text}; check endpoint and proxies"))
        .with_retry_after(retry_after::of(&answer.headers))
}

fn describe(code: u16, status: &Status) -> String {
    // Google's text names the key and the missing permission; it never holds data. Cut, since it is not ours.
    let mut text = shortened(&status.message, 400);
    for reason in status.details.iter().filter_map(|detail| detail.reason.as_deref()) {
        text.extend([" [", &reason.chars().take(60).collect::<String>(), "]"]);
    }
    format!("Cloud KMS answered {code} {}: {text}", status.code)
}

impl Status {
    fn reason(&self) -> Option<&str> {
        self.details.iter().find_map(|detail| detail.reason.as_deref())
    }

    fn violates(&self, kind: &str) -> bool {
        self.details.iter().flat_map(|detail| &detail.violations).any(|violation| violation.r#type == kind)
    }

    /// The state that forbids what was asked: of the violation, or of the text that came before there were any.
    fn key_state(&self) -> Option<KekCause> {
        KEY_STATES.iter().find_map(|(state, cause)| {
            let said = self.violates(&format!("KEY_{state}"))
                || self.message.contains(&format!("is not enabled, current state is: {state}"));
            said.then_some(*cause)
        })
    }

    /// "`CryptoKey` projects/… not found.": a method or an API that is not found is something else.
    fn is_about_a_key(&self) -> bool {
        ["CryptoKey", "KeyRing"].iter().any(|kind| self.message.starts_with(kind))
    }

    fn is_checksum(&self) -> bool {
        let message = self.message.to_lowercase();
        message.contains("crc32c") || message.contains("checksum")
    }

    /// `google.protobuf.Duration` in JSON: seconds with a fraction and an `s`.
    fn retry_delay(&self) -> Option<Duration> {
        let delay = self.details.iter().find_map(|detail| detail.retry_delay.as_deref())?;
        Duration::try_from_secs_f64(delay.strip_suffix('s')?.parse().ok()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn asked(action: Action, code: u16, status: &str, message: &str, details: &Value) -> KekError {
        let body = json!({"error": {"code": code, "message": message, "status": status, "details": details}});
        kek_error(action, &answer(code, body.to_string()))
    }

    fn answer(status: u16, body: String) -> Answer {
        Answer { status, headers: HeaderMap::new(), body: Zeroizing::new(body.into_bytes()) }
    }

    fn reason(reason: &str) -> Value {
        json!([{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason, "domain": "googleapis.com"}])
    }

    fn violation(kind: &str) -> Value {
        json!([{"@type": "type.googleapis.com/google.rpc.PreconditionFailure",
            "violations": [{"type": kind, "subject": "projects/p/…/cryptoKeyVersions/1"}]}])
    }

    /// Row by row: what Google answers, and what it means.
    #[test]
    fn each_answer_of_cloud_kms_says_what_the_operator_must_do() {
        use Action::{Decrypt, Encrypt, Key, Rotate, Version};
        use KekCause::{Denied, Misconfigured, Rejected, Throttled, Unauthenticated, Unavailable, UnknownVersion};
        let none = || json!([]);
        let permission = "Permission 'cloudkms.cryptoKeyVersions.useToDecrypt' denied on resource 'projects/p'";
        let disabled = "projects/p/…/cryptoKeyVersions/1 is not enabled, current state is: DISABLED.";
        let pending = "projects/p/…/cryptoKeyVersions/1 is not enabled, current state is: PENDING_GENERATION.";
        let checksum = "The checksum in field ciphertext_crc32c did not match the data in field ciphertext.";
        let rows: Vec<(Action, u16, &str, &str, Value, KekCause)> = vec![
            (Key, 401, "UNAUTHENTICATED", "Request had invalid credentials.", none(), Unauthenticated),
            (Key, 403, "PERMISSION_DENIED", "scopes", reason("ACCESS_TOKEN_SCOPE_INSUFFICIENT"), Unauthenticated),
            (Decrypt, 403, "PERMISSION_DENIED", permission, none(), Denied),
            (Decrypt, 403, "PERMISSION_DENIED", permission, reason("IAM_PERMISSION_DENIED"), Denied),
            (
                Decrypt,
                403,
                "PERMISSION_DENIED",
                "This API method requires billing",
                reason("BILLING_DISABLED"),
                Unavailable,
            ),
            (Decrypt, 403, "PERMISSION_DENIED", "API has not been used", reason("SERVICE_DISABLED"), Unavailable),
            (
                Decrypt,
                403,
                "PERMISSION_DENIED",
                "prohibited by policy",
                reason("SECURITY_POLICY_VIOLATED"),
                Unavailable,
            ),
            (Decrypt, 403, "PERMISSION_DENIED", "something new", reason("SOMETHING_NEW"), Unavailable),
            (Decrypt, 403, "PERMISSION_DENIED", "something new", none(), Unavailable),
            (Key, 404, "NOT_FOUND", "CryptoKey not found.", none(), Denied),
            (Decrypt, 404, "NOT_FOUND", "CryptoKey not found.", none(), Denied),
            (Key, 404, "NOT_FOUND", "KeyRing not found.", none(), Denied),
            (Decrypt, 404, "NOT_FOUND", "Method not found.", none(), Unavailable),
            (Decrypt, 404, "NOT_FOUND", "Requested entity was not found.", none(), Unavailable),
            (Encrypt, 404, "NOT_FOUND", "CryptoKeyVersion not found.", none(), UnknownVersion),
            (Version, 404, "NOT_FOUND", "CryptoKeyVersion not found.", none(), UnknownVersion),
            (Decrypt, 400, "FAILED_PRECONDITION", "state", violation("KEY_DISABLED"), Denied),
            (Decrypt, 400, "FAILED_PRECONDITION", "state", violation("KEY_DESTROYED"), Denied),
            (Decrypt, 400, "FAILED_PRECONDITION", "state", violation("KEY_DESTROY_SCHEDULED"), Denied),
            (Decrypt, 400, "FAILED_PRECONDITION", "state", violation("KEY_PENDING_GENERATION"), Unavailable),
            (Decrypt, 400, "FAILED_PRECONDITION", disabled, none(), Denied),
            (Decrypt, 400, "FAILED_PRECONDITION", pending, none(), Unavailable),
            (Decrypt, 400, "FAILED_PRECONDITION", "external key manager", none(), Unavailable),
            (Decrypt, 400, "INVALID_ARGUMENT", "Decryption failed: the ciphertext is invalid.", none(), Rejected),
            (Decrypt, 400, "INVALID_ARGUMENT", checksum, none(), Unavailable),
            (Encrypt, 400, "INVALID_ARGUMENT", "bad purpose", none(), Misconfigured),
            (Encrypt, 429, "RESOURCE_EXHAUSTED", "Quota exceeded", none(), Throttled),
            (Rotate, 409, "ABORTED", "try again", none(), Unavailable),
            (Key, 500, "INTERNAL", "", none(), Unavailable),
            (Key, 503, "UNAVAILABLE", "", none(), Unavailable),
            (Key, 501, "UNIMPLEMENTED", "", none(), Unavailable),
        ];
        for (action, http, code, message, details, cause) in rows {
            let error = asked(action, http, code, message, &details);
            assert_eq!(error.cause(), cause, "{action:?} {http} {code} {message}: {error}");
            assert!(error.to_string().contains(code), "{error}");
        }
    }

    #[test]
    fn an_answer_that_is_not_googles_is_never_a_denial() {
        for status in [302, 400, 401, 403, 404, 409, 418, 500, 503] {
            for body in [
                "",
                "default backend - 404",
                "<html>403 Forbidden</html>",
                "{}",
                r#"{"error": "forbidden"}"#,
                r#"{"error": {"message": "no status"}}"#,
                r#"{"error": {"code": 499, "status": "PERMISSION_DENIED", "message": "Permission 'x' denied"}}"#,
            ] {
                for action in [Action::Key, Action::Decrypt] {
                    let error = kek_error(action, &answer(status, body.into()));
                    assert_eq!(error.cause(), KekCause::Unavailable, "{status} {body}");
                }
            }
        }
    }

    #[test]
    fn a_missing_permission_is_named_and_may_be_one_that_newer_credentials_have() {
        let text = "Permission 'cloudkms.cryptoKeyVersions.useToDecrypt' denied on resource 'projects/p'";
        let error = asked(Action::Decrypt, 403, "PERMISSION_DENIED", text, &json!([]));
        assert!(error.is_by_policy() && error.to_string().contains("useToDecrypt"), "{error}");
        let state = asked(Action::Decrypt, 400, "FAILED_PRECONDITION", "", &violation("KEY_DISABLED"));
        assert!(!state.is_by_policy());
    }

    #[test]
    fn a_throttled_call_carries_the_time_to_wait() {
        let details = json!([{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "1.5s"}]);
        let error = asked(Action::Encrypt, 429, "RESOURCE_EXHAUSTED", "Quota exceeded", &details);
        assert_eq!((error.cause(), error.retry_after()), (KekCause::Throttled, Some(Duration::from_millis(1500))));
        let mut answer = answer(429, String::new());
        answer.headers.insert("retry-after", "7".parse().expect("a header"));
        assert_eq!(kek_error(Action::Key, &answer).retry_after(), Some(Duration::from_secs(7)));
    }
}
