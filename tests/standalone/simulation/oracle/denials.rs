//! What is served is given up when its KEKs deny it, and for no other reason but its age.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kube_envelope::crypto::secret::DekId;
use kube_envelope::dek::clock::Clock;
use kube_envelope::plugin::state::Serving;

use super::{CALL, Oracle};
use crate::simulation::node::{Node, PROVE};
use crate::simulation::row::{CONFIRMATION, Row};

/// Nodes are examined at least this often.
const BETWEEN_LOOKS: Duration = Duration::from_millis(1_300);

/// How often is asked while a denial is in doubt.
const SOON: Duration = Duration::from_secs(2);

/// A configuration that was changed is in use, or refused, within this.
const TAKEN_UP: Duration = Duration::from_secs(15);

impl Oracle {
    /// Nothing is sealed or opened longer than `maxOfflineAge` after the last unwrap.
    pub(super) fn check_age(&self, node: &Node, wrapped: &BTreeMap<usize, u32>) {
        let opened = self.last_opened(node, &node.in_use(), wrapped);
        let age = opened.map(|at| node.clock.now().saturating_sub(at));
        assert!(
            age.is_some_and(|age| age < node.conf.limit()),
            "node {} serves {wrapped:?}, whose KEKs unwrapped last {age:?} ago",
            node.number
        );
    }

    /// A denial stops the plugin within the stated time.
    pub(super) fn check_denial(&self, node: &Node, wrapped: &BTreeMap<usize, u32>) {
        let within = PROVE.min(node.conf.limit() / 3) + node.conf.refresh_interval * 2 + CONFIRMATION * 2 + CALL * 3;
        if node.process.started.elapsed() < within {
            return;
        }
        let in_use = node.in_use();
        let mut usable = wrapped.iter().filter(|(vendor, _)| in_use.contains(vendor));
        let denied = usable.all(|(vendor, version)| self.vendors[*vendor].denies_since(*version, within));
        let since_reload = self.seen[node.number].served_since.is_some_and(|since| since.elapsed() >= within);
        assert!(
            !denied || !since_reload,
            "node {} serves {wrapped:?} although its KEKs have denied for {within:?}",
            node.number
        );
    }

    /// What was served is given up only for a reason: age, or a row of denials with nothing in between.
    /// Since the last look, at which `before` were in use, the configuration may have changed after that.
    pub(super) fn check_stop(&self, node: &Node, before: &BTreeSet<usize>) {
        let seen = &self.seen[node.number];
        let may_stop = |in_use: &BTreeSet<usize>| {
            // Also as of the last look: once it has stopped, a Decrypt has it unwrapped again.
            let aged = [self.last_opened(node, in_use, &seen.wrapped), seen.opened].into_iter().any(|opened| {
                // The plugin counts from the moment in which it asked.
                opened.is_none_or(|at| node.clock.now().saturating_sub(at) + CALL * 2 >= node.conf.limit())
            });
            let usable: Vec<_> = seen.wrapped.iter().filter(|(vendor, _)| in_use.contains(vendor)).collect();
            let denied = usable.iter().all(|(vendor, version)| {
                let had = self.had(node, **vendor, **version);
                had.denials.is_some_and(|row| row.definite_for().is_some())
                    || had.definite_until.is_some_and(|until| until.elapsed() <= BETWEEN_LOOKS)
            });
            aged || (denied && !usable.is_empty())
        };
        let reason = match &*node.process.service.serving() {
            Serving::Stopped { reason } | Serving::Waiting { reason } => reason.clone(),
            Serving::Ready { .. } => "aged".into(),
        };
        // The file before may have been in use for less than the time between two looks.
        let is_new = node.clock.now().saturating_sub(node.conf_changed) <= TAKEN_UP;
        assert!(
            may_stop(&node.in_use()) || may_stop(before) || (is_new && may_stop(&node.former)),
            "node {} stopped serving {:?}: {reason}",
            node.number,
            seen.wrapped
        );
    }

    /// A row of denials stops the plugin as soon as it is definite for every KEK, in whichever order they became so. One
    /// that is definite is not asked about as often as one that is doubtful.
    pub(super) fn check_row(&self, node: &Node, dek_id: DekId, wrapped: &BTreeMap<usize, u32>) {
        let in_use = node.in_use();
        let usable = wrapped.iter().filter(|(vendor, _)| in_use.contains(vendor));
        let rows = usable.map(|(vendor, version)| {
            let row = self.had(node, *vendor, *version).denials_of.get(&dek_id).copied();
            // A configuration that is tried asks as well, and counts for nothing.
            row.filter(|row| row.first() > node.conf_changed + TAKEN_UP)
        });
        let rows: Vec<_> = rows.collect();
        let is_definite = |row: &Row| row.definite_for().is_some_and(|since| since >= CALL + BETWEEN_LOOKS);
        assert!(
            !rows.iter().all(|row| row.as_ref().is_some_and(is_definite)),
            "node {} serves {wrapped:?}, and each of its KEKs has denied it in a row",
            node.number
        );
        let rhythm = node.conf.refresh_interval.min(PROVE).min(node.conf.limit() / 3).mul_f64(0.8);
        for row in rows.into_iter().flatten() {
            // A plugin that stops and goes on between two looks has forgotten the row, and confirms it again.
            let confirmed = (CONFIRMATION.as_secs_f64() / SOON.as_secs_f64()).ceil() + 1.0;
            let asked = row.definite_for().map_or(0.0, |since| since.div_duration_f64(rhythm) + 2.0 + confirmed);
            assert!(
                f64::from(row.more()) <= asked,
                "node {} asks for {wrapped:?} again and again, which is denied for good",
                node.number
            );
        }
    }
}
