//! A module that hangs, crashes, lies or loses its token: the real one behind a library that does so on demand.

use std::time::{Duration, Instant};

use kube_envelope::kek::{Kek, KekCause};

use futures::future::join_all;

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

/// A bench whose module is the faulty library.
async fn faulty() -> Pkcs11Bench {
    let mut bench = Pkcs11Bench::start().await;
    let (source, library) = (bench.folder.join("module.c"), bench.folder.join("module.so"));
    std::fs::write(&source, include_str!("faulty_module.c")).expect("written");
    run(Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source).arg("-ldl"));
    bench.module = library;
    fault(&bench, "");
    bench
}

fn fault(bench: &Pkcs11Bench, fault: &str) {
    std::fs::write(bench.folder.join("fault"), fault).expect("written");
}

/// Asks until it works, at most this long.
async fn works_within(kek: &dyn Kek, longest: Duration) {
    let end = Instant::now() + longest;
    loop {
        match tokio::time::timeout(Duration::from_millis(2500), kek.version()).await {
            Ok(Ok(_)) => return,
            other => assert!(Instant::now() < end, "{other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn a_module_that_hangs_at_its_start_is_given_up_and_works_once_it_is_well() {
    in_its_own_process!("a_module_that_hangs_at_its_start_is_given_up_and_works_once_it_is_well");
    let bench = faulty().await;
    fault(&bench, "hang-at-start");
    let kek = config(&bench.item()).open();
    let given_up = tokio::time::timeout(Duration::from_millis(500), kek.version()).await;
    assert!(given_up.is_err(), "{given_up:?}");
    fault(&bench, "");
    works_within(&*kek, Duration::from_secs(30)).await;
}

#[tokio::test]
async fn a_call_that_hangs_can_be_given_up_and_later_ones_work_once_it_returns() {
    in_its_own_process!("a_call_that_hangs_can_be_given_up_and_later_ones_work_once_it_returns");
    let bench = faulty().await;
    let kek = config(&bench.item()).open();
    let (dek, context) = dek();
    kek.wrap(&dek, &context).await.unwrap_or_else(|error| panic!("{}", error.chain()));
    fault(&bench, "hang-at-encrypt");
    let patience = Duration::from_millis(500);
    let started = Instant::now();
    let given_up = join_all((0..20).map(|_| tokio::time::timeout(patience, kek.wrap(&dek, &context)))).await;
    assert!(given_up.iter().all(Result::is_err), "{given_up:?}");
    assert!(started.elapsed() < patience * 3, "the callers were held up: {:?}", started.elapsed());
    fault(&bench, "");
    works_within(&*kek, Duration::from_secs(30)).await;
    kek.wrap(&dek, &context).await.unwrap_or_else(|error| panic!("{}", error.chain()));
}

#[tokio::test]
async fn a_module_that_crashes_costs_one_call_and_the_next_one_works() {
    in_its_own_process!("a_module_that_crashes_costs_one_call_and_the_next_one_works");
    let bench = faulty().await;
    let kek = config(&bench.item()).open();
    let (dek, context) = dek();
    let wrapped = kek.wrap(&dek, &context).await.unwrap_or_else(|error| panic!("{}", error.chain()));
    fault(&bench, "crash-at-encrypt");
    let error = kek.wrap(&dek, &context).await.expect_err("the module crashes");
    assert_eq!(error.cause(), KekCause::Unavailable);
    assert!(error.to_string().contains("signal"), "{error}");
    let unwrapped = kek.unwrap(&wrapped, &context).await.unwrap_or_else(|error| panic!("{}", error.chain()));
    assert_eq!(unwrapped.dek.expose(), dek.expose());
    fault(&bench, "");
    kek.wrap(&dek, &context).await.unwrap_or_else(|error| panic!("{}", error.chain()));
}

#[tokio::test]
async fn a_token_that_gives_no_check_value_has_the_same_versions_as_one_that_does() {
    in_its_own_process!("a_token_that_gives_no_check_value_has_the_same_versions_as_one_that_does");
    let bench = faulty().await;
    let given = config(&bench.item()).open().version().await.expect("version");
    fault(&bench, "no-check-value");
    let kek = config(&bench.item()).open();
    assert_eq!(kek.version().await.unwrap_or_else(|error| panic!("{}", error.chain())), given);
    let (dek, context) = dek();
    let wrapped = kek.wrap(&dek, &context).await.expect("wrap");
    assert_eq!(kek.unwrap(&wrapped, &context).await.expect("unwrap").dek.expose(), dek.expose());
}

#[tokio::test]
async fn a_token_that_is_gone_for_a_moment_is_no_denial_and_works_again_at_once() {
    in_its_own_process!("a_token_that_is_gone_for_a_moment_is_no_denial_and_works_again_at_once");
    let bench = Pkcs11Bench::start().await;
    let kek = bench.kek().await;
    let (dek, context) = dek();
    let wrapped = kek.wrap(&dek, &context).await.expect("wrap");
    let (tokens, away) = (bench.folder.join("tokens"), bench.folder.join("away"));
    std::fs::rename(&tokens, &away).expect("moved away");
    std::fs::create_dir(&tokens).expect("an empty folder");
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        for error in [kek.version().await.err(), kek.unwrap(&wrapped, &context).await.err()].into_iter().flatten() {
            assert!(matches!(error.cause(), KekCause::Unavailable | KekCause::UnknownVersion), "{}", error.chain());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    std::fs::remove_dir_all(&tokens).expect("removed");
    std::fs::rename(&away, &tokens).expect("moved back");
    works_within(&*kek, Duration::from_secs(5)).await;
    kek.unwrap(&wrapped, &context).await.unwrap_or_else(|error| panic!("{}", error.chain()));
}
