//! The Azure SDK's way to the network: our own client, with its limits, in place of the SDK's.

use std::collections::HashMap;
use std::sync::Arc;

use crate::key_stores::shared::http::{self, Client};
use async_trait::async_trait;
use azure_core::error::ErrorKind;
use azure_core::http::headers::{HeaderName, HeaderValue, Headers};
use azure_core::http::request::Body;
use azure_core::http::{AsyncRawResponse, ClientOptions, HttpClient, Request, RetryOptions, Transport};
use azure_core::{Bytes, Error, Result};

/// Options of an SDK client that goes through `client` and makes no retries: the guard makes them.
pub(super) fn options(client: &Client) -> ClientOptions {
    ClientOptions {
        transport: Some(Transport::new(Arc::new(Limited(client.clone())))),
        retry: RetryOptions::none(),
        ..ClientOptions::default()
    }
}

#[derive(Debug)]
struct Limited(Client);

#[async_trait]
impl HttpClient for Limited {
    async fn execute_request(&self, request: &Request) -> Result<AsyncRawResponse> {
        let method = reqwest::Method::from_bytes(request.method().as_ref().as_bytes())
            .map_err(|error| Error::new(ErrorKind::Other, error))?;
        let mut built = self.0.request(method, request.url().clone());
        for (name, value) in request.headers().iter() {
            built = built.header(name.as_str(), value.as_str());
        }
        // The SDK streams uploads of blobs, and nothing that is sent here.
        let Body::Bytes(body) = request.body() else {
            return Err(Error::with_message(ErrorKind::Other, "a body that is a stream is not supported"));
        };
        let built = built.body(body.clone()).build().map_err(|error| Error::new(ErrorKind::Other, error))?;
        let mut answer = http::send(&self.0, built).await.map_err(|error| Error::new(ErrorKind::Io, error))?;
        let body = Bytes::from(std::mem::take(&mut *answer.body));
        Ok(AsyncRawResponse::from_bytes(answer.status.into(), headers(&answer.headers), body))
    }
}

fn headers(map: &reqwest::header::HeaderMap) -> Headers {
    let text = |(name, value): (&reqwest::header::HeaderName, &reqwest::header::HeaderValue)| {
        let value = value.to_str().ok()?.to_owned();
        Some((HeaderName::from(name.as_str().to_owned()), HeaderValue::from(value)))
    };
    Headers::from(map.iter().filter_map(text).collect::<HashMap<_, _>>())
}
