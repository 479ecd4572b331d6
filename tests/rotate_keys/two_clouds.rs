//! `rotate-keys --rotate-kek` with a KEK at Google and one at Azure.

use crate::support::Plugin;
use crate::support::fakes::two_clouds::{Clouds, GOOGLE_KEY};
use crate::support::rotation::rotates_end_to_end;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotate_keys_rotates_in_both_clouds_and_brings_everything_under_the_new_versions() {
    let clouds = Clouds::start().await;
    let plugin = Plugin::start(&clouds.settings()).await;
    rotates_end_to_end(&plugin, &[]).await;
    assert_eq!(clouds.google.service().keys[GOOGLE_KEY].primary, 2, "rotated in Google's cloud");
    assert_eq!(clouds.azure.service().keys["kek"].versions.len(), 2, "rotated in Azure");
}
