//! A real kube-apiserver behind the plugin with a key in a real `LocalStack`: an on-demand rotation behind one ARN is
//! followed, and everything restarts while AWS is away.

use std::time::Duration;

use crate::support::fakes::faults::Fault;
use crate::support::localstack::KeyStore;
use crate::support::plugin::encryption_configuration;
use crate::support::{ApiServer, ApiServerOptions, Encryption, Etcd, Plugin, wait_until};

/// An API server polls Status every minute, and every 20 s while its health is asked for.
const ADOPTION: Duration = Duration::from_secs(90);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_behind_one_arn_is_followed_and_the_api_server_restarts_while_aws_is_away() {
    let store = KeyStore::start().await;
    let settings = format!("cluster: aws\nrefreshInterval: 1s\nproveInterval: 2s\nkeks: [{}]", store.item());
    let mut plugin = Plugin::start(&settings).await;
    let before = plugin.wait_healthy().await;
    let etcd = Etcd::start().await;
    let encryption = encryption_configuration(&["secrets"], &[&plugin.provider(), "{identity: {}}"]);
    let options =
        ApiServerOptions { number: 1, encryption: Encryption::Text(encryption), ..ApiServerOptions::default() };
    let mut server = ApiServer::start(&etcd, &options).await;
    server.write_secret("first", "first").await;
    assert_eq!(etcd.key_id("/registry/secrets/default/first").await.as_ref(), Some(&before));

    store.admin.rotate_key_on_demand().key_id(&store.key).send().await.expect("rotated");
    wait_until("the plugin adopts", Duration::from_secs(20), async || {
        plugin.status().await.is_some_and(|status| status.key_id != before)
    })
    .await;
    let after = plugin.wait_healthy().await;
    let mut writes = 0;
    wait_until("the API server writes with the new key_id", ADOPTION, async || {
        assert!(server.readyz().await.unwrap().0, "ready throughout");
        tokio::time::sleep(Duration::from_millis(500)).await;
        writes += 1;
        server.write_secret(&format!("after-{writes}"), "value").await;
        etcd.key_id(&format!("/registry/secrets/default/after-{writes}")).await.as_ref() == Some(&after)
    })
    .await;

    store.faults.set(Fault::Silence);
    server.stop();
    server.restart().await;
    assert_eq!(server.read_secret("first").await, "first");
    server.write_secret("while-aws-is-away", "while-aws-is-away").await;
    store.faults.clear();
    assert!(plugin.stop().success());
    plugin.restart().await;
    assert_eq!(plugin.wait_healthy().await, after, "no new key_id for a restart");
    assert_eq!(server.read_secret("while-aws-is-away").await, "while-aws-is-away");
}
