//! Wrapped DEKs on disk: a cache that lets a restarted plugin go on at once. It may be lost; it holds no secret.
//!
//! Each file is `KES1` ‖ SHA-256 of the rest (32) ‖ a record of `proto/envelope.proto`, written beside and renamed.
//! A damaged file is set aside under the ending `.damaged`.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use prost::Message;
use tracing::warn;

use crate::crypto::seal::digest;
use crate::crypto::secret::DekId;
use crate::envelope::{WrappedDekSet, record::AdoptedRecord};
use crate::files;
use crate::key_id::KeyId;

const MAGIC: &[u8; 4] = b"KES1";
const ADOPTED: &str = "adopted";
const ENDING: &str = "dek";

/// The state folder.
#[derive(Debug)]
pub struct DekStore {
    folder: PathBuf,
}

/// What this node adopted so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adopted {
    /// The DEK of the newest generation.
    pub dek_id: DekId,
    /// The names of all generations, the newest last.
    pub key_ids: Vec<KeyId>,
}

impl DekStore {
    /// Opens the folder, made with mode 0700 where it does not exist.
    pub fn open(folder: &Path) -> io::Result<Self> {
        if !folder.exists() {
            files::create_private_folder(folder)?;
        }
        if !fs::metadata(folder)?.is_dir() {
            return Err(io::Error::new(io::ErrorKind::NotADirectory, "not a folder"));
        }
        files::remove_unfinished(folder);
        Ok(Self { folder: folder.to_owned() })
    }

    /// Keeps a wrapped DEK; one that is kept already is left alone.
    pub fn keep(&self, id: DekId, wrapped: &WrappedDekSet) -> io::Result<()> {
        let file = self.dek_file(id);
        if file.exists() {
            return Ok(());
        }
        let record = wrapped.encode().map_err(io::Error::other)?;
        write(&file, &record)
    }

    /// Every DEK that is kept and readable.
    pub fn kept(&self) -> Vec<(DekId, WrappedDekSet)> {
        let Ok(files) = fs::read_dir(&self.folder) else { return Vec::new() };
        files.flatten().filter_map(|file| kept_file(&file.path())).collect()
    }

    /// How many DEKs are kept, by the names of their files: none is read.
    pub fn count(&self) -> usize {
        let Ok(files) = fs::read_dir(&self.folder) else { return 0 };
        files.flatten().filter(|file| file.path().extension().is_some_and(|ending| ending == ENDING)).count()
    }

    /// The DEK, if it is kept and readable.
    pub fn find(&self, id: DekId) -> Option<WrappedDekSet> {
        kept_file(&self.dek_file(id)).map(|(_, wrapped)| wrapped)
    }

    /// What this node adopted so far; `None` on a new node, and where the record is damaged.
    pub fn adopted(&self) -> Option<Adopted> {
        let file = self.folder.join(ADOPTED);
        let record = read(&file)?;
        let adopted = AdoptedRecord::decode(record.as_slice()).ok().and_then(|record| {
            Some(Adopted {
                dek_id: DekId(record.dek_id.try_into().ok()?),
                key_ids: record.key_ids.into_iter().map(KeyId::from_record).collect(),
            })
        });
        if adopted.is_none() {
            set_aside(&file, "not a record of this program");
        }
        adopted
    }

    /// Notes an adoption; its DEK is kept already.
    pub fn adopt(&self, adopted: &Adopted) -> io::Result<()> {
        let record = AdoptedRecord {
            dek_id: adopted.dek_id.0.to_vec(),
            key_ids: adopted.key_ids.iter().map(ToString::to_string).collect(),
        };
        write(&self.folder.join(ADOPTED), &record.encode_to_vec())
    }

    fn dek_file(&self, id: DekId) -> PathBuf {
        self.folder.join(format!("{id}.{ENDING}"))
    }
}

/// Writes a record with its checksum, whole or not at all.
fn write(file: &Path, record: &[u8]) -> io::Result<()> {
    files::replace(file, &[MAGIC, digest(&[record]).as_slice(), record].concat())
}

fn kept_file(file: &Path) -> Option<(DekId, WrappedDekSet)> {
    if file.extension()? != ENDING {
        return None;
    }
    let id = hex::decode(file.file_stem()?.to_str()?).ok()?.try_into().ok().map(DekId)?;
    match WrappedDekSet::decode(&read(file)?) {
        Ok(wrapped) => Some((id, wrapped)),
        Err(error) => {
            set_aside(file, &error.to_string());
            None
        }
    }
}

/// A record whose checksum is right.
fn read(file: &Path) -> Option<Vec<u8>> {
    let bytes = match fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            warn!(file = %file.display(), %error, "state file cannot be read; going on without it");
            return None;
        }
    };
    let record = bytes.strip_prefix(MAGIC).and_then(|rest| rest.split_at_checked(32));
    match record {
        Some((sum, record)) if sum == digest(&[record]) => Some(record.to_vec()),
        _ => {
            set_aside(file, "checksum does not match");
            None
        }
    }
}

/// Whether others may read or change the folder: reported, not fatal, as nothing in it is secret.
pub fn is_private(folder: &Path) -> bool {
    fs::metadata(folder).is_ok_and(|metadata| !others_may(metadata.permissions().mode()))
}

fn others_may(mode: u32) -> bool {
    mode & 0o077 != 0
}

fn set_aside(file: &Path, problem: &str) {
    let aside = file.with_added_extension("damaged");
    let moved = fs::rename(file, &aside);
    warn!(file = %file.display(), problem, moved = moved.is_ok(), "damaged state file set aside; what it held is made anew");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kek::{KekVersion, Lineage, WrappedDek};

    fn wrapped() -> WrappedDekSet {
        let version = KekVersion { lineage: Lineage::derive("test", &[]), version: "1".into() };
        WrappedDekSet { cluster: "c".into(), epoch: 1, wraps: vec![WrappedDek { version, blob: vec![1, 2, 3] }] }
    }

    #[test]
    fn what_is_kept_comes_back_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let id = DekId([7; 16]);
        let adopted = Adopted { dek_id: id, key_ids: vec![wrapped().key_id()] };
        let store = DekStore::open(folder.path()).unwrap();
        store.keep(id, &wrapped()).unwrap();
        store.adopt(&adopted).unwrap();
        let again = DekStore::open(folder.path()).unwrap();
        assert_eq!(again.kept(), [(id, wrapped())]);
        assert_eq!(again.count(), 1);
        assert_eq!(again.adopted(), Some(adopted));
    }

    #[test]
    fn any_changed_byte_sets_a_file_aside_and_nothing_else_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let store = DekStore::open(folder.path()).unwrap();
        let (good, bad) = (DekId([1; 16]), DekId([2; 16]));
        store.keep(good, &wrapped()).unwrap();
        store.keep(bad, &wrapped()).unwrap();
        let whole = fs::read(store.dek_file(bad)).unwrap();
        for position in 0..whole.len() {
            let mut changed = whole.clone();
            changed[position] ^= 1;
            fs::write(store.dek_file(bad), &changed).unwrap();
            assert_eq!(store.kept(), [(good, wrapped())], "byte {position}");
            assert!(!store.dek_file(bad).exists());
        }
        for length in 0..whole.len() {
            fs::write(store.dek_file(bad), &whole[..length]).unwrap();
            assert!(store.find(bad).is_none(), "length {length}");
        }
    }
}
