//! The limit: a tonic server with the same proto, which answers at once, with messages of the plugin's sizes.

use std::collections::HashMap;

use tonic::{Request, Response, Status};

use super::load::Shape;
use super::v2::key_management_service_server::{KeyManagementService, KeyManagementServiceServer};
use super::v2::{DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusRequest, StatusResponse};

struct Echo {
    key_id: String,
    annotation: Vec<u8>,
    pad: usize,
}

/// Serves on the socket `arguments[0]` with the sizes of the other arguments, until killed.
pub async fn serve(arguments: &[String]) {
    let shape = Shape::from_arguments(&arguments[1..]);
    let listener = tokio::net::UnixListener::bind(&arguments[0]).unwrap();
    let echo = Echo {
        key_id: "k".repeat(shape.key_id),
        annotation: vec![7; shape.annotation],
        pad: shape.ciphertext - shape.plaintext,
    };
    let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
    let server = tonic::transport::Server::builder().add_service(KeyManagementServiceServer::new(echo));
    server.serve_with_incoming(incoming).await.unwrap();
}

#[tonic::async_trait]
impl KeyManagementService for Echo {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let key_id = self.key_id.clone();
        Ok(Response::new(StatusResponse { version: "v2".into(), healthz: "ok".into(), key_id }))
    }

    async fn encrypt(&self, request: Request<EncryptRequest>) -> Result<Response<EncryptResponse>, Status> {
        let mut ciphertext = request.into_inner().plaintext;
        ciphertext.resize(ciphertext.len() + self.pad, 0);
        let annotations = HashMap::from([(Shape::ANNOTATION.into(), self.annotation.clone())]);
        Ok(Response::new(EncryptResponse { ciphertext, key_id: self.key_id.clone(), annotations }))
    }

    async fn decrypt(&self, request: Request<DecryptRequest>) -> Result<Response<DecryptResponse>, Status> {
        let mut plaintext = request.into_inner().ciphertext;
        plaintext.truncate(plaintext.len().saturating_sub(self.pad));
        Ok(Response::new(DecryptResponse { plaintext }))
    }
}
