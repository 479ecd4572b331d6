//! What sees each update and may change the object: mutating webhooks and mutating admission policies.

use serde::Deserialize;

use crate::rotation::cluster::api::{Api, ApiError, null_as_empty};
use crate::rotation::cluster::resources::Resource;

const ADMISSION: &str = "/apis/admissionregistration.k8s.io";
/// The versions that policies are served in, by release of Kubernetes.
const POLICY_VERSIONS: [&str; 3] = ["v1", "v1beta1", "v1alpha1"];

/// Everything that may change an object when it is updated.
#[derive(Clone, Debug, Default)]
pub struct Mutators {
    all: Vec<Mutator>,
    /// Why they are not known.
    unknown: Option<String>,
}

#[derive(Clone, Debug)]
struct Mutator {
    name: String,
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
struct List {
    #[serde(default, deserialize_with = "null_as_empty")]
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    metadata: Named,
    #[serde(default, deserialize_with = "null_as_empty")]
    webhooks: Vec<Webhook>,
    spec: Option<PolicySpec>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

#[derive(Deserialize)]
struct Webhook {
    #[serde(default, deserialize_with = "null_as_empty")]
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PolicySpec {
    match_constraints: Option<Constraints>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Constraints {
    #[serde(default, deserialize_with = "null_as_empty")]
    resource_rules: Vec<Rule>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    #[serde(default, deserialize_with = "null_as_empty")]
    api_groups: Vec<String>,
    #[serde(default, deserialize_with = "null_as_empty")]
    operations: Vec<String>,
    #[serde(default, deserialize_with = "null_as_empty")]
    resources: Vec<String>,
}

impl Mutators {
    /// Asks the API server for them. Where they may not be listed, each resource may have some.
    ///
    /// # Errors
    /// If the API server does not answer.
    pub async fn find(api: &Api) -> Result<Self, ApiError> {
        let mut found = Self::default();
        found.add(api, "mutating webhook", &format!("{ADMISSION}/v1/mutatingwebhookconfigurations")).await?;
        // Each version that is served shows the same policies, so the first one is enough.
        for version in POLICY_VERSIONS {
            if found
                .add(api, "mutating admission policy", &format!("{ADMISSION}/{version}/mutatingadmissionpolicies"))
                .await?
            {
                break;
            }
        }
        Ok(found)
    }

    /// Whether these are served, or may not be seen.
    async fn add(&mut self, api: &Api, what: &str, path: &str) -> Result<bool, ApiError> {
        let answer = api.patient().get(path, "application/json").await?;
        match answer.status {
            // Not served by this release, or not switched on.
            404 => return Ok(false),
            // Each resource then counts as one that something may change: every object is tried first.
            401 | 403 => self.unknown = Some(format!("a {what}, for these may not be listed")),
            _ => {
                let list: List = api.parse(&api.success(answer)?)?;
                self.all.extend(list.items.into_iter().map(|item| item.mutator(what)));
            }
        }
        Ok(true)
    }

    /// Those that see updates of this resource.
    pub fn of(&self, resource: &Resource) -> Vec<String> {
        let sees = |mutator: &&Mutator| mutator.rules.iter().any(|rule| rule.sees(resource));
        let known = self.all.iter().filter(sees).map(|mutator| mutator.name.clone());
        known.chain(self.unknown.clone()).collect()
    }
}

impl Item {
    fn mutator(self, what: &str) -> Mutator {
        let constraints = self.spec.and_then(|spec| spec.match_constraints);
        let rules = self.webhooks.into_iter().flat_map(|webhook| webhook.rules);
        let rules = rules.chain(constraints.into_iter().flat_map(|constraints| constraints.resource_rules)).collect();
        Mutator { name: format!("the {what} {}", self.metadata.name), rules }
    }
}

impl Rule {
    /// Versions are not compared: an API server converts an object for a rule about another version of its group.
    fn sees(&self, resource: &Resource) -> bool {
        let has = |all: &[String], wanted: &[&str]| all.iter().any(|one| wanted.contains(&one.as_str()));
        has(&self.operations, &["UPDATE", "*"])
            && has(&self.api_groups, &[&resource.group, "*"])
            && has(&self.resources, &[&resource.plural, "*", "*/*"])
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_sees_an_update_of_a_resource_is_known_from_its_rules() {
        let rule = |groups: &[&str], operations: &[&str], resources: &[&str]| json!({"apiGroups": groups, "operations": operations, "resources": resources, "apiVersions": ["v1"]});
        let webhook = |rule: serde_json::Value| json!([{"name": "a.b.c", "rules": [rule]}]);
        let list: List = serde_json::from_value(json!({"items": [
            {"metadata": {"name": "injector"}, "webhooks": webhook(rule(&["apps"], &["*"], &["deployments"]))},
            {"metadata": {"name": "pods"}, "webhooks": webhook(rule(&[""], &["CREATE"], &["*"]))},
            {"metadata": {"name": "all"}, "spec": {"matchConstraints": {"resourceRules": [rule(&["*"], &["UPDATE"], &["*/*"])]}}},
            {"metadata": {"name": "status"}, "webhooks": webhook(rule(&["*"], &["UPDATE"], &["*/status"]))},
        ]}))
        .unwrap();
        let mutators =
            Mutators { all: list.items.into_iter().map(|item| item.mutator("rule")).collect(), unknown: None };
        let of = |plural: &str, group: &str| {
            let (plural, group, version) = (plural.into(), group.into(), "v1".into());
            mutators.of(&Resource { group, version, plural, namespaced: true })
        };
        assert_eq!(of("deployments", "apps"), ["the rule injector", "the rule all"]);
        assert_eq!(of("secrets", ""), ["the rule all"]);
        let unknown = Mutators { unknown: Some("something".into()), ..Mutators::default() };
        assert_eq!(
            unknown.of(&Resource {
                group: String::new(),
                version: "v1".into(),
                plural: "secrets".into(),
                namespaced: true
            }),
            ["something"]
        );
    }
}
