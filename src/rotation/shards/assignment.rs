//! Who rewrites what: each resource is cut into as many pieces of the same size as there are shards. A piece is a range
//! of namespaces, in the order of their names; a namespace in which a cut falls is cut by the hash of its objects' names.

use futures::stream::{self, StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};

use crate::rotation::cluster::api::Api;
use crate::rotation::cluster::listing::{Folder, Names, PAGE, count, namespaces};
use crate::rotation::cluster::resources::Resource;
use crate::rotation::error::RotationError;
use crate::rotation::journal::Progress;

/// Namespaces that are counted at once.
const COUNTS_AT_ONCE: usize = 16;

/// What the shards rewrite, and how fast.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Assignment {
    /// Addresses of the API servers that have adopted the target key; shard i asks number i of them, round and round.
    pub servers: Vec<String>,
    /// Requests a second for each shard, at most.
    pub rate: Option<f64>,
    /// Requests at once for each shard, at most.
    pub concurrency: usize,
    /// What each shard rewrites, in this order.
    pub shards: Vec<Vec<Share>>,
}

/// A piece of a resource.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Share {
    /// Of which resource.
    pub resource: Resource,
    /// Objects with a greater resource version are left alone.
    pub adopted_at: Option<u64>,
    /// Which of its objects.
    pub extent: Extent,
}

/// Which objects of a resource.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Extent {
    /// Those with such names, wherever they are.
    Names(Names),
    /// Those in a range of namespaces.
    Namespaces {
        /// Where it begins.
        from: Cut,
        /// Where it ends; open behind the last cut.
        to: Option<Cut>,
    },
}

/// A place between two objects: in a namespace, before the names whose hash is `names` or greater.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cut {
    /// The namespace.
    pub namespace: String,
    /// In units of 2⁻³² of all names in it.
    pub names: u64,
}

impl Share {
    /// What is to be listed, given all namespaces.
    pub fn folders(&self, namespaces: &[String]) -> Vec<Folder> {
        let folder = |namespace: Option<&String>, names: Names| Folder {
            resource: self.resource.clone(),
            namespace: namespace.cloned(),
            names,
        };
        match &self.extent {
            Extent::Names(names) => vec![folder(None, *names)],
            Extent::Namespaces { from, to } => namespaces
                .iter()
                .map(|namespace| (namespace, Names { from: from.reaches(namespace), to: end(to.as_ref(), namespace) }))
                .filter(|(_, names)| names.from < names.to)
                .map(|(namespace, names)| folder(Some(namespace), names))
                .collect(),
        }
    }
}

impl Cut {
    /// How much of a namespace lies before the cut.
    fn reaches(&self, namespace: &str) -> u64 {
        match namespace.cmp(self.namespace.as_str()) {
            std::cmp::Ordering::Less => Names::END,
            std::cmp::Ordering::Equal => self.names,
            std::cmp::Ordering::Greater => 0,
        }
    }
}

fn end(cut: Option<&Cut>, namespace: &str) -> u64 {
    cut.map_or(Names::END, |cut| cut.reaches(namespace))
}

/// Cuts the resources into shares for so many shards.
pub async fn divide(api: &Api, resources: &[Progress], shards: usize) -> Result<Vec<Vec<Share>>, RotationError> {
    let mut all: Vec<Vec<Share>> = vec![Vec::new(); shards];
    let mut whole = 0;
    let mut names = None;
    for progress in resources {
        let share =
            |extent: Extent| Share { resource: progress.resource.clone(), adopted_at: progress.adopted_at, extent };
        if progress.objects <= u64::from(PAGE) {
            // Not worth a cut. They go to the shards in turn.
            all[whole % shards].push(share(Extent::Names(Names::ALL)));
            whole += 1;
            continue;
        }
        let extents = if progress.resource.namespaced {
            let namespaces = match &names {
                Some(namespaces) => namespaces,
                None => names.insert(namespaces(api).await?),
            };
            ranges(&counted(api, &progress.resource, namespaces).await?, shards)
        } else {
            parts(shards)
        };
        for (shares, extent) in all.iter_mut().zip(extents) {
            shares.push(share(extent));
        }
    }
    Ok(all)
}

async fn counted(api: &Api, resource: &Resource, namespaces: &[String]) -> Result<Vec<(String, u64)>, RotationError> {
    let counts = stream::iter(namespaces).map(|namespace| async move {
        let folder = Folder { resource: resource.clone(), namespace: Some(namespace.clone()), names: Names::ALL };
        Ok((namespace.clone(), count(api, &folder).await?))
    });
    counts.buffered(COUNTS_AT_ONCE).try_collect().await
}

