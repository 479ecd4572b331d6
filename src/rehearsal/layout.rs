//! Which entry of the EncryptionConfiguration decides about a folder in etcd.

use crate::encryption_config::{EncryptionConfiguration, Provider};
use crate::rotation::leftovers::layout::{is_internal, possible_resources};

/// Built-in groups with folders that name no group, and the folders of each. Whatever is in none of them is looked for
/// under every built-in group.
const GROUPS: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "configmaps",
            "controllers",
            "events",
            "limitranges",
            "minions",
            "namespaces",
            "persistentvolumeclaims",
            "persistentvolumes",
            "pods",
            "podtemplates",
            "resourcequotas",
            "secrets",
            "serviceaccounts",
            "services/endpoints",
            "services/specs",
        ],
    ),
    ("apps", &["controllerrevisions", "daemonsets", "deployments", "replicasets", "statefulsets"]),
    ("autoscaling", &["horizontalpodautoscalers"]),
    ("batch", &["cronjobs", "jobs"]),
    ("certificates.k8s.io", &["certificatesigningrequests"]),
    ("coordination.k8s.io", &["leases"]),
    ("discovery.k8s.io", &["endpointslices"]),
    ("networking.k8s.io", &["ingress", "ingressclasses", "ipaddresses", "networkpolicies", "servicecidrs"]),
    ("policy", &["poddisruptionbudgets"]),
    ("rbac.authorization.k8s.io", &["clusterrolebindings", "clusterroles", "rolebindings", "roles"]),
    ("scheduling.k8s.io", &["priorityclasses"]),
    ("storage.k8s.io", &["csidrivers", "csinodes", "storageclasses", "volumeattachments"]),
];

/// The providers that read what is in a folder. A resource that no entry names is stored in clear.
pub(super) fn providers<'a>(configuration: &'a EncryptionConfiguration, folder: &str) -> &'a [Provider] {
    const IN_CLEAR: &[Provider] = &[Provider::Identity];
    if is_internal(folder) {
        return IN_CLEAR;
    }
    let group = GROUPS.iter().find(|(_, folders)| folders.contains(&folder)).map(|(group, _)| *group);
    let resources = possible_resources(folder).into_iter().filter(|(_, of)| group.is_none_or(|group| group == of));
    let mut entries = resources.filter_map(|(plural, group)| configuration.entry(&plural, &group));
    entries.next().map_or(IN_CLEAR, |entry| &entry.providers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entry_of_a_folder_is_that_of_its_own_group() {
        let text = "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n\
                    - resources: ['*.apps']\n  providers: [{identity: {}}, {identity: {}}]\n\
                    - resources: ['*.*']\n  providers: [{aescbc: {}}]\n";
        let configuration = EncryptionConfiguration::parse(text).unwrap();
        let count = |folder| providers(&configuration, folder).len();
        assert_eq!(count("deployments"), 2);
        assert!(matches!(providers(&configuration, "secrets"), [Provider::LocalKeys(_)]));
        assert!(matches!(providers(&configuration, "services/specs"), [Provider::LocalKeys(_)]));
        assert!(matches!(providers(&configuration, "example.com/widgets"), [Provider::LocalKeys(_)]));
        assert!(matches!(providers(&configuration, "masterleases"), [Provider::Identity]));
    }
}
