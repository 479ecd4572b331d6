//! A rehearsal: every current value of a source is opened once, as an API server does that starts with empty caches.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::opening::Opener;
use super::seeds::SeedName;
use crate::backup::{Source, SourceError};
use crate::etcd::{EncryptedObject, Stored, folder_of};
use crate::rotation::keys::name::KeyName;

/// So many values that do not open are named for each resource; all are counted.
const NAMED: usize = 1_000;

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Rehearsal {
    /// By the folder of each resource.
    pub folders: BTreeMap<String, FolderReport>,
    /// Values of the past that a snapshot still holds. An API server does not read them at its start.
    pub older: u64,
    /// Every key that some value names.
    pub keys: BTreeSet<KeyName>,
    /// How long reading and opening took, the time for seeds left out.
    pub reading: Duration,
    /// The newest revision of each etcd cluster.
    pub revisions: Vec<i64>,
}

/// What was found of one resource.
#[derive(Clone, Debug, Default)]
pub struct FolderReport {
    /// Current values, superseded ones left out.
    pub values: u64,
    /// Those that opened, or are read in clear.
    pub opened: u64,
    /// Those of them that are stored in clear.
    pub in_clear: u64,
    /// Those that an API server could not read.
    pub refused: u64,
    /// Those that could not be judged.
    pub unchecked: u64,
    /// Different wrapped seeds among these values: one Decrypt each.
    pub seeds: BTreeSet<SeedName>,
    /// Keys in etcd that do not open, or were not judged, with the reason; the first 1,000 of them.
    pub named: BTreeMap<String, String>,
}

impl Rehearsal {
    /// Values that an API server could not read.
    pub fn refused(&self) -> u64 {
        self.folders.values().map(|folder| folder.refused).sum()
    }

    /// Values that could not be judged.
    pub fn unchecked(&self) -> u64 {
        self.folders.values().map(|folder| folder.unchecked).sum()
    }
}

/// Opens every current value under `prefix`, which ends with a slash. No plaintext outlives its own check.
///
/// # Errors
/// If the source cannot be read to its end.
pub async fn rehearse(source: &Source, prefix: &str, opener: &Opener<'_>) -> Result<Rehearsal, SourceError> {
    let mut rehearsal = Rehearsal::default();
    let began = Instant::now();
    let mut reading = source.read(prefix)?;
    while let Some(page) = reading.next().await? {
        for item in page {
            if !item.current {
                rehearsal.older += 1;
                continue;
            }
            let key = String::from_utf8_lossy(&item.record.key).into_owned();
            let folder = folder_of(key.strip_prefix(prefix).unwrap_or(&key)).to_owned();
            let value = &item.record.value;
            rehearsal.keys.extend(KeyName::of(&Stored::of(value)).into_iter().filter(|key| *key != KeyName::Clear));
            let outcome = opener.open(&item.record.key, &folder, value).await;
            let report = rehearsal.folders.entry(folder).or_default();
            report.values += 1;
            report.in_clear += u64::from(!value.starts_with(b"k8s:enc:"));
            if let Some((provider, object)) = EncryptedObject::of(value) {
                report.seeds.insert(object.seed_digest(&provider));
            }
            match outcome {
                Ok(_plaintext) => report.opened += 1,
                Err(refusal) => {
                    *(if refusal.is_unchecked() { &mut report.unchecked } else { &mut report.refused }) += 1;
                    if report.named.len() < NAMED {
                        report.named.insert(key, refusal.to_string());
                    }
                }
            }
        }
    }
    rehearsal.revisions = reading.revisions;
    let seeds: BTreeSet<_> = rehearsal.folders.values().flat_map(|folder| &folder.seeds).collect();
    // Left out here: an API server fills the caches of its resources side by side, so that an estimate of its start counts
    // the seeds of the slowest resource alone.
    let for_seeds = seeds.iter().map(|seed| opener.seeds.time(seed)).sum();
    rehearsal.reading = began.elapsed().saturating_sub(for_seeds);
    Ok(rehearsal)
}
