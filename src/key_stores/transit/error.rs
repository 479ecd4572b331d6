//! What an answer of the server that is not 2xx means. The only place that reads status codes and messages.
//!
//! Vault's and OpenBao's own answers are JSON with a list `errors`
//! (<https://developer.hashicorp.com/vault/api-docs#error-response>); anything else is of somebody in between.

use std::time::Duration;

use reqwest::Method;
use serde::Deserialize;

use super::request::{Action, Request};
use crate::kek::{KekCause, KekError};
use crate::key_stores::shared::retry_after;

#[derive(Deserialize)]
struct Body {
    errors: Vec<String>,
}

/// The servers' own words in the body of an answer that is not 2xx; `None` where it is not in their form.
pub(super) fn messages(body: &[u8]) -> Option<Vec<String>> {
    serde_json::from_slice(body).ok().map(|Body { errors }| errors)
}

/// What an error answer means to each request.
pub(in crate::key_stores) fn meanings(status: u16, retry_after: Option<&str>, body: &[u8]) -> Vec<KekError> {
    let (messages, wait) = (messages(body), retry_after.and_then(retry_after::parse));
    let requests = [Action::Engine, Action::Login, Action::Token].into_iter().flat_map(|action| {
        [Method::GET, Method::POST].map(|method| Request {
            action,
            method,
            path: "path".into(),
            body: None,
            idempotent: true,
        })
    });
    requests.map(|request| kek_error(&request, status, messages.as_deref(), wait)).collect()
}

/// The error for an answer with this status and these messages; `None` where the answer is not the servers' own. A 403
/// to [`Action::Engine`] is taken for a denial here: whether it is the token's fault is found out beforehand, since the
/// server does not tell.
pub(super) fn kek_error(
    request: &Request,
    status: u16,
    messages: Option<&[String]>,
    wait: Option<Duration>,
) -> KekError {
    let Request { action, method, path, .. } = request;
    let Some(messages) = messages else { return foreign(path, status).with_retry_after(wait) };
    let said = messages.join("; ");
    let cause = cause(*action, status, &said);
    let hint = match (cause, status) {
        (Some(KekCause::Denied), 403) if method == Method::GET => {
            ": the token's policy lacks the capability read there"
        }
        (Some(KekCause::Denied), 403) => ": the token's policy lacks the capability update there",
        (Some(KekCause::Denied), 404) => ": the key does not exist: deleted, or named wrongly",
        (Some(KekCause::Misconfigured), 404) => ": nothing is mounted there; check mount and namespace",
        (_, 503) => ": sealed, or not ready",
        _ => "",
    };
    let text = format!("{path} answered {status}{hint} ({})", shorten(&said));
    match cause {
        Some(KekCause::Denied) if status == 403 => KekError::denied_by_policy(text),
        Some(cause) => KekError::new(cause, text).with_retry_after(wait),
        None => KekError::unmapped(text),
    }
}

fn foreign(path: &str, status: u16) -> KekError {
    let (cause, hint) = match status {
        429 => (KekCause::Throttled, "check what limits the rate"),
        300..=399 => (KekCause::Unavailable, "redirects are not followed; list the active server in addresses"),
        _ => (KekCause::Unavailable, "check addresses, and any proxies in between"),
    };
    KekError::new(cause, format!("{path}: answered {status}, and not in the form of Vault or OpenBao; {hint}"))
}

/// What the servers say of a token that they do not know, where they tell it from a policy.
pub(super) fn is_about_the_token(said: &str) -> bool {
    ["invalid token", "bad token"].iter().any(|words| said.contains(words))
}

/// Words with which a login refuses who asks, by method: AppRole, name and password, JWT, Kubernetes, certificate, and any of them.
const REFUSALS: [&str; 18] = [
    "invalid role or secret ID",
    "invalid secret id",
    "invalid secret_id",
    "invalid role id",
    "invalid role_id",
    "invalid username or password",
    "error validating token",
    "error validating claims",
    "error verifying token signature",
    "could not be found",
    "invalid role name",
    "name not authorized",
    "namespace not authorized",
    "no client certificate supplied",
    "no chain matching all constraints",
    "failed to match all constraints",
    "certificate has expired",
    "permission denied",
];

/// A login that failed since the server could not ask somebody else is not a refusal, whatever else it says.
const LOGIN_TROUBLE: [&str; 6] = [
    "fetching keys",
    "error checking oidc discovery",
    "connection refused",
    "no such host",
    "timeout",
    "context deadline",
];

