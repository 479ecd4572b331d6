//! The verdict as a Kubernetes Event, for those who watch the cluster and not this process.

use serde_json::json;

use crate::rotation::cluster::api::{Api, ApiError};
use crate::rotation::cluster::canary::NAMESPACE;
use crate::rotation::journal::verdict::{Conclusion, Verdict};

/// The longest message that an Event may have (k8s.io/kubernetes, validation of events).
const MAX_MESSAGE_CHARS: usize = 1_000;

/// Posts the verdict beside the canary.
///
/// # Errors
/// When the Event was not stored.
pub async fn announce(api: &Api, verdict: &Verdict) -> Result<(), ApiError> {
    let yes = verdict.conclusion == Conclusion::MayBeDisabled;
    post(api, if yes { "Normal" } else { "Warning" }, reason(verdict.conclusion), &verdict.sentence).await
}

/// Posts an Event beside the canary.
///
/// # Errors
/// When the Event was not stored.
pub async fn post(api: &Api, kind: &str, reason: &str, message: &str) -> Result<(), ApiError> {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let event = json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": "rotate-keys-", "namespace": NAMESPACE},
        // The canary's Lease need not be there any more: an API server does not look for the object that an Event
        // names.
        "involvedObject": {
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "namespace": NAMESPACE, "name": "rotate-keys",
        },
        "type": kind,
        "reason": reason,
        "message": message.chars().take(MAX_MESSAGE_CHARS).collect::<String>(),
        "source": {"component": "kube-envelope"},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    });
    let answer = api.post(&format!("/api/v1/namespaces/{NAMESPACE}/events"), &event).await?;
    api.success(answer).map(|_| ())
}

fn reason(conclusion: Conclusion) -> &'static str {
    match conclusion {
        Conclusion::MayBeDisabled => "FormerKeysUnused",
        Conclusion::NothingLeftWait => "FormerKeysStillNeeded",
        Conclusion::Unproven => "RotationNotProven",
        Conclusion::Refused => "ObjectsRefused",
        Conclusion::Leftovers => "LeftoversFound",
        Conclusion::NothingRotated => "NothingRotated",
        Conclusion::NothingLeft => "NothingLeft",
    }
}
