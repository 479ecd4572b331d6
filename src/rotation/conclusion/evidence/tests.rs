//! Every branch of a verdict, over every combination of what was found of one claim and of two.

use super::*;
use crate::etcd::Stored;
use crate::rotation::claim::{Claim, Witness};
use crate::rotation::cluster::resources::Resource;
use crate::rotation::cluster::writer::Writer;
use crate::rotation::journal::intent::Intent;
use crate::rotation::keys::group::Groups;
use crate::rotation::keys::name::KeyNames;
use crate::rotation::leftovers::snapshots::SnapshotKeys;

const QUESTIONS: [Question; 2] = [Question::MayBeDisabled, Question::IsAnythingLeft];

/// A rotation from version 1 to 2 of which everything is shown.
fn finished() -> Journal {
    let mut journal = Journal::new(Intent::default());
    journal.verified = serde_json::from_value(serde_json::json!({
        "method": "etcd", "revision": 5, "lookedAt": 3, "stored": {}, "leftovers": 0, "expiring": 0, "named": {},
    }))
    .unwrap();
    journal.verified_at = Some(jiff::Timestamp::now());
    journal.keys_seen = [kek("1"), kek("2")].into();
    journal.target_keys = [kek("2")].into();
    journal.own_provider = Some("p".into());
    journal.targets.plugins = [("p".into(), "sha256:target".into())].into();
    for subject in Subject::ALL {
        journal.claims.insert(subject, State::Shown.claim().unwrap());
    }
    journal
}

fn kek(version: &str) -> KeyName {
    KeyName::Kek { lineage: "aa".into(), version: version.into() }
}

/// What may have been found of a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Absent,
    Shown,
    NotYet,
    NotShown,
}

impl State {
    const ALL: [Self; 4] = [Self::Absent, Self::Shown, Self::NotYet, Self::NotShown];

    fn claim(self) -> Option<Claim> {
        match self {
            Self::Absent => None,
            Self::Shown => Some(Claim::shown(Witness::Etcd, "it was seen").blind_to(["a blind spot".into()])),
            Self::NotYet => Some(Claim::not_yet(Witness::Etcd, "it is not so", "wait")),
            Self::NotShown => Some(Claim::not_shown(Witness::Etcd, "it was not seen", "look")),
        }
    }

    /// What this one claim alone leads to; the answer of the question where it stands in nobody's way.
    fn expected(self, is_required: bool, answer: Conclusion) -> Conclusion {
        match self {
            Self::NotShown => Conclusion::Unproven,
            Self::Absent if is_required => Conclusion::Unproven,
            Self::NotYet => Conclusion::NothingLeftWait,
            Self::Shown | Self::Absent => answer,
        }
    }
}

fn answer(question: Question) -> Conclusion {
    match question {
        Question::MayBeDisabled => Conclusion::MayBeDisabled,
        Question::IsAnythingLeft => Conclusion::NothingLeft,
    }
}

#[test]
fn a_yes_needs_every_required_claim_whatever_was_found_of_two_others() {
    for question in QUESTIONS {
        for by_etcd in [true, false] {
            for with_keks in [true, false] {
                let asked = Asked { question, by_etcd, with_keks };
                for (first, second) in pairs() {
                    for (one, two) in State::ALL.iter().flat_map(|one| State::ALL.map(|two| (*one, two))) {
                        let mut journal = finished();
                        journal.verified.as_mut().unwrap().method = method(by_etcd);
                        journal.own_provider = with_keks.then(|| "p".into());
                        set(&mut journal, first, one);
                        set(&mut journal, second, two);
                        let each = [(first, one), (second, two)];
                        let each = each.map(|(of, state)| state.expected(of.is_required(asked), answer(question)));
                        // What is not proven weighs more than what only takes time.
                        let worst = [Conclusion::Unproven, Conclusion::NothingLeftWait, answer(question)];
                        let expected = worst.into_iter().find(|one| each.contains(one)).unwrap();
                        let conclusion = weigh(&journal, question).conclusion;
                        assert_eq!(conclusion, expected, "{asked:?} {first:?} {one:?} {second:?} {two:?}");
                    }
                }
            }
        }
    }
}

