//! What an answer of the server that is not 2xx means. The only place that reads status codes and messages.

use std::time::Duration;

use reqwest::Method;

use super::request::{Asked, Request};
use crate::kek::{KekCause, KekError};

/// The error for an answer with this status and these messages. A 403 to [`Asked::Engine`] is taken for a denial
/// here: whether it is the token's fault is found out beforehand, since the server does not tell.
pub(super) fn failure(request: &Request, status: u16, messages: &[String], wait: Option<Duration>) -> KekError {
    let Request { asked, method, path, .. } = request;
    let said = messages.join("; ");
    let cause = cause(*asked, status, &said);
    let hint = match (cause, status) {
        (Some(KekCause::Denied), 403) if method == Method::GET => {
            ": the token's policy lacks the capability read there"
        }
        (Some(KekCause::Denied), 403) => ": the token's policy lacks the capability update there",
        (Some(KekCause::Denied), 404) => ": the key does not exist: deleted, or named wrongly",
        (Some(KekCause::Misconfigured), 404) => ": nothing is mounted there; check mount and namespace",
        (_, 300..=399) => ": a redirect, which is not followed; list the active server in addresses",
        (_, 503) => ": sealed, or not ready",
        _ => "",
    };
    let text = format!("{path} answered {status}{hint} ({})", shorten(&said));
    match cause {
        Some(cause) => KekError::new(cause, text).with_retry_after(wait),
        None => KekError::unmapped(text),
    }
}

fn cause(asked: Asked, status: u16, said: &str) -> Option<KekCause> {
    let says = |parts: &[&str]| parts.iter().any(|part| said.contains(part));
    Some(match (asked, status) {
        (_, 429) => KekCause::Throttled,
        (_, 404) if says(&["no handler for route", "unsupported path"]) => KekCause::Misconfigured,
        // Vault 1.14 answers 500 where OpenBao answers 400.
        (Asked::Login, 500) if says(&["invalid secret id", "invalid role id", "invalid role or secret ID"]) => {
            KekCause::Unauthenticated
        }
        (Asked::Login, 400 | 401 | 403) | (Asked::Token, 403) | (Asked::Engine, 401) => KekCause::Unauthenticated,
        (Asked::Engine, 403 | 404) => KekCause::Denied,
        (Asked::Engine, 400)
            if says(&["version is too new", "higher than the latest key version", "no such key version"]) =>
        {
            KekCause::UnknownVersion
        }
        (Asked::Engine, 400) if says(&["encryption key not found", "disallowed by policy"]) => KekCause::Denied,
        (Asked::Engine, 400)
            if says(&["message authentication failed", "invalid ciphertext", "illegal base64", "no prefix"]) =>
        {
            KekCause::Rejected
        }
        // 412: behind the state that the token was made in. 472, 473: a standby of a replica.
        (_, 300..=399 | 412 | 472 | 473 | 500..=599) => KekCause::Unavailable,
        _ => return None,
    })
}

/// The server's words, cut so that a log line stays one.
fn shorten(said: &str) -> String {
    match said.trim() {
        "" => "no reason given".into(),
        said => said.chars().take(300).map(|c| if c.is_control() { ' ' } else { c }).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cause_of(asked: Asked, status: u16, said: &str) -> KekCause {
        failure(&request(asked), status, &[said.into()], None).cause()
    }

    fn request(asked: Asked) -> Request {
        Request { asked, method: Method::POST, path: "path".into(), body: None, repeatable: true }
    }

    #[test]
    fn data_that_do_not_match_are_rejected() {
        for said in [
            "cipher: message authentication failed",
            "invalid ciphertext: no prefix",
            "invalid ciphertext: could not decode base64",
            "invalid ciphertext: unable to decrypt, length is less than expected",
        ] {
            assert_eq!(cause_of(Asked::Engine, 400, said), KekCause::Rejected, "{said}");
        }
    }

    #[test]
    fn a_version_that_the_key_does_not_have_is_unknown() {
        for said in [
            "invalid ciphertext: version is too new",
            "requested version for encryption is higher than the latest key version",
        ] {
            assert_eq!(cause_of(Asked::Engine, 400, said), KekCause::UnknownVersion, "{said}");
        }
    }

    #[test]
    fn policy_and_key_state_are_denials() {
        assert_eq!(cause_of(Asked::Engine, 403, "permission denied"), KekCause::Denied);
        assert_eq!(cause_of(Asked::Engine, 400, "encryption key not found"), KekCause::Denied);
        assert_eq!(
            cause_of(Asked::Engine, 400, "ciphertext or signature version is disallowed by policy (too old)"),
            KekCause::Denied
        );
        assert_eq!(cause_of(Asked::Engine, 404, ""), KekCause::Denied);
    }

    #[test]
    fn a_denial_names_the_path_and_the_capability_that_is_missing() {
        let update = request(Asked::Engine);
        let read = Request { method: Method::GET, ..update.clone() };
        for (request, capability) in [(read, "read"), (update, "update")] {
            let text = failure(&request, 403, &["permission denied".into()], None).to_string();
            assert!(text.contains("path") && text.contains(&format!("lacks the capability {capability}")), "{text}");
        }
    }

    #[test]
    fn credentials_that_are_not_accepted_are_unauthenticated() {
        assert_eq!(cause_of(Asked::Login, 500, "invalid secret id"), KekCause::Unauthenticated);
        assert_eq!(cause_of(Asked::Login, 400, "invalid role or secret ID"), KekCause::Unauthenticated);
        assert_eq!(cause_of(Asked::Login, 403, "permission denied"), KekCause::Unauthenticated);
        assert_eq!(cause_of(Asked::Token, 403, "permission denied"), KekCause::Unauthenticated);
    }

    #[test]
    fn a_server_that_cannot_answer_now_is_unavailable() {
        for status in [307, 412, 472, 473, 500, 502, 503, 504] {
            assert_eq!(cause_of(Asked::Engine, status, "Vault is sealed"), KekCause::Unavailable, "{status}");
        }
        assert_eq!(cause_of(Asked::Login, 500, "internal error"), KekCause::Unavailable);
    }

    #[test]
    fn too_many_requests_are_throttled_and_keep_the_wish_when_to_come_back() {
        let error = failure(&request(Asked::Engine), 429, &[], Some(Duration::from_secs(7)));
        assert_eq!((error.cause(), error.retry_after()), (KekCause::Throttled, Some(Duration::from_secs(7))));
    }

    #[test]
    fn a_mount_that_is_not_there_is_misconfigured() {
        let said = "no handler for route \"nope/keys/nope\". route entry not found.";
        assert_eq!(cause_of(Asked::Engine, 404, said), KekCause::Misconfigured);
        assert_eq!(cause_of(Asked::Login, 404, said), KekCause::Misconfigured);
    }

    #[test]
    fn an_answer_that_nobody_mapped_is_transient_and_says_so() {
        for (status, said) in [(400, "something new"), (418, "")] {
            let error = failure(&request(Asked::Engine), status, &[said.into()], None);
            assert_eq!(error.cause(), KekCause::Unavailable);
            assert!(error.to_string().contains("unmapped"), "{error}");
        }
    }
}
