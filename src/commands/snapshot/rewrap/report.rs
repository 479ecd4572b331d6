//! What `snapshot rewrap` says.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use crate::backup::{Common, Inventory, Snapshot, SnapshotFile, Source};
use crate::commands::closed_pipe::println;
use crate::commands::exit::Exit;
use crate::rehearsal::Rehearsal;
use crate::rotation::keys::name::{KeyName, KeyNames};
use crate::rotation::rewrap::pass::Rewrapped;

/// So many values are shown; JSON has more.
const SHOWN: usize = 20;

/// A snapshot, and how everything in it is stored.
pub(super) struct Held {
    pub(super) snapshot: Snapshot,
    pub(super) inventory: Inventory,
}

impl Held {
    /// Reads a snapshot to its end, whatever its keys begin with.
    pub(super) async fn read(file: &Path) -> Result<Self> {
        let inventory = Inventory::take(&Source::Snapshot(Snapshot::open(file)?), "").await?;
        Ok(Self { snapshot: Snapshot::open(file)?, inventory })
    }

    pub(super) fn about(&self) -> &SnapshotFile {
        self.snapshot.about()
    }

    pub(super) fn into_source(self) -> Source {
        Source::Snapshot(self.snapshot)
    }

    /// The keys that it needs.
    fn keys(&self) -> BTreeSet<KeyName> {
        let keys = self.inventory.rows().flat_map(|row| KeyName::of(&row.shape.stored));
        keys.filter(|key| *key != KeyName::Clear).collect()
    }

    /// How many superseded values it holds.
    fn older(&self) -> u64 {
        self.inventory.rows().map(|row| row.count.older).sum()
    }
}

/// What was done, and what it shows.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    from: FileSaid,
    /// Of the new snapshot, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<FileSaid>,
    /// Whether the new file was written.
    pub(super) is_written: bool,
    rewrapped: u64,
    /// Values that were under the active versions already.
    current: u64,
    seeds: usize,
    /// Keys in etcd → why their values stay under a former key.
    refused: BTreeMap<String, String>,
    /// Current values that were compared.
    compared: u64,
    /// Keys whose lease ended on the way.
    expired: u64,
    /// Superseded values of the original that are not in the new file.
    older_left_out: u64,
    /// Keys that the original needs and the new file does not.
    no_longer_needed: Vec<String>,
    /// Keys that the new file needs.
    needed: Vec<String>,
    rehearsal: Option<Rehearsed>,
    #[serde(skip)]
    keys: BTreeSet<KeyName>,
    #[serde(skip)]
    older: u64,
    #[serde(skip)]
    path: String,
}

/// What a snapshot file says about itself.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FileSaid {
    path: String,
    revision: i64,
    sha256: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Rehearsed {
    opened: u64,
    refused: u64,
    not_judged: u64,
    named: BTreeMap<String, String>,
}

impl Report {
    /// Of a snapshot whose values were rewrapped, if none was refused.
    pub(super) fn new(before: &Held, to: &Path, tally: &Rewrapped, seeds: usize) -> Self {
        Self {
            from: FileSaid::of(&before.snapshot, &before.snapshot.path().display().to_string()),
            to: None,
            is_written: false,
            rewrapped: tally.total(),
            current: tally.current,
            seeds,
            refused: tally.refused.clone(),
            compared: 0,
            expired: 0,
            older_left_out: 0,
            no_longer_needed: Vec::new(),
            needed: Vec::new(),
            rehearsal: None,
            keys: before.keys(),
            older: before.older(),
            path: to.display().to_string(),
        }
    }

    /// Enters the new snapshot. The keys that it does not need, as `--without` takes them.
    pub(super) fn compared(&mut self, after: &Held, common: Common, names: &KeyNames) -> Vec<String> {
        let needed = after.keys();
        let gone: Vec<&KeyName> = self.keys.difference(&needed).collect();
        self.to = Some(FileSaid::of(&after.snapshot, &self.path));
        (self.compared, self.expired) = (common.values, common.expired);
        self.older_left_out = self.older.saturating_sub(after.older());
        self.no_longer_needed = gone.iter().map(|key| names.show(key)).collect();
        self.needed = needed.iter().map(|key| names.show(key)).collect();
        gone.iter().filter_map(|key| without(key)).collect()
    }

    pub(super) fn rehearsed(&mut self, found: &Rehearsal) {
        let named = found.folders.values().flat_map(|folder| folder.named.clone()).collect();
        let opened = found.folders.values().map(|folder| folder.opened).sum();
        let (refused, not_judged) = (found.refused(), found.unchecked());
        self.rehearsal = Some(Rehearsed { opened, refused, not_judged, named });
    }

    pub(super) fn exit(&self) -> Exit {
        match &self.rehearsal {
            None => Exit::Quarantined,
            Some(rehearsed) if rehearsed.refused > 0 => Exit::WouldNotStart,
            Some(rehearsed) if rehearsed.not_judged > 0 => Exit::NotProven,
            Some(_) => Exit::Done,
        }
    }

    pub(super) fn print(&self) {
        println!(
            "{} values were rewrapped by {} seeds; {} were under the active versions already",
            self.rewrapped, self.seeds, self.current
        );
        show(&self.refused);
        let (Some(to), Some(rehearsed)) = (&self.to, &self.rehearsal) else {
            println!(
                "No new file: {} values cannot be rewrapped, so it would need the former key.",
                self.refused.len()
            );
            return;
        };
        let expired = match self.expired {
            0 => String::new(),
            expired => format!("; {expired} expired with their lease"),
        };
        println!(
            "compared with the original: {} current values are the same but for their seeds{expired}",
            self.compared
        );
        println!(
            "left out: {} superseded values, which an API server does not read when it starts",
            self.older_left_out
        );
        show(&rehearsed.named);
        let without = match self.no_longer_needed.as_slice() {
            [] => "rehearsed".to_owned(),
            gone => format!("rehearsed without {}", gone.join(", ")),
        };
        println!(
            "{without}: {} values open, {} do not, {} could not be judged",
            rehearsed.opened, rehearsed.refused, rehearsed.not_judged
        );
        if !self.is_written {
            println!("No new file: the values named above do not open, or not without their former key.");
            return;
        }
        let hash = to.sha256.as_deref().unwrap_or_default();
        println!("{} is written: revision {}, SHA-256 {hash}", to.path, to.revision);
        println!("It needs {}.", self.needed.join(", "));
        if !self.no_longer_needed.is_empty() {
            println!(
                "It does not need {}. {} still does: delete it once the new file has taken its place.",
                self.no_longer_needed.join(", "),
                self.from.path
            );
        }
    }
}

impl FileSaid {
    fn of(snapshot: &Snapshot, path: &str) -> Self {
        let about = snapshot.about();
        Self { path: path.to_owned(), revision: about.revision, sha256: about.hash.clone() }
    }
}

/// A key as `--without` takes it.
fn without(key: &KeyName) -> Option<String> {
    match key {
        KeyName::Kek { lineage, version } => Some(format!("{lineage}:{version}")),
        KeyName::KeyId { key_id, .. } => Some(key_id.clone()),
        _ => None,
    }
}

fn show(named: &BTreeMap<String, String>) {
    named.iter().take(SHOWN).for_each(|(key, why)| println!("{key}: {why}"));
    if named.len() > SHOWN {
        println!("and {} more; --output json names them", named.len() - SHOWN);
    }
}