fn pairs() -> impl Iterator<Item = (Subject, Subject)> {
    let second = |first: Subject| Subject::ALL.into_iter().filter(move |second| *second > first);
    Subject::ALL.into_iter().flat_map(move |first| second(first).map(move |second| (first, second)))
}

fn method(by_etcd: bool) -> crate::rotation::leftovers::scan::Method {
    use crate::rotation::leftovers::scan::Method;
    if by_etcd { Method::Etcd } else { Method::Reads }
}

fn set(journal: &mut Journal, subject: Subject, state: State) {
    match state.claim() {
        Some(claim) => _ = journal.claims.insert(subject, claim),
        None => _ = journal.claims.remove(&subject),
    }
}

#[test]
fn a_rotation_requires_every_subject_and_a_search_those_that_it_can_know() {
    let required = |question, by_etcd, with_keks| {
        let asked = Asked { question, by_etcd, with_keks };
        Subject::ALL.into_iter().filter(|subject| subject.is_required(asked)).count()
    };
    assert_eq!(required(Question::MayBeDisabled, true, true), Subject::ALL.len());
    assert_eq!(required(Question::MayBeDisabled, false, false), Subject::ALL.len() - 3);
    assert_eq!(required(Question::IsAnythingLeft, true, true), 6);
    assert_eq!(required(Question::IsAnythingLeft, false, false), 4);
}

type Change = fn(&mut Journal);

#[test]
fn what_was_found_weighs_more_than_what_was_shown() {
    let cases: [(Change, Conclusion, Conclusion); 8] = [
        (|_| {}, Conclusion::MayBeDisabled, Conclusion::NothingLeft),
        (|journal| journal.verified.as_mut().unwrap().leftovers = 1, Conclusion::Leftovers, Conclusion::Leftovers),
        (|journal| expiring(journal), Conclusion::NothingLeftWait, Conclusion::Leftovers),
        (|journal| refuse(journal), Conclusion::Refused, Conclusion::Refused),
        (|journal| unreadable(journal), Conclusion::Leftovers, Conclusion::Leftovers),
        (|journal| journal.keys_seen = [kek("2")].into(), Conclusion::NothingRotated, Conclusion::NothingLeft),
        (|journal| journal.silent_keks = ["aa".into()].into(), Conclusion::Unproven, Conclusion::Unproven),
        (|journal| hashed(journal), Conclusion::Unproven, Conclusion::Unproven),
    ];
    for (number, (change, rotation, search)) in cases.into_iter().enumerate() {
        let mut journal = finished();
        change(&mut journal);
        assert_eq!(weigh(&journal, Question::MayBeDisabled).conclusion, rotation, "case {number}");
        assert_eq!(weigh(&journal, Question::IsAnythingLeft).conclusion, search, "case {number}");
    }
}

fn expiring(journal: &mut Journal) {
    let scan = journal.verified.as_mut().unwrap();
    (scan.leftovers, scan.expiring) = (2, 2);
}

/// A former key of which nothing but the hash of the `key_id` is known.
fn hashed(journal: &mut Journal) {
    journal.keys_seen = [KeyName::KeyIdHash { provider: "p".into(), hash: "sha256:0".into() }].into();
}

fn refuse(journal: &mut Journal) {
    journal.resource_mut(&secrets(), &Writer::Plugin("p".into())).tally.refused.insert("/x".into(), "422".into());
    journal.verified.as_mut().unwrap().leftovers = 1;
}

fn unreadable(journal: &mut Journal) {
    journal.resource_mut(&secrets(), &Writer::Plugin("p".into())).tally.undecryptable.insert("/x".into(), "500".into());
}

fn secrets() -> Resource {
    Resource { group: String::new(), version: "v1".into(), plural: "secrets".into(), namespaced: true }
}

#[test]
fn every_verdict_says_what_was_not_looked_at() {
    for question in QUESTIONS {
        for state in State::ALL {
            let mut journal = finished();
            set(&mut journal, Subject::Ledger, state);
            assert!(!weigh(&journal, question).not_looked_at.is_empty(), "{question:?} {state:?}");
        }
    }
}

