//! kube-envelope: Kubernetes Secrets encrypted at rest under a key held outside the cluster.
#![recursion_limit = "256"]

pub mod cli;
pub mod commands;
pub mod config;
pub mod crypto;
pub mod dek;
pub mod envelope;
#[cfg(feature = "rotate")]
pub mod etcd;
pub mod generation;
pub mod kek;
pub mod key_id;
pub mod plugin;
#[cfg(feature = "rotate")]
pub mod rotation;
pub mod telemetry;