fn parts(shards: usize) -> Vec<Extent> {
    let cut = |at: usize| Names::END * at as u64 / shards as u64;
    (0..shards).map(|at| Extent::Names(Names { from: cut(at), to: cut(at + 1) })).collect()
}

/// Ranges of namespaces that hold about the same number of objects.
fn ranges(counts: &[(String, u64)], shards: usize) -> Vec<Extent> {
    let total: u64 = counts.iter().map(|(_, count)| count).sum();
    let mut from = Cut { namespace: String::new(), names: 0 };
    let mut ranges = Vec::with_capacity(shards);
    for at in 1..shards {
        let to = cut_at(counts, total * at as u64 / shards as u64);
        ranges.push(Extent::Namespaces { from: from.clone(), to: Some(to.clone()) });
        from = to;
    }
    ranges.push(Extent::Namespaces { from, to: None });
    ranges
}

/// The cut before which so many objects lie.
fn cut_at(counts: &[(String, u64)], objects: u64) -> Cut {
    let mut before = 0;
    for (namespace, count) in counts {
        if before + count > objects {
            // A namespace of a page or less is not worth being listed twice.
            let within = if *count <= u64::from(PAGE) { 0 } else { Names::END * (objects - before) / count };
            return Cut { namespace: namespace.clone(), names: within };
        }
        before += count;
    }
    Cut { namespace: counts.last().map(|(namespace, _)| namespace.clone()).unwrap_or_default(), names: Names::END }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource() -> Resource {
        Resource { group: String::new(), version: "v1".into(), plural: "secrets".into(), namespaced: true }
    }

    /// How many objects each range gets, where every object must be in exactly one.
    fn loads(counts: &[(&str, u64)], shards: usize) -> Vec<u64> {
        let counts: Vec<(String, u64)> = counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        let namespaces: Vec<String> = counts.iter().map(|(name, _)| name.clone()).collect();
        let folders: Vec<Vec<Folder>> = ranges(&counts, shards)
            .into_iter()
            .map(|extent| Share { resource: resource(), adopted_at: None, extent }.folders(&namespaces))
            .collect();
        let mut loads = vec![0; shards];
        for (namespace, count) in &counts {
            for number in 0..*count {
                let name = format!("s-{number}");
                let is_in =
                    |folder: &&Folder| folder.namespace.as_ref() == Some(namespace) && folder.names.contains(&name);
                let of: Vec<usize> = (0..shards).filter(|at| folders[*at].iter().filter(is_in).count() > 0).collect();
                assert_eq!(of.len(), 1, "{namespace}/{name}");
                loads[of[0]] += 1;
            }
        }
        loads
    }

    #[test]
    fn every_object_has_exactly_one_shard_and_all_have_about_the_same() {
        for counts in [
            vec![("a", 3000), ("b", 1), ("c", 2000), ("d", 40)],
            vec![("a", 0), ("b", 9000)],
            vec![("a", 400), ("b", 300), ("c", 350), ("d", 280), ("e", 310)],
        ] {
            let total: u64 = counts.iter().map(|(_, count)| count).sum();
            let loads = loads(&counts, 4);
            assert!(loads.iter().all(|load| load.abs_diff(total / 4) <= 500), "{counts:?}: {loads:?}");
        }
    }

    #[test]
    fn few_objects_and_many_shards_leave_nobody_out() {
        assert_eq!(loads(&[("a", 2), ("b", 1)], 8).iter().sum::<u64>(), 3);
        assert_eq!(loads(&[("a", 700)], 1), [700]);
    }

    #[test]
    fn a_namespace_that_is_made_later_belongs_to_one_shard() {
        let counts = [("b".to_owned(), 2000), ("d".to_owned(), 2000)];
        for late in ["a", "c", "e"] {
            let namespaces = ["b".to_owned(), "d".to_owned(), late.to_owned()];
            let having = ranges(&counts, 3).into_iter().filter(|extent| {
                let share = Share { resource: resource(), adopted_at: None, extent: extent.clone() };
                share.folders(&namespaces).iter().any(|folder| folder.namespace.as_deref() == Some(late))
            });
            assert_eq!(having.count(), 1, "{late}");
        }
    }
}
