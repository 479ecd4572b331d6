//! The state folder on disk: one file for each record, written beside its place, synced and renamed.
//!
//! Each file is `KES1` ‖ SHA-256 of the rest (32) ‖ the record (`proto/envelope.proto`). A damaged file is set aside
//! under the ending `.damaged`. Everything here runs on threads that may block.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use rustix::fs::{Access, FlockOperation, access, flock};
use tracing::warn;

use super::state_files::{Name, Place, StateFiles};
use crate::crypto::seal::digest;
use crate::crypto::secret::DekId;
use crate::files::{self, FileId};

const MAGIC: &[u8; 4] = b"KES1";
const HISTORY: &str = "adopted";
const ENDING: &str = "dek";
pub(super) const LOCK: &str = "lock";

/// The state folder of one plugin.
#[derive(Clone, Debug)]
pub struct StateFolder {
    folder: PathBuf,
    /// Held as long as any copy of this value is; the kernel takes it back when the process ends, however it ends.
    lock: Arc<Mutex<Option<File>>>,
}

impl StateFolder {
    /// The folder, which need not exist. Nothing is done with it yet.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), lock: Arc::default() }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let folder = self.clone();
        tokio::task::spawn_blocking(move || work(&folder)).await.unwrap_or_else(|error| Err(io::Error::other(error)))
    }

    fn file(&self, name: Name) -> PathBuf {
        self.folder.join(match name {
            Name::Dek(id) => format!("{id}.{ENDING}"),
            Name::History => HISTORY.to_owned(),
        })
    }

    /// Makes the folder where it is missing, and takes it for this process.
    fn take(&self) -> io::Result<Place> {
        let mut held = self.held();
        if let Some(file) = &*held {
            if self.is_lock(file)? {
                // Of a file system that can only be read by now, and of permissions that were withdrawn, the lock tells
                // nothing.
                access(&self.folder, Access::WRITE_OK | Access::EXEC_OK)?;
                return Ok(Place::Same);
            }
            *held = None;
        }
        if !self.folder.exists() {
            files::create_private_folder(&self.folder).map_err(|error| {
                io::Error::new(error.kind(), format!("it does not exist and cannot be made: {error}"))
            })?;
        }
        let file = File::options().create(true).truncate(false).write(true).open(self.folder.join(LOCK))?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
            rustix::io::Errno::WOULDBLOCK => io::Error::new(
                io::ErrorKind::ResourceBusy,
                "another kube-envelope process uses it; give each plugin a stateDir of its own",
            ),
            error => error.into(),
        })?;
        if !self.is_lock(&file)? {
            return Err(was_replaced());
        }
        // Only under the lock: they might be another process's that is just writing them.
        files::remove_unfinished(&self.folder);
        *held = Some(file);
        Ok(Place::Other)
    }

    /// Whether this is the lock of the folder that is there now: the folder, or the lock in it, may have been removed,
    /// moved away or replaced.
    fn is_lock(&self, file: &File) -> io::Result<bool> {
        let ours = file.metadata()?;
        match fs::metadata(self.folder.join(LOCK)) {
            Ok(there) => Ok(FileId::from(&there) == FileId::from(&ours)),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// # Errors
    /// What is there now is not what was taken, and may be another process's.
    fn check_taken(&self) -> io::Result<()> {
        match &*self.held() {
            Some(file) if self.is_lock(file)? => Ok(()),
            _ => Err(was_replaced()),
        }
    }

    fn held(&self) -> MutexGuard<'_, Option<File>> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads every record, also while a plugin has the folder, and changes nothing. Blocks.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn look(&self) -> io::Result<Vec<(Name, Vec<u8>)>> {
        self.records(|file| record(&fs::read(file).ok()?))
    }

    /// Takes the folder for this process, and reads every record; damaged ones are set aside. Blocks.
    ///
    /// # Errors
    /// See [`StateFiles::take`] and [`StateFiles::load`].
    pub fn read_all(&self) -> io::Result<Vec<(Name, Vec<u8>)>> {
        self.take()?;
        self.read_there()
    }

    fn read_there(&self) -> io::Result<Vec<(Name, Vec<u8>)>> {
        if self.held().is_some() { self.records(read) } else { self.look() }
    }

    fn records(&self, read: impl Fn(&Path) -> Option<Vec<u8>>) -> io::Result<Vec<(Name, Vec<u8>)>> {
        let files = self.files()?.into_iter();
        Ok(files.filter_map(|(name, file)| Some((name, read(&file)?))).collect())
    }

    /// The files of records; none where the folder is missing, or something else is in its place.
    fn files(&self) -> io::Result<Vec<(Name, PathBuf)>> {
        let mut files = Vec::new();
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(files);
            }
            entries => entries?,
        };
        for entry in entries {
            let file = entry?.path();
            files.extend(name_of(&file).map(|name| (name, file)));
        }
        Ok(files)
    }
}

#[async_trait]
impl StateFiles for StateFolder {
    async fn take(&self) -> io::Result<Place> {
        self.blocking(Self::take).await
    }

    async fn load(&self) -> io::Result<Vec<(Name, Vec<u8>)>> {
        self.blocking(Self::read_there).await
    }

    async fn names(&self) -> io::Result<BTreeSet<Name>> {
        self.blocking(|folder| Ok(folder.files()?.into_iter().map(|(name, _)| name).collect())).await
    }

    async fn write(&self, name: Name, record: &[u8]) -> io::Result<()> {
        let content = [MAGIC, digest(&[record]).as_slice(), record].concat();
        self.blocking(move |folder| {
            folder.check_taken()?;
            files::replace(&folder.file(name), &content)
        })
        .await
    }

    async fn remove(&self, name: Name) -> io::Result<()> {
        self.blocking(move |folder| {
            folder.check_taken()?;
            match fs::remove_file(folder.file(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            }
        })
        .await
    }
}

fn was_replaced() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "it is not the folder any more that it was")
}

/// Which record a file is, by its name.
fn name_of(file: &Path) -> Option<Name> {
    if file.file_name()? == HISTORY {
        return Some(Name::History);
    }
    let id = hex::decode(file.file_stem()?.to_str()?).ok()?;
    (file.extension()? == ENDING).then_some(Name::Dek(DekId(id.try_into().ok()?)))
}

/// A record whose checksum is right.
fn read(file: &Path) -> Option<Vec<u8>> {
    let bytes = match fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) => {
            warn!(file = %file.display(), %error, "state file cannot be read; going on without it");
            return None;
        }
    };
    let record = record(&bytes);
    if record.is_none() {
        // Set aside and not removed, so that somebody can see what happened to the disk.
        let moved = fs::rename(file, file.with_added_extension("damaged")).is_ok();
        warn!(file = %file.display(), moved, "damaged state file set aside; its content will be rebuilt");
    }
    record
}

/// What a file holds, if it is whole.
fn record(bytes: &[u8]) -> Option<Vec<u8>> {
    // A checksum, since the envelope's own format would accept some flipped bits, and a DEK that its KEKs reject looks
    // like one that they lost.
    let (sum, record) = bytes.strip_prefix(MAGIC)?.split_at_checked(32)?;
    (sum == digest(&[record])).then(|| record.to_vec())
}

/// Whether others may read or change the folder: reported, not fatal, as nothing in it is secret.
pub fn is_private(folder: &Path) -> bool {
    fs::metadata(folder).is_ok_and(|metadata| metadata.permissions().mode().trailing_zeros() >= 6)
}
