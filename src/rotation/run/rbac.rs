//! The least rights that a rotation needs, as RBAC objects.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::rotation::cluster::canary;
use crate::rotation::journal::{Journal, Progress};
use crate::rotation::shards::board;

const NAME: &str = "kube-envelope-rotate-keys";
const SHARD: &str = "kube-envelope-rotate-keys-shard";

/// The least rights of `rotate-keys`; where shards do the rewriting, theirs, too.
pub fn rbac(journal: &Journal, with_etcd: bool, with_shards: bool) -> String {
    let verbs = if with_etcd { "list, patch" } else { "get, list, patch" };
    let mut rules = encrypted(journal, verbs);
    let namespaces = if with_shards { "create, list" } else { "create" };
    rules.extend([
        rule("apiregistration.k8s.io", "apiservices", "list"),
        rule("admissionregistration.k8s.io", "mutatingwebhookconfigurations, mutatingadmissionpolicies", "list"),
        rule("apiextensions.k8s.io", "customresourcedefinitions", "get"),
        "- nonResourceURLs: [/metrics, /readyz]\n  verbs: [get]\n".into(),
        rule("", "namespaces", namespaces),
        rule("", "nodes", "list"),
    ]);
    let in_kube_system = [rule("coordination.k8s.io", "leases", "list"), rule("", "namespaces", "get")];
    let in_own_namespace = [
        rule("", "secrets, configmaps", "create, delete, get, patch"),
        rule("coordination.k8s.io", "leases", "create, get, patch"),
        rule("", "events", "create"),
    ];
    let mut objects = vec![
        role("ClusterRole", NAME, None, &rules),
        role("Role", NAME, Some("kube-system"), &in_kube_system),
        role("Role", NAME, Some("default"), &[rule("discovery.k8s.io", "endpointslices", "list")]),
        role("Role", NAME, Some(canary::NAMESPACE), &in_own_namespace),
    ];
    if with_shards {
        let mut rules = encrypted(journal, "list, patch");
        rules.push(rule("", "namespaces", "list"));
        objects.extend([
            role("Role", NAME, Some(board::NAMESPACE), &[rule("", "configmaps", "create, get, list, patch")]),
            role("ClusterRole", SHARD, None, &rules),
            role("Role", SHARD, Some("default"), &[rule("discovery.k8s.io", "endpointslices", "list")]),
            role("Role", SHARD, Some(board::NAMESPACE), &[rule("", "configmaps", "get, patch")]),
        ]);
    }
    objects.join("---\n")
}

fn encrypted(journal: &Journal, verbs: &str) -> Vec<String> {
    let mut groups: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for Progress { resource, .. } in &journal.resources {
        groups.entry(&resource.group).or_default().push(&resource.plural);
    }
    groups.into_iter().map(|(group, plurals)| rule(group, &plurals.join(", "), verbs)).collect()
}

fn rule(group: &str, resources: &str, verbs: &str) -> String {
    format!("- apiGroups: [\"{group}\"]\n  resources: [{resources}]\n  verbs: [{verbs}]\n")
}

fn role(kind: &str, name: &str, namespace: Option<&str>, rules: &[String]) -> String {
    let mut text = format!("apiVersion: rbac.authorization.k8s.io/v1\nkind: {kind}\nmetadata: {{name: {name}");
    if let Some(namespace) = namespace {
        write!(text, ", namespace: {namespace}").expect("a String takes everything");
    }
    text.push_str("}\nrules:\n");
    text.extend(rules.iter().map(String::as_str));
    text
}
