//! Requests to one API server: one try each. The caller sees status and Retry-After and decides what follows. Refused
//! credentials are read again from their files, and `Api::patient` waits out what passes by itself.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

mod metadata;
mod session;

use std::time::{Duration, Instant};

use http::{Method, Request, header};
use http_body_util::BodyExt;
use kube::client::Body;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

pub(crate) use self::metadata::null_as_empty;
pub use self::metadata::{ListMetadata, Metadata, MetadataList, Partial};
pub use self::session::Renew;
use self::session::Session;
use crate::error_chain::joined;
pub use crate::rotation::error::ApiError;

/// The API server's own limit for a mutating request is 34 s; a little more than that means it is lost.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(40);

/// The longest wait that an answer may ask for: the server, or a balancer in between, may be wrong.
const LONGEST_WISH: Duration = Duration::from_mins(10);

/// Who we are in managedFields, where we change something: in our own objects.
const FIELD_MANAGER: &str = "kube-envelope-rotate-keys";

const ONE_METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
const LIST_METADATA: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";

/// How long a server that is overloaded, being restarted or not reachable for a moment is waited for.
const PATIENCE: Duration = Duration::from_mins(1);
/// The same where it answers 500.
const SHORT_PATIENCE: Duration = Duration::from_secs(5);
/// The wait between two tries while it is waited for.
const TRIES_EVERY: Duration = Duration::from_secs(1);

/// A client of one address: an API server, or a balancer before several.
#[derive(Clone)]
pub struct Api {
    session: Session,
    address: String,
    patience: Duration,
}

/// What came back.
pub struct Answer {
    /// The HTTP status, whether it is success or not.
    pub status: u16,
    /// The server's wish when to come back.
    pub retry_after: Option<Duration>,
    /// The body, read to its end.
    pub body: Vec<u8>,
}

/// What an API server says when it refuses.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Refusal {
    /// The reason in a sentence; may hold names of objects.
    pub message: String,
    /// In a word.
    pub reason: String,
    /// A fresh continue token comes in it when the old one has expired.
    pub metadata: ListMetadata,
}

impl Api {
    /// Wraps a client; `address` is for messages, `renew` makes a client with fresh credentials.
    pub fn new(client: kube::Client, address: String, renew: Option<Renew>) -> Self {
        Self { session: Session::new(client, renew), address, patience: Duration::ZERO }
    }

    /// The same, and it waits for a minute while the server is overloaded, being restarted or not reachable.
    #[must_use]
    pub(in crate::rotation) fn patient(&self) -> Self {
        Self { patience: PATIENCE, ..self.clone() }
    }

    /// Where it leads to.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// GET, any status.
    ///
    /// # Errors
    /// No answer, or one that cannot be read; an error status is an answer.
    pub async fn get(&self, path: &str, accept: &str) -> Result<Answer, ApiError> {
        self.send(Method::GET, path, accept, None).await
    }

