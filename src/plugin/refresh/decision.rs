//! What follows from the KEKs' answers. A pure function: every case is a test.

use crate::envelope::WrappedDekSet;
use crate::kek::KekVersion;
use crate::kek::set::Answer;
use crate::key_id::KeyId;

/// What the loop does next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The current generation is the one to use.
    Keep { trouble: Option<String> },
    /// Another generation is due, and every KEK answers.
    Adopt,
    /// No generation can be used or made.
    Wait { reason: String },
}

/// Compares the answers with the current generation.
///
/// A KEK that does not answer is taken to be at the version that the current generation knows, so that a restart
/// with one KEK away goes on; a new generation needs all of them.
pub(super) fn decide(
    current: Option<&WrappedDekSet>,
    epoch: u64,
    answers: &[Answer<KekVersion>],
    adopted: &[KeyId],
) -> Step {
    let silent: Vec<String> = answers
        .iter()
        .filter_map(|answer| Some(format!("KEK {}: {}", answer.name, answer.result.as_ref().err()?.chain())))
        .collect();
    let expected: Option<Vec<KekVersion>> = answers
        .iter()
        .map(|answer| match &answer.result {
            Ok(version) => Some(version.clone()),
            Err(_) => current?.versions().find(|version| version.lineage == answer.lineage).cloned(),
        })
        .collect();
    let trouble = (!silent.is_empty()).then(|| silent.join("; "));
    let Some(expected) = expected else {
        let reason = trouble.unwrap_or_default();
        return match current {
            Some(_) => Step::Keep { trouble: Some(format!("a new generation waits for {reason}")) },
            None => Step::Wait { reason: format!("the first generation waits for {reason}") },
        };
    };
    let target = KeyId::derive(epoch, &expected);
    match current {
        Some(current) if current.key_id() == target => Step::Keep { trouble },
        Some(_) if trouble.is_some() => {
            Step::Keep { trouble: trouble.map(|reason| format!("a new generation waits for {reason}")) }
        }
        Some(_) if adopted.contains(&target) => Step::Keep { trouble: Some(went_back(&target)) },
        Some(_) | None => Step::Adopt,
    }
}

/// Why a generation of the past is not taken up again.
pub(super) fn went_back(key_id: &KeyId) -> String {
    format!(
        "the KEKs went back to an earlier generation ({key_id}), which is never taken up again; \
         make another version active, or raise epoch on all nodes"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
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
        WrappedDekSet { cluster: "c".into(), epoch: 1, wraps: wraps.collect() }
    }

    #[test]
    fn the_same_versions_keep_the_generation() {
        let current = set(&[("a", "1"), ("b", "1")]);
        let step = decide(Some(&current), 1, &[answered("b", "1"), answered("a", "1")], &[current.key_id()]);
        assert_eq!(step, Step::Keep { trouble: None });
    }

    #[test]
    fn a_new_version_a_new_kek_and_a_new_epoch_are_adopted() {
        let current = set(&[("a", "1")]);
        let adopted = [current.key_id()];
        assert_eq!(decide(Some(&current), 1, &[answered("a", "2")], &adopted), Step::Adopt);
        assert_eq!(decide(Some(&current), 1, &[answered("a", "1"), answered("b", "1")], &adopted), Step::Adopt);
        assert_eq!(decide(Some(&current), 2, &[answered("a", "1")], &adopted), Step::Adopt);
        assert_eq!(decide(None, 1, &[answered("a", "1")], &[]), Step::Adopt);
    }

    #[test]
    fn one_silent_kek_keeps_the_generation_and_holds_back_a_new_one() {
        let current = set(&[("a", "1"), ("b", "1")]);
        let keep = |answers: &[_]| matches!(decide(Some(&current), 1, answers, &[]), Step::Keep { trouble: Some(_) });
        assert!(keep(&[answered("a", "1"), silent("b")]));
        assert!(keep(&[answered("a", "2"), silent("b")]));
        assert!(keep(&[silent("a"), silent("b")]));
        assert!(keep(&[answered("a", "1"), answered("b", "1"), silent("new")]));
    }

    #[test]
    fn a_first_generation_waits_for_every_kek_and_names_the_missing_one() {
        let Step::Wait { reason } = decide(None, 1, &[answered("a", "1"), silent("b")], &[]) else { panic!() };
        assert!(reason.contains("KEK b"), "{reason}");
    }

    #[test]
    fn an_earlier_generation_is_not_followed_unless_the_epoch_is_raised() {
        let (old, current) = (set(&[("a", "1")]), set(&[("a", "2")]));
        let adopted = [old.key_id(), current.key_id()];
        let Step::Keep { trouble: Some(reason) } = decide(Some(&current), 1, &[answered("a", "1")], &adopted) else {
            panic!()
        };
        assert!(reason.contains("raise epoch"), "{reason}");
        assert_eq!(decide(Some(&current), 2, &[answered("a", "1")], &adopted), Step::Adopt);
    }
}
