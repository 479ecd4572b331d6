//! The rotation protocol as a model, checked over every history within stated bounds.
//!
//! A history is any order of: plugins that notice a new version late or never, API servers that adopt it later still,
//! steps of one or two runs of `rotate-keys`, and up to a few disturbances (`scenario::Disturbance`): a crash of the run, a
//! write through any server, a slow write, a server that stops and comes back with what it had, one that joins, one
//! that loads its former configuration, a plugin that forgets what it did not save, a restored or compacted etcd, another
//! rotation, a KEK that is switched back. The operator follows the README: activates a version, runs, resumes after a crash, and
//! disables exactly what a Yes names.
//!
//! Checked: nothing needs a version at the moment in which a Yes names it (no present value, old revision, or newest
//! snapshot, and no server that is up or may come back could store under it), and the other properties in `checker`.
//!
//! * `world`: the cluster by itself; `run`, `steps`: our protocol; `simpler`: two procedures that operators know.
//! * `protection`: what makes a Yes true. `taken_out` takes each one out, and the checker finds what it protects from.
//! * `traces`: the counterexamples that `docs/rotation.md` tells.
//!
//! # What is not modelled
//!
//! Time: a timeout is a step that may happen at any moment at which what it waits for is true. Several KEKs, and so a
//! value that more than one version opens; key names other than versions of one KEK. Searching by reads through an API
//! server instead of in etcd. Shards, which send the same patches.
//! Lists, watch caches and refused objects, which decide whether a Yes is reached and not whether it is true. What
//! happens between the last search and the verdict to values put into etcd past the API servers, and servers that join
//! or load another configuration between the verdict and the disabling: a Yes says up to which moment it holds.
// Most facts of a model are true or false.
#![allow(clippy::unwrap_used, clippy::struct_excessive_bools, missing_docs)]

mod checker;
mod protection;
mod run;
mod scenario;
mod set;
mod simpler;
mod steps;
mod taken_out;
mod traces;
mod whole;
mod words;
mod world;
