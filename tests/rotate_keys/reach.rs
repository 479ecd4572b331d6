//! How the API servers are reached: through a proxy, through a balancer with another authority, or not at all.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use crate::control_plane::{BINARY, ControlPlane, Ended, Shape};
use crate::proxy::Proxy;
use crate::support::ADMIN;

/// An HTTP proxy that tunnels. Its URL, and how many tunnels it has opened.
async fn tunnels() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let opened = Arc::new(AtomicUsize::new(0));
    let count = opened.clone();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let count = count.clone();
            tokio::spawn(async move {
                let mut client = BufReader::new(client);
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    client.read_until(b'\n', &mut head).await.unwrap();
                }
                let head = String::from_utf8(head).unwrap();
                let target = head.strip_prefix("CONNECT ").unwrap().split(' ').next().unwrap().to_owned();
                let mut server = TcpStream::connect(target).await.unwrap();
                count.fetch_add(1, SeqCst);
                client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                let _ = copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    (url, opened)
}

/// Runs `verify` in an environment of its own.
fn verify(plane: &ControlPlane, more: &[&str], environment: &[(&str, &str)]) -> Ended {
    let mut command = Command::new(BINARY);
    command.args(plane.arguments("verify", more)).envs(environment.iter().copied());
    Ended::of(&tokio::task::block_in_place(|| command.output().unwrap()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_is_used_where_kubectl_would_use_it() {
    let plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 5).await;
    let (proxy, opened) = tunnels().await;
    verify(&plane, &[], &[("HTTPS_PROXY", &proxy)]).exits(0);
    assert!(opened.swap(0, SeqCst) > 0, "it went through the proxy");
    verify(&plane, &[], &[("HTTPS_PROXY", &proxy), ("NO_PROXY", "10.99.0.0/16")]).exits(0);
    assert_eq!(opened.load(SeqCst), 0, "the address is excluded");

    let text = std::fs::read_to_string(plane.servers[0].kubeconfig(ADMIN)).unwrap();
    let file = plane.folder.path().join("kubeconfig-proxy");
    std::fs::write(&file, text.replace("    server: ", &format!("    proxy-url: {proxy}\n    server: "))).unwrap();
    let kubeconfig = format!("--kubeconfig={}", file.display());
    verify(&plane, &[&kubeconfig], &[("NO_PROXY", "*")]).exits(0);
    assert!(opened.load(SeqCst) > 0, "the kubeconfig's own proxy is always used");
    std::fs::write(&file, text.replace("    server: ", "    proxy-url: ftp://127.0.0.1\n    server: ")).unwrap();
    verify(&plane, &[&kubeconfig], &[]).exits(2).says("proxy-url in the kubeconfig").says("socks5://HOST:PORT");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_balancer_with_a_path_and_another_authority_the_servers_are_met_and_the_flag_is_named() {
    let plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 5).await;
    let proxy = Proxy::before(&plane).await;
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..1);
    plane.wait_key_id(0..1, &old).await;
    let more = [&proxy.kubeconfig, "--servers=2", "--adoption-timeout=3s"];
    plane.run("rotate-keys", &more).exits(5).says("--servers says 2 API server(s)").says("--server-ca names it");
    plane.run("rotate-keys", &["--abort"]).exits(0);
    // It is met through the balancer, by its own metrics.
    plane.run("rotate-keys", &[&proxy.kubeconfig]).exits(0).says("Yes: ").says("--server-ca names it");
    let authority = format!("--server-ca={}", plane.etcd.folder().join("authority.crt").display());
    let ended = plane.run("rotate-keys", &[&proxy.kubeconfig, &authority]).exits(9);
    assert!(!ended.err.contains("invalid peer certificate"), "{}", ended.err);
    plane.run("verify", &[&proxy.kubeconfig, &authority]).exits(0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_that_does_not_answer_is_said_not_to_answer() {
    let mut plane = ControlPlane::start(Shape::of(1)).await;
    plane.servers[0].stop();
    let address = plane.servers[0].url().trim_start_matches("https://").to_owned();
    for (command, more) in [("rotate-keys", &["--plan"][..]), ("rotate-keys", &[]), ("verify", &[])] {
        let ended = plane.run(command, more).exits(1).says("refused").says(&address);
        assert!(!ended.err.contains("metrics show nothing"), "{}", ended.err);
    }
}
