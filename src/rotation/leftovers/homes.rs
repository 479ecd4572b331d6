//! Which etcd cluster holds each encrypted resource: an etcd that was given is not believed to be this cluster's, and
//! not to hold everything (`--etcd-servers-overrides`), until the API shows the same objects at the same revision.

use std::cell::Cell;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::etcd::{ClusterId, EtcdCluster, EtcdClusters, Stride};
use crate::rotation::claim::{Claim, Witness};
use crate::rotation::cluster::api::{Api, MetadataList, Partial};
use crate::rotation::cluster::listing::{is_undecryptable, until_it_stays};
use crate::rotation::cluster::resources::Resource;
use crate::rotation::error::RotationError;
use crate::rotation::leftovers::layout::{folder, key_of};
use crate::rotation::leftovers::scan::Scan;

/// How often the comparison is made again if etcd is compacted between its two sides, or the API server lags.
const ATTEMPTS: u32 = 3;
const PAUSE: std::time::Duration = std::time::Duration::from_millis(500);
/// How many objects are tried if the list fails on one that cannot be read.
const TRIED: usize = 20;

/// Where a resource lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "is")]
pub enum Home {
    /// The API has no object of it.
    Empty,
    /// This cluster holds it: at one revision, API and etcd have as many objects, and the same one at first.
    Shown {
        /// The cluster that holds it.
        cluster: ClusterId,
        /// As of this revision.
        revision: i64,
        /// How many objects there were.
        objects: u64,
    },
    /// One object is the same in the API and in this cluster; how many there are cannot be compared, since the API
    /// cannot list the resource.
    Unlistable {
        /// The cluster that holds that object.
        cluster: ClusterId,
        /// The API server's words.
        why: String,
    },
    /// The API has objects that lie in none of the clusters.
    Missing {
        /// How many objects the API has; 0 if it cannot list them.
        objects: u64,
        /// What was compared.
        why: String,
    },
}

/// Where every encrypted resource lies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Homes {
    /// Resource → where it lies.
    pub resources: BTreeMap<String, Home>,
}

impl Homes {
    /// Compares API and etcd for each resource.
    ///
    /// # Errors
    /// If etcd or the API server does not answer.
    pub async fn find<'a>(
        api: &Api,
        etcd: &EtcdClusters,
        prefix: &str,
        resources: impl IntoIterator<Item = &'a Resource>,
    ) -> Result<Self, RotationError> {
        let mut homes = Self::default();
        for resource in resources {
            let home = Search { api, etcd, prefix, resource, gave_none: Cell::new(false) }.run().await?;
            homes.resources.insert(resource.to_string(), home);
        }
        Ok(homes)
    }

    /// Resources with objects that no etcd was seen to hold, one sentence for each.
    pub fn gaps(&self) -> Vec<String> {
        let missing = self.resources.iter().filter_map(|(resource, home)| match home {
            Home::Missing { objects, why } => Some(format!(
                "{resource}: the API serves {} and {why}; name the etcd that holds them, too (the API servers' \
                 --etcd-servers-overrides tells which): --etcd URL",
                if *objects > 0 { format!("{objects} object(s)") } else { "objects that cannot be listed".into() }
            )),
            _ => None,
        });
        missing.collect()
    }

    /// Whether this cluster was seen to hold some resource.
    pub fn uses(&self, id: ClusterId) -> bool {
        self.resources.values().any(|home| home.cluster() == Some(id))
    }

    /// The cluster that holds a resource, where it was seen.
    pub fn of(&self, resource: &str) -> Option<ClusterId> {
        self.resources.get(resource).and_then(Home::cluster)
    }
}

impl Home {
    fn cluster(&self) -> Option<ClusterId> {
        match self {
            Self::Shown { cluster, .. } | Self::Unlistable { cluster, .. } => Some(*cluster),
            Self::Empty | Self::Missing { .. } => None,
        }
    }
}

struct Search<'a> {
    api: &'a Api,
    etcd: &'a EtcdClusters,
    prefix: &'a str,
    resource: &'a Resource,
    /// Whether the API was waited for once and gave no list.
    gave_none: Cell<bool>,
}

