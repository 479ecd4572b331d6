//! Whether every API server stores under the target key: by its own metrics after a write of ours, and by an empty
//! patch that goes round all of them without changing anything; and whether each opens what the others store.

mod adopted;
mod look;
mod prove;
mod reports;
pub mod shown;
pub mod writers;

use std::collections::BTreeMap;

pub use self::adopted::{Adoption, Evidence, Obstacle, ServerAdoption, Wanted};
pub use self::look::{Look, Reports, Seen, look, look_at_all, look_fresh};
use self::prove::{prove_coverage, prove_reads, prove_writes};
pub use self::reports::{Report, reports};
use crate::encryption_config::ProviderName;
use crate::rotation::cluster::Cluster;
use crate::rotation::cluster::api::Api;
use crate::rotation::cluster::canary::{Canary, NAMESPACE, Touched};
use crate::rotation::cluster::key_id_hash::KeyIdHash;
use crate::rotation::cluster::ledger::{Account, Breach, Ledger, Permitted};
use crate::rotation::cluster::resources::Resource;
use crate::rotation::cluster::roster::Doubt;
use crate::rotation::cluster::webhooks::mutating_webhooks;
use crate::rotation::cluster::writer::StoredUnder;
use crate::rotation::error::RotationError;

/// Over how many connections an empty patch goes through a balancer, where no single server can be reached.
const TOUCHES_THROUGH_BALANCER: usize = 16;

/// Looks once whether every API server has adopted what is wanted, by writing and reading through each of them.
///
/// # Errors
/// What is in the way, and whether waiting may help.
pub async fn attempt(cluster: &Cluster, wanted: &Wanted, earlier: Option<&Adoption>) -> Result<Adoption, Obstacle> {
    let Look { seen, doubts, failures } = look_at_all(cluster, Reports::Asked, wanted.accept_unproven).await?;
    nobody_missing(&doubts, &failures, earlier)?;
    let targets = targets_reported(&seen, wanted)?;
    // First of all: a canary that a server cannot read would keep it from starting again.
    let covered = prove_coverage(&seen, &wanted.resources).await?;
    for canary in &wanted.canaries {
        canary.ensure(&seen[0].api).await?;
    }
    let mut servers = Vec::new();
    for one in &seen {
        servers.push(prove_writes(one, wanted, &targets).await?);
        // Right after each write, and before the next server writes: what cannot be read is then this canary, of this
        // server.
        if let Err(obstacle) = prove_reads(&seen, one, &wanted.canaries).await {
            return Err(withdrawn(&one.api, &wanted.canaries, obstacle).await);
        }
    }
    let is_shown = |resource: &Resource| {
        covered.contains(&resource.to_string()) || wanted.canaries.iter().any(|canary| &canary.resource == resource)
    };
    let not_shown = wanted.resources.iter().filter(|resource| !is_shown(resource)).map(ToString::to_string).collect();
    agree(&connections(cluster, &seen)?, &wanted.canaries).await?;
    let shown =
        |provider: &&ProviderName| wanted.canaries.iter().any(|canary| canary.writer.plugin() == Some(provider));
    let without_canary = wanted.providers.iter().filter(|provider| !shown(provider)).cloned().collect();
    let (ledger, since, broken_by) = carried(wanted, earlier, &servers, &targets);
    Ok(Adoption {
        evidence: if wanted.accept_unproven { Evidence::Waited } else { Evidence::WriteProof },
        without_canary,
        targets,
        servers,
        at: jiff::Timestamp::now(),
        since,
        ledger,
        broken_by,
        doubts,
        not_shown,
    })
}

/// Takes the canaries away where a server cannot read them: it would not become ready when it is started again.
async fn withdrawn(writer: &Api, canaries: &[Canary], obstacle: Obstacle) -> Obstacle {
    let Obstacle::Closed(why) = obstacle else { return obstacle };
    let mut left = Vec::new();
    for canary in canaries {
        if let Err(error) = canary.remove(writer).await {
            left.push(format!("{} could not be removed again ({error}): delete it", canary.path()));
        }
    }
    let end = if left.is_empty() { "what was written for this was removed again".into() } else { left.join("; ") };
    Obstacle::Closed(format!("{why}; {end}"))
}

/// The ledger of an earlier adoption goes on where nothing voids it; else a new one is opened now.
fn carried(
    wanted: &Wanted,
    earlier: Option<&Adoption>,
    servers: &[ServerAdoption],
    targets: &StoredUnder,
) -> (Ledger, jiff::Timestamp, Vec<Breach>) {
    let accounts: Vec<Account> = servers.iter().filter_map(|server| server.account.clone()).collect();
    let opened = || Ledger::open(accounts.clone());
    let Some(earlier) = earlier.filter(|earlier| earlier.ledger.is_open() && &earlier.targets == targets) else {
        return (opened(), jiff::Timestamp::now(), Vec::new());
    };
    let breaches = earlier.ledger.breaches(&accounts, &permitted(wanted, targets));
    if breaches.is_empty() {
        return (earlier.ledger.clone(), earlier.since, earlier.broken_by.clone());
    }
    (opened(), jiff::Timestamp::now(), breaches)
}

