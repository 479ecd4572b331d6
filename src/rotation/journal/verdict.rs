//! What is concluded about the former keys, on what evidence, and what is still missing.

use serde::{Deserialize, Serialize};

/// What is concluded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Conclusion {
    /// Nothing needs the former keys any more.
    MayBeDisabled,
    /// Nothing is left in live data; something that is listed still needs a former key.
    NothingLeftWait,
    /// Everything was rewritten, and it could not be proven.
    Unproven,
    /// Some objects were refused and are still stored under a former key.
    Refused,
    /// Something is still stored under a former key.
    Leftovers,
    /// No key was replaced: there is none that may be disabled.
    NothingRotated,
    /// Nothing is stored under another key than those that are active, where nothing else was asked.
    NothingLeft,
}

/// What is concluded, why, and what is missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// In one word.
    pub conclusion: Conclusion,
    /// In one sentence.
    pub sentence: String,
    /// The keys that may be disabled; empty unless the conclusion is *Yes*.
    #[serde(default)]
    pub may_be_disabled: Vec<String>,
    /// Those of them that none of the backups needs which were named; empty where none was.
    #[serde(default)]
    pub may_be_destroyed: Vec<String>,
    /// How each of them is disabled, where that is known: the vendor's command, or words.
    #[serde(default)]
    pub commands: Vec<String>,
    /// The keys that must stay, each with the reason.
    #[serde(default)]
    pub must_stay: Vec<String>,
    /// Up to which revision and time it holds.
    #[serde(default)]
    pub holds: Vec<String>,
    /// On what evidence.
    pub evidence: Vec<String>,
    /// What no part of the evidence covers.
    #[serde(default)]
    pub not_looked_at: Vec<String>,
    /// What is missing for the former keys to be disabled, each with its remedy.
    pub missing: Vec<String>,
}
