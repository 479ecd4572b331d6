//! How many values are stored under each key, by folder of etcd: what stays small however many values there are.

use std::collections::BTreeMap;

use crate::etcd::{Stored, folder_of};
use crate::rotation::leftovers::judge::{Expected, Judge};

/// How many values are stored alike, in each folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    values: BTreeMap<(String, Stored), u64>,
}

/// Values of one resource that are stored alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// The resource, or the folder if the API serves no such resource.
    pub resource: String,
    /// How they are stored.
    pub stored: Stored,
    /// How many values there are.
    pub values: u64,
    /// Whether they are leftovers.
    pub left: bool,
}

impl Census {
    /// Counts a value. `key` is without the prefix.
    pub fn add(&mut self, key: &str, stored: &Stored) {
        let place = (folder_of(key).to_owned(), stored.clone());
        let values = self.values.entry(place).or_default();
        *values = values.saturating_add(1);
    }

    /// Takes a value away. Whether it was counted: if not, the census is wrong and must be taken again.
    #[must_use]
    pub fn remove(&mut self, key: &str, stored: &Stored) -> bool {
        let place = (folder_of(key).to_owned(), stored.clone());
        let Some(values) = self.values.get_mut(&place).filter(|values| **values > 0) else { return false };
        *values = values.saturating_sub(1);
        if *values == 0 {
            self.values.remove(&place);
        }
        true
    }

    /// How many values.
    pub fn len(&self) -> u64 {
        self.values.values().sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// What was counted, each held against what may be wanted.
    pub fn judged(&self, wanted: &[Expected]) -> Vec<Counted> {
        let mut judges: Vec<Judge<'_>> = wanted.iter().map(Judge::new).collect();
        let counted = |((folder, stored), values): (&(String, Stored), &u64)| {
            let (resource, left) = judged(&mut judges, folder, stored);
            Counted { resource, stored: stored.clone(), values: *values, left }
        };
        self.values.iter().map(counted).collect()
    }
}

/// The resource that a key belongs to, and whether a value that is stored like this is a leftover there. While API servers
/// change over from one key to another there are several that it may be stored under: it is a leftover where none of
/// them wants it.
pub fn is_left(wanted: &[Expected], key: &str, stored: &Stored) -> (String, bool) {
    let mut judges: Vec<Judge<'_>> = wanted.iter().map(Judge::new).collect();
    judged(&mut judges, folder_of(key), stored)
}

fn judged(judges: &mut [Judge<'_>], folder: &str, stored: &Stored) -> (String, bool) {
    let mut resource = folder.to_owned();
    let mut left = !judges.is_empty();
    for judge in judges {
        let place = judge.place(folder);
        left &= judge.judge(&place, stored).1;
        resource = place.label;
    }
    (resource, left)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rotation::cluster::key_id_hash::KeyIdHash;
    use crate::rotation::cluster::resources::Resource;

    fn kms(key_id: &str) -> Stored {
        Stored::KmsV2 { provider: "p".into(), key_id: key_id.into(), keks: Vec::new() }
    }

    fn expected(target: &str) -> Expected {
        let secrets =
            Resource { group: String::new(), version: "v1".into(), plural: "secrets".into(), namespaced: true };
        let targets = [("p".into(), KeyIdHash::of(target))].into();
        Expected { resources: vec![(secrets, "p".to_owned().into())], targets, ..Expected::default() }
    }

    #[test]
    fn a_value_that_moves_from_one_key_to_another_is_counted_once() {
        let mut census = Census::default();
        census.add("secrets/default/a", &kms("old"));
        census.add("secrets/default/b", &kms("new"));
        assert!(census.remove("secrets/default/a", &kms("old")));
        census.add("secrets/default/a", &kms("new"));
        let judged = census.judged(&[expected("new")]);
        assert_eq!(judged.len(), 1);
        assert_eq!((judged[0].resource.as_str(), judged[0].values, judged[0].left), ("secrets", 2, false));
    }

    #[test]
    fn what_was_not_counted_cannot_be_taken_away() {
        let mut census = Census::default();
        census.add("secrets/default/a", &kms("old"));
        assert!(!census.remove("secrets/default/a", &kms("new")));
        assert!(!census.remove("configmaps/default/a", &kms("old")));
        assert_eq!(census.len(), 1);
    }

    #[test]
    fn while_api_servers_change_over_either_key_is_right() {
        let left = |wanted: &[Expected], key_id: &str| is_left(wanted, "secrets/default/a", &kms(key_id)).1;
        assert!(left(&[expected("new")], "old"));
        assert!(!left(&[expected("new"), expected("old")], "old"));
        assert!(left(&[expected("new"), expected("old")], "older"));
        assert!(!left(&[], "old"), "nothing is known yet");
    }
}
