//! All configured KEKs together: each wraps every DEK, any one of them unwraps it.

mod unwrap_error;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use futures::stream::{FuturesUnordered, StreamExt};

pub use self::unwrap_error::{Refusal, UnwrapError};
use super::guard::GuardedKek;
use super::offline::OfflineKey;
use super::{KekCause, KekError, KekVersion, Lineage, Unwrapped, WrapContext, WrappedDek};
use crate::crypto::seal::dek_id;
use crate::crypto::secret::Dek;

/// How long the first KEK may take before the next one is asked as well.
const HEDGE_AFTER: Duration = Duration::from_millis(400);

/// The configured KEKs in their order, and those that only unwrap.
#[derive(Clone, Debug)]
pub struct KekSet {
    active: Vec<Arc<GuardedKek>>,
    retired: Vec<Arc<GuardedKek>>,
}

/// What one KEK said.
#[derive(Debug)]
pub struct Answer<T> {
    /// The KEK's configured name.
    pub name: String,
    /// What stored wraps name it by.
    pub lineage: Lineage,
    /// What it said.
    pub result: Result<T, KekError>,
}

/// KEKs of which it is not known which they are, since they cannot be opened, by their configured names, with what they say.
pub type Unidentified = BTreeMap<String, String>;

/// Told of each version that unwraps, at once and not when the slowest KEK has answered.
pub type Opened<'a> = &'a (dyn Fn(&KekVersion) + Send + Sync);

impl KekSet {
    /// The set of these KEKs.
    ///
    /// # Errors
    /// The name of a KEK that has the lineage of an earlier one: their wraps could not be told apart. That of a break-glass
    /// KEK beside which no other one wraps.
    pub fn new(active: Vec<Arc<GuardedKek>>, retired: Vec<Arc<GuardedKek>>) -> Result<Self, (String, KekError)> {
        let set = Self { active, retired };
        set.check_distinct()?;
        match set.active.first() {
            Some(alone) if set.active.iter().all(|kek| kek.offline().is_some()) => Err((
                alone.name().to_owned(),
                KekError::misconfigured(
                    "is a break-glass KEK, which nothing here can unwrap with, and no other KEK is listed under keks: add \
                     one beside it, or give its private half with --break-glass FILE",
                ),
            )),
            _ => Ok(set),
        }
    }

    /// The KEKs that wrap, in their configured order.
    pub fn active(&self) -> &[Arc<GuardedKek>] {
        &self.active
    }

    /// Why no KEK here, retired ones included, could unwrap one of `wraps`, where none could.
    pub(crate) fn hopeless(&self, wraps: &[WrappedDek]) -> Option<UnwrapError> {
        if wraps.iter().any(|wrap| self.find(wrap.version.lineage).is_some()) {
            return None;
        }
        let mut offline =
            self.offline().filter(|(_, lineage, _)| wraps.iter().any(|wrap| wrap.version.lineage == *lineage));
        Some(match (offline.next(), self.unidentified().next()) {
            (Some((name, _, _)), _) => UnwrapError::OnlyBreakGlass(name.to_owned()),
            (None, Some(kek)) => UnwrapError::Unidentified(kek.name().to_owned()),
            (None, None) => UnwrapError::NoKek,
        })
    }

    /// Asks the retired KEKs of which it is not known which they are: only then do they unwrap what they wrapped. Those that
    /// still do not say, and those that wrap and did not say in `answers`.
    pub async fn identify(&self, answers: &[Answer<KekVersion>]) -> Unidentified {
        let unknown = self.retired.iter().filter(|kek| !kek.is_identified());
        let asked = join_all(unknown.map(async |kek| (kek.name(), kek.version().await.err()))).await;
        let silent = answers.iter().map(|answer| (answer.name.as_str(), answer.result.as_ref().err()));
        let silent = silent.chain(asked.iter().map(|(name, error)| (*name, error.as_ref())));
        let silent = silent.filter_map(|(name, error)| Some((name.to_owned(), error?.chain())));
        let is_unknown = |name: &str| self.unidentified().any(|kek| kek.name() == name);
        silent.filter(|(name, _)| is_unknown(name)).collect()
    }

