//! The node reboots while every KEK is away: a process without anything in memory goes on from what was sealed in the state
//! folder under a KEK of this machine, as long as it could have been used without the reboot, and no longer.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::support::fakes::faults::Fault;
use crate::support::key_store::{ALL, KeyStore, settings};
use crate::support::plugin::encryption_configuration;
use crate::support::wall_clock::WallClock;
use crate::support::{ApiServer, ApiServerOptions, Encryption, Etcd, KeyringFile, Plugin, Process, wait_until};

const SOON: Duration = Duration::from_secs(30);

pub fn sealed_by(node: &KeyringFile) -> String {
    format!("sealedState: {{ kek: {{ name: node, keyring: {{ file: {} }} }} }}", node.path().display())
}

fn sealed(plugin: &Plugin) -> PathBuf {
    plugin.folder().join("state/sealed")
}

async fn wait_for_state(plugin: &Plugin, state: &str, within: Duration) {
    let said = format!("\"{state}\"");
    wait_until(&format!("the plugin is {state}"), within, async || plugin.get("/status").contains(&said)).await;
}

async fn wait_sealed(plugin: &Plugin) {
    wait_until("it is sealed", SOON, async || sealed(plugin).exists()).await;
}

/// Waits until it is written anew: with what happened before this call.
async fn wait_sealed_again(plugin: &Plugin) {
    let written = || std::fs::metadata(sealed(plugin)).and_then(|metadata| metadata.modified()).ok();
    let before = written();
    wait_until("it is sealed again", SOON, async || written() > before).await;
}

async fn wait_for_line(plugin: &Plugin, from: usize, text: &str) {
    let said = || plugin.process.log().get(from..).is_some_and(|log| log.contains(text));
    wait_until(&format!("it says: {text}"), SOON, async || said()).await;
}

