//! Bad input on the real socket of the real binary: each gets a precise gRPC status, nothing panics, and no KEK is
//! asked where there is nothing to ask.

mod requests;
mod sockets;
#[cfg(all(feature = "aws", feature = "azure", feature = "gcp", feature = "transit"))]
mod takeover;

use std::collections::HashMap;

use kube_envelope::envelope::ANNOTATION;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::support::plugin::proto::key_management_service_client::KeyManagementServiceClient;
use crate::support::plugin::proto::{DecryptRequest, EncryptRequest};
use crate::support::{KeyringFile, Plugin};

const CLUSTER: &str = "hostile";
const SEED: [u8; 32] = [42; 32];

type Client = KeyManagementServiceClient<Channel>;

/// A plugin that asks its KEK nothing by itself after its start.
async fn plugin(keyring: &KeyringFile) -> Plugin {
    plugin_of(keyring, CLUSTER).await
}

async fn plugin_of(keyring: &KeyringFile, cluster: &str) -> Plugin {
    let plugin =
        Plugin::start(&format!("{}\nrefreshInterval: 1h\nproveInterval: 1day", keyring.settings(cluster))).await;
    plugin.wait_healthy().await;
    plugin
}

async fn stored(plugin: &Plugin) -> DecryptRequest {
    let request = EncryptRequest { plaintext: SEED.to_vec(), uid: "encrypt".into() };
    let encrypted = plugin.client().await.unwrap().encrypt(request).await.unwrap().into_inner();
    DecryptRequest {
        ciphertext: encrypted.ciphertext,
        uid: "decrypt".into(),
        key_id: encrypted.key_id,
        annotations: encrypted.annotations,
    }
}

async fn decrypt(client: &mut Client, request: DecryptRequest) -> Result<Vec<u8>, Status> {
    client.decrypt(request).await.map(|response| response.into_inner().plaintext)
}

async fn refusal(client: &mut Client, request: DecryptRequest) -> Status {
    decrypt(client, request).await.expect_err("refused")
}

fn with_ciphertext(good: &DecryptRequest, ciphertext: &[u8]) -> DecryptRequest {
    DecryptRequest { ciphertext: ciphertext.to_vec(), ..good.clone() }
}

fn with_annotation(good: &DecryptRequest, value: &[u8]) -> DecryptRequest {
    DecryptRequest { annotations: HashMap::from([(ANNOTATION.into(), value.to_vec())]), ..good.clone() }
}

/// Every copy of `bytes` with one bit changed, and the byte it is in.
fn flipped(bytes: &[u8]) -> impl Iterator<Item = (usize, Vec<u8>)> {
    (0..bytes.len() * 8).map(|bit| {
        let mut changed = bytes.to_vec();
        changed[bit / 8] ^= 1 << (bit % 8);
        (bit / 8, changed)
    })
}

/// It never panicked, and serves on.
async fn assert_unharmed(plugin: &mut Plugin, good: &DecryptRequest) {
    assert_eq!(plugin.metric("kube_envelope_rpcs_total", &["outcome=\"panic\""]).to_string(), "0");
    assert!(!plugin.process.log().contains("panicked"), "{}", plugin.process.log_tail());
    assert!(plugin.process.is_running());
    assert_eq!(decrypt(&mut plugin.client().await.unwrap(), good.clone()).await.unwrap(), SEED);
}
