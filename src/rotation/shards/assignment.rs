//! Who rewrites what: each resource is cut into as many pieces of the same size as there are shards. A piece is a range
//! of namespaces, in the order of their names; a namespace in which a cut falls is cut by the hash of its objects' names.
//! Only the cuts are posted, and each shard works out its own pieces from them.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

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
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Assignment {
    /// Addresses of the API servers that have adopted the target key; shard i asks number i of them, round and round.
    pub servers: Vec<String>,
    /// Requests a second for each shard, at most.
    pub rate: Option<f64>,
    /// Requests at once for each shard, at most.
    pub concurrency: usize,
    /// How many shards there are.
    pub shards: usize,
    /// The resources, in the order in which each shard rewrites its part of them.
    pub resources: Vec<Divided>,
}

/// A resource, and how it is divided.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Divided {
    /// Plural, group and version of the resource.
    pub resource: Resource,
    /// Objects with a greater resource version are left alone.
    pub adopted_at: Option<u64>,
    /// What may change its objects when they are updated: each is tried first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mutators: Vec<String>,
    /// Whole, by the hash of names, or at cuts between namespaces.
    pub division: Division,
}

/// How a resource is divided among the shards.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Division {
    /// Not at all: one shard has all of it.
    Whole(usize),
    /// By the hash of the objects' names, into parts of the same size.
    ByName,
    /// At these cuts, one less than there are shards.
    Cuts(Vec<Cut>),
}

/// A piece of a resource.
#[derive(Clone, Debug, PartialEq)]
pub struct Share<'a> {
    /// Of which resource.
    pub of: &'a Divided,
    /// Which of its objects.
    pub extent: Extent<'a>,
}

/// Which objects of a resource.
#[derive(Clone, Debug, PartialEq)]
pub enum Extent<'a> {
    /// Those with such names, wherever they are.
    Names(Names),
    /// Those in a range of namespaces: from the first cut, or the beginning, up to the second, or the end.
    Namespaces(Option<&'a Cut>, Option<&'a Cut>),
}

impl Assignment {
    /// What one shard rewrites, in this order; `None` if there is no such shard.
    pub fn shares(&self, shard: usize) -> Option<Vec<Share<'_>>> {
        let own = |of| Divided::extent(of, shard, self.shards).map(|extent| Share { of, extent });
        (shard < self.shards).then(|| self.resources.iter().filter_map(own).collect())
    }
}

impl Divided {
    fn extent(&self, shard: usize, shards: usize) -> Option<Extent<'_>> {
        match &self.division {
            Division::Whole(of) => (*of == shard).then_some(Extent::Names(Names::ALL)),
            Division::ByName => {
                let cut = |at: usize| part(Names::END, at as u64, shards as u64);
                Some(Extent::Names(Names { from: cut(shard), to: cut(shard.saturating_add(1)) }))
            }
            Division::Cuts(cuts) => {
                let from = shard.checked_sub(1).and_then(|at| cuts.get(at));
                Some(Extent::Namespaces(from, cuts.get(shard)))
            }
        }
    }
}

/// A place between two objects: in a namespace, before the names whose hash is `names` or greater.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cut {
    /// The namespace that the cut falls in, or begins.
    pub namespace: String,
    /// In units of 2⁻³² of all names in it.
    pub names: u64,
}