#[test]
fn a_yes_names_what_may_be_disabled_and_what_must_stay() {
    let verdict = weigh(&finished(), Question::MayBeDisabled);
    assert_eq!(verdict.may_be_disabled, ["KEK aa (not in the given configuration) version 1"]);
    assert_eq!(verdict.must_stay, ["KEK aa (not in the given configuration) version 2: in use"]);
    assert_eq!(verdict.holds.len(), 1);
}

/// A backup with one current and one superseded value, each under the version that is named.
fn backup(file: &str, current: &str, older: &str) -> SnapshotKeys {
    let groups = |version: &str| {
        let mut groups = Groups::default();
        groups.add_key(kek(version), 1, 0);
        groups
    };
    let (current, older) = (groups(current), groups(older));
    SnapshotKeys { file: file.into(), revision: 7, sha256: None, current, older, is_of_this_cluster: true }
}

#[test]
fn a_key_may_be_destroyed_only_if_backups_were_named_and_none_of_them_holds_anything_under_it() {
    let name = "KEK aa (not in the given configuration) version 1";
    let weighed = |backups: Vec<SnapshotKeys>| {
        let mut journal = finished();
        journal.backups = backups;
        weigh(&journal, Question::MayBeDisabled)
    };
    let none = weighed(Vec::new());
    assert_eq!(none.may_be_destroyed, [""; 0]);
    assert!(none.sentence.contains("keep it (not destroyed) as long as"), "{}", none.sentence);
    let free = weighed(vec![backup("a.db", "2", "2"), backup("b.db", "2", "3")]);
    assert_eq!(free.may_be_destroyed, [name]);
    assert!(free.sentence.contains("This speaks of these files alone"), "{}", free.sentence);
    assert!(free.evidence.iter().any(|line| line.contains("b.db") && line.contains("needs no former key")));
    for (current, older) in [("1", "2"), ("2", "1")] {
        let needed = weighed(vec![backup("a.db", "2", "2"), backup("b.db", current, older)]);
        assert_eq!((needed.may_be_disabled, needed.may_be_destroyed), (vec![name.to_owned()], Vec::new()));
        assert!(needed.sentence.contains("keep it (not destroyed) for b.db, or rewrap"), "{}", needed.sentence);
    }
    let mut foreign = finished();
    foreign.backups = vec![backup("a.db", "2", "2")];
    foreign.backups[0].is_of_this_cluster = false;
    foreign.backups_gone = ["b.db".into()].into();
    let foreign = weigh(&foreign, Question::MayBeDisabled);
    assert_eq!(foreign.may_be_destroyed, [""; 0]);
    assert!(foreign.sentence.contains("keep it (not destroyed) as long as"), "{}", foreign.sentence);
    for said in ["whether a.db is of this cluster", "backup b.db, which was named before"] {
        assert!(foreign.not_looked_at.iter().any(|line| line.contains(said)), "{:?}", foreign.not_looked_at);
    }
    let mut refused = finished();
    refused.backups = vec![backup("a.db", "2", "2")];
    refuse(&mut refused);
    assert_eq!(weigh(&refused, Question::MayBeDisabled).may_be_destroyed, [""; 0]);
}

#[test]
fn a_new_epoch_takes_a_generation_out_of_use_and_no_version() {
    let mut journal = finished();
    let former = KeyName::Generation { provider: "p".into(), key_id: "ke1-former".into() };
    journal.keys_seen = [former, kek("2")].into();
    let verdict = weigh(&journal, Question::MayBeDisabled);
    assert_eq!(verdict.conclusion, Conclusion::MayBeDisabled);
    assert!(verdict.sentence.contains("ke1-former"), "{}", verdict.sentence);
    assert!(verdict.sentence.contains("no KEK version went out of use"), "{}", verdict.sentence);
    assert_eq!(verdict.may_be_disabled, Vec::<String>::new());
}

#[test]
fn a_first_encryption_names_no_key_to_disable_and_warns_of_snapshots_in_clear() {
    let mut journal = finished();
    journal.keys_seen = [KeyName::Clear, kek("2")].into();
    let verdict = weigh(&journal, Question::MayBeDisabled);
    assert_eq!(verdict.conclusion, Conclusion::MayBeDisabled);
    assert!(verdict.sentence.contains("no former key to disable"), "{}", verdict.sentence);
    assert!(verdict.sentence.contains("hold data in clear"), "{}", verdict.sentence);
    assert_eq!(verdict.may_be_disabled, Vec::<String>::new());
}

