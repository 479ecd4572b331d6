//! What a person sees of a rotation: a bar on a terminal, plain lines elsewhere, a table at the end.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use comfy_table::Table;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::closed_pipe::{eprintln, print, println};
use super::verdict_screen::{Screen, next_step};
use crate::rotation::conclusion::wording::describe;
use crate::rotation::event::Event;
use crate::rotation::journal::Journal;
use crate::rotation::journal::verdict::Verdict;
use crate::rotation::leftovers::scan::Scan;
use crate::rotation::rewrite::Tally;

/// Where there is no terminal, a line about progress this often.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// How many names are shown; the evidence file has all.
const SHOWN: usize = 20;

/// Shows events on standard error.
pub struct Display {
    bar: ProgressBar,
    terminal: bool,
    line: Mutex<Line>,
}

struct Line {
    resource: String,
    began: Instant,
    last: Instant,
}

impl Display {
    /// A bar if standard error is a terminal and people read it.
    pub fn new(for_programs: bool) -> Self {
        let terminal = std::io::stderr().is_terminal() && !for_programs;
        let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(0), target);
        let style = "{prefix:.bold} {wide_bar} {human_pos}/{human_len} {eta} left, {msg}";
        bar.set_style(ProgressStyle::with_template(style).expect("the template is valid"));
        let now = Instant::now();
        Self { bar, terminal, line: Mutex::new(Line { resource: String::new(), began: now, last: now }) }
    }

    /// Shows one event.
    pub fn show(&self, event: &Event<'_>) {
        match event {
            Event::State(state) => {
                // What a bar shows is of the state before.
                self.finish();
                self.say(&format!("state: {state}"));
            }
            Event::Waiting(why) => self.say(&format!("waiting: {why}")),
            Event::Note(note) => self.say(&format!("note: {note}")),
            Event::Progress { resource, tally, objects, concurrency } => {
                self.progress(&resource.to_string(), tally, *objects, *concurrency);
            }
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }

    fn say(&self, text: &str) {
        if self.terminal && !self.bar.is_finished() {
            self.bar.println(text);
        } else {
            eprintln!("{text}");
        }
    }

    fn progress(&self, resource: &str, tally: &Tally, objects: u64, concurrency: usize) {
        let mut line = self.line.lock().expect("nothing panics while it is held");
        let now = Instant::now();
        let done = tally.total();
        if line.resource != resource || done <= 1 || self.bar.is_finished() {
            *line = Line { resource: resource.to_owned(), began: now, last: now };
            self.bar.reset();
            self.bar.set_prefix(resource.to_owned());
        }
        self.bar.set_length(objects.max(done));
        self.bar.set_position(done);
        // A page of objects that need not be asked is done at once: no rate before a second is over.
        let seconds = now.duration_since(line.began).as_secs_f64().max(1.0);
        #[allow(clippy::cast_precision_loss, reason = "it is shown without decimals")]
        let rate = done as f64 / seconds;
        self.bar.set_message(format!("{rate:.0}/s, {concurrency} at once"));
        if !self.terminal && now.duration_since(line.last) >= LINE_EVERY {
            line.last = now;
            eprintln!("progress: {resource} {done}/{} {rate:.0}/s, {concurrency} at once", objects.max(done));
        }
    }
}

/// What would be done, or what a dry run found.
pub fn print_plan(journal: &Journal, tried: bool) {
    for (provider, hash) in &journal.former {
        println!("the plugins report {}", journal.key_name(provider, hash));
    }
    journal.kek_answers.iter().for_each(|said| println!("{said}"));
    if journal.inferred {
        println!("the encrypted resources are guessed from metrics; give --encryption-config to be certain");
    }
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(["RESOURCE", "PROVIDER", "OBJECTS", "NOTE"]);
    for progress in &journal.resources {
        let note = match (&progress.tally.unlistable, tried) {
            (Some(_), _) => "cannot be listed".to_owned(),
            (None, true) => {
                let Tally { refused, withheld, withheld_all, altered, .. } = &progress.tally;
                match withheld_all {
                    Some(_) => "all would be left".to_owned(),
                    None => format!(
                        "{} would be refused, {} would be changed",
                        refused.len(),
                        withheld.len() as u64 + altered
                    ),
                }
            }
            (None, false) => String::new(),
        };
        table.add_row([progress.resource.to_string(), progress.writer.to_string(), progress.objects.to_string(), note]);
    }
    println!("{}", table.trim_fmt());
    for (what, why) in &journal.skipped {
        println!("left out: {what}: {why}");
    }
    print_objects(journal);
}

/// The objects of which a rewrite is, or would be, more or less than that.
fn print_objects(journal: &Journal) {
    let tallies = || journal.resources.iter().map(|progress| &progress.tally);
    print_named("refused", tallies().flat_map(|tally| &tally.refused));
    print_named("left", tallies().flat_map(|tally| &tally.withheld));
    for progress in &journal.resources {
        if let Some(why) = &progress.tally.withheld_all {
            println!("{} were left: {why}", progress.resource);
        }
    }
    if tallies().any(|tally| !tally.withheld.is_empty() || tally.withheld_all.is_some()) {
        println!("to rewrite them anyway: --allow-changes, or --allow-changes=RESOURCE");
    }
    let why = "a mutating webhook modified the object during the empty update".to_owned();
    print_named("altered", tallies().flat_map(|tally| &tally.altered_named).map(|path| (path, &why)));
}

