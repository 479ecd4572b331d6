//! Wire ↔ domain, and the one mapping from errors to gRPC status codes. No logic.

use std::collections::HashMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Code, Request, Response, Status};
use tracing::{debug, warn};

use super::audit::{Event, Peer, Use};
use super::service::{Service, ServiceError};
use crate::crypto::secret::{DekId, Seed};
use crate::envelope::ANNOTATION;
use crate::kek::KekCause;
use crate::kek::guard::DEADLINE;
use crate::kek::takeover::{Stored, TakenOver, TakeoverError};
use crate::kms::v2;
use crate::kms::v2::key_management_service_server::{KeyManagementService, KeyManagementServiceServer};
use crate::telemetry::{LogLimit, Metrics, Outcome, Rpc};

/// The API's version, as Status reports it.
const API_VERSION: &str = "v2";
const HEALTHY: &str = "ok";

/// The largest message taken from a client: far above what an API server sends, far below what hurts.
const MAX_MESSAGE_BYTES: usize = 64 * 1024;

/// Decrypts worked on at once, over all connections; more wait for as long as a KEK may take. Status and Encrypt ask
/// nobody, and never wait for Decrypts.
const CONCURRENCY: usize = 256;

const MAX_UID_CHARS: usize = 64;

/// The longest text of a refusal: it travels in a header, and what many KEKs say adds up.
const MAX_TEXT_CHARS: usize = 2000;

/// Refusals in full in each minute; the others are counted, here and in the metrics.
const REFUSALS_LOGGED: u32 = 20;

/// The three RPCs over a [`Service`].
#[derive(Debug)]
pub struct Grpc {
    service: Arc<Service>,
    metrics: Arc<Metrics>,
    permits: Semaphore,
    refusals: LogLimit,
}

/// The service, ready to be added to a tonic server.
pub fn server(service: Arc<Service>, metrics: Arc<Metrics>) -> KeyManagementServiceServer<Grpc> {
    let grpc =
        Grpc { service, metrics, permits: Semaphore::new(CONCURRENCY), refusals: LogLimit::new(REFUSALS_LOGGED) };
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
        let peer = peer_of(&request);
        let v2::EncryptRequest { plaintext, uid } = request.into_inner();
        // At once: from here on it is cleared when it is dropped, whatever happens next.
        let seed = Seed::new(plaintext);
        let answer = async {
            let encrypted = self.service.encrypt(&seed)?;
            let generation = &encrypted.generation;
            let key_id = generation.key_id().to_string();
            // Recorded before the answer is given: a key whose use cannot be recorded, though it has to be, is not
            // used.
            let used = || Event::Encrypt(key_use(&uid, &key_id, generation.dek_id(), peer));
            self.service.audit().record(used).await?;
            Ok(v2::EncryptResponse {
                ciphertext: encrypted.ciphertext,
                key_id: key_id.clone(),
                annotations: HashMap::from([(ANNOTATION.into(), generation.annotation().to_vec())]),
            })
        };
        self.observe(Rpc::Encrypt, &uid, answer).await
    }

    async fn decrypt(&self, request: Request<v2::DecryptRequest>) -> Result<Response<v2::DecryptResponse>, Status> {
        let peer = peer_of(&request);
        let v2::DecryptRequest { ciphertext, uid, key_id, annotations } = request.into_inner();
        let stored = Stored { ciphertext, key_id, annotations };
        let Stored { ciphertext, key_id, annotations } = &stored;
        let annotation = annotations.get(ANNOTATION).map(Vec::as_slice);
        let answer = async {
            if let Some(TakenOver { seed, by }) = self.service.take_over(&stored, annotation.is_some()).await? {
                let (uid, key_id) = (shortened(&uid), key_id.clone());
                let used = || Event::TakenOver { uid, key_id, entry: by, peer };
                self.service.audit().record(used).await?;
                return Ok(v2::DecryptResponse { plaintext: seed.into_answer() });
            }
            let decrypted = self.service.decrypt(ciphertext, key_id, annotation).await?;
            if decrypted.was_unwrapped {
                let used = || Event::Decrypt(key_use(&uid, key_id, decrypted.dek_id, peer));
                self.service.audit().record(used).await?;
            }
            Ok(v2::DecryptResponse { plaintext: decrypted.seed.into_answer() })
        };
        self.observe(Rpc::Decrypt, &uid, answer).await
    }
}

