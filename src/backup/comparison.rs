//! Whether a snapshot holds what another one held: every current value, encrypted or not, the wrapped seeds left out.

use std::collections::HashMap;

use super::snapshot::{Snapshot, SnapshotError};
use crate::crypto::seal::digest;
use crate::etcd::{EncryptedObject, Record};

/// Why a snapshot cannot replace another one.
#[derive(Debug, thiserror::Error)]
pub enum ComparisonError {
    /// One of them cannot be read.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// They hold different things.
    #[error("{key}: {problem}")]
    Differs {
        /// The key in etcd.
        key: String,
        /// What is different.
        problem: &'static str,
    },
}

/// What two snapshots have in common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Common {
    /// Keys that hold the same, seeds aside.
    pub values: u64,
    /// Keys that went with their lease.
    pub expired: u64,
}

/// Compares the current values of two snapshots: same keys, same data, same leases, same revision of creation. A key that
/// has a lease may be missing in the later one.
///
/// # Errors
/// The first key that differs.
pub fn compare(before: &Snapshot, after: &Snapshot) -> Result<Common, ComparisonError> {
    let mut found = HashMap::new();
    each_current(after, |record| {
        found.insert(name(&record.key), content(record));
        Ok(())
    })?;
    let mut common = Common::default();
    each_current(before, |record| {
        match found.remove(&name(&record.key)) {
            Some(content_after) if content_after == content(record) => common.values += 1,
            Some(_) => return Err(differs(record, "it is not what it was")),
            None if record.lease != 0 => common.expired += 1,
            None => return Err(differs(record, "it is missing")),
        }
        Ok(())
    })?;
    // Else the file is gone through once more for one key: only digests are kept, so that memory stays small.
    if found.is_empty() {
        return Ok(common);
    }
    each_current(after, |record| {
        if found.contains_key(&name(&record.key)) { Err(differs(record, "it did not exist")) } else { Ok(()) }
    })?;
    Ok(common)
}

fn differs(record: &Record, problem: &'static str) -> ComparisonError {
    ComparisonError::Differs { key: String::from_utf8_lossy(&record.key).into_owned(), problem }
}

fn each_current(
    snapshot: &Snapshot,
    mut each: impl FnMut(&Record) -> Result<(), ComparisonError>,
) -> Result<(), ComparisonError> {
    let mut keyspace = snapshot.keyspace()?;
    while let Some(page) = snapshot.next_page(&mut keyspace)? {
        for (record, _) in page.iter().filter(|(_, is_current)| *is_current) {
            each(record)?;
        }
    }
    Ok(())
}

fn name(key: &[u8]) -> [u8; 32] {
    digest(&[key])
}

/// What must stay.
fn content(record: &Record) -> [u8; 32] {
    let (created, lease) = (record.create_revision.to_be_bytes(), record.lease.to_be_bytes());
    match EncryptedObject::of(&record.value) {
        Some((provider, object)) => {
            let kind = object.encrypted_dek_source_type.to_be_bytes();
            digest(&[b"encrypted", &created, &lease, provider.as_str().as_bytes(), &kind, &object.encrypted_data])
        }
        None => digest(&[b"otherwise", &created, &lease, &record.value]),
    }
}
