//! What this node adopted so far: by it, a KEK that goes back to an earlier version is known. Pure.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::collections::BTreeMap;

use prost::Message;

use crate::crypto::secret::DekId;
use crate::envelope::record::{AdoptedRecord, AdoptedVersion, KekName};
use crate::kek::{KekVersion, Lineage};

/// DEKs of its own that a node remembers.
const MOST_DEKS: usize = 64;

/// Versions that are remembered of all KEKs together.
const MOST_VERSIONS: usize = 1024;

/// The generations that this node adopted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// The DEKs that were made here and adopted, the newest last.
    deks: Vec<DekId>,
    /// Every version that was adopted, with the epoch of that time, in order.
    versions: Vec<(u64, KekVersion)>,
    /// What the configuration called the KEKs.
    names: BTreeMap<Lineage, String>,
}

impl History {
    /// The DEKs that were made here and adopted, the newest first.
    pub fn deks(&self) -> impl Iterator<Item = DekId> {
        self.deks.iter().rev().copied()
    }

    /// How the configuration called a KEK when it was in use.
    pub fn name(&self, lineage: Lineage) -> Option<&str> {
        self.names.get(&lineage).map(String::as_str)
    }

    /// The version of a KEK that was adopted last under this epoch.
    pub fn newest(&self, epoch: u64, lineage: Lineage) -> Option<&KekVersion> {
        let mut versions = self.versions.iter().rev();
        let found = versions.find(|(then, version)| *then == epoch && version.lineage == lineage);
        found.map(|(_, version)| version)
    }

    /// The highest epoch that was adopted; 0 where nothing is known of it.
    pub fn epoch(&self) -> u64 {
        self.versions.iter().map(|(epoch, _)| *epoch).max().unwrap_or(0)
    }

