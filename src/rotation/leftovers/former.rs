//! Whether what is stored now opens through every API server, tried on a few objects: else some of it could not be
//! rewritten, and an API server that restarts would not become ready.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::encryption_config::ProviderName;
use crate::etcd::{EtcdAccess, EtcdClusters, Stored};
use crate::rotation::cluster::api::{Api, ApiError};
use crate::rotation::cluster::listing::{Folder, Page, is_undecryptable, page_after};
use crate::rotation::cluster::resources::Resource;
use crate::rotation::error::RotationError;
use crate::rotation::leftovers::layout::Folders;
use crate::rotation::leftovers::scan::slashed;

/// How many objects of each key are tried until one opens: a single one may be damaged.
const OF_EACH_KEY: usize = 3;
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);

/// Objects that are stored alike; one that opens shows that all do.
#[derive(Debug, PartialEq)]
pub struct Samples {
    /// How they are stored, as far as it is known.
    pub stored: String,
    /// Where they lie.
    pub paths: Vec<String>,
}

/// Some objects under each key that anything in etcd is stored under.
///
/// # Errors
/// If etcd does not answer.
pub async fn samples_in_etcd(
    access: &EtcdAccess,
    prefix: &str,
    resources: &[Resource],
) -> Result<Vec<Samples>, RotationError> {
    let folders = Folders::of(resources);
    let prefix = slashed(prefix);
    let mut found: BTreeMap<(ProviderName, String), Vec<String>> = BTreeMap::new();
    for cluster in EtcdClusters::connect(access, &prefix).await?.clusters {
        cluster
            .scan(&prefix, |key, value, _| {
                let Stored::KmsV2 { provider, key_id, .. } = Stored::of(value) else { return };
                let paths = found.entry((provider, key_id)).or_default();
                // Values outside of the given resources have no path in the API, so they cannot be tried.
                if paths.len() < OF_EACH_KEY {
                    paths.extend(folders.path(key.strip_prefix(&prefix).unwrap_or(key)));
                }
            })
            .await?;
    }
    let samples = found.into_iter().filter(|(_, paths)| !paths.is_empty());
    Ok(samples
        .map(|((provider, key_id), paths)| Samples { stored: format!("{provider} under {key_id}"), paths })
        .collect())
}

/// Of each resource the object that was not stored for the longest time.
///
/// # Errors
/// An error status of the API server, or no answer.
pub async fn samples_in_lists(api: &Api, resources: &[Resource]) -> Result<Vec<Samples>, RotationError> {
    let mut samples = Vec::new();
    for resource in resources {
        let Page::Listed(list) = page_after(api, &Folder::all(resource), String::new()).await? else { continue };
        let oldest =
            // That one is the most likely to be under a former key.
            list.items.iter().min_by_key(|one| one.metadata.resource_version.parse::<u64>().unwrap_or(u64::MAX));
        samples.extend(oldest.map(|one| Samples {
            stored: "as it was".into(),
            paths: vec![resource.object_path(one.metadata.namespace.as_deref(), &one.metadata.name)],
        }));
    }
    Ok(samples)
}

/// What of it does not open through this API server, one sentence for each kind.
///
/// # Errors
/// When the server does not answer.
pub async fn unreadable_through(server: &Api, samples: &[Samples]) -> Result<Vec<String>, ApiError> {
    let mut problems = Vec::new();
    for Samples { stored, paths } in samples {
        let mut problem = None;
        for path in paths {
            problem = opens(server, path).await?.err().map(|why| {
                format!(
                    "{path} (stored {stored}) does not open through API server {}: {why}; give the plugin beside it \
                     the former key again, and try again",
                    server.address()
                )
            });
            if problem.is_none() {
                break;
            }
        }
        problems.extend(problem);
    }
    Ok(problems)
}

/// Whether one object opens; the server's words if not. The empty patch that is only tried reads from etcd, past
/// every cache of objects, and needs no right that the rewrite does not.
async fn opens(server: &Api, path: &str) -> Result<Result<(), String>, ApiError> {
    let mut tries = 0;
    loop {
        tries += 1;
        let answer = server.patch(&format!("{path}?dryRun=All"), "{}").await?;
        match answer.status {
            500 => {
                let message = answer.refusal().message;
                // What else ends so, a webhook for instance, comes after the reading.
                return Ok(if is_undecryptable(&message) { Err(message) } else { Ok(()) });
            }
            401 | 429 | 501.. if tries >= TRIES => return server.success(answer).map(|_| Ok(())),
            401 | 429 | 501.. => tokio::time::sleep(answer.retry_after.unwrap_or(PAUSE)).await,
            _ => return Ok(Ok(())),
        }
    }
}
