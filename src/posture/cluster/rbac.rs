//! Who may read Secrets through the API: encryption at rest protects from none of them.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::listing::{Named, every, not_read, some_of};
use crate::posture::finding::Finding;
use crate::rotation::cluster::api::{Api, ApiError, null_as_empty};

const CHECK: &str = "cluster: who may read Secrets";
/// What Kubernetes itself makes; <https://kubernetes.io/docs/reference/access-authn-authz/rbac/#default-roles-and-role-bindings>.
const BOOTSTRAPPING: &str = "kubernetes.io/bootstrapping";
/// Labels that have a role's rules added to the roles that every team gets.
const AGGREGATED: [&str; 2] =
    ["rbac.authorization.k8s.io/aggregate-to-view", "rbac.authorization.k8s.io/aggregate-to-read"];
/// Subjects that stand for everybody who can reach the API server, or for every pod.
const EVERYBODY: [&str; 4] =
    ["system:authenticated", "system:unauthenticated", "system:serviceaccounts", "system:anonymous"];

/// A `Role` or a `ClusterRole`.
#[derive(Debug, Deserialize)]
struct Role {
    metadata: Named,
    #[serde(default, deserialize_with = "null_as_empty")]
    rules: Vec<Rule>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Rule {
    #[serde(deserialize_with = "null_as_empty")]
    api_groups: Vec<String>,
    #[serde(deserialize_with = "null_as_empty")]
    resources: Vec<String>,
    #[serde(deserialize_with = "null_as_empty")]
    verbs: Vec<String>,
    #[serde(deserialize_with = "null_as_empty")]
    resource_names: Vec<String>,
}

/// A `RoleBinding` or a `ClusterRoleBinding`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Binding {
    metadata: Named,
    role_ref: RoleRef,
    #[serde(default, deserialize_with = "null_as_empty")]
    subjects: Vec<Subject>,
}

#[derive(Debug, Deserialize)]
struct RoleRef {
    kind: String,
    name: String,
}

#[derive(Debug, Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Subject {
    kind: String,
    name: String,
    namespace: String,
}

/// All objects of RBAC.
#[derive(Default)]
struct Rbac {
    cluster_roles: Vec<Role>,
    roles: Vec<Role>,
    bindings: Vec<Binding>,
}

pub(super) async fn check(api: &Api) -> Vec<Finding> {
    match read(api).await {
        Ok(rbac) => judge(&rbac),
        Err((what, error)) => vec![not_read(CHECK, what, &error)],
    }
}

async fn read(api: &Api) -> Result<Rbac, (&'static str, ApiError)> {
    let path = |plural: &str| format!("/apis/rbac.authorization.k8s.io/v1/{plural}");
    let failed = |what: &'static str| move |error| (what, error);
    let cluster_roles = every(api, &path("clusterroles")).await.map_err(failed("clusterroles"))?;
    let roles = every(api, &path("roles")).await.map_err(failed("roles"))?;
    let mut bindings: Vec<Binding> =
        every(api, &path("clusterrolebindings")).await.map_err(failed("clusterrolebindings"))?;
    bindings.extend(every::<Binding>(api, &path("rolebindings")).await.map_err(failed("rolebindings"))?);
    Ok(Rbac { cluster_roles, roles, bindings })
}

