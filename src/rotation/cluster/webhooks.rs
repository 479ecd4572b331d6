//! The admission webhooks of a cluster: which of them may change an object, and which cannot be called.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::rotation::cluster::api::{Api, Metadata};

/// How many times an object is sent whose webhook cannot be called: the rest need not wait long for one webhook.
pub const WEBHOOK_TRIES: u32 = 5;
/// A webhook that failed for this many requests, and answered none in between, is not tried twice for one object.
const OUT_OF_ORDER: u32 = 12;

#[derive(Deserialize)]
struct Webhooks {
    #[serde(deserialize_with = "crate::rotation::cluster::api::null_as_empty")]
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

/// The webhook that could not be called, by the API server's words.
pub fn webhook_that_failed(message: &str) -> Option<&str> {
    let (_, after) = message.split_once("failed calling webhook \"")?;
    after.split('"').next()
}

/// Counts failures of each webhook. One that hangs answers after its timeout, and would hold every object up for five
/// times that.
#[derive(Debug, Default)]
pub struct Breakers {
    failures: BTreeMap<String, u32>,
}

impl Breakers {
    /// A webhook could not be called. How many times an object may be sent because of it.
    pub fn failed(&mut self, webhook: &str) -> u32 {
        let failures = self.failures.entry(webhook.into()).or_default();
        *failures += 1;
        if *failures > OUT_OF_ORDER { 1 } else { WEBHOOK_TRIES }
    }

    /// An object got through that had met this webhook before: it is in order again.
    pub fn recovered(&mut self, webhook: &str) {
        self.failures.remove(webhook);
    }

    /// Whether a webhook is out of order.
    pub fn is_open(&self) -> bool {
        self.failures.values().any(|failures| *failures > OUT_OF_ORDER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_webhook_that_only_fails_is_tried_once_for_each_object_until_it_answers() {
        let mut breakers = Breakers::default();
        assert_eq!(webhook_that_failed("failed calling webhook \"a.b.c\": timeout"), Some("a.b.c"));
        for _ in 0..OUT_OF_ORDER {
            assert_eq!(breakers.failed("a.b.c"), WEBHOOK_TRIES);
        }
        assert!(!breakers.is_open());
        assert_eq!(breakers.failed("a.b.c"), 1);
        assert!(breakers.is_open());
        assert_eq!(breakers.failed("other"), WEBHOOK_TRIES, "each webhook by itself");
        breakers.recovered("a.b.c");
        assert_eq!(breakers.failed("a.b.c"), WEBHOOK_TRIES);
    }
}
