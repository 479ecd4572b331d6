//! Wire ↔ domain, and the one mapping from errors to gRPC status codes. No logic.

use std::collections::HashMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tonic::{Code, Request, Response, Status};
use tracing::{debug, warn};

use self::v2::key_management_service_server::{KeyManagementService, KeyManagementServiceServer};
use super::service::{Service, ServiceError};
use crate::crypto::secret::Seed;
use crate::envelope::ANNOTATION;
use crate::kek::KekCause;
use crate::kek::guard::DEADLINE;
use crate::telemetry::{Metrics, Outcome, Rpc};

/// The generated KMS v2 API.
#[allow(missing_docs, clippy::pedantic, reason = "generated from proto/kms_v2.proto, which documents it")]
pub mod v2 {
    tonic::include_proto!("v2");
}

/// The API's version, as Status reports it.
const API_VERSION: &str = "v2";
const HEALTHY: &str = "ok";

/// The largest message taken from a client: far above what an API server sends, far below what hurts.
const MAX_MESSAGE_BYTES: usize = 64 * 1024;

/// Decrypts worked on at once, over all connections; more wait for as long as a KEK may take. Status and Encrypt ask
/// nobody, and never wait for Decrypts.
const CONCURRENCY: usize = 256;

/// The three RPCs over a [`Service`].
#[derive(Debug)]
pub struct Grpc {
    service: Arc<Service>,
    metrics: Arc<Metrics>,
    permits: Semaphore,
}

/// The service, ready to be added to a tonic server.
pub fn server(service: Arc<Service>, metrics: Arc<Metrics>) -> KeyManagementServiceServer<Grpc> {
    let grpc = Grpc { service, metrics, permits: Semaphore::new(CONCURRENCY) };
    KeyManagementServiceServer::new(grpc).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

#[tonic::async_trait]
impl KeyManagementService for Grpc {
    async fn status(&self, _: Request<v2::StatusRequest>) -> Result<Response<v2::StatusResponse>, Status> {
        let answer = async {
            let generation = self.service.status()?;
            let key_id = generation.key_id().to_string();
            Ok(v2::StatusResponse { version: API_VERSION.into(), healthz: HEALTHY.into(), key_id })
        };
        self.observe(Rpc::Status, "", answer).await
    }

    async fn encrypt(&self, request: Request<v2::EncryptRequest>) -> Result<Response<v2::EncryptResponse>, Status> {
        let v2::EncryptRequest { plaintext, uid } = request.into_inner();
        let seed = Seed::new(plaintext);
        let answer = async {
            let encrypted = self.service.encrypt(&seed)?;
            let generation = &encrypted.generation;
            Ok(v2::EncryptResponse {
                ciphertext: encrypted.ciphertext,
                key_id: generation.key_id().to_string(),
                annotations: HashMap::from([(ANNOTATION.into(), generation.annotation().to_vec())]),
            })
        };
        self.observe(Rpc::Encrypt, &uid, answer).await
    }

    async fn decrypt(&self, request: Request<v2::DecryptRequest>) -> Result<Response<v2::DecryptResponse>, Status> {
        let v2::DecryptRequest { ciphertext, uid, key_id, annotations } = request.into_inner();
        let annotation = annotations.get(ANNOTATION).map(Vec::as_slice);
        let answer = async {
            let seed = self.service.decrypt(&ciphertext, &key_id, annotation).await?;
            Ok(v2::DecryptResponse { plaintext: seed.into_answer() })
        };
        self.observe(Rpc::Decrypt, &uid, answer).await
    }
}

impl Grpc {
    /// Around every RPC: bounds concurrency, contains panics, counts, logs failures.
    async fn observe<T>(
        &self,
        rpc: Rpc,
        uid: &str,
        answer: impl Future<Output = Result<T, ServiceError>>,
    ) -> Result<Response<T>, Status> {
        let started = Instant::now();
        let _permit = match rpc {
            Rpc::Status | Rpc::Encrypt => None,
            Rpc::Decrypt => {
                let Ok(permit) = tokio::time::timeout(DEADLINE, self.permits.acquire()).await else {
                    self.metrics.rpc(rpc, Outcome(Some("shed")), started.elapsed());
                    return Err(Status::resource_exhausted("too many requests at once; ask again"));
                };
                Some(permit)
            }
        };
        let (outcome, result) = match AssertUnwindSafe(answer).catch_unwind().await {
            Ok(Ok(answer)) => (None, Ok(Response::new(answer))),
            Ok(Err(error)) => {
                warn!(?rpc, uid, %error, "refused");
                (Some(error.outcome()), Err(to_status(&error, uid)))
            }
            Err(_panic) => (Some("panic"), Err(Status::internal("the plugin failed on this request; see its log"))),
        };
        let took = started.elapsed();
        self.metrics.rpc(rpc, Outcome(outcome), took);
        debug!(?rpc, uid, ?took, outcome = outcome.unwrap_or("ok"), "answered");
        result
    }
}

/// The code says what the API server or its operator can do; the text has the cause and the request's uid.
fn to_status(error: &ServiceError, uid: &str) -> Status {
    let code = match error {
        ServiceError::NotServing(_) | ServiceError::Slow(_) => Code::Unavailable,
        ServiceError::Envelope(_) => Code::InvalidArgument,
        ServiceError::Unwrap { source, .. } => match source.cause() {
            KekCause::Unavailable | KekCause::Throttled => Code::Unavailable,
            KekCause::Unauthenticated => Code::Unauthenticated,
            KekCause::Denied => Code::PermissionDenied,
            KekCause::UnknownVersion | KekCause::Misconfigured => Code::FailedPrecondition,
            KekCause::Rejected => Code::InvalidArgument,
        },
    };
    match uid {
        "" => Status::new(code, error.to_string()),
        uid => Status::new(code, format!("{error} (request {})", uid.chars().take(64).collect::<String>())),
    }
}
