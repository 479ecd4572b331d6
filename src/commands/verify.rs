//! `verify`: is anything left on a former key? Rewrites nothing; the answer is the exit code.

mod metrics_file;

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, Result};
use serde::Serialize;

use super::rotate_keys::intent::{defaults, plugin_config};
use super::rotate_keys::{access, etcd_access};
use super::rotation_display::{Display, print_keys, print_scan};
use super::{Exit, block_on};
use crate::cli::OutputFormat;
use crate::cli::rotation::{ClusterArgs, VerifyArgs};
use crate::config::Config;
use crate::rotation::adoption::{Obstacle, Seen, Wanted, look, look_fresh, targets_reported};
use crate::rotation::cluster::Cluster;
use crate::rotation::cluster::metrics::key_id_hash;
use crate::rotation::cluster::resources::Coverage;
use crate::rotation::error::RotationError;
use crate::rotation::event::Event;
use crate::rotation::keys::active::{KekAnswer, ask, hash_of, names, own_provider};
use crate::rotation::keys::name::KeyNames;
use crate::rotation::leftovers::scan::Scan;
use crate::rotation::rewrite::pace::Pace;
use crate::rotation::rewrite::reads::scan_reads;
use crate::rotation::run::plan::{Encrypted, encrypted};
use crate::rotation::run::search_etcd;
use crate::telemetry::{LogFormat, start_logs};

/// Provider → hash of the `key_id` that everything should be stored under.
type Targets = BTreeMap<String, String>;

/// What was found, and what it does not prove.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Found {
    #[serde(flatten)]
    scan: Option<Scan>,
    #[serde(skip)]
    names: KeyNames,
    /// What each KEK calls active.
    keks: Vec<String>,
    /// Why the API servers' target is not certain.
    not_converged: Option<String>,
    /// Proofs that are missing, with the remedy.
    missing: Vec<String>,
    /// What no search covered.
    not_looked_at: Vec<String>,
}

/// Runs the command.
///
/// # Errors
/// When something that cannot be done without failed.
pub fn run(args: VerifyArgs) -> Result<Exit> {
    if std::env::var_os("RUST_LOG").is_some() {
        start_logs(LogFormat::Text);
    }
    let output = args.cluster.output;
    let plugin = plugin_config(args.cluster.config.as_deref())?;
    let found = match block_on(async move { Ok(verify(&args.cluster, plugin.as_ref()).await) })? {
        Ok(found) => found,
        Err(error @ RotationError::Unusable(_)) => {
            eprintln!("error: {error}");
            return Ok(Exit::Usage);
        }
        Err(error) => return Err(error.into()),
    };
    if let Some(file) = args.metrics_file {
        let outcome = metrics_file::Outcome {
            at: jiff::Timestamp::now().as_second(),
            exit: found.exit() as u8,
            found: found.scan.as_ref().map(|scan| (scan.looked_at, scan.leftovers)),
        };
        metrics_file::write(&file, outcome).with_context(|| format!("cannot write {}", file.display()))?;
    }
    match output {
        OutputFormat::Json => println!("{}", serde_json::to_string_pretty(&found)?),
        OutputFormat::Table => found.print(),
    }
    Ok(found.exit())
}

impl Found {
    fn exit(&self) -> Exit {
        match &self.scan {
            _ if self.not_converged.is_some() => Exit::NotConverged,
            Some(scan) if scan.leftovers > 0 => Exit::Leftovers,
            Some(_) if self.missing.is_empty() => Exit::Done,
            _ => Exit::NotProven,
        }
    }

    fn print(&self) {
        if let Some(scan) = &self.scan {
            print_scan(scan);
            print_keys(&self.names, &scan.groups);
        }
        self.keks.iter().for_each(|said| println!("{said}"));
        self.not_looked_at.iter().for_each(|line| println!("not looked at: {line}"));
        self.missing.iter().for_each(|line| println!("missing: {line}"));
        match self.exit() {
            Exit::Done => println!("Nothing is stored under a former key."),
            Exit::NotConverged => {
                let why = self.not_converged.as_deref().unwrap_or_default();
                println!("The API servers do not agree on a key, so what is a leftover is not known: {why}");
            }
            Exit::Leftovers => println!(
                "Something is stored under a former key: disabling that key makes the next restart of an API server \
                 fail. Run rotate-keys."
            ),
            _ => println!("Nothing was found under a former key, and that does not prove that nothing is."),
        }
    }
}

