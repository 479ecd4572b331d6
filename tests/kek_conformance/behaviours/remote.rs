//! Behaviours of the kinds that ask a server: what goes wrong on the way to it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kube_envelope::kek::KekCause;
use kube_envelope::kek::guard::{DEADLINE, GuardedKek};
use kube_envelope::telemetry::Metrics;
use rustls::NamedGroup;

use super::{assert_cause, wrap};
use crate::bench::{Remote, config, dek};
use crate::support::fakes::faults::{Answer, Fault, Trap};
use crate::support::fakes::tunnels::Tunnels;

/// An answer larger than any that a backend gives; no more than a part of it may be read.
const OVERSIZED: usize = 256 << 20;
const MOST_READ: usize = 32 << 20;

pub async fn a_throttled_call_is_throttled(bench: &impl Remote) {
    assert_fault(bench, Fault::Answer(bench.throttled()), &[KekCause::Throttled]).await;
}

pub async fn a_server_error_is_unavailable(bench: &impl Remote) {
    for status in [500, 502, 503, 504] {
        let answer = Answer { status, headers: Vec::new(), body: "upstream broke".into() };
        assert_fault(bench, Fault::Answer(answer), &[KekCause::Unavailable]).await;
    }
}

pub async fn a_slow_server_meets_the_deadline(bench: &impl Remote) {
    let kek = bench.kek().await;
    let (wrapped, context) = wrap(&*kek).await;
    for fault in [Fault::Silence, Fault::Drip] {
        let guarded = GuardedKek::new("slow".into(), bench.kek().await, Arc::new(Metrics::new()));
        bench.faults().set(fault.clone());
        let started = Instant::now();
        assert_cause(guarded.unwrap(&wrapped, &context).await, &[KekCause::Unavailable], &format!("{fault:?}"));
        assert!(started.elapsed() < DEADLINE + Duration::from_millis(400), "{fault:?}: {:?}", started.elapsed());
        bench.faults().clear();
    }
}

pub async fn a_cut_connection_is_unavailable(bench: &impl Remote) {
    assert_fault(bench, Fault::Cut, &[KekCause::Unavailable]).await;
    assert_fault(bench, Fault::CutWithinAnswer, &[KekCause::Unavailable]).await;
}

pub async fn an_unreachable_server_is_unavailable(bench: &impl Remote) {
    assert_fault(bench, Fault::Refuse, &[KekCause::Unavailable]).await;
}

pub async fn a_wrong_certificate_is_refused(bench: &impl Remote) {
    let before = bench.requests();
    assert_fault(bench, Fault::CertificateOfAnotherName, &[KekCause::Unavailable]).await;
    assert_fault(bench, Fault::CertificateOfAnotherIssuer, &[KekCause::Unavailable]).await;
    // The wrap that assert_fault starts from is asked under the right certificate.
    assert!(bench.faults().requests_under_fault() == 0 && bench.requests() > before);
}

pub async fn the_key_exchange_offered_first_is_post_quantum(bench: &impl Remote) {
    bench.kek().await.version().await.expect("version");
    assert_eq!(bench.faults().key_exchange_offered_first(), Some(NamedGroup::X25519MLKEM768));
}

pub async fn a_redirect_is_not_followed(bench: &impl Remote) {
    let trap = Trap::start().await;
    for status in [301, 302, 303, 307, 308] {
        let location = (String::from("location"), trap.url());
        let answer = Answer { status, headers: vec![location], body: String::new() };
        assert_fault(bench, Fault::Answer(answer), &[KekCause::Unavailable, KekCause::Misconfigured]).await;
    }
    assert_eq!(trap.visits(), 0, "a redirect carried the credentials elsewhere");
}

/// Everything goes through it, logins too; and nothing where it is gone.
pub async fn a_proxy_is_used_where_it_is_named(bench: &impl Remote) {
    let proxy = Tunnels::start(bench.faults().port()).await;
    // Its own address is of no use behind a proxy, and refused beside one.
    let item = bench.item().replace("address: 127.0.0.1, ", "");
    let item = item.replacen(": {", &format!(": {{ proxy: '{}',", proxy.url()), 1);
    let (before, kek) = (bench.requests(), config(&item).open());
    let (wrapped, context) = wrap(&*kek).await;
    kek.unwrap(&wrapped, &context).await.expect("unwrap");
    assert!(proxy.opened() > 0 && bench.requests() > before);
    let other = config(&item).open();
    drop(proxy);
    assert_cause(other.version().await, &[KekCause::Unavailable], "without the proxy");
}

pub async fn an_oversized_answer_is_not_read(bench: &impl Remote) {
    assert_fault(bench, Fault::Oversized(OVERSIZED), &[KekCause::Unavailable]).await;
    let sent = bench.faults().sent_under_fault();
    assert!(sent < MOST_READ, "{sent} bytes of an oversized answer were taken");
}

pub async fn garbage_in_an_answer_is_unavailable(bench: &impl Remote) {
    for body in ["", "{", "null", "<html>Please log in</html>", "{\"data\":{}}"] {
        let json = (String::from("content-type"), String::from("application/json"));
        let answer = Answer { status: 200, headers: vec![json], body: body.into() };
        assert_fault(bench, Fault::Answer(answer), &[KekCause::Unavailable]).await;
    }
}

pub async fn the_kek_works_again_after_faults(bench: &impl Remote) {
    let kek = bench.kek().await;
    let (wrapped, context) = wrap(&*kek).await;
    for fault in [Fault::Cut, Fault::Refuse, Fault::CertificateOfAnotherIssuer, Fault::CutWithinAnswer] {
        bench.faults().set(fault.clone());
        assert!(kek.unwrap(&wrapped, &context).await.is_err(), "{fault:?} had no effect");
        bench.faults().clear();
        kek.unwrap(&wrapped, &context).await.unwrap_or_else(|error| panic!("after {fault:?}: {}", error.chain()));
    }
}

/// Under `fault`, `version`, `wrap` and `unwrap` fail with one of `causes`, and neither panics nor waits.
async fn assert_fault(bench: &impl Remote, fault: Fault, causes: &[KekCause]) {
    let kek = bench.kek().await;
    let (wrapped, context) = wrap(&*kek).await;
    bench.faults().set(fault.clone());
    let what = |call: &str| format!("{call} under {fault:?}");
    let patience = Duration::from_secs(10);
    let version = tokio::time::timeout(patience, kek.version()).await.expect("version ends");
    assert_cause(version, causes, &what("version"));
    let unwrapped = tokio::time::timeout(patience, kek.unwrap(&wrapped, &context)).await.expect("unwrap ends");
    assert_cause(unwrapped, causes, &what("unwrap"));
    let (dek, context) = dek();
    let wrapped = tokio::time::timeout(patience, kek.wrap(&dek, &context)).await.expect("wrap ends");
    assert_cause(wrapped, causes, &what("wrap"));
    bench.faults().clear();
}
