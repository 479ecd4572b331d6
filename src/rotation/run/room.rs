//! Room in etcd for a rewrite: each object that is stored again needs a second revision until etcd is compacted, and a
//! member whose database reaches its quota stops all writing in the cluster.

use std::time::{Duration, Instant};

use crate::etcd::{EtcdClusters, Room};
use crate::rotation::error::RotationError;

/// How often the members are asked during a rewrite. At 3,000 objects of 2 KiB a second, 6 MiB are written between.
const LOOKS_EVERY: Duration = Duration::from_secs(1);
/// How many looks in a row may fail before a rewrite stops because nobody knows how full etcd is.
const MISSED_LOOKS: u32 = 10;
/// What follows after the alarm.
const AFTER_ALARM: &str = "nobody can write in this cluster until someone has made room: etcdctl compact REVISION, \
                           etcdctl defrag, etcdctl alarm disarm (or a greater --quota-backend-bytes); then continue with \
                           --resume";

/// The room in all clusters: what the fullest of them allows.
///
/// # Errors
/// What etcd answered, as a sentence.
pub async fn room(etcd: &EtcdClusters) -> Result<Room, String> {
    let (mut worst, mut asked) = (Room::Enough, 0);
    for cluster in &etcd.clusters {
        let space = cluster.space().await;
        asked += space.members.len();
        worst = worst.max(space.room());
    }
    if asked == 0 { Err("no etcd member reports how full it is".into()) } else { Ok(worst) }
}

/// Looks at the room again and again; ends when a rewrite must stop.
pub async fn until_full(etcd: &EtcdClusters) -> Room {
    let mut missed = 0;
    loop {
        match room(etcd).await {
            Ok(Room::Enough) => missed = 0,
            Ok(full) => return full,
            // A member that is restarted answers again within seconds.
            Err(_) if missed < MISSED_LOOKS => missed += 1,
            Err(why) => return Room::Unknown(why),
        }
        tokio::time::sleep(LOOKS_EVERY).await;
    }
}

/// Waits until there is room again: after a compaction of ours if `compact`, else after the API servers' own.
///
/// # Errors
/// [`RotationError::Paused`] when waiting does not help, with what does.
pub async fn make_room(
    etcd: &EtcdClusters,
    full: Room,
    compact: bool,
    patience: Duration,
    say: &(dyn Fn(&str) + Send + Sync),
) -> Result<(), RotationError> {
    let began = Instant::now();
    let mut said = false;
    let mut now = full;
    loop {
        let why = match now {
            Room::Enough => return Ok(()),
            Room::Alarm(why) => return Err(RotationError::Paused(format!("{why}: {AFTER_ALARM}"))),
            Room::Unknown(why) => return Err(RotationError::Paused(why)),
            Room::AfterDefragmentation(why) => {
                return Err(RotationError::Paused(format!(
                    "{why}; run etcdctl defrag on each member, one after the other, or raise --quota-backend-bytes; \
                     then continue with --resume"
                )));
            }
            Room::AfterCompaction(why) => why,
        };
        if began.elapsed() > patience {
            let remedy = if compact {
                "a compaction did not help: raise etcd's --quota-backend-bytes"
            } else {
                "no compaction by the API servers made room (--etcd-compaction-interval): let this command compact \
                 with --compact, or raise etcd's --quota-backend-bytes"
            };
            return Err(RotationError::Paused(format!("{why}; {remedy}; then continue with --resume")));
        }
        if compact {
            compact_all(etcd).await?;
        }
        if !said {
            let by = if compact { "this command's compaction" } else { "the API servers' next compaction" };
            say(&format!("{why}; waiting for {by}, up to {} s", patience.as_secs()));
            said = true;
        }
        tokio::time::sleep(LOOKS_EVERY).await;
        // A missing answer does not end the wait before its time is over.
        now = room(etcd).await.unwrap_or_else(Room::AfterCompaction);
    }
}

/// Compacts every cluster up to its newest revision.
///
/// # Errors
/// If etcd refuses; with authentication it demands the role `root`.
pub async fn compact_all(etcd: &EtcdClusters) -> Result<(), RotationError> {
    for cluster in &etcd.clusters {
        let revision = cluster.revision().await?;
        cluster.compact(revision).await?;
    }
    Ok(())
}
