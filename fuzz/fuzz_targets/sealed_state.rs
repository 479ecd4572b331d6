//! [`kube_envelope_fuzz::sealed_state`]
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kube_envelope_fuzz::sealed_state(bytes));
