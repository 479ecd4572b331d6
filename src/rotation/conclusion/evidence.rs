//! Weighs what a rotation did and found: which keys may be disabled? A pure function of the journal.

use std::collections::BTreeSet;

use crate::rotation::adoption::Evidence;
use crate::rotation::claim::{Claim, Finding, Subject};
use crate::rotation::cluster::listing::remedy;
use crate::rotation::conclusion::wording::{
    describe, holds, may_be_disabled, must_stay, not_looked_at, nothing_rotated, or, yes,
};
use crate::rotation::journal::Journal;
use crate::rotation::journal::verdict::{Conclusion, Verdict};
use crate::rotation::keys::name::KeyName;
use crate::rotation::leftovers::scan::Method;

/// Concludes from everything that a rotation did and found.
pub fn weigh(journal: &Journal) -> Verdict {
    let former = journal.former_keys();
    let (mut evidence, mut unproven) = (Vec::new(), Vec::new());
    adoption(journal, &mut evidence, &mut unproven);
    search(journal, &mut evidence, &mut unproven);
    named(journal, &former, &mut unproven);
    let mut waits = waits(journal);
    claims(journal, &mut evidence, &mut unproven, &mut waits);
    let bad = objects(journal);
    let (conclusion, sentence) = conclude(journal, &former, bad.len(), &unproven, &waits);
    let mut missing: Vec<String> =
        journal.refused().iter().map(|path| format!("rewrite {path}: it was refused")).collect();
    missing.extend(left(journal));
    missing.extend(bad);
    missing.extend(unproven);
    if conclusion != Conclusion::NothingRotated {
        missing.append(&mut waits);
    }
    let yes = conclusion == Conclusion::MayBeDisabled;
    Verdict {
        conclusion,
        sentence,
        may_be_disabled: if yes { may_be_disabled(journal, &former) } else { Vec::new() },
        commands: if yes { journal.disabling.clone() } else { Vec::new() },
        must_stay: must_stay(journal, &former, yes),
        holds: holds(journal),
        evidence,
        not_looked_at: not_looked_at(journal),
        missing,
    }
}

fn conclude(
    journal: &Journal,
    former: &BTreeSet<KeyName>,
    unreadable: usize,
    unproven: &[String],
    waits: &[String],
) -> (Conclusion, String) {
    let refused = journal.refused().len();
    let left = journal.verified.as_ref().map_or(0, |scan| scan.leftovers - scan.expiring);
    let names = journal.names.show_all(former);
    if refused > 0 {
        let text = format!("No: {refused} object(s) were refused and are still stored under a former key.");
        (Conclusion::Refused, text)
    } else if journal.withheld() > 0 {
        let text = format!(
            "No: {} object(s) were left as they are and still need a former key, since storing them again would change \
             them.",
            journal.withheld()
        );
        (Conclusion::Refused, text)
    } else if left > 0 || unreadable > 0 {
        let text = format!(
            "No: {} still stored under a former key. Disabling that key makes the next restart of an API server fail.",
            if left > 0 { format!("{left} value(s) are") } else { format!("{unreadable} unreadable object(s) are") }
        );
        (Conclusion::Leftovers, text)
    } else if former.is_empty() && !is_expiring(journal) {
        (Conclusion::NothingRotated, nothing_rotated(journal))
    } else if !unproven.is_empty() {
        let text = format!(
            "Not proven: everything was rewritten, and it could not be shown that nothing is left. Keep {}.",
            or(&names, "every former key")
        );
        (Conclusion::Unproven, text)
    } else if !waits.is_empty() {
        let text = format!(
            "Not yet: nothing else in live data is stored under {}. Keep it for what is listed.",
            or(&names, "a former key")
        );
        (Conclusion::NothingLeftWait, text)
    } else {
        (Conclusion::MayBeDisabled, yes(journal, former))
    }
}

/// Events under a former key keep it in use until they expire.
fn is_expiring(journal: &Journal) -> bool {
    journal.verified.as_ref().is_some_and(|scan| scan.expiring > 0)
}

