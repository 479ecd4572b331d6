//! [`kube_envelope_fuzz::etcd_value`]
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kube_envelope_fuzz::etcd_value(bytes));
