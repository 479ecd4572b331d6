//! The plugin behind real API servers and in front of real key stores: what is stored, that it comes back whatever
//! restarts or is away, and what each start and each idle hour costs.
#![allow(missing_docs, clippy::unwrap_used, clippy::doc_markdown, reason = "for tests only")]

#[path = "../support/mod.rs"]
mod support;

#[cfg(feature = "aws")]
mod aws;
mod cold_start;
mod doctor;
#[cfg(feature = "transit")]
mod handover;
#[cfg(all(feature = "aws", feature = "azure", feature = "gcp", feature = "pkcs11", feature = "transit"))]
mod idle;
mod manifests;
#[cfg(feature = "transit")]
mod memory;
#[cfg(feature = "transit")]
mod misses;
#[cfg(feature = "transit")]
mod outages;
#[cfg(feature = "pkcs11")]
mod pkcs11;
mod restarts;
#[cfg(feature = "transit")]
mod sealed_state;
mod servers;
#[cfg(all(feature = "pkcs11", feature = "transit"))]
mod tpm;
#[cfg(all(feature = "azure", feature = "gcp"))]
mod two_clouds;
