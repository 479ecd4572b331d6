//! What a snapshot file of etcd says about itself: up to which revision it reaches, and of which members it is. The file
//! is a bbolt database, to which `etcdctl snapshot save` appends the SHA-256 of the rest.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use prost::Message;
use sha2::{Digest, Sha256};

use super::proto::KeyValue;

const MAGIC: u32 = 0xED0C_DAED;
const FORMAT: u32 = 2;
const HASH: u64 = 32;
/// bbolt's own limits of a page.
const PAGE_SIZES: std::ops::RangeInclusive<u64> = 512..=(1 << 16);
/// No tree of pages is deeper; a greater depth means that the file leads in circles.
const DEEPEST: u32 = 64;
const HEADER: usize = 16;
/// A revision as a key of the bucket: two numbers of 8 bytes and what parts them.
const REVISION: usize = 17;
const ELEMENT: usize = 16;
const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
const BUCKET: u32 = 0x01;

/// What a snapshot file says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFile {
    /// The newest revision in it.
    pub revision: i64,
    /// The ids of the members of its cluster.
    pub members: BTreeSet<u64>,
    /// Whether the hash at its end was there, and right.
    pub hash_verified: bool,
}

impl SnapshotFile {
    /// Reads it.
    ///
    /// # Errors
    /// If it cannot be read, is not a snapshot of etcd, or does not match the hash at its end.
    pub fn read(path: &Path) -> io::Result<Self> {
        Self::read_with(path).map(|(about, ..)| about)
    }

    /// Reads it, and every value in it: key, value, and whether it is the key's present one.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn each_value(path: &Path, mut each: impl FnMut(&[u8], &[u8], bool)) -> io::Result<Self> {
        let (about, database, keys) = Self::read_with(path)?;
        let mut newest: HashMap<Vec<u8>, Vec<u8>> = HashMap::new();
        let mut problem = None;
        database.walk(&keys, 0, &mut |_, revision, value| match KeyValue::decode(value) {
            Ok(pair) => _ = newest.insert(pair.key, revision.to_vec()),
            Err(error) => problem = Some(error),
        })?;
        if problem.is_some() {
            return Err(bad("a record is damaged"));
        }
        database.walk(&keys, 0, &mut |_, revision, value| {
            // A longer revision is a deletion.
            if let Ok(pair) = KeyValue::decode(value)
                && revision.len() == REVISION
            {
                each(&pair.key, &pair.value, newest.get(&pair.key).is_some_and(|newest| newest == revision));
            }
        })?;
        Ok(about)
    }

    fn read_with(path: &Path) -> io::Result<(Self, Database, Bucket)> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        let hash_verified = length % 512 == HASH;
        if hash_verified {
            verify_hash(&file, length)?;
        }
        let database = Database::open(file, length)?;
        let Some(keys) = database.bucket(b"key")? else { return Err(bad("it has no bucket of keys")) };
        let revision = match database.last_key(&keys)? {
            Some(key) => key.get(..8).and_then(|main| main.try_into().ok()).map(i64::from_be_bytes),
            None => Some(0),
        };
        let mut members = BTreeSet::new();
        if let Some(bucket) = database.bucket(b"members")? {
            database.each_key(&bucket, &mut |key| {
                let id = std::str::from_utf8(key).ok().and_then(|hex| u64::from_str_radix(hex, 16).ok());
                members.extend(id);
            })?;
        }
        let revision = revision.ok_or_else(|| bad("its newest key is not a revision"))?;
        Ok((Self { revision, members, hash_verified }, database, keys))
    }
}

fn bad(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not a snapshot of etcd: {why}"))
}

fn verify_hash(mut file: &File, length: u64) -> io::Result<()> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut left = length - HASH;
    file.seek(SeekFrom::Start(0))?;
    while left > 0 {
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        file.read_exact(&mut buffer[..wanted])?;
        hasher.update(&buffer[..wanted]);
        left -= wanted as u64;
    }
    let mut stored = [0; 32];
    file.read_exact(&mut stored)?;
    if hasher.finalize().as_slice() != stored {
        return Err(bad("it does not match the hash at its end; take it again"));
    }
    Ok(())
}

struct Database {
    file: File,
    length: u64,
    page_size: u64,
    root: u64,
}

/// A tree of pages: one in the file, or a single page inside its parent.
enum Bucket {
    At(u64),
    Inline(Vec<u8>),
}

impl Database {
    fn open(file: File, length: u64) -> io::Result<Self> {
        let mut newest: Option<(u64, u64, u64)> = None;
        // The second meta page lies one page further, whose size only the first one tells; it may be the damaged one.
        let sizes = (9..=16).map(|shift| 1_u64 << shift);
        for at in std::iter::once(0).chain(sizes) {
            let mut meta = [0; HEADER + 64];
            if file.read_exact_at(&mut meta, at).is_err() {
                continue;
            }
            let meta = &meta[HEADER..];
            if word(meta, 0)? != MAGIC || word(meta, 4)? != FORMAT || long(meta, 56)? != fnv(&meta[..56]) {
                continue;
            }
            let (page_size, root, transaction) = (u64::from(word(meta, 8)?), long(meta, 16)?, long(meta, 48)?);
            if PAGE_SIZES.contains(&page_size) && newest.is_none_or(|(_, _, other)| transaction > other) {
                newest = Some((page_size, root, transaction));
            }
        }
        let (page_size, root, _) = newest.ok_or_else(|| bad("it has no intact first page"))?;
        Ok(Self { file, length, page_size, root })
    }

