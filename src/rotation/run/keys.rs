//! Which keys a rotation is about: those in use before, those that must be in use after, and which of them are former.

use std::collections::{BTreeMap, BTreeSet};

use super::states::Run;
use crate::config::Config;
use crate::encryption_config::ProviderName;
use crate::kek::KekVersion;
use crate::key_id::KeyId;
use crate::key_stores::Disabling;
use crate::rotation::adoption::Wanted;
use crate::rotation::claim::Subject;
use crate::rotation::cluster::key_id_hash::KeyIdHash;
use crate::rotation::cluster::writer::LocalWriter;
use crate::rotation::error::RotationError;
use crate::rotation::event::Event;
use crate::rotation::journal::Journal;
use crate::rotation::keys::active::{
    KekAnswer, OnFile, active_now, ask, expected, hash_of, names, own_provider, resolve, versions_on_file,
};
use crate::rotation::keys::group::Group;
use crate::rotation::keys::name::KeyName;
use crate::rotation::leftovers::scan::Scan;
use crate::rotation::rewrite::reads::scan_reads;
use crate::rotation::run::plan::encrypted;

impl Run<'_> {
    /// Looks at all data before anything is rotated or rewritten: what is in use now, and not under the target later,
    /// is what a verdict can name.
    pub(super) async fn survey_before(&mut self) -> Result<(), RotationError> {
        self.recognise_plugin()?;
        if self.settings.etcd.is_none() {
            for (provider, hash) in self.journal.former.clone() {
                self.remember(KeyName::KeyIdHash { provider, hash }).await;
            }
        }
        match self.survey().await {
            Ok(scan) => {
                self.remember_all(&scan).await;
                self.journal.first_survey = Some(scan);
            }
            // The verdict is "not proven" at best then, so it may as well name fewer keys.
            // Leftovers are looked for in the same way at the end, so that a run without this never comes to a verdict.
            Err(error) if self.settings.accept_unproven && self.settings.etcd.is_none() => {
                let why = crate::rotation::cluster::api::chain(&error);
                return Err(RotationError::Blocked(vec![format!(
                    "without --etcd, leftovers are counted by the metrics of an API server: {why}; give --etcd, or let this \
                     user read /metrics"
                )]));
            }
            Err(error) => return Err(error),
        }
        // The journal in the usual place may be of another cluster, whose keys mean nothing here.
        if self.journal.earlier_cluster == self.journal.cluster {
            self.journal.keys_seen.extend(self.journal.earlier_keys.clone());
        }
        for text in self.settings.former.clone() {
            let key = self.named_by_hand(&text).await?;
            self.journal.keys_seen.extend(key);
        }
        self.aim().await
    }

    /// Counts all values, or all objects, by the keys that they are stored under.
    pub(super) async fn survey(&mut self) -> Result<Scan, RotationError> {
        let found = encrypted(self.cluster.entry(), &self.coverage).await?;
        if let Some(etcd) = self.settings.etcd.clone() {
            return self.search_etcd(&etcd, &found).await;
        }
        // Before the target is known, what the plugins report keeps the search from naming every object.
        let Journal { targets, former, .. } = &self.journal;
        let targets = if targets.is_empty() { former } else { &targets.plugins };
        // Also what is not rewritten: Events that nobody looked at may need a former key for an hour.
        let expected = found.expected(targets);
        let (api, report, mut pace) = (self.converged().await?, self.report, self.pace());
        scan_reads(&api, &expected, &mut pace, &mut |resource, tally, concurrency| {
            report(Event::Progress { resource, tally, objects: 0, concurrency });
        })
        .await
    }

    /// Adds the keys that a survey found in use.
    pub(super) async fn remember_all(&mut self, scan: &Scan) {
        for (_, key_id) in scan.groups.iter().filter_map(|group| group.key_id.as_ref()) {
            self.journal.names.insert_key_id(key_id);
        }
        for key in scan.groups.keys() {
            self.remember(key).await;
        }
        // Only values of kube-envelope name KEK versions; a `key_id` of another plugin is a key itself, not a generation.
        let own = |group: &&Group| group.keys.iter().any(|key| matches!(key, KeyName::Kek { .. }));
        let key_ids = scan.groups.iter().filter(own).filter_map(|group| group.key_id.clone());
        self.journal.keys_seen.extend(key_ids.map(|(provider, key_id)| KeyName::Generation { provider, key_id }));
    }

    /// Adds a key that was in use. The hash of a `key_id` of kube-envelope is replaced by its KEK versions where these
    /// are known.
    async fn remember(&mut self, key: KeyName) {
        let keys = match (&key, &self.settings.plugin) {
            (KeyName::KeyIdHash { provider, hash }, Some(plugin))
                if self.journal.own_provider.as_ref() == Some(provider) =>
            {
                let resolved = resolve(hash, plugin.epoch, &self.known_versions(plugin).await);
                resolved.map(|(key_id, mut keys)| {
                    keys.insert(KeyName::Generation { provider: provider.clone(), key_id: key_id.to_string() });
                    keys
                })
            }
            _ => None,
        };
        self.journal.keys_seen.extend(keys.unwrap_or_else(|| [key].into()));
    }

    pub(super) async fn known_versions(&self, plugin: &Config) -> BTreeSet<KekVersion> {
        let mut known = versions_on_file(plugin).await;
        let named = self.journal.keys_seen.iter().chain(&self.journal.target_keys);
        known.extend(named.filter_map(KeyName::kek_version));
        known.extend(ask(&plugin.keks).await.into_iter().filter_map(|answer| answer.active.ok()));
        known
    }

    /// Finds out which provider is the plugin whose configuration was given.
    pub(super) fn recognise_plugin(&mut self) -> Result<(), RotationError> {
        let Some(plugin) = &self.settings.plugin else { return Ok(()) };
        self.journal.own_provider = own_provider(&self.coverage, plugin, self.settings.plugin_named);
        if self.journal.own_provider.is_some() {
            self.journal.names = names(plugin);
            return Ok(());
        }
        let socket = &plugin.socket.address;
        let why = format!("the socket {socket} of the plugin's configuration is the endpoint of no KMS v2 provider");
        if self.settings.rotate_kek {
            return Err(RotationError::Blocked(vec![format!(
                "{why}: give the configuration of the plugin that the API servers use (--config), and their \
                 EncryptionConfiguration (--encryption-config)"
            )]));
        }
        (self.report)(Event::Note(&format!("{why}; it is not looked at")));
        Ok(())
    }

    /// What the plugin whose configuration was given must report now, where every one of its KEKs tells.
    pub(super) async fn active_by_keks(&self) -> BTreeMap<ProviderName, KeyIdHash> {
        let Some(plugin) = &self.settings.plugin else { return BTreeMap::new() };
        let Some(own) = own_provider(&self.coverage, plugin, self.settings.plugin_named) else {
            return BTreeMap::new();
        };
        let versions = expected(&ask(&plugin.keks).await, &BTreeSet::new());
        versions.map(|versions| (own, hash_of(plugin.epoch, &versions))).into_iter().collect()
    }

    /// Asks the KEKs what is active: that is what every plugin must use, whatever it reports at this moment.
    pub(super) async fn aim(&mut self) -> Result<(), RotationError> {
        self.journal.target_keys.extend(self.local_targets());
        let Some(plugin) = self.writing_plugin() else { return Ok(()) };
        let answers = ask(&plugin.keks).await;
        self.journal.kek_answers = answers.iter().map(KekAnswer::describe).collect();
        self.journal.silent_keks =
            answers.iter().filter(|answer| answer.active.is_err()).map(|answer| answer.lineage.to_string()).collect();
        for said in &self.journal.kek_answers {
            (self.report)(Event::Note(said));
        }
        // A version that --rotate-kek is to make is not known yet, and --key-id says itself what the plugins must
        // report.
        if self.settings.rotate_kek || self.settings.key_id.is_some() {
            return Ok(());
        }
        match expected(&answers, &self.journal.keys_seen) {
            Some(versions) => self.aim_at(&versions),
            None => (self.report)(Event::Note(
                "the key_id that the plugins must report could not be derived; the one that they report now is used",
            )),
        }
        Ok(())
    }

    /// Asks the KEKs once more, last of all. A KEK that was switched back after the adoption would make a *Yes* name the
    /// version that is active now.
    pub(super) async fn keks_have_stayed(&mut self) {
        let Some(plugin) = self.writing_plugin() else { return };
        let answers = ask(&plugin.keks).await;
        self.journal.silent_keks =
            answers.iter().filter(|answer| answer.active.is_err()).map(|answer| answer.lineage.to_string()).collect();
        self.journal.claims.insert(Subject::Keks, active_now(&answers, &self.journal.target_keys));
    }

    /// The configuration of the plugin, where that is one that still writes.
    fn writing_plugin(&self) -> Option<Config> {
        let own = self.journal.own_provider.as_ref()?;
        self.settings.plugin.clone().filter(|_| self.coverage.providers().contains(own))
    }

    /// What is to be adopted, with what the keyring files of this node open.
    pub(super) async fn wanted_here(&self) -> Wanted {
        let on_file = match (&self.journal.own_provider, self.writing_plugin()) {
            (Some(provider), Some(plugin)) => OnFile::read(provider, &plugin).await,
            _ => None,
        };
        Wanted { on_file, ..self.wanted() }
    }

    /// What is stored by local providers to which something is moved.
    fn local_targets(&self) -> BTreeSet<KeyName> {
        let name = |local: LocalWriter| local.words().map_or(KeyName::Clear, KeyName::Prefix);
        self.coverage.local_writers().into_iter().map(name).collect()
    }

    /// How each former key is disabled, as far as the plugin's configuration tells.
    pub(super) fn ways_to_disable(&self) -> Vec<String> {
        let plugin = self.settings.plugin.iter().flat_map(|plugin| plugin.keks.iter().chain(&plugin.retired));
        // Retired ones as well: a version that goes out of use for good is often one of theirs.
        let keks: Vec<_> = plugin.map(|kek| (kek.open().lineage().to_string(), kek)).collect();
        let active = |of: &str| {
            self.journal.target_keys.iter().find_map(|key| match key {
                KeyName::Kek { lineage, version } if lineage == of => Some(version.as_str()),
                _ => None,
            })
        };
        let former = self.journal.former_keys();
        let command = |key: &KeyName| {
            let KeyName::Kek { lineage, version } = key else { return None };
            let (_, kek) = keks.iter().find(|(of, _)| of == lineage)?;
            Some(match kek.disabling(version, active(lineage).unwrap_or_default()) {
                Disabling::Command(command) => command,
                Disabling::ByHand(words) => format!("{}: {words}", self.journal.names.show(key)),
            })
        };
        former.iter().filter_map(command).collect()
    }

    /// Makes the generation of these versions the target.
    pub(super) fn aim_at(&mut self, versions: &[KekVersion]) {
        let (Some(plugin), Some(provider)) = (&self.settings.plugin, &self.journal.own_provider) else { return };
        self.journal.target_keys = versions.iter().map(KeyName::kek).chain(self.local_targets()).collect();
        let key_id = KeyId::derive(plugin.epoch, versions);
        self.journal.names.insert_key_id(key_id.as_str());
        self.journal.targets.plugins.insert(provider.clone(), KeyIdHash::of(key_id.as_str()));
    }

    /// A key that `--former` names: `KEK`, `KEK:VERSION`, or a `key_id`. One that was never seen is more likely a slip
    /// than a key, and "nothing is stored under it" would be true and mislead.
    async fn named_by_hand(&self, text: &str) -> Result<BTreeSet<KeyName>, RotationError> {
        let (kek, version) = text.split_once(':').map_or((text, None), |(kek, version)| (kek, Some(version)));
        // A key_id may hold a colon as well (a Cloud KMS plugin with a suffix), so what is before it counts only where
        // a KEK has that name.
        let keys: BTreeSet<KeyName> = match (self.journal.names.lineage(kek).map(str::to_owned), version) {
            (Some(lineage), Some(version)) => [KeyName::Kek { lineage, version: version.to_owned() }].into(),
            (Some(lineage), None) => return Ok([KeyName::AnyVersion { lineage }].into()),
            (None, _) => {
                let key_id = || text.to_owned();
                let keys = |provider: ProviderName| {
                    let generation = KeyName::Generation { provider: provider.clone(), key_id: key_id() };
                    [KeyName::KeyId { provider, key_id: key_id() }, generation]
                };
                self.coverage.providers().into_iter().flat_map(keys).collect()
            }
        };
        let known = self.keys_known().await;
        let survey = self.journal.first_survey.as_ref();
        let seen = |key: &&KeyName| {
            known.contains(key)
                || self.journal.is_target(key)
                || survey.is_some_and(|scan| scan.groups.needing(key) > 0)
        };
        let keys: BTreeSet<_> = keys.iter().filter(seen).cloned().collect();
        if !keys.is_empty() {
            return Ok(keys);
        }
        let known: Vec<_> = known.iter().map(|key| self.journal.names.show(key)).collect();
        Err(RotationError::Blocked(vec![format!(
            "--former {text} names no key that is known: give KEK, KEK:VERSION with the version as it is written here, \
             or a key_id. Known are: {}",
            known.join("; ")
        )]))
    }

    /// Every key that this run, the keyring files, or an earlier rotation whose journal lies beside this one has seen.
    async fn keys_known(&self) -> BTreeSet<KeyName> {
        let mut known = self.journal.keys_seen.clone();
        if let Some(plugin) = &self.settings.plugin {
            // A keyring file has versions that nothing was ever stored under, which --former may name all the same.
            known.extend(versions_on_file(plugin).await.iter().map(KeyName::kek));
        }
        known.extend(Journal::keys_seen_beside(&self.settings.journal));
        known
    }
}
