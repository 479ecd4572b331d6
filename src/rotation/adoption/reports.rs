//! What the plugins of all API servers report at this moment, whether something was stored through them or not.

use super::look::Seen;
use crate::encryption_config::ProviderName;
use crate::rotation::cluster::key_id_hash::KeyIdHash;
use crate::rotation::cluster::metrics::Scrape;

/// An API server asks each plugin for its Status every minute. One that a reload took away is not asked any more, and what
/// it said last stays in the metrics.
const ASKED_WITHIN_SECONDS: f64 = 180.0;

/// What one plugin reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The API server that asked it.
    pub server: String,
    /// The provider whose plugin it is.
    pub provider: ProviderName,
    /// Hash of its `key_id`.
    pub hash: KeyIdHash,
}

/// The reports of all plugins that are still asked.
pub fn reports(seen: &[Seen]) -> Vec<Report> {
    let of = |server: &Seen| {
        let live = server.scrape.iter().flat_map(live);
        let report = |(provider, hash)| Report { server: server.name(), provider, hash };
        live.map(report).collect::<Vec<_>>()
    };
    seen.iter().flat_map(of).collect()
}

/// By the server's own clock: the newest report tells what time it is there.
fn live(scrape: &Scrape) -> Vec<(ProviderName, KeyIdHash)> {
    let newest = scrape.reported.values().map(|(_, at)| *at).fold(0.0, f64::max);
    let live = scrape.reported.iter().filter(|(_, (_, at))| newest - at <= ASKED_WITHIN_SECONDS);
    live.map(|(provider, (hash, _))| (provider.clone(), hash.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_that_is_not_asked_any_more_reports_nothing() {
        let mut scrape = Scrape::default();
        for (provider, at) in [("now", 1_000.0), ("a minute ago", 930.0), ("taken away", 700.0)] {
            scrape.reported.insert(provider.into(), (KeyIdHash::of("k"), at));
        }
        let providers: Vec<_> = live(&scrape).into_iter().map(|(provider, _)| provider).collect();
        assert_eq!(providers, [ProviderName::from("a minute ago"), ProviderName::from("now")]);
    }
}
