//! What the KEKs themselves say is active, and the `key_id` that kube-envelope must therefore report.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::future::join_all;

use crate::config::Config;
use crate::encryption_config::{Endpoint, ProviderName};
use crate::kek::{KekError, KekVersion, Lineage};
use crate::key_id::KeyId;
use crate::key_stores::KekConfig;
use crate::rotation::claim::{Claim, Witness};
use crate::rotation::cluster::key_id_hash::KeyIdHash;
use crate::rotation::cluster::resources::Coverage;
use crate::rotation::keys::name::{KeyName, KeyNames};

/// How long one KEK may take to answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);
/// The most combinations of versions that a hash is compared with.
const MAX_COMBINATIONS: usize = 4_096;
/// How many epochs before the present one a hash is compared with.
const MAX_EPOCHS_BACK: u64 = 16;

/// What one KEK said.
#[derive(Debug)]
pub struct KekAnswer {
    /// Its name in the configuration.
    pub name: String,
    /// Which KEK it is, as far as that can be known without an answer.
    pub lineage: Lineage,
    /// The version that is active.
    pub active: Result<KekVersion, KekError>,
}

impl KekAnswer {
    /// One sentence about it.
    pub fn describe(&self) -> String {
        match &self.active {
            Ok(version) => format!("KEK {} says that version {} is active", self.name, version.version),
            Err(error) => {
                format!("KEK {} could not be asked: {}", self.name, crate::rotation::cluster::api::chain(error))
            }
        }
    }
}

/// The provider whose plugin has this configuration: the one at its socket, or the only one if the configuration was
/// `named` and not merely found in its usual place.
pub fn own_provider(coverage: &Coverage, plugin: &Config, named: bool) -> Option<ProviderName> {
    let providers = coverage.providers();
    let only = || providers.first().filter(|_| named && providers.len() == 1).cloned();
    let socket = Endpoint::parse(&plugin.socket.address.endpoint()).ok();
    socket.and_then(|socket| coverage.provider_at(&socket)).or_else(only)
}

/// Asks every KEK that wraps which version is active.
pub async fn ask(keks: &[KekConfig]) -> Vec<KekAnswer> {
    join_all(keks.iter().map(ask_one)).await
}

async fn ask_one(config: &KekConfig) -> KekAnswer {
    let kek = config.open();
    // This KEK has no guard: one question is asked, and the caller reports how it went.
    let answer = tokio::time::timeout(ANSWERS_WITHIN, kek.version()).await;
    let active = answer
        .unwrap_or_else(|_| Err(KekError::unavailable(format!("no answer within {} s", ANSWERS_WITHIN.as_secs()))));
    KekAnswer { name: config.name.clone(), lineage: kek.lineage(), active }
}

/// The names of all KEKs in the configuration.
pub fn names(config: &Config) -> KeyNames {
    let mut names = KeyNames::default();
    for kek in config.keks.iter().chain(&config.retired) {
        names.insert(kek.open().lineage(), &kek.name);
    }
    for entry in &config.takeover {
        names.insert_takeover(&entry.name, entry.plugin().key().lineage());
    }
    names
}

/// The versions that the next generation must have. A KEK that did not answer is taken to be where `in_use` shows it:
/// nothing says that it moved. `None` where that is not known either.
pub fn expected(answers: &[KekAnswer], in_use: &BTreeSet<KeyName>) -> Option<Vec<KekVersion>> {
    answers
        .iter()
        .map(|answer| match &answer.active {
            Ok(version) => Some(version.clone()),
            Err(_) => only_version(answer.lineage, in_use),
        })
        .collect()
}

/// Whether every KEK that answered still has a version of the target active. A target that is not known in versions
/// cannot be compared.
pub fn active_now(answers: &[KekAnswer], target: &BTreeSet<KeyName>) -> Claim {
    let moved = |answer: &&KekAnswer| {
        !target.is_empty() && answer.active.as_ref().is_ok_and(|version| !target.contains(&KeyName::kek(version)))
    };
    let moved: Vec<String> = answers.iter().filter(moved).map(KekAnswer::describe).collect();
    if moved.is_empty() {
        let said: Vec<String> = answers.iter().map(KekAnswer::describe).collect();
        return Claim::shown(Witness::KeyStores, format!("asked last of all, {}", said.join("; ")));
    }
    Claim::not_shown(
        Witness::KeyStores,
        format!("{}, which is not the version that this run rewrote to", moved.join("; ")),
        "it was rotated again or switched back in the meantime: make the intended version active, and run rotate-keys again",
    )
}

fn only_version(lineage: Lineage, in_use: &BTreeSet<KeyName>) -> Option<KekVersion> {
    let mut versions = in_use.iter().filter_map(|key| match key {
        KeyName::Kek { lineage: of, version } if *of == lineage.to_string() => Some(version),
        _ => None,
    });
    let version = versions.next()?.clone();
    versions.next().is_none().then_some(KekVersion { lineage, version })
}

/// Hash of the `key_id` of the generation with these versions.
pub fn hash_of(epoch: u64, versions: &[KekVersion]) -> KeyIdHash {
    KeyIdHash::of(KeyId::derive(epoch, versions).as_str())
}

