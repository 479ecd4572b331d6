//! The metrics file of `verify --watch`. What an earlier watch had seen and counted is read from it at the start.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};

use crate::commands::closed_pipe::eprintln;
use crate::etcd::{ClusterId, Stored};
use crate::files;
use crate::rotation::keys::name::{KeyName, KeyNames};
use crate::rotation::watch::{OldKeyWrite, View};

const REVISION: &str = "kube_envelope_watch_revision";
const WRITES: &str = "kube_envelope_watch_old_key_writes_total";
const WRITTEN: &str = "kube_envelope_watch_old_key_write_timestamp_seconds";

/// The file; it is replaced at each write.
pub(super) struct Metrics {
    file: PathBuf,
    followed: BTreeMap<ClusterId, i64>,
    told: Mutex<Written>,
}

#[derive(Default)]
struct Written {
    /// Labels → how many values were stored under a former key, and when last, in seconds since 1970.
    writes: BTreeMap<String, (u64, i64)>,
    view: View,
    /// What is said once it cannot be written.
    failed: bool,
}

impl Metrics {
    /// Goes on where the file ends.
    pub(super) fn begin(file: PathBuf) -> Self {
        let before = std::fs::read_to_string(&file).unwrap_or_default();
        let cluster = |(labels, revision): (String, i64)| {
            let id = labels.strip_prefix("{cluster=\"")?.strip_suffix("\"}")?;
            Some((ClusterId::try_from(id.to_owned()).ok()?, revision))
        };
        let followed = samples(&before, REVISION).filter_map(cluster).collect();
        let at: BTreeMap<String, i64> = samples(&before, WRITTEN).collect();
        let writes = samples(&before, WRITES).filter_map(|(labels, count)| {
            let at = *at.get(&labels)?;
            Some((labels, (u64::try_from(count).ok()?, at)))
        });
        let told = Written { writes: writes.collect(), ..Written::default() };
        Self { file, followed, told: Mutex::new(told) }
    }

    /// Up to which revision an earlier watch had seen everything.
    pub(super) fn followed(&self) -> BTreeMap<ClusterId, i64> {
        self.followed.clone()
    }

    /// Writes where the watch stands.
    pub(super) fn show(&self, view: &View, names: &KeyNames) {
        // Before everything was counted, the file of an earlier watch says more.
        if view.censuses == 0 {
            return;
        }
        let mut told = self.told();
        told.view = view.clone();
        self.write(&mut told, names);
    }

    /// Counts what was stored under a former key, and writes that at once.
    pub(super) fn old_key(&self, write: &OldKeyWrite, names: &KeyNames) {
        let mut told = self.told();
        let labels = key_labels(&write.resource, &write.stored, names);
        let counted = told.writes.entry(labels).or_default();
        *counted = (counted.0.saturating_add(write.writes), jiff::Timestamp::now().as_second());
        if told.view.censuses > 0 {
            self.write(&mut told, names);
        }
    }

    fn told(&self) -> MutexGuard<'_, Written> {
        self.told.lock().expect("nothing panics while it is held")
    }

    fn write(&self, told: &mut Written, names: &KeyNames) {
        // Nothing secret; the exporter runs as another user.
        if let Err(error) = files::replace_readable(&self.file, told.text(names).as_bytes())
            && !std::mem::replace(&mut told.failed, true)
        {
            eprintln!("note: --metrics-file {} cannot be written: {error}", self.file.display());
        }
    }
}

impl Written {
    fn text(&self, names: &KeyNames) -> String {
        let mut text = String::new();
        let view = &self.view;
        let one = |value: i64| [(String::new(), value)];
        family(
            &mut text,
            "kube_envelope_watch_updated_timestamp_seconds",
            "When this file was written.",
            one(jiff::Timestamp::now().as_second()),
        );
        let values = view.counted.iter().filter(|one| one.left || one.stored != Stored::Plain);
        family(
            &mut text,
            "kube_envelope_watch_values",
            "Values in etcd by resource and key.",
            values.map(|one| (key_labels(&one.resource, &one.stored, names), one.values)),
        );
        let mut left: BTreeMap<String, u64> = BTreeMap::new();
        for one in view.counted.iter().filter(|one| one.left || one.stored != Stored::Plain) {
            let sum = left.entry(labels(&[("resource", &one.resource)])).or_default();
            *sum = sum.saturating_add(if one.left { one.values } else { 0 });
        }
        family(&mut text, "kube_envelope_watch_leftovers", "Values that are stored under a former key.", left);
        let writes = self.writes.iter().map(|(labels, (count, _))| (labels.clone(), *count));
        family(&mut text, WRITES, "Values that were stored under a key that was a former one already.", writes);
        let at = self.writes.iter().map(|(labels, (_, at))| (labels.clone(), *at));
        family(&mut text, WRITTEN, "When that was seen last.", at);
        let cluster = |id: &ClusterId| labels(&[("cluster", &id.to_string())]);
        let revisions = view.clusters.iter().map(|(id, one)| (cluster(id), one.revision));
        family(&mut text, REVISION, "Up to which revision everything was seen.", revisions);
        let complete = |(id, one): (&ClusterId, &crate::rotation::watch::ClusterView)| {
            one.complete_at.map(|at| (cluster(id), at.as_second()))
        };
        family(
            &mut text,
            "kube_envelope_watch_complete_timestamp_seconds",
            "As of when everything that is stored was seen.",
            view.clusters.iter().filter_map(complete),
        );
        family(
            &mut text,
            "kube_envelope_watch_api_servers_agree",
            "Whether all API servers write with the same keys.",
            one(view.agree.into()),
        );
        family(
            &mut text,
            "kube_envelope_watch_api_servers_asked_timestamp_seconds",
            "When the API servers were asked which keys they write with.",
            one(view.asked_at.as_second()),
        );
        family(
            &mut text,
            "kube_envelope_watch_censuses_total",
            "How often everything in etcd was counted from the beginning.",
            [(String::new(), view.censuses)],
        );
        text
    }
}

