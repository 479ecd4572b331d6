//! Where an API server keeps each resource in etcd, below its prefix.

use std::collections::HashMap;

pub use crate::etcd::folder_of;
use crate::rotation::cluster::resources::Resource;

/// Folders whose names are not those of their resources.
const RENAMED: &[(&str, &str, &str)] = &[
    // k8s.io/kubernetes, pkg/kubeapiserver/default_storage_factory_builder.go (SpecialDefaultResourcePrefixes).
    ("", "services", "services/specs"),
    ("", "endpoints", "services/endpoints"),
    ("", "nodes", "minions"),
    ("", "replicationcontrollers", "controllers"),
    ("networking.k8s.io", "ingresses", "ingress"),
];

/// Groups that kube-apiserver itself stores: their folders do not have the group in front.
const BUILT_IN: &[&str] = &[
    "",
    "admissionregistration.k8s.io",
    "apps",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "coordination.k8s.io",
    "discovery.k8s.io",
    "events.k8s.io",
    "flowcontrol.apiserver.k8s.io",
    "internal.apiserver.k8s.io",
    "networking.k8s.io",
    "node.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "resource.k8s.io",
    "scheduling.k8s.io",
    "storage.k8s.io",
    "storagemigration.k8s.io",
];

/// Folders that API servers keep for themselves, without a resource in the API. Kubernetes 1.37 stores them in clear
/// even where the configuration says `*.*`.
const INTERNAL: &[&str] = &["masterleases", "peerserverleases", "ranges"];

/// Whether kube-apiserver itself defines the resources of this group.
pub fn is_built_in(group: &str) -> bool {
    BUILT_IN.contains(&group)
}

/// The folder of a resource below the prefix, without slashes around it.
pub fn folder(resource: &Resource) -> String {
    let (group, plural) = (resource.group.as_str(), resource.plural.as_str());
    if let Some((_, _, folder)) = RENAMED.iter().find(|renamed| (renamed.0, renamed.1) == (group, plural)) {
        return (*folder).into();
    }
    // Two groups about the API itself are stored like custom resources.
    if is_built_in(group) { plural.into() } else { format!("{group}/{plural}") }
}

/// Whether API servers keep this folder for themselves.
pub fn is_internal(folder: &str) -> bool {
    INTERNAL.contains(&folder)
}

/// The resources whose objects may lie in a folder: `plural` and `group`. More than one where the folder does not
/// tell the group.
pub fn possible_resources(folder: &str) -> Vec<(String, String)> {
    if let Some((group, plural, _)) = RENAMED.iter().find(|renamed| renamed.2 == folder) {
        return vec![((*plural).into(), (*group).into())];
    }
    match folder.split_once('/') {
        Some((group, plural)) => vec![(plural.into(), group.into())],
        None if is_internal(folder) => Vec::new(),
        None => BUILT_IN.iter().map(|group| (folder.into(), (*group).into())).collect(),
    }
}

/// The resources that an API serves, by their folders.
pub struct Folders<'a> {
    resources: HashMap<String, &'a Resource>,
}

impl<'a> Folders<'a> {
    /// Of these resources. Events have two names and one folder; the core name stays.
    pub fn of(resources: impl IntoIterator<Item = &'a Resource>) -> Self {
        let mut all: HashMap<String, &Resource> = HashMap::new();
        for resource in resources {
            let kept = all.entry(folder(resource)).or_insert(resource);
            if resource.group.is_empty() {
                *kept = resource;
            }
        }
        Self { resources: all }
    }

    /// The resource that a key (without the prefix) belongs to, if the API serves it.
    pub fn resource(&self, key: &str) -> Option<&'a Resource> {
        self.resources.get(folder_of(key)).copied()
    }

    /// Where the API serves the object of a key (without the prefix).
    pub fn path(&self, key: &str) -> Option<String> {
        let resource = self.resource(key)?;
        let rest = key.strip_prefix(folder_of(key))?.strip_prefix('/')?;
        if resource.namespaced {
            let (namespace, name) = rest.split_once('/')?;
            return Some(resource.object_path(Some(namespace), name));
        }
        Some(resource.object_path(None, rest))
    }
}

/// The key of an object, without the prefix.
pub fn key_of(resource: &Resource, namespace: Option<&str>, name: &str) -> String {
    let folder = folder(resource);
    match namespace {
        Some(namespace) => format!("{folder}/{namespace}/{name}"),
        None => format!("{folder}/{name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(plural: &str, group: &str, namespaced: bool) -> Resource {
        Resource { group: group.into(), version: "v1".into(), plural: plural.into(), namespaced }
    }

    #[test]
    fn a_key_is_told_apart_from_a_custom_resource_of_the_same_name() {
        let folder = |plural, group| folder(&resource(plural, group, true));
        assert_eq!(folder("services", ""), "services/specs");
        assert_eq!(folder("services", "serving.example.dev"), "serving.example.dev/services");
        assert_eq!(folder("deployments", "apps"), "deployments");
        assert_eq!(folder("leases", "coordination.k8s.io"), "leases");
        assert_eq!(folder("apiservices", "apiregistration.k8s.io"), "apiregistration.k8s.io/apiservices");
        assert_eq!(folder_of("serving.example.dev/services/default/a"), "serving.example.dev/services");
        assert_eq!(folder_of("services/specs/default/a"), "services/specs");
        assert_eq!(folder_of("secrets/default/a.b"), "secrets");
        assert_eq!(folder_of("secrets"), "secrets");
    }

    #[test]
    fn a_key_in_etcd_leads_to_its_path_and_back() {
        let (secrets, nodes) = (resource("secrets", "", true), resource("nodes", "", false));
        let widgets = resource("widgets", "a.b", true);
        let folders = Folders::of([&secrets, &nodes, &widgets]);
        assert_eq!(folders.path("secrets/x/y").as_deref(), Some("/api/v1/namespaces/x/secrets/y"));
        assert_eq!(folders.path("minions/n").as_deref(), Some("/api/v1/nodes/n"));
        assert_eq!(folders.path("a.b/widgets/x/y").as_deref(), Some("/apis/a.b/v1/namespaces/x/widgets/y"));
        assert_eq!(folders.path("configmaps/x/y"), None);
        assert_eq!(key_of(&widgets, Some("x"), "y"), "a.b/widgets/x/y");
        assert_eq!(key_of(&nodes, None, "n"), "minions/n");
    }

    #[test]
    fn events_of_kubernetes_are_not_those_of_another_group() {
        let (core, new) = (resource("events", "", true), resource("events", "events.k8s.io", true));
        let sources = resource("eventsources", "argoproj.io", true);
        for order in [[&core, &new, &sources], [&sources, &new, &core]] {
            let folders = Folders::of(order);
            assert_eq!(folders.resource("events/default/e"), Some(&core));
            assert!(!folders.resource("argoproj.io/eventsources/default/e").unwrap().is_event());
        }
    }
}
