//! `verify`: is anything left on a former key? Rewrites nothing; the answer is the exit code.

mod metrics_file;
mod snapshots;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use anyhow::{Context, Result};
use serde::Serialize;

use self::snapshots::Snapshots;
use super::exit::{Exit, block_on};
use super::plugin_config::plugin_config;
use super::rotate_keys::intent::{defaults, etcd_prefix};
use super::rotation_access::{access, etcd_of, exit_of};
use super::rotation_display::{Display, print_scan};
use crate::cli::OutputFormat;
use crate::cli::rotation::{ClusterArgs, VerifyArgs};
use crate::config::Config;
use crate::encryption_config::ProviderName;
use crate::kek::KekVersion;
use crate::rotation::adoption::shown::roster;
use crate::rotation::adoption::{
    Obstacle, Reports, Seen, Wanted, look, look_at_all, look_fresh, reports, targets_reported,
};
use crate::rotation::claim::{Claim, Question, Subject, Witness};
use crate::rotation::cluster::Cluster;
use crate::rotation::cluster::key_id_hash::KeyIdHash;
use crate::rotation::cluster::ledger::Account;
use crate::rotation::cluster::resources::Coverage;
use crate::rotation::cluster::writer::StoredUnder;
use crate::rotation::conclusion::claims::{configuration, reported, searched};
use crate::rotation::conclusion::evidence::weigh;
use crate::rotation::conclusion::plugins::plugins;
use crate::rotation::error::RotationError;
use crate::rotation::event::Event;
use crate::rotation::journal::Journal;
use crate::rotation::journal::intent::Intent;
use crate::rotation::journal::verdict::{Conclusion, Verdict};
use crate::rotation::keys::active::{
    KekAnswer, active_now, ask, hash_of, names, own_provider, resolve, versions_on_file,
};
use crate::rotation::keys::name::KeyName;
use crate::rotation::keys::usage::{Usage, usage};
use crate::rotation::leftovers::scan::Scan;
use crate::rotation::leftovers::snapshots::need_no_former;
use crate::rotation::rewrite::pace::Pace;
use crate::rotation::rewrite::reads::scan_reads;
use crate::rotation::run::plan::{Encrypted, encrypted};
use crate::rotation::run::search_etcd;
use crate::telemetry::{LogFormat, start_logs};

/// What was found, what it shows, and what needs each key.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Found {
    #[serde(flatten)]
    scan: Option<Scan>,
    /// What each KEK calls active.
    keks: Vec<String>,
    /// Why the API servers' target is not certain.
    not_converged: Option<String>,
    /// The verdict, from claims as those of a rotation.
    verdict: Verdict,
    /// What was shown about each subject, and what could not be.
    claims: BTreeMap<Subject, Claim>,
    /// What needs each key.
    usage: Vec<Usage>,
    /// What of it is a guess.
    guesses: Vec<String>,
}

/// Runs the command.
///
/// # Errors
/// When something that cannot be done without failed.
pub fn run(args: VerifyArgs) -> Result<Exit> {
    if std::env::var_os("RUST_LOG").is_some() {
        start_logs(LogFormat::Text);
    }
    if args.watch {
        return watch::run(&args);
    }
    let (output, metrics) = (args.cluster.output, args.metrics_file.clone());
    let plugin = plugin_config(args.cluster.config.as_deref())?;
    let found = match block_on(async move { Ok(Box::pin(verify(&args, plugin.as_ref())).await) })? {
        Ok(found) => found,
        Err(error @ RotationError::Unusable(_)) => {
            eprintln!("error: {error}");
            return Ok(Exit::Usage);
        }
        Err(error) => return Err(error.into()),
    };
    if let Some(file) = metrics {
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
        if self.not_converged.is_some() { Exit::NotConverged } else { exit_of(&self.verdict) }
    }

    fn print(&self) {
        if let Some(scan) = &self.scan {
            print_scan(scan);
        }
        self.usage.iter().for_each(|usage| println!("{}: {}", usage.key, usage.describe()));
        self.guesses.iter().for_each(|line| println!("a guess: {line}"));
        self.keks.iter().for_each(|said| println!("{said}"));
        self.verdict.evidence.iter().for_each(|line| println!("evidence: {line}"));
        self.verdict.not_looked_at.iter().for_each(|line| println!("not looked at: {line}"));
        self.verdict.missing.iter().for_each(|line| println!("missing: {line}"));
        match &self.not_converged {
            Some(why) => {
                println!("The API servers do not agree on a key, so leftovers cannot be identified: {why}");
            }
            None => println!("{}", self.verdict.sentence),
        }
        if self.exit() == Exit::Leftovers {
            println!("Run rotate-keys.");
        }
    }
}

