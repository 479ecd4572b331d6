//! Other KMS v2 plugins, as far as an API server can tell: each asks the real key store, or the fake that stands for it,
//! what the plugin's source asks, and answers in the plugin's format. That the real programs answer so is shown by
//! `tests/vectors/takeover`.

use std::path::Path;
use std::sync::Arc;

use base64::{Engine, prelude::BASE64_STANDARD};
use sha2::{Digest, Sha256};
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, async_trait};

use super::fakes::two_clouds::{Clouds, GOOGLE_KEY};
use super::plugin::proto::key_management_service_server::{KeyManagementService, KeyManagementServiceServer};
use super::plugin::proto::{
    DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusRequest, StatusResponse,
};

/// What one plugin does.
#[async_trait]
pub trait Format: Send + Sync + 'static {
    /// What its Status says.
    fn version(&self) -> &'static str;
    async fn encrypt(&self, seed: &[u8]) -> EncryptResponse;
    async fn decrypt(&self, stored: &DecryptRequest) -> Option<Vec<u8>>;
}

/// A running plugin, in threads of its own: when it stops, its connections end as those of a process do.
pub struct Rival {
    runtime: Option<Runtime>,
}

struct Server(Arc<dyn Format>);

#[async_trait]
impl KeyManagementService for Server {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let key_id = self.0.encrypt(b"ping").await.key_id;
        Ok(Response::new(StatusResponse { version: self.0.version().into(), healthz: "ok".into(), key_id }))
    }

    async fn encrypt(&self, request: Request<EncryptRequest>) -> Result<Response<EncryptResponse>, Status> {
        Ok(Response::new(self.0.encrypt(&request.into_inner().plaintext).await))
    }

    async fn decrypt(&self, request: Request<DecryptRequest>) -> Result<Response<DecryptResponse>, Status> {
        let plaintext = self.0.decrypt(request.get_ref()).await.ok_or_else(|| Status::internal("does not decrypt"))?;
        Ok(Response::new(DecryptResponse { plaintext }))
    }
}

impl Rival {
    /// Serves at `socket`, and takes it from whoever left it behind.
    pub fn start(format: Arc<dyn Format>, socket: &Path) -> Self {
        let _ = std::fs::remove_file(socket);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let socket = socket.to_owned();
        runtime.spawn(async move {
            let incoming = UnixListenerStream::new(UnixListener::bind(socket).unwrap());
            let mut server = tonic::transport::Server::builder();
            server.add_service(KeyManagementServiceServer::new(Server(format))).serve_with_incoming(incoming).await
        });
        Self { runtime: Some(runtime) }
    }
}

impl Drop for Rival {
    fn drop(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

/// aws-encryption-provider.
pub struct AwsEncryptionProvider {
    pub admin: aws_sdk_kms::Client,
    /// Its `--key`.
    pub key: String,
    /// Its `--encryption-context`.
    pub context: Vec<(&'static str, &'static str)>,
}

#[async_trait]
impl Format for AwsEncryptionProvider {
    fn version(&self) -> &'static str {
        "v2beta1"
    }

    async fn encrypt(&self, seed: &[u8]) -> EncryptResponse {
        let mut request = self.admin.encrypt().key_id(&self.key).plaintext(seed.into());
        for (name, value) in &self.context {
            request = request.encryption_context(*name, *value);
        }
        let blob = request.send().await.unwrap().ciphertext_blob.unwrap().into_inner();
        let ciphertext = [b"1", blob.as_slice()].concat();
        EncryptResponse { ciphertext, key_id: self.key.clone(), ..EncryptResponse::default() }
    }

    async fn decrypt(&self, stored: &DecryptRequest) -> Option<Vec<u8>> {
        let mut request = self.admin.decrypt().ciphertext_blob(stored.ciphertext[1..].into());
        for (name, value) in &self.context {
            request = request.encryption_context(*name, *value);
        }
        Some(request.send().await.ok()?.plaintext?.into_inner())
    }
}

/// vault-kubernetes-kms, with the key of a [`super::key_store::KeyStore`].
pub struct VaultKubernetesKms(pub Arc<super::key_store::KeyStore>);

#[async_trait]
impl Format for VaultKubernetesKms {
    fn version(&self) -> &'static str {
        "v2"
    }

