//! Pods that run with the token of a namespace's default service account: anyone who breaks into one gets the token.

use serde::Deserialize;

use super::listing::{Named, every, not_read, some_of};
use crate::posture::finding::Finding;
use crate::rotation::cluster::api::Api;

const CHECK: &str = "cluster: default service accounts";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ServiceAccount {
    metadata: Named,
    automount_service_account_token: Option<bool>,
}

#[derive(Deserialize)]
struct Pod {
    metadata: Named,
    spec: PodSpec,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodSpec {
    service_account_name: String,
    automount_service_account_token: Option<bool>,
    host_network: bool,
}

pub(super) async fn check(api: &Api) -> Finding {
    let accounts = match every::<ServiceAccount>(api, "/api/v1/serviceaccounts").await {
        Ok(accounts) => accounts,
        Err(error) => return not_read(CHECK, "serviceaccounts", &error),
    };
    match every::<Pod>(api, "/api/v1/pods").await {
        Ok(pods) => judge(&accounts, &pods),
        Err(error) => not_read(CHECK, "pods", &error),
    }
}

fn judge(accounts: &[ServiceAccount], pods: &[Pod]) -> Finding {
    let is_mounted = |pod: &&Pod| {
        let account = accounts
            .iter()
            .find(|account| account.metadata.name == "default" && account.metadata.namespace == pod.metadata.namespace);
        // The pod's own word counts before its account's; without either it is mounted.
        let of_account = account.and_then(|account| account.automount_service_account_token);
        pod.is_of_default_account() && pod.spec.automount_service_account_token.or(of_account).unwrap_or(true)
    };
    let mounted = pods.iter().filter(is_mounted).map(|pod| format!("{}/{}", pod.metadata.namespace, pod.metadata.name));
    let mounted: Vec<_> = mounted.collect();
    if mounted.is_empty() {
        return Finding::ok(CHECK, "no pod has the token of a default service account");
    }
    let detail = format!(
        "{} pod(s) have the token of their namespace's default service account: {}",
        mounted.len(),
        some_of(&mounted)
    );
    let fix = "set automountServiceAccountToken: false on the service account default, and give pods that need the API an \
               account of their own";
    Finding::advice(CHECK, detail, fix).of_cis("5.1.5")
}

impl Pod {
    fn is_of_default_account(&self) -> bool {
        matches!(self.spec.service_account_name.as_str(), "" | "default") && !self.is_static()
    }

    /// The mirror of a static pod has no token; one on the host's network is most often one.
    fn is_static(&self) -> bool {
        self.spec.service_account_name.is_empty() && self.spec.host_network
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::posture::finding::Outcome;

    fn judged(account: Option<bool>, pod: &Value) -> Outcome {
        let accounts =
            json!([{"metadata": {"name": "default", "namespace": "a"}, "automountServiceAccountToken": account}]);
        let pods = json!([{"metadata": {"name": "p", "namespace": "a"}, "spec": pod}]);
        judge(&serde_json::from_value::<Vec<_>>(accounts).unwrap(), &serde_json::from_value::<Vec<_>>(pods).unwrap())
            .result
    }

    #[test]
    fn the_pods_own_word_counts_before_its_accounts_and_without_either_the_token_is_mounted() {
        let pod = |own: Option<bool>| json!({"serviceAccountName": "default", "automountServiceAccountToken": own});
        assert_eq!(judged(None, &pod(None)), Outcome::Advice);
        assert_eq!(judged(Some(false), &pod(None)), Outcome::Ok);
        assert_eq!(judged(Some(false), &pod(Some(true))), Outcome::Advice);
        assert_eq!(judged(None, &pod(Some(false))), Outcome::Ok);
        assert_eq!(judged(None, &json!({"serviceAccountName": "own"})), Outcome::Ok);
        assert_eq!(judged(None, &json!({"hostNetwork": true})), Outcome::Ok, "a static pod");
    }
}
