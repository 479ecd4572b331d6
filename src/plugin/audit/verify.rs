//! Whether an audit log is whole: no record changed, missing, moved or cut off at the end.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::io::{self, BufRead, Read};

use super::chain::{Head, Link, read_line};

/// The longest line that is read; a longer one is not a record.
const MAX_LINE_BYTES: u64 = 64 * 1024;

/// What was found in a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Records that are as they were written.
    pub records: u64,
    /// The first one and the last one.
    pub first: Option<Link>,
    /// The last record; the same as `first` in a log of one.
    pub last: Option<Link>,
    /// What is wrong, each with its place.
    pub problems: Vec<String>,
}

/// Goes through logs in the order they were written.
#[derive(Debug, Default)]
pub struct Verifier {
    found: Findings,
    head: Option<Head>,
    /// A record that is known to have been written.
    expected: Option<Head>,
}

impl Verifier {
    /// One that knows of a record that had been written: the log must not end before it, nor have another one there.
    pub fn expecting(expected: Option<Head>) -> Self {
        Self { expected, ..Self::default() }
    }

    /// Reads one file; `name` is for the messages.
    ///
    /// # Errors
    /// Of reading.
    pub fn read(&mut self, name: &str, mut file: impl BufRead) -> io::Result<()> {
        for number in 1_u64.. {
            let mut bytes = Vec::new();
            // A line that somebody changed may have lost its end.
            if file.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut bytes)? == 0 {
                break;
            }
            let place = format!("{name}:{number}");
            let Some(line) = bytes.strip_suffix(b"\n") else {
                self.found.problems.push(format!("{place}: is cut off"));
                continue;
            };
            match std::str::from_utf8(line).map_err(|_| "is not a record").and_then(read_line) {
                Ok(link) => self.follow(&place, link),
                Err(problem) => self.found.problems.push(format!("{place}: {problem}")),
            }
        }
        Ok(())
    }

    /// Holds a record against the one before.
    fn follow(&mut self, place: &str, link: Link) {
        if let Some(head) = &self.head {
            let (before, this) = (head.seq, link.seq);
            let problem = match this.checked_sub(before) {
                Some(1) if link.prev == head.hash => None,
                Some(1) => Some(format!("record {this} does not follow record {before}: one of them was replaced")),
                Some(gap) if gap > 1 => {
                    Some(format!("records {} to {} are missing", before.saturating_add(1), this.saturating_sub(1)))
                }
                _ => Some(format!("record {this} comes after record {before}: moved or repeated")),
            };
            self.found.problems.extend(problem.map(|problem| format!("{place}: {problem}")));
        } else if link.seq == 1 && link.prev != Head::default().hash {
            self.found.problems.push(format!("{place}: record 1 follows another one: it was replaced"));
        }
        if self.expected.as_ref().is_some_and(|expected| expected.seq == link.seq && expected.hash != link.hash) {
            let text = format!("{place}: record {} is not the one that had been written: it was replaced", link.seq);
            self.found.problems.push(text);
        }
        self.head = Some(link.head());
        self.found.records = self.found.records.saturating_add(1);
        self.found.first.get_or_insert_with(|| link.clone());
        self.found.last = Some(link);
    }

    /// All that was found.
    pub fn finish(mut self) -> Findings {
        let end = self.head.map_or(0, |head| head.seq);
        if let Some(expected) = self.expected.filter(|expected| expected.seq > end) {
            let text = format!("ends at record {end}, but record {} had been written: it was cut off", expected.seq);
            self.found.problems.push(text);
        }
        self.found
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::chain::next_line;
    use super::super::event::Event;
    use super::*;

    fn log(records: usize) -> (Vec<String>, Head) {
        let (mut lines, mut head) = (Vec::new(), Head::default());
        for number in 0..records {
            let event = Event::Denied { reason: format!("reason {number}") };
            let (line, next) = next_line(&head, jiff::Timestamp::UNIX_EPOCH, &event).unwrap();
            lines.push(line);
            head = next;
        }
        (lines, head)
    }

    fn findings(text: &[u8], head: &Head) -> Findings {
        let mut verifier = Verifier::expecting(Some(head.clone()));
        verifier.read("log", text).unwrap();
        verifier.finish()
    }

    fn problems(text: &[u8], head: &Head) -> Vec<String> {
        findings(text, head).problems
    }

    proptest! {
        /// Every way to change a log that leaves any other bytes is found. A log without its oldest records is what
        /// logrotate leaves: that is not a problem, and shown by the number of its first record.
        #[test]
        fn whatever_is_done_to_a_log_is_found(
            records in 1_usize..12, kind in 0..6, at in any::<prop::sample::Index>(), other in any::<prop::sample::Index>(),
            bit in 0_u8..8,
        ) {
            let (mut lines, head) = log(records);
            let before = lines.concat();
            prop_assert_eq!(problems(before.as_bytes(), &head), Vec::<String>::new());
            let line = at.index(lines.len());
            let mut bytes = match kind {
                0 => { lines.remove(line); lines.concat().into_bytes() }
                1 => { lines.insert(other.index(lines.len() + 1), lines[line].clone()); lines.concat().into_bytes() }
                2 => { let to = other.index(lines.len()); lines.swap(line, to); lines.concat().into_bytes() }
                3 => { let keep = at.index(before.len()); before.as_bytes()[..keep].to_vec() }
                4 => { let mut bytes = before.clone().into_bytes(); let at = at.index(bytes.len()); bytes[at] ^= 1 << bit; bytes }
                _ => { lines.truncate(line); lines.concat().into_bytes() }
            };
            if bytes == before.as_bytes() {
                bytes.pop();
            }
            let found = findings(&bytes, &head);
            let starts_later = found.first.as_ref().is_some_and(|first| first.seq > 1);
            let is_rest = before.as_bytes().ends_with(&bytes) && starts_later;
            prop_assert!(is_rest || !found.problems.is_empty(), "{}", String::from_utf8_lossy(&bytes));
        }
    }

    /// Recomputed hashes are found by a record that is known from elsewhere.
    #[test]
    fn a_log_that_was_written_anew_is_found_by_a_known_record() {
        let (_, head) = log(5);
        let mut recomputed = (String::new(), Head::default());
        for _ in 0..5 {
            let (line, next) = next_line(&recomputed.1, jiff::Timestamp::UNIX_EPOCH, &Event::Stop).unwrap();
            recomputed = (recomputed.0 + &line, next);
        }
        assert_eq!(problems(recomputed.0.as_bytes(), &recomputed.1), Vec::<String>::new());
        assert_eq!(problems(recomputed.0.as_bytes(), &head).len(), 1);
    }

    #[test]
    fn a_log_in_several_files_is_one_chain() {
        let (lines, head) = log(6);
        let mut verifier = Verifier::expecting(Some(head));
        verifier.read("a", lines[..3].concat().as_bytes()).unwrap();
        verifier.read("b", lines[3..].concat().as_bytes()).unwrap();
        let found = verifier.finish();
        assert_eq!((found.records, found.problems.len()), (6, 0));
    }
}
