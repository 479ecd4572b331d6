//! Weighs what a rotation did and found: may the former key be disabled? Words, never deeds.

use super::adoption::Evidence;
use super::journal::Journal;
use super::verdict::{Conclusion, Verdict};
use super::verify::{Method, Scan};

/// Concludes from everything that a rotation did and found.
pub fn weigh(journal: &Journal) -> Verdict {
    let (mut evidence, mut unproven) = (Vec::new(), Vec::new());
    adoption(journal, &mut evidence, &mut unproven);
    search(journal, &mut evidence, &mut unproven);
    let bad = objects(journal);
    let (refused, undecryptable) = (journal.refused().len(), bad.len());
    let left = journal.verified.as_ref().map_or(0, |scan| scan.leftovers - scan.expiring);
    let mut waits = waits(journal);
    let (conclusion, sentence) = if refused > 0 {
        let text = format!("No: {refused} object(s) were refused and are still stored under an older key.");
        (Conclusion::Refused, text)
    } else if left > 0 || undecryptable > 0 {
        let text = format!(
            "No: {} is still stored under an older key. Disabling that key makes the next restart of an API \
             server fail.",
            if left > 0 { format!("{left} value(s)") } else { format!("{undecryptable} unreadable object(s)") }
        );
        (Conclusion::Leftovers, text)
    } else if !unproven.is_empty() {
        let text = "Not proven: everything was rewritten, and it could not be shown that nothing is left. Keep \
                    the former version.";
        (Conclusion::Unproven, text.to_owned())
    } else if !waits.is_empty() {
        let text = "Not yet: nothing is stored under an older key in live data. Keep the former version for what \
                    is listed.";
        (Conclusion::NothingLeftWait, text.to_owned())
    } else {
        let text = "Yes: nothing is stored under an older key. The former version may be disabled; keep it (not \
                    destroyed) as long as a snapshot from before must stay restorable.";
        (Conclusion::MayBeDisabled, text.to_owned())
    };
    let mut missing: Vec<String> =
        journal.refused().iter().map(|path| format!("rewrite {path}: it was refused")).collect();
    missing.extend(bad);
    missing.extend(unproven);
    missing.append(&mut waits);
    Verdict { conclusion, sentence, evidence, missing }
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
        evidence
            .push(format!("{altered} object(s) were changed by a mutating webhook, to which a rewrite is an update"));
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

/// One sentence about a search.
pub fn describe(scan: &Scan) -> String {
    match scan.method {
        Method::Etcd => format!(
            "{} value(s) in etcd at revision {} were looked at by key_id: {} leftover(s)",
            scan.looked_at,
            scan.revision.unwrap_or(0),
            scan.leftovers
        ),
        Method::Reads => format!(
            "{} object(s) were read from etcd through one API server, whose metrics count {} under another key",
            scan.looked_at, scan.leftovers
        ),
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
            bad.push(format!(
                "{} cannot be listed, since one of them cannot be read: {why} (Kubernetes can delete such an object: \
                 AllowUnsafeMalformedObjectDeletion)",
                progress.resource
            ));
        }
    }
    bad
}

fn waits(journal: &Journal) -> Vec<String> {
    let mut waits = Vec::new();
    if journal.settled.is_none() {
        waits.push(format!(
            "{} s must pass after the last rewrite: old revisions and continue tokens still need the former key",
            journal.settle_seconds
        ));
    }
    let expiring = journal.verified.as_ref().map_or(0, |scan| scan.expiring);
    if expiring > 0 {
        waits.push(format!("{expiring} Event(s) under an older key must expire: run verify in an hour"));
    }
    let since = journal.clean_since;
    if journal.snapshot.is_none() || since.is_none() || journal.snapshot < since {
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
    use crate::rotation::resources::Resource;

    fn finished() -> Journal {
        let mut journal = Journal::new(600);
        let now = jiff::Timestamp::now();
        journal.adoption = Some(Adoption {
            evidence: Evidence::WriteProof,
            targets: std::collections::BTreeMap::new(),
            servers: Vec::new(),
            without_canary: Vec::new(),
            at: now,
            since: jiff::Timestamp::UNIX_EPOCH,
            ledger: crate::rotation::ledger::Ledger::default(),
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
        journal
    }

    type Change = fn(&mut Journal);

    #[test]
    fn yes_needs_every_piece_of_evidence() {
        assert_eq!(weigh(&finished()).conclusion, Conclusion::MayBeDisabled);
        let weaker: [(Change, Conclusion); 8] = [
            (|journal| journal.settled = None, Conclusion::NothingLeftWait),
            (|journal| journal.snapshot = None, Conclusion::NothingLeftWait),
            (|journal| journal.snapshot = Some(jiff::Timestamp::UNIX_EPOCH), Conclusion::NothingLeftWait),
            (|journal| journal.adoption = None, Conclusion::Unproven),
            (|journal| journal.adoption.as_mut().unwrap().evidence = Evidence::Waited, Conclusion::Unproven),
            (|journal| journal.verified = None, Conclusion::Unproven),
            (|journal| journal.verified.as_mut().unwrap().leftovers = 1, Conclusion::Leftovers),
            (|journal| refuse(journal), Conclusion::Refused),
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

    fn refuse(journal: &mut Journal) {
        let resource =
            Resource { group: String::new(), version: "v1".into(), plural: "secrets".into(), namespaced: true };
        journal.resource_mut(&resource, "p").tally.refused.insert("/x".into(), "422".into());
    }
}
