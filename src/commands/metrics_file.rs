//! `--metrics-file`: a rotation's progress and verdict as Prometheus text, for the node exporter's textfile collector.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::rotation::event::Event;
use crate::rotation::journal::{Journal, State};
use crate::rotation::rewrite::Tally;

/// The file is written no more often than this.
const WRITES_EVERY: Duration = Duration::from_secs(2);

/// Writes the file again and again while a rotation goes on.
pub struct MetricsFile {
    file: PathBuf,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    state: Option<State>,
    waiting: bool,
    at_once: usize,
    /// Resource → about how many objects there are, and what was done to them in this pass.
    resources: BTreeMap<String, (u64, Tally)>,
    written: Option<Instant>,
    /// What is said once it cannot be written.
    failed: bool,
}

impl MetricsFile {
    /// Writes to this file.
    pub fn new(file: PathBuf) -> Self {
        Self { file, seen: Mutex::default() }
    }

    /// Takes an event into account.
    pub fn observe(&self, event: &Event<'_>) {
        let mut seen = self.seen.lock().expect("nothing panics while it is held");
        let was = seen.state;
        match event {
            Event::State(state) => (seen.state, seen.waiting) = (Some(*state), false),
            Event::Waiting(_) => seen.waiting = true,
            Event::Note(_) => {}
            Event::Progress { resource, tally, objects, concurrency } => {
                (seen.waiting, seen.at_once) = (false, *concurrency);
                seen.resources.insert(resource.to_string(), (*objects, (*tally).clone()));
            }
        }
        // A change of state is written at once, since an alert may be about it; progress comes with each page.
        if seen.state != was || seen.written.is_none_or(|written| written.elapsed() >= WRITES_EVERY) {
            let text = seen.text();
            self.write(&mut seen, &text);
        }
    }

    /// Writes what the journal says at the end: all passes together, and the verdict.
    pub fn conclude(&self, journal: &Journal) {
        let mut seen = self.seen.lock().expect("nothing panics while it is held");
        (seen.state, seen.waiting, seen.at_once) = (Some(journal.state), journal.paused.is_some(), 0);
        let of =
            |one: &crate::rotation::journal::Progress| (one.resource.to_string(), (one.objects, one.tally.clone()));
        seen.resources = journal.resources.iter().map(of).collect();
        let mut text = seen.text();
        if let Some(verdict) = &journal.verdict {
            let conclusion = serde_json::to_value(verdict.conclusion).unwrap_or_default();
            let conclusion = conclusion.as_str().unwrap_or_default();
            head(&mut text, "verdict", "gauge", "What was concluded; 1 for the one that holds.");
            sample(&mut text, "verdict", &[("conclusion", conclusion)], 1);
        }
        self.write(&mut seen, &text);
    }

    fn write(&self, seen: &mut Seen, text: &str) {
        seen.written = Some(Instant::now());
        // The scraper runs as another user.
        let written = crate::files::replace_readable(&self.file, text.as_bytes());
        if let Err(error) = written
            && !std::mem::replace(&mut seen.failed, true)
        {
            eprintln!("note: --metrics-file {} cannot be written: {error}", self.file.display());
        }
    }
}

impl Seen {
    fn text(&self) -> String {
        let mut text = String::new();
        head(&mut text, "updated_timestamp_seconds", "gauge", "When this file was written.");
        sample(&mut text, "updated_timestamp_seconds", &[], jiff::Timestamp::now().as_second());
        if let Some(state) = self.state {
            head(&mut text, "state", "gauge", "Where the rotation stands; 1 for the state that it is in.");
            sample(&mut text, "state", &[("state", &state.to_string())], 1);
        }
        head(&mut text, "waiting", "gauge", "Whether it waits for something.");
        sample(&mut text, "waiting", &[], i64::from(self.waiting));
        head(&mut text, "requests_at_once", "gauge", "Requests under way, at most.");
        sample(&mut text, "requests_at_once", &[], self.at_once);
        head(&mut text, "objects_expected", "gauge", "About how many objects there are.");
        for (resource, (objects, _)) in &self.resources {
            sample(&mut text, "objects_expected", &[("resource", resource)], objects);
        }
        head(&mut text, "objects", "gauge", "Objects by what was done to them.");
        for (resource, (_, tally)) in &self.resources {
            for (outcome, count) in outcomes(tally) {
                sample(&mut text, "objects", &[("resource", resource), ("outcome", outcome)], count);
            }
        }
        text
    }
}

fn outcomes(tally: &Tally) -> [(&'static str, u64); 7] {
    [
        ("rewritten", tally.rewritten),
        ("current", tally.fresh + tally.newer),
        ("deleted", tally.gone),
        ("altered", tally.altered),
        ("refused", tally.refused.len() as u64),
        ("left", tally.withheld.len() as u64),
        ("unreadable", tally.undecryptable.len() as u64),
    ]
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let name = format!("kube_envelope_rotation_{name}");
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn sample(text: &mut String, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
    let labels: Vec<_> = labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
    let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
    let _ = writeln!(text, "kube_envelope_rotation_{name}{labels} {value}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rotation::cluster::resources::Resource;

    #[test]
    fn progress_is_in_the_file_as_prometheus_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("rotation.prom");
        let metrics = MetricsFile::new(file.clone());
        let resource =
            Resource { group: String::new(), version: "v1".into(), plural: "secrets".into(), namespaced: true };
        let tally = Tally { rewritten: 7, fresh: 1, newer: 2, ..Tally::default() };
        metrics.observe(&Event::Progress { resource: &resource, tally: &tally, objects: 40, concurrency: 16 });
        metrics.observe(&Event::State(State::Resweep));
        let text = std::fs::read_to_string(&file).unwrap();
        for line in [
            "kube_envelope_rotation_state{state=\"resweep\"} 1",
            "kube_envelope_rotation_requests_at_once 16",
            "kube_envelope_rotation_objects_expected{resource=\"secrets\"} 40",
            "kube_envelope_rotation_objects{resource=\"secrets\",outcome=\"rewritten\"} 7",
            "kube_envelope_rotation_objects{resource=\"secrets\",outcome=\"current\"} 3",
            "# TYPE kube_envelope_rotation_objects gauge",
        ] {
            assert!(text.lines().any(|one| one == line), "{line} is not in\n{text}");
        }
    }
}
