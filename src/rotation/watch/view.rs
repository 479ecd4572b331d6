//! What a watch tells.

use std::collections::BTreeMap;

use super::suspects::OldKeyWrite;
use crate::etcd::{ClusterId, Stored};
use crate::rotation::leftovers::census::{Census, Counted};
use crate::rotation::leftovers::judge::Expected;

/// Something that a watch tells.
#[derive(Debug)]
pub enum Told<'a> {
    /// Where it stands, from time to time.
    View(&'a View),
    /// Something was stored under a former key.
    OldKey(&'a OldKeyWrite),
    /// Something worth knowing.
    Note(&'a str),
}

/// Where a watch stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// What is stored, by resource and key.
    pub counted: Vec<Counted>,
    /// Each etcd cluster.
    pub clusters: BTreeMap<ClusterId, ClusterView>,
    /// Whether all API servers write with the same keys.
    pub agree: bool,
    /// When they were asked which.
    pub asked_at: jiff::Timestamp,
    /// How often everything was counted from the beginning.
    pub censuses: u64,
}

/// How far one cluster was followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClusterView {
    /// The revision up to which everything was seen.
    pub revision: i64,
    /// As of when everything that was stored was seen; `None` before that was ever so.
    pub complete_at: Option<jiff::Timestamp>,
}

impl View {
    /// How many values are leftovers.
    pub fn leftovers(&self) -> u64 {
        self.counted.iter().filter(|one| one.left).map(|one| one.values).sum()
    }
}

/// The censuses of several clusters in one: a resource lies in one of them, and a folder such as `masterleases` may
/// lie in each.
pub(super) fn together<'a>(censuses: impl Iterator<Item = &'a Census>, wanted: &[Expected]) -> Vec<Counted> {
    let mut all: BTreeMap<(String, Stored), (u64, bool)> = BTreeMap::new();
    for Counted { resource, stored, values, left } in censuses.flat_map(|census| census.judged(wanted)) {
        let sum = all.entry((resource, stored)).or_insert((0, left));
        sum.0 = sum.0.saturating_add(values);
    }
    let counted = |((resource, stored), (values, left))| Counted { resource, stored, values, left };
    all.into_iter().map(counted).collect()
}
