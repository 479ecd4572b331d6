//! A sealed state under a key of this machine's TPM: it is taken up after a reboot, and on no other machine.

use std::time::Duration;

use crate::support::fakes::faults::Fault;
use crate::support::key_store::{KeyStore, settings};
use crate::support::tpm::Tpm;
use crate::support::{Plugin, wait_until};

const SOON: Duration = Duration::from_mins(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs swtpm and tpm2-pkcs11: scripts/e2e tpm"]
async fn rebooted_with_every_kek_down_a_plugin_goes_on_by_its_tpm_and_another_tpm_opens_nothing() {
    let (store, mut tpm) = (KeyStore::start("primary").await, Tpm::start().await);
    let environment = tpm.environment();
    let environment: Vec<_> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let more = format!("sealedState: {{ kek: {} }}", tpm.item());
    let mut plugin = Plugin::spawn_with(&settings(&[&store], &more), &environment);
    plugin.wait_socket().await;
    let key_id = plugin.wait_healthy().await;
    let file = plugin.folder().join("state/sealed");
    wait_until("it is sealed", SOON, async || file.exists()).await;
    store.faults.set(Fault::Silence);
    plugin.kill();
    tpm.reboot().await;
    plugin.restart().await;
    assert_eq!(plugin.wait_healthy().await, key_id);
    assert!(plugin.process.says("taken up from before the reboot"));
    plugin.kill();

    // The disk in another machine: with the same files and the same PIN.
    tpm.replace().await;
    let from = plugin.process.log().len();
    plugin.restart().await;
    let refused = || plugin.process.log()[from..].contains("KEK node does not unwrap its key");
    wait_until("it says why", SOON, async || refused()).await;
    assert!(plugin.status().await.is_none());
    store.faults.clear();
    assert_eq!(plugin.wait_healthy().await, key_id);
}