/// Whether something happened to objects of a resource that a person may want to see.
fn is_eventful(tally: &Tally) -> bool {
    let named = [&tally.refused, &tally.withheld, &tally.undecryptable].iter().any(|named| !named.is_empty());
    tally.rewritten + tally.gone + tally.altered > 0 || named || tally.unlistable.is_some()
}

/// Where a rotation stands, what it did, and the verdict if there is one.
pub fn print_rotation(journal: &Journal, evidence: Option<&Path>) {
    println!("began {}, state: {}", journal.started, journal.state);
    if let Some(paused) = &journal.paused {
        println!("paused: {paused}");
    }
    for (provider, hash) in &journal.targets.plugins {
        println!("target: {}", journal.key_name(provider, hash));
    }
    for local in &journal.targets.local {
        println!("target: {}", local.words().map_or_else(|| "in clear".into(), |words| format!("provider {words}")));
    }
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["RESOURCE", "REWRITTEN", "CURRENT", "DELETED", "ALTERED", "REFUSED", "UNREADABLE"]);
    let (eventful, quiet): (Vec<_>, Vec<_>) = journal.resources.iter().partition(|one| is_eventful(&one.tally));
    for progress in eventful {
        let tally = &progress.tally;
        let unreadable = tally.unlistable.as_ref().map_or(tally.undecryptable.len().to_string(), |_| "all".into());
        table.add_row([
            progress.resource.to_string(),
            tally.rewritten.to_string(),
            (tally.fresh + tally.newer).to_string(),
            tally.gone.to_string(),
            tally.altered.to_string(),
            tally.refused.len().to_string(),
            unreadable,
        ]);
    }
    println!("{}", table.trim_fmt());
    if !quiet.is_empty() {
        println!("and {} resource(s) with nothing to rewrite", quiet.len());
    }
    print_objects(journal);
    if let Some(scan) = &journal.verified {
        print_leftovers(scan);
    }
    if let Some(verdict) = &journal.verdict {
        let next = next_step(journal, verdict);
        if std::io::stdout().is_terminal() {
            print!("\n{}", Screen::of_this_terminal().verdict(verdict, &next, evidence));
            return;
        }
        print_verdict(verdict, &next);
    }
    if let Some(file) = evidence {
        println!("evidence: {}", file.display());
    }
}

/// All of a verdict, for logs and programs that read lines.
fn print_verdict(verdict: &Verdict, next: &str) {
    println!("\nWhich keys may be disabled?\n{}", verdict.sentence);
    for (what, lines) in [
        ("may be disabled", &verdict.may_be_disabled),
        ("may be destroyed", &verdict.may_be_destroyed),
        ("command", &verdict.commands),
        ("must stay", &verdict.must_stay),
        ("holds", &verdict.holds),
        ("evidence", &verdict.evidence),
        ("not looked at", &verdict.not_looked_at),
        ("missing", &verdict.missing),
    ] {
        for line in lines {
            println!("  {what}: {line}");
        }
    }
    println!("  next: {next}");
}

/// What `verify` found.
pub fn print_scan(scan: &Scan) {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(["RESOURCE", "STORED", "COUNT"]);
    for (resource, stored) in &scan.stored {
        for (how, count) in stored {
            table.add_row([resource.clone(), how.clone(), count.to_string()]);
        }
    }
    println!("{}\n{}", table.trim_fmt(), describe(scan));
    print_leftovers(scan);
}

fn print_named<'a>(what: &str, named: impl IntoIterator<Item = (&'a String, &'a String)>) {
    let mut rest = 0;
    for (at, (name, why)) in named.into_iter().enumerate() {
        if at < SHOWN {
            println!("{what}: {name}: {why}");
        } else {
            rest += 1;
        }
    }
    if rest > 0 {
        println!("{what}: and {rest} more; --output json names them");
    }
}

/// The first leftovers, and how many more there are: not each of very many has its name kept.
fn print_leftovers(scan: &Scan) {
    for line in leftover_lines(scan) {
        println!("leftover: {line}");
    }
}

fn leftover_lines(scan: &Scan) -> Vec<String> {
    let mut lines: Vec<_> = scan.named.iter().take(SHOWN).map(|(name, why)| format!("{name}: {why}")).collect();
    let rest = scan.leftovers.saturating_sub(lines.len() as u64);
    if rest > 0 {
        let named = scan.named.len();
        let all = scan.leftovers <= named as u64;
        let named = if all { "them".to_owned() } else { format!("the first {named}") };
        lines.push(format!("and {rest} more; --output json names {named}"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rotation::leftovers::scan::Method;

    #[test]
    fn however_many_leftovers_there_are_their_number_is_right() {
        let last = |count: u64| {
            let mut scan = Scan::new(Method::Etcd);
            (0..count).for_each(|number| scan.name(&format!("/registry/secrets/default/s-{number:04}"), "p old"));
            scan.leftovers = count;
            leftover_lines(&scan).pop().unwrap()
        };
        assert_eq!(last(SHOWN as u64), format!("/registry/secrets/default/s-{:04}: p old", SHOWN - 1));
        assert_eq!(last(SHOWN as u64 + 3), "and 3 more; --output json names them");
        assert_eq!(last(3_048), format!("and {} more; --output json names the first 1000", 3_048 - SHOWN));
    }
}
