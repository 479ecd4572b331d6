//! The behaviours: what the rest of the program relies on, whatever the kind.

mod remote;

use std::sync::Arc;

use kube_envelope::crypto::secret::DekId;
use kube_envelope::kek::guard::GuardedKek;
use kube_envelope::kek::{Kek, KekCause, KekError, KekVersion, MAX_VERSION_BYTES, WrapContext, WrappedDek};
use kube_envelope::telemetry::Metrics;

pub use self::remote::*;
use crate::bench::{Authenticates, Bench, Disables, Permits, Recreates, Remote, config, dek};

/// The list. A kind that leaves one out does not compile.
#[allow(dead_code, reason = "only its making is checked, by the compiler")]
pub struct All {
    pub what_is_wrapped_unwraps: (),
    pub the_profile_of_a_key_is_told: (),
    pub a_wrap_names_the_active_version: (),
    pub another_instance_unwraps: (),
    pub another_context_is_rejected: (),
    pub a_tampered_blob_is_rejected: (),
    pub a_blob_of_another_key_is_rejected: (),
    pub two_keys_have_two_lineages: (),
    pub a_version_text_of_another_kind_is_refused_without_a_remote_call: (),
    pub a_version_that_never_was_is_unknown: (),
    pub a_rotated_key_is_seen: (),
    pub the_rotating_part_rotates: (),
    pub old_versions_still_open: (),
    pub a_recreated_key_is_another_version: (),
    pub a_disabled_key_is_denied: (),
    pub a_destroyed_key_is_gone_definitely: (),
    pub a_withdrawn_permission_is_denied: (),
    pub expired_credentials_are_renewed: (),
    pub revoked_credentials_are_unauthenticated: (),
    pub the_end_of_the_credentials_is_known: (),
    pub a_clock_that_is_off_is_known: (),
    pub a_throttled_call_is_throttled: (),
    pub a_server_error_is_unavailable: (),
    pub a_slow_server_meets_the_deadline: (),
    pub a_cut_connection_is_unavailable: (),
    pub an_unreachable_server_is_unavailable: (),
    pub a_wrong_certificate_is_refused: (),
    pub the_key_exchange_offered_first_is_post_quantum: (),
    pub a_redirect_is_not_followed: (),
    pub a_proxy_is_used_where_it_is_named: (),
    pub an_oversized_answer_is_not_read: (),
    pub garbage_in_an_answer_is_unavailable: (),
    pub the_kek_works_again_after_faults: (),
}

pub async fn what_is_wrapped_unwraps(bench: &impl Bench) {
    let kek = bench.kek().await;
    let (dek, context) = dek();
    let wrapped = kek.wrap(&dek, &context).await.expect("wrap");
    let unwrapped = kek.unwrap(&wrapped, &context).await.expect("unwrap");
    assert_eq!(unwrapped.dek.expose(), dek.expose());
    assert_eq!(unwrapped.version, wrapped.version);
    assert!(!wrapped.blob.windows(32).any(|part| part == dek.expose()), "the blob holds the DEK in clear");
}

/// With no more rights than the plugin has. The version is not of a time to come.
pub async fn the_profile_of_a_key_is_told(bench: &impl Bench) {
    let profile = config(&bench.item()).profile().await.expect("a profile");
    let now = jiff::Timestamp::now();
    let day = jiff::SignedDuration::from_hours(24);
    assert!(profile.created.is_none_or(|created| created.duration_since(now) < day), "{profile:?}");
    assert!(profile.advice.iter().all(|one| !one.finding.is_empty() && !one.advice.is_empty()), "{profile:?}");
}

pub async fn a_wrap_names_the_active_version(bench: &impl Bench) {
    let kek = bench.kek().await;
    let (wrapped, _) = wrap(&*kek).await;
    let version = kek.version().await.expect("version");
    assert_eq!(wrapped.version, version);
    assert_eq!(version.lineage, kek.lineage());
    assert!(version.version.len() <= MAX_VERSION_BYTES, "{version:?} is stored with every object");
}

pub async fn another_instance_unwraps(bench: &impl Bench) {
    let (first, second) = (bench.kek().await, bench.kek().await);
    assert_eq!(first.lineage(), second.lineage());
    assert_eq!(first.version().await.expect("version"), second.version().await.expect("version"));
    let (wrapped, context) = wrap(&*first).await;
    second.unwrap(&wrapped, &context).await.expect("another node unwraps");
}

pub async fn another_context_is_rejected(bench: &impl Bench) {
    let kek = bench.kek().await;
    let (wrapped, context) = wrap(&*kek).await;
    let other_cluster = WrapContext { cluster: "another".parse().expect("a name"), ..context.clone() };
    let other_dek = WrapContext { dek_id: DekId([0; 16]), ..context };
    for wrong in [other_cluster, other_dek] {
        assert_cause(kek.unwrap(&wrapped, &wrong).await, &[KekCause::Rejected], &format!("{wrong:?}"));
    }
}

