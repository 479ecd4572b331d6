//! The health endpoints: where they listen, and that whatever happens there costs them alone.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::support::{KeyringFile, Plugin, STARTS_WITHIN, wait_until};
use crate::{path, run};

/// Starts the plugin again with other settings for `health`.
fn restart_with(plugin: &mut Plugin, health: &str) {
    plugin.kill();
    let text = std::fs::read_to_string(plugin.config_file()).unwrap();
    let kept: Vec<_> = text.lines().filter(|line| !line.starts_with("health:")).collect();
    std::fs::write(plugin.config_file(), format!("{}\nhealth: {health}\n", kept.join("\n"))).unwrap();
    plugin.process.restart();
}

fn port(plugin: &Plugin) -> u16 {
    plugin.health_url().rsplit(':').next().unwrap().parse().unwrap()
}

/// Sends `head` and gives the status line of the answer.
fn ask(plugin: &Plugin, head: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port(plugin))).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(format!("{head}\r\n\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.lines().next().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_taken_port_costs_the_health_endpoints_until_it_is_free() {
    let keyring = KeyringFile::create();
    let mut plugin = Plugin::spawn(&keyring.settings("taken"));
    plugin.kill();
    let other = TcpListener::bind(("127.0.0.1", port(&plugin))).unwrap();
    plugin.restart().await;
    plugin.wait_healthy().await;
    wait_until("it is said", STARTS_WITHIN, async || plugin.process.log().contains("cannot serve health.listen")).await;
    drop(other);
    wait_until("the endpoints are there", STARTS_WITHIN, async || {
        TcpStream::connect(("127.0.0.1", port(&plugin))).is_ok()
    })
    .await;
    assert_eq!(plugin.get("/livez"), "ok");
    assert!(plugin.process.says("cannot serve health.listen"));
    assert_eq!(plugin.process.log().matches("cannot serve health.listen").count(), 1, "said once");
}

/// Ten thousand peers, idle or in the middle of a request: RPCs and probes are answered while they come.
#[tokio::test]
async fn ten_thousand_connections_hold_up_neither_rpcs_nor_probes() {
    const PEERS: usize = 10_000;
    /// More than the plugin allows, and few enough for any limit of open files.
    const HELD: usize = 300;
    let keyring = KeyringFile::create();
    let plugin = Plugin::start(&keyring.settings("crowded")).await;
    plugin.wait_healthy().await;
    let mut peers = VecDeque::with_capacity(HELD);
    for number in 1..=PEERS {
        peers.push_back(peer(&plugin, number));
        peers.drain(..peers.len().saturating_sub(HELD));
        if number % 1_000 == 0 {
            // By a connection of its own, which takes a descriptor.
            wait_until("RPCs are answered", STARTS_WITHIN, async || plugin.status().await.is_some()).await;
            // Like the kubelet's, a probe may fail once.
            wait_until("probes are answered", STARTS_WITHIN, async || is_alive(&plugin)).await;
        }
    }
    let open = std::fs::read_dir(format!("/proc/{}/fd", plugin.process.id())).unwrap().count();
    assert!(open < 200, "the plugin has {open} descriptors open while {} peers are there", peers.len());
}

/// A connection on which nothing more comes.
fn peer(plugin: &Plugin, number: usize) -> TcpStream {
    let mut peer = TcpStream::connect(("127.0.0.1", port(plugin))).unwrap();
    if number.is_multiple_of(2) {
        let _ = peer.write_all(b"GET /metrics HTTP/1.1\r\nHost: loc");
    }
    peer
}

fn is_alive(plugin: &Plugin) -> bool {
    let mut answer = String::new();
    let asked = TcpStream::connect(("127.0.0.1", port(plugin))).and_then(|mut stream| {
        stream.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
        stream.read_to_string(&mut answer)
    });
    asked.is_ok() && answer.starts_with("HTTP/1.1 200 ")
}

#[tokio::test]
async fn a_request_that_never_ends_is_given_up() {
    let keyring = KeyringFile::create();
    let plugin = Plugin::start(&keyring.settings("slow")).await;
    plugin.wait_healthy().await;
    for begun in ["", "GET /livez HTTP/1.1\r\nHost: local"] {
        let mut peer = TcpStream::connect(("127.0.0.1", port(&plugin))).unwrap();
        peer.write_all(begun.as_bytes()).unwrap();
        peer.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let started = Instant::now();
        let mut answer = Vec::new();
        let _ = peer.read_to_end(&mut answer);
        assert!(started.elapsed() < Duration::from_secs(15), "{begun:?}: {:?}", started.elapsed());
    }
}

/// DNS rebinding: a web page in a browser on this machine asks under its own name.
#[tokio::test]
async fn a_foreign_host_header_is_refused() {
    let keyring = KeyringFile::create();
    let mut plugin = Plugin::start(&keyring.settings("named")).await;
    plugin.wait_healthy().await;
    let names = |plugin: &Plugin| {
        ["localhost", "127.0.0.1:8380", "[::1]", "evil.example:8380", "node.example"]
            .map(|host| ask(plugin, &format!("GET /status HTTP/1.1\r\nHost: {host}")).contains(" 200 "))
    };
    assert_eq!(names(&plugin), [true, true, true, false, false]);
    assert!(!ask(&plugin, "GET http://evil.example/status HTTP/1.1\r\nHost: localhost").contains(" 200 "));
    let listen = format!("{{ listen: \"127.0.0.1:{}\", hosts: [node.example] }}", port(&plugin));
    restart_with(&mut plugin, &listen);
    plugin.wait_healthy().await;
    assert_eq!(names(&plugin), [true, true, true, false, true]);
}

#[tokio::test]
async fn health_listens_on_a_unix_socket_or_not_at_all() {
    let keyring = KeyringFile::create();
    let mut plugin = Plugin::start(&keyring.settings("elsewhere")).await;
    let key_id = plugin.wait_healthy().await;
    let socket = plugin.folder().join("health.sock");
    restart_with(&mut plugin, &format!("{{ listen: \"unix://{}\" }}", socket.display()));
    plugin.wait_healthy().await;
    let status = || run(&["status", "--config", path(&plugin.config_file())]);
    let shown = status();
    assert!(shown.code == Some(0) && shown.out.contains(&key_id), "{}{}", shown.out, shown.error);
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&socket).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);

    restart_with(&mut plugin, "{ listen: off }");
    plugin.wait_healthy().await;
    assert!(TcpStream::connect(("127.0.0.1", port(&plugin))).is_err());
    let refused = run(&["status", "--config", path(&plugin.config_file())]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.error.contains("health.listen is off in the configuration"), "{}", refused.error);
}
