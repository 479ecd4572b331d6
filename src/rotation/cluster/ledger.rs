//! The ledger: what each API server process had stored, and under which keys, when all of them were seen to use the
//! target key. Any growth under another key since then, and any process that was not there, voids the proof.
//!
//! Only counters of the servers themselves are compared, each with earlier ones of the same process. No clock is.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::encryption_config::ProviderName;
use crate::rotation::cluster::key_id_hash::KeyIdHash;
use crate::rotation::cluster::metrics::{Direction, Scrape, counted_since};
use crate::rotation::cluster::writer::{Writer, is_inner_prefix, plugin_counted_as};

/// One run of one API server: a restarted server is another process, and has counted nothing yet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerProcess {
    /// Hash of its identity Lease's name; empty where the feature gate `APIServerIdentity` is off.
    pub identity: String,
    /// When the process started, in milliseconds by its own clock.
    pub started: i64,
}

impl ServerProcess {
    /// The process that answered a scrape. Servers without an identity are told apart by their start alone.
    #[must_use]
    pub fn of(scrape: &Scrape) -> Self {
        #[allow(clippy::cast_possible_truncation, reason = "milliseconds since 1970 fit")]
        // A whole number, so that it comes back from the journal as the same one.
        let started = (scrape.started.unwrap_or_default() * 1000.0).round() as i64;
        Self { identity: scrape.identities.first().cloned().unwrap_or_default(), started }
    }
}

/// What one API server process had stored when it was looked at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Account {
    /// Where it was reached; for messages.
    pub address: String,
    /// Identity and start time: what tells one process from the next at the same address.
    pub process: ServerProcess,
    /// Hash of its EncryptionConfiguration, where the server publishes it.
    pub config_hash: Option<String>,
    /// Values stored by KMS v2 providers: provider → hash of the `key_id` → count.
    pub by_key: BTreeMap<ProviderName, BTreeMap<KeyIdHash, u64>>,
    /// Values stored: resource → prefix of the value → count.
    pub by_prefix: BTreeMap<String, BTreeMap<String, u64>>,
}

impl Account {
    /// The account that a scrape of the server at `address` shows.
    #[must_use]
    pub fn of(address: &str, scrape: &Scrape) -> Self {
        let (mut by_key, mut by_prefix) = (BTreeMap::new(), BTreeMap::new());
        for ((provider, key), count) in &scrape.stored {
            nested(&mut by_key, provider.clone(), key.clone(), *count);
        }
        for ((resource, prefix, direction), count) in &scrape.operations {
            if *direction == Direction::Stored {
                nested(&mut by_prefix, resource.clone(), prefix.clone(), *count);
            }
        }
        Self {
            address: address.into(),
            process: ServerProcess::of(scrape),
            config_hash: scrape.config_hash.clone(),
            by_key,
            by_prefix,
        }
    }
}

fn nested<A: Ord, B: Ord>(
    all: &mut BTreeMap<A, BTreeMap<B, u64>>,
    outer: impl Into<A>,
    inner: impl Into<B>,
    count: u64,
) {
    all.entry(outer.into()).or_default().insert(inner.into(), count);
}

/// What API servers may store under while the proof holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Permitted {
    /// KMS v2 provider → hash of the only `key_id` that it may use.
    pub keys: BTreeMap<ProviderName, KeyIdHash>,
    /// Encrypted resource → who writes it.
    pub writers: BTreeMap<String, Writer>,
    /// How prefixes begin that the configuration itself has some resource written with, empty for values in clear. A
    /// server counts a write under the resource of the request that caused it, so these may appear at any resource.
    pub elsewhere: BTreeSet<String>,
}

impl Permitted {
    fn is_permitted(&self, resource: &str, prefix: &str) -> bool {
        let Some(writer) = self.writers.get(resource) else { return true };
        if is_inner_prefix(prefix) || writer.local().is_some_and(|local| local.is_counted_as(prefix)) {
            return true;
        }
        let plugin = plugin_counted_as(prefix);
        plugin.is_some_and(|plugin| writer.plugin().is_some_and(|writer| writer == plugin))
            || self.elsewhere.iter().any(|other| if other.is_empty() { prefix.is_empty() } else { prefix.starts_with(other) })
            // Values of a KMS v2 provider are counted by key as well, and judged there.
            || plugin.is_some_and(|plugin| self.keys.contains_key(plugin))
    }
}

