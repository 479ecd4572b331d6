//! kube-envelope: Kubernetes Secrets encrypted at rest under a key held outside the cluster.
#![recursion_limit = "256"]

pub mod config;
pub mod crypto;
pub mod kek;
pub mod key_id;
pub mod telemetry;
