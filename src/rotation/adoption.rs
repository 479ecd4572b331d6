//! Whether every API server stores under the target key: by its own metrics after a write of ours, and by an empty
//! patch that goes round all of them without changing anything.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::RotationError;
use super::api::Api;
use super::canary::{Canary, NAMESPACE, Touched};
use super::cluster::Cluster;
use super::metrics::{Scrape, growth, scrape};
use super::webhooks::mutating_webhooks;

/// Over how many connections an empty patch goes through a balancer, where no single server can be reached.
const TOUCHES_THROUGH_BALANCER: usize = 16;

/// API servers ask for the Status every minute, and sooner when their health is asked for.
const FRESH_WITHIN: Duration = Duration::from_secs(90);

/// How well it is known that every API server stores under the target key, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Evidence {
    /// Every server stored a write of ours under the target key, by its own metrics, and an empty patch went round
    /// all of them twice without a change.
    WriteProof,
    /// Not every server's metrics could be read: time has passed, and empty patches changed nothing.
    Waited,
}

/// What is to be adopted.
#[derive(Debug, Default)]
pub struct Wanted {
    /// The providers that write something.
    pub providers: BTreeSet<String>,
    /// What is written to see it.
    pub canaries: Vec<Canary>,
    /// Provider → hash of the `key_id`, once it is known.
    pub targets: BTreeMap<String, String>,
    /// Provider → hash of the `key_id` before the KEK was rotated: waiting goes on until another is reported.
    pub former: BTreeMap<String, String>,
    /// Whether all servers had adopted the targets already: another report then means another rotation.
    pub was_adopted: bool,
    /// Go on with servers whose metrics cannot be read.
    pub accept_unproven: bool,
}

/// That every API server stores under the target key.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Adoption {
    /// How well it is known.
    pub evidence: Evidence,
    /// Provider → hash of the target `key_id`.
    pub targets: BTreeMap<String, String>,
    /// Each server, and what it stored under.
    pub servers: Vec<ServerAdoption>,
    /// Providers of which no canary shows the key.
    pub without_canary: Vec<String>,
    /// When it was seen.
    pub at: jiff::Timestamp,
}

/// What one API server stored a write of ours under.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerAdoption {
    /// Its address.
    pub address: String,
    /// Hash of its identity Lease.
    pub identity: Option<String>,
    /// Provider → hash of the `key_id` that it stored under.
    pub stored_under: BTreeMap<String, String>,
}

/// Why adoption is not complete.
#[derive(Debug)]
pub enum Obstacle {
    /// It may be, a little later.
    NotYet(String),
    /// The plugins report another key than the one this rotation is about.
    TargetChanged(String),
    /// The metrics of a server cannot be read, so that nothing can be proven.
    Unreadable(String),
    /// Something else went wrong.
    Failed(RotationError),
}

impl From<RotationError> for Obstacle {
    fn from(error: RotationError) -> Self {
        Self::Failed(error)
    }
}

impl From<Obstacle> for RotationError {
    fn from(obstacle: Obstacle) -> Self {
        match obstacle {
            Obstacle::NotYet(why) | Obstacle::TargetChanged(why) | Obstacle::Unreadable(why) => Self::NotConverged(why),
            Obstacle::Failed(error) => error,
        }
    }
}

/// One API server and what its metrics showed; nothing where they cannot be read.
pub struct Seen {
    /// How it is reached.
    pub api: Api,
    /// Its metrics.
    pub scrape: Option<Scrape>,
}

/// Asks every API server once. `/readyz` comes first: it makes the server ask its plugin for the `key_id` anew.
pub async fn look(cluster: &Cluster, accept_unproven: bool) -> Result<Vec<Seen>, Obstacle> {
    let servers = match cluster.servers().await {
        Ok(servers) if !servers.is_empty() => servers,
        Ok(_) => return Err(Obstacle::NotYet("the endpoints of default/kubernetes name no API server".into())),
        Err(_) if accept_unproven => Vec::new(),
        Err(error) => return Err(Obstacle::Failed(error)),
    };
    let mut seen = Vec::new();
    for api in servers {
        let _ = api.get("/readyz", "text/plain").await;
        match scrape(&api).await {
            Ok(scrape) => seen.push(Seen { api, scrape: Some(scrape) }),
            Err(_) if accept_unproven => {}
            Err(error) if matches!(error.status(), Some(401 | 403 | 404)) => {
                return Err(Obstacle::Unreadable(format!("cannot read the metrics of an API server: {error}")));
            }
            Err(error) => return Err(Obstacle::NotYet(error.to_string())),
        }
    }
    if seen.is_empty() {
        seen.push(Seen { api: cluster.entry().clone(), scrape: None });
    }
    Ok(seen)
}

