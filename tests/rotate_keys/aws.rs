//! `rotate-keys --rotate-kek` with a key in a real `LocalStack`.

use crate::support::Plugin;
use crate::support::localstack::KeyStore;
use crate::support::rotation::rotates_end_to_end;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotate_keys_rotates_on_demand_in_aws_and_brings_everything_under_the_new_material() {
    let store = KeyStore::start().await;
    let settings = format!("cluster: aws\nrefreshInterval: 1s\nproveInterval: 2s\nkeks: [{}]", store.item());
    let plugin = Plugin::start(&settings).await;
    let before = store.current_material().await;
    rotates_end_to_end(&plugin, &[]).await;
    assert_ne!(store.current_material().await, before, "rotated in AWS");
}
