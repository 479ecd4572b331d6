//! What a transit key allows beyond wrapping: taking the key out, deleting it, never rotating it
//! (<https://developer.hashicorp.com/vault/api-docs/secret/transit#read-key>).

use super::kek::{Key, Version};
use crate::key_stores::shared::key_store::{Advice, Profile};

/// `place` is the path of the key in the server.
pub(super) fn of(key: &Key, place: &str) -> Profile {
    let mut advice = Vec::new();
    let mut advise = |finding: String, what: &str| advice.push(Advice::new(finding, what));
    if key.exportable {
        advise(
            format!(
                "{place} is exportable: anyone who may export it can read every Secret without the server, forever"
            ),
            "this cannot be undone: create a key with exportable=false, list it beside this one, rotate to it",
        );
    }
    if key.allow_plaintext_backup {
        advise(
            format!("{place} allows a backup in clear (allow_plaintext_backup)"),
            "this cannot be undone: create a key without it, list it beside this one, rotate to it",
        );
    }
    if key.deletion_allowed {
        advise(
            format!("{place} may be deleted (deletion_allowed); without it no Secret can be read"),
            "set deletion_allowed=false at the key's config",
        );
    }
    // 0 is how the server says that the key has no schedule.
    if key.auto_rotate_period == 0 {
        advise(
            format!("{place} is not rotated automatically"),
            "set auto_rotate_period at the key's config, or rotate on a schedule of your own",
        );
    }
    let created = key.active().ok().and_then(Version::created);
    Profile { created, only_in: None, advice }
}