fn judge(rbac: &Rbac) -> Vec<Finding> {
    let readers: BTreeSet<(&str, &str)> = (rbac.cluster_roles.iter().map(|role| ("", role)))
        .chain(rbac.roles.iter().map(|role| (role.metadata.namespace.as_str(), role)))
        .filter(|(_, role)| role.rules.iter().any(Rule::reads_every_secret))
        .map(|(namespace, role)| (namespace, role.metadata.name.as_str()))
        .collect();
    let (mut everybody, mut anywhere) = (Vec::new(), BTreeMap::<String, Vec<String>>::new());
    for binding in rbac.bindings.iter().filter(|binding| readers.contains(&binding.role())) {
        for subject in &binding.subjects {
            // For everybody a binding in one namespace is as wrong as one for the cluster. For named subjects it is what RBAC
            // is for, so only those of the whole cluster are listed, without those that Kubernetes needs for itself.
            if subject.is_everybody() {
                everybody.push(format!("{} by {}", subject.described(), binding.described()));
            } else if binding.is_of_cluster() && !binding.is_of_kubernetes() {
                anywhere.entry(subject.described()).or_default().push(binding.role_ref.name.clone());
            }
        }
    }
    let mut findings = Vec::new();
    if !everybody.is_empty() {
        let detail = format!("anybody may read Secrets: {}", some_of(&everybody));
        let fix = "remove that binding, or take get, list and watch of secrets out of its role";
        findings.push(Finding::failed(CHECK, detail, fix).of_cis("5.1.2"));
    }
    let for_viewers: Vec<_> = rbac.cluster_roles.iter().filter(|role| role.is_for_viewers()).collect();
    let for_viewers: Vec<_> = for_viewers.into_iter().map(|role| role.metadata.name.clone()).collect();
    if !for_viewers.is_empty() {
        let detail =
            format!("users who may only view can read Secrets through the cluster role {}", some_of(&for_viewers));
        let fix =
            "take secrets, and resources: [\"*\"], out of it: Kubernetes' own role view leaves them out on purpose";
        findings.push(Finding::failed(CHECK, detail, fix).of_cis("5.1.2"));
    }
    if !anywhere.is_empty() {
        let names: Vec<_> =
            anywhere.iter().map(|(subject, roles)| format!("{subject} ({})", roles.join(", "))).collect();
        let detail = format!("{} subject(s) may read the Secrets of every namespace: {}", names.len(), some_of(&names));
        let fix = "see whether each needs to: bind a role in a namespace, or name the Secrets by resourceNames";
        findings.push(Finding::advice(CHECK, detail, fix).of_cis("5.1.2"));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, "nobody but Kubernetes' own subjects reads the Secrets of every namespace"));
    }
    findings
}

impl Rule {
    /// `list` and `watch` return contents, as `get` does.
    fn reads_every_secret(&self) -> bool {
        let has = |list: &[String], names: &[&str]| list.iter().any(|one| names.contains(&one.as_str()));
        // A rule that lists resourceNames grants single Secrets, which somebody chose one by one.
        has(&self.api_groups, &["", "*"])
            && has(&self.resources, &["secrets", "*"])
            && has(&self.verbs, &["get", "list", "watch", "*"])
            && self.resource_names.is_empty()
    }
}

impl Role {
    fn is_for_viewers(&self) -> bool {
        let labels = &self.metadata.labels;
        let is_aggregated = AGGREGATED.iter().any(|label| labels.get(*label).is_some_and(|value| value == "true"));
        (is_aggregated || self.metadata.name == "view") && self.rules.iter().any(Rule::reads_every_secret)
    }
}

impl Binding {
    fn is_of_cluster(&self) -> bool {
        self.metadata.namespace.is_empty()
    }

    fn is_of_kubernetes(&self) -> bool {
        self.metadata.labels.contains_key(BOOTSTRAPPING)
    }

    /// Namespace, empty for a cluster role, and name.
    fn role(&self) -> (&str, &str) {
        let namespace = if self.role_ref.kind == "ClusterRole" { "" } else { self.metadata.namespace.as_str() };
        (namespace, &self.role_ref.name)
    }

    fn described(&self) -> String {
        let Named { name, namespace, .. } = &self.metadata;
        let role = &self.role_ref.name;
        if self.is_of_cluster() {
            format!("clusterrolebinding {name} (role {role})")
        } else {
            format!("rolebinding {namespace}/{name} (role {role})")
        }
    }
}

impl Subject {
    fn is_everybody(&self) -> bool {
        // A service account may have any name in its namespace, also one of these.
        self.kind != "ServiceAccount" && EVERYBODY.contains(&self.name.as_str())
    }

