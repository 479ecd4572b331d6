//! Numbers that others tell: durations of a configuration, lives of tokens, `Retry-After`, versions, sizes and counts in
//! answers and files. No sum of them may end the process.

use std::collections::BTreeSet;

use crate::sources;

/// Modules, with those in them, that reckon with such numbers.
const RECKONS: &[&str] = &[
    "backup/bbolt.rs",
    "backup/page.rs",
    "backup/snapshot.rs",
    "dek/contacts.rs",
    "dek/history.rs",
    "dek/sealed.rs",
    "etcd/encrypted_object.rs",
    "etcd/history.rs",
    "etcd/scan.rs",
    "etcd/space.rs",
    "etcd/stored.rs",
    "etcd/stride.rs",
    "kek/clock.rs",
    "kek/guard/gate.rs",
    "key_stores/pkcs11/protocol.rs",
    "key_stores/shared/renewing/loaded.rs",
    "key_stores/shared/retry_after.rs",
    "key_stores/transit/session.rs",
    "plugin/audit/chain.rs",
    "plugin/audit/verify.rs",
    "plugin/refresh.rs",
    "rotation/cluster/api.rs",
    "rotation/cluster/lease.rs",
    "rotation/cluster/ledger.rs",
    "rotation/cluster/listing.rs",
    "rotation/cluster/metrics.rs",
    "rotation/cluster/roster.rs",
    "rotation/conclusion/evidence.rs",
    "rotation/leftovers/sizes.rs",
    "rotation/leftovers/snapshots.rs",
    "rotation/rewrite/pace.rs",
    "rotation/shards/assignment.rs",
    "rotation/shards/report.rs",
];

const CHECKED: &str = "#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]";

#[test]
fn arithmetic_on_numbers_from_outside_is_checked() {
    let sources = sources();
    let checked = |source: &&crate::Source| source.code.contains(CHECKED);
    let found: BTreeSet<_> = sources.iter().filter(checked).map(|source| source.name.as_str()).collect();
    assert_eq!(found, RECKONS.iter().copied().collect());
}
