//! What comes into use: a generation that is published, a configuration that is taken.

use std::collections::BTreeSet;

use kube_envelope::crypto::secret::DekId;
use kube_envelope::dek::history::History;
use kube_envelope::dek::store::Name;
use kube_envelope::envelope::WrappedDekSet;
use kube_envelope::plugin::state::Serving;
use tokio::time::Instant;

use super::super::node::Node;
use super::super::vendor::{numbers, short};
use super::Oracle;

impl Oracle {
    /// What is published was adopted properly.
    pub(super) fn check_publication(&mut self, node: &Node, key_id: &str, dek_id: DekId, wrapped: &WrappedDekSet) {
        let at = node.number;
        let versions = numbers(&self.vendors, wrapped.versions().cloned());
        let in_use = node.in_use();
        assert!(
            versions.keys().any(|vendor| in_use.contains(vendor)),
            "node {at} seals under {versions:?}, and {in_use:?} is configured"
        );
        let seen = &mut self.seen[at];
        let is_another = seen.key_id.as_deref() == Some(key_id) && seen.dek_id != Some(dek_id);
        assert!(!is_another, "node {at} made another DEK under the key_id that was active");
        let is_new = seen.dek_id != Some(dek_id);
        if is_new && !seen.forgets {
            let deks = seen.deks.entry(key_id.to_owned()).or_default();
            deks.insert(dek_id);
            // A KEK that gives another DEK back is taken for one that has lost the right one.
            let lies: usize = self.vendors.iter().map(|vendor| vendor.state().lies).sum();
            let most = 1 + seen.losses + self.damaged.len() + lies;
            assert!(deks.len() <= most, "node {at} made {} DEKs under {key_id}", deks.len());
            for (vendor, version) in &versions {
                let published = seen.published.entry((wrapped.epoch, *vendor)).or_default();
                if published.last() == Some(version) {
                    continue;
                }
                // One that this node never sealed under is new to it, however old it is.
                assert!(!published.contains(version), "node {at} went back to {version} of {vendor}: {published:?}");
                published.push(*version);
            }
        }
        if is_new {
            let (on_disk, former) = {
                let files = node.disk.files.lock().unwrap();
                let history = files.get(&Name::History).and_then(|record| History::decode(record)).unwrap_or_default();
                let newest = history.deks().find_map(|id| files.get(&Name::Dek(id)));
                let key_id = newest.map(|record| WrappedDekSet::decode(record).unwrap().key_id().to_string());
                (files.contains_key(&Name::Dek(dek_id)) && history.deks().any(|id| id == dek_id), key_id)
            };
            let reads = node.process.service.store().problem().is_none_or(|problem| !problem.contains("read"));
            assert!(
                on_disk || !reads || former.as_deref().is_none_or(|former| former == key_id),
                "node {at} published {key_id}, and a restart goes back to {former:?}"
            );
            let said = match &*node.process.service.serving() {
                Serving::Ready { trouble: Some(trouble), .. } => trouble.reason().contains("memory alone"),
                _ => false,
            };
            assert!(on_disk || said, "node {at} published {}, which is not on disk, without a word", short(dek_id));
        }
    }

    /// A configuration comes into use only with what depends on the former one. The KEKs in use at the last look.
    pub(super) fn check_configuration(&mut self, node: &Node) -> BTreeSet<usize> {
        let in_use = node.in_use();
        let seen = &mut self.seen[node.number];
        if seen.in_use == in_use {
            return in_use;
        }
        if !seen.in_use.is_empty() {
            for (id, wrapped) in node.process.service.store().kept() {
                let wrapped = numbers(&self.vendors, wrapped.versions().cloned());
                let before = wrapped.keys().any(|vendor| seen.in_use.contains(vendor));
                let after = wrapped.keys().any(|vendor| in_use.contains(vendor));
                assert!(
                    after || !before,
                    "node {} took {in_use:?}, which leaves {} under {wrapped:?}",
                    node.number,
                    short(id)
                );
            }
        }
        // The first look at a node is a moment after its start.
        seen.in_use_since = Some(seen.in_use_since.map_or(node.process.started, |_| Instant::now()));
        std::mem::replace(&mut seen.in_use, in_use)
    }
}
