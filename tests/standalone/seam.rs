//! The RPCs without a socket, a signal or a process: what a test needs that plays with the connection itself.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use hyper_util::rt::TokioIo;
use kube_envelope::config::Config;
use kube_envelope::dek::cache::DekCache;
use kube_envelope::dek::clock::BootClock;
use kube_envelope::dek::store::{DekStore, StateFolder};
use kube_envelope::key_stores::open_set;
use kube_envelope::plugin::server::serve;
use kube_envelope::plugin::service::Service;
use kube_envelope::telemetry::Metrics;
use tonic::Code;
use tonic::transport::{Endpoint, Uri};

use crate::support::KeyringFile;
use crate::support::plugin::proto::StatusRequest;
use crate::support::plugin::proto::key_management_service_client::KeyManagementServiceClient;

#[tokio::test]
async fn the_rpcs_are_served_over_any_stream_until_they_are_told_to_stop() {
    let (keyring, state) = (KeyringFile::create(), tempfile::tempdir().unwrap());
    let config = Config::parse(std::path::Path::new("config.yaml"), &keyring.settings("seam")).unwrap();
    let metrics = Arc::new(Metrics::new());
    let keks = open_set(&config.keks, &config.retired, &metrics).unwrap();
    let store = Arc::new(DekStore::open(Arc::new(StateFolder::new(state.path()))).await.unwrap());
    let cache = Arc::new(DekCache::new(Arc::new(BootClock)));
    let service = Arc::new(Service::new(config.cluster, keks, cache, store));

    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let one = futures::stream::once(async move { Ok::<_, std::io::Error>(theirs) });
    let connections = Box::pin(one.chain(futures::stream::pending()));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(serve(connections, service, metrics, async move {
        let _ = stopped.await;
    }));
    let ours = Mutex::new(Some(ours));
    let dial = tower::service_fn(move |_: Uri| {
        let ours = ours.lock().unwrap().take();
        async move { ours.map(TokioIo::new).ok_or_else(|| std::io::Error::other("there is one stream")) }
    });
    let channel = Endpoint::from_static("http://localhost").connect_with_connector(dial).await.unwrap();
    let refused = KeyManagementServiceClient::new(channel.clone()).status(StatusRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "no generation was published");

    stop.send(()).unwrap();
    tokio::time::timeout(Duration::from_secs(10), serving).await.expect("it ends").unwrap().unwrap();
    let gone = KeyManagementServiceClient::new(channel).status(StatusRequest {}).await.unwrap_err();
    assert_ne!(gone.message(), refused.message());
}
