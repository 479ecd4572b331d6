//! What follows from the KEKs' answers. A pure function: every case is a test.

use crate::dek::history::History;
use crate::envelope::WrappedDekSet;
use crate::kek::KekVersion;
use crate::kek::set::Answer;
use crate::key_id::KeyId;

/// What the loop does next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The current generation is the one to use.
    Keep {
        /// Why it is not followed by another one, where that is due.
        trouble: Option<String>,
    },
    /// Another generation is due, of these versions, and every KEK answers.
    Adopt(Vec<KekVersion>),
    /// No generation can be used or made.
    Wait {
        /// What is missing.
        reason: String,
    },
}

/// What the step is decided from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known<'a> {
    /// The generation that is served, or that will be once a KEK unwraps it.
    pub current: Option<&'a WrappedDekSet>,
    pub epoch: u64,
    /// Which versions the KEKs call active.
    pub answers: &'a [Answer<KekVersion>],
    pub history: &'a History,
    /// Why nothing new may be made under this configuration, where it may not.
    pub objection: Option<&'a str>,
}

/// Compares the answers with the current generation.
///
/// A KEK that does not answer is taken to be at the version that the current generation knows, so that a restart
/// with one KEK away goes on; a new generation needs all of them.
pub(super) fn decide(known: Known<'_>) -> Step {
    let Known { current, epoch, answers, history, objection } = known;
    let silent: Vec<String> = answers
        .iter()
        .filter_map(|answer| Some(format!("KEK {}: {}", answer.name, answer.result.as_ref().err()?.chain())))
        .collect();
    let silent = (!silent.is_empty()).then(|| silent.join("; "));
    // Before everything else: while a kept DEK has no KEK, a new generation would hide that data are about to be lost.
    if let Some(objection) = objection {
        let reason = [Some(objection.to_owned()), silent].into_iter().flatten().collect::<Vec<_>>().join("; ");
        return stay(current, reason);
    }
    let expected: Option<Vec<KekVersion>> = answers
        .iter()
        .map(|answer| match &answer.result {
            Ok(version) => Some(version.clone()),
            Err(_) => current?.versions().find(|version| version.lineage == answer.lineage).cloned(),
        })
        .collect();
    let is_current =
        |expected: &[KekVersion]| current.is_some_and(|current| current.key_id() == KeyId::derive(epoch, expected));
    match (expected, silent) {
        (Some(expected), trouble) if is_current(&expected) => Step::Keep { trouble },
        (_, Some(silent)) if current.is_some() => stay(current, format!("a new generation waits for {silent}")),
        (_, Some(silent)) => Step::Wait { reason: format!("the first generation waits for {silent}") },
        // A key store that was switched back would give a former key_id again, which the KMS v2 contract forbids.
        (Some(expected), None) => match history.goes_back(epoch, &expected) {
            Some(back) => stay(current, went_back(back, answers, history, epoch)),
            None => Step::Adopt(expected),
        },
        (None, None) => Step::Wait { reason: "no KEK is configured".into() },
    }
}

fn stay(current: Option<&WrappedDekSet>, reason: String) -> Step {
    match current {
        Some(_) => Step::Keep { trouble: Some(reason) },
        None => Step::Wait { reason },
    }
}

/// Why a former version is not used again.
pub(super) fn went_back(back: &KekVersion, answers: &[Answer<KekVersion>], history: &History, epoch: u64) -> String {
    let name = answers.iter().find(|answer| answer.lineage == back.lineage).map_or("?", |answer| &answer.name);
    let newest = history.newest(epoch, back.lineage).map_or("?", |newest| &newest.version);
    format!(
        "KEK {name} went back to version {}, older than {newest}, which is never used again; make a newer version \
         active, or raise epoch on all nodes",
        back.version
    )
}

