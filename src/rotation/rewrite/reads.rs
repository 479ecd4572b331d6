//! Looking for leftovers where etcd is out of reach: every object is read through one API server, whose metrics count
//! under which keys that was. Where they count another key, groups of objects are halved until the one is found.
//!
//! The metrics count what other clients read as well. So an object counts as a leftover only if reading it many times
//! is counted as many times.

use std::collections::BTreeMap;

use futures::stream::{self, StreamExt};

use crate::rotation::cluster::api::{Answer, Api, ApiError};
use crate::rotation::cluster::ledger::ServerProcess;
use crate::rotation::cluster::listing::{Folder, Page, page_after};
use crate::rotation::cluster::metrics::{Direction, Scrape, growth, scrape};
use crate::rotation::cluster::resources::Resource;
use crate::rotation::cluster::writer::{KMS_V2_PREFIX, Writer, is_inner_prefix};
use crate::rotation::error::RotationError;
use crate::rotation::keys::name::KeyName;
use crate::rotation::leftovers::judge::Expected;
use crate::rotation::leftovers::scan::{Method, Scan};
use crate::rotation::rewrite::pace::Pace;
use crate::rotation::rewrite::{Ask, Sweep, Tally};

/// How many leftovers of a resource are searched for by name; each costs some scrapes.
const SEARCHED: usize = 50;
const READS_AT_ONCE: usize = 16;
/// How many times a single object is read to tell its reads from those of other clients.
const READS_OF_ONE: usize = 32;
/// How many times a resource is gone through again because its API server was started again meanwhile.
const RESTARTS: u32 = 3;

/// Has every object read from etcd through one API server and looks at its metrics under which keys that was.
///
/// # Errors
/// An error status of the API server, or no answer.
pub async fn scan_reads(
    api: &Api,
    expected: &Expected,
    pace: &mut Pace,
    seen: &mut (dyn FnMut(&Resource, &Tally, usize) + Send),
) -> Result<Scan, RotationError> {
    let mut scan = Scan::new(Method::Reads);
    for (resource, writer) in &expected.resources {
        let of = Of { expected, resource };
        let (tally, mut found) = read_all(api, &of, pace, seen).await?;
        // Counters of a server: not our numbers, so their sum may be more than fits.
        let counted = found.values().fold(0_u64, |sum, count| sum.saturating_add(*count));
        let left = if counted == 0 { 0 } else { name_leftovers(api, &of, counted, &mut scan).await? };
        if left == 0 {
            // Another client read something else.
            found.clear();
        }
        unreadable(&tally, resource, &mut scan);
        scan.looked_at += tally.fresh;
        scan.leftovers = scan.leftovers.saturating_add(left);
        scan.expiring = scan.expiring.saturating_add(if resource.is_event() { left } else { 0 });
        let current = tally.fresh.saturating_sub(left);
        let target = writer.plugin().and_then(|provider| Some((provider, expected.targets.get(provider)?)));
        if let Some((provider, hash)) = target.filter(|_| current > 0) {
            let key = KeyName::KeyIdHash { provider: provider.clone(), hash: hash.clone() };
            scan.groups.add_key(key, current, 0);
        }
        let mut stored = BTreeMap::from([("target key".to_owned(), current)]);
        for (key, count) in found {
            stored.insert(how(&key), count);
            scan.groups.add_key(key, count, count);
        }
        scan.stored.insert(resource.to_string(), stored);
    }
    Ok(scan)
}

/// What a resource is to be stored under.
struct Of<'a> {
    expected: &'a Expected,
    resource: &'a Resource,
}

/// Reads every object of a resource; what the server counted otherwise than under the target key meanwhile. A server
/// that was started again has forgotten what it counted before.
async fn read_all(
    api: &Api,
    of: &Of<'_>,
    pace: &mut Pace,
    seen: &mut (dyn FnMut(&Resource, &Tally, usize) + Send),
) -> Result<(Tally, BTreeMap<KeyName, u64>), RotationError> {
    for _ in 0..RESTARTS {
        let before = metrics(api).await?;
        let mut tally = Tally::default();
        let folders = vec![Folder::all(of.resource)];
        let (ask, tally_of) = (Ask::Read, &mut tally);
        let sweep = Sweep { api, folders, ask, adopted_at: None, risk: None, pace, tally: tally_of, keys: None };
        sweep.run(&mut |tally, limit| seen(of.resource, tally, limit)).await?;
        let after = metrics(api).await?;
        // Behind one address another process may answer, or the same one after a restart: its counters say nothing
        // about the difference.
        if ServerProcess::of(&before) == ServerProcess::of(&after) {
            return Ok((tally, otherwise(&before, &after, of)));
        }
    }
    Err(RotationError::Paused(format!(
        "API server {} restarted each time while {} were read",
        api.address(),
        of.resource
    )))
}

