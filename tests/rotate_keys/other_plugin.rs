//! A KMS v2 plugin of somebody else, which names its key once and for all and rotates it in place.

use std::path::Path;

use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

use crate::support::plugin::encryption_configuration;
use crate::support::plugin::proto::key_management_service_server::{KeyManagementService, KeyManagementServiceServer};
use crate::support::plugin::proto::{
    DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusRequest, StatusResponse,
};
use crate::support::rotation::{run, text};
use crate::support::{ApiServer, ApiServerOptions, Etcd};

const KEY_ID: &str = "arn:aws:kms:eu-central-1:111122223333:key/1";

struct InPlace;

#[tonic::async_trait]
impl KeyManagementService for InPlace {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Ok(Response::new(StatusResponse { version: "v2".into(), healthz: "ok".into(), key_id: KEY_ID.into() }))
    }

    async fn encrypt(&self, request: Request<EncryptRequest>) -> Result<Response<EncryptResponse>, Status> {
        let ciphertext = request.into_inner().plaintext;
        Ok(Response::new(EncryptResponse { ciphertext, key_id: KEY_ID.into(), ..EncryptResponse::default() }))
    }

    async fn decrypt(&self, request: Request<DecryptRequest>) -> Result<Response<DecryptResponse>, Status> {
        Ok(Response::new(DecryptResponse { plaintext: request.into_inner().ciphertext }))
    }
}

fn serve(socket: &Path) {
    let incoming = UnixListenerStream::new(UnixListener::bind(socket).unwrap());
    let server = tonic::transport::Server::builder().add_service(KeyManagementServiceServer::new(InPlace));
    tokio::spawn(server.serve_with_incoming(incoming));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_that_never_changes_its_key_id_gets_no_yes_and_a_note_that_its_rotation_cannot_be_seen() {
    crate::support::prepare();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("kms.sock");
    serve(&socket);
    let provider =
        format!("{{kms: {{apiVersion: v2, name: other, endpoint: \"unix://{}\", timeout: 3s}}}}", socket.display());
    let etcd = Etcd::start().await;
    let text_of_it = encryption_configuration(&["secrets"], &[&provider, "{identity: {}}"]);
    let server = ApiServer::start(&etcd, &ApiServerOptions::encrypted(&text_of_it)).await;
    server.write_secret("s", "value").await;

    let journal = format!("--journal={}", folder.path().join("journal.json").display());
    let more = [journal.as_str(), "--settle=0s", "--snapshot-command=true"];
    let ended = run(&server, &etcd, "rotate-keys", &more);
    assert_eq!(ended.status.code(), Some(9), "{}", text(&ended));
    for said in ["Nothing was rotated", KEY_ID, "an in-place rotation of its key cannot be seen"] {
        assert!(text(&ended).contains(said), "{said}: {}", text(&ended));
    }
    let named = ["--former=arn:aws:kms:eu-central-1:111122223333:key/2"];
    let ended = run(&server, &etcd, "rotate-keys", &[&more[..], &named].concat());
    assert_eq!(ended.status.code(), Some(1), "a slip is no key: {}", text(&ended));
}
