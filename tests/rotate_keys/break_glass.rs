//! The day for which a break-glass KEK is kept, under a real API server: every other KEK is lost for ever. And the rotation of
//! its recipient.

use std::time::Duration;

use serde_json::Value;

use crate::backups::alone;
use crate::support::plugin::encryption_configuration;
use crate::support::rotation::{run, text};
use crate::support::{ApiServer, ApiServerOptions, BreakGlass, Encryption, Etcd, KeyringFile, Plugin, wait_until};

const SOON: Duration = Duration::from_secs(20);

fn settings(keyring: &KeyringFile, glass: &BreakGlass, more: &str) -> String {
    let local = format!("{{name: local, keyring: {{file: {}}}}}", keyring.path().display());
    format!("cluster: test\nrefreshInterval: 1s\nproveInterval: 1s\nkeks: [{local}, {}]\n{more}", glass.item())
}

fn configure(plugin: &Plugin, settings: &str) {
    let before = std::fs::read_to_string(plugin.config_file()).unwrap();
    let is_kept = |line: &&str| ["socket:", "stateDir:", "health:", "sandbox:"].iter().any(|key| line.starts_with(key));
    let kept: Vec<_> = before.lines().filter(is_kept).collect();
    std::fs::write(plugin.config_file(), format!("{settings}\n{}\n", kept.join("\n"))).unwrap();
}

async fn another(plugin: &Plugin, key_id: &str) -> String {
    plugin.process.signal(rustix::process::Signal::HUP);
    let status = async || plugin.status().await.map(|status| status.key_id).unwrap_or_default();
    wait_until("another key_id", SOON, async || !["", key_id].contains(&status().await.as_str())).await;
    status().await
}

fn kek(plugin: &Plugin, name: &str) -> Value {
    let report: Value = serde_json::from_str(&plugin.get("/status")).unwrap();
    report["keks"].as_array().unwrap().iter().find(|kek| kek["name"] == name).unwrap().clone()
}

/// `rotate-keys` to its Yes, and what it said.
fn rotated(plugin: &Plugin, server: &ApiServer, etcd: &Etcd, what: &str) -> String {
    let config = format!("--config={}", plugin.config_file().display());
    let journal = format!("--journal={}", server.folder().join(format!("{what}.json")).display());
    let more = [
        config.as_str(),
        journal.as_str(),
        "--settle=0s",
        "--compact",
        "--agreement-interval=1s",
        "--request-timeout=1s",
        "--snapshot-command=true",
    ];
    let rotated = run(server, etcd, "rotate-keys", &more);
    assert_eq!(rotated.status.code(), Some(0), "{what}: {}", text(&rotated));
    text(&rotated)
}

async fn cluster(settings: &str) -> (Plugin, Etcd, ApiServer) {
    let plugin = Plugin::start(settings).await;
    plugin.wait_healthy().await;
    let etcd = Etcd::start().await;
    let encryption = encryption_configuration(&["secrets"], &[&plugin.provider(), "{identity: {}}"]);
    let options = ApiServerOptions { encryption: Encryption::Text(encryption), ..ApiServerOptions::default() };
    let server = ApiServer::start(&etcd, &options).await;
    for number in 0..20 {
        server.write_secret(&format!("s-{number}"), &format!("value {number}")).await;
    }
    (plugin, etcd, server)
}