    /// GET of a JSON document.
    ///
    /// # Errors
    /// An error status of the API server, or no answer.
    pub(crate) async fn get_json<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        let answer = self.get(path, "application/json").await?;
        self.parse(&self.success(answer)?)
    }

    /// POST of a JSON document, any status.
    ///
    /// # Errors
    /// No answer, or one that cannot be read; an error status is an answer.
    pub(in crate::rotation) async fn post(&self, path: &str, document: &Value) -> Result<Answer, ApiError> {
        self.send(Method::POST, path, "application/json", Some(("application/json", document.to_string()))).await
    }

    /// POST of a JSON document, answered by another.
    ///
    /// # Errors
    /// An error status of the API server, or no answer.
    pub(in crate::rotation) async fn post_json<T: DeserializeOwned>(
        &self,
        path: &str,
        document: &Value,
    ) -> Result<T, ApiError> {
        let answer = self.post(path, document).await?;
        self.parse(&self.success(answer)?)
    }

    /// Makes an object of our own in a namespace of our own, unless they are there.
    ///
    /// # Errors
    /// An error status of the API server, or no answer.
    pub(in crate::rotation) async fn ensure(
        &self,
        kind: &str,
        plural: &str,
        namespace: &str,
        name: &str,
    ) -> Result<(), ApiError> {
        let folder = format!("/api/v1/namespaces/{namespace}/{plural}");
        // The usual case from the second run on, and one for which the right to create namespaces is not needed.
        if self.get_metadata(&format!("{folder}/{name}")).await?.status == 200 {
            return Ok(());
        }
        let home = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
        let object = json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "namespace": namespace}});
        for (path, document) in [("/api/v1/namespaces", home), (folder.as_str(), object)] {
            let answer = self.post(path, &document).await?;
            // It exists: another run, or an earlier one, was here.
            if answer.status != 409 {
                self.success(answer)?;
            }
        }
        Ok(())
    }

    /// DELETE of an object of our own, any status.
    ///
    /// # Errors
    /// No answer, or one that cannot be read; an error status is an answer.
    pub(in crate::rotation) async fn delete(&self, path: &str) -> Result<Answer, ApiError> {
        self.send(Method::DELETE, path, "application/json", None).await
    }

    /// JSON merge patch answered by metadata alone, any status. `{}` makes the server store the object again if,
    /// and only if, it is stored under another key than the server's current one.
    ///
    /// # Errors
    /// No answer, or one that cannot be read; an error status is an answer.
    pub(in crate::rotation) async fn patch(&self, path: &str, document: &str) -> Result<Answer, ApiError> {
        let separator = if path.contains('?') { '&' } else { '?' };
        let path = format!("{path}{separator}fieldManager={FIELD_MANAGER}");
        self.send(Method::PATCH, &path, ONE_METADATA, Some(("application/merge-patch+json", document.into()))).await
    }

    /// The same answered by the whole object: for objects of our own.
    ///
    /// # Errors
    /// No answer, or one that cannot be read; an error status is an answer.
    pub(in crate::rotation) async fn patch_own(&self, path: &str, document: &str) -> Result<Answer, ApiError> {
        let path = format!("{path}?fieldManager={FIELD_MANAGER}");
        let body = ("application/merge-patch+json", document.into());
        self.send(Method::PATCH, &path, "application/json", Some(body)).await
    }

    /// GET of one object's metadata, any status. Reads from etcd, not from a cache.
    ///
    /// # Errors
    /// No answer, or one that cannot be read; an error status is an answer.
    pub(in crate::rotation) async fn get_metadata(&self, path: &str) -> Result<Answer, ApiError> {
        self.get(path, ONE_METADATA).await
    }

    /// One page of a list, metadata alone, any status.
    ///
    /// # Errors
    /// No answer, or one that cannot be read; an error status is an answer.
    pub(in crate::rotation) async fn list(&self, path: &str, limit: u32, token: &str) -> Result<Answer, ApiError> {
        let token = if token.is_empty() { String::new() } else { format!("&continue={}", escaped(token)) };
        self.get(&format!("{path}?limit={limit}{token}"), LIST_METADATA).await
    }

    /// The first ten objects of a list, metadata alone, any status. `parameters` say as of when, and end with `&`.
    ///
    /// # Errors
    /// No answer, or one that cannot be read; an error status is an answer.
    pub(in crate::rotation) async fn list_at(&self, path: &str, parameters: &str) -> Result<Answer, ApiError> {
        self.get(&format!("{path}?{parameters}limit=10"), LIST_METADATA).await
    }

    /// A list of one object's metadata by a path with its own parameters, any status.
    ///
    /// # Errors
    /// No answer, or one that cannot be read; an error status is an answer.
    pub(in crate::rotation) async fn list_one(&self, path: &str) -> Result<Answer, ApiError> {
        self.get(path, LIST_METADATA).await
    }

    /// Takes a body apart.
    ///
    /// # Errors
    /// [`ApiError::Malformed`].
    pub(in crate::rotation) fn parse<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, ApiError> {
        serde_json::from_slice(body).map_err(|source| ApiError::Malformed { address: self.address.clone(), source })
    }

    /// The body of a success; anything else is the error.
    ///
    /// # Errors
    /// [`ApiError::Refused`] for any other status.
    pub(in crate::rotation) fn success(&self, answer: Answer) -> Result<Vec<u8>, ApiError> {
        if (200..300).contains(&answer.status) {
            return Ok(answer.body);
        }
        Err(ApiError::Refused {
            address: self.address.clone(),
            status: answer.status,
            message: answer.refusal().message,
        })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: Option<(&str, String)>,
    ) -> Result<Answer, ApiError> {
        let began = Instant::now();
        loop {
            let (client, generation) = self.session.client().await;
            let result = self.exchange(client, &method, path, accept, body.as_ref()).await;
            match &result {
                // At once: tokens of ServiceAccounts expire, and the next one lies in the file by then.
                Ok(answer) if answer.status == 401 && self.session.renewed(generation).await => {}
                _ if began.elapsed() >= self.patience.min(self.passes_within(&result)) => return result,
                Ok(Answer { retry_after, .. }) => tokio::time::sleep(retry_after.unwrap_or(TRIES_EVERY)).await,
                Err(_) => tokio::time::sleep(TRIES_EVERY).await,
            }
        }
    }

    /// How long it may take until it is otherwise, without anybody doing anything. With 500 a server that is being
    /// started or has no etcd leader answers for a moment, and for ever where an object cannot be read.
    fn passes_within(&self, result: &Result<Answer, ApiError>) -> Duration {
        match result {
            Ok(answer) if matches!(answer.status, 401 | 408 | 429 | 502 | 503 | 504) => PATIENCE,
            Ok(answer) if answer.status == 500 => SHORT_PATIENCE,
            Err(_) if self.session.ever_answered() => PATIENCE,
            _ => Duration::ZERO,
        }
    }

    async fn exchange(
        &self,
        client: kube::Client,
        method: &Method,
        path: &str,
        accept: &str,
        body: Option<&(&str, String)>,
    ) -> Result<Answer, ApiError> {
        let mut request = Request::builder().method(method).uri(path).header(header::ACCEPT, accept);
        let body = match body {
            Some((content_type, body)) => {
                request = request.header(header::CONTENT_TYPE, *content_type);
                Body::from(body.clone().into_bytes())
            }
            None => Body::empty(),
        };
        let unreachable =
            |problem: String| ApiError::Unreachable { address: self.address.clone(), problem: with_hint(problem) };
        let request = request.body(body).map_err(|error| unreachable(error.to_string()))?;
        let exchange = async {
            let answer = client.send(request).await.map_err(|error| unreachable(chain(&error)))?;
            // With whatever status: somebody is there.
            self.session.has_answered();
            let status = answer.status().as_u16();
            let retry_after = answer.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
            let retry_after = retry_after.and_then(wish);
            let body = answer.into_body().collect().await.map_err(|error| unreachable(chain(&error)))?;
            Ok(Answer { status, retry_after, body: body.to_bytes().to_vec() })
        };
        tokio::time::timeout(REQUEST_TIMEOUT, exchange)
            .await
            .unwrap_or_else(|_| Err(unreachable(format!("nothing within {} s", REQUEST_TIMEOUT.as_secs()))))
    }
}

