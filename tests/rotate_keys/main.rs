//! `rotate-keys` and `verify` against real API servers, each with its own plugin, on one etcd.
#![allow(missing_docs, clippy::unwrap_used, clippy::doc_markdown, reason = "for tests only")]

#[path = "../support/mod.rs"]
mod support;

mod ageing;
#[cfg(feature = "aws")]
mod aws;
mod backup_rewrap;
mod backups;
mod balancer;
mod board;
mod break_glass;
mod changes;
mod control_plane;
mod crashes;
mod disagreement;
mod elsewhere;
mod end_to_end;
mod etcd_clusters;
mod etcd_space;
mod failover;
mod first_use;
mod flip_flop;
mod https;
mod innocents;
mod interruptions;
mod leaving;
mod leftovers;
#[cfg(feature = "transit")]
mod migration;
mod named;
mod objects;
mod options;
mod other_plugin;
#[cfg(feature = "pkcs11")]
mod pkcs11;
mod preflight;
mod proxy;
mod reach;
mod readable;
mod readme;
mod rehearsals;
mod resume;
mod rewrap;
mod roster;
#[cfg(feature = "transit")]
mod scheduled;
mod second_search;
mod shards;
#[cfg(all(feature = "aws", feature = "azure", feature = "gcp", feature = "transit"))]
mod takeover;
#[cfg(feature = "transit")]
mod transit;
mod true_verdicts;
#[cfg(all(feature = "azure", feature = "gcp"))]
mod two_clouds;
mod two_runs;
mod unlistable;
mod watch;
mod webhooks;