async fn verify(args: &VerifyArgs, plugin: Option<&Config>) -> Result<Found, RotationError> {
    let files = &args.snapshot_file;
    let args = &args.cluster;
    let cluster = Cluster::connect(&access(args)).await?;
    let snapshots = Snapshots::read(files, &etcd_prefix(args), &cluster).await?;
    let seen = match args.key_id {
        Some(_) => look(&cluster, Reports::Asked, true).await?,
        None => look(&cluster, Reports::Asked, false).await?,
    };
    let coverage = match &args.encryption_config {
        Some(file) => Coverage::read(file)?,
        None => Coverage::infer(&seen.iter().filter_map(|one| one.scrape.clone()).collect::<Vec<_>>())?,
    };
    let seen = match args.key_id {
        Some(_) => seen,
        // The first look showed which providers there are; this one waits until each plugin has been asked again, since a report
        // from before a rotation would turn everything into leftovers.
        None => look_fresh(&cluster, &coverage.providers(), &BTreeMap::new(), false, &|| {}).await?,
    };
    let roster = which_servers(&cluster).await;
    let (targets, not_converged) = targets(args, &coverage, &seen)?;
    let mut evidence = Evidence { journal: journal(args)?, not_converged };
    evidence.journal.targets.clone_from(&targets);
    evidence.journal.inferred = coverage.is_inferred();
    let mut known = BTreeSet::new();
    if let Some(plugin) = plugin
        && let Some(provider) = own_provider(&coverage, plugin, args.config.is_some())
    {
        evidence.compare_with_keks(plugin, &provider).await;
        known.extend(versions_on_file(plugin).await.iter().map(KeyName::kek));
    }
    let encrypted = encrypted(cluster.entry(), &coverage).await?;
    evidence.journal.skipped.clone_from(&encrypted.skipped);
    let mut old_revisions = None;
    if let Some(scan) = search(args, &encrypted, &targets, &seen).await? {
        if !files.is_empty() {
            old_revisions =
                snapshots::in_old_revisions(&args.etcd, &etcd_prefix(args), &encrypted, &targets, &scan).await?;
            let claim = need_no_former(files, &etcd_prefix(args), &encrypted.expected(&targets.plugins))?;
            evidence.journal.claims.insert(Subject::Snapshot, claim);
        }
        evidence.searched(scan, &seen);
    }
    evidence.journal.claims.insert(Subject::Roster, roster);
    evidence.ask_plugins(&seen, plugin, &known, &coverage.readers());
    Ok(evidence.concluded(&known, &snapshots, old_revisions))
}

/// A journal that begins and ends with one search.
fn journal(args: &ClusterArgs) -> Result<Journal, RotationError> {
    let mut intent = defaults();
    intent.encryption_config.clone_from(&args.encryption_config);
    intent.etcd_prefix = etcd_prefix(args);
    Intent::begin(&intent, &serde_json::Map::new()).map(Journal::new)
}

/// Which API servers exist. One that nobody met may store under a former key, now or when it is started again.
async fn which_servers(cluster: &Cluster) -> Claim {
    const REMEDY: &str = "then run verify again";
    match look_at_all(cluster, Reports::Asked, false).await {
        Ok(look) if look.doubts.is_empty() && !look.failures.is_empty() => {
            Claim::not_shown(Witness::Api, look.failures.join("; "), REMEDY)
        }
        Ok(look) => roster(look.seen.len(), &look.doubts, REMEDY),
        Err(obstacle) => Claim::not_shown(Witness::Api, RotationError::from(obstacle).to_string(), REMEDY),
    }
}

/// What is collected on the way to a verdict.
struct Evidence {
    journal: Journal,
    not_converged: Option<String>,
}

/// What everything should be stored under, and why that is not certain.
fn targets(
    args: &ClusterArgs,
    coverage: &Coverage,
    seen: &[Seen],
) -> Result<(StoredUnder, Option<String>), RotationError> {
    let providers = coverage.providers();
    let local = StoredUnder { local: coverage.local_writers(), ..StoredUnder::default() };
    let wanted = Wanted { providers: providers.clone(), targets: local, ..Wanted::default() };
    let reported = match targets_reported(seen, &wanted) {
        Ok(reported) => reported,
        Err(Obstacle::Failed(error)) => return Err(error),
        // Servers that do not agree are an answer, not a failure: what is stored can still be shown.
        Err(obstacle) => return Ok((StoredUnder::default(), Some(RotationError::from(obstacle).to_string()))),
    };
    let Some(key_id) = &args.key_id else { return Ok((reported, None)) };
    let hash = KeyIdHash::of(key_id);
    let used = reported.is_empty() || reported.plugins.values().any(|reported| *reported == hash);
    let why = (!used).then(|| format!("no API server uses key_id {key_id}"));
    let all = providers.into_iter().map(|provider| (provider, hash.clone()));
    Ok((all.collect::<BTreeMap<_, _>>().into(), why))
}

