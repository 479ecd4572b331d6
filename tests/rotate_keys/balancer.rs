//! Two API servers behind one address, as on a managed control plane: neither can be asked by itself.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

use crate::control_plane::{ControlPlane, Shape};
use crate::objects::grant;
use crate::support::apiserver::ROTATOR;
use crate::support::free_port;

static CONNECTIONS: AtomicUsize = AtomicUsize::new(0);

/// Leads each connection to the next API server.
pub async fn balancer(plane: &ControlPlane) -> u16 {
    let port = free_port();
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let servers: Vec<_> =
        plane.servers.iter().map(|server| server.url().trim_start_matches("https://").to_owned()).collect();
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let server = servers[CONNECTIONS.fetch_add(1, SeqCst) % servers.len()].clone();
            tokio::spawn(async move {
                let mut server = TcpStream::connect(server).await.unwrap();
                let _ = copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_balancer_two_api_servers_that_disagree_are_noticed_and_nothing_is_called_proven() {
    let plane = ControlPlane::start(Shape::of(2)).await;
    plane.create_secrets("s", 60).await;
    let rights = plane.run("rotate-keys", &["--print-rbac"]).exits(0).out;
    grant(&plane, &rights.replace("/metrics", "/nothing")).await;
    let kubeconfig = plane.servers[0].kubeconfig(ROTATOR);
    let address = format!("localhost:{}", balancer(&plane).await);
    let text = std::fs::read_to_string(&kubeconfig).unwrap();
    std::fs::write(&kubeconfig, text.replace(&plane.servers[0].url(), &format!("https://{address}"))).unwrap();

    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..1);
    let new = plane.wait_key_id(0..1, &old).await;
    assert_eq!(plane.key_id(1).await, old, "the other node is left behind");
    let (kubeconfig, target) = (format!("--kubeconfig={}", kubeconfig.display()), format!("--key-id={new}"));
    let more = [&kubeconfig, "--accept-unproven", "--adoption-timeout=40s", &target];
    let ended = plane.run("rotate-keys", &more).exits(5);
    ended.says(&format!("API servers behind {address} do not store under the same key"));
    let before = plane.stored().await;
    assert!(before[&old] >= 60, "nothing was rewritten but the canary: {before:?}");
    assert!(CONNECTIONS.load(SeqCst) > 16);

    plane.keyrings[1].copy_from(&plane.keyrings[0]);
    plane.wait_key_id(1..2, &old).await;
    let more = [&kubeconfig, "--accept-unproven", "--adoption-timeout=40s", &target, "--resume", "--settle=0s"];
    let ended = plane.run("rotate-keys", &more).exits(8).says("Not proven");
    ended.says("their metrics cannot be read: let this user read /metrics of each API server");
    plane.check_all_under(&new).await;
    plane.check_secrets(1, "s", 60).await;
}