    /// Asks every KEK that wraps for its active version, all at once.
    pub async fn versions(&self) -> Vec<Answer<KekVersion>> {
        self.ask_each(GuardedKek::version).await
    }

    /// Wraps `dek` under every KEK and proves that each unwraps it again, all at once. The version of each wrap
    /// is the one its proving unwrap reported. A KEK whose private half is elsewhere only wraps: what it makes was shown to
    /// open when its private half was last tried.
    ///
    /// # Errors
    /// Of the first KEK that did not.
    pub async fn wrap_and_prove(
        &self,
        dek: &Dek,
        context: &WrapContext,
        opened: Opened<'_>,
    ) -> Result<Vec<WrappedDek>, (String, KekError)> {
        let wraps = self.ask_each(|kek| async move {
            let wrapped = kek.wrap(dek, context).await?;
            if kek.offline().is_some() {
                return Ok(wrapped);
            }
            // A rotation between the two requests would otherwise store a version other than the one that wrapped.
            let version = prove(kek, &wrapped, context, opened).await?;
            Ok(WrappedDek { version, ..wrapped })
        });
        all(wraps.await)
    }

    /// Asks each KEK that wraps to unwrap its part of `wraps` again, all at once; one that none of `wraps` belongs to
    /// knows no such version. One whose private half is elsewhere is not asked.
    ///
    /// # Errors
    /// Of the first KEK that did not.
    pub async fn prove(
        &self,
        wraps: &[WrappedDek],
        context: &WrapContext,
        opened: Opened<'_>,
    ) -> Result<(), (String, KekError)> {
        let proven = self.ask_each(|kek| async move {
            match wraps.iter().find(|wrap| wrap.version.lineage == kek.lineage()) {
                Some(wrap) if kek.offline().is_some() => Ok(wrap.version.clone()),
                Some(wrap) => prove(kek, wrap, context, opened).await,
                None => Err(KekError::new(KekCause::UnknownVersion, "it has not wrapped this DEK")),
            }
        });
        all(proven.await).map(drop)
    }

    /// Asks every KEK that wraps, all at once.
    async fn ask_each<'a, T, F>(&'a self, ask: impl Fn(&'a GuardedKek) -> F) -> Vec<Answer<T>>
    where
        F: Future<Output = Result<T, KekError>>,
    {
        // The slowest decides, within the deadline of the guard: what follows is decided from all answers.
        let results = join_all(self.active.iter().map(|kek| ask(kek))).await;
        // Only now is it known which keyring a file holds.
        let answer =
            |(kek, result): (&Arc<GuardedKek>, _)| Answer { name: kek.name().into(), lineage: kek.lineage(), result };
        self.active.iter().zip(results).map(answer).collect()
    }

    /// Asks the KEK that made `wrap` to unwrap it. `None` where it is not configured.
    pub(crate) async fn unwrap_one(&self, wrap: &WrappedDek, context: &WrapContext) -> Option<Result<Dek, KekError>> {
        let kek = self.find(wrap.version.lineage)?;
        Some(unwrap_checked(kek, wrap, context).await.map(|unwrapped| unwrapped.dek))
    }

    /// The KEKs that unwrap: all but those whose private half is elsewhere.
    pub fn lineages(&self) -> BTreeSet<Lineage> {
        self.unwrapping().map(|kek| kek.lineage()).collect()
    }

    /// The KEKs whose private half is elsewhere.
    pub(crate) fn offline(&self) -> impl Iterator<Item = (&str, Lineage, &OfflineKey)> {
        let all = self.active.iter().chain(&self.retired);
        all.filter_map(|kek| Some((kek.name(), kek.lineage(), kek.offline()?)))
    }

    /// How the configuration calls a KEK.
    pub(crate) fn name(&self, lineage: Lineage) -> Option<&str> {
        self.all().find(|(_, of, _)| *of == lineage).map(|(name, _, _)| name)
    }

    /// Every KEK: its name, which one it is, and whether it wraps.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&str, Lineage, bool)> {
        let active = self.active.iter().map(|kek| (kek.name(), kek.lineage(), true));
        active.chain(self.retired.iter().map(|kek| (kek.name(), kek.lineage(), false)))
    }

