//! The words of a verdict: what a journal says about the keys, for people.

use std::collections::BTreeSet;

use crate::encryption_config::ProviderName;
use crate::rotation::cluster::key_id_hash::KeyIdHash;
use crate::rotation::conclusion::destruction;
use crate::rotation::journal::Journal;
use crate::rotation::keys::name::KeyName;
use crate::rotation::leftovers::scan::{Method, Scan};

/// What a *Yes* says.
pub(super) fn yes(journal: &Journal, former: &BTreeSet<KeyName>) -> String {
    let keys: Vec<_> = former.iter().filter(|key| **key != KeyName::Clear).collect();
    let (shared, own): (Vec<_>, Vec<_>) = keys.iter().copied().partition(|key| shared(journal, key).is_some());
    let mut text = format!("Yes: nothing is stored under {}.", journal.names.show_all(keys));
    if shared.is_empty() && own.is_empty() {
        text = "Yes: nothing that should be encrypted is stored in clear. There is no former key to disable.".into();
    } else if !shared.is_empty() && !own.iter().any(|key| key.can_be_disabled()) {
        text += " There is no key to disable:";
    } else if !own.iter().any(|key| key.can_be_disabled()) {
        text += " Its DEKs are out of use; no KEK version went out of use, so there is none to disable.";
    } else {
        text += &destruction::sentence(journal, &own);
    }
    if !shared.is_empty() {
        let kek = journal.names.taken_over_kek().unwrap_or_default();
        text.extend([" ", &journal.names.show_all(shared), " is the key of KEK ", kek, ", which must stay."]);
    }
    text += &takeover(journal);
    if journal.target_keys.contains(&KeyName::Clear) {
        text += " What was encrypted with it is stored in clear now. Take the kms provider out of the \
                 EncryptionConfiguration of every API server before it is disabled.";
    }
    if former.contains(&KeyName::Clear) {
        text += " Snapshots of etcd from before this run hold data in clear: guard or delete them.";
    }
    text
}

/// What a search says that found nothing.
pub(super) fn nothing_left(journal: &Journal) -> String {
    let active = journal.names.show_all(&journal.target_keys);
    format!(
        "Nothing is stored under a former key. As far as was searched, everything is under {}.{}",
        or(&active, "the key in use"),
        takeover(journal)
    )
}

/// What may be said about the entries under `takeover` when nothing is left under a former key.
fn takeover(journal: &Journal) -> String {
    let entries: Vec<_> = journal.names.takeovers().collect();
    let needed = |scan: &Scan| scan.groups.keys().iter().any(|key| journal.is_taken_over(key));
    if entries.is_empty() || !journal.is_by_etcd() || journal.verified.as_ref().is_none_or(needed) {
        return String::new();
    }
    let caution = match journal.names.taken_over_kek() {
        Some(_) => "",
        None => " Before its key is disabled, make sure that no KEK is the same key under another name.",
    };
    format!(
        " No stored value needs the takeover entry {}: it may be removed from the configuration on every node.{caution}",
        entries.join(", ")
    )
}

/// The KEK that has the key of a former plugin, too.
fn shared<'a>(journal: &'a Journal, key: &KeyName) -> Option<&'a str> {
    journal.names.taken_over_kek().filter(|_| journal.is_taken_over(key))
}

/// Why no key was found that could be disabled: what each side uses.
pub(super) fn nothing_rotated(journal: &Journal) -> String {
    let targets: Vec<_> = journal.target_keys.iter().map(|key| journal.names.show(key)).collect();
    let used = match (targets.is_empty(), &journal.verified) {
        (false, _) => targets.join(", "),
        (true, Some(scan)) => journal.names.show_all(&scan.groups.keys()),
        (true, None) => String::new(),
    };
    format!(
        "Nothing was rotated: every key that values were stored under when this run began is still in use ({}), so there \
         is no former key to disable. {}(A former key that you know of can be named with --former.)",
        or(&used, "the one that the plugins report"),
        journal.kek_answers.iter().flat_map(|said| [said.as_str(), ". "]).collect::<String>(),
    )
}

/// The keys that a *Yes* allows to disable.
pub(super) fn may_be_disabled<'a>(
    journal: &'a Journal,
    former: &'a BTreeSet<KeyName>,
) -> impl Iterator<Item = &'a KeyName> {
    former.iter().filter(|key| key.can_be_disabled() && shared(journal, key).is_none())
}

