//! The objects of a resource by their keys in etcd, for a resource that the API cannot list because one of its objects
//! cannot be read: all others are then asked for by name.

use crate::etcd::{EtcdAccess, EtcdClusters, StoredValue, Stride};
use crate::rotation::cluster::api::{Metadata, MetadataList, Partial};
use crate::rotation::cluster::listing::{Folder, PAGE};
use crate::rotation::cluster::resources::Resource;
use crate::rotation::error::RotationError;
use crate::rotation::leftovers::layout::{folder, key_of};
use crate::rotation::leftovers::scan::slashed;

/// Where keys are read.
#[derive(Clone, Debug)]
pub struct KeysInEtcd {
    etcd: EtcdClusters,
    prefix: String,
}

/// Where the next page begins: in which cluster, and after which key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Position {
    cluster: usize,
    after: String,
    stride: Stride,
}

impl KeysInEtcd {
    /// Connects to every cluster.
    ///
    /// # Errors
    /// If no endpoint answers.
    pub async fn connect(access: &EtcdAccess, prefix: &str) -> Result<Self, RotationError> {
        let prefix = slashed(prefix);
        Ok(Self { etcd: EtcdClusters::connect(access, &prefix).await?, prefix })
    }

    /// The etcd clusters that the endpoints lead to.
    pub fn clusters(&self) -> &EtcdClusters {
        &self.etcd
    }

    /// How one object is stored now, in whichever cluster it lies.
    ///
    /// # Errors
    /// If etcd answers with an error.
    pub async fn value(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Option<StoredValue>, RotationError> {
        let key = format!("{}{}", self.prefix, key_of(resource, namespace, name));
        for cluster in &self.etcd.clusters {
            if let Some(stored) = cluster.value(&key).await? {
                return Ok(Some(stored));
            }
        }
        Ok(None)
    }

    /// One page, and where the next one begins. `None` begins at the start.
    ///
    /// # Errors
    /// If etcd answers with an error.
    pub async fn page(
        &self,
        of: &Folder,
        from: Option<Position>,
    ) -> Result<(MetadataList, Option<Position>), RotationError> {
        let under = match &of.namespace {
            Some(namespace) => format!("{}{}/{namespace}/", self.prefix, folder(&of.resource)),
            None => format!("{}{}/", self.prefix, folder(&of.resource)),
        };
        let mut from = from.unwrap_or_default();
        let mut list =
            MetadataList { metadata: crate::rotation::cluster::api::ListMetadata::default(), items: Vec::new() };
        let Some(cluster) = self.etcd.clusters.get(from.cluster) else { return Ok((list, None)) };
        let keys = cluster.keys_after(&under, &from.after, PAGE as usize, &mut from.stride).await?;
        let inside = format!("{}{}/", self.prefix, folder(&of.resource));
        list.items = keys.iter().filter_map(|(key, at)| partial(key.strip_prefix(&inside)?, *at, of)).collect();
        let next = match keys.last() {
            // A full page may end at the last key, too; the next one is then empty.
            Some((key, _)) if keys.len() == PAGE as usize => Position { after: key.clone(), ..from },
            _ => Position { cluster: from.cluster + 1, ..Position::default() },
        };
        let ends = next.cluster >= self.etcd.clusters.len();
        Ok((list, (!ends).then_some(next)))
    }
}

/// An object as far as its key tells: its content is not known.
fn partial(rest: &str, stored_at: i64, of: &Folder) -> Option<Partial> {
    let (namespace, name) = if of.resource.namespaced {
        let (namespace, name) = rest.split_once('/')?;
        (Some(namespace.to_owned()), name)
    } else {
        (None, rest)
    };
    let resource_version = stored_at.to_string();
    Some(Partial { metadata: Metadata { name: name.into(), namespace, resource_version, ..Metadata::default() } })
}
