//! What a rotation has done so far, in one file, replaced by rename after every step.

mod activation;
mod former;
pub mod intent;
mod state;
pub mod verdict;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use self::activation::Activations;
pub use self::state::State;
use crate::encryption_config::ProviderName;
use crate::etcd::ClusterId;
use crate::files;
use crate::rotation::adoption::Adoption;
use crate::rotation::claim::{Claim, Subject};
use crate::rotation::cluster::key_id_hash::KeyIdHash;
use crate::rotation::cluster::resources::Resource;
use crate::rotation::cluster::writer::{StoredUnder, Writer};
use crate::rotation::error::RotationError;
use crate::rotation::journal::intent::Intent;
use crate::rotation::journal::verdict::{Conclusion, Verdict};
use crate::rotation::keys::name::{KeyName, KeyNames};
use crate::rotation::leftovers::scan::{Method, Scan};
use crate::rotation::leftovers::snapshots::SnapshotKeys;
use crate::rotation::rewrite::Tally;

// Fields that came later have `serde(default)`, so that a run begun by an older release can be resumed. A change that
// would give an old field another meaning needs the next number.
const FORMAT: u32 = 3;

/// What a rotation has done so far.
#[derive(Clone, Debug, Serialize, Deserialize)]
// A journal of a newer release is refused by its unknown field: what it says there may be what a verdict rests on.
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Journal {
    format: u32,
    /// Which program wrote it.
    pub tool: String,
    /// When the rotation began.
    pub started: jiff::Timestamp,
    /// Where it stands.
    pub state: State,
    /// Why it stands still, if it does.
    pub paused: Option<String>,
    /// Provider → hash of the `key_id` that was reported when it began.
    pub former: BTreeMap<ProviderName, KeyIdHash>,
    /// KEKs to rotate: name → active version before.
    pub keks_before: BTreeMap<String, String>,
    /// KEKs that were rotated: name → version that is active now.
    pub keks_rotated: BTreeMap<String, String>,
    /// The KEK versions that this and earlier rotations made active, and when.
    #[serde(default)]
    pub activations: Activations,
    /// What everything is to be stored under.
    pub targets: StoredUnder,
    /// How it is known that all API servers adopted it.
    pub adoption: Option<Adoption>,
    /// Whether the resources are only a guess.
    pub inferred: bool,
    /// The resources, each with what was done.
    pub resources: Vec<Progress>,
    /// What is left out, and why.
    pub skipped: BTreeMap<String, String>,
    /// How often everything was gone through.
    pub passes: u32,
    /// When the last rewrite ended.
    pub rewritten: Option<jiff::Timestamp>,
    /// What verifying found.
    pub verified: Option<Scan>,
    /// When verifying ended.
    pub verified_at: Option<jiff::Timestamp>,
    /// Since when no search and no server's counter shows a former key: a snapshot of etcd from then on holds none.
    #[serde(default)]
    pub clean_since: Option<jiff::Timestamp>,
    /// The revision of each etcd cluster at which the first of these searches ended.
    #[serde(default)]
    pub clean_revisions: BTreeMap<ClusterId, i64>,
    /// The revision of each etcd cluster at which it began: from there on every change is looked through.
    #[serde(default)]
    pub history_from: BTreeMap<ClusterId, i64>,
    /// Resource → the list's revision when the first of these searches ended, where there is no etcd to ask.
    #[serde(default)]
    pub clean_lists: BTreeMap<String, u64>,
    /// What it was begun with; resuming takes it from here.
    pub intent: Intent,
    /// Uid of the namespace `kube-system`: which cluster this is about.
    #[serde(default)]
    pub cluster: Option<String>,
    /// The etcd clusters that this is about, each with the newest revision that was met.
    #[serde(default)]
    pub etcd_clusters: BTreeMap<ClusterId, i64>,
    /// When the time had passed.
    pub settled: Option<jiff::Timestamp>,
    /// When the snapshot of etcd was taken that one can go back to.
    #[serde(default)]
    pub snapshot_before: Option<jiff::Timestamp>,
    /// When a snapshot of etcd was taken.
    pub snapshot: Option<jiff::Timestamp>,
    /// The provider whose plugin's configuration is known.
    #[serde(default)]
    pub own_provider: Option<ProviderName>,
    /// What that configuration calls its KEKs.
    #[serde(default)]
    pub names: KeyNames,
    /// What each KEK said about its active version, one sentence each.
    #[serde(default)]
    pub kek_answers: Vec<String>,
    /// Lineages of the KEKs that could not be asked.
    #[serde(default)]
    pub silent_keks: BTreeSet<String>,
    /// Every key that was in use when the rotation began or since, that it replaced, or that `--former` names.
    #[serde(default)]
    pub keys_seen: BTreeSet<KeyName>,
    /// The keys that an earlier rotation of the cluster `earlier_cluster` saw and did not bring to a *Yes*.
    #[serde(default)]
    pub earlier_keys: BTreeSet<KeyName>,
    /// The cluster of that rotation.
    #[serde(default)]
    pub earlier_cluster: Option<String>,
    /// The KEK versions of the target, where they are known.
    #[serde(default)]
    pub target_keys: BTreeSet<KeyName>,
    /// What the data were stored under before anything was done.
    #[serde(default)]
    pub first_survey: Option<Scan>,
    /// How each former key is disabled, where that is known.
    #[serde(default)]
    pub disabling: Vec<String>,
    /// What was shown so far, and what could not be shown.
    #[serde(default)]
    pub claims: BTreeMap<Subject, Claim>,
    /// What the backups that were named need.
    #[serde(default)]
    pub backups: Vec<SnapshotKeys>,
    /// Backups that were named earlier in this rotation, and whose files are not there any more.
    #[serde(default)]
    pub backups_gone: BTreeSet<PathBuf>,
    /// What is concluded.
    pub verdict: Option<Verdict>,
}

