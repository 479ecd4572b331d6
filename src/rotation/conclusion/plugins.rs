//! Whether a plugin that an API server asks would still store under a key that is to go. Nothing may be stored through it
//! yet, so that no value and no counter shows it.

use std::collections::BTreeSet;

use crate::encryption_config::ProviderName;
use crate::rotation::adoption::Report;
use crate::rotation::claim::{Claim, Until, Witness};
use crate::rotation::cluster::key_id_hash::KeyIdHash;
use crate::rotation::journal::Journal;
use crate::rotation::keys::name::KeyName;

const REMEDY: &str = "bring that plugin to the key in use (its keyring, its configuration, its KEK), or take its provider out of \
                      that API server's EncryptionConfiguration, or give the file in which it only reads (--encryption-config); then run again";

/// `readers`: the providers that store nothing, by the configuration that was given. `resolved`: the KEK versions behind the hash
/// of a `key_id`, where they are known.
pub fn plugins(
    reports: &[Report],
    journal: &Journal,
    readers: &BTreeSet<ProviderName>,
    resolved: &dyn Fn(&KeyIdHash) -> BTreeSet<KeyName>,
) -> Claim {
    let former = journal.former_keys();
    // What each server stores by was shown by writes. Only what the file does not name could store something else there.
    let stores = |report: &&Report| !readers.contains(&report.provider);
    let mut conflicts = Vec::new();
    for Report { server, provider, hash } in reports.iter().filter(stores) {
        let mut keys = resolved(hash);
        keys.extend(keys_of(journal, hash));
        let named = former.iter().find(|key| is_of(key, hash));
        let version = keys.iter().find(|key| former.contains(*key) || is_out_of_use(journal, key));
        if let Some(key) = named.or(version) {
            conflicts
                .push(format!("the plugin of provider {provider} at {server} reports {}", journal.names.show(key)));
        }
    }
    if conflicts.is_empty() {
        let what = "no plugin that an API server asks reports a key that went out of use";
        return Claim::shown(Witness::Metrics, what).until(Until::ServersChange);
    }
    Claim::not_shown(Witness::Metrics, conflicts.join("; "), REMEDY)
}

/// The keys of the values that were stored under this `key_id`.
fn keys_of(journal: &Journal, hash: &KeyIdHash) -> BTreeSet<KeyName> {
    let groups = journal.first_survey.iter().chain(&journal.verified).flat_map(|scan| scan.groups.iter());
    let under = groups.filter(|group| group.key_id.as_ref().is_some_and(|(_, key_id)| KeyIdHash::of(key_id) == *hash));
    under.flat_map(|group| group.keys.iter().cloned()).collect()
}

fn is_of(key: &KeyName, hash: &KeyIdHash) -> bool {
    match key {
        KeyName::KeyId { key_id, .. } | KeyName::Generation { key_id, .. } => KeyIdHash::of(key_id) == *hash,
        KeyName::KeyIdHash { hash: own, .. } => own == hash,
        _ => false,
    }
}

/// A version of a KEK of which another version is known to be the active one. Those of another plugin's KEKs are its own
/// business.
fn is_out_of_use(journal: &Journal, key: &KeyName) -> bool {
    let KeyName::Kek { lineage, .. } = key else { return false };
    let of_the_same = |key: &KeyName| matches!(key, KeyName::Kek { lineage: of, .. } if of == lineage);
    journal.target_keys.iter().any(of_the_same) && !journal.target_keys.contains(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rotation::journal::intent::Intent;

    fn version(version: &str) -> KeyName {
        KeyName::Kek { lineage: "aa".into(), version: version.into() }
    }

    fn report(provider: &str, key_id: &str) -> Report {
        Report { server: "s".into(), provider: provider.into(), hash: KeyIdHash::of(key_id) }
    }

    fn is_shown(reports: &[Report]) -> bool {
        is_shown_beside(reports, &[])
    }

    fn is_shown_beside(reports: &[Report], readers: &[&str]) -> bool {
        let mut journal = Journal::new(Intent::default());
        journal.target_keys = [version("2")].into();
        journal.keys_seen = [version("1"), version("2")].into();
        let resolved = |hash: &KeyIdHash| match hash {
            hash if *hash == KeyIdHash::of("former") => [version("1")].into(),
            hash if *hash == KeyIdHash::of("now") => [version("2")].into(),
            _ => BTreeSet::new(),
        };
        let readers = readers.iter().map(|name| (*name).into()).collect();
        plugins(reports, &journal, &readers, &resolved).is_shown()
    }

    #[test]
    fn a_second_provider_that_reports_the_former_key_is_seen_although_it_stored_nothing() {
        assert!(is_shown(&[report("own", "now")]));
        assert!(is_shown(&[report("own", "now"), report("other", "of another plugin")]));
        assert!(!is_shown(&[report("own", "now"), report("other", "former")]));
    }

    #[test]
    fn what_only_reads_by_the_given_file_may_use_the_former_key() {
        assert!(is_shown_beside(&[report("left", "former")], &["left"]));
    }

    #[test]
    fn a_former_key_of_another_plugin_is_seen_under_whatever_provider() {
        let mut journal = Journal::new(Intent::default());
        journal.keys_seen = [KeyName::KeyId { provider: "one".into(), key_id: "k".into() }].into();
        let nothing = |_: &KeyIdHash| BTreeSet::new();
        assert!(!plugins(&[report("two", "k")], &journal, &BTreeSet::new(), &nothing).is_shown());
        assert!(plugins(&[report("two", "another")], &journal, &BTreeSet::new(), &nothing).is_shown());
    }
}