/// What comparing the API with one cluster said.
enum Compared {
    Same { revision: i64, objects: u64 },
    Unlistable(String),
    Different(String),
}

impl Search<'_> {
    async fn run(&self) -> Result<Home, RotationError> {
        let mut differences = Vec::new();
        for cluster in &self.etcd.clusters {
            // What is empty on both sides would look the same in every cluster.
            if cluster.count(&self.folder()).await?.0 == 0 {
                continue;
            }
            match self.compare(cluster).await? {
                Compared::Same { revision, objects } => {
                    return Ok(Home::Shown { cluster: cluster.id, revision, objects });
                }
                Compared::Unlistable(why) => return Ok(Home::Unlistable { cluster: cluster.id, why }),
                Compared::Different(why) => differences.push(format!("etcd cluster {} {why}", cluster.id)),
            }
        }
        if differences.is_empty() {
            differences.push("none of them is in the given etcd".into());
        }
        let why = differences.join(", ");
        Ok(match self.list("").await? {
            Ok(list) if objects(&list) == 0 => Home::Empty,
            Ok(list) => Home::Missing { objects: objects(&list), why },
            Err(problem) => Home::Missing { objects: 0, why: format!("{why} ({problem})") },
        })
    }

    fn folder(&self) -> String {
        format!("{}{}/", self.prefix, folder(self.resource))
    }

    /// Whether the API lists, as of a revision of this cluster, what lies in it.
    async fn compare(&self, cluster: &EtcdCluster) -> Result<Compared, RotationError> {
        if !self.is_in_step(cluster).await? {
            return Ok(Compared::Different("is not at the revision of the API servers' etcd".into()));
        }
        let mut problem = String::new();
        for _ in 0..ATTEMPTS {
            let (stored, revision) = cluster.count(&self.folder()).await?;
            let exactly = format!("resourceVersion={revision}&resourceVersionMatch=Exact&");
            match self.list(&exactly).await? {
                Ok(list) => return self.compare_page(cluster, &list, stored, revision).await,
                Err(why) if is_undecryptable(&why) => return self.compare_single(cluster, why).await,
                // Compacted meanwhile, or a revision that the API server's own etcd has not reached.
                Err(why) => problem = why,
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(Compared::Different(format!("has revisions that the API does not know ({problem})")))
    }

    /// Whether the objects of one page were last stored at the same revisions on both sides, and there are as many.
    async fn compare_page(
        &self,
        cluster: &EtcdCluster,
        list: &MetadataList,
        stored: u64,
        revision: i64,
    ) -> Result<Compared, RotationError> {
        let listed = objects(list);
        for Partial { metadata } in &list.items {
            let key = key_of(self.resource, metadata.namespace.as_deref(), &metadata.name);
            let at = cluster.stored_at(&format!("{}{key}", self.prefix), revision).await?;
            if at.map(|at| at.to_string()).as_deref() != Some(&metadata.resource_version) {
                return Ok(Compared::Different(format!("holds {stored} others in this folder")));
            }
        }
        Ok(if listed == stored {
            Compared::Same { revision, objects: stored }
        } else {
            Compared::Different(format!("holds {stored}, of which the API lists {listed}, at revision {revision}"))
        })
    }

    /// Whether the API server's etcd is at a revision between two that this cluster tells: a copy of the cluster, such
    /// as one restored from its snapshot, holds the same objects and is not where the cluster is now.
    async fn is_in_step(&self, cluster: &EtcdCluster) -> Result<bool, RotationError> {
        // A copy may be caught at the very revision of the original once; while that goes on, hardly twice.
        for _ in 0..2 {
            let before = cluster.revision().await?;
            let Ok(list) = self.list("").await? else { return Ok(true) };
            let after = cluster.revision().await?;
            let told: i64 = list.metadata.resource_version.parse().unwrap_or(0);
            if !(before..=after).contains(&told) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Looks for one object that is the same on both sides.
    async fn compare_single(&self, cluster: &EtcdCluster, why: String) -> Result<Compared, RotationError> {
        let folder = self.folder();
        for (key, stored_at) in cluster.keys_after(&folder, "", TRIED, &mut Stride::default()).await? {
            let rest = key.strip_prefix(&folder).unwrap_or(&key);
            let (namespace, name) = match rest.split_once('/') {
                Some((namespace, name)) if self.resource.namespaced => (Some(namespace), name),
                _ => (None, rest),
            };
            let path = self.resource.object_path(namespace, name);
            // A patch that is only tried needs no right that the rewrite does not.
            let answer = self.api.patch(&format!("{path}?dryRun=All"), "{}").await;
            let answer = answer.map_err(RotationError::api(format!("read {path}")))?;
            if answer.status == 200 {
                let one: Partial = self.api.parse(&answer.body).map_err(RotationError::api(format!("read {path}")))?;
                if one.metadata.resource_version == stored_at.to_string() {
                    return Ok(Compared::Unlistable(why));
                }
            }
        }
        Ok(Compared::Different(format!("holds objects of which none is the same in the API ({why})")))
    }

    /// The first objects of a list, or the API server's words if it gives none.
    async fn list(&self, parameters: &str) -> Result<Result<MetadataList, String>, RotationError> {
        let what = || RotationError::api(format!("list {}", self.resource));
        let path = self.resource.list_path();
        let ask = || self.api.list_at(&path, parameters);
        let answer = if self.gave_none.get() { ask().await } else { until_it_stays(self.api, ask).await };
        let answer = answer.map_err(what())?;
        // One wait is enough: the next comparison would wait as long for the same server.
        self.gave_none.set(answer.status >= 429);
        match answer.status {
            200 => self.api.parse(&answer.body).map(Ok).map_err(what()),
            401 | 403 => Err(what()(self.api.success(answer).expect_err("a refusal"))),
            status => Ok(Err(format!("{status}: {}", answer.refusal().message))),
        }
    }
}

fn objects(list: &MetadataList) -> u64 {
    (list.items.len() as u64).saturating_add(list.metadata.remaining_item_count.unwrap_or(0))
}

/// What was shown about the etcd that was given: that it is this cluster's, and that it is all of it.
pub fn claim(homes: &Homes, etcd: &EtcdClusters, scan: &Scan) -> Claim {
    let mut gaps = homes.gaps();
    for cluster in scan.clusters.iter().filter(|cluster| cluster.keys > 0 && !homes.uses(cluster.id)) {
        gaps.push(format!(
            "etcd cluster {} ({}) holds {} key(s) and nothing that this API serves: is it another cluster's?",
            cluster.id,
            cluster.endpoints.join(", "),
            cluster.keys
        ));
    }
    for (endpoint, why) in &etcd.unknown {
        gaps.push(format!("etcd endpoint {endpoint} does not answer, and no cluster lists it as a member: {why}"));
    }
    let clusters: Vec<String> = scan
        .clusters
        .iter()
        .map(|cluster| format!("{} ({}) up to revision {}", cluster.id, cluster.endpoints.join(", "), cluster.revision))
        .collect();
    let shown = homes.resources.values().filter(|home| matches!(home, Home::Shown { .. })).count();
    let what = format!(
        "every value in etcd cluster {} was read; API and etcd agree on the number of objects of {shown} encrypted \
         resource(s) with objects, and on one object of each",
        clusters.join(" and ")
    );
    let mut claim = if gaps.is_empty() {
        Claim::shown(Witness::Etcd, what)
    } else {
        Claim::not_shown(Witness::Etcd, what, format!("some data were not examined: {}", gaps.join("; ")))
    };
    claim.revisions = scan.clusters.iter().map(|cluster| (cluster.id.to_string(), cluster.revision)).collect();
    let uncounted = homes.resources.iter().filter_map(|(resource, home)| match home {
        Home::Unlistable { why, .. } => Some(format!(
            "{resource}: the API cannot list it ({why}), so its number of objects was not compared with etcd"
        )),
        _ => None,
    });
    claim.blind_to(uncounted)
}
