//! The second search of a rotation looks at what has changed since the first: it must find what another search of everything
//! would, or say that it cannot tell.

use kube_envelope::etcd::{EtcdAccess, EtcdClusters};
use kube_envelope::rotation::cluster::key_id_hash::KeyIdHash;
use kube_envelope::rotation::cluster::resources::Resource;
use kube_envelope::rotation::leftovers::judge::Expected;
use kube_envelope::rotation::leftovers::scan::{Scan, scan_changes, scan_clusters};
use prost::Message;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::support::Etcd;
use crate::support::etcd::EncryptedObject;

const PREFIX: &str = "/registry";

fn expected(target: &str) -> Expected {
    let resource =
        |plural: &str| Resource { group: String::new(), version: "v1".into(), plural: plural.into(), namespaced: true };
    Expected {
        resources: vec![(resource("secrets"), "p".to_owned().into())],
        targets: [("p".into(), KeyIdHash::of(target))].into(),
        served: vec![resource("configmaps")],
        patterns: vec![("secrets".into(), true)],
    }
}

fn under(key_id: &str) -> Vec<u8> {
    let object =
        EncryptedObject { key_id: key_id.into(), encrypted_dek_source: vec![7; 111], ..EncryptedObject::default() };
    [b"k8s:enc:kms:v2:p:".as_slice(), &object.encode_to_vec()].concat()
}

struct Searched {
    etcd: Etcd,
    clusters: EtcdClusters,
}

impl Searched {
    async fn start() -> Self {
        let etcd = Etcd::start().await;
        etcd.put("/registry/secrets/default/first", &under("new")).await;
        let access = EtcdAccess { endpoints: vec![etcd.url().to_owned()], ..EtcdAccess::default() };
        let clusters = EtcdClusters::connect(&access, "/registry/").await.unwrap();
        Self { etcd, clusters }
    }

    async fn everything(&self) -> Scan {
        scan_clusters(&self.clusters, PREFIX, &expected("new")).await.unwrap()
    }

    async fn changes(&self, earlier: &Scan) -> Option<Scan> {
        scan_changes(&self.clusters, PREFIX, &expected("new"), earlier).await.unwrap()
    }
}

/// Groups come in the order in which their first value was met. The value that was stored last may be gone again, which only
/// changes tell.
fn comparable(scan: &Scan) -> serde_json::Value {
    let mut scan = serde_json::to_value(scan).unwrap();
    scan["clusters"][0]["newest"] = serde_json::Value::Null;
    scan["groups"].as_array_mut().unwrap().sort_by_key(ToString::to_string);
    scan
}

#[tokio::test]
async fn it_finds_what_a_search_of_everything_finds() {
    let searched = Searched::start().await;
    let mut random = StdRng::seed_from_u64(1);
    let mut earlier = searched.everything().await;
    for round in 0..30 {
        for _ in 0..random.random_range(0..20) {
            let folder = ["secrets", "configmaps"][random.random_range(0..2)];
            let key = format!("/registry/{folder}/default/{}", random.random_range(0..12));
            match (folder, random.random_range(0..3)) {
                (_, 0) => searched.etcd.delete(&key).await,
                ("secrets", _) => searched.etcd.put(&key, &under("new")).await,
                _ => searched.etcd.put(&key, b"k8s\0in clear").await,
            }
        }
        let now = searched.changes(&earlier).await.expect("every change is known and clean");
        assert_eq!(comparable(&now), comparable(&searched.everything().await), "round {round}");
        earlier = now;
    }
}

#[tokio::test]
async fn it_says_so_where_changes_do_not_tell_everything() {
    let searched = Searched::start().await;
    let (secret, etcd) = ("/registry/secrets/default/a", &searched.etcd);
    let clean = searched.everything().await;

    etcd.put(secret, &under("old")).await;
    assert!(searched.changes(&clean).await.is_none(), "a leftover is there");
    let left = searched.everything().await;
    etcd.put(secret, &under("new")).await;
    assert!(searched.changes(&clean).await.is_none(), "a leftover was there and is superseded");
    assert!(searched.changes(&left).await.is_none(), "a leftover was counted");

    let clean = searched.everything().await;
    etcd.put(secret, &under("new")).await;
    let now = searched.clusters.clusters[0].revision().await.unwrap();
    searched.clusters.clusters[0].compact(now).await.unwrap();
    assert!(searched.changes(&clean).await.is_none(), "what the key held before is compacted");
    etcd.put(secret, &under("new")).await;
    searched.clusters.clusters[0].compact(now + 1).await.unwrap();
    assert!(searched.changes(&clean).await.is_none(), "the change itself is compacted");

    let mut mixed = searched.everything().await;
    mixed.clusters[0].from_revision -= 1;
    assert!(searched.changes(&mixed).await.is_none(), "it was read as of two revisions");

    let clean = searched.everything().await;
    etcd.put("/other/secrets/default/a", &under("old")).await;
    assert!(searched.changes(&clean).await.is_none(), "another API server's value is under a former key");
}
