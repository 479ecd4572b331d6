//! What is asked of a server, before anybody knows which.

use prost::bytes::Bytes;
use reqwest::Method;

/// One request. The path is without `/v1/`.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub asked: Asked,
    pub method: Method,
    pub path: String,
    /// JSON, cleared when the last copy is dropped.
    pub body: Option<Bytes>,
    /// Whether another server may be asked when it is not known if the first one has done it.
    pub repeatable: bool,
}

/// What was asked; the same status means different things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// Something of the transit engine.
    Engine,
    /// A login.
    Login,
    /// About the token itself.
    Token,
}