/// A *Yes* names what an operator can disable; a hash of a `key_id` of kube-envelope is not that.
fn named(journal: &Journal, former: &BTreeSet<KeyName>, unproven: &mut Vec<String>) {
    for key in former {
        match key {
            KeyName::KeyIdHash { provider, hash } if journal.own_provider.as_ref() == Some(provider) => {
                unproven.push(format!(
                    "which KEK versions the key_id with hash {hash} stands for is not known: give --etcd, where each \
                     value names them, or name the version with --former KEK:VERSION"
                ));
            }
            KeyName::Kek { lineage, .. } | KeyName::AnyVersion { lineage } if is_silent(journal, lineage) => {
                unproven.push(format!(
                    "{} belongs to a KEK that could not be asked which version is active: make it reachable, and run again",
                    journal.names.show(key)
                ));
            }
            _ => {}
        }
    }
}

/// Whether this KEK is one that could not be asked. One that is away may not even tell its lineage.
fn is_silent(journal: &Journal, lineage: &String) -> bool {
    let unknown = !journal.names.knows(lineage) && !journal.silent_keks.is_empty();
    journal.silent_keks.contains(lineage) || unknown
}

/// What was shown, and what not, beside the steps of the run itself.
fn claims(journal: &Journal, evidence: &mut Vec<String>, unproven: &mut Vec<String>, waits: &mut Vec<String>) {
    for subject in Subject::ALL {
        match journal.claims.get(&subject) {
            Some(Claim { finding: Finding::Shown, what, at, .. }) => evidence.push(format!("{what} ({at})")),
            Some(Claim { finding: Finding::NotYet { remedy }, what, .. }) => waits.push(format!("{what}: {remedy}")),
            Some(Claim { finding: Finding::NotShown { remedy }, what, .. }) => {
                unproven.push(format!("{what}: {remedy}"));
            }
            None if subject.is_required() => unproven.push(format!("{}: run again", subject.describe())),
            None => {}
        }
    }
}

fn adoption(journal: &Journal, evidence: &mut Vec<String>, unproven: &mut Vec<String>) {
    match &journal.adoption {
        Some(adoption) if adoption.evidence == Evidence::WriteProof => {
            evidence.push(format!(
                "{} API server(s) stored a write under the target key, by their own metrics; an empty patch went \
                 round all of them unchanged ({})",
                adoption.servers.len(),
                adoption.at
            ));
            unproven.extend(adoption.doubts.iter().map(ToString::to_string));
            evidence.push(format!(
                "nothing was stored under another key from {} to {}, by the servers' own counters",
                adoption.since, adoption.at
            ));
            if adoption.since > journal.verified_at.unwrap_or(jiff::Timestamp::MIN) {
                unproven.push("an API server changed after leftovers were looked for: rotate-keys --resume".into());
            }
            if !adoption.without_canary.is_empty() && !by_etcd(journal) {
                unproven.push(format!(
                    "no canary shows the key of provider(s) {}: scan etcd (--etcd)",
                    adoption.without_canary.join(", ")
                ));
            }
        }
        Some(_) => {
            unproven
                .push("the metrics of each API server must be readable, to show that it uses the target key".into());
        }
        None => unproven.push("no API server was seen to use the target key".into()),
    }
}

fn search(journal: &Journal, evidence: &mut Vec<String>, unproven: &mut Vec<String>) {
    let (rewritten, fresh) = journal.resources.iter().fold((0, 0), |(rewritten, fresh), progress| {
        (rewritten + progress.tally.rewritten, fresh + progress.tally.fresh + progress.tally.newer)
    });
    evidence.push(format!(
        "{rewritten} object(s) of {} resource(s) were stored again; the last pass met {fresh} stored under the target \
         key and nothing else",
        journal.resources.len()
    ));
    let altered: u64 = journal.resources.iter().map(|progress| progress.tally.altered).sum();
    if altered > 0 {
        evidence.push(format!(
            "{altered} object(s) were changed by a mutating webhook, which sees every rewrite as an update"
        ));
    }
    if let Some(taken) = journal.snapshot_before {
        evidence.push(format!("a snapshot of etcd from {taken} is there to go back to; it needs the former key"));
    }
    match &journal.verified {
        Some(scan) => evidence.push(describe(scan)),
        None => unproven.push("leftovers were not looked for independently: give --etcd, or the right to get".into()),
    }
    if journal.inferred && !by_etcd(journal) {
        unproven.push(
            "the encrypted resources were guessed from metrics: give --encryption-config, or scan etcd (--etcd)".into(),
        );
    }
}