impl Answer {
    /// What the server says when it refuses; its plain text where it is not a Status document.
    pub fn refusal(&self) -> Refusal {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| Refusal {
            message: String::from_utf8_lossy(&self.body).chars().take(300).collect(),
            ..Refusal::default()
        })
    }
}

/// A path segment or query value, percent-encoded.
pub(crate) fn escaped(text: &str) -> String {
    // Unreserved in RFC 3986, and the colon, which a path segment may contain and names such as system:node have.
    const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b':');
    utf8_percent_encode(text, ESCAPED).to_string()
}

/// Adds what helps against a certificate that is not trusted: each API server is asked by itself as well, and the
/// kubeconfig may have the authority of a balancer alone.
fn with_hint(problem: String) -> String {
    if problem.contains("invalid peer certificate") {
        return format!("{problem} (an API server with another authority than the kubeconfig's? --server-ca names it)");
    }
    problem
}

/// An error and what caused it, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    joined(error.to_string(), error.source())
}

/// What `Retry-After` asks for, in its form in seconds.
fn wish(value: &str) -> Option<Duration> {
    value.parse().ok().map(|seconds| Duration::from_secs(seconds).min(LONGEST_WISH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_is_granted_as_far_as_it_makes_sense() {
        assert_eq!(wish("7"), Some(Duration::from_secs(7)));
        assert_eq!(wish(&u64::MAX.to_string()), Some(LONGEST_WISH));
        assert_eq!(wish("-1"), None);
    }

    #[test]
    fn a_name_with_odd_letters_becomes_one_path_segment() {
        assert_eq!(escaped("system:node-a_b.c~"), "system:node-a_b.c~");
        assert_eq!(escaped("a b/ü?"), "a%20b%2F%C3%BC%3F");
    }
}
