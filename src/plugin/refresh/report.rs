//! What the loop reports: why a plugin that serves needs attention, the KEKs' state, the figures.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tracing::info;

use super::health::{KekHealth, VersionHealth};
use super::memory::Refresh;
use crate::dek::contacts::{Contact, Standing};
use crate::generation::Generation;
use crate::kek::set::Answer;
use crate::kek::{KekError, KekVersion, Lineage};
use crate::plugin::state::{Serving, Trouble};

/// A kept DEK that its KEKs disown for this long is not kept any more: its version was destroyed on purpose. Nothing is
/// lost with it, since what it sealed carries the same wraps.
const DISOWNED_FOR: Duration = Duration::from_hours(24);

impl Refresh {
    /// Why a plugin that serves deserves a look.
    pub(super) fn trouble(&self, decision: Option<String>, generation: &Generation) -> Option<Trouble> {
        let mut reasons: Vec<String> = decision.into_iter().chain(self.refused.clone()).collect();
        for (name, lineage, _) in self.settings.keks.all() {
            if let Some(refusal) = self.refusal(lineage) {
                reasons.push(format!("KEK {name} did not unwrap: {refusal}"));
            }
        }
        for (name, _, key) in self.settings.keks.offline().filter(|(_, _, key)| key.proven.is_none()) {
            let recipient = &key.recipient;
            reasons.push(format!(
                "nobody has shown that the private half of break-glass KEK {name} exists ({recipient}): run `kube-envelope \
                 break-glass prove`, and put the line that it prints under `proven`"
            ));
        }
        let alone = self.in_memory_only();
        if let Some(first) = alone.first() {
            let count = alone.len();
            reasons.push(format!(
                "{count} keys, {first} first, live in memory only, as no KEK would unwrap them again; \
                 run rotate-keys before any restart"
            ));
        }
        let missing = self.warm.missing();
        if let Some((id, first)) = missing.first_key_value() {
            let (count, kept) = (missing.len(), self.service.store().kept().len());
            reasons.push(format!(
                "{count} of {kept} kept keys are not in memory, and an outage would miss them: {id}: {}",
                first.reason
            ));
        }
        if let Some(theirs) = self.service.other_cluster() {
            let ours = self.service.cluster();
            reasons.push(format!(
                "another node seals under this key_id for cluster \"{theirs}\", and here `cluster` is \"{ours}\": neither \
                 opens what the other sealed; set the same `cluster` on all nodes"
            ));
        }
        reasons.extend(self.service.store().problem_of(generation.dek_id()));
        if reasons.is_empty() {
            return None;
        }
        let contacts = self.service.cache().contacts(&self.versions_in_use());
        let keks = self.settings.keks.lineages();
        let opens = |version: &KekVersion| {
            keks.contains(&version.lineage)
                && contacts.get(version).is_some_and(|contact| contact.standing == Standing::Opens)
        };
        let reason = reasons.join("; ");
        // With one KEK that unwraps the clock of `maxOfflineAge` starts over at each proof; without any it runs out.
        Some(if generation.wrapped().versions().any(opens) {
            Trouble::Degraded(reason)
        } else {
            Trouble::Coasting(reason)
        })
    }

    pub(super) fn report(&mut self, answers: &[Answer<KekVersion>]) {
        self.forget_disowned();
        let cache = self.service.cache();
        let contacts = cache.contacts(&self.versions_in_use());
        let now = cache.now();
        let before = self.health.load_full();
        let offline = |lineage| self.settings.keks.offline().find(|(_, of, _)| *of == lineage).map(|(_, _, key)| key);
        let health: Vec<KekHealth> = self
            .settings
            .keks
            .all()
            .map(|(name, lineage, wraps)| {
                let last = before.iter().find(|health| health.lineage == lineage);
                let answer = answers.iter().find(|answer| answer.lineage == lineage).map(|answer| &answer.result);
                let version = match answer {
                    Some(Ok(version)) => Some(version.version.clone()),
                    // A KEK that was not asked in this turn, or did not answer, keeps what it said last.
                    _ => last.and_then(|last| last.version.clone()),
                };
                let offline = offline(lineage).cloned();
                // A process before this one may have had its private half, and handed over what it found.
                let versions = if offline.is_some() { Vec::new() } else { versions(&contacts, lineage) };
                let unnamed = answer.and_then(|answer| answer.as_ref().err()).map(KekError::chain);
                KekHealth {
                    name: name.to_owned(),
                    lineage,
                    is_retired: !wraps,
                    version,
                    last_contact: offline.is_none().then(|| last_contact(&contacts, lineage, now)).flatten(),
                    error: self
                        .refusal(lineage)
                        .map(str::to_owned)
                        .or(unnamed)
                        .or(self.unidentified.get(name).cloned()),
                    versions,
                    offline,
                }
            })
            .collect();
        self.measure(&health);
        self.health.store(Arc::new(health));
    }

    fn measure(&self, health: &[KekHealth]) {
        let serving = self.service.serving();
        let coasting = matches!(&*serving, Serving::Ready { trouble: Some(Trouble::Coasting(_)), .. });
        self.metrics.serving(serving.generation().is_some(), coasting);
        self.metrics.key_id(serving.generation().map(|generation| generation.key_id().as_str()));
        self.metrics.missing_deks(self.warm.missing().len());
        self.metrics.deks_in_memory_only(self.in_memory_only().len());
        let standings = health.iter().flat_map(|kek| {
            kek.versions.iter().map(|of| (kek.name.as_str(), of.version.as_str(), of.standing.as_str()))
        });
        self.metrics.kek_versions(standings);
        for kek in health {
            if let Some(key) = &kek.offline {
                self.metrics.break_glass_proven(&kek.name, key.proven.unwrap_or(jiff::Timestamp::UNIX_EPOCH));
            }
        }
        self.service.measure(&self.metrics);
    }

    /// What the KEKs have disowned for long enough is not kept any more.
    fn forget_disowned(&self) {
        let now = self.service.cache().now();
        let newest = self.service.store().history().deks().next();
        for (id, missing) in self.warm.missing() {
            let is_over = missing.lost_since.is_some_and(|since| now.saturating_sub(since) >= DISOWNED_FOR);
            // The newest of this node stays: without it a restart would go on with an older one.
            if is_over && newest != Some(id) {
                info!(dek_id = %id, reason = missing.reason, "no longer kept: its KEKs have disowned it for a day");
                self.service.store().forget(id);
            }
        }
    }
}

fn last_contact(contacts: &BTreeMap<KekVersion, Contact>, lineage: Lineage, now: Duration) -> Option<jiff::Timestamp> {
    let of_kek = contacts.iter().filter(|(version, _)| version.lineage == lineage);
    let opened = of_kek.filter_map(|(_, contact)| contact.opened).max()?;
    let ago = jiff::SignedDuration::try_from(now.saturating_sub(opened)).ok()?;
    jiff::Timestamp::now().checked_sub(ago).ok()
}

fn versions(contacts: &BTreeMap<KekVersion, Contact>, lineage: Lineage) -> Vec<VersionHealth> {
    let of_kek = contacts.iter().filter(|(version, _)| version.lineage == lineage);
    of_kek
        .map(|(version, contact)| VersionHealth { version: version.version.clone(), standing: contact.standing })
        .collect()
}
