//! What must hold at any moment, told from what the key stores saw and did, not from what the plugin thinks.

mod denials;
mod published;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use kube_envelope::crypto::secret::{DekId, Seed};
use kube_envelope::dek::store::Name;
use kube_envelope::envelope::{Ciphertext, WrappedDekSet};
use kube_envelope::plugin::service::Service;
use kube_envelope::plugin::state::Serving;
use tokio::time::{Instant, timeout};

use super::disk::Health;
use super::node::Node;
use super::vendor::{CALL, Had, Vendor, numbers, short};

/// A KEK that is asked too often is given this much rest at most, after its last word.
const REST: Duration = Duration::from_secs(14);

/// A value in etcd.
struct Stored {
    ciphertext: Vec<u8>,
    key_id: String,
    annotation: Vec<u8>,
    seed: u8,
}

/// What was seen of a node when it was last looked at.
#[derive(Default)]
struct Seen {
    incarnation: u64,
    key_id: Option<String>,
    dek_id: Option<DekId>,
    wrapped: BTreeMap<usize, u32>,
    in_use: BTreeSet<usize>,
    /// Since when these are in use.
    in_use_since: Option<Instant>,
    /// The versions of each KEK that were published under an epoch, the newest last.
    published: BTreeMap<(u64, usize), Vec<u32>>,
    /// The DEKs that were published under each key_id.
    deks: BTreeMap<String, BTreeSet<DekId>>,
    /// DEKs that were taken from this node.
    losses: usize,
    disk: Option<Health>,
    /// Whether the history may have been lost with something that did not reach the disk.
    forgets: bool,
    /// When its KEKs had last unwrapped what it served.
    opened: Option<Duration>,
    /// Since when it has served.
    served_since: Option<Instant>,
    /// Since when it has had a stored generation, and a KEK that opens it.
    could_since: Option<Instant>,
    /// Since when this process has kept each DEK.
    kept_since: BTreeMap<DekId, Instant>,
}

pub struct Oracle {
    vendors: Vec<Arc<Vendor>>,
    stored: BTreeMap<(DekId, String), Stored>,
    seen: Vec<Seen>,
    damaged: BTreeSet<DekId>,
}

impl Oracle {
    pub fn new(vendors: Vec<Arc<Vendor>>, nodes: usize) -> Self {
        let seen = (0..nodes).map(|_| Seen::default()).collect();
        Self { vendors, stored: BTreeMap::new(), seen, damaged: BTreeSet::new() }
    }

    pub fn disk_changed(&mut self, node: usize, health: Health) {
        self.seen[node].disk = Some(health);
    }

    pub fn lost_state(&mut self, node: usize) {
        self.seen[node].forgets = true;
        self.seen[node].losses += 1;
    }

    pub fn lost_a_dek(&mut self, node: usize) {
        self.seen[node].losses += 1;
    }

    /// Changes a kept DEK so that its KEKs answer that the wrap is not theirs.
    pub fn damage(&mut self, record: &mut Vec<u8>, name: Name) {
        let mut wrapped = WrappedDekSet::decode(record).unwrap();
        for wrap in &mut wrapped.wraps {
            wrap.blob[0] ^= 1;
        }
        *record = wrapped.encode().unwrap();
        if let Name::Dek(id) = name {
            self.damaged.insert(id);
        }
    }

    /// The process is about to be killed: what is not on disk is gone with it.
    pub fn stopped(&mut self, node: &Node) {
        let seen = &mut self.seen[node.number];
        if seen.disk.is_some_and(|health| health != Health::Good) || node.process.service.store().problem().is_some() {
            seen.forgets = true;
            seen.losses += 1;
        }
    }

    pub fn started(&mut self, node: &Node) {
        let seen = &mut self.seen[node.number];
        if seen.forgets || node.process.service.store().problem().is_some() {
            seen.published.clear();
            seen.deks.clear();
            // A disk that hangs now gives the history back later, after it was decided without it.
            seen.forgets = node.process.service.store().problem().is_some();
        }
        (seen.key_id, seen.dek_id, seen.served_since) = (None, None, None);
        seen.kept_since.clear();
        seen.in_use_since = Some(node.process.started);
        seen.incarnation = node.process.incarnation;
        seen.in_use = node.in_use();
    }

