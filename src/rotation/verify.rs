//! What counts as a leftover, and looking for them in etcd, by `key_id` and without a key.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use super::RotationError;
use super::group::Groups;
use super::metrics::key_id_hash;
use super::resources::Resource;
use crate::etcd::{EtcdAccess, EtcdReader, Stored};

/// So many leftovers are named; the rest is counted.
const NAMED: usize = 1_000;

/// What everything is to be stored under.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    /// Every encrypted resource and its provider.
    pub resources: Vec<(Resource, String)>,
    /// Provider → hash of the `key_id`.
    pub targets: BTreeMap<String, String>,
}

/// How leftovers were looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Method {
    /// Every value in etcd was looked at.
    Etcd,
    /// Every object was read through one API server, whose metrics tell under which keys.
    Reads,
}

/// What a search for leftovers found.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Scan {
    /// How it was looked for.
    pub method: Method,
    /// etcd's revision that was looked at.
    pub revision: Option<i64>,
    /// How many values or objects.
    pub looked_at: u64,
    /// Resource → how stored → how many.
    pub stored: BTreeMap<String, BTreeMap<String, u64>>,
    /// The same by the keys that the values need.
    #[serde(default)]
    pub groups: Groups,
    /// How many leftovers.
    pub leftovers: u64,
    /// How many of them are Events, which expire by themselves.
    pub expiring: u64,
    /// The leftovers by name: etcd key or path → how stored. The first thousand.
    pub named: BTreeMap<String, String>,
}

impl Scan {
    /// Nothing found yet.
    pub fn new(method: Method) -> Self {
        Self {
            method,
            revision: None,
            looked_at: 0,
            stored: BTreeMap::new(),
            groups: Groups::default(),
            leftovers: 0,
            expiring: 0,
            named: BTreeMap::new(),
        }
    }

    /// Enters one leftover by name.
    pub fn name(&mut self, place: &str, stored: &str) {
        if self.named.len() < NAMED {
            self.named.insert(place.into(), stored.into());
        }
    }
}

/// Looks at every value under `prefix` in etcd.
pub async fn scan_etcd(access: &EtcdAccess, prefix: &str, expected: &Expected) -> Result<Scan, RotationError> {
    let mut reader = EtcdReader::connect(access).await?;
    let mut scan = Scan::new(Method::Etcd);
    let mut judge = Judge::new(expected);
    let prefix = format!("{}/", prefix.trim_end_matches('/'));
    let scanned = reader
        .scan(&prefix, |key, value| {
            let label = judge.label(key.strip_prefix(&prefix).unwrap_or(key));
            let how = Stored::of(value);
            let (stored, left) = judge.judge(&label, &how);
            scan.groups.count(&how, left);
            if left {
                scan.leftovers += 1;
                scan.expiring += u64::from(label.starts_with("events"));
                scan.name(key, &stored);
            }
            *scan.stored.entry(label).or_default().entry(stored).or_default() += 1;
        })
        .await?;
    if scanned.keys == 0 {
        return Err(RotationError::Unusable(format!(
            "etcd holds nothing under {prefix}; name the API servers' --etcd-prefix with --etcd-prefix"
        )));
    }
    scan.revision = Some(scanned.revision);
    scan.looked_at = scanned.keys;
    Ok(scan)
}

/// Tells for each value whether it is a leftover.
struct Judge<'a> {
    expected: &'a Expected,
    /// Folder in etcd → the resource's name.
    folders: HashMap<String, String>,
    /// Name of a resource → its provider.
    providers: HashMap<String, String>,
    hashes: HashMap<String, String>,
}

impl<'a> Judge<'a> {
    fn new(expected: &'a Expected) -> Self {
        let all = || expected.resources.iter();
        Self {
            expected,
            folders: all().map(|(resource, _)| (folder(resource), resource.to_string())).collect(),
            providers: all().map(|(resource, provider)| (resource.to_string(), provider.clone())).collect(),
            hashes: HashMap::new(),
        }
    }