async fn metrics(api: &Api) -> Result<Scrape, RotationError> {
    scrape(&api.patient()).await.map_err(RotationError::api("read the metrics of the API server that reads"))
}

/// What was read between two scrapes otherwise than under the target key, by key.
fn otherwise(before: &Scrape, after: &Scrape, of: &Of<'_>) -> BTreeMap<KeyName, u64> {
    let mut found: BTreeMap<KeyName, u64> = BTreeMap::new();
    for ((provider, hash), count) in growth(&before.read, &after.read) {
        if of.expected.targets.get(&provider) != Some(&hash) {
            let sum = found.entry(KeyName::KeyIdHash { provider, hash }).or_default();
            *sum = sum.saturating_add(count);
        }
    }
    let name = of.resource.to_string();
    let writer = of.expected.resources.iter().find(|(resource, _)| resource == of.resource).map(|(_, writer)| writer);
    let local = writer.and_then(Writer::local);
    let is_wanted = |prefix: &str| is_inner_prefix(prefix) || local.is_some_and(|local| local.is_counted_as(prefix));
    for ((resource, prefix, direction), count) in growth(&before.operations, &after.operations) {
        // What a KMS v2 provider read was counted above, by key.
        if resource == name && direction == Direction::Read && !prefix.starts_with(KMS_V2_PREFIX) && !is_wanted(&prefix)
        {
            let words = prefix.strip_prefix("k8s:enc:").map(|words| words.trim_end_matches(':').replace(':', " "));
            let sum = found.entry(words.map_or(KeyName::Clear, KeyName::Prefix)).or_default();
            *sum = sum.saturating_add(count);
        }
    }
    found
}

/// A key as metrics tell it.
fn how(key: &KeyName) -> String {
    match key {
        KeyName::KeyIdHash { provider, hash } => format!("{provider} {hash}"),
        KeyName::Prefix(words) => words.clone(),
        _ => "in clear".into(),
    }
}

fn unreadable(tally: &Tally, resource: &Resource, scan: &mut Scan) {
    for (path, why) in &tally.undecryptable {
        scan.leftovers += 1;
        scan.name(path, &format!("cannot be read: {why}"));
    }
    if let Some(why) = &tally.unlistable {
        scan.leftovers += 1;
        scan.name(&resource.list_path(), &format!("cannot be listed: {why}"));
    }
}

/// Finds which objects of a resource are read otherwise than under the target key, and how many they are: all of them,
/// or about as many as were `counted` where they are too many to be named.
async fn name_leftovers(api: &Api, of: &Of<'_>, counted: u64, scan: &mut Scan) -> Result<u64, RotationError> {
    let (folder, mut token, mut named) = (Folder::all(of.resource), String::new(), 0);
    while let Page::Listed(list) = page_after(api, &folder, token).await? {
        let path = |one: &crate::rotation::cluster::api::Partial| {
            of.resource.object_path(one.metadata.namespace.as_deref(), &one.metadata.name)
        };
        let mut groups: Vec<Vec<String>> = vec![list.items.iter().map(path).collect()];
        while let Some(group) = groups.pop() {
            let Some(how) = read_again(api, of, &group).await? else { continue };
            if let [path] = group.as_slice() {
                scan.name(path, &how);
                named += 1;
            } else {
                let (first, second) = group.split_at(group.len() / 2);
                groups.extend([first.to_vec(), second.to_vec()]);
            }
            if named >= SEARCHED {
                return Ok(counted.max(named as u64));
            }
        }
        token = list.metadata.next.unwrap_or_default();
        if token.is_empty() {
            break;
        }
    }
    Ok(named as u64)
}

/// How at least one object of a group is read, if otherwise than under the target key. Each is read as many times as
/// it takes to tell its reads from those of others.
async fn read_again(api: &Api, of: &Of<'_>, group: &[String]) -> Result<Option<String>, RotationError> {
    let times = (READS_OF_ONE / group.len().max(1)).max(1);
    for _ in 0..RESTARTS {
        let before = metrics(api).await?;
        let paths = group.iter().cycle().take(group.len() * times);
        let patient = api.patient();
        let reads = stream::iter(paths).map(|path| patient.get_metadata(path)).buffer_unordered(READS_AT_ONCE);
        let done = |read: Result<Answer, ApiError>| async { read.is_ok_and(|answer| answer.status != 503) };
        // A read that was refused was not counted, and too few would be left to be recognised.
        let all_done = reads.all(done).await;
        let after = metrics(api).await?;
        if all_done && ServerProcess::of(&before) == ServerProcess::of(&after) {
            let found = otherwise(&before, &after, of);
            return Ok(found.into_iter().find(|(_, count)| *count >= times as u64).map(|(key, _)| how(&key)));
        }
    }
    Err(RotationError::Paused(format!("API server {} does not answer, or restarts each time", api.address())))
}
