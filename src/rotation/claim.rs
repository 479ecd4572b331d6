//! What was shown, and what could not be: each claim with who looked, at what, when, up to which revision, how long it
//! holds, and what the method cannot see. A verdict is computed from claims and from nothing that could go stale unseen.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a claim is about. A *Yes* needs every one of these that `is_required` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Subject {
    /// Which API servers exist.
    Roster,
    /// Every API server stores under the target key.
    Adoption,
    /// Every API server reads what every other one writes.
    Readability,
    /// Every API server stores every encrypted resource alike.
    Writers,
    /// Since adoption no API server wrote under another key, restarted, joined or changed its configuration.
    Ledger,
    /// Everything that is stored was looked at.
    Search,
    /// What was stored, and superseded, between the first clean search and the last one was looked at.
    History,
    /// The etcd clusters that were read are this cluster's, and hold everything that the API serves.
    Etcd,
    /// The API servers run with the EncryptionConfiguration that was given.
    Configuration,
    /// Old revisions in etcd are compacted.
    Compaction,
    /// A snapshot of etcd holds nothing under a former key.
    Snapshot,
    /// At the end the KEKs still say that the target versions are the active ones.
    Keks,
    /// No plugin that some API server asks reports a key that is to go.
    Plugins,
}

/// What a verdict is to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// Which keys may be disabled?
    MayBeDisabled,
    /// Is anything stored under another key than those that are active?
    IsAnythingLeft,
}

/// What decides which claims a verdict needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::rotation) struct Asked {
    /// What the verdict is to answer.
    pub question: Question,
    /// Whether etcd itself can be read (`--etcd`).
    pub by_etcd: bool,
    /// Whether the plugin's KEKs are known.
    pub with_keks: bool,
}

/// Who says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Witness {
    /// Each API server's own metrics.
    Metrics,
    /// What API servers answer to requests.
    Api,
    /// Values, keys and revisions in etcd itself.
    Etcd,
    /// The key stores.
    KeyStores,
    /// A snapshot file.
    SnapshotFile,
    /// A person, or a command that a person gave.
    Operator,
}

/// How long a claim holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Until {
    /// For the moment at which it was looked at.
    ThatMoment,
    /// Until an API server joins, is started again, or loads another configuration.
    ServersChange,
    /// For good, unless etcd is restored.
    EtcdIsRestored,
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

/// What was shown about one [`Subject`], or why it could not be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    /// How far it is shown.
    pub finding: Finding,
    /// Who says it.
    pub by: Witness,
    /// One sentence: what was looked at, by which method, and what was found.
    pub what: String,
    /// When it was looked at.
    pub at: jiff::Timestamp,
    /// How long it holds.
    pub until: Until,
    /// etcd cluster → the revision up to which it holds, where that is known.
    #[serde(default)]
    pub revisions: BTreeMap<String, i64>,
    /// What this method cannot see, or what was not looked at.
    #[serde(default)]
    pub blind_spots: Vec<String>,
}

/// How many names a list of many has.
const NAMED: usize = 3;

/// How many there are, and the first names.
pub(in crate::rotation) fn counted<'a>(what: &str, names: impl IntoIterator<Item = &'a String>) -> Option<String> {
    let names: Vec<&str> = names.into_iter().map(String::as_str).collect();
    let first = names[..names.len().min(NAMED)].join(", ");
    match names.len() {
        0 => None,
        all if all > NAMED => Some(format!("{all} {what} ({first} and {} more)", all - NAMED)),
        all => Some(format!("{all} {what} ({first})")),
    }
}

impl Claim {
    /// Something that was shown just now.
    pub fn shown(by: Witness, what: impl Into<String>) -> Self {
        Self::found(Finding::Shown, by, what)
    }

    /// Something that will be so later.
    pub fn not_yet(by: Witness, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::found(Finding::NotYet { remedy: remedy.into() }, by, what)
    }

