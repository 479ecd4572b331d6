//! What an adoption shows, as claims.

use crate::encryption_config::ProviderName;
use crate::rotation::adoption::{Adoption, Evidence, joined};
use crate::rotation::claim::{Claim, Subject, Until, Witness, counted};
use crate::rotation::cluster::roster::Doubt;

const READ_METRICS: &str = "let this user read /metrics of each API server, and name each with --server";

/// The claims about the API servers that follow from an adoption. `searched`: when everything was searched last.
#[must_use]
pub fn claims(adoption: &Adoption, searched: Option<jiff::Timestamp>) -> [(Subject, Claim); 4] {
    let claims = if adoption.evidence == Evidence::WriteProof {
        [
            (Subject::Roster, roster(adoption.servers.len(), &adoption.doubts, "then rotate-keys --resume")),
            (Subject::Adoption, written(adoption)),
            (Subject::Readability, read(adoption)),
            (Subject::Ledger, ledger(adoption, searched)),
        ]
    } else {
        let unknown = |what: &str| Claim::not_shown(Witness::Operator, what, READ_METRICS);
        [
            (Subject::Roster, unknown("which API servers exist was not established: their metrics cannot be read")),
            (Subject::Adoption, unknown("what each API server stores under was not seen; only time has passed")),
            (Subject::Readability, unknown("that each API server reads what the others write was not seen at each")),
            (Subject::Ledger, unknown("what each API server stored since is not known")),
        ]
    };
    claims.map(|(subject, claim)| (subject, claim.as_of(adoption.at).until(Until::ServersChange)))
}

/// Which API servers exist: so many were met, and these doubts speak against their being all.
#[must_use]
pub fn roster(met: usize, doubts: &[Doubt], remedy: &str) -> Claim {
    if !doubts.is_empty() {
        return Claim::not_shown(Witness::Api, joined(doubts), remedy);
    }
    let what = format!(
        "{met} API server(s) were reached, and neither identity Leases nor endpoints nor control-plane Nodes name another one"
    );
    Claim::shown(Witness::Api, what)
        .blind_to(["an API server that no Lease, endpoint or Node names (--servers N says how many there are)".into()])
}

fn written(adoption: &Adoption) -> Claim {
    let what = format!(
        "{} API server(s) stored a write under the target key, by their own metrics; an empty patch through all of them \
         changed nothing",
        adoption.servers.len()
    );
    let spot = |provider: &ProviderName| {
        format!("provider {provider}: no canary shows its key, only that the API servers store its resources alike")
    };
    Claim::shown(Witness::Metrics, what).blind_to(adoption.without_canary.iter().map(spot))
}

fn read(adoption: &Adoption) -> Claim {
    let not_shown = counted("resource(s) without an object that could be read", &adoption.not_shown);
    let spot = |resources| format!("{resources}: that each API server covers them was not seen");
    let what = "each API server read what every other one had stored, and an object of each encrypted resource";
    Claim::shown(Witness::Metrics, what).blind_to(not_shown.map(spot))
}

fn ledger(adoption: &Adoption, searched: Option<jiff::Timestamp>) -> Claim {
    if searched.is_none_or(|searched| adoption.since > searched) {
        let what = "an API server changed after leftovers were looked for";
        return Claim::not_shown(Witness::Metrics, what, "rotate-keys --resume");
    }
    let (since, at) = (adoption.since, adoption.at);
    let what = format!("nothing was stored under another key from {since} to {at}, by counters of the servers' own");
    Claim::shown(Witness::Metrics, what)
}
