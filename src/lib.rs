//! kube-envelope: Kubernetes Secrets encrypted at rest under a key held outside the cluster.
//!
//! kube-apiserver encrypts each object with a key derived from a *seed*, and has the seed encrypted by a KMS v2
//! plugin. This crate is that plugin, and the companion that rewrites all objects after a rotation and proves it.
//! A seed is sealed under a *DEK*; the DEK is wrapped by every configured *KEK* and stored only so. One set of KEK
//! versions is a *generation*, named by its `key_id`.
//!
//! # Map
//!
//! Direction is downward only; `plugin` and `rotation` do not know each other. `tests/architecture/` holds it.
//!
//! * [`cli`], [`commands`]: the commands; compose the rest, and print.
//! * [`plugin`]: `serve`. Socket → gRPC → service; the refresh loop publishes what the service reads.
//! * `rotation`, `etcd` (feature `rotate`): `rotate-keys` and `verify`.
//! * [`posture`]: what leaves Secrets exposed although they are encrypted; for `doctor`.
//! * `backup`, `rehearsal` (feature `rotate`): `snapshot` and `rehearse`. Values of a snapshot file or of etcd, counted
//!   without a key, and opened as an API server opens them.
//! * [`generation`], [`dek`]: what the plugin serves from; DEKs in memory and on disk.
//! * [`envelope`], [`key_id`]: the stored format.
//! * [`config`]: the YAML file; every default and bound.
//! * [`key_stores`]: the registry of kinds, and one folder for each: AWS, Azure, Google, PKCS#11, transit, keyring, and a
//!   public key whose private half is offline (break-glass).
//! * [`kek`]: the contract of a KEK, and deadline, retries and breaker around all of them.
//! * [`crypto`]: secret types, and the only files that name a cipher.
//! * [`kms`]: the KMS v2 API on the wire, and a client of a plugin's socket.
//! * [`telemetry`]: metrics and logs.
//! * [`encryption_config`]: the API server's file, read as the API server reads it.
//! * [`files`]: files that are written whole or not at all.
//!
//! # Invariants
//!
//! 1. `key_id` is a function of the KEKs' lineages and versions and of `epoch`: equal on all nodes, stable over
//!    restarts, never reused for another key. The version it names is the one that really wrapped.
//! 2. A generation is adopted only after every KEK has wrapped a DEK and unwrapped it again, by one atomic publish. A
//!    break-glass KEK only wraps, counts nowhere as one that unwraps, and is reported until a person has tried its key.
//! 3. Status and Encrypt do no I/O. Decrypt asks a KEK only for a DEK that is not in memory; concurrent misses of one
//!    DEK are one call, and a cancelled caller does not cancel it.
//! 4. A cold API server costs remote calls by the number of DEKs (nodes × generations), never of objects or seeds.
//! 5. Every ciphertext is self-contained: with one KEK and this binary it opens. The state folder may be lost.
//! 6. Unknown format, cluster, generation or KEK is refused before any KEK is asked. No trial decryption: what another
//!    plugin stored ([`kek::takeover`]) is told by its form, and what is ours is shown to no key of another plugin.
//! 7. A DEK must match its id, which commits to it; all that is stored is bound to cluster, generation and DEK id.
//! 8. DEKs and seeds exist only inside [`crypto::secret`]'s types; nothing prints them; they are cleared when dropped.
//! 9. A definite, repeated denial by every KEK that could unwrap clears the DEKs; any other failure coasts.
//! 10. The API server's bounds are checked when a generation is made, not first in production.
//! 11. The socket is restricted before anyone can connect, and never taken from a living process.
//! 12. `rotate-keys` never reads Secret data, never loses a concurrent update, never disables a key.
//! 13. Only `main` ends the process; there is no global mutable state.
//!
//! # Deliberately missing
//!
//! Retries inside a KEK (one policy for all, in [`kek::guard`]); ciphers to choose from; trial decryption; a way to
//! disable or delete a KEK version at a vendor; anything that reads Secret data in `rotation`.
#![recursion_limit = "256"]

#[cfg(feature = "rotate")]
pub mod backup;
pub mod cli;
pub mod commands;
pub mod config;
pub mod crypto;
pub mod dek;
pub mod encryption_config;
pub mod envelope;
mod error_chain;
#[cfg(feature = "rotate")]
pub mod etcd;
pub mod files;
pub mod generation;
pub mod kek;
pub mod key_id;
pub mod key_stores;
pub mod kms;
pub mod plugin;
pub mod posture;
#[cfg(feature = "rotate")]
pub mod rehearsal;
#[cfg(feature = "rotate")]
pub mod rotation;
mod shell;
pub mod telemetry;