    async fn encrypt(&self, seed: &[u8]) -> EncryptResponse {
        let (mount, vault) = (self.0.name, &self.0.vault);
        let body = serde_json::json!({ "plaintext": BASE64_STANDARD.encode(seed) });
        let answer = vault.write(&format!("{mount}/encrypt/kube-envelope"), body).await;
        let key = vault.read(&format!("{mount}/keys/kube-envelope")).await;
        EncryptResponse {
            ciphertext: answer["data"]["ciphertext"].as_str().unwrap().into(),
            key_id: key["data"]["latest_version"].to_string(),
            ..EncryptResponse::default()
        }
    }

    async fn decrypt(&self, stored: &DecryptRequest) -> Option<Vec<u8>> {
        let ciphertext = std::str::from_utf8(&stored.ciphertext).ok()?;
        let body = serde_json::json!({ "ciphertext": ciphertext });
        let answer = self.0.vault.write(&format!("{}/decrypt/kube-envelope", self.0.name), body).await;
        BASE64_STANDARD.decode(answer["data"]["plaintext"].as_str()?).ok()
    }
}

/// k8s-cloudkms-plugin, with the key of a fake Cloud KMS and a `--key-suffix`.
pub struct CloudKmsPlugin(pub Arc<Clouds>);

#[async_trait]
impl Format for CloudKmsPlugin {
    fn version(&self) -> &'static str {
        "v2beta1"
    }

    async fn encrypt(&self, seed: &[u8]) -> EncryptResponse {
        let (version, ciphertext) = self.0.google.encrypt(GOOGLE_KEY, seed);
        EncryptResponse { ciphertext, key_id: format!("{version}:suffix"), ..EncryptResponse::default() }
    }

    async fn decrypt(&self, stored: &DecryptRequest) -> Option<Vec<u8>> {
        self.0.google.decrypt(GOOGLE_KEY, &stored.ciphertext)
    }
}

/// Azure's kubernetes-kms, with the key of a fake vault.
pub struct KubernetesKms(pub Arc<Clouds>);

#[async_trait]
impl Format for KubernetesKms {
    fn version(&self) -> &'static str {
        "v2beta1"
    }

    async fn encrypt(&self, seed: &[u8]) -> EncryptResponse {
        let (kid, ciphertext) = self.0.azure.encrypt("kek", seed);
        let annotations = [
            ("date.azure.akv.io", "Fri, 02 Jan 2026 03:04:05 GMT"),
            ("x-ms-request-id.azure.akv.io", "6a8d2f10-0000-4000-8000-000000000000"),
            ("x-ms-keyvault-region.azure.akv.io", "westeurope"),
            ("version.azure.akv.io", "1"),
            ("algorithm.azure.akv.io", "RSA-OAEP-256"),
        ];
        EncryptResponse {
            ciphertext: ciphertext.into_bytes(),
            key_id: hex::encode(Sha256::digest(kid)),
            annotations: annotations.map(|(name, value)| (name.into(), value.into())).into(),
        }
    }

    async fn decrypt(&self, stored: &DecryptRequest) -> Option<Vec<u8>> {
        let versions: Vec<_> =
            self.0.azure.service().keys["kek"].versions.iter().map(|version| version.id.clone()).collect();
        let kid = |id: &String| format!("https://kek.vault.azure.net/keys/kek/{id}");
        let version = versions.iter().find(|id| hex::encode(Sha256::digest(kid(id))) == stored.key_id)?;
        self.0.azure.decrypt(version, std::str::from_utf8(&stored.ciphertext).ok()?)
    }
}