    /// The resource that a key belongs to, or its folder where it is none of those that are encrypted.
    fn label(&self, key: &str) -> String {
        let mut parts = key.split('/');
        let (first, second) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let folder =
            if first.contains('.') || first == "services" { format!("{first}/{second}") } else { first.into() };
        self.folders.get(&folder).cloned().unwrap_or(folder)
    }

    fn judge(&mut self, label: &str, stored: &Stored) -> (String, bool) {
        let provider = self.providers.get(label);
        match stored {
            Stored::Plain => ("in clear".into(), provider.is_some()),
            Stored::Otherwise(words) => (words.clone(), provider.is_some()),
            Stored::KmsV2 { provider: by, key_id, .. } => {
                let hash = self.hashes.entry(key_id.clone()).or_insert_with(|| key_id_hash(key_id));
                let current = match provider {
                    Some(provider) => provider == by && self.expected.targets.get(provider) == Some(hash),
                    // A resource that is no longer encrypted still needs the key that it was stored under.
                    None => self.expected.targets.get(by) == Some(hash),
                };
                (format!("{by} {key_id}"), !current)
            }
        }
    }
}

/// Where the API server keeps a resource under its prefix: `k8s.io/kubernetes` names most folders after the
/// resource; custom resources and two kinds about the API itself lie in the folder of their group.
pub(super) fn folder(resource: &Resource) -> String {
    let (group, plural) = (resource.group.as_str(), resource.plural.as_str());
    match (group, plural) {
        ("", "services") => "services/specs".into(),
        ("", "endpoints") => "services/endpoints".into(),
        ("", "nodes") => "minions".into(),
        ("", "replicationcontrollers") => "controllers".into(),
        ("networking.k8s.io", "ingresses") => "ingress".into(),
        ("apiregistration.k8s.io" | "apiextensions.k8s.io", _) => format!("{group}/{plural}"),
        _ if BUILT_IN.contains(&group) => plural.into(),
        _ => format!("{group}/{plural}"),
    }
}

/// Groups that kube-apiserver itself stores.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(plural: &str, group: &str) -> Resource {
        Resource { group: group.into(), version: "v1".into(), plural: plural.into(), namespaced: true }
    }

    #[test]
    fn everything_but_the_target_key_is_a_leftover() {
        let expected = Expected {
            resources: vec![(resource("secrets", ""), "p".into()), (resource("widgets", "example.com"), "p".into())],
            targets: [("p".to_owned(), key_id_hash("new"))].into(),
        };
        let mut judge = Judge::new(&expected);
        let kms = |provider: &str, key_id: &str| Stored::KmsV2 {
            provider: provider.into(),
            key_id: key_id.into(),
            keks: Vec::new(),
        };
        let secrets = judge.label("secrets/default/a");
        let widgets = judge.label("example.com/widgets/default/a");
        let maps = judge.label("configmaps/default/a");
        assert_eq!((secrets.as_str(), widgets.as_str()), ("secrets", "widgets.example.com"));
        assert!(!judge.judge(&secrets, &kms("p", "new")).1);
        assert!(judge.judge(&secrets, &kms("p", "old")).1);
        assert!(judge.judge(&secrets, &kms("q", "new")).1);
        assert!(judge.judge(&secrets, &Stored::Plain).1);
        assert!(judge.judge(&secrets, &Stored::Otherwise("aescbc v1 k".into())).1);
        assert!(judge.judge(&widgets, &kms("p", "old")).1);
        assert!(!judge.judge(&maps, &Stored::Plain).1, "not encrypted, by configuration");
        assert!(judge.judge(&maps, &kms("p", "old")).1, "no longer encrypted, and needs the old key");
    }

    #[test]
    fn a_key_is_told_apart_from_a_custom_resource_of_the_same_name() {
        assert_eq!(folder(&resource("services", "")), "services/specs");
        assert_eq!(folder(&resource("services", "serving.example.dev")), "serving.example.dev/services");
        assert_eq!(folder(&resource("deployments", "apps")), "deployments");
        assert_eq!(folder(&resource("leases", "coordination.k8s.io")), "leases");
        assert_eq!(folder(&resource("apiservices", "apiregistration.k8s.io")), "apiregistration.k8s.io/apiservices");
    }
}
