//! The real servers that the other tests stand on, started and restarted once.

use crate::support::plugin::encryption_configuration;
use crate::support::{ApiServer, ApiServerOptions, Etcd};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::PostParams;
use serde_json::{from_value, json};

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_encrypts_and_restarts_on_a_real_etcd() {
    let etcd = Etcd::start().await;
    let aescbc = "{aescbc: {keys: [{name: k1, secret: \"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\"}]}}";
    let options = ApiServerOptions::encrypted(&encryption_configuration(&["secrets"], &[aescbc, "{identity: {}}"]));
    let mut server = ApiServer::start(&etcd, &options).await;

    let secrets: Api<Secret> = Api::namespaced(server.client(), "default");
    let secret = from_value(json!({"metadata": {"name": "s"}, "stringData": {"k": "v"}})).unwrap();
    secrets.create(&PostParams::default(), &secret).await.unwrap();
    let stored = etcd.get("/registry/secrets/default/s").await.unwrap();
    assert!(stored.starts_with(b"k8s:enc:aescbc:v1:k1:"));

    server.stop();
    server.restart().await;
    assert_eq!(secrets.get("s").await.unwrap().data.unwrap()["k"].0, b"v");
    server.kill();
    server.restart().await;
    assert!(server.readyz().await.unwrap().0);
}