fn cause(action: Action, status: u16, said: &str) -> Option<KekCause> {
    let says = |parts: &[&str]| parts.iter().any(|part| said.contains(part));
    Some(match (action, status) {
        (_, 429) => KekCause::Throttled,
        (_, 404) if says(&["no handler for route", "unsupported path"]) => KekCause::Misconfigured,
        (Action::Login, _) if says(&LOGIN_TROUBLE) => KekCause::Unavailable,
        // Vault 1.14 answers 500 where OpenBao answers 400.
        (Action::Login, 400 | 401 | 403 | 500) if says(&REFUSALS) => KekCause::Unauthenticated,
        (Action::Token, 403) => KekCause::Unauthenticated,
        (Action::Engine, 403) if says(&["permission denied"]) || is_about_the_token(said) => KekCause::Denied,
        // Of a key that is not there the servers say nothing at all.
        (Action::Engine, 404) if said.is_empty() => KekCause::Denied,
        (Action::Engine, 400)
            if says(&["version is too new", "higher than the latest key version", "no such key version"]) =>
        {
            KekCause::UnknownVersion
        }
        (Action::Engine, 400) if says(&["encryption key not found", "signature version is disallowed by policy"]) => {
            KekCause::Denied
        }
        (Action::Engine, 400)
            if says(&["message authentication failed", "invalid ciphertext", "illegal base64", "no prefix"]) =>
        {
            KekCause::Rejected
        }
        // 412: the replica has not yet reached the state in which the token was made. 472, 473: a standby of a replica.
        (_, 412 | 472 | 473 | 500..=599) => KekCause::Unavailable,
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

    fn answered(action: Action, status: u16, said: &str) -> KekError {
        kek_error(&request(action), status, Some(&[said.into()]), None)
    }

    fn request(action: Action) -> Request {
        Request { action, method: Method::POST, path: "path".into(), body: None, idempotent: true }
    }

    /// Row by row: what Vault 1.14 and OpenBao answer, and what it means.
    #[test]
    fn each_answer_of_the_servers_says_what_the_operator_must_do() {
        use Action::{Engine, Login, Token};
        use KekCause::{Denied, Misconfigured, Rejected, Throttled, Unauthenticated, Unavailable, UnknownVersion};
        for (action, status, said, cause) in [
            (Engine, 400, "cipher: message authentication failed", Rejected),
            (Engine, 400, "invalid ciphertext: no prefix", Rejected),
            (Engine, 400, "invalid ciphertext: could not decode base64", Rejected),
            (Engine, 400, "invalid ciphertext: unable to decrypt, length is less than expected", Rejected),
            (Engine, 400, "invalid ciphertext: version is too new", UnknownVersion),
            (Engine, 400, "requested version for encryption is higher than the latest key version", UnknownVersion),
            (Engine, 403, "1 error occurred:\n\t* permission denied\n\n", Denied),
            (Engine, 400, "encryption key not found", Denied),
            (Engine, 400, "ciphertext or signature version is disallowed by policy (too old)", Denied),
            (Engine, 404, "", Denied),
            (Engine, 403, "Forbidden", Unavailable),
            (Engine, 404, "404 page not found", Unavailable),
            (Engine, 400, "request disallowed by policy", Unavailable),
            (Engine, 404, "no handler for route \"nope/keys/nope\". route entry not found.", Misconfigured),
            (Engine, 400, "something new", Unavailable),
            (Engine, 401, "", Unavailable),
            (Engine, 412, "required index state not present", Unavailable),
            (Engine, 429, "", Throttled),
            (Engine, 472, "", Unavailable),
            (Engine, 473, "", Unavailable),
            (Engine, 500, "internal error", Unavailable),
            (Engine, 503, "Vault is sealed", Unavailable),
            (Token, 403, "permission denied", Unauthenticated),
            (Login, 500, "invalid secret id", Unauthenticated),
            (Login, 400, "invalid role or secret ID", Unauthenticated),
            (Login, 400, "error validating token: invalid audience (aud) claim", Unauthenticated),
            (Login, 400, "error validating token: error fetching keys: connection refused", Unavailable),
            (Login, 400, "role \"x\" could not be found", Unauthenticated),
            (Login, 400, "invalid certificate or no client certificate supplied", Unauthenticated),
            (Login, 403, "permission denied", Unauthenticated),
            (Login, 404, "no handler for route \"auth/nope/login\"", Misconfigured),
            (Login, 400, "something new", Unavailable),
            (Login, 500, "internal error", Unavailable),
        ] {
            let error = answered(action, status, said);
            assert_eq!(error.cause(), cause, "{action:?} {status} {said}: {error}");
        }
    }

    #[test]
    fn an_answer_that_is_not_the_servers_is_never_a_denial() {
        for action in [Action::Engine, Action::Login, Action::Token] {
            for status in [301, 400, 401, 403, 404, 405, 418, 500, 502, 503] {
                assert_eq!(kek_error(&request(action), status, None, None).cause(), KekCause::Unavailable, "{status}");
            }
            assert_eq!(kek_error(&request(action), 429, None, None).cause(), KekCause::Throttled);
        }
    }

    #[test]
    fn a_denial_names_the_path_and_the_capability_that_is_missing() {
        let update = request(Action::Engine);
        let read = Request { method: Method::GET, ..update.clone() };
        for (request, capability) in [(read, "read"), (update, "update")] {
            let error = kek_error(&request, 403, Some(&["permission denied".into()]), None);
            let text = error.to_string();
            assert!(text.contains("path") && text.contains(&format!("lacks the capability {capability}")), "{text}");
            assert!(error.is_by_policy(), "a newer token may have another policy");
        }
    }

    #[test]
    fn too_many_requests_are_throttled_and_keep_the_wish_when_to_come_back() {
        let error = kek_error(&request(Action::Engine), 429, Some(&[]), Some(Duration::from_secs(7)));
        assert_eq!((error.cause(), error.retry_after()), (KekCause::Throttled, Some(Duration::from_secs(7))));
    }

    #[test]
    fn an_answer_that_nobody_mapped_is_transient_and_says_so() {
        let error = answered(Action::Engine, 400, "something new");
        assert!(error.to_string().contains("unmapped"), "{error}");
    }
}
