//! How large everything is that will be stored again: whether etcd has room for it, and which values would become too
//! large for one request to etcd.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::collections::BTreeMap;

use crate::etcd::{EtcdClusters, stored_length};
use crate::rotation::error::RotationError;
use crate::rotation::leftovers::layout::Folders;
use crate::rotation::leftovers::scan::slashed;

/// What etcd takes in one request unless `--max-request-bytes` says otherwise.
const MAX_REQUEST: usize = 1_572_864;
/// The request also holds the key three times, and its own structure.
const AROUND: usize = 128;
/// What a KMS v2 provider adds to a value, where none is there to be measured: `key_id`, wrapped seed and annotations
/// of kube-envelope with three KEKs.
const ASSUMED_OVERHEAD: usize = 1_024;
/// How many values are named.
const NAMED: usize = 1_000;

/// What is there to be stored again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Bytes of all values of the encrypted resources.
    pub bytes: u64,
    /// Objects whose value will be too large: path → why.
    pub too_large: BTreeMap<String, String>,
}

/// Measures the values of these resources.
///
/// # Errors
/// If etcd answers with an error.
pub async fn measure(etcd: &EtcdClusters, prefix: &str, folders: &Folders<'_>) -> Result<Sizes, RotationError> {
    let prefix = slashed(prefix);
    let (mut sizes, mut overhead) = (Sizes::default(), 0);
    let mut large: Vec<(String, usize, usize)> = Vec::new();
    for cluster in &etcd.clusters {
        cluster
            .scan(&prefix, |key, value, _| {
                let Some(path) = folders.path(key.strip_prefix(&prefix).unwrap_or(key)) else { return };
                sizes.bytes = sizes.bytes.saturating_add(value.len() as u64);
                let (plain, is_kms) = stored_length(value);
                if is_kms {
                    // The most that any value has now. That of the new key may differ by the length of its annotation.
                    overhead = overhead.max(value.len().saturating_sub(plain));
                }
                // What is smaller fits with any overhead, as annotations and wrapped seed are limited by the API
                // server.
                if plain > MAX_REQUEST / 2 && large.len() < NAMED {
                    large.push((path, plain, key.len()));
                }
            })
            .await?;
    }
    let overhead = if overhead == 0 { ASSUMED_OVERHEAD } else { overhead };
    sizes.too_large =
        large.into_iter().filter_map(|(path, plain, key)| too_large(path, plain, overhead, key)).collect();
    Ok(sizes)
}

fn too_large(path: String, plain: usize, overhead: usize, key: usize) -> Option<(String, String)> {
    let request = [overhead, key.saturating_mul(3), AROUND].into_iter().fold(plain, usize::saturating_add);
    (request > MAX_REQUEST).then(|| {
        let why = format!(
            "it would be too large: {plain} bytes become a request of about {request} bytes, and etcd accepts {MAX_REQUEST} \
             (unless its --max-request-bytes says more); make the object smaller, or raise the limit on every member"
        );
        (path, why)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_encryption_makes_too_large_is_foretold() {
        let found = |plain| too_large("/p".into(), plain, 600, 40);
        assert!(found(1_572_500).unwrap().1.contains("--max-request-bytes"));
        assert_eq!(found(1_000_000), None);
        assert_eq!(found(MAX_REQUEST - 600 - 120 - AROUND), None);
        assert!(found(MAX_REQUEST - 600 - 120 - AROUND + 1).is_some());
    }
}
