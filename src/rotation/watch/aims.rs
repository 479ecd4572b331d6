//! What everything is to be stored under at this moment, by what the API servers' plugins report.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::encryption_config::ProviderName;
use crate::rotation::adoption::{Reports, Seen, look_at_all};
use crate::rotation::cluster::Cluster;
use crate::rotation::cluster::key_id_hash::KeyIdHash;
use crate::rotation::cluster::resources::Coverage;
use crate::rotation::error::RotationError;
use crate::rotation::leftovers::judge::Expected;
use crate::rotation::run::plan::encrypted;

/// What everything is to be stored under.
#[derive(Clone, Debug)]
pub struct Aims {
    /// One for each set of keys that API servers write with; several while they change over.
    pub wanted: Vec<Expected>,
    /// Why the API servers that answered may not be all.
    pub unasked: Vec<String>,
    /// When they were asked.
    pub at: jiff::Timestamp,
}

impl Aims {
    /// Asks every API server.
    ///
    /// # Errors
    /// If none answers, or their metrics may not be read.
    pub async fn ask(
        cluster: &Cluster,
        encryption_config: Option<&Path>,
        key_id: Option<&str>,
    ) -> Result<Self, RotationError> {
        let at = jiff::Timestamp::now();
        let look = look_at_all(cluster, Reports::Asked, false).await?;
        let coverage = match encryption_config {
            Some(file) => Coverage::read(file)?,
            None => Coverage::infer(&look.seen.iter().filter_map(|one| one.scrape.clone()).collect::<Vec<_>>())?,
        };
        let encrypted = encrypted(cluster.entry(), &coverage).await?;
        let providers = coverage.providers();
        let targets = match key_id {
            Some(key_id) => [providers.into_iter().map(|by| (by, KeyIdHash::of(key_id))).collect()].into(),
            None => targets(&look.seen, &providers),
        };
        let wanted = targets.iter().map(|targets| encrypted.expected(targets)).collect();
        Ok(Self { wanted, unasked: look.failures, at })
    }

    /// Whether all API servers write with the same keys.
    pub fn agree(&self) -> bool {
        self.wanted.len() == 1
    }

    /// The keys that they write with.
    pub fn targets(&self) -> BTreeSet<&BTreeMap<ProviderName, KeyIdHash>> {
        self.wanted.iter().map(|wanted| &wanted.targets).collect()
    }
}

/// What each server's plugins report; as many as differ.
fn targets(seen: &[Seen], providers: &BTreeSet<ProviderName>) -> BTreeSet<BTreeMap<ProviderName, KeyIdHash>> {
    let of = |one: &Seen| {
        let reported = &one.scrape.as_ref()?.reported;
        let target = |by: &ProviderName| reported.get(by).map(|(hash, _)| (by.clone(), hash.clone()));
        Some(providers.iter().filter_map(target).collect())
    };
    seen.iter().filter_map(of).collect()
}
