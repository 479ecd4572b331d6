//! What a rotation has done so far, in one file, replaced by rename after every step.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::RotationError;
use super::adoption::Adoption;
use super::resources::Resource;
use super::rewrite::Tally;
use super::verdict::Verdict;
use super::verify::Scan;
use crate::files;

const FORMAT: u32 = 1;

/// Where a rotation stands. Each step may be begun again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum State {
    /// Which API servers, which resources, how many objects.
    Plan,
    /// May we, and would anything be refused?
    Preflight,
    /// Make the new KEK version active.
    RotateKek,
    /// Until every API server stores under the target key.
    AwaitAdoption,
    /// Note the revision from which on everything is stored under the target key.
    Agree,
    /// Make the API servers store every older object again.
    Rewrite,
    /// Again for what appeared meanwhile, until nothing changes.
    Resweep,
    /// Look for leftovers by other means.
    Verify,
    /// Until old revisions and continue tokens are gone.
    Settle,
    /// Is there a snapshot of etcd without the old key?
    Snapshot,
    /// The verdict is given.
    Done,
    /// Given up; both keys are still readable.
    Aborted,
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Plan => "plan",
            Self::Preflight => "preflight",
            Self::RotateKek => "rotate KEK",
            Self::AwaitAdoption => "await adoption",
            Self::Agree => "agree",
            Self::Rewrite => "rewrite",
            Self::Resweep => "resweep",
            Self::Verify => "verify",
            Self::Settle => "settle",
            Self::Snapshot => "snapshot",
            Self::Done => "done",
            Self::Aborted => "aborted",
        })
    }
}

/// What a rotation has done so far.
#[derive(Clone, Debug, Serialize, Deserialize)]
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
    pub former: BTreeMap<String, String>,
    /// KEKs to rotate: name → active version before.
    pub keks_before: BTreeMap<String, String>,
    /// KEKs that were rotated: name → version that is active now.
    pub keks_rotated: BTreeMap<String, String>,
    /// Provider → hash of the `key_id` that everything is to be stored under.
    pub targets: BTreeMap<String, String>,
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
    /// Since when every search found nothing under a former key, while the servers' counters showed nothing either. A
    /// snapshot of etcd from after it holds nothing under a former key.
    #[serde(default)]
    pub clean_since: Option<jiff::Timestamp>,
    /// How long is to be waited after the last rewrite, in seconds.
    pub settle_seconds: u64,
    /// When the time had passed.
    pub settled: Option<jiff::Timestamp>,
    /// When the snapshot of etcd was taken that one can go back to.
    #[serde(default)]
    pub snapshot_before: Option<jiff::Timestamp>,
    /// When a snapshot of etcd was taken.
    pub snapshot: Option<jiff::Timestamp>,
    /// What is concluded.
    pub verdict: Option<Verdict>,
}

/// One resource, and what was done.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// Which.
    pub resource: Resource,
    /// The provider that writes it.
    pub provider: String,
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
    pub fn new(settle_seconds: u64) -> Self {
        Self {
            format: FORMAT,
            tool: concat!("kube-envelope ", env!("CARGO_PKG_VERSION")).into(),
            started: jiff::Timestamp::now(),
            state: State::Plan,
            paused: None,
            former: BTreeMap::new(),
            keks_before: BTreeMap::new(),
            keks_rotated: BTreeMap::new(),
            targets: BTreeMap::new(),
            adoption: None,
            inferred: false,
            resources: Vec::new(),
            skipped: BTreeMap::new(),
            passes: 0,
            rewritten: None,
            verified: None,
            verified_at: None,
            clean_since: None,
            settle_seconds,
            settled: None,
            snapshot_before: None,
            snapshot: None,
            verdict: None,
        }
    }

    /// Reads one; `None` where there is none.
    pub fn read(file: &Path) -> Result<Option<Self>, RotationError> {
        let text = match fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(RotationError::File { what: "read the journal", file: file.into(), source }),
        };
        let journal: Self = serde_json::from_str(&text).map_err(|error| {
            RotationError::Unusable(format!(
                "{} is no journal of this program ({error}); move it away to begin anew: rewriting twice does no harm",
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
    pub fn write(&self, file: &Path) -> Result<(), RotationError> {
        let text = serde_json::to_string_pretty(self).expect("a journal has only string keys");
        write_whole(file, &text)
    }

    /// Adds a resource, or returns the one that is there.
    pub fn resource_mut(&mut self, resource: &Resource, provider: &str) -> &mut Progress {
        let at = self.resources.iter().position(|progress| &progress.resource == resource);
        let at = at.unwrap_or_else(|| {
            self.resources.push(Progress {
                resource: resource.clone(),
                provider: provider.into(),
                objects: 0,
                adopted_at: None,
                done: false,
                tally: Tally::default(),
            });
            self.resources.len() - 1
        });
        &mut self.resources[at]
    }

    /// Objects that the API servers refused to store again, by path.
    pub fn refused(&self) -> BTreeSet<String> {
        self.resources.iter().flat_map(|progress| progress.tally.refused.keys().cloned()).collect()
    }
}

/// Writes a file of mode 0600, whole or not at all; creates its folder where there is none.
pub fn write_whole(file: &Path, text: &str) -> Result<(), RotationError> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder
        .map_or(Ok(()), files::create_private_folder)
        .and_then(|()| files::replace(file, format!("{text}\n").as_bytes()))
        .map_err(|source| RotationError::File { what: "write", file: file.into(), source })
}