pub async fn a_tampered_blob_is_rejected(bench: &impl Bench) {
    let kek = bench.kek().await;
    let (wrapped, context) = wrap(&*kek).await;
    let length = wrapped.blob.len();
    let flipped = [0, length / 2, length - 1].map(|at| {
        let mut blob = wrapped.blob.clone();
        blob[at] ^= 1;
        (format!("byte {at} of {length} changed"), blob)
    });
    let cut = [0, 1, length / 2, length - 1].map(|to| (format!("cut to {to}"), wrapped.blob[..to].to_vec()));
    let longer = [(String::from("longer"), [wrapped.blob.as_slice(), &[0]].concat())];
    for (what, blob) in flipped.into_iter().chain(cut).chain(longer) {
        let tampered = WrappedDek { version: wrapped.version.clone(), blob };
        assert_cause(kek.unwrap(&tampered, &context).await, &[KekCause::Rejected], &what);
    }
    kek.unwrap(&wrapped, &context).await.expect("the blob itself still opens");
}

pub async fn a_blob_of_another_key_is_rejected(bench: &impl Bench) {
    let (kek, other) = (bench.kek().await, bench.other_kek().await);
    let (dek, context) = dek();
    let version = kek.version().await.expect("version");
    let foreign = WrappedDek { version, ..other.wrap(&dek, &context).await.expect("wrap") };
    assert_cause(kek.unwrap(&foreign, &context).await, &[KekCause::Rejected], "foreign blob");
}

pub async fn two_keys_have_two_lineages(bench: &impl Bench) {
    assert_ne!(bench.kek().await.lineage(), bench.other_kek().await.lineage());
}

pub async fn a_version_text_of_another_kind_is_refused_without_a_remote_call(bench: &impl Bench) {
    let kek = bench.kek().await;
    let (wrapped, context) = wrap(&*kek).await;
    let before = bench.requests();
    for text in ["", "?", "no such version", "1@", "@1", "\u{0}", &"9".repeat(400)] {
        let version = KekVersion { version: text.into(), ..wrapped.version.clone() };
        let unknown = WrappedDek { version, ..wrapped.clone() };
        assert_cause(kek.unwrap(&unknown, &context).await, &[KekCause::UnknownVersion], text);
    }
    assert_eq!(bench.requests(), before, "the backend was asked");
}

pub async fn a_version_that_never_was_is_unknown(bench: &impl Bench) {
    let kek = bench.kek().await;
    let (wrapped, context) = wrap(&*kek).await;
    let version = KekVersion { version: bench.version_that_never_was(), ..wrapped.version.clone() };
    let unknown = WrappedDek { version, ..wrapped };
    assert_cause(kek.unwrap(&unknown, &context).await, &[KekCause::UnknownVersion], "a version that never was");
}

pub async fn a_rotated_key_is_seen(bench: &impl Bench) {
    let kek = bench.kek().await;
    let before = kek.version().await.expect("version");
    bench.rotate().await;
    let after = kek.version().await.expect("version after the rotation");
    assert_ne!(before.version, after.version);
    assert_eq!(before.lineage, after.lineage);
    let (wrapped, context) = wrap(&*kek).await;
    assert_eq!(wrapped.version, after, "wraps go on under the new version");
    assert_eq!(kek.unwrap(&wrapped, &context).await.expect("unwrap").version, after);
}

pub async fn the_rotating_part_rotates(bench: &impl Bench) {
    let kek = bench.kek().await;
    let before = kek.version().await.expect("version");
    let made = bench.rotating().await.rotate().await.expect("rotate");
    assert_ne!(made, before);
    assert_eq!(kek.version().await.expect("version after the rotation"), made);
}

pub async fn old_versions_still_open(bench: &impl Bench) {
    let kek = bench.kek().await;
    let (wrapped, context) = wrap(&*kek).await;
    bench.rotate().await;
    bench.rotate().await;
    let unwrapped = kek.unwrap(&wrapped, &context).await.expect("an old version unwraps");
    assert_eq!(unwrapped.version, wrapped.version, "and says that it was the old one");
}

pub async fn a_recreated_key_is_another_version(bench: &impl Recreates) {
    let kek = bench.kek().await;
    let (wrapped, context) = wrap(&*kek).await;
    bench.recreate().await;
    let now = kek.version().await.expect("version of the new key");
    assert_ne!(now, wrapped.version);
    let gone = [KekCause::UnknownVersion, KekCause::Rejected];
    assert_cause(kek.unwrap(&wrapped, &context).await, &gone, "a wrap of the former key");
}

