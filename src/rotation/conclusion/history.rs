//! The history of rotations: one line for each verdict, appended and never changed. Each line has the digest of the line
//! before it, so that a change or a gap is visible to anyone who knows a later line.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::rotation::journal::Journal;
use crate::rotation::journal::verdict::Conclusion;

/// One line of the history: a verdict and the evidence for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PastVerdict {
    /// When it was given.
    pub at: jiff::Timestamp,
    /// When its rotation began.
    pub started: jiff::Timestamp,
    /// Uid of the namespace `kube-system`.
    pub cluster: Option<String>,
    /// What was concluded.
    pub conclusion: Conclusion,
    /// In one sentence.
    pub sentence: String,
    /// The name of the evidence file.
    pub evidence: String,
    /// Its SHA-256, in hex.
    pub evidence_sha256: String,
    /// SHA-256 of the line before, in hex; empty for the first.
    pub previous: String,
}

/// What a history says, and where it is not whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PastVerdicts {
    /// The lines that can be read.
    pub verdicts: Vec<PastVerdict>,
    /// What is wrong.
    pub problems: Vec<String>,
}

/// Where the history of the rotations of a journal is.
pub fn history_file(journal: &Path) -> PathBuf {
    journal.with_file_name("history.jsonl")
}

/// Appends the verdict of a journal.
///
/// # Errors
/// Of the file system.
pub fn append(file: &Path, journal: &Journal, evidence: &Path, evidence_text: &[u8]) -> io::Result<()> {
    let Some(verdict) = &journal.verdict else { return Ok(()) };
    let former = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error),
    };
    let line = PastVerdict {
        at: jiff::Timestamp::now(),
        started: journal.started,
        cluster: journal.cluster.clone(),
        conclusion: verdict.conclusion,
        sentence: verdict.sentence.clone(),
        evidence: evidence.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        evidence_sha256: hex::encode(Sha256::digest(evidence_text)),
        previous: former.lines().last().map(digest_of).unwrap_or_default(),
    };
    let mut handle = OpenOptions::new().append(true).create(true).mode(0o600).open(file)?;
    // A line that a power cut left half ends here.
    let begin = if former.is_empty() || former.ends_with('\n') { "" } else { "\n" };
    handle.write_all(format!("{begin}{}\n", serde_json::to_string(&line)?).as_bytes())?;
    handle.sync_all()?;
    // The name of a file that was just created is on the disk only after its folder is, too.
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

/// Reads a history, and checks that each line follows from the one before it.
pub fn read(text: &str) -> PastVerdicts {
    let mut past = PastVerdicts::default();
    let mut previous = String::new();
    for (at, line) in text.lines().enumerate() {
        match serde_json::from_str::<PastVerdict>(line) {
            Ok(verdict) => {
                if verdict.previous != previous {
                    past.problems.push(format!("line {} does not follow from the line before it", at + 1));
                }
                past.verdicts.push(verdict);
            }
            Err(error) => past.problems.push(format!("line {} is not a verdict: {error}", at + 1)),
        }
        previous = digest_of(line);
    }
    past
}

fn digest_of(line: &str) -> String {
    hex::encode(Sha256::digest(line))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rotation::journal::intent::Intent;
    use crate::rotation::journal::verdict::Verdict;

    #[test]
    fn a_line_that_was_changed_or_taken_out_shows() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("history.jsonl");
        let mut journal = Journal::new(Intent::default());
        for sentence in ["one", "two", "three"] {
            journal.verdict = Some(Verdict {
                sentence: sentence.into(),
                ..crate::rotation::conclusion::evidence::weigh(
                    &journal,
                    crate::rotation::claim::Question::MayBeDisabled,
                )
            });
            append(&file, &journal, Path::new("/x/evidence-1.json"), b"evidence").unwrap();
        }
        let text = std::fs::read_to_string(&file).unwrap();
        let past = read(&text);
        assert_eq!((past.verdicts.len(), past.problems.len()), (3, 0));
        assert_eq!(past.verdicts[2].evidence, "evidence-1.json");
        assert_eq!(read(&text.replace("\"two\"", "\"2\"")).problems.len(), 1);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(read(&format!("{}\n{}\n", lines[0], lines[2])).problems.len(), 1);
        assert_eq!(read(&format!("{}\n{{\"at", lines[0])).problems.len(), 1);
    }
}
