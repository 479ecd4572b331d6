//! The process beside the API server: answers the three RPCs, and follows the KEKs in the background.

pub mod client;
pub mod grpc;
pub mod health;
pub mod refresh;
pub mod service;
pub mod socket;
pub mod state;