async fn verify(args: &ClusterArgs, plugin: Option<&Config>) -> Result<Found, RotationError> {
    let cluster = Cluster::connect(&access(args)).await?;
    let seen = match args.key_id {
        Some(_) => look(&cluster, true).await?,
        None => look(&cluster, false).await?,
    };
    let coverage = match &args.encryption_config {
        Some(file) => Coverage::read(file)?,
        None => Coverage::infer(&seen.iter().filter_map(|one| one.scrape.clone()).collect::<Vec<_>>())?,
    };
    let seen = match args.key_id {
        Some(_) => seen,
        None => look_fresh(&cluster, &coverage.providers(), false).await?,
    };
    let (targets, not_converged) = targets(args, &coverage, &seen)?;
    let mut found = Found {
        scan: None,
        names: KeyNames::default(),
        keks: Vec::new(),
        not_converged,
        missing: Vec::new(),
        not_looked_at: Vec::new(),
    };
    if let Some(plugin) = plugin
        && let Some(provider) = own_provider(&coverage, plugin, args.config.is_some())
    {
        found.compare_with_keks(plugin, &provider, &targets).await;
    }
    let encrypted = encrypted(cluster.entry(), &coverage).await?;
    found.not_looked_at = encrypted.skipped.iter().map(|(what, why)| format!("{what}: {why}")).collect();
    if coverage.is_inferred() && args.etcd.is_empty() {
        found.missing.push(
            "the encrypted resources were guessed from metrics: give --encryption-config, or scan etcd (--etcd)".into(),
        );
    }
    found.scan = search(args, &encrypted, &targets, &seen).await?;
    if let Some(scan) = &found.scan {
        found.missing.extend(scan.gaps(args.etcd_prefix.as_deref().unwrap_or(&defaults().etcd_prefix)));
        found.not_looked_at.extend(scan.whole.iter().flat_map(|claim| claim.blind_spots.clone()));
    }
    Ok(found)
}

/// What everything should be stored under, and why that is not certain.
fn targets(args: &ClusterArgs, coverage: &Coverage, seen: &[Seen]) -> Result<(Targets, Option<String>), RotationError> {
    let providers = coverage.providers();
    let local = coverage.local_writers().into_iter().map(|provider| (provider, String::new())).collect();
    let wanted = Wanted { providers: providers.clone(), targets: local, ..Wanted::default() };
    let reported = match targets_reported(seen, &wanted) {
        Ok(reported) => reported,
        Err(Obstacle::Failed(error)) => return Err(error),
        Err(obstacle) => return Ok((Targets::new(), Some(RotationError::from(obstacle).to_string()))),
    };
    let Some(key_id) = &args.key_id else { return Ok((reported, None)) };
    let hash = key_id_hash(key_id);
    let used = reported.is_empty() || reported.values().any(|reported| *reported == hash);
    let why = (!used).then(|| format!("no API server uses key_id {key_id}"));
    Ok((providers.into_iter().map(|provider| (provider, hash.clone())).collect(), why))
}

impl Found {
    /// The plugins must use what the KEKs call active.
    async fn compare_with_keks(&mut self, plugin: &Config, provider: &str, targets: &Targets) {
        self.names = names(plugin);
        let answers = ask(&plugin.keks).await;
        self.keks = answers.iter().map(KekAnswer::describe).collect();
        let versions: Option<Vec<_>> = answers.iter().map(|answer| answer.active.as_ref().ok().cloned()).collect();
        match versions {
            None => self.missing.push("a KEK could not be asked which version is active: make it reachable".into()),
            Some(versions) if targets.get(provider) == Some(&hash_of(plugin.epoch, &versions)) => {}
            Some(_) if self.not_converged.is_none() => {
                self.not_converged = Some("the plugins do not use the versions that the KEKs call active".into());
            }
            Some(_) => {}
        }
    }
}

async fn search(
    args: &ClusterArgs,
    encrypted: &Encrypted,
    targets: &Targets,
    seen: &[Seen],
) -> Result<Option<Scan>, RotationError> {
    let (expected, defaults) = (encrypted.expected(targets), defaults());
    let ca = args.etcd_ca.as_deref();
    if let Some(etcd) = etcd_access(&args.etcd, ca, args.etcd_cert.as_deref(), args.etcd_key.as_deref())? {
        let prefix = args.etcd_prefix.clone().unwrap_or(defaults.etcd_prefix);
        return search_etcd(&seen[0].api, &etcd, &prefix, &expected).await.map(Some);
    }
    // Without a target every read counts as one under a former key.
    if targets.is_empty() {
        return Ok(None);
    }
    let concurrency = args.max_concurrency.unwrap_or(defaults.max_concurrency).into();
    let mut pace = Pace::new(concurrency, args.qps, Instant::now());
    let display = Display::new(args.output == OutputFormat::Json);
    let scan = scan_reads(&seen[0].api, &expected, &mut pace, &mut |resource, tally, concurrency| {
        display.show(&Event::Progress { resource, tally, objects: 0, concurrency });
    })
    .await;
    display.finish();
    scan.map(Some)
}
