//! The client: one connection as an API server has, so many calls in flight, each answer checked.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use prost::Message;
use tonic::transport::{Channel, Endpoint, Uri};

use super::subject::Subject;
use super::v2::key_management_service_client::KeyManagementServiceClient;
use super::v2::{DecryptRequest, EncryptRequest, EncryptResponse, StatusRequest};

/// Distinct seeds that are encrypted and decrypted in turn.
const SEEDS: usize = 64;
/// What an API server's seed has today.
const SEED_BYTES: usize = 32;

/// One of the three RPCs.
#[derive(Clone, Copy, Debug)]
pub enum Call {
    Status,
    Encrypt,
    Decrypt,
}

/// Sizes of the plugin's messages, which the echo server takes over.
#[derive(Clone, Copy)]
pub struct Shape {
    pub plaintext: usize,
    pub ciphertext: usize,
    pub key_id: usize,
    pub annotation: usize,
}

impl Shape {
    pub const ANNOTATION: &str = "dek.kube-envelope.io";

    pub fn to_arguments(self) -> Vec<String> {
        [self.plaintext, self.ciphertext, self.key_id, self.annotation].map(|size| size.to_string()).to_vec()
    }

    pub fn from_arguments(arguments: &[String]) -> Self {
        let size = |index: usize| arguments[index].parse().unwrap();
        Self { plaintext: size(0), ciphertext: size(1), key_id: size(2), annotation: size(3) }
    }
}

/// What one object costs in etcd.
pub struct Stored {
    pub ciphertext: usize,
    pub key_id: usize,
    pub annotations: usize,
    pub overhead: usize,
}

/// What kube-apiserver stores behind the prefix.
#[derive(Clone, PartialEq, Message)]
struct EncryptedObject {
    #[prost(bytes = "vec", tag = "1")]
    encrypted_data: Vec<u8>,
    #[prost(string, tag = "2")]
    key_id: String,
    #[prost(bytes = "vec", tag = "3")]
    encrypted_dek_source: Vec<u8>,
    #[prost(btree_map = "string, bytes", tag = "4")]
    annotations: BTreeMap<String, Vec<u8>>,
    #[prost(int32, tag = "5")]
    encrypted_dek_source_type: i32,
}

/// A connected client with material for its calls.
#[derive(Clone)]
pub struct Load {
    client: KeyManagementServiceClient<Channel>,
    seeds: Arc<Vec<(Vec<u8>, EncryptResponse)>>,
}

impl Load {
    /// Connects and has the seeds encrypted.
    pub async fn new(subject: &Subject) -> Self {
        let mut client = connect(subject.socket.clone()).await.unwrap();
        let mut seeds = Vec::new();
        for _ in 0..SEEDS {
            let mut plaintext = vec![0; SEED_BYTES];
            rand::fill(&mut plaintext[..]);
            let request = EncryptRequest { plaintext: plaintext.clone(), uid: uid() };
            seeds.push((plaintext, client.encrypt(request).await.unwrap().into_inner()));
        }
        Self { client, seeds: Arc::new(seeds) }
    }

    /// How many calls are answered in this time.
    pub async fn run_for(&self, call: Call, in_flight: usize, time: Duration) -> usize {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let tasks = self.spawn(call, in_flight, move || stopped.load(Ordering::Relaxed));
        tokio::time::sleep(time).await;
        stop.store(true, Ordering::Relaxed);
        futures::future::join_all(tasks).await.into_iter().map(Result::unwrap).sum()
    }

    /// So many calls.
    pub async fn run_times(&self, call: Call, in_flight: usize, times: usize) {
        let left = Arc::new(AtomicUsize::new(times));
        let taken =
            move || left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err();
        let tasks = self.spawn(call, in_flight, taken);
        let done: usize = futures::future::join_all(tasks).await.into_iter().map(Result::unwrap).sum();
        assert_eq!(done, times);
    }

    fn spawn(
        &self,
        call: Call,
        in_flight: usize,
        enough: impl Fn() -> bool + Clone + Send + 'static,
    ) -> Vec<tokio::task::JoinHandle<usize>> {
        let task = |first: usize| {
            let (mut load, enough) = (self.clone(), enough.clone());
            tokio::spawn(async move {
                let mut done = 0;
                while !enough() {
                    load.one(call, first + done).await;
                    done += 1;
                }
                done
            })
        };
        (0..in_flight).map(task).collect()
    }

    async fn one(&mut self, call: Call, number: usize) {
        let (seed, encrypted) = &self.seeds[number % SEEDS];
        match call {
            Call::Status => {
                let answer = self.client.status(StatusRequest {}).await.unwrap().into_inner();
                assert_eq!(answer.key_id, encrypted.key_id);
            }
            Call::Encrypt => {
                let request = EncryptRequest { plaintext: seed.clone(), uid: uid() };
                let answer = self.client.encrypt(request).await.unwrap().into_inner();
                assert_eq!(answer.ciphertext.len(), encrypted.ciphertext.len());
            }
            Call::Decrypt => {
                let EncryptResponse { ciphertext, key_id, annotations } = encrypted.clone();
                let request = DecryptRequest { ciphertext, uid: uid(), key_id, annotations };
                assert_eq!(self.client.decrypt(request).await.unwrap().into_inner().plaintext, *seed);
            }
        }
    }

    /// The sizes that the answers have.
    pub fn shape(&self) -> Shape {
        let (plaintext, encrypted) = &self.seeds[0];
        Shape {
            plaintext: plaintext.len(),
            ciphertext: encrypted.ciphertext.len(),
            key_id: encrypted.key_id.len(),
            annotation: annotation_bytes(&encrypted.annotations) - Shape::ANNOTATION.len(),
        }
    }

    /// What an API server stores with each object, beside the object.
    pub fn stored(&self) -> Stored {
        /// Random bytes, nonce and tag of the API server's own encryption under the seed.
        const DATA_OVERHEAD: usize = 32 + 12 + 16;
        const DATA: usize = 1_000;
        let (_, encrypted) = self.seeds[0].clone();
        let (ciphertext, key_id) = (encrypted.ciphertext.len(), encrypted.key_id.len());
        let annotations = annotation_bytes(&encrypted.annotations);
        let object = EncryptedObject {
            encrypted_data: vec![0; DATA + DATA_OVERHEAD],
            key_id: encrypted.key_id,
            encrypted_dek_source: encrypted.ciphertext,
            annotations: encrypted.annotations.into_iter().collect(),
            encrypted_dek_source_type: 1,
        };
        let overhead = "k8s:enc:kms:v2:kube-envelope:".len() + object.encoded_len() - DATA;
        Stored { ciphertext, key_id, annotations, overhead }
    }
}

/// Connects as kube-apiserver does, with the authority `localhost`.
pub async fn connect(socket: std::path::PathBuf) -> Option<KeyManagementServiceClient<Channel>> {
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { tokio::net::UnixStream::connect(socket).await.map(hyper_util::rt::TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await.ok()?;
    Some(KeyManagementServiceClient::new(channel))
}

fn annotation_bytes(annotations: &HashMap<String, Vec<u8>>) -> usize {
    annotations.iter().map(|(key, value)| key.len() + value.len()).sum()
}

/// An API server sends a UUID.
fn uid() -> String {
    "5f2b9c1e-0d6a-4f0e-9c55-1f6b0a4c7d21".into()
}