fn by_etcd(journal: &Journal) -> bool {
    journal.verified.as_ref().is_some_and(|scan| scan.method == Method::Etcd)
}

fn objects(journal: &Journal) -> Vec<String> {
    let mut bad = Vec::new();
    for progress in &journal.resources {
        let unreadable = progress.tally.undecryptable.iter();
        bad.extend(unreadable.map(|(path, why)| format!("{path} cannot be read by the API server: {why}")));
        if let Some(why) = &progress.tally.unlistable {
            bad.push(format!("{} cannot be listed: {why}; {}", progress.resource, remedy(why)));
        }
    }
    bad.extend(journal.verified.iter().flat_map(|scan| scan.orphaned(&journal.intent.etcd_prefix)));
    bad
}

/// What was left as it is, and how to have it stored again.
fn left(journal: &Journal) -> impl Iterator<Item = String> {
    journal.resources.iter().filter_map(|progress| {
        let (resource, tally) = (&progress.resource, &progress.tally);
        let what = match &tally.withheld_all {
            Some(why) => format!("{resource} were left: {why}"),
            None if tally.withheld.is_empty() => return None,
            None => format!("{} object(s) of {resource} were left, each with its reason", tally.withheld.len()),
        };
        Some(format!("{what}; if the change is wanted, begin again with --allow-changes={resource}"))
    })
}