/// Why nothing new may be made under this epoch: keys that were taken out of use would be used again.
pub(super) fn lowered(epoch: u64, history: &History) -> Option<String> {
    let highest = history.epoch();
    (epoch < highest).then(|| {
        format!(
            "epoch is {epoch}, and this node has encrypted under epoch {highest}: an older epoch would bring back keys that \
             were taken out of use; set epoch to {highest} or more, the same on all nodes"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::secret::DekId;
    use crate::kek::{KekError, Lineage, WrappedDek};

    fn version(home: &str, version: &str) -> KekVersion {
        KekVersion { lineage: Lineage::derive("test", &[home]), version: version.into() }
    }

    fn answered(home: &str, text: &str) -> Answer<KekVersion> {
        let version = version(home, text);
        Answer { name: home.into(), lineage: version.lineage, result: Ok(version) }
    }

    fn silent(home: &str) -> Answer<KekVersion> {
        let lineage = Lineage::derive("test", &[home]);
        Answer { name: home.into(), lineage, result: Err(KekError::unavailable("away")) }
    }

    fn set(versions: &[(&str, &str)]) -> WrappedDekSet {
        let wraps = versions.iter().map(|(home, text)| WrappedDek { version: version(home, text), blob: vec![] });
        WrappedDekSet { cluster: "c".parse().unwrap(), epoch: 1, wraps: wraps.collect() }
    }

    /// The step after these generations were adopted one after the other, the last one being current.
    fn after(adopted: &[&[(&str, &str)]], epoch: u64, answers: &[Answer<KekVersion>]) -> Step {
        let mut history = History::default();
        for versions in adopted {
            history.adopted(DekId([1; 16]), 1, set(versions).versions());
        }
        let current = adopted.last().map(|versions| set(versions));
        decide(Known { current: current.as_ref(), epoch, answers, history: &history, objection: None })
    }

    fn adopts(step: &Step) -> bool {
        matches!(step, Step::Adopt(_))
    }

    #[test]
    fn the_same_versions_keep_the_generation() {
        let step = after(&[&[("a", "1"), ("b", "1")]], 1, &[answered("b", "1"), answered("a", "1")]);
        assert_eq!(step, Step::Keep { trouble: None });
    }

    #[test]
    fn a_new_version_a_new_kek_and_a_new_epoch_are_adopted() {
        let current: &[&[_]] = &[&[("a", "1")]];
        assert_eq!(after(current, 1, &[answered("a", "2")]), Step::Adopt(vec![version("a", "2")]));
        assert!(adopts(&after(current, 1, &[answered("a", "1"), answered("b", "1")])));
        assert!(adopts(&after(current, 2, &[answered("a", "1")])));
        assert!(adopts(&after(&[], 1, &[answered("a", "1")])));
    }

    #[test]
    fn one_silent_kek_keeps_the_generation_and_holds_back_a_new_one() {
        let keep =
            |answers: &[_]| matches!(after(&[&[("a", "1"), ("b", "1")]], 1, answers), Step::Keep { trouble: Some(_) });
        assert!(keep(&[answered("a", "1"), silent("b")]));
        assert!(keep(&[answered("a", "2"), silent("b")]));
        assert!(keep(&[silent("a"), silent("b")]));
        assert!(keep(&[answered("a", "1"), answered("b", "1"), silent("new")]));
    }

    #[test]
    fn a_first_generation_waits_for_every_kek_and_names_the_missing_one() {
        let Step::Wait { reason } = after(&[], 1, &[answered("a", "1"), silent("b")]) else { panic!() };
        assert!(reason.contains("KEK b"), "{reason}");
    }

    #[test]
    fn a_kek_that_went_back_is_not_followed_whatever_the_others_do_unless_the_epoch_is_raised() {
        let adopted: &[&[_]] = &[&[("a", "1"), ("b", "1")], &[("a", "2"), ("b", "1")]];
        for other in ["1", "2"] {
            let answers = [answered("a", "1"), answered("b", other)];
            let Step::Keep { trouble: Some(reason) } = after(adopted, 1, &answers) else { panic!("b is at {other}") };
            assert!(reason.contains("KEK a went back to version 1") && reason.contains("raise epoch"), "{reason}");
            assert!(adopts(&after(adopted, 2, &answers)));
        }
    }

    #[test]
    fn a_list_of_keks_that_was_changed_and_changed_back_is_followed() {
        let adopted: &[&[_]] = &[&[("a", "1")], &[("b", "1")]];
        assert!(adopts(&after(adopted, 1, &[answered("a", "1")])));
        assert!(adopts(&after(&[&[("a", "1")], &[("a", "1"), ("b", "1")]], 1, &[answered("a", "1")])));
    }

    #[test]
    fn an_epoch_is_never_lowered_below_the_highest_that_this_node_adopted() {
        let mut history = History::default();
        assert_eq!(lowered(1, &history), None);
        history.adopted(DekId([1; 16]), 3, set(&[("a", "1")]).versions());
        history.adopted(DekId([2; 16]), 2, set(&[("a", "1")]).versions());
        assert!(lowered(2, &history).is_some_and(|reason| reason.contains("set epoch to 3 or more")));
        assert_eq!((lowered(3, &history), lowered(4, &history)), (None, None));
    }

    #[test]
    fn nothing_new_is_made_over_an_objection() {
        let (current, history, answers) = (set(&[("a", "1")]), History::default(), [answered("a", "2")]);
        let known =
            Known { current: Some(&current), epoch: 1, answers: &answers, history: &history, objection: Some("no") };
        assert_eq!(decide(known), Step::Keep { trouble: Some("no".into()) });
        assert_eq!(decide(Known { current: None, ..known }), Step::Wait { reason: "no".into() });
    }
}
