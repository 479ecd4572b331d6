//! What was shown, and what could not be: each claim with its time, its revisions and its blind spots. The verdict is
//! computed from these and from nothing else that could go stale unseen.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a claim is about. A verdict of *Yes* needs every one of these that [`Subject::is_required`] names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Subject {
    /// Which API servers exist.
    Roster,
    /// Every API server reads what every other one writes.
    Readability,
    /// Since adoption no API server wrote under another key, restarted, joined or changed its configuration.
    Ledger,
    /// The etcd clusters that were read are this cluster's, and hold everything that the API serves.
    Etcd,
    /// The API servers run with the `EncryptionConfiguration` that was given.
    Configuration,
    /// Old revisions in etcd are compacted.
    Compaction,
    /// A snapshot of etcd holds nothing under a former key.
    Snapshot,
    /// At the end the KEKs still say that the target versions are the active ones.
    Keks,
}

/// How far a claim is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Finding {
    /// It was shown.
    Shown,
    /// It is not so yet; waiting, or what `remedy` says, will do.
    NotYet {
        /// What to do.
        remedy: String,
    },
    /// It could not be shown.
    NotShown {
        /// What to do.
        remedy: String,
    },
}

/// One claim: what was looked at, when, how far it holds, and what the method cannot see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    /// How far it is shown.
    pub finding: Finding,
    /// One sentence: who looked at what, by which method, and what was found.
    pub what: String,
    /// When it was looked at.
    pub at: jiff::Timestamp,
    /// etcd cluster → the revision up to which it holds, where that is known.
    #[serde(default)]
    pub revisions: BTreeMap<String, i64>,
    /// What this method cannot see, or what was not looked at.
    #[serde(default)]
    pub blind_spots: Vec<String>,
}

impl Claim {
    /// Something that was shown just now.
    pub fn shown(what: impl Into<String>) -> Self {
        Self::found(Finding::Shown, what)
    }

    /// Something that will be so later.
    pub fn not_yet(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::found(Finding::NotYet { remedy: remedy.into() }, what)
    }

    /// Something that could not be shown.
    pub fn not_shown(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::found(Finding::NotShown { remedy: remedy.into() }, what)
    }

    /// What to do about it, unless it is shown.
    pub fn remedy(&self) -> Option<&str> {
        match &self.finding {
            Finding::Shown => None,
            Finding::NotYet { remedy } | Finding::NotShown { remedy } => Some(remedy),
        }
    }

    fn found(finding: Finding, what: impl Into<String>) -> Self {
        Self {
            finding,
            what: what.into(),
            at: jiff::Timestamp::now(),
            revisions: BTreeMap::new(),
            blind_spots: Vec::new(),
        }
    }

    /// Adds what was not looked at.
    #[must_use]
    pub fn blind_to(mut self, spots: impl IntoIterator<Item = String>) -> Self {
        self.blind_spots.extend(spots);
        self
    }
}

impl Subject {
    /// Whether a *Yes* is impossible without a claim about this. A subject becomes required with the code that makes
    /// its claim.
    pub fn is_required(self) -> bool {
        false
    }

    /// What is missing where there is no claim about it.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Roster => "which API servers exist was not settled",
            Self::Readability => "that every API server reads what the others write was not tried",
            Self::Ledger => "what the API servers wrote since adoption was not recorded",
            Self::Etcd => "that etcd holds everything that the API serves was not compared",
            Self::Configuration => "the API servers' own configuration was not compared",
            Self::Compaction => "that old revisions are compacted was not shown",
            Self::Snapshot => "that a snapshot holds nothing under a former key was not shown",
            Self::Keks => "which KEK versions are active was not asked again",
        }
    }

    /// Every subject.
    pub const ALL: [Self; 8] = [
        Self::Roster,
        Self::Readability,
        Self::Ledger,
        Self::Etcd,
        Self::Configuration,
        Self::Compaction,
        Self::Snapshot,
        Self::Keks,
    ];
}
