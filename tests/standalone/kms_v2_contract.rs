//! The KMS v2 contract, a test for each sentence, by a real gRPC client on the real socket of the real binary.
//!
//! Sources: *proto* is the text beside the messages in k8s.io/kms v0.37, apis/v2/api.proto; *page* is "Using a KMS
//! provider for data encryption" on kubernetes.io, section "KMS v2" of the notes on developing a plugin; *apiserver*
//! is what k8s.io/apiserver 1.37 enforces (kmsv2/envelope.go, encryptionconfig/config.go); *KEP* is KEP-3299.

mod decrypt;
mod encrypt;
mod status;

use std::time::{Duration, Instant};

use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::support::plugin::proto::key_management_service_client::KeyManagementServiceClient;
use crate::support::plugin::proto::{DecryptRequest, EncryptRequest, EncryptResponse, StatusRequest, StatusResponse};
use crate::support::{KeyringFile, Plugin, wait_until};

const CLUSTER: &str = "contract";

/// The longest that a change of a KEK may stay unnoticed at `refreshInterval: 1s`.
const NOTICED_WITHIN: Duration = Duration::from_secs(15);

/// A plugin that asks its KEK nothing by itself after its start.
async fn quiet(keyring: &KeyringFile) -> Plugin {
    let settings = format!("{}\nrefreshInterval: 1h\nproveInterval: 1day", keyring.settings(CLUSTER));
    let plugin = Plugin::start(&settings).await;
    plugin.wait_healthy().await;
    plugin
}

/// A plugin that notices a rotation within seconds.
async fn attentive(keyring: &KeyringFile) -> Plugin {
    let plugin = Plugin::start(&format!("{}\nrefreshInterval: 1s", keyring.settings(CLUSTER))).await;
    plugin.wait_healthy().await;
    plugin
}

async fn status(plugin: &Plugin) -> StatusResponse {
    plugin.status().await.expect("Status is answered")
}

async fn encrypt(client: &mut KeyManagementServiceClient<Channel>, seed: &[u8]) -> EncryptResponse {
    let request = EncryptRequest { plaintext: seed.to_vec(), uid: "encrypt".into() };
    client.encrypt(request).await.unwrap().into_inner()
}

fn decrypt_request(encrypted: &EncryptResponse) -> DecryptRequest {
    DecryptRequest {
        ciphertext: encrypted.ciphertext.clone(),
        uid: "decrypt".into(),
        key_id: encrypted.key_id.clone(),
        annotations: encrypted.annotations.clone(),
    }
}

async fn decrypt(client: &mut KeyManagementServiceClient<Channel>, encrypted: &EncryptResponse) -> Vec<u8> {
    client.decrypt(decrypt_request(encrypted)).await.unwrap().into_inner().plaintext
}

async fn refusal(client: &mut KeyManagementServiceClient<Channel>, request: DecryptRequest) -> Status {
    client.decrypt(request).await.map(drop).expect_err("refused")
}

async fn wait_other_key_id(plugin: &Plugin, before: &str) -> String {
    let mut key_id = String::new();
    wait_until("another key_id", NOTICED_WITHIN, async || {
        key_id = status(plugin).await.key_id;
        key_id != before
    })
    .await;
    key_id
}

/// *page*: "Plugins must take care to optimize this call as it will be under constant load" (Status); "keep each
/// request's latency at under 100 milliseconds" (Encrypt): neither asks a KEK anything.
#[tokio::test]
async fn status_encrypt_and_a_decrypt_of_a_known_dek_ask_no_kek() {
    let keyring = KeyringFile::create();
    let plugin = quiet(&keyring).await;
    let mut client = plugin.client().await.unwrap();
    let before = plugin.kek_requests("");
    assert!(before > 0, "the metric counts");
    for _ in 0..100 {
        client.status(StatusRequest {}).await.unwrap();
        let encrypted = encrypt(&mut client, &[3; 32]).await;
        decrypt(&mut client, &encrypted).await;
    }
    assert_eq!(plugin.kek_requests(""), before);
}

/// *page*: "The plugin deployment should create a file on the file system to run the gRPC unix domain socket
/// connection"; Kubernetes 1.32 and later send `localhost` as authority.
#[tokio::test]
async fn the_socket_is_a_file_that_only_its_owner_may_use() {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    let keyring = KeyringFile::create();
    let plugin = quiet(&keyring).await;
    let metadata = std::fs::symlink_metadata(plugin.socket()).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
}
