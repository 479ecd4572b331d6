//! What a rotation is about: which keys are reported, which resources are encrypted, how many objects there are.

use std::collections::BTreeMap;

use crate::encryption_config::ProviderName;
use crate::rotation::adoption::{Reports, Seen, look};
use crate::rotation::cluster::Cluster;
use crate::rotation::cluster::api::Api;
use crate::rotation::cluster::discovery::discover;
use crate::rotation::cluster::key_id_hash::KeyIdHash;
use crate::rotation::cluster::listing::revision;
use crate::rotation::cluster::resources::{Coverage, Resource};
use crate::rotation::cluster::writer::Writer;
use crate::rotation::error::RotationError;
use crate::rotation::journal::{Journal, Progress};
use crate::rotation::leftovers::judge::Expected;
use crate::rotation::rewrite::Tally;
use crate::rotation::run::settings::Settings;

/// Every resource that is to be encrypted, with its provider, and what is not looked at, with the reason.
#[derive(Debug, Default)]
pub struct Encrypted {
    /// Resources and who writes them, in the order in which they are rewritten.
    pub resources: Vec<(Resource, Writer)>,
    /// What is left out: name → why.
    pub skipped: BTreeMap<String, String>,
    /// Everything that the API serves and stores, encrypted or not.
    pub served: Vec<Resource>,
    /// The patterns of the configuration, each with whether what it names is to be encrypted.
    pub patterns: Vec<(String, bool)>,
}

/// Asks what is served, and keeps what a KMS v2 provider writes.
///
/// # Errors
/// An error status of the API server, or no answer.
pub async fn encrypted(api: &Api, coverage: &Coverage) -> Result<Encrypted, RotationError> {
    let served = discover(&api.patient()).await?;
    let everything = served.resources.iter().chain(&served.unpatchable).cloned().collect();
    let mut encrypted = Encrypted { served: everything, patterns: coverage.patterns(), ..Encrypted::default() };
    for resource in served.resources {
        if let Some(writer) = coverage.writer(&resource) {
            // Both names of Events are one folder in etcd, and its provider is that of the core name.
            if resource.is_event() && !resource.group.is_empty() {
                continue;
            }
            encrypted.resources.push((resource.clone(), writer));
        }
    }
    for group in served.aggregated {
        encrypted.skipped.insert(group, "is stored by another API server, with its own encryption".into());
    }
    // By name after that, so that every run goes in the same order.
    encrypted.resources.sort_by_key(|(resource, _)| (rank(resource), resource.to_string()));
    Ok(encrypted)
}

/// Secrets first: they are what it is about.
fn rank(resource: &Resource) -> u8 {
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "secrets") => 0,
        ("", "configmaps") => 1,
        _ if resource.is_event() => 3,
        _ => 2,
    }
}

impl Encrypted {
    /// What `verify` holds every value against.
    pub fn expected(&self, targets: &BTreeMap<ProviderName, KeyIdHash>) -> Expected {
        Expected {
            resources: self.resources.clone(),
            targets: targets.clone(),
            served: self.served.clone(),
            patterns: self.patterns.clone(),
        }
    }

    /// Takes out what is not rewritten: Events, unless they are wanted, and what `--skip` names.
    #[must_use]
    pub fn for_rewriting(mut self, include_events: bool, skip: &[String]) -> Self {
        if !include_events && self.resources.iter().any(|(resource, _)| resource.is_event()) {
            self.resources.retain(|(resource, _)| !resource.is_event());
            let why = "expire by themselves (--event-ttl of the API servers, 1 h unless changed); --include-events";
            self.skipped.insert("events".into(), why.into());
        }
        let is_skipped = |resource: &Resource| skip.contains(&resource.to_string());
        for (resource, _) in self.resources.iter().filter(|(resource, _)| is_skipped(resource)) {
            self.skipped.insert(resource.to_string(), "is not rewritten (--skip), but still searched".into());
        }
        self.resources.retain(|(resource, _)| !is_skipped(resource));
        self
    }

    /// Refuses a `--skip` or `--allow-changes` that names nothing.
    ///
    /// # Errors
    /// [`RotationError::Unusable`], naming what could be meant.
    pub fn check_names(&self, flag: &str, named: &[String]) -> Result<(), RotationError> {
        let known: Vec<String> = self.resources.iter().map(|(resource, _)| resource.to_string()).collect();
        match named.iter().find(|name| *name != "*" && !known.contains(name)) {
            None => Ok(()),
            Some(name) => Err(RotationError::Unusable(format!(
                "{flag} {name}: no encrypted resource has this name; the encrypted resources are {}",
                known.join(", ")
            ))),
        }
    }
}

/// Enters resources and counts into the journal.
///
/// # Errors
/// An error status of the API server, or no answer.
pub async fn fill(journal: &mut Journal, api: &Api, encrypted: &Encrypted) -> Result<(), RotationError> {
    journal.skipped.clone_from(&encrypted.skipped);
    journal.resources.clear();
    for (resource, writer) in &encrypted.resources {
        let mut tally = Tally::default();
        let objects = match revision(api, resource).await {
            Ok((_, objects)) => objects,
            Err(error) => {
                // No reason to stop: the other resources can be rewritten, and the verdict names this one.
                tally.unlistable = Some(crate::rotation::cluster::api::chain(&error));
                0
            }
        };
        journal.resources.push(Progress {
            resource: resource.clone(),
            writer: writer.clone(),
            objects,
            adopted_at: None,
            done: false,
            tally,
        });
    }
    Ok(())
}

/// Provider → hash of the `key_id` that is reported now. All servers must agree, for "another one than this" to mean
/// something later.
///
/// # Errors
/// [`RotationError::NotConverged`] if two servers report different keys.
pub fn reported_now(seen: &[Seen], coverage: &Coverage) -> Result<BTreeMap<ProviderName, KeyIdHash>, RotationError> {
    let mut reported: BTreeMap<ProviderName, KeyIdHash> = BTreeMap::new();
    for provider in coverage.providers() {
        for hash in seen.iter().filter_map(|one| one.scrape.as_ref()?.reported.get(&provider)).map(|(hash, _)| hash) {
            if reported.insert(provider.clone(), hash.clone()).is_some_and(|other| &other != hash) {
                return Err(RotationError::Blocked(vec![format!(
                    "the plugins of {provider} already report different keys: a rotation is under way; finish it \
                     without --rotate-kek first"
                )]));
            }
        }
    }
    Ok(reported)
}

/// What is encrypted: as configured, or as the metrics let one guess.
///
/// # Errors
/// The file cannot be read, or the metrics do not tell.
pub async fn coverage(cluster: &Cluster, settings: &Settings) -> Result<Coverage, RotationError> {
    if let Some(file) = &settings.encryption_config {
        return Coverage::read(file);
    }
    let seen = look(cluster, Reports::AsTheyAre, true).await.unwrap_or_default();
    let scrapes: Vec<_> = seen.into_iter().filter_map(|one| one.scrape).collect();
    Coverage::infer(&scrapes)
}