/// The keys that must stay, each with the reason.
pub(super) fn must_stay(journal: &Journal, former: &BTreeSet<KeyName>, yes: bool) -> Vec<String> {
    let targets = journal.target_keys.iter().filter(|key| **key != KeyName::Clear);
    let mut stay: Vec<String> = targets.map(|key| format!("{}: in use", journal.names.show(key))).collect();
    if let Some(scan) = &journal.verified {
        let others = scan.groups.keys().into_iter().filter(|key| !journal.target_keys.contains(key));
        stay.extend(others.filter(|key| *key != KeyName::Clear).map(|key| {
            let (name, values) = (journal.names.show(&key), scan.groups.needing(&key));
            // Where no KEK could be asked, the target is known by its key_id alone.
            let by_key_id = journal.target_keys.is_empty() && scan.leftovers == 0;
            let why = if journal.is_target(&key) || by_key_id { "in use" } else { "not the target" };
            format!("{name}: {why}, {values} value(s)")
        }));
    }
    let listed = |key: &KeyName| {
        journal.target_keys.contains(key) || journal.verified.as_ref().is_some_and(|scan| scan.groups.needing(key) > 0)
    };
    let others = journal.keys_seen.iter().filter(|key| !listed(key));
    let by_another_name = others.filter_map(|key| Some((key, journal.same_key_in_use(key)?)));
    stay.extend(by_another_name.map(|(key, other)| {
        format!(
            "{}: it is {} by another name, which is in use; if these are two keys, rotate one of them, so that their \
             versions differ",
            journal.names.show(key),
            journal.names.show(&other)
        )
    }));
    if yes {
        let keys = former.iter().filter_map(|key| Some((key, shared(journal, key)?)));
        stay.extend(keys.map(|(key, kek)| format!("{}: it is the key of KEK {kek}", journal.names.show(key))));
    }
    if !yes {
        let keys = former.iter().filter(|key| key.can_be_disabled());
        stay.extend(keys.map(|key| format!("{}: until the verdict is Yes", journal.names.show(key))));
    }
    stay
}

/// Up to which revision and time the verdict holds.
pub(super) fn holds(journal: &Journal) -> Vec<String> {
    let Some((scan, at)) = journal.verified.as_ref().zip(journal.verified_at) else { return Vec::new() };
    let mut holds = vec![match scan.revision {
        Some(revision) => format!("up to etcd revision {revision}, {at}"),
        None => format!("up to {at}"),
    }];
    for (subject, claim) in &journal.claims {
        let revisions = claim.revisions.iter();
        holds.extend(revisions.map(|(cluster, revision)| format!("{subject:?}: etcd {cluster} revision {revision}")));
    }
    holds
}

/// What no part of the evidence covers.
pub(super) fn not_looked_at(journal: &Journal) -> Vec<String> {
    let skipped = journal.skipped.iter().map(|(what, why)| format!("{what}: {why}"));
    let unchanged = unchanged(journal).map(|provider| {
        format!(
            "provider {provider}: its key_id did not change in this run; an in-place rotation of its key cannot be seen"
        )
    });
    let beside = journal.verified.iter().flat_map(|scan| scan.beside.not_looked_at(&journal.intent.etcd_prefix));
    let blind = journal.claims.values().flat_map(|claim| claim.blind_spots.iter().cloned());
    // What no search of this cluster can find.
    let elsewhere = "whatever else uses these keys: other clusters, and backups and copies of etcd that were not named";
    let backups = destruction::not_looked_at(journal);
    skipped.chain(unchanged).chain(beside).chain(blind).chain(backups).chain([elsewhere.to_owned()]).collect()
}

/// Providers whose `key_id` is what it was at first, while none of their values was under another one.
fn unchanged(journal: &Journal) -> impl Iterator<Item = &ProviderName> {
    let groups = journal.first_survey.iter().flat_map(|scan| scan.groups.iter());
    let moved: BTreeSet<_> = groups
        .filter_map(|group| group.key_id.as_ref())
        .filter(|(provider, key_id)| journal.targets.key(provider) != Some(&KeyIdHash::of(key_id)))
        .map(|(provider, _)| provider)
        .collect();
    let same = |(provider, hash): &(&ProviderName, &KeyIdHash)| journal.former.get(*provider) == Some(*hash);
    let kept = journal.targets.plugins.iter().filter(same).map(|(provider, _)| provider);
    kept.filter(move |provider| !moved.contains(provider))
}

/// One sentence about a search.
pub fn describe(scan: &Scan) -> String {
    match scan.method {
        Method::Etcd => format!(
            "{} value(s) in etcd at revision {} were examined by key_id: {} leftover(s)",
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

/// `text`, or `otherwise` where there is none.
pub(super) fn or<'a>(text: &'a str, otherwise: &'a str) -> &'a str {
    if text.is_empty() { otherwise } else { text }
}
