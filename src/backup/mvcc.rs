//! etcd's keys in its database (etcd, server/storage/mvcc): the bucket `key` maps revisions to what was stored at each.
//! A key's newest record is its current one; where that is a deletion, the key is gone.

use std::collections::HashSet;

use prost::Message;

use super::bbolt::Walk;
use super::page::{Fault, Page, damaged};
use crate::crypto::seal::digest;
use crate::etcd::Record;

/// Main revision, `_`, sub revision.
const REVISION: usize = 17;
const TOMBSTONE: u8 = b't';

/// Every record of a snapshot, the newest first.
#[derive(Debug)]
pub struct Keyspace<'a> {
    pub(super) walk: Walk<'a>,
    /// Keys of which a newer record was seen, by 128 bits of their SHA-256.
    seen: HashSet<[u8; 16]>,
}

/// `mvccpb.KeyValue`: what etcd stores for each write.
#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(int64, tag = "2")]
    create_revision: i64,
    #[prost(int64, tag = "3")]
    mod_revision: i64,
    #[prost(int64, tag = "4")]
    version: i64,
    #[prost(bytes = "vec", tag = "5")]
    value: Vec<u8>,
    #[prost(int64, tag = "6")]
    lease: i64,
}

impl<'a> Keyspace<'a> {
    pub(super) fn new(walk: Walk<'a>) -> Self {
        Self { walk, seen: HashSet::new() }
    }

    /// The records of the next page, each with whether it is its key's current one. Deletions are left out.
    pub(super) fn next_page(&mut self) -> Result<Option<Vec<(Record, bool)>>, Fault> {
        let Some(leaf) = self.walk.next_leaf()? else { return Ok(None) };
        self.records(&leaf).map(Some)
    }

    fn records(&mut self, leaf: &Page) -> Result<Vec<(Record, bool)>, Fault> {
        let mut records = Vec::with_capacity(leaf.count);
        for entry in leaf.entries().rev() {
            let entry = entry?;
            let (revision, deleted) = revision(entry.key)?;
            let broken = |why: &str| damaged(format_args!("the record of revision {revision} {why}"));
            // What `etcdutl snapshot restore --bump-revision` leaves at the revision from which etcd then goes on.
            if entry.value.is_empty() && !deleted {
                continue;
            }
            let stored = KeyValue::decode(entry.value).map_err(|_| broken("is not a key and a value"))?;
            if stored.key.is_empty() {
                return Err(broken("has no key"));
            }
            // From the newest to the oldest: the first record of a key is the one that a restored etcd shows, also when
            // it is a deletion.
            let is_newest = self.seen.insert(name(&stored.key));
            if deleted {
                continue;
            }
            if stored.mod_revision != revision {
                return Err(broken(&format!("says that it is of revision {}", stored.mod_revision)));
            }
            let KeyValue { key, create_revision, mod_revision, value, lease, .. } = stored;
            records.push((Record { key, value, create_revision, mod_revision, lease }, is_newest));
        }
        Ok(records)
    }
}

fn name(key: &[u8]) -> [u8; 16] {
    let mut name = [0; 16];
    name.copy_from_slice(&digest(&[key])[..16]);
    name
}

/// The main revision of a record, and whether it is a deletion.
pub(super) fn revision(key: &[u8]) -> Result<(i64, bool), Fault> {
    let deleted = match key.len() {
        REVISION => false,
        length if length == REVISION + 1 && key[REVISION] == TOMBSTONE => true,
        _ => return Err(damaged("a record has no revision for its key")),
    };
    let main = key.first_chunk().copied().map(i64::from_be_bytes).filter(|main| *main >= 0 && key[8] == b'_');
    main.map(|main| (main, deleted)).ok_or_else(|| damaged("a record has no revision for its key"))
}
