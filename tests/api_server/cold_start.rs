//! What a cold API server asks of the plugin, and the plugin of its KEK, when every object has a seed of its own:
//! 1,000 Secrets as a real kube-apiserver reads them, put straight into etcd instead of by 1,000 restarts.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Prk};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::ListParams;
use kube_envelope::key_stores::keyring::Keyring;
use prost::Message;
use serde_json::json;
use tonic::transport::Channel;

use crate::support::etcd::EncryptedObject;
use crate::support::plugin::{encryption_configuration, proto::EncryptRequest};
use crate::support::{ApiServer, ApiServerOptions, Etcd, Plugin, wait_until};

/// Secrets in etcd, each under a seed of its own.
const SEEDS: usize = 1_000;
/// Plugins that encrypted the seeds; each has a DEK of its own.
const NODES: usize = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cold_api_server_costs_one_unwrap_per_dek_however_many_seeds_there_are() {
    let folder = tempfile::tempdir().unwrap();
    let keyring = folder.path().join("keyring.json");
    Keyring::create(&mut rand::rng()).write_new(&keyring).unwrap();
    let settings = format!("cluster: c\nkeks: [{{name: local, keyring: {{file: {}}}}}]", keyring.display());
    let etcd = Etcd::start().await;
    for node in 0..NODES {
        let plugin = Plugin::start(&settings).await;
        plugin.wait_healthy().await;
        write_secrets(&etcd, &plugin, (node..SEEDS).step_by(NODES)).await;
    }

    // A new node: no DEK of another one is known to it.
    let mut plugin = Plugin::start(&settings).await;
    plugin.wait_healthy().await;
    let encryption = encryption_configuration(&["secrets"], &[&plugin.provider(), "{identity: {}}"]);
    let mut server = ApiServer::spawn(&etcd, &ApiServerOptions::encrypted(&encryption));
    let (decrypts, unwraps) = cold_start("new node", &plugin, &mut server).await;
    assert!((SEEDS..SEEDS + 5).contains(&decrypts), "{decrypts} Decrypts");
    assert_eq!(unwraps, NODES);

    // Both start again: the plugin unwraps what it remembers before it is asked.
    server.stop();
    assert!(plugin.stop().success());
    plugin.restart().await;
    wait_until("all DEKs are in memory", Duration::from_secs(10), async || {
        metric(&plugin, "cached_deks", "") == NODES + 1
    })
    .await;
    server.process.restart();
    let (decrypts, unwraps) = cold_start("node after a reboot", &plugin, &mut server).await;
    assert!((SEEDS..SEEDS + 5).contains(&decrypts), "{decrypts} Decrypts");
    assert_eq!(unwraps, 0);
}

/// Waits for the API server, reads every Secret, and tells how many Decrypts and unwraps that took.
async fn cold_start(what: &str, plugin: &Plugin, server: &mut ApiServer) -> (usize, usize) {
    let counts = || {
        let decrypts = metric(plugin, "rpcs_total", "method=\"Decrypt\"");
        (decrypts, metric(plugin, "kek_requests_total", "operation=\"unwrap\""))
    };
    // The API server was started just now, and takes longer than this to ask for the first time.
    let before = counts();
    let started = Instant::now();
    server.wait_ready().await;
    let secrets: Api<Secret> = Api::namespaced(server.client(), "default");
    let items = secrets.list(&ListParams::default()).await.unwrap().items;
    let took = started.elapsed();
    assert_eq!(items.len(), SEEDS);
    for secret in items {
        let name = secret.metadata.name.unwrap();
        assert_eq!(secret.data.unwrap()["k"].0, name.as_bytes(), "{name}");
    }
    let after = counts();
    let (decrypts, unwraps) = (after.0 - before.0, after.1 - before.1);
    println!(
        "{what}: {SEEDS} seeds under {NODES} DEKs: {decrypts} Decrypts, {unwraps} unwraps by the KEK, \
         API server ready and all Secrets read after {:.1} s",
        took.as_secs_f64()
    );
    (decrypts, unwraps)
}

/// Stores Secrets of these numbers as an API server does, each under a new seed that `plugin` encrypted.
async fn write_secrets(etcd: &Etcd, plugin: &Plugin, numbers: impl Iterator<Item = usize>) {
    let mut kms = plugin.client().await.unwrap();
    let mut store = Store::connect(etcd).await;
    for number in numbers {
        let name = format!("s-{number}");
        let key = format!("/registry/secrets/default/{name}");
        let mut seed = vec![0; 32];
        rand::fill(&mut seed[..]);
        let request = EncryptRequest { plaintext: seed.clone(), uid: name.clone() };
        let sealed = kms.encrypt(request).await.unwrap().into_inner();
        let object = EncryptedObject {
            encrypted_data: encrypt(&seed, &key, secret(&name, number).to_string().into_bytes()),
            key_id: sealed.key_id,
            encrypted_dek_source: sealed.ciphertext,
            annotations: sealed.annotations.into_iter().collect(),
            // HKDF_SHA256_XNONCE_AES_GCM_SEED
            encrypted_dek_source_type: 1,
        };
        let value = [b"k8s:enc:kms:v2:kube-envelope:", &object.encode_to_vec()[..]].concat();
        store.put(key.into_bytes(), value).await;
    }
}

fn secret(name: &str, number: usize) -> serde_json::Value {
    use base64::{Engine, prelude::BASE64_STANDARD};
    json!({
        "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
        "metadata": {
            "name": name, "namespace": "default", "creationTimestamp": "2026-01-01T00:00:00Z",
            "uid": format!("00000000-0000-4000-8000-{number:012}"),
        },
        "data": {"k": BASE64_STANDARD.encode(name)},
    })
}

/// As kube-apiserver encrypts an object under a seed: random info ‖ nonce ‖ AES-256-GCM under HKDF-Expand(seed, info),
/// bound to the key in etcd.
fn encrypt(seed: &[u8], key: &str, mut data: Vec<u8>) -> Vec<u8> {
    let mut info = [0; 32];
    let mut nonce = [0; 12];
    rand::fill(&mut info);
    rand::fill(&mut nonce);
    let prk = Prk::new_less_safe(HKDF_SHA256, seed);
    let subkey: UnboundKey = prk.expand(&[&info], &AES_256_GCM).unwrap().into();
    let bound = Aad::from(key.as_bytes());
    LessSafeKey::new(subkey).seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), bound, &mut data).unwrap();
    [&info[..], &nonce, &data].concat()
}

/// The sum of a metric's lines that contain `label`.
fn metric(plugin: &Plugin, name: &str, label: &str) -> usize {
    let address = plugin.health_url().replace("http://", "");
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let name = format!("kube_envelope_{name}");
    let of_it = |line: &&str| line.strip_prefix(&name).is_some_and(|rest| rest.starts_with(['{', ' ']));
    let lines = answer.lines().filter(of_it).filter(|line| line.contains(label));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap()).sum()
}

/// Writing to etcd, which the product never does.
struct Store(tonic::client::Grpc<Channel>);

#[derive(Clone, PartialEq, Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct PutResponse {}

impl Store {
    async fn connect(etcd: &Etcd) -> Self {
        let channel = Channel::from_shared(etcd.url().to_owned()).unwrap().connect().await.unwrap();
        Self(tonic::client::Grpc::new(channel))
    }

    async fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.0.ready().await.unwrap();
        let path = http::uri::PathAndQuery::from_static("/etcdserverpb.KV/Put");
        let codec = tonic_prost::ProstCodec::<PutRequest, PutResponse>::default();
        self.0.unary(tonic::Request::new(PutRequest { key, value }), path, codec).await.unwrap();
    }
}