/// One metric with all its samples; nothing where there are none.
fn family<V: Display>(text: &mut String, name: &str, help: &str, samples: impl IntoIterator<Item = (String, V)>) {
    let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
    let mut samples = samples.into_iter().peekable();
    if samples.peek().is_some() {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }
    for (labels, value) in samples {
        let _ = writeln!(text, "{name}{labels} {value}");
    }
}

/// Resource, provider, `key_id`, and the key by the name that people know it by.
fn key_labels(resource: &str, stored: &Stored, names: &KeyNames) -> String {
    let (provider, key_id) = match stored {
        Stored::KmsV2 { provider, key_id, .. } => (provider.to_string(), key_id.as_str()),
        Stored::Otherwise(words) => (words.clone(), ""),
        Stored::Plain => ("identity".into(), ""),
    };
    let key = names.show_all(&KeyName::of(stored));
    labels(&[("resource", resource), ("provider", &provider), ("key_id", key_id), ("key", &key)])
}

fn labels(all: &[(&str, &str)]) -> String {
    let escaped = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let label = |(name, value): &(&str, &str)| format!("{name}=\"{}\"", escaped(value));
    format!("{{{}}}", all.iter().map(label).collect::<Vec<_>>().join(","))
}

/// The samples of one metric: labels, and a whole number.
fn samples<'a>(text: &'a str, name: &'a str) -> impl Iterator<Item = (String, i64)> + 'a {
    text.lines().filter_map(move |line| {
        let (labels, value) = line.strip_prefix(name)?.rsplit_once(' ')?;
        Some((labels.to_owned(), value.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rotation::leftovers::census::Counted;
    use crate::rotation::watch::ClusterView;

    fn view() -> View {
        let old = Stored::KmsV2 { provider: "p\"q".into(), key_id: "old".into(), keks: Vec::new() };
        let counted = |stored, values, left| Counted { resource: "secrets".into(), stored, values, left };
        let followed = ClusterView { revision: 42, complete_at: Some(jiff::Timestamp::from_second(7).unwrap()) };
        View {
            counted: vec![counted(old, 3, true), counted(Stored::Plain, 9, false)],
            clusters: [(ClusterId(10), followed)].into(),
            agree: true,
            censuses: 1,
            ..View::default()
        }
    }

    #[test]
    fn what_was_seen_and_counted_outlives_the_process() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("watch.prom");
        let names = KeyNames::default();
        let write = OldKeyWrite {
            resource: "secrets".into(),
            stored: Stored::Plain,
            key: "secrets/default/a".into(),
            revision: 41,
            writes: 2,
            first: true,
        };
        for _ in 0..2 {
            let metrics = Metrics::begin(file.clone());
            metrics.show(&view(), &names);
            metrics.old_key(&write, &names);
        }
        let text = std::fs::read_to_string(&file).unwrap();
        for line in [
            "kube_envelope_watch_values{resource=\"secrets\",provider=\"p\\\"q\",key_id=\"old\",key=\"key_id old of provider \
             p\\\"q\"} 3",
            "kube_envelope_watch_leftovers{resource=\"secrets\"} 3",
            "kube_envelope_watch_old_key_writes_total{resource=\"secrets\",provider=\"identity\",key_id=\"\",key=\"in \
             clear\"} 4",
            "kube_envelope_watch_revision{cluster=\"a\"} 42",
            "kube_envelope_watch_complete_timestamp_seconds{cluster=\"a\"} 7",
            "# TYPE kube_envelope_watch_old_key_writes_total counter",
        ] {
            assert!(text.lines().any(|one| one == line), "{line} is not in\n{text}");
        }
        assert_eq!(Metrics::begin(file).followed(), [(ClusterId(10), 42)].into());
    }

    #[test]
    fn a_watch_that_has_counted_nothing_yet_leaves_the_file_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("watch.prom");
        Metrics::begin(file.clone()).show(&view(), &KeyNames::default());
        let before = std::fs::read_to_string(&file).unwrap();
        Metrics::begin(file.clone()).show(&View { censuses: 0, ..view() }, &KeyNames::default());
        assert_eq!(std::fs::read_to_string(&file).unwrap(), before);
    }
}
