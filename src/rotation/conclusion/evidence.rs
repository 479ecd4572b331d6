//! Weighs claims and findings: which keys may be disabled, or is anything left? A pure function of the journal.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::collections::BTreeSet;

use crate::rotation::claim::{Asked, Finding, Question, Subject};
use crate::rotation::cluster::listing::remedy;
use crate::rotation::conclusion::destruction::{looked_at, may_be_destroyed};
use crate::rotation::conclusion::wording::{
    describe, holds, may_be_disabled, must_stay, not_looked_at, nothing_left, nothing_rotated, or, yes,
};
use crate::rotation::journal::Journal;
use crate::rotation::journal::verdict::{Conclusion, Verdict};
use crate::rotation::keys::name::KeyName;
use crate::rotation::leftovers::scan::Scan;

/// What speaks for an answer, and what is missing for it.
#[derive(Default)]
struct Scales {
    evidence: Vec<String>,
    unproven: Vec<String>,
    waits: Vec<String>,
    left: Vec<String>,
}

/// Concludes from everything that was done and found.
pub fn weigh(journal: &Journal, question: Question) -> Verdict {
    let former = journal.former_keys();
    let mut scales = Scales::default();
    scales.done(journal);
    scales.claims(journal, question);
    scales.named(journal, &former);
    scales.objects(journal);
    let (conclusion, sentence) = scales.conclude(journal, &former, question);
    let mut missing: Vec<String> =
        journal.refused().iter().map(|path| format!("rewrite {path}: it was refused")).collect();
    missing.extend(withheld(journal));
    missing.append(&mut scales.left);
    missing.append(&mut scales.unproven);
    if conclusion != Conclusion::NothingRotated {
        missing.append(&mut scales.waits);
    }
    let yes = conclusion == Conclusion::MayBeDisabled;
    let free = || may_be_disabled(journal, &former).filter(|_| yes);
    scales.evidence.extend(looked_at(journal, &former));
    Verdict {
        conclusion,
        sentence,
        may_be_disabled: free().map(|key| journal.names.show(key)).collect(),
        may_be_destroyed: may_be_destroyed(journal, free()),
        commands: if yes { journal.disabling.clone() } else { Vec::new() },
        must_stay: must_stay(journal, &former, yes),
        holds: holds(journal),
        evidence: scales.evidence,
        not_looked_at: not_looked_at(journal),
        missing,
    }
}

impl Scales {
    fn conclude(&self, journal: &Journal, former: &BTreeSet<KeyName>, question: Question) -> (Conclusion, String) {
        let refused = journal.refused().len();
        // What expires by itself is worth waiting for, and is stored under a former key all the same.
        let passes = |scan: &Scan| if question == Question::MayBeDisabled { scan.expiring } else { 0 };
        let left = journal.verified.as_ref().map_or(0, |scan| scan.leftovers.saturating_sub(passes(scan)));
        // What was in clear has no key to keep.
        let keys: Vec<_> = former.iter().filter(|key| **key != KeyName::Clear).collect();
        let (names, was_clear) = (journal.names.show_all(keys), former.contains(&KeyName::Clear));
        // The order is that of how bad it is: what is known to be under a former key outweighs what could not be shown,
        // and a *Yes* is what is left when everything else was ruled out.
        if refused > 0 {
            let text = format!("No: {refused} object(s) were refused and are still stored under a former key.");
            (Conclusion::Refused, text)
        } else if journal.withheld() > 0 {
            let text = format!(
                "No: {} object(s) were left as they are and still need a former key, since storing them again would \
                 change them.",
                journal.withheld()
            );
            (Conclusion::Refused, text)
        } else if left > 0 || !self.left.is_empty() {
            let what = match left {
                0 => format!("{} unreadable object(s) are", self.left.len()),
                _ => format!("{left} value(s) are"),
            };
            let text = format!(
                "No: {what} still stored under a former key. Disabling that key makes the next restart of an API server \
                 fail."
            );
            (Conclusion::Leftovers, text)
        } else if question == Question::MayBeDisabled && former.is_empty() && !is_expiring(journal) {
            (Conclusion::NothingRotated, nothing_rotated(journal))
        } else if !self.unproven.is_empty() {
            let text = format!(
                "Not proven: nothing was found under a former key, but that does not prove that nothing is left. Keep {}.",
                or(&names, "every former key")
            );
            (Conclusion::Unproven, text)
        } else if !self.waits.is_empty() {
            let text = if names.is_empty() && was_clear {
                "Not yet: in live data nothing that should be encrypted is stored in clear any more. What is listed is missing.".into()
            } else {
                let key = or(&names, "a former key");
                format!("Not yet: nothing else in live data is stored under {key}. Keep it for what is listed.")
            };
            (Conclusion::NothingLeftWait, text)
        } else if question == Question::IsAnythingLeft {
            (Conclusion::NothingLeft, nothing_left(journal))
        } else {
            (Conclusion::MayBeDisabled, yes(journal, former))
        }
    }

