//! A snapshot file of etcd: a bbolt database, to which `etcdctl snapshot save` appends the SHA-256 of the rest.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::bbolt::{Bucket, Database};
use super::mvcc::{Keyspace, revision};
use super::page::{Fault, damaged};
use crate::etcd::Record;

const HASH: u64 = 32;
/// An `SQLite` database begins with this.
const SQLITE: [u8; 16] = *b"SQLite format 3\0";
/// Pages are multiples of this, so a file with a hash at its end shows by its length.
const SECTOR: u64 = 512;

/// Why a snapshot is refused.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// It cannot be read.
    #[error("cannot read snapshot {}", .file.display())]
    Read {
        /// The snapshot, as it was named.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not what it should be.
    #[error("{} is not an intact snapshot of etcd: {problem}", .file.display())]
    Damaged {
        /// The snapshot, as it was named.
        file: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

impl From<SnapshotError> for io::Error {
    fn from(error: SnapshotError) -> Self {
        match error {
            SnapshotError::Read { source, .. } => source,
            SnapshotError::Damaged { .. } => Self::new(io::ErrorKind::InvalidData, error),
        }
    }
}

/// What a snapshot file says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFile {
    /// The newest revision in it.
    pub revision: i64,
    /// The ids of the members of its cluster.
    pub members: BTreeSet<u64>,
    /// Whether the hash at its end was there, and right. Without it, damage inside a value goes unnoticed.
    pub hash_verified: bool,
    /// The hash at its end, in hex, where there is one.
    pub hash: Option<String>,
    /// Whether its etcd let in nobody but its users.
    pub has_users: bool,
}

impl SnapshotFile {
    /// Reads what a file says about itself.
    ///
    /// # Errors
    /// If it cannot be read, is not a snapshot of etcd, or does not match the hash at its end.
    pub fn read(path: &Path) -> Result<Self, SnapshotError> {
        Snapshot::open(path).map(|snapshot| snapshot.about)
    }

    /// Reads it, and every value in it: key, value, and whether it is the key's current one.
    ///
    /// # Errors
    /// As [`Self::read`], and if a record is damaged.
    pub fn each_value(path: &Path, mut each: impl FnMut(&[u8], &[u8], bool)) -> Result<Self, SnapshotError> {
        let snapshot = Snapshot::open(path)?;
        let mut keyspace = snapshot.keyspace()?;
        while let Some(page) = snapshot.next_page(&mut keyspace)? {
            for (record, is_current) in &page {
                each(&record.key, &record.value, *is_current);
            }
        }
        Ok(snapshot.about)
    }
}

/// An open snapshot.
#[derive(Debug)]
pub struct Snapshot {
    path: PathBuf,
    about: SnapshotFile,
    database: Database,
    keys: Bucket,
}

impl Snapshot {
    /// Opens a file and checks its hash.
    ///
    /// # Errors
    /// If it cannot be read, is not a snapshot of etcd, or does not match the hash at its end.
    pub fn open(path: &Path) -> Result<Self, SnapshotError> {
        open(path).map_err(|fault| named(path, fault))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it says about itself.
    pub fn about(&self) -> &SnapshotFile {
        &self.about
    }

    /// Every record, the newest first.
    ///
    /// # Errors
    /// If the file is damaged.
    pub fn keyspace(&self) -> Result<Keyspace<'_>, SnapshotError> {
        let walk = self.database.walk(&self.keys).map_err(|fault| named(&self.path, fault))?;
        Ok(Keyspace::new(walk))
    }

    /// The records of the next page of `keyspace`, each with whether it is its key's current one.
    ///
    /// # Errors
    /// If the file is damaged.
    pub fn next_page(&self, keyspace: &mut Keyspace<'_>) -> Result<Option<Vec<(Record, bool)>>, SnapshotError> {
        keyspace.next_page().map_err(|fault| named(&self.path, fault))
    }

    /// The current record of one key.
    ///
    /// # Errors
    /// If the file is damaged.
    pub fn get(&self, key: &[u8]) -> Result<Option<Record>, SnapshotError> {
        let mut keyspace = self.keyspace()?;
        while let Some(page) = self.next_page(&mut keyspace)? {
            // etcd sorts its records by revision and keeps the index of keys in memory alone, so there is no shorter
            // way to one key.
            if let Some((record, _)) = page.into_iter().find(|(record, current)| *current && record.key == key) {
                return Ok(Some(record));
            }
        }
        Ok(None)
    }
}

fn named(path: &Path, fault: Fault) -> SnapshotError {
    let file = path.to_owned();
    match fault {
        Fault::Io(source) => SnapshotError::Read { file, source },
        Fault::Damaged(problem) => SnapshotError::Damaged { file, problem },
    }
}

fn open(path: &Path) -> Result<Snapshot, Fault> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut magic = [0; SQLITE.len()];
    if length >= magic.len() as u64 && file.read_exact_at(&mut magic, 0).is_ok() && magic == SQLITE {
        return Err(damaged(
            "it is an SQLite database, such as kine's of k3s, whose content cannot be read here. rotate-keys takes the time of \
             the copy in its place: --snapshot-taken TIME",
        ));
    }
    // `etcdctl snapshot save` appends a SHA-256 to the file; a copy of etcd's own database has none, and whole pages.
    let hash = if length % SECTOR == HASH { Some(verified_hash(&file, length)?) } else { None };
    let database = match hash {
        Some(_) => Database::open(file, length.saturating_sub(HASH), true)?,
        None if length % SECTOR == 0 => Database::open(file, length, false)?,
        None => return Err(damaged("it does not end with a whole page; it is cut short, or something was appended")),
    };
    let Some(keys) = database.bucket(b"key")? else { return Err(damaged("it has no bucket of keys")) };
    let revision = newest_revision(&database, &keys)?;
    let members = members(&database)?;
    let has_users = has_users(&database)?;
    let about = SnapshotFile { revision, members, hash_verified: hash.is_some(), hash, has_users };
    Ok(Snapshot { path: path.to_owned(), about, database, keys })
}

