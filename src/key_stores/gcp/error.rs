//! Cloud KMS's error answers → `KekError`: the one place that knows what they mean.

use std::time::Duration;

use reqwest::header::HeaderMap;
use serde::Deserialize;

use crate::kek::{KekCause, KekError};
use crate::key_stores::shared::http::Answer;

/// What was asked: some answers mean different things to different questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Question {
    /// The key and its primary version.
    Key,
    /// One version.
    Version,
    /// Encrypt under a version.
    Encrypt,
    /// Decrypt.
    Decrypt,
    /// Make a version or make it primary.
    Rotate,
}

/// Google's error body, `google.rpc.Status` in JSON.
#[derive(Default, Deserialize)]
struct Body {
    #[serde(default)]
    error: Status,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    #[serde(rename = "status")]
    code: String,
    message: String,
    details: Vec<Detail>,
}

/// What is looked at of `PreconditionFailure`, `RetryInfo` and `ErrorInfo`.
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

/// What an answer that is not 200 means.
pub(super) fn map(question: Question, answer: &Answer) -> KekError {
    let status = serde_json::from_slice::<Body>(&answer.body).unwrap_or_default().error;
    let message = describe(answer.status, &status);
    let cause = match (answer.status, status.code.as_str()) {
        (401, _) => KekCause::Unauthenticated,
        (403, _) if status.reason("ACCESS_TOKEN_SCOPE_INSUFFICIENT") => KekCause::Unauthenticated,
        // Where a version was asked for, it is the version that is not there.
        (404, _) if matches!(question, Question::Encrypt | Question::Version) => KekCause::UnknownVersion,
        (403 | 404, _) => KekCause::Denied,
        (400, "FAILED_PRECONDITION") if status.violates("KEY_PENDING_GENERATION") => KekCause::Unavailable,
        (400, "FAILED_PRECONDITION") if status.is_key_state() => KekCause::Denied,
        // What we sent was damaged on its way: the same again may arrive whole.
        (400, "INVALID_ARGUMENT") if status.is_checksum() => KekCause::Unavailable,
        (400, "INVALID_ARGUMENT") if question == Question::Decrypt => KekCause::Rejected,
        (400, "INVALID_ARGUMENT") => KekCause::Misconfigured,
        (429, _) => {
            let wait = status.retry_delay().or_else(|| retry_after(&answer.headers));
            return KekError::new(KekCause::Throttled, message).with_retry_after(wait);
        }
        (500..=599, _) => {
            return KekError::unavailable(message).with_retry_after(retry_after(&answer.headers));
        }
        _ => return KekError::unmapped(message),
    };
    KekError::new(cause, message)
}

fn describe(code: u16, status: &Status) -> String {
    // Google's text names the key and the missing permission; it never holds data. Cut, since it is not ours.
    let mut text: String = status.message.chars().filter(|c| !c.is_control()).take(400).collect();
    for reason in status.details.iter().filter_map(|detail| detail.reason.as_deref()) {
        text.extend([" [", &reason.chars().take(60).collect::<String>(), "]"]);
    }
    format!("Cloud KMS answered {code} {}: {text}", status.code)
}

impl Status {
    fn reason(&self, reason: &str) -> bool {
        self.details.iter().any(|detail| detail.reason.as_deref() == Some(reason))
    }