fn permitted(wanted: &Wanted, targets: &StoredUnder) -> Permitted {
    Permitted { keys: targets.plugins.clone(), writers: wanted.writers.clone(), elsewhere: wanted.elsewhere.clone() }
}

/// Looks whether what was adopted still is: the same servers, the same reports, nothing stored under another key, and
/// an empty patch that changes nothing.
///
/// # Errors
/// What does not hold any more.
pub async fn still_holds(cluster: &Cluster, wanted: &Wanted, adoption: &Adoption) -> Result<(), Obstacle> {
    let Look { seen, doubts, failures } = look_at_all(cluster, Reports::Asked, wanted.accept_unproven).await?;
    nobody_missing(&doubts, &failures, Some(adoption))?;
    if adoption.ledger.is_open() {
        let account = |one: &Seen| one.scrape.as_ref().map(|scrape| Account::of(one.api.address(), scrape));
        let accounts: Vec<Account> = seen.iter().filter_map(account).collect();
        let breaches = adoption.ledger.breaches(&accounts, &permitted(wanted, &adoption.targets));
        if !breaches.is_empty() {
            return Err(Obstacle::NotYet(joined(&breaches)));
        }
    }
    targets_reported(&seen, wanted)?;
    agree(&connections(cluster, &seen)?, &wanted.canaries).await
}

/// Every source that names an API server must agree with the servers that were met; one that had adopted the target key
/// and stopped since is only noted, for it cannot be asked.
fn nobody_missing(doubts: &[Doubt], failures: &[String], earlier: Option<&Adoption>) -> Result<(), Obstacle> {
    let had_adopted = |identity: &str| {
        earlier.is_some_and(|earlier| {
            let known = earlier.servers.iter().any(|server| server.identity.as_deref() == Some(identity));
            known || earlier.doubts.iter().any(|doubt| doubt.stopped() == Some(identity))
        })
    };
    // Waiting does not help where Nodes may not be listed; the claim about the roster then rules out a proof.
    let waited_for = doubts.iter().filter(|doubt| **doubt != Doubt::NodesUnread);
    let open: Vec<&Doubt> = waited_for.filter(|doubt| !doubt.stopped().is_some_and(had_adopted)).collect();
    if open.is_empty() && failures.is_empty() {
        return Ok(());
    }
    let why: Vec<String> = open.iter().map(ToString::to_string).chain(failures.iter().cloned()).collect();
    Err(Obstacle::NotYet(why.join("; ")))
}

/// A connection to each API server that answers; through a balancer, several.
///
/// # Errors
/// As [`look()`].
pub async fn reached(cluster: &Cluster, accept_unproven: bool) -> Result<Vec<Api>, RotationError> {
    let seen = look(cluster, Reports::AsTheyAre, accept_unproven).await?;
    connections(cluster, &seen)
}

