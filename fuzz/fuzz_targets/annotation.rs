//! [`kube_envelope_fuzz::annotation`]
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kube_envelope_fuzz::annotation(bytes));