    /// Each claim that there is, and each that is needed and is not there.
    fn claims(&mut self, journal: &Journal, question: Question) {
        let asked = Asked { question, by_etcd: journal.is_by_etcd(), with_keks: journal.is_our_plugin_writing() };
        for subject in Subject::ALL {
            // A claim that nobody made counts as not shown where it is required: a step that was skipped, or that a
            // journal of an older program does not have, must not read as a *Yes*.
            let Some(claim) = journal.claims.get(&subject) else {
                if subject.is_required(asked) {
                    self.unproven.push(format!("{}: run again", subject.describe()));
                }
                continue;
            };
            let what = &claim.what;
            match &claim.finding {
                Finding::Shown => self.evidence.push(format!("{what} ({})", claim.at)),
                Finding::NotYet { remedy } => self.waits.push(format!("{what}: {remedy}")),
                Finding::NotShown { remedy } => self.unproven.push(format!("{what}: {remedy}")),
            }
        }
        let expiring = journal.verified.as_ref().map_or(0, |scan| scan.expiring);
        if expiring > 0 {
            self.waits.push(format!("{expiring} Event(s) under an older key must expire: run verify in an hour"));
        }
    }

    /// A *Yes* names what an operator can disable; a hash of a `key_id` of kube-envelope is not that.
    fn named(&mut self, journal: &Journal, former: &BTreeSet<KeyName>) {
        for key in former {
            match key {
                KeyName::KeyIdHash { provider, hash } if journal.own_provider.as_ref() == Some(provider) => {
                    self.unproven.push(format!(
                        "which KEK versions the key_id with hash {hash} stands for is not known: give --etcd, where each \
                         value names them, or name the version with --former KEK:VERSION"
                    ));
                }
                KeyName::KeyId { .. } if journal.is_taken_over(key) && journal.names.takeovers().next().is_none() => {
                    self.unproven.push(format!(
                        "whether the key behind {} is also that of a KEK is not known: give the plugin's configuration \
                         (--config) with the entry under takeover still in it",
                        journal.names.show(key)
                    ));
                }
                KeyName::Kek { lineage, .. } | KeyName::AnyVersion { lineage } if is_silent(journal, lineage) => {
                    self.unproven.push(format!(
                        "{} belongs to a KEK that could not be asked which version is active: make it reachable, and \
                         run again",
                        journal.names.show(key)
                    ));
                }
                _ => {}
            }
        }
    }

    /// What the run itself did.
    fn done(&mut self, journal: &Journal) {
        let (rewritten, fresh) = journal.resources.iter().fold((0, 0), |(rewritten, fresh), progress| {
            let tally = &progress.tally;
            let own = tally.fresh.saturating_add(tally.newer);
            (u64::saturating_add(rewritten, tally.rewritten), u64::saturating_add(fresh, own))
        });
        if !journal.resources.is_empty() {
            self.evidence.push(format!(
                "{rewritten} object(s) of {} resource(s) were stored again; the last pass met {fresh} stored under the \
                 target key and nothing else",
                journal.resources.len()
            ));
        }
        let altered: u64 = journal.resources.iter().map(|progress| progress.tally.altered).sum();
        if altered > 0 {
            self.evidence.push(format!(
                "{altered} object(s) were changed by a mutating webhook, which sees every rewrite as an update"
            ));
        }
        if let Some(taken) = journal.snapshot_before {
            let text = format!("a snapshot of etcd from {taken} exists to go back to; it needs the former key");
            self.evidence.push(text);
        }
        self.evidence.extend(journal.verified.as_ref().map(describe));
    }

    /// Objects that cannot be read, listed, or rewritten.
    fn objects(&mut self, journal: &Journal) {
        for progress in &journal.resources {
            let unreadable = progress.tally.undecryptable.iter();
            self.left.extend(unreadable.map(|(path, why)| format!("{path} cannot be read by the API server: {why}")));
            if let Some(why) = &progress.tally.unlistable {
                self.left.push(format!("{} cannot be listed: {why}; {}", progress.resource, remedy(why)));
            }
        }
        self.left.extend(
            journal
                .verified
                .iter()
                .flat_map(|scan| scan.orphaned(&journal.intent.etcd_prefix).chain(scan.beside.remedy())),
        );
    }
}

/// What was left as it is, and how to have it stored again.
fn withheld(journal: &Journal) -> impl Iterator<Item = String> {
    let resources = journal.resources.iter().filter(|_| !journal.nothing_is_left());
    resources.filter_map(|progress| {
        let (resource, tally) = (&progress.resource, &progress.tally);
        let what = match &tally.withheld_all {
            Some(why) => format!("{resource} were left: {why}"),
            None if tally.withheld.is_empty() => return None,
            None => format!("{} object(s) of {resource} were left, each with its reason", tally.withheld.len()),
        };
        Some(format!("{what}; if the change is wanted, start over with --allow-changes={resource}"))
    })
}

/// Events under a former key keep it in use until they expire.
fn is_expiring(journal: &Journal) -> bool {
    journal.verified.as_ref().is_some_and(|scan| scan.expiring > 0)
}

/// Whether this KEK is one that could not be asked. One that is away may not even tell its lineage.
fn is_silent(journal: &Journal, lineage: &String) -> bool {
    // Some kinds of KEK learn their lineage only from the key store, so a lineage that no name is known for may be that
    // of a KEK that did not answer.
    let unknown = !journal.names.knows(lineage) && !journal.silent_keks.is_empty();
    journal.silent_keks.contains(lineage) || unknown
}

#[cfg(test)]
mod tests;
