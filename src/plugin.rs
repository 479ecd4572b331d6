//! The process beside the API server: answers the three RPCs, and follows the KEKs in the background.

pub mod audit;
pub mod client;
pub mod grpc;
pub mod handover;
pub mod health;
mod kms_v1;
pub mod refresh;
pub mod server;
pub mod service;
pub mod socket;
pub mod state;
