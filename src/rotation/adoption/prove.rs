//! What a server itself shows when something is written and read through it: that it stores under the target key, and
//! that it opens what the others stored, for every encrypted resource.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::adopted::{Obstacle, ServerAdoption, Wanted};
use super::look::Seen;
use crate::encryption_config::ProviderName;
use crate::rotation::cluster::api::{Api, ApiError};
use crate::rotation::cluster::canary::Canary;
use crate::rotation::cluster::key_id_hash::KeyIdHash;
use crate::rotation::cluster::ledger::{Account, ServerProcess};
use crate::rotation::cluster::listing::is_undecryptable;
use crate::rotation::cluster::metrics::{Direction, Scrape, growth, scrape};
use crate::rotation::cluster::resources::Resource;
use crate::rotation::cluster::webhooks::webhook_that_failed;
use crate::rotation::cluster::writer::{LocalWriter, StoredUnder, Writer, is_inner_prefix, plugin_counted_as};

/// How many objects of a resource are tried: one may be damaged, or deleted meanwhile.
const PIONEERS: u32 = 3;
/// A server has read the object by then; what takes longer is a webhook. Its metrics tell whether it has.
const OPENS_WITHIN: Duration = Duration::from_secs(5);

/// Writes every canary through one server, and reads from its metrics what it stored them under.
///
/// # Errors
/// What the server stored under instead, or that its metrics cannot be read.
pub async fn prove_writes(one: &Seen, wanted: &Wanted, targets: &StoredUnder) -> Result<ServerAdoption, Obstacle> {
    let address = one.api.address().to_owned();
    let mut proven = ServerAdoption { address, ..ServerAdoption::default() };
    let Some(seen) = &one.scrape else {
        // Without metrics nothing is learnt from the write, but a server that cannot write at all is found.
        for canary in &wanted.canaries {
            canary.write(&one.api).await.map_err(not_yet)?;
        }
        return Ok(proven);
    };
    // The counters of `one.scrape` may be old by now, and other clients write as well: the window between the two
    // scrapes is kept as short as the writes are.
    let before = scrape(&one.api).await.map_err(not_yet)?;
    for canary in &wanted.canaries {
        canary.write(&one.api).await.map_err(not_yet)?;
    }
    let after = scrape(&one.api).await.map_err(not_yet)?;
    let process = ServerProcess::of(&after);
    // Counters begin at zero with each process, and behind one address there may be several.
    if process != ServerProcess::of(seen) || process != ServerProcess::of(&before) {
        return Err(Obstacle::NotYet(format!("API server {} was a different one in between", proven.address)));
    }
    for canary in &wanted.canaries {
        match &canary.writer {
            Writer::Plugin(provider) => {
                let hash = stored_under(one, (canary, provider), &before, &after, (wanted, targets))?;
                proven.stored_under.plugins.insert(provider.clone(), hash);
            }
            Writer::Local(local) => {
                stored_locally(&one.name(), (canary, local), &before, &after)?;
                proven.stored_under.local.insert(local.clone());
            }
        }
        proven.wrote.push(canary.resource.to_string());
    }
    proven.identity = after.identities.first().cloned();
    proven.account = Some(Account::of(&proven.address, &after));
    Ok(proven)
}

