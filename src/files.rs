//! Files that others name are read within bounds; what is written is written whole or not at all: beside its place, synced, then
//! moved there in one step.

mod owners;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rand::RngExt;

pub use self::owners::{Exposure, exposure};

/// Far above any bundle of certificates.
pub const MAX_PEM_BYTES: u64 = 4 << 20;

/// Begins the name of a file that is not in its place yet; what a crash leaves behind has it.
const UNFINISHED: &str = ".unfinished-";

/// Reads a file whole, of which others decide what it is: only a regular one, since reading anything else may never end, and
/// of at most `most` bytes.
///
/// # Errors
/// Of the file system; [`io::ErrorKind::InvalidInput`] for something else than a file, [`io::ErrorKind::FileTooLarge`].
pub fn read(file: &Path, most: u64) -> io::Result<Vec<u8>> {
    let handle = open_at_once(file)?;
    check_regular(&handle)?;
    let mut content = Vec::new();
    handle.take(most.saturating_add(1)).read_to_end(&mut content)?;
    if content.len() as u64 > most {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is longer than {most} bytes")));
    }
    Ok(content)
}

/// The same for text.
///
/// # Errors
/// As of [`read`]; [`io::ErrorKind::InvalidData`] for what is not UTF-8.
pub fn read_text(file: &Path, most: u64) -> io::Result<String> {
    String::from_utf8(read(file, most)?).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8 text"))
}

/// Refuses an open file that is not a regular one.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] for something else than a file, such as a pipe or a device.
pub fn check_regular(file: &File) -> io::Result<()> {
    if file.metadata()?.is_file() {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"))
}

/// Which file it is, whatever its path leads to by now: device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId(u64, u64);

impl From<&fs::Metadata> for FileId {
    fn from(metadata: &fs::Metadata) -> Self {
        Self(metadata.dev(), metadata.ino())
    }
}

/// Opens a file to read it, and waits for nobody: opening a FIFO waits for somebody who writes.
///
/// # Errors
/// Of the file system.
pub fn open_at_once(file: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    OpenOptions::new().read(true).custom_flags(flags).open(file)
}

/// Puts `content` into `file` with mode 0600, in place of what is there. A reader sees the former content or the new
/// one, whole, also after a power cut.
///
/// # Errors
/// Of the file system; `file` is then unchanged.
pub fn replace(file: &Path, content: &[u8]) -> io::Result<()> {
    let unfinished = write_beside(file, content)?;
    fs::rename(&unfinished, file).inspect_err(|_| remove(&unfinished))?;
    sync_folder(file)
}

/// The same with mode 0644: for what is not secret, and read by another user.
///
/// # Errors
/// Of the file system; `file` is then unchanged.
#[cfg(feature = "rotate")]
pub fn replace_readable(file: &Path, content: &[u8]) -> io::Result<()> {
    let unfinished = write_beside(file, content)?;
    let readable = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o644);
    let moved = fs::set_permissions(&unfinished, readable).and_then(|()| fs::rename(&unfinished, file));
    moved.inspect_err(|_| remove(&unfinished))
}

/// Creates `file` with `content` and mode 0600.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] when something is there, which is left alone; others of the file system.
pub fn create(file: &Path, content: &[u8]) -> io::Result<()> {
    let unfinished = write_beside(file, content)?;
    // link, unlike rename, fails when another process has created the file in the meantime.
    let linked = fs::hard_link(&unfinished, file);
    remove(&unfinished);
    linked?;
    sync_folder(file)
}

/// Gives a finished file its name, `file`, on the same file system; `finished` stays. What was written must be synced.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] when something is there, which is left alone; others of the file system.
#[cfg(feature = "rotate")]
pub fn publish(finished: &Path, file: &Path) -> io::Result<()> {
    fs::hard_link(finished, file)?;
    sync_folder(file)
}

/// Creates a folder with mode 0700, and those above it; one that exists keeps its mode.
///
/// # Errors
/// Of the file system.
pub fn create_private_folder(folder: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Removes what a crash during [`replace`] or [`create`] left in `folder`. Only for the one process that writes there.
pub fn remove_unfinished(folder: &Path) {
    for file in fs::read_dir(folder).into_iter().flatten().flatten() {
        if file.file_name().to_string_lossy().starts_with(UNFINISHED) {
            remove(&file.path());
        }
    }
}

/// The folder that a file is in.
pub fn folder_of(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn write_beside(file: &Path, content: &[u8]) -> io::Result<PathBuf> {
    // In the same folder: a rename to another file system is not atomic, and fails.
    let unfinished = folder_of(file).join(format!("{UNFINISHED}{:016x}", rand::rng().random::<u64>()));
    let written =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished).and_then(|mut handle| {
            handle.write_all(content)?;
            handle.sync_all()
        });
    written.map(|()| unfinished.clone()).inspect_err(|_| remove(&unfinished))
}

/// The rename itself must survive a power cut, too.
fn sync_folder(file: &Path) -> io::Result<()> {
    File::open(folder_of(file))?.sync_all()
}

fn remove(file: &Path) {
    let _ = fs::remove_file(file);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn only_a_file_of_some_length_is_read_and_nothing_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let (file, fifo) = (folder.path().join("file"), folder.path().join("fifo"));
        fs::write(&file, "four").unwrap();
        assert_eq!(read_text(&file, 4).unwrap(), "four");
        assert_eq!(read(&file, 3).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        let status = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
        assert!(status.success());
        for other in [fifo.as_path(), folder.path(), Path::new("/dev/zero")] {
            assert_eq!(read(other, 10).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{}", other.display());
        }
        fs::write(&file, [0xff]).unwrap();
        assert_eq!(read_text(&file, 4).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_replaced_file_is_private_and_nothing_is_left_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "former").unwrap();
        replace(&file, b"new").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"new");
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        assert_eq!(names(folder.path()), ["file"]);
    }

    #[test]
    fn an_existing_file_is_not_created_again_and_keeps_its_content() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        create(&file, b"first").unwrap();
        assert_eq!(create(&file, b"second").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&file).unwrap(), b"first");
        assert_eq!(names(folder.path()), ["file"]);
    }

    #[test]
    fn what_cannot_be_moved_to_its_place_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let in_the_way = folder.path().join("file");
        fs::create_dir_all(in_the_way.join("full")).unwrap();
        assert!(replace(&in_the_way, b"new").is_err());
        assert_eq!(names(folder.path()), ["file"]);
    }
}
