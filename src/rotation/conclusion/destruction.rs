//! Whether a key that may be disabled may also be destroyed: only the backups that were named are examined, and nothing
//! is said where none was.

use std::collections::BTreeSet;

use crate::rotation::journal::Journal;
use crate::rotation::keys::name::KeyName;
use crate::rotation::leftovers::snapshots::SnapshotKeys;

/// The end of the sentence of a *Yes* that has keys to disable.
pub(super) fn sentence(journal: &Journal, keys: &[&KeyName]) -> String {
    let needed_by = |backup: &&SnapshotKeys| keys.iter().any(|key| is_needed(backup, key));
    let needed: Vec<String> =
        journal.backups.iter().filter(needed_by).map(|one| one.file.display().to_string()).collect();
    match (journal.backups.len(), needed.len()) {
        (_, 0) if !is_any_of_this_cluster(journal) => {
            " It may be disabled; keep it (not destroyed) as long as a snapshot from before must stay restorable."
                .into()
        }
        (named, 0) => format!(
            " It may be disabled, and as far as the {named} backup(s) go that were named, destroyed: none of them needs \
             it. This speaks of these files alone."
        ),
        _ => format!(
            " It may be disabled; keep it (not destroyed) for {}, or rewrap them (kube-envelope snapshot rewrap).",
            needed.join(", ")
        ),
    }
}

/// Of these keys, those that no named backup needs.
pub(super) fn may_be_destroyed<'a>(journal: &Journal, keys: impl Iterator<Item = &'a KeyName>) -> Vec<String> {
    let free =
        |key: &&KeyName| is_any_of_this_cluster(journal) && !journal.backups.iter().any(|one| is_needed(one, key));
    keys.filter(free).map(|key| journal.names.show(key)).collect()
}

/// A file of any other cluster needs no key of this one.
fn is_any_of_this_cluster(journal: &Journal) -> bool {
    journal.backups.iter().any(|backup| backup.is_of_this_cluster)
}

/// What was not looked at among the backups.
pub(super) fn not_looked_at(journal: &Journal) -> impl Iterator<Item = String> {
    let unknown = journal.backups.iter().filter(|backup| !backup.is_of_this_cluster).map(|backup| {
        format!(
            "whether {} is of this cluster: neither kube-system nor a member of etcd shows it",
            backup.file.display()
        )
    });
    let gone = journal.backups_gone.iter().map(|file| {
        format!(
            "backup {}, which was named before and is not there any more: a copy of it that must stay restorable is to be \
             named",
            file.display()
        )
    });
    unknown.chain(gone)
}

/// What each backup needs of these keys.
pub(super) fn looked_at(journal: &Journal, former: &BTreeSet<KeyName>) -> Vec<String> {
    let backups = journal.backups.iter();
    backups.map(|backup| format!("backup {} {}", described(backup), needs(journal, backup, former))).collect()
}

fn described(backup: &SnapshotKeys) -> String {
    let hash = match &backup.sha256 {
        Some(hash) => format!("SHA-256 {hash}"),
        None => "without a SHA-256 at its end".into(),
    };
    format!("{} (revision {}, {hash})", backup.file.display(), backup.revision)
}

fn needs(journal: &Journal, backup: &SnapshotKeys, former: &BTreeSet<KeyName>) -> String {
    let needed: Vec<String> = former
        .iter()
        // Values in clear need no key; what to do about such a backup is in the sentence of the verdict.
        .filter(|key| **key != KeyName::Clear && is_needed(backup, key))
        .map(|key| {
            let (current, older) = backup.needing(key);
            format!("{} ({current} current value(s), {older} superseded)", journal.names.show(key))
        })
        .collect();
    if needed.is_empty() { "needs no former key".into() } else { format!("needs {}", needed.join(", ")) }
}

/// A superseded value counts: nothing else opens it either, and destroying is for good.
fn is_needed(backup: &SnapshotKeys, key: &KeyName) -> bool {
    backup.needing(key) != (0, 0)
}
