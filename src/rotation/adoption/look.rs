//! One look at all API servers: their metrics, and whether these are all the servers there are.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::adopted::Obstacle;
use crate::encryption_config::ProviderName;
use crate::rotation::cluster::api::{Api, ApiError};
use crate::rotation::cluster::key_id_hash::KeyIdHash;
use crate::rotation::cluster::ledger::ServerProcess;
use crate::rotation::cluster::metrics::{Scrape, scrape};
use crate::rotation::cluster::roster::{Doubt, IdentityLease, Met, Renewal, Sources, doubts};
use crate::rotation::cluster::{Cluster, host_of};
use crate::rotation::error::RotationError;

/// Over how many new connections a balancer is asked for servers that were not met.
const CONNECTIONS: usize = 24;
/// After how many connections that met nobody new it is given up for now.
const NOBODY_NEW: usize = 8;
/// API servers ask for the Status every minute, and sooner when their health is asked for.
const FRESH_WITHIN: Duration = Duration::from_secs(90);

/// One API server and what its metrics showed; nothing where they cannot be read.
pub struct Seen {
    /// How it is reached.
    pub api: Api,
    /// What its metrics showed; nothing where they cannot be read.
    pub scrape: Option<Scrape>,
    /// The host that it runs on, by its identity Lease.
    pub host: Option<String>,
}

impl Seen {
    /// How messages call it: by its address, and by its host where the address may be a balancer's.
    pub fn name(&self) -> String {
        match &self.host {
            Some(host) if *host != host_of(self.api.address()) => format!("{} ({host})", self.api.address()),
            _ => self.api.address().to_owned(),
        }
    }

    /// Whether both are one process.
    pub fn is(&self, other: &Self) -> bool {
        let process = |one: &Self| one.scrape.as_ref().map(ServerProcess::of);
        self.api.address() == other.api.address() && process(self) == process(other)
    }
}

/// How old what the servers' metrics report may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reports {
    /// Each server is asked for its health first, which makes it ask its plugins for the `key_id`, unless it did so within the
    /// last 20 s.
    Asked,
    /// Up to a minute. A server that is not asked now will ask its plugins as soon as it is.
    AsTheyAre,
}

/// What one look showed.
pub struct Look {
    /// Each server that was met.
    pub seen: Vec<Seen>,
    /// Whether these are all; empty where nothing says otherwise.
    pub doubts: Vec<Doubt>,
    /// Servers that should have answered, and why they did not.
    pub failures: Vec<String>,
}

/// Asks every API server once.
///
/// # Errors
/// [`Obstacle::Unreadable`] when a server's metrics may not be read; [`RotationError::Silent`] when no server answers.
pub async fn look(cluster: &Cluster, reports: Reports, accept_unproven: bool) -> Result<Vec<Seen>, Obstacle> {
    look_at_all(cluster, reports, accept_unproven).await.map(|look| look.seen)
}

/// The same, with what speaks against these being all the API servers.
///
/// # Errors
/// As [`look`].
pub async fn look_at_all(cluster: &Cluster, reports: Reports, accept_unproven: bool) -> Result<Look, Obstacle> {
    let servers = match cluster.servers().await {
        Ok(servers) => servers,
        // With --accept-unproven the address of the kubeconfig is enough.
        Err(_) if accept_unproven => Vec::new(),
        Err(error) => return Err(Obstacle::Failed(error)),
    };
    let (mut seen, mut failures) = (Vec::new(), Vec::new());
    for api in servers {
        match meet(&api, reports).await {
            Ok(scrape) => _ = add(&mut seen, api, scrape),
            Err(_) if accept_unproven => {}
            // Rights and a proxy that serves no metrics do not come by waiting.
            Err(error) if matches!(error.status(), Some(403 | 404)) => {
                return Err(Obstacle::Unreadable(format!("cannot read the metrics of an API server: {error}")));
            }
            Err(error) => failures.push(error.to_string()),
        }
    }
    if accept_unproven {
        if seen.is_empty() {
            seen.push(Seen { api: cluster.entry().clone(), scrape: None, host: None });
        }
        return Ok(Look { seen, doubts: Vec::new(), failures });
    }
    // Who exists is asked after who answers: a server that joined in between is then at worst one that is waited for,
    // and not one that nobody knows of.
    let sources = cluster.sources().await.map_err(Obstacle::Failed)?;
    meet_behind_balancer(cluster, &sources, reports, &mut seen).await?;
    if seen.is_empty() {
        let why = failures.pop().unwrap_or_else(|| "no API server answers".into());
        return Err(Obstacle::Failed(RotationError::Silent(why)));
    }
    name_hosts(&sources, &mut seen);
    let doubts = doubts(&sources, &met(&seen), &cluster.lease_watch(), Instant::now());
    if !cluster.servers_are_named() && doubts.iter().all(|doubt| *doubt == Doubt::NodesUnread) {
        // An endpoint may be an address that cannot be reached from here, and its server was met otherwise.
        failures.clear();
    }
    Ok(Look { seen, doubts, failures })
}

/// Enters each server's host, by its identity Lease.
fn name_hosts(sources: &Sources, seen: &mut [Seen]) {
    for one in seen {
        let identity = one.scrape.as_ref().and_then(|scrape| scrape.identities.first());
        let lease = sources.leases.iter().find(|lease| Some(&lease.identity) == identity);
        one.host = lease.and_then(|lease| lease.host.clone());
    }
}

async fn meet(api: &Api, reports: Reports) -> Result<Scrape, ApiError> {
    if reports == Reports::Asked {
        // Healthy results are cached for 20 s (k8s.io/apiserver, encryptionconfig/config.go); the regular poll of Status is
        // a minute apart. What /readyz answers does not matter here.
        let _ = api.get("/readyz", "text/plain").await;
    }
    scrape(api).await
}