/// One resource, and what was done.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// Plural, group and version of the resource.
    pub resource: Resource,
    /// Who writes it.
    #[serde(rename = "provider")]
    pub writer: Writer,
    /// How many objects there were at first.
    pub objects: u64,
    /// Whatever has a greater resource version was stored after all servers had adopted the target key.
    pub adopted_at: Option<u64>,
    /// Whether it was gone through since.
    pub done: bool,
    /// What was done over all passes.
    pub tally: Tally,
}

impl Journal {
    /// A rotation that begins now.
    pub fn new(intent: Intent) -> Self {
        Self {
            format: FORMAT,
            tool: concat!("kube-envelope ", env!("CARGO_PKG_VERSION")).into(),
            started: jiff::Timestamp::now(),
            state: State::Plan,
            paused: None,
            former: BTreeMap::new(),
            keks_before: BTreeMap::new(),
            keks_rotated: BTreeMap::new(),
            activations: Activations::default(),
            targets: StoredUnder::default(),
            adoption: None,
            inferred: false,
            resources: Vec::new(),
            skipped: BTreeMap::new(),
            passes: 0,
            rewritten: None,
            verified: None,
            verified_at: None,
            clean_since: None,
            clean_revisions: BTreeMap::new(),
            history_from: BTreeMap::new(),
            clean_lists: BTreeMap::new(),
            intent,
            cluster: None,
            etcd_clusters: BTreeMap::new(),
            settled: None,
            snapshot_before: None,
            snapshot: None,
            own_provider: None,
            names: KeyNames::default(),
            kek_answers: Vec::new(),
            silent_keks: BTreeSet::new(),
            keys_seen: BTreeSet::new(),
            earlier_keys: BTreeSet::new(),
            earlier_cluster: None,
            target_keys: BTreeSet::new(),
            first_survey: None,
            disabling: Vec::new(),
            claims: BTreeMap::new(),
            backups: Vec::new(),
            backups_gone: BTreeSet::new(),
            verdict: None,
        }
    }

    /// Takes over what an earlier rotation left unproven: its former keys are still to be named.
    pub(crate) fn inherit(&mut self, earlier: Self) {
        self.activations = earlier.activations;
        let concluded = earlier.verdict.map(|verdict| verdict.conclusion);
        // After a Yes its keys are dealt with. Otherwise, only that earlier run knows that they were once in use: everything
        // may be rewritten by now, and this run would find nothing under them and never name them.
        if !matches!(concluded, Some(Conclusion::MayBeDisabled | Conclusion::NothingRotated)) {
            (self.earlier_keys, self.earlier_cluster) = (earlier.keys_seen, earlier.cluster);
            self.earlier_keys.extend(earlier.earlier_keys);
            self.names = earlier.names;
        }
    }

