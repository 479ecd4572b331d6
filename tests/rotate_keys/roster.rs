//! Which API servers there are: each source that names one counts, and nothing is rewritten or proven against it.

use serde_json::json;

use crate::balancer::balancer;
use crate::control_plane::{ControlPlane, Shape};
use crate::objects::{delete, post};
use crate::support::ADMIN;
use crate::support::plugin::encryption_configuration;

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_that_stopped_within_the_hour_is_named_and_nothing_is_rewritten_until_it_is_settled() {
    let mut plane = ControlPlane::start(Shape::of(2)).await;
    plane.create_secrets("s", 10).await;
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..2);
    let new = plane.wait_key_id(0..2, &old).await;
    // An orderly end takes the Lease away; then only a Node tells of it.
    plane.servers[1].kill();
    let ended = plane.run("rotate-keys", &["--adoption-timeout=60s"]).exits(5);
    let ended = ended.says("on host control-plane-2 ran within the last hour but is not running now");
    assert!(plane.stored().await[&old] >= 10, "nothing was rewritten");
    let words = format!("{}{}", ended.out, ended.err);
    let lease = words.split("delete lease ").nth(1).unwrap().split(')').next().unwrap();
    delete(&plane, &format!("{LEASES}/{lease}")).await;
    plane.run("rotate-keys", &["--resume"]).exits(0).says("Yes");
    plane.check_all_under(&new).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_plane_node_without_an_api_server_is_named_unless_the_number_of_servers_is_given() {
    let plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 10).await;
    let old = plane.key_id(0).await;
    let node = |name: &str, address: &str| {
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "labels": {"node-role.kubernetes.io/control-plane": ""}},
            "status": {"addresses": [{"type": "InternalIP", "address": address}]},
        })
    };
    post(&plane, "/api/v1/nodes", &node("up", "10.99.0.1")).await;
    post(&plane, "/api/v1/nodes", &node("down", "10.99.0.7")).await;
    plane.rotate_keyrings(0..1);
    let new = plane.wait_key_id(0..1, &old).await;
    let ended = plane.run("rotate-keys", &["--adoption-timeout=3s"]).exits(5);
    ended.says("no API server was reached on control-plane Node down");
    plane.run("rotate-keys", &["--abort"]).exits(0);
    let ended = plane.run("rotate-keys", &["--adoption-timeout=3s", "--servers=2"]).exits(5);
    ended.says("--servers says 2 API server(s), and 1 were reached");
    plane.run("rotate-keys", &["--abort"]).exits(0);
    plane.run("rotate-keys", &["--servers=1"]).exits(0).says("Yes");
    plane.check_all_under(&new).await;
    plane.run("verify", &[]).exits(8).says("no API server was reached on control-plane Node down");
    plane.run("verify", &["--servers=2"]).exits(8).says("--servers says 2 API server(s), and 1 were reached");
    plane.run("verify", &["--servers=1"]).exits(0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_that_encrypts_secrets_alone_stops_the_rewrite_before_it_begins() {
    let resources = vec!["secrets", "configmaps", "roles.rbac.authorization.k8s.io"];
    let mut plane = ControlPlane::start(Shape { resources, in_clear: true, ..Shape::of(2) }).await;
    plane.create_secrets("s", 10).await;
    plane.encrypt().await;
    let right = std::fs::read_to_string(plane.servers[1].encryption_file()).unwrap();
    for (covered, missing) in [
        (&["secrets"][..], "does not cover configmaps"),
        (&["secrets", "configmaps"][..], "does not cover roles.rbac.authorization.k8s.io"),
    ] {
        let text = encryption_configuration(covered, &[&plane.plugins[1].provider(), "{identity: {}}"]);
        reconfigure(&mut plane, &text).await;
        plane.run("rotate-keys", &["--adoption-timeout=3s"]).exits(5).says(missing);
        plane.run("rotate-keys", &["--abort"]).exits(0);
    }
    assert_eq!(plane.etcd.key_id("/registry/secrets/default/s-0").await, None, "nothing was rewritten");
    reconfigure(&mut plane, &right).await;
    let new = plane.key_id(0).await;
    plane.run("rotate-keys", &[]);
    plane.check_all_under(&new).await;
}

async fn reconfigure(plane: &mut ControlPlane, text: &str) {
    let server = &mut plane.servers[1];
    std::fs::write(server.encryption_file(), text).unwrap();
    server.stop();
    server.restart().await;
    plane.wait_endpoints(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_balancer_each_api_server_is_known_by_its_own_metrics() {
    let plane = ControlPlane::start(Shape::of(2)).await;
    plane.create_secrets("s", 40).await;
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..1);
    let new = plane.wait_key_id(0..1, &old).await;
    let address = format!("https://localhost:{}", balancer(&plane).await);
    let kubeconfig = plane.servers[0].kubeconfig(ADMIN);
    let text = std::fs::read_to_string(&kubeconfig).unwrap();
    let through = plane.folder.path().join("kubeconfig");
    std::fs::write(&through, text.replace(&plane.servers[0].url(), &address)).unwrap();
    let (kubeconfig, server) = (format!("--kubeconfig={}", through.display()), format!("--server={address}"));

    let ended = plane.run("rotate-keys", &[&kubeconfig, &server, "--adoption-timeout=5s"]).exits(5);
    ended.says("report different keys");
    plane.keyrings[1].copy_from(&plane.keyrings[0]);
    plane.wait_key_id(1..2, &old).await;
    // The API servers ask their plugins for Status every 20 s; the five seconds of before are in the journal.
    plane.run("rotate-keys", &["--resume", "--adoption-timeout=2m"]).exits(0).says("Yes");
    let journal = plane.journal().unwrap();
    assert_eq!(journal["adoption"]["servers"].as_array().unwrap().len(), 2, "{}", journal["adoption"]);
    plane.check_all_under(&new).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_right_to_list_nodes_nothing_is_proven_unless_the_servers_are_counted() {
    let plane = ControlPlane::start(Shape::of(1)).await;
    plane.create_secrets("s", 10).await;
    let rights = plane.run("rotate-keys", &["--print-rbac"]).exits(0).out;
    crate::objects::grant(&plane, &rights.replace("resources: [nodes]", "resources: [nothing]")).await;
    let kubeconfig =
        format!("--kubeconfig={}", plane.servers[0].kubeconfig(crate::support::apiserver::ROTATOR).display());
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..1);
    plane.wait_key_id(0..1, &old).await;
    plane.run("rotate-keys", &[&kubeconfig]).exits(8).says("the control-plane Nodes may not be listed");
    plane.run("rotate-keys", &[&kubeconfig, "--servers=1"]).exits(0).says("Yes: nothing is stored under ");
}
