//! What is asked of a server, before anybody knows which.

use prost::bytes::Bytes;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// One request. The path is without `/v1/`.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub action: Action,
    pub method: Method,
    pub path: String,
    /// JSON, cleared when the last copy is dropped.
    pub body: Option<Bytes>,
    /// Whether another server may be asked when it is not known if the first one has done it.
    pub idempotent: bool,
}

/// What was asked; the same status means different things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Something of the transit engine.
    Engine,
    /// A login, which has no token yet.
    Login,
    /// About the token itself.
    Token,
}

/// JSON in memory that is cleared once the last copy is dropped.
pub(super) fn json(body: &impl Serialize) -> Bytes {
    // Room for all that is sent here at once: a growing vector leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(16 << 10));
    serde_json::to_writer(&mut *bytes, body).expect("these bodies have only string keys");
    Bytes::from_owner(bytes)
}

/// The servers' envelope around an answer.
#[derive(Deserialize)]
pub(super) struct Data<T> {
    pub data: T,
}
