//! The mutating webhooks of a cluster: each sees every rewrite.

use serde::Deserialize;

use super::api::{Api, Metadata};

#[derive(Deserialize)]
struct Webhooks {
    #[serde(deserialize_with = "super::api::null_as_empty")]
    items: Vec<Webhook>,
}

#[derive(Deserialize)]
struct Webhook {
    metadata: Metadata,
}

/// Names of the mutating webhooks: each may turn the empty patch into a change. Empty where they may not be listed.
pub async fn mutating_webhooks(api: &Api) -> Vec<String> {
    let path = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
    let webhooks = api.get_json::<Webhooks>(path).await.map_or_else(|_| Vec::new(), |list| list.items);
    webhooks.into_iter().map(|webhook| webhook.metadata.name).collect()
}