    /// A bucket at the top.
    fn bucket(&self, name: &[u8]) -> io::Result<Option<Bucket>> {
        let mut found = None;
        self.walk(&Bucket::At(self.root), 0, &mut |flags, key, value| {
            if flags & BUCKET != 0 && key == name {
                found = Some(value.to_vec());
            }
        })?;
        let Some(value) = found else { return Ok(None) };
        let root = long(&value, 0)?;
        Ok(Some(if root == 0 { Bucket::Inline(value[HEADER..].to_vec()) } else { Bucket::At(root) }))
    }

    fn each_key(&self, bucket: &Bucket, each: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        self.walk(bucket, 0, &mut |_, key, _| each(key))
    }

    /// The greatest key.
    fn last_key(&self, bucket: &Bucket) -> io::Result<Option<Vec<u8>>> {
        let mut page = self.page_of(bucket)?;
        for _ in 0..DEEPEST {
            let count = usize::from(half(&page, 10)?);
            let Some(last) = count.checked_sub(1) else { return Ok(None) };
            match half(&page, 8)? {
                LEAF => return leaf(&page, last).map(|(_, key, _)| Some(key.to_vec())),
                BRANCH => page = self.page(long(&page, HEADER + last * ELEMENT + 8)?)?,
                _ => return Err(bad("a page is of an unknown kind")),
            }
        }
        Err(bad("its pages lead in circles"))
    }

    fn walk(&self, bucket: &Bucket, depth: u32, each: &mut dyn FnMut(u32, &[u8], &[u8])) -> io::Result<()> {
        if depth > DEEPEST {
            return Err(bad("its pages lead in circles"));
        }
        let page = self.page_of(bucket)?;
        for at in 0..usize::from(half(&page, 10)?) {
            match half(&page, 8)? {
                LEAF => {
                    let (flags, key, value) = leaf(&page, at)?;
                    each(flags, key, value);
                }
                BRANCH => self.walk(&Bucket::At(long(&page, HEADER + at * ELEMENT + 8)?), depth + 1, each)?,
                _ => return Err(bad("a page is of an unknown kind")),
            }
        }
        Ok(())
    }

    fn page_of(&self, bucket: &Bucket) -> io::Result<Vec<u8>> {
        match bucket {
            Bucket::At(id) => self.page(*id),
            Bucket::Inline(page) => Ok(page.clone()),
        }
    }

    /// A page with those that continue it.
    fn page(&self, id: u64) -> io::Result<Vec<u8>> {
        let at = id.checked_mul(self.page_size).filter(|at| *at < self.length);
        let at = at.ok_or_else(|| bad("it is cut short"))?;
        let mut header = [0; HEADER];
        self.file.read_exact_at(&mut header, at)?;
        let length = (u64::from(word(&header, 12)?) + 1) * self.page_size;
        if length > self.length - at {
            return Err(bad("it is cut short"));
        }
        let mut page = vec![0; usize::try_from(length).map_err(|_| bad("a page is too long"))?];
        self.file.read_exact_at(&mut page, at)?;
        Ok(page)
    }
}

/// Flags, key and value of one element of a leaf.
fn leaf(page: &[u8], at: usize) -> io::Result<(u32, &[u8], &[u8])> {
    let start = HEADER + at * ELEMENT;
    let number = |offset| word(page, start + offset).map(|word| word as usize);
    let (position, key, value) = (start + number(4)?, number(8)?, number(12)?);
    let take = |from: usize, length: usize| {
        page.get(from..).and_then(|rest| rest.get(..length)).ok_or_else(|| bad("an element is outside its page"))
    };
    Ok((word(page, start)?, take(position, key)?, take(position + key, value)?))
}

fn bytes<const N: usize>(of: &[u8], at: usize) -> io::Result<[u8; N]> {
    let found = of.get(at..).and_then(|rest| rest.first_chunk());
    found.copied().ok_or_else(|| bad("a page is cut short"))
}

fn half(of: &[u8], at: usize) -> io::Result<u16> {
    bytes(of, at).map(u16::from_le_bytes)
}

fn word(of: &[u8], at: usize) -> io::Result<u32> {
    bytes(of, at).map(u32::from_le_bytes)
}

fn long(of: &[u8], at: usize) -> io::Result<u64> {
    bytes(of, at).map(u64::from_le_bytes)
}

/// FNV-1a, by which a meta page is checked.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_a_snapshot_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("snapshot.db");
        for content in [Vec::new(), b"hello".to_vec(), vec![0; 4096], vec![0xFF; 70_000]] {
            std::fs::write(&file, content).unwrap();
            let error = SnapshotFile::read(&file).unwrap_err();
            assert!(error.to_string().contains("not a snapshot of etcd"), "{error}");
        }
    }

    #[test]
    fn a_changed_byte_is_found_by_the_hash_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("snapshot.db");
        let mut content = vec![1; 1024];
        content.extend(Sha256::digest(&content));
        content[5] ^= 1;
        std::fs::write(&file, content).unwrap();
        assert!(SnapshotFile::read(&file).unwrap_err().to_string().contains("take it again"));
    }
}