/// Why the proof does not hold any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "breach")]
pub enum Breach {
    /// A process that was not there: an API server joined, or was started again.
    Joined {
        /// Where it was met.
        address: String,
    },
    /// A process is gone. What it stored between the last look and its end is not known.
    Gone {
        /// Where it was.
        address: String,
    },
    /// A server loaded another EncryptionConfiguration.
    Reconfigured {
        /// Where it was met.
        address: String,
    },
    /// A server stored values under a key other than the target.
    StoredUnder {
        /// Where it was met.
        address: String,
        /// By which provider.
        provider: ProviderName,
        /// Hash of the `key_id`.
        key: KeyIdHash,
        /// How many values.
        count: u64,
    },
    /// A server stored values of an encrypted resource with another provider, or in clear.
    StoredWith {
        /// Where it was met.
        address: String,
        /// Of which resource.
        resource: String,
        /// With which prefix; empty for values in clear.
        prefix: String,
        /// How many values.
        count: u64,
    },
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Joined { address } => {
                write!(f, "API server {address} was started after all servers had been seen to use the target key")
            }
            Self::Gone { address } => {
                write!(f, "API server {address} stopped, and what it stored last was not seen")
            }
            Self::Reconfigured { address } => {
                write!(f, "API server {address} loaded another EncryptionConfiguration")
            }
            Self::StoredUnder { address, provider, key, count: 0 } => write!(
                f,
                "API server {address} no longer counts what it stores under key {} of provider {provider}",
                key.short()
            ),
            Self::StoredUnder { address, provider, key, count } => {
                write!(
                    f,
                    "API server {address} stored {count} value(s) under key {} of provider {provider}",
                    key.short()
                )
            }
            Self::StoredWith { address, resource, prefix, count } => {
                let how = if prefix.is_empty() { "in clear" } else { prefix };
                write!(f, "API server {address} stored {count} value(s) of {resource} {how}")
            }
        }
    }
}

/// The accounts at the moment when all API servers had been seen to use the target key.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Ledger {
    opened: Vec<Account>,
}

impl Ledger {
    /// Opens it with what every server had stored so far.
    #[must_use]
    pub fn open(accounts: Vec<Account>) -> Self {
        Self { opened: accounts }
    }

    /// What every server had stored when it was opened.
    #[must_use]
    pub fn accounts(&self) -> &[Account] {
        &self.opened
    }

    /// Whether it was opened: without accounts of single servers nothing is known.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.opened.is_empty()
    }

    /// What happened since it was opened that voids the proof, given what every server shows now. Comparing with the
    /// opening, and not with the last look, finds what happened between two looks as well.
    #[must_use]
    pub fn breaches(&self, now: &[Account], permitted: &Permitted) -> Vec<Breach> {
        let find = |accounts: &'_ [Account], process: &ServerProcess| {
            accounts.iter().position(|account| &account.process == process)
        };
        let mut breaches = Vec::new();
        for gone in self.opened.iter().filter(|account| find(now, &account.process).is_none()) {
            breaches.push(Breach::Gone { address: gone.address.clone() });
        }
        for account in now {
            match find(&self.opened, &account.process) {
                Some(at) => breaches.extend(grown(&self.opened[at], account, permitted)),
                None => breaches.push(Breach::Joined { address: account.address.clone() }),
            }
        }
        breaches
    }
}