    /// The first KEK that would go back to a version from before its newest one.
    ///
    /// Judged for each KEK: that a list of KEKs is changed, and changed back, makes none of them older.
    pub fn goes_back<'a>(
        &self,
        epoch: u64,
        versions: impl IntoIterator<Item = &'a KekVersion>,
    ) -> Option<&'a KekVersion> {
        versions.into_iter().find(|version| {
            self.newest(epoch, version.lineage) != Some(*version)
                && self.versions.iter().any(|(then, known)| *then == epoch && known == *version)
        })
    }

    /// Notes an adoption.
    pub fn adopted<'a>(&mut self, dek: DekId, epoch: u64, versions: impl IntoIterator<Item = &'a KekVersion>) {
        self.deks.retain(|known| *known != dek);
        self.deks.push(dek);
        self.deks.drain(..self.deks.len().saturating_sub(MOST_DEKS));
        for version in versions {
            // Two DEKs of one generation are one entry.
            if self.newest(epoch, version.lineage) != Some(version) {
                self.versions.push((epoch, version.clone()));
            }
        }
        self.versions.drain(..self.versions.len().saturating_sub(MOST_VERSIONS));
    }

    /// Notes how the configuration calls a KEK. Whether that is new.
    pub fn called(&mut self, lineage: Lineage, name: &str) -> bool {
        self.names.insert(lineage, name.to_owned()).as_deref() != Some(name)
    }

    /// Puts what was adopted since after what an earlier process wrote down.
    #[must_use]
    pub fn after(self, mut earlier: Self) -> Self {
        for dek in &self.deks {
            // Without versions: theirs are added below, each with its epoch.
            earlier.adopted(*dek, 0, []);
        }
        for (epoch, version) in &self.versions {
            let of = version.lineage;
            // What both know stands there once, and what was the newest here is the newest afterwards.
            let is_newest = self.newest(*epoch, of) == Some(version) && earlier.newest(*epoch, of) != Some(version);
            if is_newest || !earlier.versions.contains(&(*epoch, version.clone())) {
                earlier.versions.push((*epoch, version.clone()));
            }
        }
        earlier.versions.drain(..earlier.versions.len().saturating_sub(MOST_VERSIONS));
        earlier.names.extend(self.names);
        earlier
    }

    /// As it is stored.
    pub fn encode(&self) -> Vec<u8> {
        let versions = self.versions.iter().map(|(epoch, version)| AdoptedVersion {
            epoch: *epoch,
            lineage: version.lineage.0.to_vec(),
            version: version.version.clone(),
        });
        let names =
            self.names.iter().map(|(lineage, name)| KekName { lineage: lineage.0.to_vec(), name: name.clone() });
        let record = AdoptedRecord {
            // For a release that knows one id alone, if the plugin is downgraded on this folder.
            dek_id: self.deks.last().map(|dek| dek.0.to_vec()).unwrap_or_default(),
            dek_ids: self.deks.iter().map(|dek| dek.0.to_vec()).collect(),
            versions: versions.collect(),
            names: names.collect(),
        };
        record.encode_to_vec()
    }

    /// Reads what [`History::encode`] made; `None` for anything else.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let record = AdoptedRecord::decode(bytes).ok()?;
        // That release wrote only `dek_id`.
        let ids = if record.dek_ids.is_empty() { vec![record.dek_id] } else { record.dek_ids };
        let deks = ids.into_iter().filter(|id| !id.is_empty()).map(|id| id.try_into().ok().map(DekId));
        let versions = record.versions.into_iter().map(|adopted| {
            let lineage = Lineage(adopted.lineage.try_into().ok()?);
            Some((adopted.epoch, KekVersion { lineage, version: adopted.version }))
        });
        let names = record.names.into_iter().map(|name| Some((Lineage(name.lineage.try_into().ok()?), name.name)));
        Some(Self {
            deks: deks.collect::<Option<_>>()?,
            versions: versions.collect::<Option<_>>()?,
            names: names.collect::<Option<_>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(home: &str, version: &str) -> KekVersion {
        KekVersion { lineage: Lineage::derive("test", &[home]), version: version.into() }
    }

    fn history() -> History {
        let mut history = History::default();
        history.adopted(DekId([1; 16]), 1, &[version("a", "1")]);
        history.adopted(DekId([2; 16]), 1, &[version("a", "2"), version("b", "1")]);
        history.adopted(DekId([3; 16]), 1, &[version("b", "2")]);
        history.called(version("a", "").lineage, "primary");
        history
    }

    #[test]
    fn newer_is_judged_for_each_kek() {
        let back = |epoch, versions: &[KekVersion]| history().goes_back(epoch, versions).cloned();
        // The set was never adopted, and a went back in it.
        assert_eq!(back(1, &[version("a", "1"), version("b", "3")]), Some(version("a", "1")));
        // The list was changed, and changed back: none is older.
        assert_eq!(back(1, &[version("a", "2")]), None);
        assert_eq!(back(1, &[version("a", "2"), version("b", "2")]), None);
        assert_eq!(back(1, &[version("c", "1"), version("a", "3")]), None);
        // The cure.
        assert_eq!(back(2, &[version("a", "1")]), None);
    }

    #[test]
    fn it_comes_back_as_it_was_stored_and_nothing_else_is_taken_for_one() {
        assert_eq!(History::decode(&history().encode()), Some(history()));
        assert_eq!(history().deks().next(), Some(DekId([3; 16])));
        assert_eq!(History::decode(b"\x0a\x01\x01"), None, "an id of one byte");
        assert_eq!(History::decode(&[]), Some(History::default()));
    }

    #[test]
    fn what_was_adopted_before_the_record_was_read_comes_after_it() {
        let mut since = History::default();
        since.adopted(DekId([4; 16]), 1, &[version("a", "3")]);
        let whole = since.after(history());
        assert_eq!(whole.deks().take(2).collect::<Vec<_>>(), [DekId([4; 16]), DekId([3; 16])]);
        assert_eq!(whole.goes_back(1, &[version("a", "2")]), Some(&version("a", "2")));
    }

    #[test]
    fn a_record_that_is_read_again_adds_nothing() {
        assert_eq!(history().after(history()), history());
        let mut since = history();
        since.adopted(DekId([4; 16]), 1, &[version("a", "3")]);
        assert_eq!(since.clone().after(history()), since);
        // Another node's, or an older copy: what was newest here still is.
        let mut other = History::default();
        other.adopted(DekId([5; 16]), 1, &[version("a", "2"), version("a", "0")]);
        let whole = history().after(other);
        assert_eq!(whole.newest(1, version("a", "").lineage), Some(&version("a", "2")));
    }

    #[test]
    fn the_epoch_is_the_highest_whatever_came_after_it() {
        let mut history = history();
        history.adopted(DekId([4; 16]), 7, &[version("a", "2")]);
        history.adopted(DekId([5; 16]), 3, &[version("a", "2")]);
        assert_eq!((history.epoch(), History::default().epoch()), (7, 0));
    }

    #[test]
    fn its_size_is_bounded() {
        let mut history = History::default();
        for number in 0..u16::try_from(2 * MOST_VERSIONS).unwrap() {
            let [high, low] = number.to_be_bytes();
            let mut id = [0; 16];
            (id[0], id[1]) = (high, low);
            history.adopted(DekId(id), 1, &[version("a", &number.to_string())]);
        }
        assert_eq!((history.deks.len(), history.versions.len()), (MOST_DEKS, MOST_VERSIONS));
    }
}