impl Share<'_> {
    /// What is to be listed, given all namespaces.
    pub fn folders(&self, namespaces: &[String]) -> Vec<Folder> {
        let folder = |namespace: Option<&String>, names: Names| Folder {
            resource: self.of.resource.clone(),
            namespace: namespace.cloned(),
            names,
        };
        match self.extent {
            Extent::Names(names) => vec![folder(None, names)],
            Extent::Namespaces(from, to) => namespaces
                .iter()
                .map(|namespace| {
                    let (from, to) = (from.map(|cut| cut.reaches(namespace)), to.map(|cut| cut.reaches(namespace)));
                    (namespace, Names { from: from.unwrap_or(0), to: to.unwrap_or(Names::END) })
                })
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

/// Divides resources among so many shards; each with what may change its objects.
///
/// # Errors
/// An error status of the API server, or no answer.
pub async fn divide(
    api: &Api,
    resources: &[(&Progress, Vec<String>)],
    shards: usize,
) -> Result<Vec<Divided>, RotationError> {
    let (mut all, mut in_turn, mut names) = (Vec::new(), (0..shards).cycle(), None);
    for (progress, mutators) in resources {
        let division = if progress.objects <= u64::from(PAGE) {
            // Not worth a cut. They go to the shards in turn.
            Division::Whole(in_turn.next().unwrap_or_default())
        } else if progress.resource.namespaced {
            let namespaces = match &names {
                Some(namespaces) => namespaces,
                // Listed once, and only if some resource needs it: all cuts must be of the same namespaces.
                None => names.insert(namespaces(api).await?),
            };
            Division::Cuts(cuts(&counted(api, &progress.resource, namespaces).await?, shards))
        } else {
            Division::ByName
        };
        all.push(Divided {
            resource: progress.resource.clone(),
            adopted_at: progress.adopted_at,
            mutators: mutators.clone(),
            division,
        });
    }
    Ok(all)
}

async fn counted(api: &Api, resource: &Resource, namespaces: &[String]) -> Result<Vec<(String, u64)>, RotationError> {
    let counts = stream::iter(namespaces).map(|namespace| async move {
        let folder = Folder { resource: resource.clone(), namespace: Some(namespace.clone()), names: Names::ALL };
        Ok((namespace.clone(), count(api, &folder).await?))
    });
    // `buffered` keeps the order, and with it that of the names, which the cuts rely on.
    counts.buffered(COUNTS_AT_ONCE).try_collect().await
}

/// `of` times `numerator` by `denominator`, whatever an API server counted.
fn part(of: u64, numerator: u64, denominator: u64) -> u64 {
    let product = u128::from(of).saturating_mul(numerator.into());
    product.checked_div(denominator.into()).and_then(|part| part.try_into().ok()).unwrap_or(u64::MAX)
}

/// Cuts between ranges of namespaces that hold about the same number of objects.
fn cuts(counts: &[(String, u64)], shards: usize) -> Vec<Cut> {
    let total = counts.iter().fold(0_u64, |total, (_, count)| total.saturating_add(*count));
    (1..shards).map(|at| cut_at(counts, part(total, at as u64, shards as u64))).collect()
}

/// The cut that has this many objects before it.
fn cut_at(counts: &[(String, u64)], objects: u64) -> Cut {
    let mut before = 0_u64;
    for (namespace, count) in counts {
        if before.saturating_add(*count) > objects {
            // A namespace of a page or less is not worth being listed twice.
            let within =
                if *count <= u64::from(PAGE) { 0 } else { part(Names::END, objects.saturating_sub(before), *count) };
            return Cut { namespace: namespace.clone(), names: within };
        }
        before = before.saturating_add(*count);
    }
    Cut { namespace: counts.last().map(|(namespace, _)| namespace.clone()).unwrap_or_default(), names: Names::END }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assignment(shards: usize, division: Division) -> Assignment {
        let resource =
            Resource { group: String::new(), version: "v1".into(), plural: "secrets".into(), namespaced: true };
        let divided = Divided { resource, adopted_at: None, mutators: Vec::new(), division };
        Assignment { servers: Vec::new(), rate: None, concurrency: 1, shards, resources: vec![divided] }
    }

    fn folders(assignment: &Assignment, namespaces: &[String]) -> Vec<Vec<Folder>> {
        let of = |shard| assignment.shares(shard).unwrap().iter().flat_map(|share| share.folders(namespaces)).collect();
        (0..assignment.shards).map(of).collect()
    }

    /// How many objects each range gets, where every object must be in exactly one.
    fn loads(counts: &[(&str, u64)], shards: usize) -> Vec<u64> {
        let counts: Vec<(String, u64)> = counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        let namespaces: Vec<String> = counts.iter().map(|(name, _)| name.clone()).collect();
        let folders = folders(&assignment(shards, Division::Cuts(cuts(&counts, shards))), &namespaces);
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
    fn whatever_an_api_server_counts_it_is_cut() {
        let counts = [("a", u64::MAX), ("b", u64::MAX), ("c", 5)].map(|(name, count)| (name.to_owned(), count));
        let cuts = cuts(&counts, 3);
        assert_eq!(cuts.len(), 2);
        assert!(cuts.iter().all(|cut| cut.namespace == "a" && cut.names <= Names::END), "{cuts:?}");
        assert_eq!(part(7, 1, 0), u64::MAX, "there are no shards");
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
        let whole = folders(&assignment(3, Division::Whole(1)), &[]);
        assert_eq!(whole.iter().map(Vec::len).collect::<Vec<_>>(), [0, 1, 0]);
        let parts = folders(&assignment(3, Division::ByName), &[]);
        let names: Vec<_> = parts.iter().flatten().map(|folder| (folder.names.from, folder.names.to)).collect();
        assert_eq!((names[0].0, names[2].1), (0, Names::END));
        assert!(names.windows(2).all(|two| two[0].1 == two[1].0), "{names:?}");
        assert_eq!(assignment(3, Division::ByName).shares(3), None);
    }

    #[test]
    fn a_namespace_that_is_made_later_belongs_to_one_shard() {
        let counts = [("b".to_owned(), 2000), ("d".to_owned(), 2000)];
        let assignment = assignment(3, Division::Cuts(cuts(&counts, 3)));
        for late in ["a", "c", "e"] {
            let folders = folders(&assignment, &["b".to_owned(), "d".to_owned(), late.to_owned()]);
            let having = folders.iter().filter(|own| own.iter().any(|one| one.namespace.as_deref() == Some(late)));
            assert_eq!(having.count(), 1, "{late}");
        }
    }

    #[test]
    fn an_assignment_of_the_most_shards_fits_into_one_object() {
        let cut = |at: usize| Cut { namespace: format!("{at:0>63}"), names: Names::END };
        let mut all = assignment(256, Division::Cuts((1..256).map(cut).collect()));
        all.resources = vec![all.resources[0].clone(); 12];
        assert!(serde_json::to_string(&all).unwrap().len() < 512 << 10, "a ConfigMap holds 1 MiB");
    }
}
