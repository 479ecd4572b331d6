//! Writes under a key that is not a target: whether the target is another one by now is asked before they are told.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::aims::Aims;
use crate::etcd::{Stored, folder_of};
use crate::rotation::leftovers::census::is_left;
use crate::rotation::leftovers::judge::Expected;

/// How long an API server that does not answer is waited for, which may know another target.
const PATIENCE: Duration = Duration::from_mins(2);

/// Values of one resource that were stored under a former key, in clear, or by another provider than the one that is to
/// encrypt it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OldKeyWrite {
    /// The resource, or the folder if the API serves no such resource.
    pub resource: String,
    /// How they are stored.
    pub stored: Stored,
    /// The etcd key of the first one, without the prefix.
    pub key: String,
    /// The revision of the first one.
    pub revision: i64,
    /// How many values were stored so since it was told last.
    pub writes: u64,
    /// Whether it is the first time since the target is what it is.
    pub first: bool,
}

/// What was seen and not told yet. As large as there are resources times keys.
#[derive(Debug, Default)]
pub(super) struct Suspects {
    /// Folder and how stored → whether it is a leftover.
    known: BTreeMap<(String, Stored), bool>,
    pending: BTreeMap<(String, Stored), Suspect>,
    told: BTreeSet<(String, Stored)>,
}

#[derive(Debug)]
struct Suspect {
    key: String,
    revision: i64,
    writes: u64,
    since: Instant,
}

impl Suspects {
    /// Takes a write into account. `key` is without the prefix.
    pub(super) fn note(&mut self, wanted: &[Expected], key: &str, stored: &Stored, revision: i64) {
        let place = (folder_of(key).to_owned(), stored.clone());
        if !*self.known.entry(place.clone()).or_insert_with(|| is_left(wanted, key, stored).1) {
            return;
        }
        let begin = || Suspect { key: key.to_owned(), revision, writes: 0, since: Instant::now() };
        let suspect = self.pending.entry(place).or_insert_with(begin);
        suspect.writes = suspect.writes.saturating_add(1);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// The API servers were asked again. `changed` is whether they write with other keys than before.
    pub(super) fn judge(&mut self, aims: &Aims, changed: bool) -> Vec<OldKeyWrite> {
        self.known.clear();
        if changed {
            self.told.clear();
        }
        let mut found = Vec::new();
        for ((folder, stored), suspect) in std::mem::take(&mut self.pending) {
            let (resource, left) = is_left(&aims.wanted, &suspect.key, &stored);
            if !left {
                continue;
            }
            if !aims.unasked.is_empty() && suspect.since.elapsed() < PATIENCE {
                self.pending.insert((folder, stored), suspect);
                continue;
            }
            let first = self.told.insert((folder, stored.clone()));
            let Suspect { key, revision, writes, .. } = suspect;
            found.push(OldKeyWrite { resource, stored, key, revision, writes, first });
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rotation::cluster::key_id_hash::KeyIdHash;
    use crate::rotation::cluster::resources::Resource;

    const KEY: &str = "secrets/default/a";

    fn kms(key_id: &str) -> Stored {
        Stored::KmsV2 { provider: "p".into(), key_id: key_id.into(), keks: Vec::new() }
    }

    fn aims(targets: &[&str]) -> Aims {
        let secrets =
            Resource { group: String::new(), version: "v1".into(), plural: "secrets".into(), namespaced: true };
        let wanted = |target: &&str| Expected {
            resources: vec![(secrets.clone(), "p".to_owned().into())],
            targets: [("p".into(), KeyIdHash::of(target))].into(),
            ..Expected::default()
        };
        Aims { wanted: targets.iter().map(wanted).collect(), unasked: Vec::new(), at: jiff::Timestamp::UNIX_EPOCH }
    }

    #[test]
    fn a_write_under_a_former_key_is_told_and_only_the_first_as_such() {
        let (mut suspects, aims) = (Suspects::default(), aims(&["new"]));
        suspects.note(&aims.wanted, KEY, &kms("new"), 5);
        assert!(suspects.is_empty());
        for revision in [6, 7] {
            suspects.note(&aims.wanted, KEY, &kms("old"), revision);
        }
        let told = suspects.judge(&aims, false);
        assert_eq!(told.iter().map(|one| (one.writes, one.revision, one.first)).collect::<Vec<_>>(), [(2, 6, true)]);
        suspects.note(&aims.wanted, KEY, &Stored::Plain, 8);
        suspects.note(&aims.wanted, KEY, &kms("old"), 9);
        let told = suspects.judge(&aims, false);
        let first = |stored: &Stored| told.iter().find(|one| one.stored == *stored).unwrap().first;
        assert_eq!((first(&kms("old")), first(&Stored::Plain)), (false, true));
    }

    #[test]
    fn a_key_that_an_api_server_reports_by_now_is_no_former_one() {
        let mut suspects = Suspects::default();
        suspects.note(&aims(&["old"]).wanted, KEY, &kms("new"), 6);
        assert!(!suspects.is_empty(), "it must be asked first");
        assert_eq!(suspects.judge(&aims(&["old", "new"]), true), []);
        suspects.note(&aims(&["new"]).wanted, KEY, &kms("old"), 7);
        assert_eq!(suspects.judge(&aims(&["new"]), true).len(), 1, "all have adopted the new one");
    }

    #[test]
    fn an_api_server_that_does_not_answer_is_waited_for() {
        let (mut suspects, mut aims) = (Suspects::default(), aims(&["new"]));
        suspects.note(&aims.wanted, KEY, &kms("other"), 6);
        aims.unasked = vec!["no answer from b".into()];
        assert_eq!(suspects.judge(&aims, false), []);
        aims.unasked.clear();
        assert_eq!(suspects.judge(&aims, false).len(), 1, "nothing was lost meanwhile");
    }
}
