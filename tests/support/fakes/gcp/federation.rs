//! The token endpoint for other issuers' tokens, and the service that lends a service account's.

use std::time::Instant;

use axum::http::HeaderMap;
use serde_json::json;

use super::super::form::url_form;
use super::{ACCOUNT, GcpFake, Outcome, SCOPES, Service, refusal};

/// The pool that trusts the other issuer.
const AUDIENCE: &str = "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/pool/providers/nodes";
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";

impl GcpFake {
    /// An `external_account` file for the token in this file, as `gcloud iam workload-identity-pools create-cred-config` writes it.
    pub fn federated_credentials(&self, subject_file: &str, impersonates: bool) -> String {
        let host = format!("http://{}", self.address);
        let url = format!("{host}/v1/projects/-/serviceAccounts/{ACCOUNT}:generateAccessToken");
        json!({"type": "external_account", "audience": AUDIENCE, "subject_token_type": JWT,
            "token_url": format!("{host}/v1/token"), "universe_domain": "googleapis.com",
            "credential_source": {"file": subject_file, "format": {"type": "json", "subject_token_field_name": "jwt"}},
            "service_account_impersonation_url": impersonates.then_some(url)})
        .to_string()
    }
}

impl Service {
    pub(super) fn exchange_token(&mut self, body: &[u8]) -> Outcome {
        let form = url_form(body);
        let is = |field: &str, value: &str| form.get(field).map(String::as_str) == Some(value);
        if !is("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange") {
            return Err((400, json!({"error": "unsupported_grant_type"})));
        }
        if !is("audience", AUDIENCE)
            || !is("subject_token_type", JWT)
            || !is("requested_token_type", "urn:ietf:params:oauth:token-type:access_token")
        {
            return Err((400, json!({"error": "invalid_request", "error_description": "Invalid value for a field."})));
        }
        if !is("subject_token", &self.subject_token) {
            let why = "The given credential is rejected by the attribute condition.";
            return Err((400, json!({"error": "invalid_grant", "error_description": why})));
        }
        let answer = self.new_token();
        // By itself it may only ask for the token of a service account.
        if is("scope", SCOPES[1]) {
            let token = answer["access_token"].as_str().expect("text");
            self.tokens.remove(token);
            self.federated.insert(token.to_owned());
        }
        Ok(answer)
    }

    pub(super) fn lend_token(&mut self, headers: &HeaderMap, body: &[u8]) -> Outcome {
        let bearer = headers.get("authorization").and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        if !bearer.is_some_and(|token| self.federated.contains(token)) || !self.permissions.contains("getAccessToken") {
            let message = "Permission 'iam.serviceAccounts.getAccessToken' denied on resource (or it may not exist).";
            return Err(refusal(403, "PERMISSION_DENIED", message, &json!([])));
        }
        let asked: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
        if !asked["scope"].as_array().is_some_and(|scopes| scopes.iter().any(|scope| scope == SCOPES[0])) {
            return Err(refusal(400, "INVALID_ARGUMENT", "scope is required", &json!([])));
        }
        let answer = self.new_token();
        let token = answer["access_token"].as_str().expect("text");
        let left = self.tokens[token].saturating_duration_since(Instant::now()).as_secs();
        let ends = jiff::Timestamp::now().as_second() + i64::try_from(left).expect("a life");
        let ends = jiff::Timestamp::from_second(ends).expect("a time");
        Ok(json!({"accessToken": token, "expireTime": ends.to_string()}))
    }
}
