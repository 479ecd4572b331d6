//! What `snapshot`, `rehearse` and rewrapping have in common: where values come from, and what opens them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use async_trait::async_trait;

use super::break_glass::{identities, unlock};
use super::plugin_config::plugin_config;
use super::rotation_access::etcd_of;
use crate::backup::{Snapshot, Source};
use crate::cli::backup::KeyArgs;
use crate::cli::etcd::EtcdArgs;
use crate::config::Config;
use crate::encryption_config::EncryptionConfiguration;
use crate::etcd::{EtcdAccess, EtcdClusters};
use crate::kek::set::KekSet;
use crate::key_stores;
use crate::rehearsal::{KekSource, Opener, PluginSource, Seeds, Sources, Without, rehearse};
use crate::rotation::journal::Journal;
use crate::rotation::keys::active::{ask, names, versions_on_file};
use crate::rotation::keys::name::{KeyName, KeyNames};
use crate::rotation::rewrap::Rehearsal;
use crate::telemetry::Metrics;

/// The prefix of all keys, with a slash at its end.
pub(super) fn prefix(given: &str) -> String {
    format!("{}/", given.trim_end_matches('/'))
}

/// The snapshot, or the running etcd. All of its data must be within reach: what is not seen cannot be judged.
pub(super) async fn source(file: Option<&Path>, args: &EtcdArgs, under: &str) -> Result<Source> {
    if let Some(file) = file {
        return Ok(Source::Snapshot(Snapshot::open(file)?));
    }
    let access = etcd_of(args)?.context("give the file of a snapshot, or --etcd")?;
    let etcd = EtcdClusters::connect(&access, &prefix(under)).await?;
    if let Some((endpoint, why)) = etcd.unknown.first() {
        return Err(anyhow!(
            "{endpoint} may lead to data that would be missed: {why}; leave it out, or make it answer"
        ));
    }
    Ok(Source::Etcd(etcd))
}

/// A configuration of kube-envelope, with the private half of its break-glass KEK where one is given, and what its KEKs are
/// called.
pub(super) fn configuration(file: Option<&Path>, break_glass: Option<&Path>) -> Result<(Option<Config>, KeyNames)> {
    let mut config = plugin_config(file)?;
    let identities = identities(break_glass)?;
    match &mut config {
        Some(config) => unlock(config, identities.as_ref())?,
        None if identities.is_some() => bail!("--break-glass needs the plugin's configuration: give --config FILE"),
        None => {}
    }
    let names = config.as_ref().map(names).unwrap_or_default();
    Ok((config, names))
}

/// The KEKs of a configuration, those that only unwrap included.
pub(super) fn keks(config: &Config) -> Result<KekSet> {
    let opened = key_stores::open_set(&config.keks, &config.retired, &Arc::new(Metrics::new()));
    opened.map_err(|(name, error)| anyhow!("KEK {name}: {}", error.chain()))
}

/// The keys that exist, whether or not a value needs them: as far as the KEKs of a configuration and earlier rotations tell.
pub(super) async fn keys_known(config: Option<&Path>, journal: &Path) -> Result<BTreeSet<KeyName>> {
    let mut known = Journal::keys_seen_beside(journal);
    if let Some(config) = plugin_config(config)? {
        let active = ask(&config.keks).await.into_iter().filter_map(|answer| answer.active.ok());
        known.extend(active.map(|version| KeyName::kek(&version)));
        known.extend(versions_on_file(&config).await.iter().map(KeyName::kek));
    }
    Ok(known)
}

/// All that a configuration opens values with.
fn kek_source(config: &Config) -> Result<KekSource> {
    let takeovers = key_stores::open_takeovers(&config.takeover, &Arc::new(Metrics::new()));
    Ok(KekSource::new(config.cluster.clone(), keks(config)?, takeovers))
}

/// Everything that may open a value.
pub(super) struct Keys {
    pub(super) sources: Sources,
    pub(super) configuration: Option<EncryptionConfiguration>,
    pub(super) names: KeyNames,
}

impl Keys {
    /// Reads both configurations.
    pub(super) fn of(args: &KeyArgs, without: &[String]) -> Result<Self> {
        let (config, names) = configuration(args.config.as_deref(), args.break_glass.as_deref())?;
        let keks = config.as_ref().map(kek_source).transpose()?;
        let file = args.encryption_config.as_deref();
        let read = |file: &Path| {
            EncryptionConfiguration::read(file).with_context(|| format!("{} cannot be used", file.display()))
        };
        let configuration = file.map(read).transpose()?;
        let plugins = configuration.as_ref().map(PluginSource::of);
        let without = without.iter().map(|named| Without::parse(named, &names)).collect();
        Ok(Self { sources: Sources { plugins, keks, without }, configuration, names })
    }
}

/// A rehearsal of a running etcd through the plugins.
#[derive(Debug)]
pub(super) struct LiveRehearsal {
    pub(super) etcd: EtcdAccess,
    pub(super) prefix: String,
    pub(super) encryption_config: PathBuf,
}

#[async_trait]
impl Rehearsal for LiveRehearsal {
    async fn rehearse(&self) -> Result<String, String> {
        let configuration =
            EncryptionConfiguration::read(&self.encryption_config).map_err(|error| error.to_string())?;
        let etcd = EtcdClusters::connect(&self.etcd, &self.prefix).await.map_err(|error| error.to_string())?;
        let plugins = Some(PluginSource::of(&configuration));
        let seeds = Seeds::new(Sources { plugins, ..Sources::default() });
        let opener = Opener { configuration: Some(&configuration), seeds: &seeds };
        let found = rehearse(&Source::Etcd(etcd), &self.prefix, &opener).await.map_err(|error| error.to_string())?;
        let values: u64 = found.folders.values().map(|folder| folder.values).sum();
        let named = found.folders.values().flat_map(|folder| &folder.named).next();
        match (found.refused() + found.unchecked(), named) {
            (0, _) => Ok(format!("rehearsed: all {values} values open, by {} seeds", seeds.count())),
            (count, named) => Err(format!(
                "{count} of {values} values do not open{}",
                named.map(|(key, why)| format!(", such as {key}: {why}")).unwrap_or_default()
            )),
        }
    }
}