/// Two addresses may lead to one server.
fn add(seen: &mut Vec<Seen>, api: Api, scrape: Scrape) -> bool {
    let process = ServerProcess::of(&scrape);
    let known = seen.iter().filter_map(|one| one.scrape.as_ref()).any(|scrape| ServerProcess::of(scrape) == process);
    if !known {
        seen.push(Seen { api, scrape: Some(scrape), host: None });
    }
    !known
}

fn met(seen: &[Seen]) -> Vec<Met> {
    let of = |one: &Seen| {
        let process = ServerProcess::of(one.scrape.as_ref()?);
        Some(Met { host: host_of(one.api.address()), process })
    };
    seen.iter().filter_map(of).collect()
}

/// Meets servers that have no address of their own here, by new connections through the address of the kubeconfig:
/// each server's metrics say who answered.
async fn meet_behind_balancer(
    cluster: &Cluster,
    sources: &Sources,
    reports: Reports,
    seen: &mut Vec<Seen>,
) -> Result<(), Obstacle> {
    if sources.endpoints.contains(&host_of(cluster.entry().address())) {
        // The address is one server's own.
        return Ok(());
    }
    // A connection stays with the server that it met first, so those of the last look are tried before new ones are
    // made.
    let mut kept: Vec<Api> = cluster.met().drain(..).collect();
    let (mut used, mut in_vain) = (Vec::new(), 0);
    for _ in 0..CONNECTIONS {
        if in_vain >= NOBODY_NEW || !someone_is_missing(cluster, sources, seen) {
            break;
        }
        let api = match kept.pop() {
            Some(api) => api,
            None => cluster.entry_anew().map_err(Obstacle::Failed)?,
        };
        in_vain += 1;
        if let Ok(scrape) = meet(&api, reports).await
            && add(seen, api.clone(), scrape)
        {
            used.push(api);
            in_vain = 0;
        }
    }
    // The others led to servers that are met otherwise.
    *cluster.met() = used;
    Ok(())
}

fn someone_is_missing(cluster: &Cluster, sources: &Sources, seen: &[Seen]) -> bool {
    let (met, now) = (met(seen), Instant::now());
    let identities: BTreeSet<&str> = met.iter().map(|one| one.process.identity.as_str()).collect();
    let watch = cluster.lease_watch();
    let unmet = |lease: &IdentityLease| !identities.contains(lease.identity.as_str());
    sources.leases.iter().any(|lease| unmet(lease) && watch.renewal(&lease.name, now) != Renewal::Stopped)
        || sources.endpoints.len() > met.len()
        || sources.expected.is_some_and(|expected| expected > met.len())
}

/// Asks every API server until each has asked the plugins of these providers for the `key_id` after this began. What a
/// server's metrics report is up to a minute old, and a key that is about to be replaced must not be taken for the
/// target. A report of the key that is `active` by the word of the KEKs themselves is taken whatever its age. A provider that
/// a reload took away keeps its last report for ever: it must not be waited for. `waits` is called before anything is waited for.
///
/// # Errors
/// As [`look`]; [`Obstacle::NotYet`] when a plugin does not answer.
pub async fn look_fresh(
    cluster: &Cluster,
    providers: &BTreeSet<ProviderName>,
    active: &BTreeMap<ProviderName, KeyIdHash>,
    accept_unproven: bool,
    waits: &(dyn Fn() + Send + Sync),
) -> Result<Vec<Seen>, Obstacle> {
    let is_active = |status: &Status| active.get(&status.provider) == Some(&status.hash);
    if providers.iter().all(|provider| active.contains_key(provider)) {
        let seen = look(cluster, Reports::AsTheyAre, accept_unproven).await?;
        if statuses(&seen).iter().all(|status| !providers.contains(&status.provider) || is_active(status)) {
            return Ok(seen);
        }
    }
    waits();
    let began = Instant::now();
    let mut first: BTreeMap<(ServerProcess, ProviderName), f64> = BTreeMap::new();
    loop {
        let seen = match look(cluster, Reports::Asked, accept_unproven).await {
            // What was seen of each server before stays true.
            Err(Obstacle::Failed(error)) if error.passes_by_itself() && began.elapsed() <= FRESH_WITHIN => {
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
            seen => seen?,
        };
        let mut stale = None;
        for status in statuses(&seen).into_iter().filter(|status| providers.contains(&status.provider)) {
            // Both times are of one server by its own clock. That the later one is greater than the first that was seen
            // is enough: it was then asked after this began.
            let first = first.entry((status.process.clone(), status.provider.clone())).or_insert(status.at);
            if *first >= status.at && !is_active(&status) {
                stale = Some(status);
            }
        }
        let Some(Status { server, provider, .. }) = stale else { return Ok(seen) };
        if began.elapsed() > FRESH_WITHIN {
            return Err(Obstacle::NotYet(format!(
                "API server {server} got no Status of the plugin of provider {provider} in {} s: look at that plugin, \
                 or whether the server's EncryptionConfiguration still has this provider",
                FRESH_WITHIN.as_secs()
            )));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// What the plugin of a provider answered last, by the server's own clock. Behind a balancer several processes have one
/// address.
struct Status {
    server: String,
    process: ServerProcess,
    provider: ProviderName,
    hash: KeyIdHash,
    at: f64,
}

fn statuses(seen: &[Seen]) -> Vec<Status> {
    let mut statuses = Vec::new();
    for one in seen {
        if let Some(scrape) = &one.scrape {
            for (provider, (hash, at)) in &scrape.reported {
                let (server, process) = (one.name(), ServerProcess::of(scrape));
                statuses.push(Status { server, process, provider: provider.clone(), hash: hash.clone(), at: *at });
            }
        }
    }
    statuses
}
