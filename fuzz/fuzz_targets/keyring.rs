//! [`kube_envelope_fuzz::keyring`]
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kube_envelope_fuzz::keyring(bytes));