pub async fn a_disabled_key_is_denied(bench: &impl Disables) {
    let kek = bench.kek().await;
    let (wrapped, context) = wrap(&*kek).await;
    bench.disable().await;
    assert_cause(kek.version().await, &[KekCause::Denied], "version");
    assert_cause(kek.unwrap(&wrapped, &context).await, &[KekCause::Denied], "unwrap");
    let (dek, context) = dek();
    assert_cause(kek.wrap(&dek, &context).await, &[KekCause::Denied], "wrap");
}

pub async fn a_destroyed_key_is_gone_definitely(bench: &impl Bench) {
    let kek = bench.kek().await;
    let (wrapped, context) = wrap(&*kek).await;
    bench.destroy().await;
    let gone = [KekCause::Denied, KekCause::UnknownVersion];
    assert_cause(kek.unwrap(&wrapped, &context).await, &gone, "unwrap");
}

pub async fn a_withdrawn_permission_is_denied(bench: &impl Permits) {
    let kek = bench.kek().await;
    let (wrapped, context) = wrap(&*kek).await;
    bench.withdraw_permission().await;
    assert_cause(kek.unwrap(&wrapped, &context).await, &[KekCause::Denied], "unwrap");
    let (dek, context) = dek();
    assert_cause(kek.wrap(&dek, &context).await, &[KekCause::Denied], "wrap");
}

pub async fn expired_credentials_are_renewed(bench: &impl Authenticates) {
    let kek = bench.kek().await;
    let (wrapped, context) = wrap(&*kek).await;
    bench.expire_credentials().await;
    kek.unwrap(&wrapped, &context).await.expect("unwraps with new credentials");
    kek.version().await.expect("version with new credentials");
}

pub async fn revoked_credentials_are_unauthenticated(bench: &impl Authenticates) {
    let kek = bench.kek().await;
    let (wrapped, context) = wrap(&*kek).await;
    bench.revoke_credentials().await;
    assert_cause(kek.unwrap(&wrapped, &context).await, &[KekCause::Unauthenticated], "unwrap");
    assert_cause(kek.version().await, &[KekCause::Unauthenticated], "version");
}

pub async fn the_end_of_the_credentials_is_known(bench: &impl Bench) {
    let metrics = Arc::new(Metrics::new());
    let guarded = GuardedKek::new("it".into(), bench.kek().await, metrics.clone());
    guarded.version().await.expect("version");
    let end = guarded.credentials_expire().expect("an end");
    let now = jiff::Timestamp::now();
    assert!(end > now && end < now + jiff::SignedDuration::from_hours(25), "{end}");
    let text = metrics.encode();
    let series = "kube_envelope_kek_credentials_expire_timestamp_seconds{kek=\"it\"} ";
    let value = text.lines().find_map(|line| line.strip_prefix(series)).expect("a metric tells it");
    let told = value.parse::<f64>().expect("a number");
    #[allow(clippy::cast_precision_loss, reason = "seconds since 1970 fit a double's 53 bits")]
    let known = end.as_second() as f64;
    assert!((told - known).abs() <= 1.0, "{told} in the metric, {known} known");
}

pub async fn a_clock_that_is_off_is_known(bench: &impl Remote) {
    let kek = bench.kek().await;
    let ahead = || kek.server_clock().expect("a server has a clock").ahead();
    assert_eq!(ahead(), None, "nobody was asked yet");
    kek.version().await.expect("version");
    assert!(ahead().expect("an answer tells it").abs() <= jiff::SignedDuration::from_secs(5), "{:?}", ahead());
    let off = jiff::SignedDuration::from_mins(3);
    bench.faults().set_date(http_date(jiff::Timestamp::now() + off));
    kek.version().await.expect("version");
    let wrong = ahead().expect("an answer tells it") + off;
    assert!(wrong.abs() <= jiff::SignedDuration::from_secs(5), "{wrong} off what it is");
}

/// As HTTP writes it.
pub fn http_date(time: jiff::Timestamp) -> String {
    time.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

async fn wrap(kek: &dyn Kek) -> (WrappedDek, WrapContext) {
    let (dek, context) = dek();
    // What a test starts from. A KEK makes no retries (the guard does), and its time limits are short for a machine
    // that is busy with other tests.
    for _ in 0..4 {
        match kek.wrap(&dek, &context).await {
            Err(error) if error.cause().is_transient() => {}
            result => return (result.expect("wrap"), context),
        }
    }
    (kek.wrap(&dek, &context).await.expect("wrap"), context)
}

#[track_caller]
fn assert_cause<T: std::fmt::Debug>(result: Result<T, KekError>, expected: &[KekCause], what: &str) {
    let error = result.expect_err(what);
    assert!(expected.contains(&error.cause()), "{what}: {expected:?} expected, got {}", error.chain());
}
