//! Whether old revisions can still be read, where etcd is out of reach: an API server answers a list as of an exact
//! revision with *410 Expired* once etcd is compacted past it, and with the list until then.

use std::collections::BTreeMap;

use crate::rotation::claim::{Claim, Until, Witness};
use crate::rotation::cluster::api::Api;
use crate::rotation::cluster::resources::Resource;

/// API servers say this when their own cache does not reach back, whatever etcd still holds.
const OUT_OF_THE_CACHE: &str = "too old resource version";
const REMEDY: &str = "old revisions need the former key until the API servers have compacted etcd (every 5 minutes unless \
                      --etcd-compaction-interval says otherwise, never where it is 0): rotate-keys --resume later, or begin \
                      again with --etcd, and --compact does it at once";

/// What one list told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// The revision is compacted.
    Gone,
    /// It can still be read.
    Readable,
    /// Neither: the API server's words.
    Unknown(String),
}

/// What an answer to a list as of an exact revision tells.
fn told(status: u16, message: &str) -> Told {
    match status {
        200 => Told::Readable,
        410 if !message.starts_with(OUT_OF_THE_CACHE) => Told::Gone,
        // A 403 or 404 says nothing about etcd, and must not count as compacted.
        _ => Told::Unknown(format!("{status} {message}")),
    }
}

async fn ask(server: &Api, resource: &Resource, revision: u64) -> Told {
    let exactly = format!("resourceVersion={revision}&resourceVersionMatch=Exact&");
    match server.patient().list_at(&resource.list_path(), &exactly).await {
        Ok(answer) if answer.status == 200 => Told::Readable,
        Ok(answer) => told(answer.status, &answer.refusal().message),
        Err(error) => Told::Unknown(error.to_string()),
    }
}

/// Asks every server for every resource as of the revision before `revisions` tells: what was superseded by then is gone
/// once that one cannot be read.
pub async fn by_lists(servers: &[Api], resources: &[Resource], revisions: &BTreeMap<String, u64>) -> Claim {
    let (mut readable, mut unknown) = (Vec::new(), Vec::new());
    for resource in resources {
        let Some(revision) = revisions.get(&resource.to_string()) else {
            unknown.push(format!("the revision of {resource} after the search is not known"));
            continue;
        };
        for server in servers {
            // At the revision itself nothing was left; the one before it is the newest that may have held something.
            match ask(server, resource, revision.saturating_sub(1)).await {
                Told::Gone => {}
                Told::Readable => readable.push(format!("{resource} at API server {}", server.address())),
                Told::Unknown(why) => unknown.push(format!("{resource} at API server {}: {why}", server.address())),
            }
        }
    }
    conclude(servers.len(), resources.len(), &readable, &unknown)
}

fn conclude(servers: usize, resources: usize, readable: &[String], unknown: &[String]) -> Claim {
    let first = |all: &[String]| match all {
        [one] => one.clone(),
        [one, others @ ..] => format!("{one}, and {} more", others.len()),
        [] => String::new(),
    };
    if servers == 0 || resources == 0 || !unknown.is_empty() {
        let what = format!("that old revisions are compacted was not confirmed everywhere: {}", first(unknown));
        return Claim::not_shown(Witness::Api, what, REMEDY);
    }
    if !readable.is_empty() {
        return Claim::not_yet(Witness::Api, format!("old revisions can still be read: {}", first(readable)), REMEDY);
    }
    let what = format!(
        "no revision from before the first clean search can be read any more: {servers} API server(s) answered 410 Expired \
         for each of {resources} encrypted resource(s)"
    );
    let blind =
        "old revisions of what is not encrypted by configuration, or not served: etcd was not looked at".to_owned();
    Claim::shown(Witness::Api, what).until(Until::EtcdIsRestored).blind_to([blind])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_expired_revision_of_etcd_is_gone() {
        assert_eq!(told(410, "The resourceVersion for the provided list is too old."), Told::Gone);
        assert_eq!(told(200, ""), Told::Readable);
        assert!(matches!(told(410, "too old resource version: 12"), Told::Unknown(_)), "that is its cache");
        for status in [400, 403, 404, 500, 503, 504] {
            assert!(matches!(told(status, "x"), Told::Unknown(_)));
        }
    }

    #[test]
    fn one_server_or_resource_that_did_not_say_so_is_enough_for_no_proof() {
        let none: &[String] = &[];
        let some = &["secrets at a".to_owned()][..];
        assert!(conclude(2, 3, none, none).is_shown());
        assert!(matches!(conclude(2, 3, some, none).finding, crate::rotation::claim::Finding::NotYet { .. }));
        for claim in [conclude(2, 3, none, some), conclude(2, 3, some, some), conclude(0, 3, none, none)] {
            assert!(matches!(claim.finding, crate::rotation::claim::Finding::NotShown { .. }), "{claim:?}");
        }
    }
}