    /// Something that could not be shown.
    pub fn not_shown(by: Witness, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::found(Finding::NotShown { remedy: remedy.into() }, by, what)
    }

    /// Whether it is shown.
    pub(in crate::rotation) fn is_shown(&self) -> bool {
        self.finding == Finding::Shown
    }

    /// What to do about it, unless it is shown.
    pub(in crate::rotation) fn remedy(&self) -> Option<&str> {
        match &self.finding {
            Finding::Shown => None,
            Finding::NotYet { remedy } | Finding::NotShown { remedy } => Some(remedy),
        }
    }

    fn found(finding: Finding, by: Witness, what: impl Into<String>) -> Self {
        Self {
            finding,
            by,
            what: what.into(),
            at: jiff::Timestamp::now(),
            // The least that can be said; a caller that knows more says so with `until`.
            until: Until::ThatMoment,
            revisions: BTreeMap::new(),
            blind_spots: Vec::new(),
        }
    }

    /// Adds what was not looked at.
    #[must_use]
    pub(in crate::rotation) fn blind_to(mut self, spots: impl IntoIterator<Item = String>) -> Self {
        self.blind_spots.extend(spots);
        self
    }

    /// It was looked at then.
    #[must_use]
    pub fn as_of(mut self, at: jiff::Timestamp) -> Self {
        self.at = at;
        self
    }

    /// It holds for so long.
    #[must_use]
    pub(in crate::rotation) fn until(mut self, until: Until) -> Self {
        self.until = until;
        self
    }

    /// It holds up to these revisions.
    #[must_use]
    pub(in crate::rotation) fn up_to(mut self, revisions: BTreeMap<String, i64>) -> Self {
        self.revisions = revisions;
        self
    }
}

impl Subject {
    /// Whether the answer cannot be *Yes* without a claim about this.
    // Without wildcard: a new subject must be placed here before it compiles.
    pub(in crate::rotation) fn is_required(self, asked: Asked) -> bool {
        match self {
            Self::Roster | Self::Adoption | Self::Search | Self::Configuration => true,
            Self::Keks => asked.with_keks,
            Self::Etcd => asked.by_etcd,
            Self::History => asked.by_etcd && asked.question == Question::MayBeDisabled,
            Self::Readability | Self::Writers | Self::Ledger | Self::Compaction | Self::Snapshot | Self::Plugins => {
                asked.question == Question::MayBeDisabled
            }
        }
    }

    /// What is missing where there is no claim about it.
    pub(in crate::rotation) fn describe(self) -> &'static str {
        match self {
            Self::Roster => "which API servers exist was not established",
            Self::Adoption => "no API server was seen to use the target key",
            Self::Readability => "that every API server reads what the others write was not tested",
            Self::Writers => {
                "that every API server stores every encrypted resource under the target key was not tested"
            }
            Self::Ledger => "what the API servers wrote since adoption was not recorded",
            Self::Search => "leftovers were not searched for",
            Self::History => "what was stored and superseded since the first search was not looked at",
            Self::Etcd => "that etcd holds everything that the API serves was not compared",
            Self::Configuration => "the API servers' own configuration was not compared",
            Self::Compaction => "that old revisions are compacted was not shown",
            Self::Snapshot => "that a snapshot holds nothing under a former key was not shown",
            Self::Keks => "which KEK versions are active was not asked again",
            Self::Plugins => "what every plugin reports was not looked at",
        }
    }

    /// Every subject, in the order in which a verdict lists them.
    pub(in crate::rotation) const ALL: [Self; 13] = [
        Self::Roster,
        Self::Adoption,
        Self::Readability,
        Self::Writers,
        Self::Ledger,
        Self::Search,
        Self::History,
        Self::Etcd,
        Self::Configuration,
        Self::Compaction,
        Self::Snapshot,
        Self::Keks,
        Self::Plugins,
    ];
}