/// All of them, in one line.
pub fn joined<T: ToString>(all: &[T]) -> String {
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Each server that was seen; where none is known by itself, as many connections to the one address, since a balancer
/// keeps to one server for each.
fn connections(cluster: &Cluster, seen: &[Seen]) -> Result<Vec<Api>, RotationError> {
    // One entry without metrics represents all that answer at that address.
    match seen {
        [Seen { scrape: None, .. }] => (0..TOUCHES_THROUGH_BALANCER).map(|_| cluster.entry_anew()).collect(),
        _ => Ok(seen.iter().map(|one| one.api.clone()).collect()),
    }
}

/// An empty patch goes round all servers twice. Two that disagree rewrite each other's: the version changes at
/// each step. If all agree, only the first step may change it.
///
/// # Errors
/// [`Obstacle::NotYet`] with the two servers that do not agree.
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
                        canary.writer
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

/// Which plugin is behind and which has a key of its own, as far as that is known, and what to do there.
fn different_keys(wanted: &Wanted, provider: &ProviderName, hashes: &BTreeMap<&KeyIdHash, Vec<String>>) -> String {
    let target = wanted.targets.key(provider);
    let opens = |hash: &KeyIdHash| wanted.on_file.as_ref().and_then(|files| files.opens(provider, hash));
    let side = |(hash, servers): (&&KeyIdHash, &Vec<String>)| {
        let stands = match target {
            Some(target) if target == *hash => " (as it should be)",
            _ if opens(hash) == Some(false) => " (a key of its own)",
            Some(_) => " (behind)",
            None => "",
        };
        format!("{} at API server {}{stands}", wanted.name(provider, hash), servers.join(", "))
    };
    let sides: Vec<_> = hashes.iter().map(side).collect();
    let own: Vec<&str> = hashes
        .iter()
        .filter(|(hash, _)| target != Some(**hash) && opens(hash) == Some(false))
        .flat_map(|(_, servers)| servers.iter().map(String::as_str))
        .collect();
    let advice = if own.is_empty() {
        "A plugin follows within its refreshInterval; if it does not, run kube-envelope status there: a keyring must be \
         copied to every node, but never over a file with a version that the copy lacks (kube-envelope keyring list)"
            .to_owned()
    } else {
        // Copied over, the only file that has the version would be gone.
        format!(
            "The keyring file of this node does not have the key of {}: values stored with it open only with the file \
             on that server's node. Do not overwrite that file, and keep a copy of it. Two files of one keyring cannot be \
             merged: if nothing was stored under a version that only the other files have, copy that file to the other \
             nodes (kube-envelope keyring list shows the versions of each)",
            own.join(", ")
        )
    };
    format!("plugins of {provider} report different keys: {}. {advice}", sides.join("; "))
}

/// The `key_id` hashes that the plugins report; all servers must say the same.
///
/// # Errors
/// Servers that report different keys, or another one than this rotation's target.
pub fn targets_reported(seen: &[Seen], wanted: &Wanted) -> Result<StoredUnder, Obstacle> {
    let mut targets = wanted.targets.clone();
    for provider in &wanted.providers {
        let mut hashes: BTreeMap<&KeyIdHash, Vec<String>> = BTreeMap::new();
        for one in seen {
            let Some(scrape) = &one.scrape else { continue };
            let Some((hash, _)) = scrape.reported.get(provider) else {
                return Err(Obstacle::NotYet(format!(
                    "API server {} has no KMS v2 provider {provider}: give it the same EncryptionConfiguration",
                    one.name()
                )));
            };
            hashes.entry(hash).or_default().push(one.name());
        }
        // An in-between state of each rotation: plugins follow within their refreshInterval, API servers within a
        // minute more.
        if hashes.len() > 1 {
            return Err(Obstacle::NotYet(different_keys(wanted, provider, &hashes)));
        }
        // No server shows metrics: then the canaries must do.
        let Some((hash, _)) = hashes.pop_first() else { continue };
        if wanted.former.get(provider).is_some_and(|former| former == hash) {
            return Err(Obstacle::NotYet(format!(
                "the plugins of {provider} still report the former key, {}",
                wanted.name(provider, hash)
            )));
        }
        if let Some(target) = wanted.targets.key(provider).filter(|target| *target != hash) {
            let why = format!(
                "provider {provider} reports {}, and this rotation is about {}",
                wanted.name(provider, hash),
                wanted.name(provider, target)
            );
            return Err(if wanted.was_adopted { Obstacle::TargetChanged(why) } else { Obstacle::NotYet(why) });
        }
        targets.plugins.insert(provider.clone(), hash.clone());
    }
    Ok(targets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::key_stores::keyring::Keyring;
    use crate::rotation::keys::active::{OnFile, ask, hash_of};

    #[tokio::test]
    async fn a_node_with_a_version_of_its_own_is_not_told_to_be_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let (file, other) = (folder.path().join("k"), folder.path().join("other"));
        let active = async |file: &std::path::Path| {
            let text = format!("cluster: t\nkeks: [{{name: k, keyring: {{file: {}}}}}]", file.display());
            let config = Config::parse(&folder.path().join("c"), &text).unwrap();
            let versions: Vec<_> = ask(&config.keks).await.into_iter().map(|answer| answer.active.unwrap()).collect();
            (hash_of(config.epoch, &versions), config)
        };
        let activated = |file: &std::path::Path| {
            let mut keyring = Keyring::read(file).unwrap();
            let id = keyring.add(&mut rand::rng());
            keyring.activate(&id).unwrap();
            keyring.replace(file).unwrap();
        };
        Keyring::create(&mut rand::rng()).write_new(&file).unwrap();
        std::fs::copy(&file, &other).unwrap();
        let (former, _) = active(&file).await;
        activated(&file);
        activated(&other);
        let ((target, config), (own, _)) = (active(&file).await, active(&other).await);
        let provider: ProviderName = "p".into();
        let mut wanted = Wanted { on_file: OnFile::read(&provider, &config).await, ..Wanted::default() };
        assert!(wanted.on_file.is_some());
        wanted.targets.plugins.insert(provider.clone(), target.clone());
        let said = |hash: &KeyIdHash| {
            let hashes = [(&target, vec!["a".to_owned()]), (hash, vec!["b".to_owned()])].into();
            different_keys(&wanted, &provider, &hashes)
        };
        let behind = said(&former);
        assert!(
            behind.contains("at API server b (behind)") && behind.contains("must be copied to every node"),
            "{behind}"
        );
        let apart = said(&own);
        assert!(apart.contains("at API server b (a key of its own)"), "{apart}");
        assert!(apart.contains("Do not overwrite") && !apart.contains("must be copied"), "{apart}");
    }
}
