//! [`kube_envelope_fuzz::ciphertext`]
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kube_envelope_fuzz::ciphertext(bytes));
