//! `rotate-keys` and `verify` against real API servers, each with its own plugin, on one etcd.
#![allow(missing_docs, clippy::unwrap_used, clippy::doc_markdown, reason = "for tests only")]

#[path = "../support/mod.rs"]
mod support;

mod balancer;
mod control_plane;
mod crashes;
mod disagreement;
mod end_to_end;
mod failover;
mod flip_flop;
mod leftovers;
mod objects;
mod options;
mod preflight;
mod shards;
mod webhooks;