fn waits(journal: &Journal) -> Vec<String> {
    let mut waits = Vec::new();
    if journal.settled.is_none() && !journal.claims.contains_key(&Subject::Compaction) {
        waits.push(format!(
            "{} must pass after the last rewrite: old revisions and continue tokens still need the former key",
            journal.intent.settle
        ));
    }
    let expiring = journal.verified.as_ref().map_or(0, |scan| scan.expiring);
    if expiring > 0 {
        waits.push(format!("{expiring} Event(s) under an older key must expire: run verify in an hour"));
    }
    let since = journal.clean_since;
    let is_old = journal.snapshot.is_none() || since.is_none() || journal.snapshot < since;
    if is_old && !journal.claims.contains_key(&Subject::Snapshot) {
        waits.push(format!(
            "a snapshot of etcd must be taken after {}: every older one needs the former key (then: rotate-keys \
             --resume --snapshot-taken TIME)",
            since.map_or_else(|| "the rewrite".into(), |since| since.to_string())
        ));
    }
    waits
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rotation::adoption::Adoption;
    use crate::rotation::cluster::resources::Resource;
    use crate::rotation::journal::intent::Intent;

    fn finished() -> Journal {
        let mut journal = Journal::new(Intent::default());
        let now = jiff::Timestamp::now();
        journal.adoption = Some(Adoption {
            evidence: Evidence::WriteProof,
            targets: std::collections::BTreeMap::new(),
            servers: Vec::new(),
            without_canary: Vec::new(),
            at: now,
            since: jiff::Timestamp::UNIX_EPOCH,
            ledger: crate::rotation::cluster::ledger::Ledger::default(),
            broken_by: Vec::new(),
            doubts: Vec::new(),
            not_shown: Vec::new(),
        });
        journal.verified = serde_json::from_value(serde_json::json!({
            "method": "etcd", "revision": 5, "lookedAt": 3, "stored": {}, "leftovers": 0, "expiring": 0, "named": {},
        }))
        .unwrap();
        (journal.verified_at, journal.clean_since) = (Some(now), Some(now));
        (journal.settled, journal.snapshot) = (Some(now), Some(now));
        journal.keys_seen = [kek("1"), kek("2")].into();
        journal.target_keys = [kek("2")].into();
        journal
    }

    fn kek(version: &str) -> KeyName {
        KeyName::Kek { lineage: "aa".into(), version: version.into() }
    }

    type Change = fn(&mut Journal);

    #[test]
    fn yes_needs_every_piece_of_evidence() {
        assert_eq!(weigh(&finished()).conclusion, Conclusion::MayBeDisabled);
        let weaker: [(Change, Conclusion); 13] = [
            (|journal| journal.settled = None, Conclusion::NothingLeftWait),
            (|journal| journal.snapshot = None, Conclusion::NothingLeftWait),
            (|journal| journal.snapshot = Some(jiff::Timestamp::UNIX_EPOCH), Conclusion::NothingLeftWait),
            (|journal| journal.adoption = None, Conclusion::Unproven),
            (|journal| journal.adoption.as_mut().unwrap().evidence = Evidence::Waited, Conclusion::Unproven),
            (|journal| journal.verified = None, Conclusion::Unproven),
            (|journal| journal.verified.as_mut().unwrap().leftovers = 1, Conclusion::Leftovers),
            (|journal| refuse(journal), Conclusion::Refused),
            (|journal| journal.keys_seen = [kek("2")].into(), Conclusion::NothingRotated),
            (|journal| journal.silent_keks = ["aa".into()].into(), Conclusion::Unproven),
            (|journal| hashed(journal), Conclusion::Unproven),
            (|journal| claim(journal, Claim::not_shown("x", "y")), Conclusion::Unproven),
            (|journal| claim(journal, Claim::not_yet("x", "y")), Conclusion::NothingLeftWait),
        ];
        for (change, expected) in weaker {
            let mut journal = finished();
            change(&mut journal);
            assert_eq!(weigh(&journal).conclusion, expected);
        }
    }

    #[test]
    fn a_guess_of_the_resources_is_no_proof_without_a_scan_of_etcd() {
        let mut journal = finished();
        journal.inferred = true;
        assert_eq!(weigh(&journal).conclusion, Conclusion::MayBeDisabled, "etcd shows all of them");
        journal.verified.as_mut().unwrap().method = Method::Reads;
        assert_eq!(weigh(&journal).conclusion, Conclusion::Unproven);
    }

    /// A former key of which nothing but the hash of the `key_id` is known.
    fn hashed(journal: &mut Journal) {
        journal.own_provider = Some("p".into());
        journal.keys_seen = [KeyName::KeyIdHash { provider: "p".into(), hash: "sha256:0".into() }].into();
    }

    fn claim(journal: &mut Journal, claim: Claim) {
        journal.claims.insert(Subject::Ledger, claim);
    }

    #[test]
    fn a_yes_names_what_may_be_disabled_and_what_must_stay() {
        let verdict = weigh(&finished());
        assert_eq!(verdict.may_be_disabled, ["KEK aa (in no configuration that was given) version 1"]);
        assert_eq!(verdict.must_stay, ["KEK aa (in no configuration that was given) version 2: in use"]);
        assert_eq!(verdict.holds.len(), 1);
    }

    #[test]
    fn a_first_encryption_names_no_key_to_disable_and_warns_of_snapshots_in_clear() {
        let mut journal = finished();
        journal.keys_seen = [KeyName::Clear, kek("2")].into();
        let verdict = weigh(&journal);
        assert_eq!(verdict.conclusion, Conclusion::MayBeDisabled);
        assert!(verdict.sentence.contains("no former key to disable"), "{}", verdict.sentence);
        assert!(verdict.sentence.contains("hold data in clear"), "{}", verdict.sentence);
        assert_eq!(verdict.may_be_disabled, Vec::<String>::new());
    }

    fn refuse(journal: &mut Journal) {
        let resource =
            Resource { group: String::new(), version: "v1".into(), plural: "secrets".into(), namespaced: true };
        journal.resource_mut(&resource, "p").tally.refused.insert("/x".into(), "422".into());
    }
}
