//! Obstacles that can be known before anything is rewritten: missing rights, objects that would be refused.

use serde::Deserialize;
use serde_json::json;

use crate::rotation::cluster::api::Api;
use crate::rotation::cluster::listing::Folder;
use crate::rotation::cluster::resources::Resource;
use crate::rotation::error::RotationError;
use crate::rotation::journal::Journal;
use crate::rotation::leftovers::keys_in_etcd::KeysInEtcd;
use crate::rotation::rewrite::pace::Pace;
use crate::rotation::rewrite::risk::Risk;
use crate::rotation::rewrite::{Ask, Sweep, Tally};

const REVIEWS: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";

#[derive(Deserialize)]
struct Review {
    status: Status,
}

#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    allowed: bool,
}

/// Rights that are missing, one sentence each.
///
/// # Errors
/// An error status of the API server, or no answer.
pub async fn missing_rights(api: &Api, journal: &Journal, with_etcd: bool) -> Result<Vec<String>, RotationError> {
    // An administrator: one question in place of hundreds.
    if may(api, "*", "*", "*").await? {
        return Ok(Vec::new());
    }
    let mut missing = Vec::new();
    // Leftovers are searched in etcd by key; without etcd each object is read, as metadata only.
    let verbs: &[&str] = if with_etcd { &["list", "patch"] } else { &["list", "patch", "get"] };
    for progress in &journal.resources {
        let Resource { group, plural, .. } = &progress.resource;
        for verb in verbs {
            if !may(api, verb, group, plural).await? {
                missing.push(format!(
                    "may not {verb} {}; grant it (kube-envelope rotate-keys --print-rbac prints what is needed)",
                    progress.resource
                ));
            }
        }
    }
    Ok(missing)
}

async fn may(api: &Api, verb: &str, group: &str, resource: &str) -> Result<bool, RotationError> {
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {"verb": verb, "group": group, "resource": resource}},
    });
    let review: Review =
        api.patient().post_json(REVIEWS, &review).await.map_err(RotationError::api("ask what this user may do"))?;
    Ok(review.status.allowed)
}

/// Tries the rewrite of every object without storing anything, and enters what would be refused or changed. `risks` are
/// those of the journal's resources.
///
/// # Errors
/// An error status of the API server, or no answer.
pub async fn dry_run(
    api: &Api,
    keys: Option<&KeysInEtcd>,
    risks: &[Option<Risk>],
    journal: &mut Journal,
    pace: &mut Pace,
    seen: &mut (dyn FnMut(&Resource, &Tally, usize) + Send),
) -> Result<(), RotationError> {
    for (progress, risk) in journal.resources.iter_mut().zip(risks) {
        let (resource, risk) = (&progress.resource, risk.as_ref());
        let folders = vec![Folder::all(resource)];
        let (ask, tally) = (Ask::DryRun, &mut progress.tally);
        let sweep = Sweep { api, folders, ask, adopted_at: None, risk, pace, tally, keys };
        sweep.run(&mut |tally, limit| seen(resource, tally, limit)).await?;
        progress.done = true;
    }
    Ok(())
}
