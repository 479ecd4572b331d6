//! What was stored in one etcd cluster between two revisions, superseded values included.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::time::{Duration, Instant};

use tonic::Status;
use tonic::transport::Channel;

use super::cluster::EtcdCluster;
use super::connect::{EtcdError, says_compacted};
use super::follow::{Before, Change, Followed, Follower};
use super::stored::Stored;

/// How long one watch may take.
const LONGEST: Duration = Duration::from_mins(10);
/// How often a watch that has nothing to send is asked how far it is.
const ASKS_EVERY: Duration = Duration::from_millis(200);
/// From this version on etcd says rightly how far a watch has sent everything.
const EXACT: (u64, u64, u64) = (3, 5, 8);

/// What a look at history covered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct History {
    /// The first revision of which every event was seen: the one after the requested one, or what compaction left.
    pub from: i64,
    /// The last one.
    pub to: i64,
    /// How many values were stored in between.
    pub values: u64,
}

/// How one watch ended.
enum Watched {
    /// It has seen everything up to the end.
    Complete(u64),
    /// It began before the oldest revision that is left.
    Compacted(i64),
}

impl EtcdCluster {
    /// Goes through every change under `prefix` after revision `after` and up to `to`, whether it was superseded since or
    /// not. Where etcd was compacted past `after`, what is left of the older revisions is the newest value of each key;
    /// these are gone through, too. A change may be seen twice.
    ///
    /// `newest` is a revision up to `to` at which a value is known to have been stored: etcd before 3.5.8 may say that
    /// everything was sent before it was.
    ///
    /// # Errors
    /// [`EtcdError::Refused`] if etcd answers with an error or stops answering.
    pub async fn history(
        &self,
        prefix: &str,
        after: i64,
        to: i64,
        newest: i64,
        mut each: impl FnMut(&Change),
    ) -> Result<History, EtcdError> {
        let (mut from, mut values, mut last) = (after.saturating_add(1), 0_u64, refused("the cluster has no member"));
        for channel in self.channels() {
            while from <= to {
                let range = Range { prefix, from, to, newest };
                match range.watch(channel.clone(), &mut each).await {
                    Ok(Watched::Complete(seen)) => {
                        return Ok(History { from, to, values: values.saturating_add(seen) });
                    }
                    Ok(Watched::Compacted(oldest)) => {
                        // What was superseded before the compaction is gone for good. What was current then can be read
                        // at that revision, and is part of the history.
                        values = values.saturating_add(self.values_at(prefix, oldest, after, &mut each).await?);
                        from = oldest.saturating_add(1);
                    }
                    Err(error) => {
                        last = error;
                        break;
                    }
                }
            }
            if from > to {
                return Ok(History { from, to, values });
            }
        }
        Err(last)
    }

    /// Goes through every change under `prefix` after revision `after` and up to `to`, each once; `false` where some of them
    /// are compacted. What etcd says about how far it has sent everything is taken at its word; see
    /// [`EtcdCluster::tells_progress`].
    ///
    /// # Errors
    /// [`EtcdError::Refused`] if the member that is asked answers with an error or stops answering.
    pub async fn changes(
        &self,
        prefix: &str,
        after: i64,
        to: i64,
        mut each: impl FnMut(&Change),
    ) -> Result<bool, EtcdError> {
        // About a watch that begins in the future etcd says nothing.
        if to <= after {
            return Ok(true);
        }
        let Some(channel) = self.channels().next() else { return Ok(false) };
        let range = Range { prefix, from: after.saturating_add(1), to, newest: 0 };
        Ok(matches!(range.watch(channel, &mut each).await?, Watched::Complete(_)))
    }

    /// Whether every member is known to say rightly how far a watch has sent everything: etcd before 3.5.8 may say so too
    /// early.
    pub async fn tells_progress(&self) -> bool {
        // The version that kine gives is another program's.
        !self.is_kine
            && self.statuses().await.iter().all(|member| {
                member
                    .answer
                    .as_ref()
                    .is_ok_and(|status| number(&status.version).is_some_and(|version| version >= EXACT))
            })
    }

    /// The values as of one revision that were stored after another one.
    async fn values_at(
        &self,
        prefix: &str,
        revision: i64,
        after: i64,
        each: &mut impl FnMut(&Change),
    ) -> Result<u64, EtcdError> {
        let (mut pages, mut values) = (self.pages_at(prefix, revision), 0_u64);
        loop {
            let page = match pages.next().await {
                Ok(Some(page)) => page,
                Ok(None) => return Ok(values),
                // Compacted further meanwhile: the watch from here on says so.
                Err(EtcdError::Refused(status)) if says_compacted(&status) => return Ok(values),
                Err(error) => return Err(error),
            };
            for record in page.iter().filter(|record| record.mod_revision > after) {
                values = values.saturating_add(1);
                each(&Change {
                    key: String::from_utf8_lossy(&record.key).into_owned(),
                    revision: record.mod_revision,
                    now: Some(Stored::of(&record.value)),
                    before: Before::Compacted,
                });
            }
        }
    }
}

/// What one watch is to see.
struct Range<'a> {
    prefix: &'a str,
    from: i64,
    to: i64,
    newest: i64,
}

impl Range<'_> {
    async fn watch(&self, channel: Channel, each: &mut impl FnMut(&Change)) -> Result<Watched, EtcdError> {
        let mut follower = Follower::begin(channel, self.prefix, self.from, ASKS_EVERY).await?;
        let (mut seen, mut newest_seen, began) = (0_u64, 0, Instant::now());
        loop {
            match follower.next().await? {
                Followed::Compacted(oldest) => return Ok(Watched::Compacted(oldest)),
                Followed::Changes(changes) => {
                    for change in &changes {
                        newest_seen = change.revision.max(newest_seen);
                        if change.revision <= self.to {
                            seen = seen.saturating_add(u64::from(change.now.is_some()));
                            each(change);
                        }
                    }
                    if newest_seen > self.to {
                        return Ok(Watched::Complete(seen));
                    }
                }
                // It may be said before changes that etcd still holds back; the newest known value must have been seen.
                Followed::UpTo(told) => {
                    if told >= self.to && (newest_seen >= self.newest || self.newest < self.from) {
                        return Ok(Watched::Complete(seen));
                    }
                }
            }
            if began.elapsed() > LONGEST {
                return Err(EtcdError::Refused(Box::new(Status::deadline_exceeded("the watch does not end"))));
            }
        }
    }
}

fn refused(why: &str) -> EtcdError {
    EtcdError::Refused(Box::new(Status::unavailable(why)))
}

/// `3.5.8` of `3.5.8` and `3.6.0-rc.1`.
fn number(version: &str) -> Option<(u64, u64, u64)> {
    let mut numbers = version.split('-').next()?.split('.').map(|part| part.parse().ok());
    Some((numbers.next()??, numbers.next()??, numbers.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_etcd_that_is_known_to_say_rightly_how_far_it_is_is_taken_at_its_word() {
        let exact = |version: &str| number(version).is_some_and(|version| version >= EXACT);
        assert!(["3.5.8", "3.5.21", "3.6.0-rc.1", "4.0.0"].into_iter().all(exact));
        assert!(!["3.5.7", "3.4.40", "", "3.5", "v3.6.0"].into_iter().any(exact));
    }
}
