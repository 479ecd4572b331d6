//! The same behaviours in a token without AES-GCM, where AES key wrap is chosen by itself; and what happens to wraps
//! of the past when the mechanism changes.

use super::*;
use kube_envelope::kek::KekCause;

use crate::bench::{config, dek};

/// AES key wrap with padding.
struct KeyWrap;

impl Way for KeyWrap {
    const SETTING: &str = "";
    const LACKS: &[&str] = &["CKM_AES_GCM"];
    const MADE_BY: [&str; 3] = Automatic::MADE_BY;
    const OBJECTS: &[&str] = Automatic::OBJECTS;

    fn rights_off() -> Vec<Attribute> {
        vec![Attribute::Wrap(false), Attribute::Unwrap(false)]
    }
}

crate::conformance! {
    TokenBench<KeyWrap>;
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
async fn wraps_made_by_another_mechanism_open_after_a_change() {
    if run_elsewhere(concat!(module_path!(), "::wraps_made_by_another_mechanism_open_after_a_change"), &[]) {
        return;
    }
    let bench = TokenBench::<KeyWrap>::start().await;
    bench.tool(&["--keypairgen", "--key-type", "rsa:2048", "--label", "kube-envelope", "--id", "02"]);
    let by = async |setting: &str| config(&bench.item_by(setting, "kek", "kube-envelope")).open();
    let mut keks = vec![by("").await];
    for mechanism in ["aesKeyWrap", "aesKeyWrapPad", "rsaOaepSha1"] {
        keks.push(by(&format!("mechanism: {mechanism},")).await);
    }
    let mut lengths = Vec::new();
    for wrapping in &keks {
        let (dek, context) = dek();
        let wrapped = wrapping.wrap(&dek, &context).await.unwrap_or_else(|error| panic!("{}", error.chain()));
        lengths.push(wrapped.blob.len());
        for opening in &keks {
            let unwrapped =
                opening.unwrap(&wrapped, &context).await.unwrap_or_else(|error| panic!("{}", error.chain()));
            assert_eq!((unwrapped.dek.expose(), &unwrapped.version), (dek.expose(), &wrapped.version));
        }
    }
    assert_eq!(lengths, [60, 41, 41, 257], "each mechanism has made its own");
}

#[tokio::test]
async fn nothing_is_left_in_the_token_by_wraps_and_unwraps() {
    if run_elsewhere(concat!(module_path!(), "::nothing_is_left_in_the_token_by_wraps_and_unwraps"), KeyWrap::LACKS) {
        return;
    }
    let bench = TokenBench::<KeyWrap>::start().await;
    let kek = bench.kek().await;
    let (dek, context) = dek();
    let mut wrapped = kek.wrap(&dek, &context).await.expect("wrap");
    assert_eq!((wrapped.blob.len(), wrapped.blob[0]), (41, b'P'), "AES key wrap with padding was chosen by itself");
    kek.unwrap(&wrapped, &context).await.expect("unwrap");
    wrapped.blob[20] ^= 1;
    kek.unwrap(&wrapped, &context).await.expect_err("changed data");
    // Objects of every session of this process, the KEK's among them.
    let objects = bench.in_session(|session| session.find_objects(&[]).expect("a search"));
    assert_eq!(objects.len(), 1, "the key alone");
}

#[tokio::test]
async fn a_token_that_offers_no_mechanism_is_refused_at_the_start_with_the_names_of_what_it_offers() {
    const LACKS: &[&str] = &["CKM_AES_GCM", "CKM_AES_KEY_WRAP", "CKM_AES_KEY_WRAP_PAD", "CKM_RSA_PKCS_OAEP"];
    let name = "a_token_that_offers_no_mechanism_is_refused_at_the_start_with_the_names_of_what_it_offers";
    if run_elsewhere(&format!("{}::{name}", module_path!()), LACKS) {
        return;
    }
    let bench = TokenBench::<KeyWrap>::start().await;
    for setting in ["", "mechanism: aesGcm,"] {
        let error =
            config(&bench.item_by(setting, "kek", "kube-envelope")).open().version().await.expect_err("none fits");
        assert_eq!(error.cause(), KekCause::Misconfigured);
        let text = error.to_string();
        assert!(text.contains("CKM_AES_GCM") && text.contains("it offers CKM_"), "{text}");
        assert!(text.contains("CKM_AES_CBC"), "{text}");
    }
}