#[test]
fn an_object_that_is_refused_and_current_already_is_no_leftover() {
    let mut journal = finished();
    refuse(&mut journal);
    journal.verified.as_mut().unwrap().leftovers = 0;
    let verdict = weigh(&journal, Question::MayBeDisabled);
    assert_eq!((verdict.conclusion, verdict.missing), (Conclusion::MayBeDisabled, Vec::<String>::new()));
}

/// A rotation after which kube-envelope writes what another plugin wrote before under the same provider.
fn taken_over(same_key: bool) -> Journal {
    let mut journal = finished();
    let lineage = |home: &str| crate::kek::Lineage::derive("t", &[home]);
    journal.names.insert(lineage("kek"), "primary");
    journal.names.insert_takeover("old", lineage(if same_key { "kek" } else { "other" }));
    journal.keys_seen = [KeyName::KeyId { provider: "p".into(), key_id: "alias/k8s".into() }].into();
    journal
}

#[test]
fn a_yes_after_a_takeover_says_that_the_entry_may_go_and_whose_key_it_is() {
    let verdict = weigh(&taken_over(false), Question::MayBeDisabled);
    assert_eq!(verdict.conclusion, Conclusion::MayBeDisabled);
    assert_eq!(verdict.may_be_disabled, ["key_id alias/k8s of provider p"]);
    for said in ["takeover entry old: it may be removed", "the same key under another name"] {
        assert!(verdict.sentence.contains(said), "{}", verdict.sentence);
    }
    let nothing_left = weigh(&taken_over(false), Question::IsAnythingLeft);
    assert!(nothing_left.sentence.contains("takeover entry old: it may be removed"), "{}", nothing_left.sentence);
}

#[test]
fn a_key_that_kube_envelope_goes_on_with_is_not_called_one_to_disable() {
    let verdict = weigh(&taken_over(true), Question::MayBeDisabled);
    assert_eq!(verdict.conclusion, Conclusion::MayBeDisabled);
    assert_eq!(verdict.may_be_disabled, [""; 0]);
    assert!(verdict.sentence.contains("is the key of KEK primary, which must stay"), "{}", verdict.sentence);
    assert!(!verdict.sentence.contains("may be disabled"), "{}", verdict.sentence);
    let stays = |text: &String| text.contains("alias/k8s") && text.contains("the key of KEK primary");
    assert!(verdict.must_stay.iter().any(stays), "{:?}", verdict.must_stay);
}

#[test]
fn a_takeover_entry_stays_while_a_value_needs_it_and_no_yes_is_given_without_it() {
    let mut needed = taken_over(false);
    let stored = Stored::KmsV2 { provider: "p".into(), key_id: "alias/k8s".into(), keks: Vec::new() };
    needed.verified.as_mut().unwrap().groups.count(&stored, false);
    let verdict = weigh(&needed, Question::IsAnythingLeft);
    assert!(!verdict.sentence.contains("may be removed"), "{}", verdict.sentence);

    let mut unknown = taken_over(false);
    unknown.names = KeyNames::default();
    let verdict = weigh(&unknown, Question::MayBeDisabled);
    assert_eq!(verdict.conclusion, Conclusion::Unproven, "{}", verdict.sentence);
    assert!(verdict.missing.iter().any(|text| text.contains("with the entry under takeover")), "{:?}", verdict.missing);
}

#[test]
fn a_former_key_that_is_in_use_by_another_name_of_its_kek_must_stay() {
    let mut journal = finished();
    let named = |lineage: &str| KeyName::Kek { lineage: lineage.into(), version: "1234/m".into() };
    journal.keys_seen = [named("old"), named("new"), kek("1")].into();
    journal.target_keys = [named("new")].into();
    let verdict = weigh(&journal, Question::MayBeDisabled);
    assert_eq!(verdict.may_be_disabled, [journal.names.show(&kek("1"))]);
    let stays = verdict.must_stay.iter().any(|line| line.contains("by another name, which is in use"));
    assert!(stays, "{:?}", verdict.must_stay);

    journal.keys_seen = [named("old"), named("new")].into();
    assert_eq!(weigh(&journal, Question::MayBeDisabled).conclusion, Conclusion::NothingRotated);
}