/// The hash at the end of a file, which the rest of it must have.
fn verified_hash(mut file: &File, length: u64) -> Result<String, Fault> {
    let mut hasher = Sha256::new();
    // A database of etcd may have several gigabytes.
    let mut buffer = vec![0; 1 << 20];
    let mut left = length.saturating_sub(HASH);
    file.seek(SeekFrom::Start(0))?;
    while left > 0 {
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        file.read_exact(&mut buffer[..wanted])?;
        hasher.update(&buffer[..wanted]);
        left = left.saturating_sub(wanted as u64);
    }
    let mut stored = [0; 32];
    file.read_exact(&mut stored)?;
    if hasher.finalize().as_slice() != stored {
        return Err(damaged("it does not match the hash at its end; take it again"));
    }
    Ok(hex::encode(stored))
}

/// The revision that etcd goes on from after a restore: of the newest record, or of the last compaction if that removed
/// the newest records, deletions, altogether.
fn newest_revision(database: &Database, keys: &Bucket) -> Result<i64, Fault> {
    let newest = match database.walk(keys)?.next_leaf()? {
        Some(leaf) => match leaf.entries().next_back() {
            Some(entry) => revision(entry?.key)?.0,
            None => 0,
        },
        None => 0,
    };
    // A compaction may have removed the newest record, where it was a deletion.
    Ok(newest.max(compacted(database)?))
}

fn compacted(database: &Database) -> Result<i64, Fault> {
    let mut compacted = 0;
    let Some(meta) = database.bucket(b"meta")? else { return Ok(0) };
    let mut walk = database.walk(&meta)?;
    while let Some(leaf) = walk.next_leaf()? {
        for entry in leaf.entries() {
            let entry = entry?;
            if entry.key == b"finishedCompactRev" {
                compacted = revision(entry.value)?.0;
            }
        }
    }
    Ok(compacted)
}

fn has_users(database: &Database) -> Result<bool, Fault> {
    let Some(bucket) = database.bucket(b"auth")? else { return Ok(false) };
    let mut walk = database.walk(&bucket)?;
    while let Some(leaf) = walk.next_leaf()? {
        for entry in leaf.entries() {
            let entry = entry?;
            // The bucket is there from the start; it says nothing by itself.
            if entry.key == b"authEnabled" {
                return Ok(entry.value == [1]);
            }
        }
    }
    Ok(false)
}

fn members(database: &Database) -> Result<BTreeSet<u64>, Fault> {
    let mut members = BTreeSet::new();
    let Some(bucket) = database.bucket(b"members")? else { return Ok(members) };
    let mut walk = database.walk(&bucket)?;
    while let Some(leaf) = walk.next_leaf()? {
        for entry in leaf.entries() {
            let id = std::str::from_utf8(entry?.key).ok().and_then(|hex| u64::from_str_radix(hex, 16).ok());
            members.extend(id);
        }
    }
    Ok(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(content: &[u8]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("snapshot.db");
        std::fs::write(&file, content).unwrap();
        Snapshot::open(&file).unwrap_err().to_string()
    }

    #[test]
    fn what_is_not_a_snapshot_is_refused() {
        for content in [Vec::new(), b"hello".to_vec(), vec![0; 4096], vec![0xFF; 70_000]] {
            let error = refused(&content);
            assert!(error.contains("snapshot.db is not an intact snapshot of etcd"), "{error}");
        }
    }

    #[test]
    fn the_database_of_a_kine_is_named_as_such() {
        let error = refused(&[SQLITE.as_slice(), &[0; 4080]].concat());
        assert!(error.contains("--snapshot-taken TIME"), "{error}");
    }

    #[test]
    fn a_changed_byte_is_found_by_the_hash_at_the_end() {
        let mut content = vec![1; 1024];
        content.extend(Sha256::digest(&content));
        content[5] ^= 1;
        assert!(refused(&content).contains("take it again"));
    }
}