async fn all_come_back(server: &ApiServer) {
    for number in 0..20 {
        assert_eq!(server.read_secret(&format!("s-{number}")).await, format!("value {number}"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_every_online_kek_lost_for_ever_the_private_half_opens_every_secret_and_every_backup() {
    let (keyring, glass, other) = (KeyringFile::create(), BreakGlass::create(), BreakGlass::create());
    let (mut plugin, etcd, mut server) = cluster(&settings(&keyring, &glass, "")).await;
    let key_id = plugin.wait_healthy().await;
    let lost = kek(&plugin, "local")["lineage"].as_str().unwrap().to_owned();
    let snapshot = plugin.folder().join("snapshot.db");
    etcd.snapshot(&snapshot).await;
    let kept = server.folder().join("on-the-day.yaml");
    std::fs::copy(plugin.config_file(), &kept).unwrap();
    server.stop();
    plugin.stop();
    std::fs::remove_file(keyring.path()).unwrap();

    // A backup: by the private half alone.
    let (file, config) = (snapshot.display().to_string(), format!("--config={}", kept.display()));
    let (own, wrong) = (&glass, &other);
    let [own, wrong] = [own, wrong].map(|one| format!("--break-glass={}", one.identity().display()));
    let get = |more: &[&str]| alone(&[&["snapshot", "get", &file, "secrets/default/s-7", &config], more].concat());
    get(&[]).exits(1).says("only break-glass KEK escrow could unwrap it");
    get(&[&wrong]).exits(1).says("the wrong private half").says(&glass.recipient);
    let read: Value = serde_saphyr::from_str(&get(&[&own]).exits(0).out).unwrap();
    assert_eq!(read["data"]["k"], "dmFsdWUgNw==", "`value 7` in base64");
    alone(&["rehearse", &file, &config]).exits(10);
    alone(&["rehearse", &file, &config, &own, &format!("--without={lost}")]).exits(0).says("becomes ready");
    let there = std::fs::read_to_string(&kept).unwrap().replace("cluster: test", "cluster: elsewhere");
    std::fs::write(&kept, there).unwrap();
    get(&[&own]).exits(1).says("elsewhere");

    // The cluster: not by a plain restart.
    plugin.restart().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(plugin.status().await.is_none());
    plugin.stop();
    plugin.process.arguments_mut().extend(["--break-glass".into(), glass.identity().into()]);
    plugin.restart().await;
    assert_eq!(plugin.wait_healthy().await, key_id);
    server.restart().await;
    all_come_back(&server).await;
    server.write_secret("of-the-day", "written").await;

    // And back to a plugin without the private half: a new KEK, a rotation that names the lost one, a plain restart.
    let new = KeyringFile::create();
    configure(&plugin, &settings(&new, &glass, ""));
    let second = another(&plugin, &key_id).await;
    let said = rotated(&plugin, &server, &etcd, "off the lost one");
    assert!(said.contains("Yes: nothing is stored under KEK ") && said.contains(&lost), "{said}");
    assert_eq!(etcd.key_ids("/registry/secrets/").await.into_keys().collect::<Vec<_>>(), [second.as_str()]);
    plugin.process.arguments_mut().truncate(3);
    configure(&plugin, &settings(&new, &glass, &format!("forget: [{lost}]")));
    server.stop();
    plugin.stop();
    plugin.restart().await;
    assert_eq!(plugin.wait_healthy().await, second);
    server.restart().await;
    all_come_back(&server).await;
    assert_eq!(server.read_secret("of-the-day").await, "written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_recipient_is_a_rotation_whose_yes_names_the_former_one() {
    let (keyring, first, second) = (KeyringFile::create(), BreakGlass::create(), BreakGlass::create());
    let (plugin, etcd, server) = cluster(&settings(&keyring, &first, "")).await;
    let key_id = plugin.wait_healthy().await;
    let former = kek(&plugin, "escrow")["version"].as_str().unwrap().to_owned();
    configure(&plugin, &settings(&keyring, &second, ""));
    let now = another(&plugin, &key_id).await;
    let said = rotated(&plugin, &server, &etcd, "off the former recipient");
    let yes = format!("Yes: nothing is stored under KEK escrow version {former}");
    assert!(said.contains(&yes) && said.contains("destroy every copy of the private half"), "{said}");
    assert_eq!(etcd.key_ids("/registry/secrets/").await.into_keys().collect::<Vec<_>>(), [now.as_str()]);

    // The keyring is rotated beside it, which is not asked to.
    let config = format!("--config={}", plugin.config_file().display());
    let journal = format!("--journal={}", server.folder().join("kek.json").display());
    let more = [
        "--rotate-kek",
        &config,
        &journal,
        "--settle=0s",
        "--compact",
        "--agreement-interval=1s",
        "--request-timeout=1s",
        "--snapshot-command=true",
    ];
    let rotated = run(&server, &etcd, "rotate-keys", &more);
    assert_eq!(rotated.status.code(), Some(0), "{}", text(&rotated));
    assert!(text(&rotated).contains("Yes: nothing is stored under KEK local version"), "{}", text(&rotated));
    all_come_back(&server).await;
}
