//! [`kube_envelope_fuzz::stored_dek`]
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kube_envelope_fuzz::stored_dek(bytes));
