//! Requests with a token to the transit engine.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::sync::Arc;

use prost::bytes::Bytes;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::client::{Answer, Client, Failure};
use super::credentials::{Login, Token, Tokens, token_request};
use super::request::{Action, Data, Request, json};
use crate::kek::clock::ServerClock;
use crate::kek::{KekCause, KekError};
use crate::key_stores::shared::renewing::Renewing;

/// A client and the tokens it shows.
#[derive(Clone, Debug)]
pub(super) struct Session {
    client: Arc<Client>,
    tokens: Renewing<Tokens>,
}

impl Session {
    pub(super) fn new(client: Client, login: Login) -> Self {
        let client = Arc::new(client);
        Self { tokens: Renewing::new(Tokens { client: client.clone(), login }), client }
    }

    /// When the token in use ends.
    pub(super) fn expires(&self) -> Option<jiff::Timestamp> {
        self.tokens.expire()
    }

    /// The clock of the servers.
    pub(super) fn clock(&self) -> &ServerClock {
        self.client.clock()
    }

    /// Reads `path` and gives the answer's `data`.
    pub(super) async fn get<T: for<'de> Deserialize<'de>>(&self, path: &str) -> Result<T, KekError> {
        let request = Request { method: Method::GET, ..engine_request(path, None) };
        self.call(&request).await?.parse().map(|Data { data }| data)
    }

    /// Posts to `path` and gives the answer's `data`.
    pub(super) async fn post<T: for<'de> Deserialize<'de>>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, KekError> {
        self.call(&engine_request(path, Some(json(body)))).await?.parse().map(|Data { data }| data)
    }

    /// Posts to `path` what must not be done twice.
    pub(super) async fn post_once(&self, path: &str) -> Result<(), KekError> {
        let request = Request { idempotent: false, ..engine_request(path, Some(json(&serde_json::json!({})))) };
        self.call(&request).await.map(drop)
    }

    async fn call(&self, request: &Request) -> Result<Answer, KekError> {
        let began = Instant::now();
        self.tokens.with(|token| self.attempt(request, token, began)).await
    }

    async fn attempt(&self, request: &Request, token: Arc<Token>, began: Instant) -> Result<Answer, KekError> {
        match self.client.send(request, Some(&token.text)).await {
            // A token that a login has issued for this call is good: a 403 is then about the policy.
            Err(failure) if failure.forbidden && token.is_issued_since(began) && !failure.is_invalid_token() => {
                Err(failure.error)
            }
            Err(failure) if failure.forbidden => self.judge(failure, &token).await,
            other => Ok(other?),
        }
    }

    /// 403 means a bad token as well as a policy. The token asked about itself tells which.
    async fn judge(&self, failure: Failure, token: &Token) -> Result<Answer, KekError> {
        let refused = |why| Err(KekError::new(KekCause::Unauthenticated, format!("the token is {why}")));
        if failure.is_invalid_token() {
            return refused("expired, revoked or unknown");
        }
        // Vault answers 403 to a bad token and to a missing permission alike. A token that can be looked up is a good
        // one, so it is the permission.
        match self.client.send(&token_request(Method::GET, "lookup-self"), Some(&token.text)).await {
            Ok(_) => Err(failure.error),
            Err(lookup) if lookup.forbidden => refused("expired, revoked or unknown, or may not ask about itself"),
            Err(lookup) => Err(lookup.error),
        }
    }
}

fn engine_request(path: &str, body: Option<Bytes>) -> Request {
    Request { action: Action::Engine, method: Method::POST, path: path.into(), body, idempotent: true }
}
