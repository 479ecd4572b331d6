//! Claims that follow from a search and from what the API servers show of themselves.

use crate::rotation::claim::{Claim, Until, Witness, counted};
use crate::rotation::cluster::ledger::Account;
use crate::rotation::journal::Journal;
use crate::rotation::leftovers::scan::{Method, Scan};

/// What every API server says that its plugins report, where nothing was written to see it.
#[must_use]
pub fn reported(servers: usize) -> Claim {
    let what = format!("the plugins of {servers} API server(s) report the target key, by the servers' metrics");
    let nothing_written = "what each API server stores under: nothing was written to see it".to_owned();
    Claim::shown(Witness::Metrics, what).blind_to([nothing_written])
}

/// That everything was looked at.
#[must_use]
pub fn searched(scan: &Scan, at: jiff::Timestamp) -> Claim {
    let (by, blind) = match scan.method {
        Method::Etcd => (Witness::Etcd, None),
        Method::Reads => (
            Witness::Metrics,
            Some("etcd itself (--etcd): values that no API serves, and revisions that are superseded".to_owned()),
        ),
    };
    let revisions = scan.revisions().map(|(cluster, revision)| (cluster.to_string(), revision)).collect();
    let what = format!("everything that is stored was examined, {} value(s)", scan.looked_at);
    Claim::shown(by, what).as_of(at).up_to(revisions).blind_to(blind)
}

/// Whether the API servers run with the configuration that was given; by the hash of the file, where they show it.
#[must_use]
pub fn configuration(journal: &Journal, accounts: &[Account]) -> Claim {
    const REMEDY: &str = "give --etcd, so that every value is examined, or the EncryptionConfiguration that this API server \
                          runs with (--encryption-config)";
    let by_etcd = journal.is_by_etcd();
    let given = journal.intent.encryption_config.as_ref();
    let Some((file, hash)) = given.and_then(|file| Some((file, journal.intent.contents.get(file)?))) else {
        let what = "the encrypted resources were guessed from metrics";
        return if by_etcd {
            Claim::shown(Witness::Etcd, format!("{what}; every value in etcd was judged by its own prefix"))
                .blind_to(["the API servers' EncryptionConfiguration: it was not given".into()])
        } else {
            Claim::not_shown(Witness::Metrics, what, "give --encryption-config, or scan etcd (--etcd)")
        };
    };
    // The server shows the name of the algorithm before the digits, and the journal has the digits alone.
    let same = |account: &&Account| account.config_hash.as_ref().is_some_and(|shown| shown.ends_with(hash.as_str()));
    let others: Vec<String> = accounts
        .iter()
        .filter(|account| !same(account))
        .map(|account| match account.config_hash {
            Some(_) => format!("API server {} runs with another file than {}", account.address, file.display()),
            None => format!("API server {} does not show which file it runs with", account.address),
        })
        .collect();
    // Without this, no account would mean no disagreement, and the claim would be shown.
    if accounts.is_empty() {
        return Claim::not_shown(Witness::Metrics, "no API server shows which file it runs with", REMEDY);
    }
    if others.is_empty() {
        let what = format!("every API server runs with {}, by the hash that it shows", file.display());
        return Claim::shown(Witness::Metrics, what).until(Until::ServersChange);
    }
    // Metrics and etcd show what a server does with objects. With another file it may write what this one only reads, for a
    // resource that has none yet.
    let differs = accounts.iter().any(|account| account.config_hash.is_some() && !same(&account));
    let without_object = journal.adoption.as_ref().map(|adoption| &adoption.not_shown).filter(|_| differs);
    let without_object =
        without_object.and_then(|resources| counted("encrypted resource(s) have no object", resources));
    if let Some(without_object) = without_object {
        let what = format!("{}, and {without_object} to see by what it would store them under", others.join("; "));
        let remedy = "give every API server the same EncryptionConfiguration, and that one to this command";
        return Claim::not_shown(Witness::Metrics, what, remedy);
    }
    if by_etcd {
        let what = "the API servers' configurations were compared by what they store and read";
        let spot = |other: String| format!("{other}: resources without objects may be configured differently there");
        return Claim::shown(Witness::Etcd, what).until(Until::ServersChange).blind_to(others.into_iter().map(spot));
    }
    Claim::not_shown(Witness::Metrics, others.join("; "), REMEDY)
}
