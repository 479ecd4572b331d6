//! What still needs each key that is known of: values, snapshots, or nothing that was checked.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::rotation::keys::group::Groups;
use crate::rotation::keys::name::{KeyName, KeyNames};

/// What needs one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// The key as a verdict names it, for people.
    pub key: String,
    /// Whether new values are stored under it.
    pub is_active: bool,
    /// A version in use that is the same key by another name of its KEK.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub same_as: Option<String>,
    /// How many values need it.
    pub values: u64,
    /// Snapshots with current values under it.
    pub snapshots: Vec<String>,
    /// Snapshots with superseded values under it.
    pub superseded_in: Vec<String>,
    /// Whether nothing needs it that was looked at, old revisions of etcd and superseded values of the snapshots included.
    pub may_be_destroyed: bool,
}

impl Usage {
    /// Whether nothing of what was looked at needs it.
    #[must_use]
    pub fn is_unused(&self) -> bool {
        !self.is_active
            && self.same_as.is_none()
            && self.values == 0
            && self.snapshots.is_empty()
            && self.superseded_in.is_empty()
    }

    /// In a few words.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut parts = Vec::new();
        if self.values > 0 {
            parts.push(format!("in use by {} value(s)", self.values));
        }
        if !self.snapshots.is_empty() {
            parts.push(format!("needed by {}", self.snapshots.join(", ")));
        }
        if !self.superseded_in.is_empty() {
            parts.push(format!("needed by superseded values in {}", self.superseded_in.join(", ")));
        }
        if self.is_active {
            parts.push("active".into());
        }
        if let Some(other) = &self.same_as {
            parts.push(format!("{other} by another name, which is in use"));
        }
        if self.may_be_destroyed {
            parts.push("unused; as far as etcd and the snapshots go that were named, it may be destroyed".into());
        }
        if parts.is_empty() { "unused".into() } else { parts.join("; ") }
    }
}

/// How the values of a snapshot are stored.
#[derive(Clone, Debug, Default)]
pub struct Held {
    /// Values that are current.
    pub current: Groups,
    /// Values that were replaced or deleted, and not compacted yet.
    pub older: Groups,
}

/// What needs each of `known` and of the keys that values or snapshots are stored under.
#[must_use]
pub fn usage(
    known: &BTreeSet<KeyName>,
    active: &BTreeSet<KeyName>,
    groups: &Groups,
    snapshots: &BTreeMap<String, Held>,
    names: &KeyNames,
) -> Vec<Usage> {
    let mut keys: BTreeSet<KeyName> = known.iter().chain(active).cloned().chain(groups.keys()).collect();
    keys.extend(snapshots.values().flat_map(|held| held.current.keys().into_iter().chain(held.older.keys())));
    let in_use: BTreeSet<KeyName> = active.iter().cloned().chain(groups.keys()).collect();
    let same_as = |key: &KeyName| in_use.iter().find(|other| key.is_same_key_by_another_name(other));
    let in_which = |needs: &dyn Fn(&Held) -> bool| -> Vec<String> {
        snapshots.iter().filter(|(_, held)| needs(held)).map(|(file, _)| file.clone()).collect()
    };
    keys.iter()
        .filter(|key| key.can_be_disabled())
        .map(|key| Usage {
            key: names.show(key),
            is_active: active.contains(key),
            same_as: same_as(key).map(|other| names.show(other)),
            values: groups.needing(key),
            snapshots: in_which(&|held| held.current.needing(key) > 0),
            superseded_in: in_which(&|held| held.current.needing(key) == 0 && held.older.needing(key) > 0),
            // Only the caller knows whether old revisions were searched as well.
            may_be_destroyed: false,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kek(version: &str) -> KeyName {
        KeyName::Kek { lineage: "aa".into(), version: version.into() }
    }

    #[test]
    fn each_version_is_in_use_needed_by_snapshots_or_unused() {
        let mut groups = Groups::default();
        groups.add_key(kek("3"), 7, 0);
        let mut held = Held::default();
        held.current.add_key(kek("2"), 4, 0);
        held.current.add_key(kek("3"), 1, 0);
        held.older.add_key(kek("0"), 1, 0);
        let known = ["1", "2", "3", "4"].map(kek).into();
        let snapshots = [("night.db".to_owned(), held)].into();
        let all = usage(&known, &[kek("3"), kek("4")].into(), &groups, &snapshots, &KeyNames::default());
        let told: Vec<_> = all.iter().map(Usage::describe).collect();
        assert_eq!(
            told,
            [
                "needed by superseded values in night.db",
                "unused",
                "needed by night.db",
                "in use by 7 value(s); needed by night.db; active",
                "active"
            ]
        );
    }
}
