//! A verdict on a terminal: all that a nervous person needs, in one screen. The evidence file has the rest.

use std::path::Path;

use crate::rotation::journal::Journal;
use crate::rotation::journal::verdict::{Conclusion, Verdict};

/// What a terminal is taken for where it does not tell its size.
const USUAL: Screen = Screen { lines: 24, columns: 80 };
/// Before the text of each part.
const INDENT: usize = 17;

/// How much fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Screen {
    lines: usize,
    columns: usize,
}

impl Screen {
    /// The terminal that standard output is.
    pub fn of_this_terminal() -> Self {
        match rustix::termios::tcgetwinsize(std::io::stdout()) {
            // A pseudo-terminal that nobody set says 0 by 0.
            Ok(size) if size.ws_row >= 10 && size.ws_col >= 40 => {
                Self { lines: size.ws_row.into(), columns: size.ws_col.into() }
            }
            _ => USUAL,
        }
    }

    /// The verdict, in at most as many lines as there are: what is decided first is cut last.
    pub fn verdict(self, verdict: &Verdict, next: &str, evidence: Option<&Path>) -> String {
        let proven = format!("{} finding(s), in the evidence file", verdict.evidence.len());
        let file: Vec<String> = evidence.iter().map(|file| file.display().to_string()).collect();
        let (next, proven) = (vec![next.to_owned()], vec![proven]);
        // In the order of the screen; the number says how many items are shown at least.
        let parts: [(&str, &[String], usize); 10] = [
            ("may be disabled", &verdict.may_be_disabled, 3),
            ("destroyed, too", &verdict.may_be_destroyed, 3),
            ("with", &verdict.commands, 3),
            ("must stay", &verdict.must_stay, 2),
            ("missing", &verdict.missing, 3),
            ("holds", &verdict.holds, 1),
            ("not looked at", &verdict.not_looked_at, 1),
            ("shown by", &proven, 1),
            ("evidence", &file, 1),
            ("next", &next, 1),
        ];
        let head = wrap(&verdict.sentence, self.columns);
        // The prompt comes after it.
        let room = self.lines.saturating_sub(head.len() + 1);
        let mut shown: Vec<usize> = parts.iter().map(|(_, items, _)| items.len()).collect();
        while self.height(&parts, &shown) > room {
            // One line is taken from the longest part at a time, so that no part vanishes for the sake of another.
            let longest = (0..parts.len()).filter(|at| shown[*at] > parts[*at].2).max_by_key(|at| shown[*at]);
            let Some(longest) = longest else { break };
            shown[longest] -= 1;
        }
        let mut text: Vec<String> = head;
        for (at, (title, items, _)) in parts.iter().enumerate() {
            text.extend(self.part(title, items, shown[at]));
        }
        text.iter().flat_map(|line| [line.as_str(), "\n"]).collect()
    }

    fn height(self, parts: &[(&str, &[String], usize)], shown: &[usize]) -> usize {
        parts.iter().zip(shown).map(|((title, items, _), shown)| self.part(title, items, *shown).len()).sum()
    }

    fn part(self, title: &str, items: &[String], shown: usize) -> Vec<String> {
        let mut lines: Vec<String> = Vec::new();
        for item in &items[..shown.min(items.len())] {
            lines.extend(wrap(item, self.columns.saturating_sub(INDENT).max(20)));
        }
        if shown < items.len() {
            lines.push(format!("and {} more, in the evidence file", items.len() - shown));
        }
        let lines = lines.into_iter().enumerate();
        lines.map(|(at, line)| format!("{:INDENT$}{line}", if at == 0 { title } else { "" })).collect()
    }
}

/// Lines of at most so many letters, cut between words; a word that is longer has a line of its own.
fn wrap(text: &str, columns: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().map_or(0, |line| line.chars().count());
        if line > 0 && line + 1 + word.chars().count() > columns {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

/// What an operator does after this verdict.
pub fn next_step(journal: &Journal, verdict: &Verdict) -> String {
    match verdict.conclusion {
        Conclusion::NothingLeft => "nothing is left to do".into(),
        Conclusion::MayBeDisabled if verdict.may_be_disabled.is_empty() => {
            "nothing is left to do; guard or delete earlier snapshots".into()
        }
        Conclusion::MayBeDisabled if verdict.may_be_destroyed.len() == verdict.may_be_disabled.len() => {
            "run kube-envelope verify once more right before you disable the key; destroy it later, if there is no other \
             backup than those that were named"
                .into()
        }
        Conclusion::MayBeDisabled => "run kube-envelope verify once more right before you disable the key; disable it, and do \
                                      not destroy it as long as a snapshot from before must stay restorable"
            .into(),
        Conclusion::NothingLeftWait => {
            "do what is listed as missing, then: kube-envelope rotate-keys --resume".into()
        }
        Conclusion::Unproven => "keep every former key; do what is listed as missing, and run the same command again".into(),
        Conclusion::Refused | Conclusion::Leftovers => {
            "keep every former key; fix what is listed as missing, and run the same command again".into()
        }
        Conclusion::NothingRotated if journal.target_keys.is_empty() => {
            "make a new version of the key active, and run the same command again; with --config each KEK is asked which \
             version is active"
                .into()
        }
        Conclusion::NothingRotated => "make a new version of the key active (or give --rotate-kek), and run again".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(items: usize) -> Verdict {
        let many = |what: &str| (0..items).map(|at| format!("{what} {at}: {}", "word ".repeat(30))).collect::<Vec<_>>();
        Verdict {
            conclusion: Conclusion::MayBeDisabled,
            sentence: "Yes: nothing is stored under KEK primary version 3.".into(),
            may_be_disabled: vec!["KEK primary version 3".into()],
            may_be_destroyed: Vec::new(),
            commands: vec!["gcloud kms keys versions disable 3 --key k --keyring r --location l --project p".into()],
            must_stay: many("stay"),
            holds: many("holds"),
            evidence: many("shown"),
            not_looked_at: many("blind"),
            missing: many("missing"),
        }
    }

    #[test]
    fn a_verdict_fits_into_one_screen_and_what_decides_is_on_it() {
        let file = Path::new("/var/lib/kube-envelope/rotation/evidence-20260131T120000Z.json");
        for (items, lines) in [(0, 24), (1, 40), (3, 60), (200, 60)] {
            let screen = Screen { lines, columns: 100 };
            let text = screen.verdict(&verdict(items), "run verify", Some(file));
            assert!(text.lines().count() < lines, "{items} items: {text}");
            assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
            for part in ["Yes: ", "KEK primary version 3", "gcloud kms", "run verify", "evidence-20260131"] {
                assert!(text.contains(part), "{part} is not in\n{text}");
            }
        }
        let cut = Screen { lines: 60, columns: 100 }.verdict(&verdict(200), "n", None);
        assert!(cut.contains("more, in the evidence file"), "{cut}");
    }

    #[test]
    fn words_are_kept_whole() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("a-word-that-is-too-long b", 5), ["a-word-that-is-too-long", "b"]);
    }
}
