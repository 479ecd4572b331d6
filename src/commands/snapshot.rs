//! `snapshot`: which keys a backup of etcd needs, single objects out of it, and
//! bringing it under the active versions.

mod rewrap;

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};

use anyhow::{Context, Result, bail};
use comfy_table::Table;
use serde::Serialize;

use super::exit::{Exit, block_on};
use super::opening::{Keys, configuration, keks, prefix, source};
use crate::backup::{Inventory, Row, Snapshot, Source, manifest};
use crate::cli::OutputFormat;
use crate::cli::backup::{SnapshotCommand, SnapshotGetArgs, SnapshotKeysArgs};
use crate::etcd::{Stored, folder_of};
use crate::kek::KekVersion;
use crate::rehearsal::{Opener, Seeds, opens};
use crate::rotation::keys::name::{KeyName, KeyNames};

/// Runs the command that was asked for.
///
/// # Errors
/// When the snapshot is not intact, or cannot be read.
pub fn run(command: SnapshotCommand) -> Result<Exit> {
    match command {
        SnapshotCommand::Keys(args) => keys(args),
        SnapshotCommand::Get(args) => get(args),
        SnapshotCommand::Rewrap(args) => rewrap::run(args),
    }
}

fn get(args: SnapshotGetArgs) -> Result<Exit> {
    let opened = block_on(async move {
        let snapshot = Snapshot::open(&args.file)?;
        let prefix = prefix(&args.etcd_prefix);
        // A name of an object never begins with a slash, so this is a whole key.
        let key = if args.key.starts_with('/') { args.key.clone() } else { format!("{prefix}{}", args.key) };
        let record = snapshot.get(key.as_bytes())?;
        let record = record.with_context(|| format!("{} holds nothing under {key}", args.file.display()))?;
        let keys = Keys::of(&args.keys, &[])?;
        let seeds = Seeds::new(keys.sources);
        let opener = Opener { configuration: keys.configuration.as_ref(), seeds: &seeds };
        let folder = folder_of(key.strip_prefix(&prefix).unwrap_or(&key));
        let plain = opener.open(&record.key, folder, &record.value).await;
        let plain = plain.with_context(|| format!("{key} cannot be read"))?;
        Ok((plain, args.raw))
    })?;
    let (plain, raw) = opened;
    let mut out = std::io::stdout();
    match manifest(&plain).filter(|_| !raw) {
        Some(yaml) => out.write_all(yaml.as_bytes())?,
        // Protobuf would put the terminal into whatever state its control characters say.
        None if out.is_terminal() && plain.contains(&0) => {
            bail!("the object is stored in a binary form: redirect it to a file")
        }
        None => out.write_all(&plain)?,
    }
    out.flush()?;
    Ok(Exit::Done)
}

/// What `snapshot keys` says.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Found {
    revisions: Vec<i64>,
    /// Of a snapshot file.
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<FileFound>,
    values: Vec<Values>,
    keys: Vec<Needed>,
    #[serde(skip)]
    asked: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FileFound {
    path: String,
    /// SHA-256 at its end, which its content has.
    sha256: Option<String>,
    /// Ids of the etcd members that its cluster had.
    members: Vec<String>,
}

/// Values that are stored alike.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Values {
    resource: String,
    stored: String,
    key_id: Option<String>,
    /// Any one of them opens these values.
    keys: Vec<String>,
    objects: u64,
    older: u64,
    first_revision: i64,
    last_revision: i64,
    seeds: usize,
}

/// A key that values need.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Needed {
    key: String,
    objects: u64,
    older: u64,
    /// How many of these values no other key opens.
    only: u64,
    /// Whether it still opens what it wrapped; not there where that was not asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    opens: Option<bool>,
    /// Why it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

fn keys(args: SnapshotKeysArgs) -> Result<Exit> {
    let output = args.output;
    let found = block_on(async move {
        let source = source(args.file.as_deref(), &args.etcd, &args.etcd_prefix).await?;
        let inventory = Inventory::take(&source, &prefix(&args.etcd_prefix)).await?;
        if inventory.is_partial {
            eprintln!("not looked at: what lies in etcd beside the prefix, since this etcd user may not read it");
        }
        let (config, names) = configuration(args.config.as_deref(), None)?;
        let opens = match &config {
            Some(config) => Some(opens(&keks(config)?, inventory.deks()).await),
            None => None,
        };
        Ok(Found::of(&source, &inventory, &names, opens.as_ref()))
    })?;
    match output {
        OutputFormat::Json => println!("{}", serde_json::to_string_pretty(&found)?),
        OutputFormat::Table => found.print(),
    }
    Ok(Exit::Done)
}

type Opens = BTreeMap<KekVersion, Result<(), String>>;