    /// Unwraps by any KEK: the first is asked, the next one when it fails or is slow; the first good answer wins.
    ///
    /// # Errors
    /// [`UnwrapError`] when no KEK answered with the DEK that `context` names.
    pub async fn unwrap(&self, wraps: &[WrappedDek], context: &WrapContext) -> Result<(Dek, KekVersion), UnwrapError> {
        let mut waiting = wraps.iter().filter_map(|wrap| Some((self.find(wrap.version.lineage)?, wrap)));
        let mut asked = FuturesUnordered::new();
        let mut errors = Vec::new();
        // Slow KEKs are hedged, not given up: their answer counts if it is the first good one.
        let ask = |(kek, wrap): (&'_ Arc<GuardedKek>, &'_ WrappedDek)| {
            let (kek, wrap) = (kek.clone(), wrap.clone());
            async move { (kek.name().to_owned(), unwrap_checked(&kek, &wrap, context).await, wrap.version) }
        };
        // In the order in which the DEK was wrapped: one slow KEK must not cost a request to each of the others as well.
        asked.push(ask(waiting.next().ok_or_else(|| self.hopeless(wraps).unwrap_or(UnwrapError::NoKek))?));
        loop {
            match tokio::time::timeout(HEDGE_AFTER, asked.next()).await {
                Ok(Some((_, Ok(unwrapped), version))) => return Ok((unwrapped.dek, version)),
                Ok(Some((name, Err(error), version))) => errors.push(Refusal { name, version, error }),
                Ok(None) => return Err(UnwrapError::Failed(errors)),
                Err(_slow) => {}
            }
            if let Some(next) = waiting.next() {
                asked.push(ask(next));
            }
        }
    }

    /// Two KEKs of one lineage could not be told apart in a stored wrap.
    fn check_distinct(&self) -> Result<(), (String, KekError)> {
        let mut seen = HashMap::new();
        for kek in self.active.iter().chain(&self.retired) {
            if let Some(other) = seen.insert(kek.lineage(), kek.name()) {
                let problem =
                    format!("is the same key as KEK {other}, as far as the configuration tells; remove one of them");
                return Err((kek.name().to_owned(), KekError::misconfigured(problem)));
            }
        }
        Ok(())
    }

    /// The KEK that unwraps what has this lineage.
    fn find(&self, lineage: Lineage) -> Option<&Arc<GuardedKek>> {
        self.unwrapping().find(|kek| kek.lineage() == lineage)
    }

    fn unidentified(&self) -> impl Iterator<Item = &Arc<GuardedKek>> {
        self.unwrapping().filter(|kek| !kek.is_identified())
    }

    fn unwrapping(&self) -> impl Iterator<Item = &Arc<GuardedKek>> {
        self.active.iter().chain(&self.retired).filter(|kek| kek.offline().is_none())
    }
}

async fn prove(
    kek: &GuardedKek,
    wrapped: &WrappedDek,
    context: &WrapContext,
    opened: Opened<'_>,
) -> Result<KekVersion, KekError> {
    let version = unwrap_checked(kek, wrapped, context).await?.version;
    opened(&version);
    Ok(version)
}

fn all<T>(answers: Vec<Answer<T>>) -> Result<Vec<T>, (String, KekError)> {
    answers.into_iter().map(|answer| answer.result.map_err(|error| (answer.name, error))).collect()
}

