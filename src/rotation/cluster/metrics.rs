//! The metrics of an API server that show under which key it stores and reads.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::collections::{BTreeMap, HashMap};

use crate::encryption_config::ProviderName;
use crate::rotation::cluster::api::{Api, ApiError};
use crate::rotation::cluster::key_id_hash::KeyIdHash;

const TRANSFORMATIONS: &str = "apiserver_envelope_encryption_key_id_hash_total";
const STATUS: &str = "apiserver_envelope_encryption_key_id_hash_status_last_timestamp_seconds";
const OPERATIONS: &str = "apiserver_storage_transformation_operations_total";
const CONFIG: &str = "apiserver_encryption_config_controller_last_config_info";
const STARTED: &str = "process_start_time_seconds ";

/// What one scrape of one API server showed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scrape {
    /// Hashes of the identity Leases that the server's metrics name: who answered.
    pub identities: Vec<String>,
    /// When the process started, in seconds by its own clock.
    pub started: Option<f64>,
    /// Hash of the EncryptionConfiguration in force, where the server publishes it (1.34 and later).
    pub config_hash: Option<String>,
    /// For each provider the hash of the `key_id` that its plugin reported last, and when by the server's clock.
    pub reported: BTreeMap<ProviderName, (KeyIdHash, f64)>,
    /// Stored so far: (provider, `key_id` hash) → count.
    pub stored: BTreeMap<(ProviderName, KeyIdHash), u64>,
    /// Read so far: (provider, `key_id` hash) → count.
    pub read: BTreeMap<(ProviderName, KeyIdHash), u64>,
    /// Transformations: (resource, prefix, stored or read) → count of those that went well.
    pub operations: BTreeMap<(String, String, Direction), u64>,
}

/// Which way a value went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// Encrypted, on its way to etcd.
    Stored,
    /// Decrypted, on its way from etcd.
    Read,
}

/// Reads the metrics of one API server.
///
/// # Errors
/// An error status of the API server, or no answer.
pub async fn scrape(api: &Api) -> Result<Scrape, ApiError> {
    let answer = api.get("/metrics", "text/plain").await?;
    let body = api.success(answer)?;
    Ok(parse(&String::from_utf8_lossy(&body)))
}

/// Reads the text of a scrape; lines of no interest are skipped.
pub fn parse(text: &str) -> Scrape {
    let mut scrape = Scrape::default();
    for line in text.lines() {
        if let Some(started) = line.strip_prefix(STARTED) {
            scrape.started = started.trim().parse().ok();
        }
        let Some((name, rest)) = line.split_once('{') else { continue };
        if ![TRANSFORMATIONS, STATUS, OPERATIONS, CONFIG].contains(&name) {
            continue;
        }
        let Some((labels, value)) = sample(rest) else { continue };
        let label = |name: &str| labels.get(name).cloned().unwrap_or_default();
        let identity = label("apiserver_id_hash");
        if !identity.is_empty() && !scrape.identities.contains(&identity) {
            scrape.identities.push(identity);
        }
        let direction = match label("transformation_type").as_str() {
            "to_storage" => Direction::Stored,
            _ => Direction::Read,
        };
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a counter is a whole number")]
        let count = value as u64;
        match name {
            STATUS => {
                let newest = scrape.reported.entry(label("provider_name").into()).or_insert(("".into(), 0.0));
                if value > newest.1 {
                    *newest = (label("key_id_hash").into(), value);
                }
            }
            TRANSFORMATIONS => {
                let counts = if direction == Direction::Stored { &mut scrape.stored } else { &mut scrape.read };
                let of = (label("provider_name").into(), label("key_id_hash").into());
                let counted = counts.entry(of).or_default();
                // Not our numbers: two of them may be more than fits.
                *counted = counted.saturating_add(count);
            }
            CONFIG => scrape.config_hash = Some(label("hash")),
            // A value that could not be transformed was neither stored nor read.
            _ if label("status") == "OK" => {
                let of = (label("resource"), label("transformer_prefix"), direction);
                let counted = scrape.operations.entry(of).or_default();
                *counted = counted.saturating_add(count);
            }
            _ => {}
        }
    }
    scrape
}

