//! What is concluded about the former key, on what evidence, and what is still missing: the words of it.

use serde::{Deserialize, Serialize};

/// What is concluded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Conclusion {
    /// Nothing is left, and nothing needs the former key any more.
    MayBeDisabled,
    /// Nothing is left in live data; something that is listed still needs the former key.
    NothingLeftWait,
    /// Everything was rewritten, and it could not be proven.
    Unproven,
    /// Some objects were refused and are still stored under an older key.
    Refused,
    /// Something is still stored under an older key.
    Leftovers,
}

/// What is concluded, why, and what is missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// In one word.
    pub conclusion: Conclusion,
    /// In one sentence.
    pub sentence: String,
    /// On what evidence.
    pub evidence: Vec<String>,
    /// What is missing for the former key to be disabled.
    pub missing: Vec<String>,
}