impl Found {
    fn of(source: &Source, inventory: &Inventory, names: &KeyNames, opens: Option<&Opens>) -> Self {
        let rows: Vec<Row> = inventory.rows().collect();
        let file = match source {
            Source::Snapshot(snapshot) => Some(FileFound {
                path: snapshot.path().display().to_string(),
                sha256: snapshot.about().hash.clone(),
                members: snapshot.about().members.iter().map(|member| format!("{member:x}")).collect(),
            }),
            Source::Etcd(_) => None,
        };
        Self {
            revisions: inventory.revisions.clone(),
            file,
            values: rows.iter().map(|row| Values::of(row, names)).collect(),
            keys: needed(&rows, names, opens),
            asked: opens.is_some(),
        }
    }

    fn print(&self) {
        let mut table = Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        table.set_header([
            "RESOURCE",
            "STORED",
            "KEY_ID",
            "OPENED BY ANY OF",
            "OBJECTS",
            "OLDER",
            "REVISIONS",
            "SEEDS",
        ]);
        for values in &self.values {
            table.add_row([
                values.resource.clone(),
                values.stored.clone(),
                values.key_id.clone().unwrap_or("-".into()),
                values.keys.join(", "),
                values.objects.to_string(),
                values.older.to_string(),
                format!("{}–{}", values.first_revision, values.last_revision),
                values.seeds.to_string(),
            ]);
        }
        println!("{}\n", table.trim_fmt());
        let mut table = Table::new();
        table.load_style(comfy_table::presets::NOTHING).set_header([
            "KEY",
            "OBJECTS",
            "OLDER",
            "ONLY THIS KEY",
            "OPENS",
        ]);
        for needed in &self.keys {
            let opens = match (&needed.opens, &needed.problem) {
                (Some(true), _) => "yes".to_owned(),
                (Some(false), Some(problem)) => format!("no: {problem}"),
                _ => "not asked".to_owned(),
            };
            let numbers = [needed.objects, needed.older, needed.only].map(|number| number.to_string());
            table.add_row([std::slice::from_ref(&needed.key), numbers.as_slice(), &[opens]].concat());
        }
        println!("{}", table.trim_fmt());
        let revisions = self.revisions.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        println!("revision {revisions}");
        match &self.file {
            Some(FileFound { sha256: Some(hash), .. }) => println!("the file matches its own SHA-256: {hash}"),
            Some(FileFound { sha256: None, path, .. }) => println!(
                "{path} has no SHA-256 at its end, as etcdctl snapshot save writes it: damage may go unnoticed"
            ),
            None => {}
        }
        if !self.asked {
            println!("whether the keys still work was not checked: give --config");
        }
    }
}

impl Values {
    fn of(row: &Row, names: &KeyNames) -> Self {
        let keys = KeyName::of(&row.shape.stored);
        let (stored, key_id) = match &row.shape.stored {
            Stored::KmsV2 { provider, key_id, .. } => (format!("kms v2 {provider}"), Some(key_id.clone())),
            Stored::Otherwise(words) => (words.clone(), None),
            Stored::Plain => ("in clear".into(), None),
        };
        Self {
            resource: row.shape.folder.clone(),
            stored,
            key_id,
            keys: keys.iter().map(|key| names.show(key)).collect(),
            objects: row.count.objects,
            older: row.count.older,
            first_revision: row.count.revisions.0,
            last_revision: row.count.revisions.1,
            seeds: row.count.seeds.len(),
        }
    }
}

/// Every key that some value needs.
fn needed(rows: &[Row], names: &KeyNames, opens: Option<&Opens>) -> Vec<Needed> {
    let mut all: BTreeMap<KeyName, Needed> = BTreeMap::new();
    for row in rows {
        let keys = KeyName::of(&row.shape.stored);
        // Each of the keys opens the value alone, since every KEK wrapped the whole DEK.
        let only = keys.len() == 1;
        for key in keys.into_iter().filter(|key| *key != KeyName::Clear) {
            let needed = all.entry(key.clone()).or_insert_with(|| {
                let (opens, problem) = answer(&key, names, opens);
                Needed { key: names.show(&key), objects: 0, older: 0, only: 0, opens, problem }
            });
            needed.objects += row.count.objects;
            needed.older += row.count.older;
            needed.only += if only { row.count.objects + row.count.older } else { 0 };
        }
    }
    all.into_values().collect()
}

/// Whether a key opens, as far as it was asked.
fn answer(key: &KeyName, names: &KeyNames, opens: Option<&Opens>) -> (Option<bool>, Option<String>) {
    let (Some(opens), Some(version)) = (opens, key.kek_version()) else { return (None, None) };
    match opens.get(&version) {
        Some(Ok(())) => (Some(true), None),
        Some(Err(problem)) => (Some(false), Some(problem.clone())),
        None if names.knows(&version.lineage.to_string()) => (None, None),
        None => (Some(false), Some("its KEK is not in the configuration".into())),
    }
}
