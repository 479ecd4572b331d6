//! `--if-older-than`: a scheduler runs the command each day, and most days there is nothing to do.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::cli::rotation::RotateKeysArgs;
use crate::commands::closed_pipe::{eprintln, println};
use crate::commands::exit::Exit;
use crate::config::{Config, DEFAULT_PATH};
use crate::rotation::journal::verdict::Conclusion;
use crate::rotation::journal::{Journal, State};
use crate::rotation::keys::age::ages;

/// What is to be done today.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// A new rotation.
    Begin,
    /// The one in the journal.
    Resume,
    /// No rotation is under way, and every active version is young enough.
    Nothing,
}

/// Asks the journal and the KEKs.
///
/// # Errors
/// When the age of a KEK's active version cannot be known, or the journal cannot be read.
pub(super) async fn due(args: &RotateKeysArgs, older_than: Duration) -> Result<Due> {
    let journal = Journal::read(&args.journal)?;
    // A KEK that was rotated is young, and what is stored under its former version is not rewritten by itself.
    if let Some(journal) = journal.as_ref().filter(|journal| is_under_way(journal)) {
        eprintln!("note: continuing the rotation that began at {} (state: {})", journal.started, journal.state);
        return Ok(Due::Resume);
    }
    let file = args.cluster.config.as_deref().unwrap_or(DEFAULT_PATH.as_ref());
    let plugin = Config::load(file).with_context(|| format!("cannot read {}", file.display()))?;
    let ages = ages(&plugin.keks, |version| journal.as_ref()?.activations.at(version)).await?;
    let now = jiff::Timestamp::now();
    let old: Vec<_> = ages.iter().filter(|age| age.is_older_than(older_than, now)).collect();
    if old.is_empty() {
        if journal.as_ref().is_some_and(has_no_yes) {
            eprintln!("note: looks again whether the last rotation can be a Yes by now");
            return Ok(Due::Resume);
        }
        for age in &ages {
            println!("{}", age.describe());
        }
        println!("Nothing is due: no version is older than {}.", in_words(older_than));
        return Ok(Due::Nothing);
    }
    let limit = in_words(older_than);
    for age in old {
        eprintln!("note: {}, which is more than {limit} ago", age.describe());
    }
    Ok(Due::Begin)
}

/// In days where it is days: months are of no certain length.
fn in_words(age: Duration) -> String {
    const DAY: u64 = 24 * 60 * 60;
    match age.as_secs() {
        seconds if seconds >= DAY && seconds % DAY == 0 => format!("{}d", seconds / DAY),
        _ => humantime::format_duration(age).to_string(),
    }
}

/// Whether something was changed and the rotation is not at its end. One that changed nothing yet starts over, if it is due.
fn is_under_way(journal: &Journal) -> bool {
    !journal.is_finished() && journal.state > State::Preflight
}

fn has_no_yes(journal: &Journal) -> bool {
    let concluded = journal.verdict.as_ref().map(|verdict| verdict.conclusion);
    journal.state == State::Done && !matches!(concluded, Some(Conclusion::MayBeDisabled | Conclusion::NothingRotated))
}

/// How a scheduler that knows success and failure alone is told.
pub(super) fn for_a_scheduler(exit: Exit) -> Exit {
    match exit {
        Exit::Done | Exit::NotYet | Exit::NothingRotated | Exit::NotDue => Exit::Done,
        exit => exit,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scheduler_sees_a_failure_only_where_somebody_is_needed() {
        for exit in [Exit::Done, Exit::NotYet, Exit::NothingRotated, Exit::NotDue] {
            assert_eq!(for_a_scheduler(exit), Exit::Done);
        }
        for exit in [
            Exit::Error,
            Exit::Usage,
            Exit::Quarantined,
            Exit::Paused,
            Exit::NotConverged,
            Exit::Leftovers,
            Exit::NotProven,
        ] {
            assert_eq!(for_a_scheduler(exit), exit);
        }
    }
}