/// The generation behind the hash of a `key_id`, where some combination of known versions and an epoch up to this one has
/// that hash: its `key_id` and its versions.
pub fn resolve(hash: &KeyIdHash, epoch: u64, known: &BTreeSet<KekVersion>) -> Option<(KeyId, BTreeSet<KeyName>)> {
    let combinations = combinations(known)?;
    // The newest epoch first: what is in use now is most likely of the present one.
    let epochs = (epoch.saturating_sub(MAX_EPOCHS_BACK)..=epoch).rev();
    let mut all = epochs.flat_map(|epoch| combinations.iter().map(move |versions| (epoch, versions)));
    let (epoch, versions) = all.find(|(epoch, versions)| hash_of(*epoch, versions) == *hash)?;
    Some((KeyId::derive(epoch, versions), versions.iter().map(KeyName::kek).collect()))
}

/// Every combination of versions of different KEKs; `None` where they are too many.
fn combinations(known: &BTreeSet<KekVersion>) -> Option<Vec<Vec<KekVersion>>> {
    let mut by_kek: BTreeMap<Lineage, Vec<&KekVersion>> = BTreeMap::new();
    for version in known {
        by_kek.entry(version.lineage).or_default().push(version);
    }
    let mut combinations: Vec<Vec<KekVersion>> = vec![Vec::new()];
    for versions in by_kek.values() {
        // A KEK may have been added or removed since: a combination without it is tried, too.
        let extended: Vec<Vec<KekVersion>> = combinations
            .iter()
            .flat_map(|before| versions.iter().map(|version| [before.as_slice(), &[(*version).clone()]].concat()))
            .collect();
        combinations.extend(extended);
        // Each costs one hash for each epoch; with many former versions of several KEKs their number grows as a
        // product.
        if combinations.len() > MAX_COMBINATIONS {
            return None;
        }
    }
    // A generation has at least one KEK.
    combinations.retain(|versions| !versions.is_empty());
    Some(combinations)
}

/// Every version that the configuration lets one know of without asking a server.
pub async fn versions_on_file(config: &Config) -> BTreeSet<KekVersion> {
    let mut versions = BTreeSet::new();
    for kek in config.keks.iter().chain(&config.retired) {
        versions.extend(kek.versions_on_file().await);
    }
    versions
}

/// What the keyring files of this node open. Only where every KEK that wraps is such a file: what a key store has opens at
/// every node.
#[derive(Clone, Debug)]
pub struct OnFile {
    provider: ProviderName,
    epoch: u64,
    versions: BTreeSet<KekVersion>,
}

impl OnFile {
    /// Reads the files of the plugin's configuration.
    pub async fn read(provider: &ProviderName, config: &Config) -> Option<Self> {
        for kek in &config.keks {
            if kek.versions_on_file().await.is_empty() {
                return None;
            }
        }
        let versions = versions_on_file(config).await;
        Some(Self { provider: provider.clone(), epoch: config.epoch, versions })
    }

    /// Whether what is stored under the `key_id` with this hash opens with them; `None` where they say nothing about it.
    pub fn opens(&self, provider: &ProviderName, hash: &KeyIdHash) -> Option<bool> {
        (provider == &self.provider).then(|| resolve(hash, self.epoch, &self.versions).is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(home: &str, version: &str) -> KekVersion {
        KekVersion { lineage: Lineage::derive("t", &[home]), version: version.into() }
    }

    fn answer(home: &str, active: Result<KekVersion, KekError>) -> KekAnswer {
        KekAnswer { name: home.into(), lineage: Lineage::derive("t", &[home]), active }
    }

    #[test]
    fn a_kek_that_does_not_answer_is_taken_to_be_where_the_data_show_it() {
        let away = || answer("b", Err(KekError::unavailable("away")));
        let answers = [answer("a", Ok(version("a", "2"))), away()];
        let in_use: BTreeSet<_> = [version("a", "1"), version("b", "7")].iter().map(KeyName::kek).collect();
        assert_eq!(expected(&answers, &in_use), Some(vec![version("a", "2"), version("b", "7")]));
        assert_eq!(expected(&answers, &BTreeSet::new()), None);
        let two: BTreeSet<_> = [version("b", "7"), version("b", "8")].iter().map(KeyName::kek).collect();
        assert_eq!(expected(&answers, &two), None, "which of them is not known");
    }

    #[test]
    fn a_kek_that_was_switched_back_before_the_verdict_leaves_nothing_shown() {
        let target: BTreeSet<_> = [version("a", "2")].iter().map(KeyName::kek).collect();
        let shown = |active: &str| active_now(&[answer("a", Ok(version("a", active)))], &target).remedy().is_none();
        assert!(shown("2"));
        assert!(!shown("1"), "version 1 is the one that a Yes would name");
    }

    #[test]
    fn a_hash_is_resolved_to_the_versions_that_have_it_also_when_a_kek_was_added_since() {
        let known = [version("a", "1"), version("a", "2"), version("b", "1")].into();
        let one = hash_of(1, &[version("a", "1")]);
        let keys = |hash: &KeyIdHash, epoch| resolve(hash, epoch, &known).map(|(_, keys)| keys);
        assert_eq!(keys(&one, 1), Some([KeyName::kek(&version("a", "1"))].into()));
        let both = [version("a", "2"), version("b", "1")];
        assert_eq!(keys(&hash_of(1, &both), 1), Some(both.iter().map(KeyName::kek).collect()));
        assert_eq!(keys(&hash_of(2, &both), 1), None, "a later epoch");
        let (key_id, _) = resolve(&hash_of(1, &both), 2, &known).unwrap();
        assert_eq!(key_id, KeyId::derive(1, &both), "a former epoch");
    }
}
