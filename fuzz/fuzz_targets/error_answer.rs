//! [`kube_envelope_fuzz::error_answer`]
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kube_envelope_fuzz::error_answer(bytes));