    fn described(&self) -> String {
        match self.kind.as_str() {
            "ServiceAccount" => format!("service account {}/{}", self.namespace, self.name),
            kind => format!("{} {}", kind.to_lowercase(), self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::posture::finding::Outcome;

    fn rule(resources: &[&str], verbs: &[&str]) -> Value {
        json!({"apiGroups": [""], "resources": resources, "verbs": verbs})
    }

    fn of<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    fn role(name: &str, label: Option<&str>, rules: &[Value]) -> Role {
        let labels = label.map_or(json!({}), |label| json!({ label: "true" }));
        of(json!({"metadata": {"name": name, "labels": labels}, "rules": rules}))
    }

    fn bound(role: &str, namespace: &str, labels: &Value, kind: &str, subject: &str) -> Binding {
        of(json!({
            "metadata": {"name": "b", "namespace": namespace, "labels": labels},
            "roleRef": {"kind": "ClusterRole", "name": role},
            "subjects": [{"kind": kind, "name": subject, "namespace": "apps"}],
        }))
    }

    fn judged(cluster_roles: Vec<Role>, bindings: Vec<Binding>) -> Vec<(Outcome, String)> {
        let rbac = Rbac { cluster_roles, roles: Vec::new(), bindings };
        judge(&rbac).into_iter().map(|finding| (finding.result, finding.detail)).collect()
    }

    #[test]
    fn every_way_to_read_secrets_counts_and_one_that_names_them_does_not() {
        let reads = |value: Value| of::<Rule>(value).reads_every_secret();
        for (resources, verbs) in
            [(["secrets"], ["get"]), (["secrets"], ["list"]), (["secrets"], ["watch"]), (["*"], ["*"])]
        {
            assert!(reads(rule(&resources, &verbs)), "{resources:?} {verbs:?}");
        }
        assert!(reads(json!({"apiGroups": ["*"], "resources": ["pods", "secrets"], "verbs": ["get"]})));
        assert!(!reads(rule(&["secrets"], &["create"])));
        assert!(!reads(rule(&["configmaps"], &["get"])));
        assert!(!reads(json!({"apiGroups": ["apps"], "resources": ["*"], "verbs": ["*"]})));
        assert!(!reads(
            json!({"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"], "resourceNames": ["one"]})
        ));
        assert!(!reads(json!({"nonResourceURLs": ["/metrics"], "verbs": ["get"]})));
    }

    #[test]
    fn a_group_of_everybody_is_a_fault_in_one_namespace_as_in_all() {
        let reader = || vec![role("reader", None, &[rule(&["secrets"], &["list"])])];
        for (namespace, subject) in [("", "system:authenticated"), ("apps", "system:serviceaccounts")] {
            let found = judged(reader(), vec![bound("reader", namespace, &json!({}), "Group", subject)]);
            assert!(found[0].0 == Outcome::Failed && found[0].1.contains(subject), "{found:?}");
        }
        // A service account may be called anything.
        let found = judged(reader(), vec![bound("reader", "apps", &json!({}), "ServiceAccount", "system:anonymous")]);
        assert_eq!(found[0].0, Outcome::Ok, "{found:?}");
    }

    #[test]
    fn who_reads_the_secrets_of_every_namespace_is_named_unless_kubernetes_itself_bound_it() {
        let roles = || vec![role("ops", None, &[rule(&["*"], &["*"])])];
        let found = judged(roles(), vec![bound("ops", "", &json!({}), "ServiceAccount", "agent")]);
        assert_eq!(found[0].0, Outcome::Advice);
        assert!(found[0].1.contains("service account apps/agent (ops)"), "{found:?}");
        let own = json!({"kubernetes.io/bootstrapping": "rbac-defaults"});
        assert_eq!(judged(roles(), vec![bound("ops", "", &own, "Group", "system:masters")])[0].0, Outcome::Ok);
        assert_eq!(judged(roles(), vec![bound("ops", "apps", &json!({}), "User", "jane")])[0].0, Outcome::Ok);
    }

    #[test]
    fn a_role_that_is_added_to_view_must_not_read_secrets() {
        let viewers = role("more", Some("rbac.authorization.k8s.io/aggregate-to-view"), &[rule(&["*"], &["get"])]);
        let found = judged(vec![viewers], Vec::new());
        assert!(found[0].0 == Outcome::Failed && found[0].1.contains("more"), "{found:?}");
    }
}