/// Who asks, as the kernel tells; nothing where the connection is not a unix socket.
fn peer_of<T>(request: &Request<T>) -> Option<Peer> {
    let peer = request.extensions().get::<UdsConnectInfo>()?.peer_cred?;
    Some(Peer { uid: peer.uid(), pid: peer.pid() })
}

fn key_use(uid: &str, key_id: &str, dek_id: DekId, peer: Option<Peer>) -> Use {
    Use { uid: shortened(uid), key_id: key_id.to_owned(), dek_id: dek_id.to_string(), peer }
}

/// An API server's uid has 36 characters; a longer one is not an API server's.
fn shortened(uid: &str) -> String {
    uid.chars().take(MAX_UID_CHARS).collect()
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
            // Neither asks a KEK. A flood of Decrypts must not keep the API server from writing.
            Rpc::Status | Rpc::Encrypt => None,
            Rpc::Decrypt => {
                let Ok(permit) = tokio::time::timeout(DEADLINE, self.permits.acquire()).await else {
                    self.metrics.rpc(rpc, Outcome(Some("shed")), started.elapsed());
                    return Err(Status::resource_exhausted("too many requests at once; ask again"));
                };
                Some(permit)
            }
        };
        // A panic is of one request; the connection has others.
        let (outcome, result) = match AssertUnwindSafe(answer).catch_unwind().await {
            Ok(Ok(answer)) => (None, Ok(Response::new(answer))),
            Ok(Err(error)) => {
                if let Some(left_out) = self.refusals.next() {
                    warn!(%rpc, uid, %error, left_out, "refused");
                }
                let (code, class) = row(&error);
                (Some(class), Err(to_status(code, &error, uid)))
            }
            Err(_panic) => (Some("panic"), Err(Status::internal("the plugin failed on this request; see its log"))),
        };
        let took = started.elapsed();
        self.metrics.rpc(rpc, Outcome(outcome), took);
        debug!(%rpc, uid, milliseconds = took.as_secs_f64() * 1000.0, outcome = outcome.unwrap_or("ok"), "answered");
        result
    }
}

/// The table of refusals: what the API server or its operator can do, as a gRPC code, and what a refusal counts as in
/// metrics. The text is the error's own: no secret gets into one.
fn row(error: &ServiceError) -> (Code, &'static str) {
    match error {
        ServiceError::NotServing(_) => (Code::Unavailable, "not serving"),
        ServiceError::Unrecorded(_) => (Code::Unavailable, "unrecorded"),
        ServiceError::Slow(_) => (Code::Unavailable, KekCause::Unavailable.as_str()),
        ServiceError::Ciphertext(_)
        | ServiceError::Seal(_)
        | ServiceError::Takeover(TakeoverError::NotRecognized(_)) => (Code::InvalidArgument, "refused"),
        ServiceError::Unwrap { source, .. } => of_cause(source.cause()),
        ServiceError::Takeover(TakeoverError::Failed { error, .. }) => of_cause(error.cause()),
    }
}

fn of_cause(cause: KekCause) -> (Code, &'static str) {
    let code = match cause {
        KekCause::Unavailable | KekCause::Throttled => Code::Unavailable,
        KekCause::Unauthenticated => Code::Unauthenticated,
        KekCause::Denied => Code::PermissionDenied,
        KekCause::UnknownVersion | KekCause::Misconfigured => Code::FailedPrecondition,
        KekCause::Rejected => Code::InvalidArgument,
    };
    (code, cause.as_str())
}

fn to_status(code: Code, error: &ServiceError, uid: &str) -> Status {
    let text: String = error.to_string().chars().take(MAX_TEXT_CHARS).collect();
    match uid {
        "" => Status::new(code, text),
        uid => Status::new(code, format!("{text} (request {})", shortened(uid))),
    }
}
