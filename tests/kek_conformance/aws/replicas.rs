//! Which version is named: rotations at awkward moments, aliases, replicas, keys without material ids.

use std::sync::Arc;

use kube_envelope::kek::guard::GuardedKek;
use kube_envelope::kek::set::KekSet;
use kube_envelope::kek::{KekCause, KekVersion};
use kube_envelope::key_id::KeyId;
use kube_envelope::telemetry::Metrics;

use super::fake::{FakeBench, REGION};
use crate::bench::{Bench, config, dek};
use crate::support::fakes::aws::kms::{ACCOUNT, Key};

async fn guarded(bench: &FakeBench) -> KekSet {
    let kek = GuardedKek::new("it".into(), bench.kek().await, Arc::new(Metrics::new()));
    KekSet::new(vec![Arc::new(kek)], Vec::new()).expect("one KEK is distinct")
}

fn current(bench: &FakeBench) -> String {
    let kms = bench.kms.state();
    let id = kms.aliases["it"].clone();
    format!("{id}/{}", kms.keys[&id].current_material())
}

#[tokio::test]
async fn a_rotation_that_only_encrypt_has_seen_is_named_by_the_proving_unwrap() {
    let bench = FakeBench::start().await;
    let set = guarded(&bench).await;
    let before = current(&bench);
    {
        let mut kms = bench.kms.state();
        (kms.rotate_at_encrypt, kms.describe_lag) = (true, 3);
    }
    let (dek, context) = dek();
    let wraps = set.wrap_and_prove(&dek, &context, &|_| {}).await.expect("wrapped and proven");
    assert_ne!(wraps[0].version.version, before, "DescribeKey said so before and after, and was wrong");
    assert_eq!(wraps[0].version.version, current(&bench));
}

#[tokio::test]
async fn without_material_ids_in_answers_a_rotation_during_a_wrap_starts_the_wrap_again() {
    let bench = FakeBench::start().await;
    let set = guarded(&bench).await;
    {
        let mut kms = bench.kms.state();
        (kms.rotate_at_encrypt, kms.hide_material_of_decrypt) = (true, true);
    }
    let (dek, context) = dek();
    let wraps = set.wrap_and_prove(&dek, &context, &|_| {}).await.expect("wrapped and proven");
    assert_eq!(wraps[0].version.version, current(&bench));
    let requests = bench.kms.state().requests.clone();
    assert_eq!(requests.iter().filter(|request| *request == "Encrypt").count(), 2, "{requests:?}");
}

#[tokio::test]
async fn a_repointed_alias_is_another_version_and_the_former_key_still_opens() {
    let bench = FakeBench::start().await;
    let kek = bench.kek().await;
    let (dek, context) = dek();
    let wrapped = kek.wrap(&dek, &context).await.expect("wrap");
    bench.kms.state().add_key(Key::in_regions(&[REGION]), "it", false);
    let now = kek.version().await.expect("version");
    assert_eq!(now.lineage, wrapped.version.lineage);
    assert_ne!(now.version, wrapped.version.version);
    let unwrapped = kek.unwrap(&wrapped, &context).await.expect("the former key is asked by its own id");
    assert_eq!(unwrapped.version, wrapped.version);
}

#[tokio::test]
async fn a_removed_alias_is_a_wrong_setting_and_no_reason_to_wipe() {
    let bench = FakeBench::start().await;
    let kek = bench.kek().await;
    bench.kms.state().aliases.clear();
    let error = kek.version().await.expect_err("no key");
    assert_eq!(error.cause(), KekCause::Misconfigured, "{}", error.chain());
}

#[tokio::test]
async fn a_blob_that_names_no_key_is_rejected_and_not_taken_for_a_deleted_key() {
    let bench = FakeBench::start().await;
    let id = bench.kms.state().aliases["it"].clone();
    let key = config(&bench.item_of(&format!("arn:aws:kms:{REGION}:{ACCOUNT}:key/{id}")));
    let kek = key.open();
    let (dek, context) = dek();
    let wrapped = kek.wrap(&dek, &context).await.expect("wrap");
    bench.kms.state().decrypt_finds_no_key = true;
    let error = kek.unwrap(&wrapped, &context).await.expect_err("no key");
    assert_eq!(error.cause(), KekCause::Rejected, "{}", error.chain());
    bench.kms.state().keys.clear();
    let error = kek.unwrap(&wrapped, &context).await.expect_err("the key itself is gone");
    assert_eq!(error.cause(), KekCause::Denied, "{}", error.chain());
}

#[tokio::test]
async fn replicas_of_a_multi_region_key_give_one_key_id_and_open_each_others_wraps() {
    let bench = FakeBench::start().await;
    let id = bench.kms.state().add_key(Key::in_regions(&["eu-west-1", "us-east-1"]), "replicated", true);
    let at = |region: &str| config(&bench.item_of(&format!("arn:aws:kms:{region}:{ACCOUNT}:key/{id}")));
    let here = at("eu-west-1").open();
    let there = at("us-east-1").open();
    let nowhere = at("ap-south-1").open();
    let name = |version: &KekVersion| KeyId::derive(1, [version]);
    let (left, right) = (here.version().await.expect("version"), there.version().await.expect("version"));
    assert_eq!(name(&left), name(&right));
    let (dek, context) = dek();
    let wrapped = here.wrap(&dek, &context).await.expect("wrap");
    let unwrapped = there.unwrap(&wrapped, &context).await.expect("the other Region unwraps");
    assert_eq!((unwrapped.dek.expose(), unwrapped.version), (dek.expose(), right));
    assert_eq!(nowhere.version().await.expect_err("no replica there").cause(), KekCause::Denied);
}

#[tokio::test]
async fn a_key_without_material_ids_is_named_by_its_creation() {
    let bench = FakeBench::start().await;
    bench.change_key(|key| key.has_material_ids = false);
    let set = guarded(&bench).await;
    let (dek, context) = dek();
    let wraps = set.wrap_and_prove(&dek, &context, &|_| {}).await.expect("wrapped and proven");
    let id = bench.kms.state().aliases["it"].clone();
    assert_eq!(wraps[0].version.version, format!("{id}@1700000000125"));
    let error = bench.rotating().await.rotate().await.expect_err("it does not rotate");
    assert_eq!(error.cause(), KekCause::Misconfigured);
    assert!(error.to_string().contains("make a new key"), "{error}");
}

#[tokio::test]
async fn a_rotation_is_waited_for_until_describe_key_shows_it() {
    let bench = FakeBench::start().await;
    bench.kms.state().describe_lag = 1;
    let made = bench.rotating().await.rotate().await.expect("rotated");
    assert_eq!(made.version, current(&bench));
}