/// Asks every API server until each has asked its plugin for the `key_id` after this began. What a server's metrics
/// report is up to a minute old, and a key that is about to be replaced must not be taken for the target.
pub async fn look_fresh(cluster: &Cluster, accept_unproven: bool) -> Result<Vec<Seen>, Obstacle> {
    let began = Instant::now();
    let mut first: BTreeMap<(String, String), f64> = BTreeMap::new();
    loop {
        let seen = look(cluster, accept_unproven).await?;
        let mut stale = None;
        for (server, provider, at) in statuses(&seen) {
            if *first.entry((server.clone(), provider)).or_insert(at) >= at {
                stale = Some(server);
            }
        }
        let Some(server) = stale else { return Ok(seen) };
        if began.elapsed() > FRESH_WITHIN {
            let seconds = FRESH_WITHIN.as_secs();
            return Err(Obstacle::NotYet(format!("API server {server} got no Status of its plugin in {seconds} s")));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// (server, provider, when its plugin last answered Status) by the servers' own clocks.
fn statuses(seen: &[Seen]) -> Vec<(String, String, f64)> {
    let mut statuses = Vec::new();
    for one in seen {
        for (provider, (_, at)) in one.scrape.iter().flat_map(|scrape| &scrape.reported) {
            statuses.push((one.api.address().to_owned(), provider.clone(), *at));
        }
    }
    statuses
}

/// Looks once whether every API server has adopted what is wanted, by writing through each of them.
pub async fn attempt(cluster: &Cluster, wanted: &Wanted) -> Result<Adoption, Obstacle> {
    let seen = look(cluster, wanted.accept_unproven).await?;
    let complete = nobody_missing(cluster, &seen).await;
    if let Err(obstacle) = complete
        && !wanted.accept_unproven
    {
        return Err(obstacle);
    }
    let targets = targets_reported(&seen, wanted)?;
    for canary in &wanted.canaries {
        canary.ensure(&seen[0].api).await?;
    }
    let mut servers = Vec::new();
    for one in &seen {
        servers.push(prove(one, wanted, &targets).await?);
    }
    agree(&ways(cluster, &seen)?, &wanted.canaries).await?;
    let proven = !wanted.accept_unproven;
    let shown = |provider: &&String| wanted.canaries.iter().any(|canary| &canary.provider == *provider);
    Ok(Adoption {
        evidence: if proven { Evidence::WriteProof } else { Evidence::Waited },
        without_canary: wanted.providers.iter().filter(|provider| !shown(provider)).cloned().collect(),
        targets,
        servers,
        at: jiff::Timestamp::now(),
    })
}

/// Looks whether what was adopted still is: the same servers, the same reports, and an empty patch that changes nothing.
pub async fn still_holds(cluster: &Cluster, wanted: &Wanted, adoption: &Adoption) -> Result<(), Obstacle> {
    let seen = look(cluster, wanted.accept_unproven).await?;
    let now: BTreeSet<_> = seen.iter().map(|one| one.api.address()).collect();
    let then: BTreeSet<_> = adoption.servers.iter().map(|server| server.address.as_str()).collect();
    if now != then {
        return Err(Obstacle::NotYet(format!("the API servers are {now:?} now, and were {then:?}")));
    }
    targets_reported(&seen, wanted)?;
    agree(&ways(cluster, &seen)?, &wanted.canaries).await
}

/// Each server that was seen; where none is known by itself, as many connections to the one address, since a balancer
/// keeps to one server for each.
fn ways(cluster: &Cluster, seen: &[Seen]) -> Result<Vec<Api>, RotationError> {
    match seen {
        [Seen { scrape: None, .. }] => (0..TOUCHES_THROUGH_BALANCER).map(|_| cluster.entry_anew()).collect(),
        _ => Ok(seen.iter().map(|one| one.api.clone()).collect()),
    }
}

/// An empty patch goes round all servers twice. Two that disagree rewrite each other's: the version changes at
/// each step. If all agree, only the first step may change it.
pub async fn agree(servers: &[Api], canaries: &[Canary]) -> Result<(), Obstacle> {
    for canary in canaries {
        let mut last: Option<(Touched, &Api)> = None;
        for server in servers.iter().chain(servers) {
            let touched = canary.touch(server).await.map_err(|error| Obstacle::NotYet(error.to_string()))?;
            match &last {
                Some((before, _)) if before.content != touched.content => return Err(altered(server, canary).await),
                Some((before, by)) if before.version != touched.version => {
                    let (first, second) = (by.address(), server.address());
                    let who = if first == second { format!("behind {first}") } else { format!("{first} and {second}") };
                    return Err(Obstacle::NotYet(format!(
                        "API servers {who} do not store under the same key of provider {}",
                        canary.provider
                    )));
                }
                _ => last = Some((touched, server)),
            }
        }
    }
    Ok(())
}

/// What changes at every update shows nothing about keys.
async fn altered(server: &Api, canary: &Canary) -> Obstacle {
    let webhooks = mutating_webhooks(server).await.join(", ");
    Obstacle::NotYet(format!(
        "{} changes at every update, so it does not show whether the API servers agree: exempt namespace {NAMESPACE} \
         (namespaceSelector) from the mutating webhook that does it ({webhooks})",
        canary.path()
    ))
}

/// Every identity Lease that is kept fresh must belong to a server whose metrics were read.
async fn nobody_missing(cluster: &Cluster, seen: &[Seen]) -> Result<(), Obstacle> {
    let known: BTreeSet<_> =
        seen.iter().filter_map(|one| one.scrape.as_ref()).flat_map(|scrape| scrape.identities.clone()).collect();
    let missing: Vec<_> =
        cluster.identities().await?.into_iter().filter(|identity| !known.contains(identity)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Obstacle::NotYet(format!(
        "{} API server(s) keep an identity Lease and are not among those that answer, or load no KMS v2 provider \
         ({}); name every server with --server",
        missing.len(),
        missing.join(", ")
    )))
}

/// The `key_id` hashes that the plugins report; all servers must say the same.
pub fn targets_reported(seen: &[Seen], wanted: &Wanted) -> Result<BTreeMap<String, String>, Obstacle> {
    let mut targets = BTreeMap::new();
    for provider in &wanted.providers {
        let mut hashes: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for one in seen {
            let Some(scrape) = &one.scrape else { continue };
            let Some((hash, _)) = scrape.reported.get(provider) else {
                return Err(Obstacle::NotYet(format!(
                    "API server {} has no KMS v2 provider {provider}: give it the same EncryptionConfiguration",
                    one.api.address()
                )));
            };
            hashes.entry(hash).or_default().push(one.api.address());
        }
        if hashes.len() > 1 {
            let sides: Vec<_> =
                hashes.iter().map(|(hash, servers)| format!("{} at {}", short(hash), servers.join(", "))).collect();
            return Err(Obstacle::NotYet(format!("plugins of {provider} report different keys: {}", sides.join("; "))));
        }
        let Some((hash, _)) = hashes.pop_first() else { continue };
        if wanted.former.get(provider).is_some_and(|former| former == hash) {
            return Err(Obstacle::NotYet(format!(
                "the plugins of {provider} still report the former key {}",
                short(hash)
            )));
        }
        if let Some(target) = wanted.targets.get(provider).filter(|target| *target != hash) {
            let why = format!(
                "provider {provider} reports key {}, and this rotation is about {}",
                short(hash),
                short(target)
            );
            return Err(if wanted.was_adopted { Obstacle::TargetChanged(why) } else { Obstacle::NotYet(why) });
        }
        targets.insert(provider.clone(), hash.to_owned());
    }
    for (provider, target) in &wanted.targets {
        targets.entry(provider.clone()).or_insert_with(|| target.clone());
    }
    Ok(targets)
}

/// Writes through one server and reads from its metrics what it stored under.
async fn prove(one: &Seen, wanted: &Wanted, targets: &BTreeMap<String, String>) -> Result<ServerAdoption, Obstacle> {
    let address = one.api.address().to_owned();
    let not_yet = |error: super::api::ApiError| Obstacle::NotYet(error.to_string());
    let mut stored_under = BTreeMap::new();
    for canary in &wanted.canaries {
        let before = one.scrape.as_ref().map(|_| scrape(&one.api));
        let before = match before {
            Some(scrape) => Some(scrape.await.map_err(not_yet)?),
            None => None,
        };
        canary.write(&one.api).await.map_err(not_yet)?;
        let Some(before) = before else { continue };
        let after = scrape(&one.api).await.map_err(not_yet)?;
        let grown = growth(&before.stored, &after.stored);
        let of_provider: Vec<_> =
            grown.keys().filter(|(provider, _)| *provider == canary.provider).map(|(_, hash)| hash.clone()).collect();
        match (of_provider.as_slice(), targets.get(&canary.provider)) {
            ([hash], Some(target)) if hash == target => {
                stored_under.insert(canary.provider.clone(), hash.clone());
            }
            ([], _) => {
                return Err(Obstacle::NotYet(format!(
                    "API server {address} does not store {} with provider {}: put it first in its \
                     EncryptionConfiguration, and restart or reload the server",
                    canary.resource, canary.provider
                )));
            }
            (hashes, _) => {
                let hashes: Vec<_> = hashes.iter().map(|hash| short(hash)).collect();
                return Err(Obstacle::NotYet(format!(
                    "API server {address} still stores under {} with provider {}",
                    hashes.join(" and "),
                    canary.provider
                )));
            }
        }
    }
    let identity = one.scrape.as_ref().and_then(|scrape| scrape.identities.first().cloned());
    Ok(ServerAdoption { address, identity, stored_under })
}

/// The first letters of a hash, enough to tell keys apart.
pub fn short(hash: &str) -> &str {
    hash.get(..19).unwrap_or(hash)
}
