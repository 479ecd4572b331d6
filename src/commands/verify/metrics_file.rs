//! `verify --metrics-file`: the outcome for the node exporter's textfile collector. The time of the last *Yes* is carried
//! over from the file before, so that an alert can ask how old it is.

use std::fmt::Write;
use std::path::Path;

use crate::files;

const LAST_YES: &str = "kube_envelope_verify_last_yes_timestamp_seconds";

/// What is told of one run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outcome {
    /// When the run ended, in seconds since 1970.
    pub(super) at: i64,
    /// The exit code; 0 is *Yes*.
    pub(super) exit: u8,
    /// Values or objects that were looked at, and those under a former key; none when nothing could be looked at.
    pub(super) found: Option<(u64, u64)>,
}

/// Replaces `file` whole, so that the collector never reads half of it.
///
/// # Errors
/// Of the file system.
pub(super) fn write(file: &Path, outcome: Outcome) -> std::io::Result<()> {
    let before = std::fs::read_to_string(file).unwrap_or_default();
    // Nothing secret; the exporter runs as another user.
    files::replace_readable(file, text(&before, outcome).as_bytes())
}

fn text(before: &str, Outcome { at, exit, found }: Outcome) -> String {
    let last_yes = if exit == 0 { Some(at) } else { value_of(before, LAST_YES) };
    let mut text = String::new();
    let mut gauge = |name: &str, help: &str, value: i128| {
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n");
    };
    gauge("kube_envelope_verify_last_run_timestamp_seconds", "When verify last ended", at.into());
    gauge("kube_envelope_verify_exit_code", "Exit code of the last verify; 0 is Yes", exit.into());
    if let Some(last_yes) = last_yes {
        gauge(LAST_YES, "When verify last said Yes", last_yes.into());
    }
    if let Some((looked_at, leftovers)) = found {
        gauge("kube_envelope_verify_looked_at", "Values or objects that the last verify examined", looked_at.into());
        gauge("kube_envelope_verify_leftovers", "Those of them under a former key", leftovers.into());
    }
    text
}

fn value_of(text: &str, name: &str) -> Option<i64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_yes_outlives_runs_that_say_something_else() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("kube-envelope.prom");
        let run = |at, exit, found| {
            write(&file, Outcome { at, exit, found }).unwrap();
            std::fs::read_to_string(&file).unwrap()
        };
        let never = run(1, 6, Some((10, 4)));
        assert!(never.contains("\nkube_envelope_verify_leftovers 4\n") && !never.contains(LAST_YES), "{never}");
        assert!(run(2, 0, Some((10, 0))).contains("last_yes_timestamp_seconds 2\n"));
        let after = run(3, 8, None);
        assert!(after.contains("last_yes_timestamp_seconds 2\n") && after.contains("last_run_timestamp_seconds 3\n"));
        assert!(!after.contains("leftovers"), "what was not looked at is not told: {after}");
    }
}