    /// Looks at a node, without a moment passing.
    pub fn look(&mut self, node: &Node) {
        let service = &node.process.service;
        let status = service.status();
        let before = self.check_configuration(node);
        let kept = service.store().kept();
        let since = &mut self.seen[node.number].kept_since;
        since.retain(|id, _| kept.iter().any(|(kept, _)| kept == id));
        for (id, _) in &kept {
            since.entry(*id).or_insert_with(Instant::now);
        }
        match status {
            Ok(generation) => {
                let wrapped = numbers(&self.vendors, generation.wrapped().versions().cloned());
                self.check_age(node, &wrapped);
                self.check_denial(node, &wrapped);
                self.check_row(node, generation.dek_id(), &wrapped);
                self.check_publication(node, generation.key_id().as_str(), generation.dek_id(), generation.wrapped());
                let seen = &mut self.seen[node.number];
                (seen.key_id, seen.dek_id) = (Some(generation.key_id().to_string()), Some(generation.dek_id()));
                seen.wrapped = wrapped;
                seen.served_since.get_or_insert_with(Instant::now);
                seen.could_since = None;
                self.seen[node.number].opened = self.last_opened(node, &before, &self.seen[node.number].wrapped);
                self.check_memory(node);
            }
            Err(_) => {
                let seen = &self.seen[node.number];
                if seen.key_id.is_some() && seen.incarnation == node.process.incarnation {
                    self.check_stop(node, &before);
                }
                let seen = &mut self.seen[node.number];
                (seen.key_id, seen.dek_id, seen.served_since) = (None, None, None);
                self.vendors.iter().for_each(|vendor| vendor.stopped(node.number, node.process.incarnation));
                self.check_resumption(node);
            }
        }
        self.seen[node.number].incarnation = node.process.incarnation;
        for gone in before.difference(&node.in_use()) {
            self.vendors[*gone].left(node.number, node.process.incarnation);
        }
    }

    /// What this process has had of a vendor's version.
    fn had(&self, node: &Node, vendor: usize, version: u32) -> Had {
        let asker = (node.number, node.process.incarnation, version);
        self.vendors[vendor].state().had.get(&asker).cloned().unwrap_or_default()
    }

    /// When one of these KEKs last unwrapped something that one of these versions had wrapped.
    fn last_opened(&self, node: &Node, in_use: &BTreeSet<usize>, wrapped: &BTreeMap<usize, u32>) -> Option<Duration> {
        let usable = wrapped.iter().filter(|(vendor, _)| in_use.contains(vendor));
        let opened = usable.filter_map(|(vendor, version)| self.had(node, *vendor, *version).opened);
        opened.max()
    }

    /// Nothing is served although the stored generation could be.
    fn check_resumption(&mut self, node: &Node) {
        let service = &node.process.service;
        let settling = CALL + Duration::from_secs(3);
        if node.process.started.elapsed() < settling
            || node.clock.awake() < settling
            || self.seen[node.number].disk.is_some_and(|health| health != Health::Good)
        {
            return;
        }
        // What was decided and is not on disk is gone on with once it is.
        if service.store().problem().is_some() {
            self.seen[node.number].could_since = None;
            return;
        }
        let Some((id, wrapped)) = service.store().history().deks().find_map(|id| Some((id, service.store().find(id)?)))
        else {
            return;
        };
        let versions = numbers(&self.vendors, wrapped.versions().cloned());
        let in_use = node.in_use();
        let could = versions
            .iter()
            .any(|(vendor, version)| in_use.contains(vendor) && self.vendors[*vendor].opens_since(*version, REST));
        let reason = match &*service.serving() {
            Serving::Stopped { reason } | Serving::Waiting { reason } => reason.clone(),
            Serving::Ready { .. } => "aged".into(),
        };
        let history = service.store().history();
        let is_older =
            wrapped.epoch < history.epoch() || history.goes_back(wrapped.epoch, wrapped.versions()).is_some();
        let could = could && !is_older && !self.damaged.contains(&id);
        let since = &mut self.seen[node.number].could_since;
        *since = if could { Some(since.unwrap_or_else(Instant::now)) } else { None };
        assert!(
            since.is_none_or(|since| since.elapsed() < CALL + Duration::from_secs(1)),
            "node {} does not serve, and its stored generation {} of {versions:?} opens: {reason}",
            node.number,
            short(id)
        );
    }