/// Unwraps, and holds the DEK against its id: whatever a KEK answers, only the right DEK gets in.
async fn unwrap_checked(kek: &GuardedKek, wrapped: &WrappedDek, context: &WrapContext) -> Result<Unwrapped, KekError> {
    let unwrapped = kek.unwrap(wrapped, context).await?;
    if dek_id(&unwrapped.dek) == context.dek_id {
        Ok(unwrapped)
    } else {
        Err(KekError::new(KekCause::Rejected, format!("{} unwrapped another DEK than {}", kek.name(), context.dek_id)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use async_trait::async_trait;

    use super::*;
    use crate::crypto::secret::DEK_BYTES;
    use crate::kek::Kek;
    use crate::kek::clock::ServerClock;
    use crate::telemetry::Metrics;

    /// Wraps by writing the DEK down, and counts how often it is asked to unwrap.
    #[derive(Debug)]
    struct Fake(Lineage, Arc<AtomicUsize>);

    #[async_trait]
    impl Kek for Fake {
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
            Ok(KekVersion { lineage: self.0, version: "1".into() })
        }

        async fn wrap(&self, dek: &Dek, _: &WrapContext) -> Result<WrappedDek, KekError> {
            Ok(WrappedDek { version: self.version().await?, blob: dek.expose().to_vec() })
        }

        async fn unwrap(&self, wrapped: &WrappedDek, _: &WrapContext) -> Result<Unwrapped, KekError> {
            self.1.fetch_add(1, SeqCst);
            Ok(Unwrapped { dek: crate::kek::unwrapped_dek(wrapped.blob.clone())?, version: wrapped.version.clone() })
        }
    }

    fn kek(name: &str, is_offline: bool) -> (Arc<GuardedKek>, Arc<AtomicUsize>) {
        let asked = Arc::<AtomicUsize>::default();
        let fake = Fake(Lineage::derive("t", &[name]), asked.clone());
        let offline = is_offline.then(|| OfflineKey { recipient: "age1".into(), proven: None });
        let guarded = GuardedKek::new(name.into(), Box::new(fake), Arc::new(Metrics::new())).with_offline(offline);
        (Arc::new(guarded), asked)
    }

    #[tokio::test]
    async fn a_kek_whose_private_half_is_elsewhere_wraps_and_is_never_asked_to_unwrap() {
        let ((online, asked), (escrow, never)) = (kek("online", false), kek("escrow", true));
        let set = KekSet::new(vec![escrow.clone(), online.clone()], Vec::new()).expect("distinct");
        let dek = Dek::from_unwrapped([7; DEK_BYTES]).expect("32 bytes");
        let context = WrapContext { cluster: "c".parse().expect("a name"), dek_id: dek_id(&dek) };
        let wraps = set.wrap_and_prove(&dek, &context, &|_| {}).await.expect("wrapped");
        assert_eq!(wraps.len(), 2);
        set.prove(&wraps, &context, &|_| {}).await.expect("proven");
        let without = set.prove(&wraps[1..], &context, &|_| {}).await.expect_err("it has not wrapped this");
        assert_eq!(without.0, "escrow");
        let (_, by) = set.unwrap(&wraps, &context).await.expect("unwrapped");
        assert_eq!((by.lineage, set.lineages()), (online.lineage(), [online.lineage()].into()));

        // Where it alone could: told as such, and not as lost, which would have the DEK forgotten.
        for error in [set.hopeless(&wraps[..1]), set.unwrap(&wraps[..1], &context).await.err()] {
            let error = error.expect("nobody can");
            assert!(
                error.to_string().contains("only break-glass KEK escrow")
                    && error.to_string().contains("--break-glass")
            );
            assert_eq!(error.cause(), KekCause::Misconfigured);
        }
        assert!(set.unwrap_one(&wraps[0], &context).await.is_none() && set.hopeless(&wraps).is_none());
        assert_eq!(set.name(escrow.lineage()), Some("escrow"));
        assert!(asked.load(SeqCst) >= 3);
        assert_eq!(never.load(SeqCst), 0);
    }

    #[test]
    fn it_cannot_be_the_only_one_that_wraps() {
        let error = KekSet::new(vec![kek("escrow", true).0], vec![kek("old", false).0]).expect_err("refused");
        assert!(error.0 == "escrow" && error.1.problem().contains("add one beside it"), "{error:?}");
        KekSet::new(Vec::new(), vec![kek("escrow", true).0]).expect("retired ones need not unwrap");
    }
}