    /// Every key that the rotations saw whose journals and evidence files lie in the folder of this file.
    pub fn keys_seen_beside(file: &Path) -> BTreeSet<KeyName> {
        let folder = file.parent().and_then(|folder| fs::read_dir(folder).ok());
        let files = folder.into_iter().flatten().flatten();
        // Whatever else lies there cannot be read as a journal, and is passed over.
        files
            .filter_map(|entry| Self::read(&entry.path()).ok().flatten())
            .flat_map(|earlier| earlier.keys_seen)
            .collect()
    }

    /// Reads one; `None` where there is none.
    ///
    /// # Errors
    /// The file cannot be read, or is not a journal of this program.
    pub fn read(file: &Path) -> Result<Option<Self>, RotationError> {
        let text = match fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(RotationError::File { what: "read the journal", file: file.into(), source }),
        };
        let journal: Self = serde_json::from_str(&text).map_err(|error| {
            RotationError::Unusable(format!(
                "{} is not a journal of this program ({error}); move it away to start over: rewriting twice is harmless",
                file.display()
            ))
        })?;
        if journal.format != FORMAT {
            return Err(RotationError::Unusable(format!(
                "journal {} has format {}, and this program reads format {FORMAT}",
                file.display(),
                journal.format
            )));
        }
        Ok(Some(journal))
    }

    /// Whether there is nothing left to do.
    pub fn is_finished(&self) -> bool {
        matches!(self.state, State::Done | State::Aborted)
    }

    /// Puts the file in place, whole or not at all.
    ///
    /// # Errors
    /// The file cannot be written; the former one is still whole.
    pub fn write(&self, file: &Path) -> Result<(), RotationError> {
        let text = serde_json::to_string_pretty(self).expect("a journal has only string keys");
        write_whole(file, &text)
    }

    /// Adds a resource, or returns the one that is there.
    pub(crate) fn resource_mut(&mut self, resource: &Resource, writer: &Writer) -> &mut Progress {
        let at = self.resources.iter().position(|progress| &progress.resource == resource);
        let at = at.unwrap_or_else(|| {
            self.resources.push(Progress {
                resource: resource.clone(),
                writer: writer.clone(),
                objects: 0,
                adopted_at: None,
                done: false,
                tally: Tally::default(),
            });
            self.resources.len() - 1
        });
        &mut self.resources[at]
    }

    /// Whether a search found nothing that is not stored under a target key, apart from what expires by itself.
    pub(crate) fn nothing_is_left(&self) -> bool {
        self.verified.as_ref().is_some_and(|scan| scan.leftovers == scan.expiring)
    }

    /// How many objects were left because storing them again would change them, and still need it.
    pub(crate) fn withheld(&self) -> usize {
        if self.nothing_is_left() {
            return 0;
        }
        self.resources.iter().map(|progress| progress.tally.withheld.len()).sum()
    }

    /// Whether something is to be stored by the plugin whose configuration is known.
    pub(crate) fn is_our_plugin_writing(&self) -> bool {
        self.own_provider.as_ref().is_some_and(|own| self.targets.key(own).is_some())
    }

    /// Whether etcd itself was searched.
    pub(crate) fn is_by_etcd(&self) -> bool {
        self.verified.as_ref().is_some_and(|scan| scan.method == Method::Etcd)
    }

    /// Objects that the API servers refused to store again, by path. One that is current already, as a search showed, is
    /// refused for nothing.
    pub(crate) fn refused(&self) -> BTreeSet<String> {
        if self.nothing_is_left() {
            return BTreeSet::new();
        }
        self.resources.iter().flat_map(|progress| progress.tally.refused.keys().cloned()).collect()
    }
}

/// Writes a file of mode 0600, whole or not at all; creates its folder where there is none.
///
/// # Errors
/// The file cannot be written; a former one is still whole.
pub fn write_whole(file: &Path, text: &str) -> Result<(), RotationError> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder
        .map_or(Ok(()), files::create_private_folder)
        .and_then(|()| files::replace(file, format!("{text}\n").as_bytes()))
        .map_err(|source| RotationError::File { what: "write", file: file.into(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_folder_of_a_new_journal_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("kube-envelope/rotation/journal.json");
        Journal::new(Intent::default()).write(&file).unwrap();
        for made in ["kube-envelope", "kube-envelope/rotation"] {
            assert_eq!(folder.path().join(made).metadata().unwrap().permissions().mode() & 0o777, 0o700);
        }
        assert_eq!(Journal::read(&file).unwrap().unwrap().state, State::Plan);
    }
}