/// `a="b",c="d"} 5` → labels and value. Values of labels may hold commas, braces and escaped quotes.
fn sample(mut rest: &str) -> Option<(HashMap<String, String>, f64)> {
    let mut labels = HashMap::new();
    while !rest.starts_with('}') {
        let (name, after) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut letters = after.char_indices();
        let end = loop {
            match letters.next()? {
                (_, '\\') => match letters.next()?.1 {
                    'n' => value.push('\n'),
                    letter => value.push(letter),
                },
                (at, '"') => break at,
                (_, letter) => value.push(letter),
            }
        };
        labels.insert(name.trim_start_matches(',').to_owned(), value);
        rest = after.get(end.saturating_add(1)..)?;
    }
    let value = rest.get(1..)?.split_whitespace().next()?.parse().ok()?;
    Some((labels, value))
}

/// By how much counts grew between two scrapes; only what grew.
pub fn growth<K: Ord + Clone>(before: &BTreeMap<K, u64>, after: &BTreeMap<K, u64>) -> BTreeMap<K, u64> {
    after
        .iter()
        .map(|(key, count)| (key.clone(), counted_since(before.get(key).copied(), *count)))
        .filter(|(_, grown)| *grown > 0)
        .collect()
}

/// How many were counted since a counter stood at `before`. A counter that fell began again from nothing: its server
/// was started again, or had dropped the series.
pub fn counted_since(before: Option<u64>, now: u64) -> u64 {
    before.and_then(|before| now.checked_sub(before)).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
# HELP apiserver_envelope_encryption_key_id_hash_total x
apiserver_envelope_encryption_key_id_hash_total{apiserver_id_hash="sha256:s",key_id_hash="sha256:a",provider_name="p,}\"q",transformation_type="to_storage"} 3
apiserver_envelope_encryption_key_id_hash_total{apiserver_id_hash="sha256:s",key_id_hash="sha256:b",provider_name="p",transformation_type="from_storage"} 1.2e+03
apiserver_envelope_encryption_key_id_hash_status_last_timestamp_seconds{apiserver_id_hash="sha256:s",key_id_hash="sha256:a",provider_name="p"} 1.7e+09
apiserver_envelope_encryption_key_id_hash_status_last_timestamp_seconds{apiserver_id_hash="sha256:s",key_id_hash="sha256:b",provider_name="p"} 1.8e+09
apiserver_storage_transformation_operations_total{resource="secrets",status="OK",transformation_type="from_storage",transformer_prefix="k8s:enc:kms:v2:p:"} 7
apiserver_storage_transformation_operations_total{resource="secrets",status="bad",transformation_type="from_storage",transformer_prefix="k8s:enc:kms:v2:p:"} 9
apiserver_encryption_config_controller_last_config_info{apiserver_id_hash="sha256:s",hash="sha256:c"} 1
process_start_time_seconds 1.79569953421e+09
"#;

    #[test]
    fn a_scrape_tells_what_is_reported_stored_and_read() {
        let scrape = parse(TEXT);
        assert_eq!(scrape.identities, ["sha256:s"]);
        assert_eq!((scrape.started, scrape.config_hash.as_deref()), (Some(1_795_699_534.21), Some("sha256:c")));
        assert_eq!(scrape.reported["p"].0, "sha256:b".into(), "the newest");
        assert_eq!(scrape.stored[&("p,}\"q".into(), "sha256:a".into())], 3);
        assert_eq!(scrape.read[&("p".into(), "sha256:b".into())], 1200);
        assert_eq!(scrape.operations[&("secrets".into(), "k8s:enc:kms:v2:p:".into(), Direction::Read)], 7);
    }

    #[test]
    fn a_counter_that_fell_began_again_from_nothing() {
        assert_eq!(counted_since(None, 5), 5);
        assert_eq!(counted_since(Some(3), 5), 2);
        assert_eq!(counted_since(Some(40), 5), 5, "a saturating difference would show nothing at all");
    }
}