/// Starts it, and waits until it says why nothing of what is sealed is used.
async fn is_refused(plugin: &mut Plugin, why: &str) {
    let from = plugin.process.log().len();
    plugin.restart().await;
    wait_for_line(plugin, from, why).await;
    assert!(plugin.status().await.is_none(), "{why}: nothing is served");
    plugin.kill();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rebooted_with_every_kek_down_a_plugin_with_a_sealed_state_serves_an_api_server_until_max_offline_age() {
    let (store, node) = (KeyStore::start("primary").await, KeyringFile::create());
    let more = format!("maxOfflineAge: 90s\n{}", sealed_by(&node));
    let mut plugin = Plugin::start(&settings(&[&store], &more)).await;
    let key_id = plugin.wait_healthy().await;
    let etcd = Etcd::start().await;
    let encryption = encryption_configuration(&["secrets"], &[&plugin.provider(), "{identity: {}}"]);
    let options = ApiServerOptions { encryption: Encryption::Text(encryption), ..ApiServerOptions::default() };
    let mut server = ApiServer::start(&etcd, &options).await;
    server.write_secret("before", "before").await;
    wait_sealed_again(&plugin).await;
    store.faults.set(Fault::Refuse);
    let away = Instant::now();
    server.stop();
    plugin.kill();

    plugin.restart().await;
    server.restart().await;
    assert_eq!(server.read_secret("before").await, "before");
    server.write_secret("after", "after").await;
    assert_eq!(plugin.wait_healthy().await, key_id);
    wait_for_state(&plugin, "coasting", SOON).await;
    // A second one makes it no longer.
    plugin.kill();
    plugin.restart().await;
    plugin.wait_healthy().await;
    wait_for_state(&plugin, "stopped", Duration::from_mins(2)).await;
    assert!(away.elapsed() < Duration::from_secs(95), "counted from the last unwrap: {:?}", away.elapsed());
    wait_until("nothing is sealed any more", SOON, async || !sealed(&plugin).exists()).await;
    plugin.kill();
    plugin.restart().await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(plugin.status().await.is_none(), "nothing is left");
    store.faults.clear();
    plugin.wait_healthy().await;
    assert_eq!(server.read_secret("after").await, "after");
    wait_sealed(&plugin).await;
}

/// The clock that ages are counted in begins anew with the machine, and what was unwrapped before lies before its beginning.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_machine_that_has_just_started_a_key_is_as_old_as_it_was() {
    let (store, node) = (KeyStore::start("primary").await, KeyringFile::create());
    let mut plugin = Plugin::start(&settings(&[&store], &format!("maxOfflineAge: 40s\n{}", sealed_by(&node)))).await;
    let key_id = plugin.wait_healthy().await;
    wait_sealed_again(&plugin).await;
    store.faults.set(Fault::Refuse);
    let away = Instant::now();
    plugin.kill();

    let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
    let seconds: u64 = uptime.split('.').next().unwrap().parse().unwrap();
    // As on a machine that runs for three seconds.
    let start = format!("exec unshare --time --boottime -{} --fork --kill-child -- \"$@\"", seconds - 3);
    let config = plugin.config_file();
    let plugins = [env!("CARGO_BIN_EXE_kube-envelope"), "serve", "--config", config.to_str().unwrap()];
    let arguments = ["-c", &start, "bash"].into_iter().chain(plugins).map(Into::into).collect();
    let log = plugin.folder().join("second.log");
    let mut second = Process::start("second", "bash".into(), arguments, Vec::new(), log);
    assert_eq!(plugin.wait_healthy().await, key_id);
    assert!(second.says("taken up from before the reboot"));
    wait_for_state(&plugin, "stopped", Duration::from_mins(1)).await;
    assert!(away.elapsed() < Duration::from_secs(45), "{:?}", away.elapsed());
    wait_until("nothing is sealed any more", SOON, async || !sealed(&plugin).exists()).await;
    second.kill();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_denied_before_or_after_a_reboot_is_not_sealed_any_more() {
    let (store, node) = (KeyStore::start("primary").await, KeyringFile::create());
    let mut plugin = Plugin::start(&settings(&[&store], &sealed_by(&node))).await;
    plugin.wait_healthy().await;
    wait_sealed(&plugin).await;
    let copy = std::fs::read(sealed(&plugin)).unwrap();
    store.allow(&[]).await;
    wait_for_state(&plugin, "stopped", Duration::from_mins(1)).await;
    wait_until("it is removed", SOON, async || !sealed(&plugin).exists()).await;
    plugin.kill();

    // Denied while the machine was down.
    std::fs::write(sealed(&plugin), copy).unwrap();
    plugin.restart().await;
    wait_until("it is removed", SOON, async || !sealed(&plugin).exists()).await;
    assert!(plugin.status().await.is_none() && !plugin.process.log().contains("taken up from before"));
    store.allow(ALL).await;
    plugin.wait_healthy().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_behind_another_node_another_epoch_or_a_changed_byte_open_nothing() {
    let (store, node, clock) = (KeyStore::start("primary").await, KeyringFile::create(), WallClock::new());
    let environment = clock.environment();
    let environment: Vec<_> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let mut plugin = Plugin::spawn_with(&settings(&[&store], &sealed_by(&node)), &environment);
    plugin.wait_socket().await;
    let key_id = plugin.wait_healthy().await;
    wait_sealed(&plugin).await;
    store.faults.set(Fault::Refuse);
    plugin.kill();

    let file = sealed(&plugin);
    let whole = std::fs::read(&file).unwrap();
    for at in [1, whole.len() / 2, whole.len() - 1] {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        std::fs::write(&file, changed).unwrap();
        is_refused(&mut plugin, "what is sealed there is not used").await;
    }
    std::fs::write(&file, &whole).unwrap();
    let config = std::fs::read_to_string(plugin.config_file()).unwrap();
    std::fs::write(plugin.config_file(), format!("{config}\nepoch: 2\n")).unwrap();
    is_refused(&mut plugin, "it belongs to cluster test at epoch 1").await;
    let other = config.replace(node.path().to_str().unwrap(), KeyringFile::create().path().to_str().unwrap());
    std::fs::write(plugin.config_file(), other).unwrap();
    is_refused(&mut plugin, "KEK node does not unwrap its key").await;
    std::fs::write(plugin.config_file(), &config).unwrap();

    clock.set(-3600);
    let from = plugin.process.log().len();
    plugin.restart().await;
    wait_for_line(&plugin, from, "clock is behind the moment at which it was sealed").await;
    assert!(plugin.status().await.is_none(), "the clock is behind");
    // As when the network's time comes late.
    clock.set(0);
    assert_eq!(plugin.wait_healthy().await, key_id);
    store.faults.clear();
    wait_for_state(&plugin, "ready", SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_copy_and_a_clock_that_was_behind_at_the_start_make_it_no_longer() {
    let (store, node, clock) = (KeyStore::start("primary").await, KeyringFile::create(), WallClock::new());
    let environment = clock.environment();
    let environment: Vec<_> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let more = format!("maxOfflineAge: 5m\n{}", sealed_by(&node));
    let mut plugin = Plugin::spawn_with(&settings(&[&store], &more), &environment);
    plugin.wait_socket().await;
    let key_id = plugin.wait_healthy().await;
    wait_sealed(&plugin).await;
    let older = std::fs::read(sealed(&plugin)).unwrap();
    // Two minutes later by the time of day.
    clock.set(120);
    wait_sealed_again(&plugin).await;
    store.faults.set(Fault::Refuse);
    plugin.kill();
    let newer = std::fs::read(sealed(&plugin)).unwrap();

    // A minute before the end of the newer one, the older one is over.
    clock.set(120 + 240);
    std::fs::write(sealed(&plugin), &older).unwrap();
    is_refused(&mut plugin, "its time is over").await;
    assert!(!sealed(&plugin).exists(), "what is over is removed");
    std::fs::write(sealed(&plugin), &newer).unwrap();
    plugin.restart().await;
    assert_eq!(plugin.wait_healthy().await, key_id);
    plugin.kill();

    // Behind, but not before what was seen last; then set right, after the end.
    std::fs::write(sealed(&plugin), &newer).unwrap();
    clock.set(120 + 10);
    plugin.restart().await;
    assert_eq!(plugin.wait_healthy().await, key_id);
    clock.set(120 + 600);
    wait_for_state(&plugin, "stopped", Duration::from_mins(1)).await;
    wait_until("it is removed", SOON, async || !Path::new(&sealed(&plugin)).exists()).await;
}
