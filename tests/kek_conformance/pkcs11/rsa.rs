//! The same behaviours with a pair of RSA keys. SoftHSM knows RSA-OAEP with SHA-1 alone.

use cryptoki::object::{AttributeType, ObjectClass};

use super::*;
use kube_envelope::kek::KekCause;

use crate::bench::{config, dek};

/// RSA-OAEP with SHA-1.
struct Rsa;

impl Way for Rsa {
    const SETTING: &str = "mechanism: rsaOaepSha1,";
    const MADE_BY: [&str; 3] = ["--keypairgen", "--key-type", "rsa:2048"];
    const OBJECTS: &[&str] = &["privkey", "pubkey"];
    const VERSION_THAT_NEVER_WAS: &str = "63-a1b2c3d4e5f60718";
}

crate::conformance! {
    TokenBench<Rsa>;
    what_is_wrapped_unwraps,
    the_profile_of_a_key_is_told,
    a_wrap_names_the_active_version,
    another_instance_unwraps,
    another_context_is_rejected: "the mechanism takes no associated data: the DEK's id is checked after every unwrap instead, see set.rs",
    a_tampered_blob_is_rejected,
    a_blob_of_another_key_is_rejected,
    two_keys_have_two_lineages,
    a_version_text_of_another_kind_is_refused_without_a_remote_call,
    a_version_that_never_was_is_unknown,
    a_rotated_key_is_seen,
    the_rotating_part_rotates,
    old_versions_still_open,
    a_recreated_key_is_another_version,
    a_disabled_key_is_denied,
    a_destroyed_key_is_gone_definitely,
    a_withdrawn_permission_is_denied: "a PIN opens the whole token; PKCS#11 has no permissions for one key",
    expired_credentials_are_renewed,
    revoked_credentials_are_unauthenticated,
    the_end_of_the_credentials_is_known: "a token does not tell when a PIN expires",
    a_clock_that_is_off_is_known: "a module is called, not asked over HTTP: there is no server with a clock",
    a_throttled_call_is_throttled: "PKCS#11 has no return value for too many calls",
    a_server_error_is_unavailable: "a module is called, not asked over HTTP; its errors are mapped in failure.rs",
    a_slow_server_meets_the_deadline: "SoftHSM is never slow",
    a_cut_connection_is_unavailable: "a module is called, not asked over a connection",
    an_unreachable_server_is_unavailable: "a module is called, not asked over a connection; see beyond.rs",
    a_wrong_certificate_is_refused: "a module is called, not asked over TLS",
    the_key_exchange_offered_first_is_post_quantum: "a module is called, not asked over TLS",
    a_redirect_is_not_followed: "a module is called, not asked over HTTP",
    a_proxy_is_used_where_it_is_named: "a module is called, not asked over HTTP",
    an_oversized_answer_is_not_read: "a module is called, not asked over HTTP",
    garbage_in_an_answer_is_unavailable: "a module is called, not asked over HTTP",
    the_kek_works_again_after_faults: "a module is called, not asked over a connection",
}

#[tokio::test]
async fn a_pair_made_by_rotation_is_as_long_as_the_former_and_never_leaves_the_token() {
    if run_elsewhere(
        concat!(module_path!(), "::a_pair_made_by_rotation_is_as_long_as_the_former_and_never_leaves_the_token"),
        &[],
    ) {
        return;
    }
    let bench = TokenBench::<Rsa>::start().await;
    bench.rotating().await.rotate().await.expect("rotate");
    let wanted = [Attribute::Label("kube-envelope".into()), Attribute::Id(vec![2])];
    bench.in_session(|session| {
        let of_class =
            |class| session.find_objects(&[&wanted[..], &[Attribute::Class(class)]].concat()).expect("a search");
        let private = of_class(ObjectClass::PRIVATE_KEY)[0];
        let asked = [AttributeType::Sensitive, AttributeType::Extractable, AttributeType::Local];
        let attributes = session.get_attributes(private, &asked).expect("attributes");
        assert_eq!(attributes, [Attribute::Sensitive(true), Attribute::Extractable(false), Attribute::Local(true)]);
        let public = of_class(ObjectClass::PUBLIC_KEY)[0];
        let bits = session.get_attributes(public, &[AttributeType::ModulusBits]).expect("attributes");
        assert_eq!(bits, [Attribute::ModulusBits(2048.into())]);
    });
}

#[tokio::test]
async fn a_private_key_without_its_public_half_opens_and_is_denied_for_wraps() {
    if run_elsewhere(
        concat!(module_path!(), "::a_private_key_without_its_public_half_opens_and_is_denied_for_wraps"),
        &[],
    ) {
        return;
    }
    let bench = TokenBench::<Rsa>::start().await;
    let kek = bench.kek().await;
    let (dek, context) = dek();
    let wrapped = kek.wrap(&dek, &context).await.expect("wrap");
    bench.tool(&["--delete-object", "--type", "pubkey", "--id", "01"]);
    kek.unwrap(&wrapped, &context).await.expect("unwrap");
    let error = kek.wrap(&dek, &context).await.expect_err("no public key");
    assert_eq!(error.cause(), KekCause::Denied);
    assert!(error.to_string().contains("public half"), "{error}");
}

#[tokio::test]
async fn parameters_that_the_token_does_not_take_are_misconfigured() {
    if run_elsewhere(concat!(module_path!(), "::parameters_that_the_token_does_not_take_are_misconfigured"), &[]) {
        return;
    }
    let bench = TokenBench::<Rsa>::start().await;
    let item = bench.item_by("mechanism: rsaOaep,", "kek", "kube-envelope");
    let kek = config(&item).open();
    let (dek, context) = dek();
    let error = kek.wrap(&dek, &context).await.expect_err("SHA-256");
    assert_eq!(error.cause(), KekCause::Misconfigured, "{}", error.chain());
    assert!(error.to_string().contains("name another mechanism"), "{error}");
}
