//! One list of behaviours, run for every kind of KEK: one test per behaviour and kind. What a kind's backend
//! truly does not have is ignored with the reason, visibly. A new kind is one file beside this one.

#[path = "../support/mod.rs"]
mod support;

#[cfg(feature = "aws")]
mod aws;
#[cfg(feature = "azure")]
mod azure;
mod behaviours;
mod bench;
mod break_glass;
#[cfg(feature = "gcp")]
mod gcp;
mod keyring;
#[cfg(any(feature = "azure", feature = "gcp"))]
mod namespace;
#[cfg(feature = "pkcs11")]
mod pkcs11;
#[cfg(feature = "transit")]
mod transit;
#[cfg(all(feature = "azure", feature = "gcp"))]
mod two_clouds;

/// Makes one test of each behaviour for the bench `$bench`. A reason after the colon marks what the backend does not
/// have: that test is ignored, and shows the reason. A behaviour that is left out does not compile, nor does one
/// without a reason on a bench that lacks the trait it needs, see [`bench`].
#[macro_export]
macro_rules! conformance {
    (@test $bench:ty, $behaviour:ident) => {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $behaviour() {
            if <$bench as $crate::bench::Bench>::run_elsewhere(concat!(module_path!(), "::", stringify!($behaviour))) {
                return;
            }
            let bench = <$bench as $crate::bench::Bench>::start().await;
            $crate::behaviours::$behaviour(&bench).await;
        }
    };
    (@test $bench:ty, $behaviour:ident, $reason:literal) => {
        #[test]
        #[ignore = $reason]
        fn $behaviour() {
            unimplemented!("{}", $reason)
        }
    };
    ($bench:ty; $($behaviour:ident $(: $reason:literal)?,)*) => {
        $($crate::conformance! { @test $bench, $behaviour $(, $reason)? })*
        const _: $crate::behaviours::All = $crate::behaviours::All { $($behaviour: (),)* };
    };
}