impl Evidence {
    /// The plugins must use what the KEKs call active.
    async fn compare_with_keks(&mut self, plugin: &Config, provider: &ProviderName) {
        self.journal.names = names(plugin);
        self.journal.own_provider = Some(provider.clone());
        let answers = ask(&plugin.keks).await;
        self.journal.kek_answers = answers.iter().map(KekAnswer::describe).collect();
        let versions: Option<Vec<_>> = answers.iter().map(|answer| answer.active.as_ref().ok().cloned()).collect();
        let claim = match versions {
            None => Claim::not_shown(
                Witness::KeyStores,
                "a KEK could not be asked which version is active",
                "make it reachable, and run again",
            ),
            Some(versions) => {
                self.journal.target_keys = versions.iter().map(KeyName::kek).collect();
                let target = self.journal.targets.key(provider);
                if target != Some(&hash_of(plugin.epoch, &versions)) && self.not_converged.is_none() {
                    self.not_converged =
                        Some("the plugins do not use the versions that the KEKs report as active".into());
                }
                active_now(&answers, &self.journal.target_keys)
            }
        };
        self.journal.claims.insert(Subject::Keks, claim);
    }

    /// A plugin through which nothing is stored yet may still use a former key.
    fn ask_plugins(
        &mut self,
        seen: &[Seen],
        plugin: Option<&Config>,
        known: &BTreeSet<KeyName>,
        readers: &BTreeSet<ProviderName>,
    ) {
        let journal = &mut self.journal;
        let stored = journal.verified.iter().flat_map(|scan| scan.groups.keys());
        let all = known.iter().cloned().chain(journal.target_keys.iter().cloned()).chain(stored);
        let versions: BTreeSet<KekVersion> = all.filter_map(|key| key.kek_version()).collect();
        let resolved = |hash: &KeyIdHash| {
            let generation = plugin.and_then(|plugin| resolve(hash, plugin.epoch, &versions));
            generation.map(|(_, keys)| keys).unwrap_or_default()
        };
        let claim = plugins(&reports(seen), journal, readers, &resolved);
        journal.claims.insert(Subject::Plugins, claim);
    }

    fn searched(&mut self, scan: Scan, seen: &[Seen]) {
        let now = jiff::Timestamp::now();
        let account = |one: &Seen| one.scrape.as_ref().map(|scrape| Account::of(one.api.address(), scrape));
        let accounts: Vec<Account> = seen.iter().filter_map(account).collect();
        let journal = &mut self.journal;
        journal.claims.insert(Subject::Adoption, reported(accounts.len()));
        journal.claims.insert(Subject::Search, searched(&scan, now));
        journal.claims.extend(scan.whole.clone().map(|claim| (Subject::Etcd, claim)));
        (journal.verified, journal.verified_at) = (Some(scan), Some(now));
        let configuration = configuration(journal, &accounts);
        journal.claims.insert(Subject::Configuration, configuration);
    }

    fn concluded(self, known: &BTreeSet<KeyName>, snapshots: &Snapshots, old_revisions: Option<u64>) -> Found {
        let Self { journal, not_converged } = self;
        let verdict = weigh(&journal, Question::IsAnythingLeft);
        let groups = journal.verified.as_ref().map(|scan| scan.groups.clone()).unwrap_or_default();
        let mut guesses = Vec::new();
        if !journal.is_by_etcd() {
            guesses.push("the numbers of values are what one API server's metrics counted while they were read".into());
        }
        if journal.inferred {
            guesses.push("which resources are encrypted was guessed from the API servers' metrics".into());
        }
        let mut usage = usage(known, &journal.target_keys, &groups, &snapshots.held, &journal.names);
        // Destroying a version is for good, so everything that could be searched must have been, old revisions included. What
        // the snapshots need is judged for each key.
        let nothing_left = matches!(verdict.conclusion, Conclusion::NothingLeft | Conclusion::NothingLeftWait);
        if nothing_left && not_converged.is_none() && old_revisions == Some(0) && snapshots.is_any_of_this_cluster() {
            for usage in &mut usage {
                usage.may_be_destroyed = usage.is_unused();
            }
        }
        guesses.extend(snapshots.unknown.iter().map(|file| format!("{file} is taken for a snapshot of this cluster")));
        if let Some(values) = old_revisions.filter(|values| *values > 0) {
            guesses.push(format!(
                "whether a version may be destroyed: {values} superseded value(s) in old revisions of etcd are under a \
                 former key until it is compacted"
            ));
        }
        Found {
            usage,
            guesses,
            verdict,
            not_converged,
            keks: journal.kek_answers,
            claims: journal.claims,
            scan: journal.verified,
        }
    }
}

async fn search(
    args: &ClusterArgs,
    encrypted: &Encrypted,
    targets: &StoredUnder,
    seen: &[Seen],
) -> Result<Option<Scan>, RotationError> {
    let (expected, defaults) = (encrypted.expected(&targets.plugins), defaults());
    if let Some(etcd) = etcd_of(&args.etcd)? {
        return search_etcd(&seen[0].api, &etcd, &etcd_prefix(args), &expected, None).await.map(Some);
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