/// What the server stored a canary under between two scrapes, if that is the target.
fn stored_under(
    server: &Seen,
    (canary, provider): (&Canary, &ProviderName),
    before: &Scrape,
    after: &Scrape,
    (wanted, targets): (&Wanted, &StoredUnder),
) -> Result<KeyIdHash, Obstacle> {
    let address = server.name();
    let of_provider: Vec<KeyIdHash> = growth(&before.stored, &after.stored)
        .into_keys()
        .filter(|(of, _)| of == provider)
        .map(|(_, hash)| hash)
        .collect();
    let resource = canary.resource.to_string();
    // The growth by key names no resource, that by prefix names no key. Both together show that this write was stored
    // by this provider; another client that writes another resource makes only the first grow.
    let by_provider = growth(&before.operations, &after.operations).into_keys().any(|(of, prefix, direction)| {
        of == resource && direction == Direction::Stored && plugin_counted_as(&prefix) == Some(provider.as_str())
    });
    // Two keys whose counters grew prove nothing, although one is the target: the other one is written with as well.
    match (of_provider.as_slice(), targets.key(provider)) {
        ([hash], Some(target)) if hash == target && by_provider => Ok(hash.clone()),
        ([], _) => Err(not_stored(&address, canary)),
        ([hash], Some(target)) if hash == target => Err(not_stored(&address, canary)),
        (hashes, _) => {
            let keys: Vec<_> = hashes.iter().map(|hash| wanted.name(provider, hash)).collect();
            Err(Obstacle::NotYet(format!("API server {address} still stores under {}", keys.join(" and "))))
        }
    }
}

/// The same for a local provider, which has no `key_id`: by the prefix that the server counts the write under.
fn stored_locally(
    address: &str,
    (canary, local): (&Canary, &LocalWriter),
    before: &Scrape,
    after: &Scrape,
) -> Result<(), Obstacle> {
    let resource = canary.resource.to_string();
    // A server counts what a provider with keys writes under the prefix and, once more, under the name of the key.
    let grown: Vec<String> = growth(&before.operations, &after.operations)
        .into_keys()
        .filter(|(of, prefix, direction)| {
            of == &resource && *direction == Direction::Stored && !is_inner_prefix(prefix)
        })
        .map(|(_, prefix, _)| prefix)
        .collect();
    match grown.as_slice() {
        [prefix] if local.is_counted_as(prefix) => Ok(()),
        _ => Err(not_stored(address, canary)),
    }
}

fn not_stored(address: &str, canary: &Canary) -> Obstacle {
    let Canary { resource, writer } = canary;
    Obstacle::NotYet(format!(
        "API server {address} does not store {resource} with provider {writer}: put it first in its \
         EncryptionConfiguration, and restart or reload the server"
    ))
}

/// Has every server read what `writer` just wrote: the empty patch that is only tried reads from etcd and opens.
///
/// # Errors
/// The server that cannot read it.
pub async fn prove_reads(servers: &[Seen], writer: &Seen, canaries: &[Canary]) -> Result<(), Obstacle> {
    for reader in servers.iter().filter(|reader| !reader.is(writer)) {
        for canary in canaries {
            let (resource, reads, stores) = (&canary.resource, reader.name(), writer.name());
            return Err(match opens(&reader.api, &canary.path()).await.map_err(not_yet)? {
                Opened::Yes => continue,
                Opened::No(why) => Obstacle::Closed(format!(
                    "API server {reads} cannot read {resource} that {stores} stores: {why}; give the plugin beside it the \
                     same keys"
                )),
                Opened::Unknown => Obstacle::NotYet(format!(
                    "whether API server {reads} reads {resource} that {stores} stores is not known: it did not answer"
                )),
            });
        }
    }
    Ok(())
}