    /// Whatever is kept and can be unwrapped is in memory: soon after the plugin serves, where its KEKs have been well all
    /// along; once they have been well for a few turns, where they were not.
    fn check_memory(&self, node: &Node) {
        const SOON: Duration = Duration::from_secs(8);
        let later = node.conf.refresh_interval * 3 + CALL * 2;
        let (service, seen) = (&node.process.service, &self.seen[node.number]);
        let served = seen.served_since.map_or(Duration::ZERO, |since| since.elapsed());
        let used = seen.in_use_since.map_or(Duration::ZERO, |since| since.elapsed());
        let running = node.process.started.elapsed();
        let in_use = node.in_use();
        for (id, wrapped) in service.store().kept() {
            let kept = seen.kept_since.get(&id).map_or(Duration::ZERO, Instant::elapsed);
            let versions = numbers(&self.vendors, wrapped.versions().cloned());
            let opens_since = |while_| {
                versions.iter().any(|(vendor, version)| {
                    in_use.contains(vendor) && self.vendors[*vendor].opens_since(*version, while_)
                })
            };
            let awake = node.clock.awake();
            let at_once =
                awake >= running && served >= SOON && kept >= served && used >= running && opens_since(running);
            let at_last = [served, kept, used, awake].iter().all(|age| *age >= later) && opens_since(later + REST);
            if (at_once || at_last) && !self.damaged.contains(&id) {
                assert!(
                    service.cache().remaining(id).is_some(),
                    "node {}: kept DEK {} of {versions:?} is not in memory, and could be",
                    node.number,
                    short(id)
                );
            }
        }
    }

    /// Seals, and opens what was sealed here and elsewhere, as an API server does.
    pub async fn use_it(&mut self, node: &Node) {
        let service = &node.process.service;
        self.look(node);
        let number = u8::try_from(self.stored.len() % 250).unwrap();
        // At one moment, Status and Encrypt speak of the same generation.
        let status = service.status().ok().map(|generation| generation.key_id().to_string());
        let encrypted = service.encrypt(&Seed::new(vec![number; 32])).ok();
        assert_eq!(status, encrypted.as_ref().map(|encrypted| encrypted.generation.key_id().to_string()));
        if let Some(encrypted) = encrypted {
            let stored = Stored {
                key_id: encrypted.generation.key_id().to_string(),
                annotation: encrypted.generation.annotation().to_vec(),
                ciphertext: encrypted.ciphertext,
                seed: number,
            };
            let began = Instant::now();
            open(service, &stored).await.expect("what was just sealed opens");
            assert!(began.elapsed().is_zero(), "at once, with nobody being asked");
            self.stored.entry((encrypted.generation.dek_id(), stored.key_id.clone())).or_insert(stored);
        }
    }

    /// Every value at once.
    pub async fn burst(&mut self, node: &Node) {
        let began = Instant::now();
        let all = self.stored.values().map(|stored| open(&node.process.service, stored));
        let _ = timeout(CALL, futures::future::join_all(all)).await.expect("answered in time, if only by a refusal");
        assert!(began.elapsed() <= CALL);
        self.look(node);
    }

    /// All has been well for a while: everything opens that can, everywhere, and all nodes say the same.
    pub async fn conclude(&mut self, nodes: &[Node]) {
        let went_back = self.vendors.iter().any(|vendor| vendor.state().went_back);
        for node in nodes {
            let service = &node.process.service;
            for (id, stored) in &self.stored {
                let wrapped = WrappedDekSet::decode(&stored.annotation).unwrap();
                let versions = numbers(&self.vendors, wrapped.versions().cloned());
                let can = versions.iter().any(|(vendor, version)| self.vendors[*vendor].state().opens(*version));
                let opened = open(service, stored).await;
                assert!(
                    opened.is_ok() || !can,
                    "node {}: {} of {versions:?} does not open: {opened:?}",
                    node.number,
                    short(id.0)
                );
            }
            let lost = self.vendors.iter().any(|vendor| !vendor.state().destroyed.is_empty());
            let serving = service.serving();
            match &*serving {
                Serving::Ready { trouble, .. } => {
                    let quiet = went_back || lost || !self.damaged.is_empty();
                    assert!(quiet || trouble.is_none(), "node {}: {trouble:?}", node.number);
                }
                Serving::Waiting { reason } | Serving::Stopped { reason } => {
                    assert!(
                        went_back || lost || !self.damaged.is_empty(),
                        "node {} does not serve: {reason}",
                        node.number
                    );
                }
            }
        }
        let key_ids: BTreeSet<_> = nodes
            .iter()
            .filter_map(|node| node.process.service.status().ok().map(|generation| generation.key_id().to_string()))
            .collect();
        assert!(went_back || key_ids.len() <= 1, "{key_ids:?}");
    }
}

/// Opens a value; a wrong answer is a fault at any time.
async fn open(service: &Arc<Service>, stored: &Stored) -> Result<(), String> {
    Ciphertext::parse(&stored.ciphertext).unwrap();
    let opened = service.decrypt(&stored.ciphertext, &stored.key_id, Some(&stored.annotation)).await;
    let seed = opened.map_err(|error| error.to_string())?;
    assert_eq!(seed.seed.expose(), [stored.seed; 32], "another value came back");
    Ok(())
}
