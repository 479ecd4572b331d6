//! What the API servers serve, and store themselves.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::rotation::cluster::api::{Api, null_as_empty};
use crate::rotation::cluster::resources::Resource;
use crate::rotation::error::RotationError;

const DISCOVERY: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

#[derive(Deserialize)]
struct Discovery {
    #[serde(default, deserialize_with = "null_as_empty")]
    items: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    #[serde(default)]
    metadata: Name,
    #[serde(default, deserialize_with = "null_as_empty")]
    versions: Vec<Version>,
}

#[derive(Default, Deserialize)]
struct Name {
    #[serde(default)]
    name: String,
}

#[derive(Deserialize)]
struct Version {
    version: String,
    #[serde(default, deserialize_with = "null_as_empty")]
    resources: Vec<Served>,
}

#[derive(Deserialize)]
struct Served {
    resource: String,
    scope: String,
    verbs: Vec<String>,
}

#[derive(Deserialize)]
struct ApiServices {
    #[serde(deserialize_with = "null_as_empty")]
    items: Vec<ApiService>,
}

#[derive(Deserialize)]
struct ApiService {
    spec: ApiServiceSpec,
}

#[derive(Deserialize)]
struct ApiServiceSpec {
    #[serde(default)]
    group: String,
    version: String,
    service: Option<serde::de::IgnoredAny>,
}

/// What the API servers serve.
#[derive(Debug, Default)]
pub struct ServedResources {
    /// Everything that can be listed and patched.
    pub resources: Vec<Resource>,
    /// What can be listed and not patched, so that its objects cannot be made to be stored again.
    pub unpatchable: Vec<Resource>,
    /// Versions of groups (`v1beta1.metrics.k8s.io`) that other servers serve, with storage and encryption of their own.
    pub aggregated: BTreeSet<String>,
}

/// Asks for everything that can be listed, and is stored by the API servers themselves.
///
/// # Errors
/// If the API server does not answer.
pub async fn discover(api: &Api) -> Result<ServedResources, RotationError> {
    let failed = || RotationError::api("find out which resources exist");
    let mut groups = Vec::new();
    // Two requests for all groups and versions (aggregated discovery, stable since Kubernetes 1.30) in place of one for
    // each.
    for path in ["/api", "/apis"] {
        let answer = api.get(path, DISCOVERY).await.map_err(failed())?;
        let body = api.success(answer).map_err(failed())?;
        groups.extend(api.parse::<Discovery>(&body).map_err(failed())?.items);
    }
    let services: ApiServices = api.get_json("/apis/apiregistration.k8s.io/v1/apiservices").await.map_err(failed())?;
    let aggregated = services
        .items
        .into_iter()
        // Without a service it is one of the API server's own groups.
        .filter(|service| service.spec.service.is_some())
        .map(|service| versioned(&service.spec.version, &service.spec.group))
        .collect();
    Ok(stored_here(groups, aggregated))
}

/// What is left without the versions that other servers serve. One version of a group may be aggregated while another
/// is stored here.
fn stored_here(groups: Vec<Group>, aggregated: BTreeSet<String>) -> ServedResources {
    let (mut resources, mut unpatchable) = (BTreeMap::new(), BTreeMap::new());
    for group in groups {
        let name = &group.metadata.name;
        let versions = group.versions.into_iter();
        for version in versions.filter(|version| !aggregated.contains(&versioned(&version.version, name))) {
            for served in version.resources {
                let can = |verb: &str| served.verbs.iter().any(|had| had == verb);
                // Such as TokenReview: nothing of it is stored.
                if !can("list") {
                    continue;
                }
                let kind = if can("patch") { &mut resources } else { &mut unpatchable };
                let resource = Resource {
                    group: name.clone(),
                    version: version.version.clone(),
                    namespaced: served.scope == "Namespaced",
                    plural: served.resource,
                };
                // The first version is the preferred one.
                kind.entry(resource.to_string()).or_insert(resource);
            }
        }
    }
    unpatchable.retain(|name, _| !resources.contains_key(name));
    ServedResources {
        resources: resources.into_values().collect(),
        unpatchable: unpatchable.into_values().collect(),
        aggregated,
    }
}

fn versioned(version: &str, group: &str) -> String {
    format!("{version}.{group}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_aggregated_version_does_not_hide_the_rest_of_its_group() {
        let text = r#"[{"metadata": {"name": "example.com"}, "versions": [
            {"version": "v2", "resources": [{"resource": "widgets", "scope": "Namespaced", "verbs": ["list", "patch"]}]},
            {"version": "v1", "resources": [
                {"resource": "widgets", "scope": "Namespaced", "verbs": ["list", "patch"]},
                {"resource": "views", "scope": "Cluster", "verbs": ["get", "list"]}
            ]}
        ]}]"#;
        let groups = || serde_json::from_str::<Vec<Group>>(text).unwrap();
        let found = stored_here(groups(), ["v2.example.com".to_owned()].into());
        assert_eq!(found.resources.len(), 1);
        assert_eq!((found.resources[0].plural.as_str(), found.resources[0].version.as_str()), ("widgets", "v1"));
        assert_eq!(found.unpatchable[0].plural, "views");
        let all = ["v1.example.com", "v2.example.com"].map(str::to_owned);
        assert!(stored_here(groups(), all.into()).resources.is_empty());
    }
}
