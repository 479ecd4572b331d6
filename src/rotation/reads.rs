//! Looking for leftovers where etcd is out of reach: every object is read through one API server, whose metrics count
//! under which keys that was. Where the count is wrong, groups of objects are halved until the one is found.

use std::collections::BTreeMap;

use futures::stream::{self, StreamExt};

use super::RotationError;
use super::api::Api;
use super::listing::{Folder, Page, page_after};
use super::metrics::{Direction, Scrape, growth, scrape};
use super::pace::Pace;
use super::resources::{KMS_V2_PREFIX, Resource};
use super::rewrite::{Ask, Sweep, Tally};
use super::verify::{Expected, Method, Scan};

/// So many leftovers of a resource are searched for by name; each costs some scrapes.
const SEARCHED: usize = 50;
const READS_AT_ONCE: usize = 16;

/// Has every object read from etcd through one API server and looks at its metrics under which keys that was.
pub async fn scan_reads(
    api: &Api,
    expected: &Expected,
    pace: &mut Pace,
    seen: &mut (dyn FnMut(&Resource, &Tally, usize) + Send),
) -> Result<Scan, RotationError> {
    let mut scan = Scan::new(Method::Reads);
    for (resource, provider) in &expected.resources {
        let before = metrics(api).await?;
        let mut tally = Tally::default();
        let folders = vec![Folder::all(resource)];
        let sweep = Sweep { api, folders, ask: Ask::Read, adopted_at: None, pace, tally: &mut tally };
        sweep.run(&mut |tally, limit| seen(resource, tally, limit)).await?;
        let after = metrics(api).await?;
        let mut found = otherwise(&before, &after, expected, resource, provider);
        let left: u64 = found.values().sum();
        if left > 0 {
            name_leftovers(api, expected, resource, provider, &mut scan).await?;
        }
        unreadable(&tally, resource, &mut scan);
        scan.looked_at += tally.fresh;
        scan.leftovers += left;
        scan.expiring += if resource.is_event() { left } else { 0 };
        found.insert("target key".into(), tally.fresh.saturating_sub(left));
        scan.stored.insert(resource.to_string(), found);
    }
    Ok(scan)
}

async fn metrics(api: &Api) -> Result<Scrape, RotationError> {
    scrape(api).await.map_err(RotationError::api("read the metrics of the API server that reads"))
}

/// What was read between two scrapes otherwise than under the target key: how → count.
fn otherwise(
    before: &Scrape,
    after: &Scrape,
    expected: &Expected,
    resource: &Resource,
    provider: &str,
) -> BTreeMap<String, u64> {
    let mut found: BTreeMap<String, u64> = BTreeMap::new();
    for ((by, hash), count) in growth(&before.read, &after.read) {
        if expected.targets.get(&by) != Some(&hash) {
            *found.entry(format!("{by} {hash}")).or_default() += count;
        }
    }
    let name = resource.to_string();
    let ours = format!("{KMS_V2_PREFIX}{provider}:");
    for ((of, prefix, direction), count) in growth(&before.operations, &after.operations) {
        // What a KMS v2 provider read was counted above, by key.
        let by_kms = prefix == ours || prefix.starts_with(KMS_V2_PREFIX);
        if of == name && direction == Direction::Read && !by_kms {
            let how = if prefix.starts_with("k8s:enc:") { prefix } else { "in clear".into() };
            *found.entry(how).or_default() += count;
        }
    }
    found
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

/// Finds which objects of a resource are read otherwise than under the target key.
async fn name_leftovers(
    api: &Api,
    expected: &Expected,
    resource: &Resource,
    provider: &str,
    scan: &mut Scan,
) -> Result<(), RotationError> {
    let (folder, mut token, mut named) = (Folder::all(resource), String::new(), 0);
    while let Page::Listed(list) = page_after(api, &folder, token).await? {
        let path =
            |one: &super::api::Partial| resource.object_path(one.metadata.namespace.as_deref(), &one.metadata.name);
        let mut groups: Vec<Vec<String>> = vec![list.items.iter().map(path).collect()];
        while let Some(group) = groups.pop().filter(|_| named < SEARCHED) {
            let before = metrics(api).await?;
            let reads = stream::iter(&group).map(|path| api.get_metadata(path)).buffer_unordered(READS_AT_ONCE);
            reads.for_each(|_| async {}).await;
            let after = metrics(api).await?;
            let found = otherwise(&before, &after, expected, resource, provider);
            match (group.as_slice(), found.keys().next()) {
                (_, None) => {}
                ([path], Some(how)) => {
                    scan.name(path, how);
                    named += 1;
                }
                (paths, Some(_)) => {
                    let (first, second) = paths.split_at(paths.len() / 2);
                    groups.extend([first.to_vec(), second.to_vec()]);
                }
            }
        }
        token = list.metadata.next.unwrap_or_default();
        if token.is_empty() || named >= SEARCHED {
            break;
        }
    }
    Ok(())
}
