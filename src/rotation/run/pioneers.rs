//! The first objects of each resource, stored again one by one with a look at etcd before and after. An empty patch that
//! changes nothing leaves the plaintext as long as it was; where it does not, the rest of the resource is left alone.

use super::states::Run;
use crate::etcd::StoredValue;
use crate::rotation::cluster::api::{Api, Metadata, MetadataList};
use crate::rotation::cluster::resources::Resource;
use crate::rotation::error::RotationError;
use crate::rotation::event::Event;
use crate::rotation::leftovers::keys_in_etcd::KeysInEtcd;
use crate::rotation::rewrite::risk::{Mutators, Risk};

/// So many objects of each resource.
const PIONEERS: u32 = 3;

/// What the pioneers of a resource showed.
#[derive(Debug, Default)]
pub(super) struct Pioneers {
    /// How many were stored again.
    pub rewritten: u64,
    /// How one of them came out otherwise than it went in.
    pub changed: Option<String>,
}

impl Run<'_> {
    /// What may change the objects of these resources; nothing for those that may be changed.
    pub(super) async fn risks(&mut self, api: &Api) -> Result<Vec<Option<Risk>>, RotationError> {
        let mutators = Mutators::find(api).await.map_err(RotationError::api("list what changes objects at updates"))?;
        let mut risks = Vec::new();
        let resources: Vec<_> = self.journal.resources.iter().map(|progress| progress.resource.clone()).collect();
        for resource in &resources {
            let risk =
                if self.settings.may_change(resource) { None } else { Some(Risk::of(api, resource, &mutators).await?) };
            self.enter_blind_spots(resource, risk.as_ref());
            risks.push(risk);
        }
        Ok(risks)
    }

    fn enter_blind_spots(&mut self, resource: &Resource, risk: Option<&Risk>) {
        let unknown = risk.iter().flat_map(|risk| risk.unknown.iter().cloned());
        let unseen = risk.filter(|risk| !risk.mutators.is_empty() && self.settings.etcd.is_none()).map(|risk| {
            format!(
                "{} may change what metadata do not show; with --etcd the lengths of the first objects are compared",
                risk.suspects()
            )
        });
        let why: Vec<String> = unknown.chain(unseen).collect();
        if !why.is_empty() {
            self.journal.skipped.insert(format!("changes of {resource} by a rewrite"), why.join("; "));
        }
    }

    /// Stores the first objects of a resource again that are older than `adopted_at`.
    pub(super) async fn pioneers(
        &self,
        api: &Api,
        keys: &KeysInEtcd,
        resource: &Resource,
        adopted_at: Option<u64>,
        risk: &Risk,
    ) -> Result<Pioneers, RotationError> {
        let mut shown = Pioneers::default();
        let Ok(answer) = api.patient().list(&resource.list_path(), PIONEERS, "").await else { return Ok(shown) };
        if answer.status != 200 {
            // The sweep says why.
            return Ok(shown);
        }
        let Ok(list) = api.parse::<MetadataList>(&answer.body) else { return Ok(shown) };
        for one in list.items.into_iter().map(|one| one.metadata) {
            let is_older = one.resource_version.parse::<u64>().ok() <= adopted_at;
            if !is_older || !would_pass(api, resource, &one, risk).await {
                continue;
            }
            let Some(before) = keys.value(resource, one.namespace.as_deref(), &one.name).await? else { continue };
            let path = resource.object_path(one.namespace.as_deref(), &one.name);
            let Ok(answer) = api.patient().patch(&path, "{}").await else { return Ok(shown) };
            if answer.status != 200 {
                continue;
            }
            let Some(after) = keys.value(resource, one.namespace.as_deref(), &one.name).await? else { continue };
            shown.rewritten += u64::from(after.revision != before.revision);
            shown.changed = changed(&path, &before, &after, risk);
            if let Some(why) = &shown.changed {
                (self.report)(Event::Note(&format!("{resource}: {why}")));
                return Ok(shown);
            }
        }
        Ok(shown)
    }
}

/// Whether nothing that can be seen beforehand would be changed.
async fn would_pass(api: &Api, resource: &Resource, one: &Metadata, risk: &Risk) -> bool {
    if risk.converted.is_some() || risk.schemas.as_ref().is_some_and(|schemas| schemas.dropped(&one.fields).is_some()) {
        return false;
    }
    if risk.mutators.is_empty() {
        return true;
    }
    let path = format!("{}?dryRun=All", resource.object_path(one.namespace.as_deref(), &one.name));
    let Ok(answer) = api.patch(&path, "{}").await else { return false };
    let tried = api.parse::<crate::rotation::cluster::api::Partial>(&answer.body);
    answer.status == 200 && tried.is_ok_and(|tried| tried.metadata.content == one.content)
}

/// Compares what was stored before and after, unless somebody else wrote in between.
fn changed(path: &str, before: &StoredValue, after: &StoredValue, risk: &Risk) -> Option<String> {
    let (was, is) = (before.plain_length?, after.plain_length?);
    (after.version == before.version + 1 && was != is).then(|| {
        format!(
            "{path} held {was} bytes and holds {is} bytes now, as the first object was stored again, and nobody else \
             wrote it: {} changed it. What it was is in etcd until the next compaction (etcdctl get {} --rev={})",
            risk.suspects(),
            before.key,
            before.revision
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(version: i64, plain_length: Option<usize>) -> StoredValue {
        StoredValue { key: "/registry/secrets/x/y".into(), version, revision: 40 + version, plain_length }
    }

    #[test]
    fn another_length_counts_only_where_nobody_else_wrote() {
        let said = |before, after| changed("/p", &before, &after, &Risk::default());
        assert_eq!(said(value(1, Some(100)), value(2, Some(100))), None);
        assert_eq!(said(value(1, Some(100)), value(3, Some(120))), None, "another client wrote, too");
        assert_eq!(said(value(1, None), value(2, Some(120))), None, "the length before is not known");
        let why = said(value(1, Some(100)), value(2, Some(120))).unwrap();
        assert!(why.contains("held 100 bytes and holds 120") && why.contains("--rev=41"), "{why}");
    }
}
