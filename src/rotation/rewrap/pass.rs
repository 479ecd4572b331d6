//! One pass over everything in etcd: what is under a former key of a target's provider is swapped for the same under
//! the target; what cannot be is left, and counted.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tonic::Code;

use super::batch::{Batches, Sent, batches, halves};
use super::behind::Watchers;
use super::seeds::{SeedRefusal, SeedWrapper};
use crate::etcd::{EncryptedObject, EtcdClusters, EtcdError, Record, Swap, Swapped, folder_of};
use crate::rotation::cluster::writer::Writer;
use crate::rotation::error::RotationError;
use crate::rotation::rewrite::pace::Pace;

/// How often progress is told.
const TOLD_EVERY: Duration = Duration::from_secs(5);

/// What is to be done.
#[derive(Clone, Debug, Default)]
pub struct Aim {
    /// Folders that must end under a target, each with who writes it.
    pub folders: BTreeMap<String, Writer>,
    /// Folders that are left alone.
    pub skip: BTreeSet<String>,
}

/// What was done, by folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rewrapped {
    /// Stored again under the target.
    pub done: BTreeMap<String, u64>,
    /// Under the target already.
    pub current: u64,
    /// Written by somebody else meanwhile: whether under the target, the next pass sees.
    pub overtaken: u64,
    /// To be stored by the API servers: in clear, or by another provider than the one that writes the folder.
    pub left: BTreeMap<String, u64>,
    /// Key → why it stays under a former key.
    pub refused: BTreeMap<String, String>,
}

impl Rewrapped {
    /// How many were stored again.
    pub fn total(&self) -> u64 {
        self.done.values().sum()
    }
}

/// What one value needs.
enum Need {
    Nothing,
    Swap(Swap),
}

/// One pass over all values of all clusters.
pub struct Pass<'a, 'b> {
    /// Over these clusters.
    pub etcd: &'a EtcdClusters,
    /// Under this prefix, which ends with a slash.
    pub prefix: &'a str,
    /// What is to be done.
    pub aim: &'a Aim,
    /// Who wraps seeds.
    pub seeds: &'a mut SeedWrapper<'b>,
    /// How many transactions at once, and how many values a second.
    pub pace: &'a mut Pace,
    /// Who must see what is stored.
    pub watchers: &'a mut Watchers,
    /// What was done so far; kept when the pass is dropped half way.
    pub tally: &'a mut Rewrapped,
}

impl Pass<'_, '_> {
    /// Goes through everything. `say` is told now and then how far it is.
    ///
    /// # Errors
    /// [`RotationError::Paused`] when the plugin does not answer or etcd is full, [`RotationError::Blocked`] when etcd takes no writes of
    /// this user, [`RotationError::Etcd`].
    pub async fn run(mut self, say: &(dyn Fn(&str) + Send + Sync)) -> Result<(), RotationError> {
        let began = Instant::now();
        let mut told = began;
        let etcd = self.etcd;
        for cluster in &etcd.clusters {
            let (mut pages, mut under_way) = (cluster.pages(self.prefix), Batches::new(cluster));
            while let Some(page) = pages.next().await? {
                let mut swaps = Vec::new();
                for record in page {
                    if let Need::Swap(swap) = self.need(record).await? {
                        swaps.push(swap);
                    }
                }
                for batch in batches(swaps) {
                    self.wait_for_a_place(&mut under_way, batch.len()).await?;
                    under_way.send(batch);
                    while let Some(sent) = under_way.answered(self.pace) {
                        self.take(sent, &mut under_way)?;
                    }
                    self.watchers.keep_up(self.pace).await;
                }
                if told.elapsed() >= TOLD_EVERY {
                    told = Instant::now();
                    say(&progress(self.tally.total(), began.elapsed(), self.pace.limit()));
                }
            }
            self.finish(&mut under_way).await?;
        }
        say(&progress(self.tally.total(), began.elapsed(), self.pace.limit()));
        Ok(())
    }

