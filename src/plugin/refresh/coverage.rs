//! What the kept DEKs need of a configuration, and which stored generation may be gone on with. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::crypto::secret::DekId;
use crate::dek::history::History;
use crate::envelope::WrappedDekSet;
use crate::kek::set::{KekSet, Unidentified};
use crate::kek::{ClusterName, Lineage};

/// A DEK that is kept.
pub(super) type Kept = (DekId, Arc<WrappedDekSet>);

/// The DEKs that none of the configured KEKs has wrapped, by the KEKs that have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Uncovered(BTreeMap<BTreeSet<Lineage>, usize>);

impl Uncovered {
    /// What of `kept` the KEKs `configured` cannot unwrap.
    pub fn of(kept: &[Kept], configured: &BTreeSet<Lineage>) -> Self {
        let mut uncovered = BTreeMap::new();
        for (_, wrapped) in kept {
            let lineages: BTreeSet<_> = wrapped.lineages().collect();
            // Any one of the KEKs that wrapped it is enough.
            if lineages.is_disjoint(configured) {
                let count: &mut usize = uncovered.entry(lineages).or_default();
                *count = count.saturating_add(1);
            }
        }
        Self(uncovered)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Which KEK to put where. `former` is how the configuration called the KEKs.
    pub fn advice(
        &self,
        former: &dyn Fn(Lineage) -> Option<String>,
        keks: &KekSet,
        unidentified: &Unidentified,
    ) -> String {
        let of = Advice { former, keks, unidentified };
        self.0.iter().map(|(lineages, count)| of.about(lineages, *count)).collect::<Vec<_>>().join(". ")
    }
}

/// What an advice depends on.
struct Advice<'a> {
    former: &'a dyn Fn(Lineage) -> Option<String>,
    keks: &'a KekSet,
    unidentified: &'a Unidentified,
}

impl Advice<'_> {
    fn about(&self, lineages: &BTreeSet<Lineage>, count: usize) -> String {
        let offline = self.keks.offline().find(|(_, lineage, _)| lineages.contains(lineage));
        let others = lineages.iter().filter(|lineage| offline.is_none_or(|(_, of, _)| of != **lineage));
        let names = others.map(|lineage| match (self.former)(*lineage) {
            Some(name) => format!("KEK {name} (lineage {lineage})"),
            None => format!("the KEK of lineage {lineage}"),
        });
        let names = names.collect::<Vec<_>>().join(" or ");
        let unread = self.unread(lineages);
        let Some((break_glass, lineage, _)) = offline else {
            if let Some(unread) = unread {
                return format!("{count} kept DEKs need {names}, and {unread}");
            }
            return format!(
                "{count} kept DEKs need {names}, which is not configured: {}; once rotate-keys has named it in a Yes, \
                 list its lineage under `forget`",
                self.missing(lineages)
            );
        };
        // What else has wrapped it is not configured, and perhaps gone for good.
        let what = match (names.is_empty(), unread) {
            (true, _) => format!("{count} kept DEKs need the private half of KEK {break_glass}: "),
            (false, Some(unread)) => {
                format!("{count} kept DEKs need {names}, and {unread}; or the private half of KEK {break_glass}: ")
            }
            (false, None) => format!(
                "{count} kept DEKs need {names}, which is not configured, or the private half of KEK {break_glass}: put \
                 the former under `retired`, or "
            ),
        };
        format!(
            "{what}start with `serve --break-glass FILE` and run rotate-keys; once it has said Yes, list the lineages under \
             `forget` ({lineage} if no other one is left)"
        )
    }

    /// A KEK that cannot be opened has no identity yet: it may be the one that is needed, and only what it says tells what
    /// to do. Of several the one of the same name.
    fn unread(&self, lineages: &BTreeSet<Lineage>) -> Option<String> {
        let same = lineages.iter().find_map(|lineage| self.unidentified.get_key_value(&(self.former)(*lineage)?));
        // A KEK that is there under its former name is another key, and no other one is that one.
        let (or, (name, words)) = match same {
            Some(same) => ("", same),
            None if self.replaced(lineages).is_some() => return None,
            None => (
                "; if it is another key, put the one that is needed under `retired`",
                self.unidentified.first_key_value()?,
            ),
        };
        Some(format!("KEK {name}, of which it is not known which key it is, cannot be opened: {words}{or}"))
    }

    fn missing(&self, lineages: &BTreeSet<Lineage>) -> String {
        match self.replaced(lineages) {
            Some(name) => format!(
                "KEK {name} is a different key than before; restore the former one (a keyring file: from another node or \
                 from its backup), or list it under `retired` with another name"
            ),
            None => "put it under `retired`".into(),
        }
    }

    fn replaced(&self, lineages: &BTreeSet<Lineage>) -> Option<String> {
        lineages.iter().find_map(|lineage| {
            let name = (self.former)(*lineage)?;
            self.keks.all().any(|(now, _, _)| now == name).then_some(name)
        })
    }
}