    fn violates(&self, kind: &str) -> bool {
        self.details.iter().flat_map(|detail| &detail.violations).any(|violation| violation.r#type == kind)
    }

    fn is_key_state(&self) -> bool {
        ["KEY_DISABLED", "KEY_DESTROYED", "KEY_DESTROY_SCHEDULED"].iter().any(|kind| self.violates(kind))
            || self.message.contains("is not enabled, current state is:")
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

/// The pause that a `Retry-After` header in seconds asks for.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get("retry-after")?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use zeroize::Zeroizing;

    fn asked(question: Question, code: u16, status: &str, message: &str, details: &Value) -> KekError {
        let body = json!({"error": {"code": code, "message": message, "status": status, "details": details}});
        map(question, &answer(code, body.to_string()))
    }

    fn answer(status: u16, body: String) -> Answer {
        Answer { status, headers: HeaderMap::new(), body: Zeroizing::new(body.into_bytes()) }
    }

    fn cause(question: Question, code: u16, status: &str, message: &str) -> KekCause {
        asked(question, code, status, message, &json!([])).cause()
    }

    #[test]
    fn a_token_that_is_not_accepted_is_unauthenticated() {
        let error = asked(Question::Key, 401, "UNAUTHENTICATED", "invalid credentials", &json!([]));
        assert_eq!(error.cause(), KekCause::Unauthenticated);
        let scope =
            json!([{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "ACCESS_TOKEN_SCOPE_INSUFFICIENT"}]);
        let error = asked(Question::Key, 403, "PERMISSION_DENIED", "scopes", &scope);
        assert_eq!(error.cause(), KekCause::Unauthenticated);
    }

    #[test]
    fn a_missing_permission_is_denied_and_named() {
        let text = "Permission 'cloudkms.cryptoKeyVersions.useToDecrypt' denied on resource 'projects/p'";
        let error = asked(Question::Decrypt, 403, "PERMISSION_DENIED", text, &json!([]));
        assert_eq!(error.cause(), KekCause::Denied);
        assert!(error.to_string().contains("useToDecrypt"), "{error}");
    }

    #[test]
    fn a_key_that_is_gone_is_denied_and_a_version_that_is_gone_unknown() {
        assert_eq!(cause(Question::Key, 404, "NOT_FOUND", "CryptoKey not found."), KekCause::Denied);
        assert_eq!(cause(Question::Decrypt, 404, "NOT_FOUND", "CryptoKey not found."), KekCause::Denied);
        assert_eq!(cause(Question::Encrypt, 404, "NOT_FOUND", "version not found."), KekCause::UnknownVersion);
    }

    #[test]
    fn a_disabled_or_destroyed_version_is_denied_and_one_being_made_is_waited_for() {
        for (kind, expected) in [
            ("KEY_DISABLED", KekCause::Denied),
            ("KEY_DESTROYED", KekCause::Denied),
            ("KEY_DESTROY_SCHEDULED", KekCause::Denied),
            ("KEY_PENDING_GENERATION", KekCause::Unavailable),
        ] {
            let details = json!([{"@type": "type.googleapis.com/google.rpc.PreconditionFailure",
                "violations": [{"type": kind, "subject": "projects/p/…/cryptoKeyVersions/1"}]}]);
            let error = asked(Question::Decrypt, 400, "FAILED_PRECONDITION", "state", &details);
            assert_eq!(error.cause(), expected, "{kind}");
        }
        let text = "projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1 is not enabled, current state is: DISABLED.";
        assert_eq!(cause(Question::Decrypt, 400, "FAILED_PRECONDITION", text), KekCause::Denied);
    }

    #[test]
    fn another_failed_precondition_is_not_taken_for_a_denial() {
        let error = asked(Question::Decrypt, 400, "FAILED_PRECONDITION", "external key manager", &json!([]));
        assert_eq!(error.cause(), KekCause::Unavailable);
        assert!(error.to_string().contains("unmapped"), "{error}");
    }

    #[test]
    fn data_that_do_not_decrypt_are_rejected_and_damaged_ones_sent_again() {
        let text = "Decryption failed: the ciphertext is invalid.";
        assert_eq!(cause(Question::Decrypt, 400, "INVALID_ARGUMENT", text), KekCause::Rejected);
        let text = "The checksum in field ciphertext_crc32c did not match the data in field ciphertext.";
        assert_eq!(cause(Question::Decrypt, 400, "INVALID_ARGUMENT", text), KekCause::Unavailable);
        assert_eq!(cause(Question::Encrypt, 400, "INVALID_ARGUMENT", "bad purpose"), KekCause::Misconfigured);
    }

    #[test]
    fn a_throttled_call_carries_the_time_to_wait() {
        let details = json!([{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "1.5s"}]);
        let error = asked(Question::Encrypt, 429, "RESOURCE_EXHAUSTED", "Quota exceeded", &details);
        assert_eq!((error.cause(), error.retry_after()), (KekCause::Throttled, Some(Duration::from_millis(1500))));
        let mut answer = answer(429, String::new());
        answer.headers.insert("retry-after", "7".parse().expect("a header"));
        assert_eq!(map(Question::Key, &answer).retry_after(), Some(Duration::from_secs(7)));
    }

    #[test]
    fn the_backends_own_faults_are_unavailable_and_what_nobody_knows_is_unmapped() {
        for code in [500, 503, 504] {
            let error = map(Question::Key, &answer(code, "<html>bad gateway</html>".into()));
            assert_eq!(error.cause(), KekCause::Unavailable);
            assert!(!error.to_string().contains("unmapped"), "{error}");
        }
        for code in [302, 418] {
            let error = map(Question::Key, &answer(code, String::new()));
            assert_eq!(error.cause(), KekCause::Unavailable);
            assert!(error.to_string().contains("unmapped"), "{error}");
        }
    }
}