    async fn need(&mut self, record: Record) -> Result<Need, RotationError> {
        let key = String::from_utf8_lossy(&record.key).into_owned();
        let folder = folder_of(key.strip_prefix(self.prefix).unwrap_or(&key)).to_owned();
        // Before anything is asked of the plugin: a seed that only skipped values have may be one that does not open.
        if self.aim.skip.contains(&folder) {
            return Ok(Need::Nothing);
        }
        let writer = self.aim.folders.get(&folder);
        let stored = EncryptedObject::of(&record.value)
            .filter(|(provider, _)| writer.is_none_or(|writer| writer.plugin() == Some(provider)))
            .and_then(|(provider, object)| {
                let is_current = self.seeds.is_target(&provider, &object.key_id)?;
                Some((provider, is_current, object))
            });
        let Some((provider, is_current, object)) = stored else {
            if writer.is_some() {
                *self.tally.left.entry(folder).or_default() += 1;
            }
            return Ok(Need::Nothing);
        };
        if is_current {
            self.tally.current += 1;
            return Ok(Need::Nothing);
        }
        // A field of a later API server would be lost.
        let whole = object.to_value(&provider).len() == record.value.len();
        let rewrapped = if whole {
            self.seeds.rewrap(&provider, &object).await
        } else {
            Err(SeedRefusal::Refused("it has fields that this program does not know".into()))
        };
        match rewrapped {
            Ok(object) => {
                let value = object.to_value(&provider);
                Ok(Need::Swap(Swap { key: record.key, replaces: record.mod_revision, value }))
            }
            Err(SeedRefusal::Refused(why)) => {
                self.tally.refused.insert(key, why);
                Ok(Need::Nothing)
            }
            Err(SeedRefusal::Stop(why)) => Err(RotationError::Paused(why)),
        }
    }

    /// Waits until so many more may be stored.
    async fn wait_for_a_place(&mut self, under_way: &mut Batches<'_>, swaps: usize) -> Result<(), RotationError> {
        while under_way.len() >= self.pace.limit() {
            self.next(under_way).await?;
        }
        tokio::time::sleep_until(self.pace.next().into()).await;
        let now = Instant::now();
        (0..swaps).for_each(|_| self.pace.sent(now));
        Ok(())
    }

    async fn finish(&mut self, under_way: &mut Batches<'_>) -> Result<(), RotationError> {
        while under_way.len() > 0 {
            self.next(under_way).await?;
        }
        Ok(())
    }

    /// Takes one answer, and sends again what was not done because of others.
    async fn next(&mut self, under_way: &mut Batches<'_>) -> Result<(), RotationError> {
        match under_way.next(self.pace).await {
            Some(sent) => self.take(sent, under_way),
            None => Ok(()),
        }
    }

    fn take(&mut self, Sent { swaps, result, .. }: Sent, under_way: &mut Batches<'_>) -> Result<(), RotationError> {
        match result.map_err(explained)? {
            Swapped::Done(revision) => {
                for swap in &swaps {
                    self.count(swap);
                }
                if let Some(last) = swaps.last() {
                    let key = String::from_utf8_lossy(&last.key);
                    self.watchers.stored(key.strip_prefix(self.prefix).unwrap_or(&key), revision);
                }
            }
            // That writer went through an API server; the value is read again in the next pass.
            Swapped::Overtaken if swaps.len() == 1 => self.tally.overtaken += 1,
            // One key that somebody wrote keeps all others of its transaction from being done.
            Swapped::Overtaken | Swapped::TooMany => halves(swaps).into_iter().for_each(|half| under_way.send(half)),
        }
        Ok(())
    }

    fn count(&mut self, swap: &Swap) {
        let key = String::from_utf8_lossy(&swap.key);
        let folder = folder_of(key.strip_prefix(self.prefix).unwrap_or(&key)).to_owned();
        *self.tally.done.entry(folder).or_default() += 1;
    }
}

fn progress(done: u64, took: Duration, limit: usize) -> String {
    #[allow(clippy::cast_precision_loss, reason = "it is shown without decimals")]
    let rate = done as f64 / took.as_secs_f64().max(0.001);
    format!("{done} values stored again in etcd, {rate:.0}/s, {limit} transactions at once")
}

/// What etcd's refusal asks for.
pub fn explained(error: EtcdError) -> RotationError {
    match &error {
        EtcdError::Refused(status) if status.code() == Code::PermissionDenied => RotationError::Blocked(vec![format!(
            "etcd allows this user to read but not to write ({}): --method rewrap stores values itself; give --etcd-cert of a \
             user that may write under --etcd-prefix, or rewrite through the API servers (--method patch)",
            status.message()
        )]),
        EtcdError::Refused(status) if status.code() == Code::ResourceExhausted => RotationError::Paused(format!(
            "etcd accepts no more data: {}; make room, then continue with --resume",
            status.message()
        )),
        _ => RotationError::Etcd(error),
    }
}
