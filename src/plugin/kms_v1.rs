//! KMS v1 at the plugin's socket: refused, and said once what to change.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::server::NamedService;
use tower::Service;
use tracing::warn;

const ADVICE: &str = "this plugin speaks KMS v2; set apiVersion: v2 for its provider in the EncryptionConfiguration";

/// What an API server asks whose EncryptionConfiguration has a provider without `apiVersion: v2`.
#[derive(Clone, Debug, Default)]
pub(super) struct KmsV1 {
    is_told: Arc<AtomicBool>,
}

impl NamedService for KmsV1 {
    const NAME: &'static str = "v1beta1.KeyManagementService";
}

impl<B> Service<Request<B>> for KmsV1 {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Self::Future {
        // Once: an API server repeats the call for as long as it runs.
        if !self.is_told.swap(true, Ordering::Relaxed) {
            warn!("an API server asks by KMS v1: {ADVICE}");
        }
        ready(Ok(Status::unimplemented(ADVICE).into_http()))
    }
}
