//! `rehearse`: would an API server that starts now become ready? The answer is the exit code.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Result;
use comfy_table::Table;
use serde::Serialize;

use super::exit::{Exit, block_on};
use super::opening::{Keys, keys_known, prefix, source};
use crate::cli::OutputFormat;
use crate::cli::backup::RehearseArgs;
use crate::rehearsal::{FolderReport, Opener, Rehearsal, Seeds, rehearse};

/// So many values are shown; JSON has more.
const SHOWN: usize = 20;

/// What was found.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    /// Whether an API server could read everything; not there where something could not be judged.
    would_start: Option<bool>,
    revisions: Vec<i64>,
    without: Vec<String>,
    resources: BTreeMap<String, Resource>,
    plugins: Vec<String>,
    seeds: usize,
    calls: u64,
    slowest_seed_seconds: f64,
    /// The most seconds that one resource's seeds took together, and the reading of everything.
    estimated_seconds: f64,
    not_looked_at: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Resource {
    values: u64,
    opened: u64,
    in_clear: u64,
    refused: u64,
    not_judged: u64,
    seeds: usize,
    named: BTreeMap<String, String>,
}

/// Runs the command.
///
/// # Errors
/// When the values cannot be read, or an argument names nothing.
pub fn run(args: RehearseArgs) -> Result<Exit> {
    let output = args.output;
    let report = block_on(async move { Box::pin(report(args)).await })?;
    match output {
        OutputFormat::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        OutputFormat::Table => report.print(),
    }
    Ok(match report.would_start {
        Some(true) => Exit::Done,
        Some(false) => Exit::WouldNotStart,
        None => Exit::NotProven,
    })
}

async fn report(args: RehearseArgs) -> Result<Report> {
    let keys = Keys::of(&args.keys, &args.without)?;
    let source = source(args.file.as_deref(), &args.etcd, &args.etcd_prefix).await?;
    let seeds = Seeds::new(keys.sources);
    let opener = Opener { configuration: keys.configuration.as_ref(), seeds: &seeds };
    // An API server does not become ready without a Status from each plugin, even if nothing is stored through it.
    let plugins = seeds.sources().unhealthy_plugins().await;
    let found = rehearse(&source, &prefix(&args.etcd_prefix), &opener).await?;
    let mut not_looked_at = Vec::new();
    if found.older > 0 {
        not_looked_at
            .push(format!("{} superseded values, which an API server does not read when it starts", found.older));
    }
    if keys.configuration.is_none() {
        not_looked_at.push("which provider reads what: give --encryption-config".into());
    }
    if seeds.sources().plugins.is_none() {
        not_looked_at.push("the plugins of the API servers: give --encryption-config".into());
    }
    if args.keys.break_glass.is_some() {
        not_looked_at
            .push("a plugin without the private half: this is about one that runs by serve --break-glass".into());
    }
    let known = match args.without.as_slice() {
        [] => BTreeSet::new(),
        _ => keys_known(args.keys.config.as_deref(), &args.journal).await?,
    };
    // A slip in the name of a key would otherwise read as "nothing needs it".
    let mut misspelt = false;
    for without in seeds.sources().without.iter().filter(|without| !without.is_among(&found.keys)) {
        let in_use = keys.names.show_all(&found.keys);
        let exists = without.is_among(&known) || without.is_whole_kek_of(&keys.names);
        misspelt |= !exists;
        let or = if exists {
            ""
        } else {
            ", and neither a KEK (--config) nor an earlier rotation knows it: it may be misspelt"
        };
        not_looked_at.push(format!("{without}: no value needs it{or}; the keys in use are: {in_use}"));
    }
    let mut report = Report::of(&found, &seeds, plugins, not_looked_at);
    // A *No* holds whatever the name stands for.
    report.would_start = report.would_start.filter(|yes| !(*yes && misspelt));
    Ok(report)
}

impl Report {
    fn of(found: &Rehearsal, seeds: &Seeds, plugins: Vec<String>, not_looked_at: Vec<String>) -> Self {
        // One value that cannot be read outweighs all that could not be judged.
        let would_start = match (found.refused() > 0 || !plugins.is_empty(), found.unchecked() > 0) {
            (true, _) => Some(false),
            (false, true) => None,
            (false, false) => Some(true),
        };
        let of_seeds = |folder: &FolderReport| folder.seeds.iter().map(|seed| seeds.time(seed)).sum::<Duration>();
        let longest = found.folders.values().map(of_seeds).max().unwrap_or_default();
        Self {
            would_start,
            revisions: found.revisions.clone(),
            without: seeds.sources().without.iter().map(ToString::to_string).collect(),
            resources: found.folders.iter().map(|(name, folder)| (name.clone(), Resource::of(folder))).collect(),
            plugins,
            seeds: seeds.count(),
            calls: seeds.sources().calls(),
            slowest_seed_seconds: seeds.slowest().as_secs_f64(),
            estimated_seconds: (longest + found.reading).as_secs_f64(),
            not_looked_at,
        }
    }

    fn print(&self) {
        let mut table = Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        table.set_header(["RESOURCE", "VALUES", "OPENED", "IN CLEAR", "REFUSED", "NOT JUDGED", "SEEDS"]);
        for (name, of) in &self.resources {
            let numbers =
                [of.values, of.opened, of.in_clear, of.refused, of.not_judged].map(|number| number.to_string());
            table.add_row([std::slice::from_ref(name), numbers.as_slice(), &[of.seeds.to_string()]].concat());
        }
        println!("{}", table.trim_fmt());
        let named = self.resources.values().flat_map(|resource| &resource.named);
        named.clone().take(SHOWN).for_each(|(key, why)| println!("{key}: {why}"));
        match named.count().saturating_sub(SHOWN) {
            0 => {}
            more => println!("and {more} more; --output json names them"),
        }
        self.plugins.iter().for_each(|problem| println!("{problem}"));
        self.not_looked_at.iter().for_each(|what| println!("not looked at: {what}"));
        println!(
            "{} seed(s), {} call(s), the slowest {:.3} s; estimated for a start (all values, and the seeds of the slowest \
             resource): {:.1} s",
            self.seeds, self.calls, self.slowest_seed_seconds, self.estimated_seconds
        );
        let revisions = self.revisions.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let without = match self.without.as_slice() {
            [] => String::new(),
            gone => format!(" without {}", gone.join(" and ")),
        };
        match self.would_start {
            Some(true) => println!(
                "Yes: everything up to revision {revisions} opens{without}. An API server that starts now becomes ready."
            ),
            Some(false) => println!(
                "No: an API server that starts now{without} cannot read the values named above, and does not become ready \
                 until they are deleted or their key is back."
            ),
            None => {
                println!("Not known{without}: some values could not be judged, or a key that was named is not known.");
            }
        }
    }
}

impl Resource {
    fn of(folder: &FolderReport) -> Self {
        Self {
            values: folder.values,
            opened: folder.opened,
            in_clear: folder.in_clear,
            refused: folder.refused,
            not_judged: folder.unchecked,
            seeds: folder.seeds.len(),
            named: folder.named.clone(),
        }
    }
}