/// Has every server read an object of each resource. A server whose configuration does not cover the resource
/// transforms nothing, by its own metrics; it could not read what the others rewrite, and would never start again.
/// Returns the resources that have an object to show it.
///
/// # Errors
/// The server that does not cover a resource, or cannot read an object of it.
pub async fn prove_coverage(servers: &[Seen], resources: &[Resource]) -> Result<BTreeSet<String>, Obstacle> {
    let mut pioneers = BTreeMap::new();
    for resource in resources {
        pioneers.insert(resource.to_string(), pioneers_of(&servers[0].api, resource).await);
    }
    let mut shown: Option<BTreeSet<String>> = None;
    for server in servers.iter().filter(|server| server.scrape.is_some()) {
        let before = scrape(&server.api).await.map_err(not_yet)?;
        let mut opened = BTreeSet::new();
        for (resource, paths) in &pioneers {
            for path in paths {
                let tried = tokio::time::timeout(OPENS_WITHIN, opens(&server.api, path)).await;
                if tried.unwrap_or(Ok(Opened::Yes)).map_err(not_yet)? == Opened::Yes {
                    opened.insert(resource.clone());
                    break;
                }
            }
        }
        let after = scrape(&server.api).await.map_err(not_yet)?;
        let read: BTreeSet<String> = growth(&before.operations, &after.operations)
            .into_keys()
            .filter(|(.., direction)| *direction == Direction::Read)
            .map(|(resource, ..)| resource)
            .collect();
        if let Some(resource) = opened.difference(&read).next() {
            return Err(Obstacle::NotYet(format!(
                "the EncryptionConfiguration of API server {} does not cover {resource}: give every API server the \
                 same one, and restart or reload this one; it could not read what the others store",
                server.api.address()
            )));
        }
        // Shown is what every server opened.
        shown = Some(match shown {
            None => opened,
            Some(before) => before.intersection(&opened).cloned().collect(),
        });
    }
    Ok(shown.unwrap_or_default())
}

/// Some objects of a resource; none where there are none, or where they cannot be listed.
async fn pioneers_of(api: &Api, resource: &Resource) -> Vec<String> {
    let Ok(answer) = api.patient().list(&resource.list_path(), PIONEERS, "").await else { return Vec::new() };
    if answer.status != 200 {
        return Vec::new();
    }
    let Ok(list) = api.parse::<crate::rotation::cluster::api::MetadataList>(&answer.body) else { return Vec::new() };
    let path = |one: &crate::rotation::cluster::api::Partial| {
        resource.object_path(one.metadata.namespace.as_deref(), &one.metadata.name)
    };
    list.items.iter().map(path).collect()
}

#[derive(Debug, PartialEq)]
enum Opened {
    Yes,
    No(String),
    Unknown,
}

/// Whether one object opens, by the empty patch that is only tried.
async fn opens(server: &Api, path: &str) -> Result<Opened, ApiError> {
    let answer = server.patch(&format!("{path}?dryRun=All"), "{}").await?;
    if answer.status == 401 {
        return server.success(answer).map(|_| Opened::Unknown);
    }
    Ok(meaning(answer.status, answer.refusal().message))
}

/// What an answer says about the reading. Admission and validation come after it, so what they answer, or a webhook that
/// does not, says yes. Authorization comes before it, and other errors may.
fn meaning(status: u16, message: String) -> Opened {
    match status {
        500 if is_undecryptable(&message) => Opened::No(message),
        500 if webhook_that_failed(&message).is_none() => Opened::Unknown,
        403 if message.contains(" cannot patch resource ") => Opened::Unknown,
        404 | 408 | 429 | 501.. => Opened::Unknown,
        _ => Opened::Yes,
    }
}

#[allow(clippy::needless_pass_by_value, reason = "it is what map_err passes")]
fn not_yet(error: ApiError) -> Obstacle {
    Obstacle::NotYet(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_that_comes_after_the_reading_says_that_an_object_opens() {
        let says = |status, message: &str| meaning(status, message.into());
        assert_eq!(says(200, ""), Opened::Yes);
        assert_eq!(says(422, "denied by policy"), Opened::Yes);
        assert_eq!(says(403, "secrets \"a\" is forbidden: not this one"), Opened::Yes, "admission");
        assert_eq!(says(500, "failed calling webhook \"a.b.c\": timeout"), Opened::Yes);
        let closed = "unable to transform key \"/registry/secrets/a/b\"";
        assert_eq!(says(500, closed), Opened::No(closed.into()));
        let unauthorized = "secrets \"a\" is forbidden: User \"u\" cannot patch resource \"secrets\" in API group \"\"";
        for (status, message) in [
            (500, ""),
            (500, "etcdserver: request timed out"),
            (403, unauthorized),
            (503, ""),
            (504, ""),
            (429, ""),
            (408, ""),
        ] {
            assert_eq!(says(status, message), Opened::Unknown, "{status} {message}");
        }
    }
}