/// What one process stored elsewhere since the ledger was opened.
fn grown(before: &Account, now: &Account, permitted: &Permitted) -> Vec<Breach> {
    let address = || now.address.clone();
    let mut breaches = Vec::new();
    if before.config_hash != now.config_hash {
        breaches.push(Breach::Reconfigured { address: address() });
    }
    let of = |account: &Account, provider: &ProviderName, key: &KeyIdHash| {
        account.by_key.get(provider).and_then(|keys| keys.get(key)).copied()
    };
    for (provider, keys) in before.by_key.iter().chain(&now.by_key) {
        for key in keys.keys().filter(|key| permitted.keys.get(provider) != Some(key)) {
            let (earlier, later) = (of(before, provider, key), of(now, provider, key));
            // The server keeps a hundred series and drops the one used least: a count that fell hides what came since.
            let breach = Breach::StoredUnder {
                address: address(),
                provider: provider.clone(),
                key: key.clone(),
                count: counted_since(earlier, later.unwrap_or_default()),
            };
            if earlier.unwrap_or_default() != later.unwrap_or_default() && !breaches.contains(&breach) {
                breaches.push(breach);
            }
        }
    }
    for (resource, prefixes) in &now.by_prefix {
        for (prefix, count) in prefixes.iter().filter(|(prefix, _)| !permitted.is_permitted(resource, prefix)) {
            let earlier = before.by_prefix.get(resource).and_then(|prefixes| prefixes.get(prefix)).copied();
            let count = counted_since(earlier, *count);
            if count > 0 {
                let (resource, prefix) = (resource.clone(), prefix.clone());
                breaches.push(Breach::StoredWith { address: address(), resource, prefix, count });
            }
        }
    }
    breaches
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(identity: &str, started: i64) -> Account {
        Account {
            address: format!("{identity}:6443"),
            process: ServerProcess { identity: identity.into(), started },
            config_hash: Some("sha256:c".into()),
            by_key: [("p".into(), [("old".into(), 7), ("new".into(), 3)].into())].into(),
            by_prefix: [("secrets".to_owned(), [("k8s:enc:kms:v2:p:".to_owned(), 10)].into())].into(),
        }
    }

    fn permitted() -> Permitted {
        Permitted {
            keys: [("p".into(), "new".into())].into(),
            writers: ["secrets", "configmaps"].map(|name| (name.to_owned(), Writer::Plugin("p".into()))).into(),
            elsewhere: BTreeSet::new(),
        }
    }

    fn ledger() -> Ledger {
        Ledger::open(vec![account("a", 1), account("b", 1)])
    }

    type Change = fn(&mut Vec<Account>);

    #[test]
    fn what_is_stored_under_the_target_key_leaves_the_proof_intact() {
        let mut now = vec![account("b", 1), account("a", 1)];
        now[0].by_key.get_mut("p").unwrap().insert("new".into(), 900);
        now[0].by_prefix.get_mut("secrets").unwrap().insert("k8s:enc:kms:v2:p:".into(), 907);
        nested(&mut now[0].by_prefix, "pods", "", 5);
        assert_eq!(ledger().breaches(&now, &permitted()), []);
    }

    #[test]
    fn whatever_else_happens_voids_it() {
        let b = || "b:6443".to_owned();
        let cases: [(Change, Vec<Breach>); 10] = [
            (|now| now.push(account("c", 9)), vec![Breach::Joined { address: "c:6443".into() }]),
            (|now| _ = now.pop(), vec![Breach::Gone { address: b() }]),
            (|now| now[1].process.started = 2, vec![Breach::Gone { address: b() }, Breach::Joined { address: b() }]),
            (|now| now[1].config_hash = Some("sha256:d".into()), vec![Breach::Reconfigured { address: b() }]),
            (|now| nested(&mut now[1].by_key, "p", "old", 8), vec![under("p", "old", 1)]),
            // The server drops the series that was used least; a count that fell, or is gone, hides what came since.
            (|now| nested(&mut now[1].by_key, "p", "old", 2), vec![under("p", "old", 2)]),
            (|now| _ = now[1].by_key.get_mut("p").unwrap().remove(&"old".into()), vec![under("p", "old", 0)]),
            (|now| nested(&mut now[1].by_key, "q", "other", 4), vec![under("q", "other", 4)]),
            (|now| nested(&mut now[1].by_prefix, "configmaps", "", 2), vec![with("configmaps", "", 2)]),
            (
                |now| nested(&mut now[1].by_prefix, "secrets", "k8s:enc:aescbc:v1:k:", 1),
                vec![with("secrets", "k8s:enc:aescbc:v1:k:", 1)],
            ),
        ];
        for (change, expected) in cases {
            let mut now = vec![account("a", 1), account("b", 1)];
            change(&mut now);
            assert_eq!(ledger().breaches(&now, &permitted()), expected);
        }
    }

    #[test]
    fn a_prefix_that_the_configuration_writes_some_resource_with_proves_nothing_at_another_one() {
        let mut now = vec![account("a", 1), account("b", 1)];
        nested(&mut now[1].by_prefix, "secrets", "", 3);
        let permitted = Permitted { elsewhere: [String::new()].into(), ..permitted() };
        assert_eq!(ledger().breaches(&now, &permitted), [], "an eviction of a pod stores a disruption budget");
    }

    fn under(provider: &str, key: &str, count: u64) -> Breach {
        Breach::StoredUnder { address: "b:6443".into(), provider: provider.into(), key: key.into(), count }
    }

    fn with(resource: &str, prefix: &str, count: u64) -> Breach {
        Breach::StoredWith { address: "b:6443".into(), resource: resource.into(), prefix: prefix.into(), count }
    }
}
