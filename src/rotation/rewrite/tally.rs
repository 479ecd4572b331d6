//! What happened to the objects of one resource in a pass over them.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// So many altered objects are named in each pass.
const ALTERED_NAMED: usize = 1_000;

/// What happened to the objects of one resource.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Tally {
    /// Stored again under the target key.
    pub rewritten: u64,
    /// Found stored under the server's key already.
    pub fresh: u64,
    /// Stored after all servers had adopted the key: not asked.
    pub newer: u64,
    /// Deleted between the list and the patch.
    pub gone: u64,
    /// Changed by an admission webhook that took the empty patch as an occasion.
    pub altered: u64,
    /// Some of those.
    pub altered_named: BTreeSet<String>,
    /// Refused by admission or validation: path → why.
    pub refused: BTreeMap<String, String>,
    /// Left as they are, since storing them again would change them: path → what would change.
    pub withheld: BTreeMap<String, String>,
    /// Why the whole resource was left as it is: storing it again would change its objects.
    pub withheld_all: Option<String>,
    /// Could not be read by the server: path → why.
    pub undecryptable: BTreeMap<String, String>,
    /// Why the whole resource cannot be listed.
    pub unlistable: Option<String>,
}

impl Tally {
    /// How many objects were dealt with.
    pub fn total(&self) -> u64 {
        let named = self.refused.len() + self.withheld.len() + self.undecryptable.len();
        self.rewritten + self.fresh + self.newer + self.gone + named as u64
    }

    /// Enters an object that a webhook changed.
    pub fn name_altered(&mut self, path: String) {
        self.altered += 1;
        if self.altered_named.len() < ALTERED_NAMED {
            self.altered_named.insert(path);
        }
    }

    /// Adds what a later pass did. Its findings about single objects replace earlier ones.
    pub fn add(&mut self, later: Self) {
        self.rewritten += later.rewritten;
        self.altered += later.altered;
        self.altered_named.extend(later.altered_named.into_iter().take(ALTERED_NAMED));
        self.gone += later.gone;
        // These are of the last pass alone: what it found current, an earlier one may have rewritten.
        (self.fresh, self.newer) = (later.fresh, later.newer);
        (self.refused, self.undecryptable) = (later.refused, later.undecryptable);
        (self.withheld, self.withheld_all) = (later.withheld, later.withheld_all);
        self.unlistable = later.unlistable;
    }
}
