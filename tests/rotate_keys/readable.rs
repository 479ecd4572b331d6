//! API servers that cannot read what another one stores, or store some resources otherwise: found, named, and nothing of
//! ours is left behind that would keep one from starting.

use crate::control_plane::{ControlPlane, Shape};
use crate::support::plugin::encryption_configuration;

const CANARY: &str = "/api/v1/namespaces/kube-envelope-canary/secrets/rotate-keys";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_canary_that_a_server_cannot_read_is_taken_away_again() {
    let mut plane = ControlPlane::start(Shape::of(2)).await;
    plane.create_secrets("s", 10).await;
    let old = plane.key_id(0).await;
    // Another cluster name: the same keys, bound to something else. What the API server has read stays in its cache.
    let config = plane.plugins[1].config_file();
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("cluster: test", "cluster: other")).unwrap();
    plane.plugins[1].stop();
    // It would not go on under another name with what it has stored.
    std::fs::remove_dir_all(plane.plugins[1].folder().join("state")).unwrap();
    plane.plugins[1].restart().await;
    plane.rotate_keyrings(0..2);
    plane.wait_key_id(0..2, &old).await;
    let ended = plane.run("rotate-keys", &["--adoption-timeout=3s"]).exits(5);
    let ended = ended.says("cannot read secrets that").says("was removed again");
    let named = [1, 0].map(|node| plane.servers[node].url().replace("https://", ""));
    assert!(named.iter().all(|name| ended.err.contains(name.as_str())), "{named:?}: {}", ended.err);
    assert_eq!(plane.servers[0].get(CANARY).await.unwrap().0, 404, "it would keep the other server from starting");
    assert!(plane.stored().await.contains_key(&old), "nothing was rewritten");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_has_another_provider_first_for_one_resource_is_named() {
    let mut plane = ControlPlane::start(Shape::of(2)).await;
    plane.create_secrets("s", 10).await;
    let key = "{aescbc: {keys: [{name: k, secret: c2VjcmV0IGlzIHNlY3VyZQ==}]}}";
    for node in 0..2 {
        let (kms, clear) = (plane.plugins[node].provider(), "{identity: {}}");
        // A name is unique in the whole file.
        let second = kms.replacen("name: ", "name: second-", 1);
        let roles = if node == 0 { [second.as_str(), key, clear] } else { [key, second.as_str(), clear] };
        let rest = encryption_configuration(&["secrets", "configmaps"], &[&kms, clear]);
        let roles = encryption_configuration(&["roles.rbac.authorization.k8s.io"], &roles);
        let roles = roles.split_once("resources:\n").unwrap().1;
        let server = &mut plane.servers[node];
        std::fs::write(server.encryption_file(), format!("{rest}{roles}")).unwrap();
        server.stop();
        server.restart().await;
    }
    plane.wait_endpoints(2).await;
    let old = plane.key_id(0).await;
    plane.rotate_keyrings(0..2);
    plane.wait_key_id(0..2, &old).await;
    let ended = plane.run("rotate-keys", &[]).exits(5);
    let ended = ended.says("does not store roles.rbac.authorization.k8s.io as the others do");
    assert!(ended.err.contains(&plane.servers[1].url().replace("https://", "")), "{}", ended.err);
}