/// What the choice of a stored generation depends on.
pub(super) struct Choice<'a> {
    pub history: &'a History,
    pub keks: &'a KekSet,
    pub cluster: &'a ClusterName,
    /// DEKs that no KEK will unwrap again.
    pub lost: &'a BTreeSet<DekId>,
}

/// The newest generation of this node that a configured KEK can unwrap.
///
/// None that would make a KEK or the epoch older: what `rotate-keys` proved to be unused must stay so. For the same
/// reason an older one takes the place of one that is lost for good only where a KEK that wraps has wrapped it.
pub(super) fn stored_generation(
    choice: &Choice<'_>,
    find: impl Fn(DekId) -> Option<Arc<WrappedDekSet>>,
) -> Option<Kept> {
    let configured = choice.keks.lineages();
    let active: BTreeSet<_> = choice.keks.active().iter().map(|kek| kek.lineage()).collect();
    let active = &active & &configured;
    let mut own = choice.history.deks().filter_map(|id| Some((id, find(id)?))).filter(|(_, wrapped)| {
        // What was made for another name of the cluster would be refused by every other node.
        wrapped.cluster == *choice.cluster
            && wrapped.lineages().any(|lineage| configured.contains(&lineage))
            && wrapped.epoch >= choice.history.epoch()
            && choice.history.goes_back(wrapped.epoch, wrapped.versions()).is_none()
    });
    let newest = own.next()?;
    if !choice.lost.contains(&newest.0) {
        return Some(newest);
    }
    own.find(|(id, wrapped)| !choice.lost.contains(id) && wrapped.lineages().any(|lineage| active.contains(&lineage)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::secret::Dek;
    use crate::kek::clock::ServerClock;
    use crate::kek::{Kek, KekError, KekVersion, Unwrapped, WrapContext, WrappedDek};

    fn lineage(home: &str) -> Lineage {
        Lineage::derive("test", &[home])
    }

    /// A KEK that nobody asks.
    #[derive(Debug)]
    struct Never(Lineage);

    #[async_trait::async_trait]
    impl Kek for Never {
        fn lineage(&self) -> Lineage {
            self.0
        }

        fn credentials_expire(&self) -> Option<jiff::Timestamp> {
            None
        }

        fn server_clock(&self) -> Option<&ServerClock> {
            None
        }

        async fn version(&self) -> Result<KekVersion, KekError> {
            Err(KekError::unavailable("not asked here"))
        }

        async fn wrap(&self, _: &Dek, _: &WrapContext) -> Result<WrappedDek, KekError> {
            Err(KekError::unavailable("not asked here"))
        }

        async fn unwrap(&self, _: &WrappedDek, _: &WrapContext) -> Result<Unwrapped, KekError> {
            Err(KekError::unavailable("not asked here"))
        }
    }

    fn kept(id: u8, homes: &[&str]) -> Kept {
        let wraps = homes.iter().map(|home| WrappedDek {
            version: KekVersion { lineage: lineage(home), version: "1".into() },
            blob: vec![1],
        });
        (DekId([id; 16]), Arc::new(WrappedDekSet { cluster: "c".parse().unwrap(), epoch: 1, wraps: wraps.collect() }))
    }

    fn no_keks() -> KekSet {
        KekSet::new(Vec::new(), Vec::new()).expect("none is twice")
    }

    #[test]
    fn a_dek_that_one_of_the_keks_has_wrapped_is_covered() {
        let all = [kept(1, &["a", "b"]), kept(2, &["b"]), kept(3, &["c", "d"])];
        assert!(Uncovered::of(&all, &["b", "c"].map(lineage).into()).is_empty());
        assert!(!Uncovered::of(&all, &["a", "c"].map(lineage).into()).is_empty());
        assert!(!Uncovered::of(&all, &BTreeSet::new()).is_empty());
    }

    /// Chooses after these adoptions, (DEK, epoch, version), by the KEKs `a` and `b`, of which the DEKs `kept` are left.
    fn chosen(adopted: &[(u8, u64, &str)], kept_deks: &[u8], lost: &[u8]) -> Option<u8> {
        let mut history = History::default();
        let mut deks = BTreeMap::new();
        for (id, epoch, text) in adopted {
            let version = KekVersion { lineage: lineage("a"), version: (*text).into() };
            history.adopted(DekId([*id; 16]), *epoch, [&version]);
            let wraps = vec![WrappedDek { version, blob: vec![1] }];
            deks.insert(
                DekId([*id; 16]),
                Arc::new(WrappedDekSet { cluster: "c".parse().unwrap(), epoch: *epoch, wraps }),
            );
        }
        deks.retain(|id, _| kept_deks.contains(&id.0[0]));
        let metrics = Arc::new(crate::telemetry::Metrics::new());
        let kek = crate::kek::guard::GuardedKek::new("a".into(), Box::new(Never(lineage("a"))), metrics);
        let keks = KekSet::new(vec![Arc::new(kek)], Vec::new()).expect("none is twice");
        let lost = lost.iter().map(|id| DekId([*id; 16])).collect();
        let choice = Choice { history: &history, keks: &keks, cluster: &"c".parse().unwrap(), lost: &lost };
        stored_generation(&choice, |id| deks.get(&id).cloned()).map(|(id, _)| id.0[0])
    }

    #[test]
    fn the_newest_generation_is_gone_on_with_and_never_one_of_an_older_version_or_epoch() {
        let rotated = [(1, 1, "1"), (2, 1, "2")];
        assert_eq!(chosen(&rotated, &[1, 2], &[]), Some(2));
        assert_eq!(chosen(&rotated, &[1], &[]), None, "the file of the newest is gone");
        assert_eq!(chosen(&rotated, &[1, 2], &[2]), None, "the newest is lost");
        let raised = [(1, 1, "1"), (2, 2, "1")];
        assert_eq!(chosen(&raised, &[1], &[]), None, "the epoch was raised for a reason");
        let made_anew = [(1, 1, "1"), (2, 1, "1")];
        assert_eq!(chosen(&made_anew, &[1], &[]), Some(1), "of the same versions");
        assert_eq!(chosen(&made_anew, &[1, 2], &[2]), Some(1));
    }

    #[test]
    fn a_kek_whose_private_half_is_elsewhere_covers_nothing_and_the_advice_says_how_it_would() {
        let kek = |home: &str, offline| {
            let never = Box::new(Never(lineage(home)));
            let metrics = Arc::new(crate::telemetry::Metrics::new());
            Arc::new(crate::kek::guard::GuardedKek::new(home.into(), never, metrics).with_offline(offline))
        };
        let key = crate::kek::offline::OfflineKey { recipient: "age1".into(), proven: None };
        let keks = KekSet::new(vec![kek("a", None), kek("escrow", Some(key))], Vec::new()).expect("none is twice");
        let all = [kept(1, &["a", "escrow"]), kept(2, &["b", "escrow"]), kept(3, &["escrow"])];
        let uncovered = Uncovered::of(&all, &keks.lineages());
        let advice = uncovered.advice(&|_| None, &keks, &Unidentified::new());
        assert_eq!(uncovered.0.len(), 2, "{advice}");
        assert!(advice.contains("1 kept DEKs need the private half of KEK escrow: start with"), "{advice}");
        assert!(
            advice.contains(&format!("need the KEK of lineage {}, which is not configured, or", lineage("b"))),
            "{advice}"
        );

        let (cluster, history) = ("c".parse().unwrap(), {
            let mut history = History::default();
            history.adopted(DekId([3; 16]), 1, all[2].1.versions());
            history
        });
        let choice = Choice { history: &history, keks: &keks, cluster: &cluster, lost: &BTreeSet::new() };
        assert!(stored_generation(&choice, |_| Some(all[2].1.clone())).is_none(), "nobody here could unwrap it");
    }

    #[test]
    fn the_advice_names_the_kek_counts_the_deks_and_never_says_create() {
        let all = [kept(1, &["a"]), kept(2, &["a"]), kept(3, &["b"])];
        let former = |one: Lineage| (one == lineage("a")).then(|| "primary".to_owned());
        let advice = Uncovered::of(&all, &BTreeSet::new()).advice(&former, &no_keks(), &Unidentified::new());
        assert!(advice.contains(&format!("2 kept DEKs need KEK primary (lineage {})", lineage("a"))), "{advice}");
        assert!(advice.contains(&format!("1 kept DEKs need the KEK of lineage {}", lineage("b"))), "{advice}");
        assert!(advice.contains("put it under `retired`") && !advice.contains("create"), "{advice}");
    }
    #[test]
    fn a_kek_that_cannot_be_opened_is_not_said_to_be_another_key_and_says_itself_what_is_wrong() {
        let former = |one: Lineage| (one == lineage("a")).then(|| "primary".to_owned());
        let all = [kept(1, &["a"])];
        let advice = |configured: &str, unread: &[&str]| {
            let metrics = Arc::new(crate::telemetry::Metrics::new());
            let kek = crate::kek::guard::GuardedKek::new(configured.into(), Box::new(Never(lineage("?"))), metrics);
            let keks = KekSet::new(vec![Arc::new(kek)], Vec::new()).expect("one");
            let unread =
                unread.iter().map(|name| ((*name).to_owned(), format!("{name}.json does not exist"))).collect();
            Uncovered::of(&all, &keks.lineages()).advice(&former, &keks, &unread)
        };
        let unread = advice("primary", &["other", "primary"]);
        assert!(
            unread.contains("KEK primary, of which it is not known") && unread.contains("primary.json does not exist")
        );
        assert!(!unread.contains("different key") && !unread.contains("`forget`"), "{unread}");
        // Under another name it may be the one that is needed.
        let renamed = advice("new", &["new"]);
        assert!(renamed.contains("new.json does not exist") && renamed.contains("under `retired`"), "{renamed}");
        // One that says which key it is.
        assert!(advice("primary", &[]).contains("KEK primary is a different key than before"));
        assert!(advice("primary", &["other"]).contains("KEK primary is a different key than before"));
    }
}
