//! Two clouds at once: every DEK wrapped by both, opened by either.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kube_envelope::crypto::secret::DekId;
use kube_envelope::kek::guard::DEADLINE;
use kube_envelope::kek::{KekCause, WrapContext};
use kube_envelope::key_stores;
use kube_envelope::telemetry::Metrics;

use crate::azure::AzureBench;
use crate::bench::{Bench, Permits, Remote, config, dek};
use crate::gcp::GcpBench;
use crate::support::fakes::faults::Fault;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dek_wrapped_by_two_clouds_opens_by_either_and_only_with_its_id() {
    let (google, azure) = (GcpBench::start().await, AzureBench::start().await);
    let configs = [config(&google.item()), config(&azure.item())];
    let set = key_stores::open_set(&configs, &[], &Arc::new(Metrics::new())).expect("both are built");
    let (dek, context) = dek();
    let wraps = set.wrap_and_prove(&dek, &context, &|_| {}).await.expect("both wrap and prove");
    assert_eq!(wraps.len(), 2);
    let wrong = WrapContext { dek_id: DekId([0; 16]), ..context.clone() };
    assert_eq!(set.unwrap(&wraps, &wrong).await.expect_err("another id").cause(), KekCause::Rejected);
    let lineages = [google.kek().await.lineage(), azure.kek().await.lineage()];
    for (down, up) in [(google.faults(), lineages[1]), (azure.faults(), lineages[0])] {
        for fault in [Fault::Refuse, Fault::Silence] {
            down.set(fault.clone());
            let started = Instant::now();
            let (opened, by) = set.unwrap(&wraps, &context).await.unwrap_or_else(|error| panic!("{fault:?}: {error}"));
            assert_eq!((opened.expose(), by.lineage), (dek.expose(), up), "{fault:?}");
            assert!(started.elapsed() < DEADLINE, "{fault:?}: {:?}", started.elapsed());
        }
        down.clear();
        // The breaker of the one that was down lets a call through again.
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

#[tokio::test]
async fn nothing_is_adopted_while_one_of_two_clouds_does_not_prove() {
    let (google, azure) = (GcpBench::start().await, AzureBench::start().await);
    let configs = [config(&google.item()), config(&azure.item())];
    let set = key_stores::open_set(&configs, &[], &Arc::new(Metrics::new())).expect("both are built");
    azure.withdraw_permission().await;
    let (dek, context) = dek();
    let (name, error) = set.wrap_and_prove(&dek, &context, &|_| {}).await.expect_err("one does not");
    assert_eq!((name.as_str(), error.cause()), ("kek", KekCause::Denied), "{}", error.chain());
}
