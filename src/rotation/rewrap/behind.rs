//! How far the API servers are behind what is stored past them. Each has to read, open and pass on every value; what is stored
//! faster than that piles up in their memory, and whoever watches them sees the past.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::future::join_all;

use crate::etcd::folder_of;
use crate::rotation::cluster::api::{Api, escaped};
use crate::rotation::cluster::resources::Resource;
use crate::rotation::rewrite::pace::Pace;

/// How often they are asked.
const ASKS_EVERY: Duration = Duration::from_secs(1);
/// How far behind one of them may be before fewer values are stored at once.
const TOLERATED: Duration = Duration::from_secs(1);
/// How long they are waited for.
const WAITS_FOR: Duration = Duration::from_mins(1);
/// An API server waits for 3 s until it has seen a revision, and then says that it has not.
const NOT_SEEN_YET: u16 = 504;

/// The API servers, and what was stored last that they must have seen.
pub struct Watchers {
    servers: Vec<Api>,
    /// By folder.
    resources: BTreeMap<String, Resource>,
    asked: Instant,
    stored: Option<(String, i64)>,
}

impl Watchers {
    /// `resources` are those that are looked at, by folder.
    pub fn new(servers: Vec<Api>, resources: BTreeMap<String, Resource>) -> Self {
        Self { servers, resources, asked: Instant::now(), stored: None }
    }

    /// Something was stored. `key` is without the prefix.
    pub fn stored(&mut self, key: &str, revision: i64) {
        if self.stored.as_ref().is_none_or(|(_, newest)| *newest < revision) {
            self.stored = Some((key.to_owned(), revision));
        }
    }

    /// Now and then waits until every API server has seen what was stored last. One that is behind slows the pace down; one
    /// that does not answer is not waited for: whether it is there is checked elsewhere.
    pub async fn keep_up(&mut self, pace: &mut Pace) {
        if self.asked.elapsed() < ASKS_EVERY {
            return;
        }
        let path = self.stored.take().and_then(|(key, revision)| self.path(&key, revision));
        if let Some(path) = path {
            let began = Instant::now();
            while !self.have_seen(&path).await && began.elapsed() < WAITS_FOR {
                pace.throttled(None, Instant::now());
            }
            if began.elapsed() > TOLERATED {
                pace.throttled(None, Instant::now());
            }
        }
        self.asked = Instant::now();
    }

    async fn have_seen(&self, path: &str) -> bool {
        let asked = self
            .servers
            .iter()
            .map(|server| async { !server.list_one(path).await.is_ok_and(|answer| answer.status == NOT_SEEN_YET) });
        join_all(asked).await.into_iter().all(|has_seen| has_seen)
    }

    /// A list of this one object, no older than the revision: it is answered from what the server has seen by its own watch, and
    /// needs no other right than the list of all.
    fn path(&self, key: &str, revision: i64) -> Option<String> {
        let folder = folder_of(key);
        let resource = self.resources.get(folder)?;
        let object = key.strip_prefix(folder)?.strip_prefix('/')?;
        let (list, name) = match object.split_once('/') {
            Some((namespace, name)) if resource.namespaced => (resource.namespace_path(namespace), name),
            None if !resource.namespaced => (resource.list_path(), object),
            _ => return None,
        };
        let name = escaped(&format!("metadata.name={name}"));
        Some(format!("{list}?fieldSelector={name}&resourceVersion={revision}&resourceVersionMatch=NotOlderThan"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_object_is_listed_no_older_than_it_was_stored() {
        let resource = |plural: &str, namespaced| Resource {
            group: String::new(),
            version: "v1".into(),
            plural: plural.into(),
            namespaced,
        };
        let resources = [("secrets".into(), resource("secrets", true)), ("nodes".into(), resource("nodes", false))];
        let watchers = Watchers::new(Vec::new(), resources.into());
        let end = "&resourceVersion=7&resourceVersionMatch=NotOlderThan";
        let namespaced = format!("/api/v1/namespaces/default/secrets?fieldSelector=metadata.name%3Da.b{end}");
        assert_eq!(watchers.path("secrets/default/a.b", 7), Some(namespaced));
        assert_eq!(watchers.path("nodes/n", 7), Some(format!("/api/v1/nodes?fieldSelector=metadata.name%3Dn{end}")));
        assert_eq!(watchers.path("configmaps/default/a", 7), None, "it is not looked at");
        assert_eq!(watchers.path("secrets/a", 7), None, "no object of this resource");
    }
}
