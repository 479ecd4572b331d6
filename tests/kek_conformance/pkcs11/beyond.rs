//! What only `pkcs11` has: tokens by label, PINs that lock, keys told apart by their ids, modules.

use cryptoki::object::AttributeType;
use futures::future::join_all;
use kube_envelope::kek::{Kek, KekCause, KekError};

use super::*;
use crate::bench::{config, dek};

/// The rest of the test runs in a process of its own.
macro_rules! in_its_own_process {
    ($name:literal) => {
        if run_elsewhere(concat!(module_path!(), "::", $name), &[]) {
            return;
        }
    };
}

async fn refusal(kek: &dyn Kek) -> KekError {
    kek.version().await.expect_err("version fails")
}

async fn round_trip(kek: &dyn Kek) {
    let (dek, context) = dek();
    let wrapped = kek.wrap(&dek, &context).await.unwrap_or_else(|error| panic!("wrap: {}", error.chain()));
    kek.unwrap(&wrapped, &context).await.unwrap_or_else(|error| panic!("unwrap: {}", error.chain()));
}

#[tokio::test]
async fn a_wrong_pin_is_shown_once_and_a_new_one_is_read_from_the_file() {
    in_its_own_process!("a_wrong_pin_is_shown_once_and_a_new_one_is_read_from_the_file");
    let bench = Pkcs11Bench::start().await;
    std::fs::write(bench.folder.join("pin"), "0000").expect("written");
    let kek = bench.kek().await;
    let first = refusal(&*kek).await;
    assert_eq!(first.cause(), KekCause::Unauthenticated);
    assert!(first.to_string().contains("pinFile"), "{first}");
    for _ in 0..20 {
        let again = refusal(&*kek).await;
        assert_eq!(again.cause(), KekCause::Unauthenticated);
        assert!(again.to_string().contains("not shown again"), "{again}");
    }
    std::fs::write(bench.folder.join("pin"), PIN).expect("written");
    round_trip(&*kek).await;
}

#[tokio::test]
async fn a_token_that_is_not_there_is_unavailable_and_the_others_are_named() {
    in_its_own_process!("a_token_that_is_not_there_is_unavailable_and_the_others_are_named");
    let bench = Pkcs11Bench::start().await;
    let kek = config(&bench.item_with("another", "kube-envelope")).open();
    let error = refusal(&*kek).await;
    assert_eq!(error.cause(), KekCause::Unavailable);
    assert!(error.to_string().contains("\"another\"; there: \"kek\""), "{error}");
}

#[tokio::test]
async fn a_key_of_the_other_kind_is_named_with_the_setting_for_it() {
    in_its_own_process!("a_key_of_the_other_kind_is_named_with_the_setting_for_it");
    let bench = Pkcs11Bench::start().await;
    bench.tool(&["--keypairgen", "--key-type", "rsa:2048", "--label", "pair", "--id", "01"]);
    let error = refusal(&*config(&bench.item_with("kek", "pair")).open()).await;
    assert_eq!(error.cause(), KekCause::Misconfigured);
    assert!(error.to_string().contains("is an RSA key pair: set mechanism to rsaOaep"), "{error}");
}

#[tokio::test]
async fn two_tokens_of_one_label_are_misconfigured() {
    in_its_own_process!("two_tokens_of_one_label_are_misconfigured");
    let bench = Pkcs11Bench::start().await;
    init_token("kek");
    let error = config(&bench.item()).open().version().await.expect_err("which one?");
    assert_eq!(error.cause(), KekCause::Misconfigured);
}

#[tokio::test]
async fn a_key_that_is_not_visible_is_no_denial_and_is_never_created() {
    in_its_own_process!("a_key_that_is_not_visible_is_no_denial_and_is_never_created");
    let bench = Pkcs11Bench::start().await;
    let kek = config(&bench.item_with("kek", "missing")).open();
    assert_eq!(refusal(&*kek).await.cause(), KekCause::Unavailable);
    let (dek, context) = dek();
    assert_eq!(kek.wrap(&dek, &context).await.expect_err("no key").cause(), KekCause::Unavailable);
    let made = bench.in_session(|session| session.find_objects(&[Attribute::Label("missing".into())]));
    assert_eq!(made.expect("a search").len(), 0);
}

#[tokio::test]
async fn keys_that_cannot_be_told_apart_are_misconfigured() {
    in_its_own_process!("keys_that_cannot_be_told_apart_are_misconfigured");
    let bench = Pkcs11Bench::start().await;
    let kek = bench.kek().await;
    round_trip(&*kek).await;
    bench.make_key("kube-envelope", "01");
    assert_eq!(refusal(&*kek).await.cause(), KekCause::Misconfigured, "the same id twice");
    bench.tool(&["--keygen", "--key-type", "AES:32", "--label", "no-id", "--sensitive"]);
    let kek = config(&bench.item_with("kek", "no-id")).open();
    assert_eq!(refusal(&*kek).await.cause(), KekCause::Misconfigured, "no id");
}

#[tokio::test]
async fn the_highest_id_is_active_in_whatever_order_keys_are_made() {
    in_its_own_process!("the_highest_id_is_active_in_whatever_order_keys_are_made");
    let bench = Pkcs11Bench::start().await;
    bench.make_key("kube-envelope", "0100");
    bench.make_key("kube-envelope", "ff");
    let kek = bench.kek().await;
    let version = kek.version().await.expect("version").version;
    assert!(version.starts_with("0100-"), "{version}");
    let made = bench.rotating().await.rotate().await.expect("rotate");
    assert!(made.version.starts_with("0101-"), "{made:?}");
}

#[tokio::test]
async fn a_key_made_by_rotation_never_leaves_the_token() {
    in_its_own_process!("a_key_made_by_rotation_never_leaves_the_token");
    let bench = Pkcs11Bench::start().await;
    bench.rotating().await.rotate().await.expect("rotate");
    let attributes = bench.in_session(|session| {
        let made = session.find_objects(&[Attribute::Label("kube-envelope".into()), Attribute::Id(vec![2])]);
        let asked = [AttributeType::Sensitive, AttributeType::Extractable, AttributeType::Local];
        session.get_attributes(made.expect("a search")[0], &asked).expect("attributes")
    });
    assert_eq!(attributes, [Attribute::Sensitive(true), Attribute::Extractable(false), Attribute::Local(true)]);
}

#[tokio::test]
async fn a_file_that_is_not_a_module_is_unavailable_and_named() {
    in_its_own_process!("a_file_that_is_not_a_module_is_unavailable_and_named");
    let bench = Pkcs11Bench::start().await;
    let item =
        bench.item().replace(&bench.module.display().to_string(), &bench.folder.join("pin").display().to_string());
    let error = config(&item).open().version().await.expect_err("no module");
    assert_eq!(error.cause(), KekCause::Unavailable);
    assert!(error.to_string().contains("pin"), "{error}");
}

#[tokio::test]
async fn a_hundred_calls_at_once_all_succeed() {
    in_its_own_process!("a_hundred_calls_at_once_all_succeed");
    let bench = Pkcs11Bench::start().await;
    let kek = bench.kek().await;
    join_all((0..100).map(|_| round_trip(&*kek))).await;
}
