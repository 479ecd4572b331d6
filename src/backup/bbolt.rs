//! A reader of bbolt databases, the file format of etcd (go.etcd.io/bbolt): two meta pages, of which the newest intact
//! one counts, and one tree of pages for each bucket.
//!
//! The file comes from outside, so nothing in it is believed: every reference must lead into the file, no page may be
//! reached twice, and keys must come in order. A file that breaks this is refused; none can make the reader loop or
//! take more memory than its largest run of pages.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::page::{Fault, HEADER, Kind, Page, damaged, long, word};

const MAGIC: u32 = 0xED0C_DAED;
const FORMAT: u32 = 2;
/// Bytes of a meta page behind its header.
const META: usize = 64;
/// bbolt's own limits of a page, as powers of two.
const PAGE_SHIFTS: std::ops::RangeInclusive<u32> = 9..=16;
/// Pages 0 and 1 are the meta pages; no tree has them.
const FIRST_PAGE: u64 = 2;
/// Before a bucket's inline page: the number of its root page, 0 here, and a sequence.
const BUCKET_HEADER: usize = 16;

/// An open database.
#[derive(Debug)]
pub(super) struct Database {
    file: File,
    page_size: u64,
    root: u64,
    /// No page in use has this number or a greater one.
    pages: u64,
}

/// The tree of pages of one bucket.
#[derive(Debug)]
pub(super) enum Bucket {
    At(u64),
    Inline(Vec<u8>),
}

struct Meta {
    page_size: u64,
    root: u64,
    pages: u64,
    transaction: u64,
}

impl Database {
    /// Opens the first `length` bytes of a file. If `exact`, they must end where the database does.
    pub(super) fn open(file: File, length: u64, exact: bool) -> Result<Self, Fault> {
        let Meta { page_size, root, pages, .. } = newest_meta(&file)?.ok_or_else(|| damaged("it has no first page"))?;
        let needed = pages.checked_mul(page_size).ok_or_else(|| damaged("it claims more pages than are possible"))?;
        if length < needed {
            return Err(damaged(format_args!("it is cut short: it has {length} bytes, and its pages {needed}")));
        }
        if exact && length > needed {
            let beyond = length.saturating_sub(needed);
            return Err(damaged(format_args!(
                "it has {beyond} bytes after its last page; something was appended to it"
            )));
        }
        Ok(Self { file, page_size, root, pages })
    }

    /// A bucket at the top.
    pub(super) fn bucket(&self, name: &[u8]) -> Result<Option<Bucket>, Fault> {
        let mut walk = self.walk(&Bucket::At(self.root))?;
        while let Some(leaf) = walk.next_leaf()? {
            for entry in leaf.entries() {
                let entry = entry?;
                if entry.is_bucket && entry.key == name {
                    return bucket(entry.value).map(Some);
                }
            }
        }
        Ok(None)
    }

    /// The leaves of a bucket, the one with the greatest keys first.
    pub(super) fn walk(&self, bucket: &Bucket) -> Result<Walk<'_>, Fault> {
        let mut walk = Walk { database: self, open: Vec::new(), seen: Seen::of(self.pages)?, below: None };
        match bucket {
            Bucket::At(id) => walk.enter(*id)?,
            Bucket::Inline(page) => {
                let page = Page::parse(long(page, 0)?, page.clone())?;
                if page.kind == Kind::Branch {
                    return Err(damaged("a bucket inside its parent's page has branches"));
                }
                walk.open.push((page, 0));
            }
        }
        Ok(walk)
    }

    /// A page with those that continue it, each of which is noted in `seen`.
    fn page(&self, id: u64, seen: &mut Seen) -> Result<Page, Fault> {
        if !(FIRST_PAGE..self.pages).contains(&id) {
            return Err(damaged(format_args!("it refers to page {id}, and has {} pages", self.pages)));
        }
        // The pages are within the file, by their number and by their size.
        let beyond = || damaged("a page is beyond what a file can hold");
        let at = id.checked_mul(self.page_size).ok_or_else(beyond)?;
        let mut header = [0; HEADER];
        self.file.read_exact_at(&mut header, at)?;
        let count = Page::overflow(&header)?.saturating_add(1);
        if count > self.pages.saturating_sub(id) {
            return Err(damaged(format_args!("page {id} goes on beyond the last page")));
        }
        // A damaged page that leads back to one above it would otherwise be walked for ever.
        seen.note(id, count)?;
        let length =
            count.checked_mul(self.page_size).and_then(|length| usize::try_from(length).ok()).ok_or_else(beyond)?;
        let mut page = vec![0; length];
        self.file.read_exact_at(&mut page, at)?;
        Page::parse(id, page)
    }
}

fn bucket(value: &[u8]) -> Result<Bucket, Fault> {
    match long(value, 0)? {
        0 => {
            let inline = value.get(BUCKET_HEADER..).ok_or_else(|| damaged("a bucket is cut short"))?;
            Ok(Bucket::Inline(inline.to_vec()))
        }
        root => Ok(Bucket::At(root)),
    }
}

fn newest_meta(file: &File) -> Result<Option<Meta>, Fault> {
    let mut newest: Option<Meta> = None;
    // The second meta page lies one page further, whose size only the first one tells; it may be the damaged one.
    for at in std::iter::once(0).chain(PAGE_SHIFTS.map(|shift| 1_u64 << shift)) {
        let mut bytes = [0; HEADER + META];
        if file.read_exact_at(&mut bytes, at).is_err() {
            continue;
        }
        if let Some(meta) = meta(&bytes[HEADER..])?
            && (at == 0 || at == meta.page_size)
            // The two take turns: the one with the greater transaction that is intact is the newest state.
            && newest.as_ref().is_none_or(|other| meta.transaction > other.transaction)
        {
            newest = Some(meta);
        }
    }
    Ok(newest)
}

/// A meta page behind its header, if it is one and intact.
fn meta(bytes: &[u8]) -> Result<Option<Meta>, Fault> {
    if word(bytes, 0)? != MAGIC || word(bytes, 4)? != FORMAT || long(bytes, 56)? != fnv(&bytes[..56]) {
        return Ok(None);
    }
    let page_size = word(bytes, 8)?;
    if !page_size.is_power_of_two() || !PAGE_SHIFTS.contains(&page_size.ilog2()) {
        return Ok(None);
    }
    let (root, pages, transaction) = (long(bytes, 16)?, long(bytes, 40)?, long(bytes, 48)?);
    Ok(Some(Meta { page_size: page_size.into(), root, pages, transaction }))
}

/// FNV-1a, by which a meta page is checked.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Goes through the leaves of a tree, from the greatest key to the smallest.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    database: &'a Database,
    /// From the root down: each page, and how many of its elements are still to be visited.
    open: Vec<(Page, usize)>,
    seen: Seen,
    /// Every key that is still to come must be smaller.
    below: Option<Vec<u8>>,
}

impl Walk<'_> {
    /// The next leaf.
    pub(super) fn next_leaf(&mut self) -> Result<Option<Page>, Fault> {
        while let Some((page, left)) = self.open.last_mut() {
            match page.kind {
                Kind::Branch if *left > 0 => {
                    *left = left.saturating_sub(1);
                    let child = page.child(*left)?;
                    self.enter(child)?;
                }
                Kind::Branch => {
                    self.open.pop();
                }
                Kind::Leaf => {
                    let leaf = self.open.pop().map(|(page, _)| page);
                    if let Some(leaf) = &leaf {
                        self.check_order(leaf)?;
                    }
                    return Ok(leaf);
                }
            }
        }
        Ok(None)
    }

    fn enter(&mut self, id: u64) -> Result<(), Fault> {
        let page = self.database.page(id, &mut self.seen)?;
        if page.kind == Kind::Branch && page.count == 0 {
            return Err(damaged(format_args!("page {id} is a branch without elements")));
        }
        let count = page.count;
        self.open.push((page, count));
        Ok(())
    }

    fn check_order(&mut self, leaf: &Page) -> Result<(), Fault> {
        for entry in leaf.entries().rev() {
            let key = entry?.key;
            if self.below.as_deref().is_some_and(|below| key >= below) {
                return Err(damaged(format_args!("the keys of page {} are not in order", leaf.id)));
            }
            self.below = Some(key.to_vec());
        }
        Ok(())
    }
}

/// The pages that were reached: each belongs to one place in one tree.
#[derive(Debug)]
struct Seen(Vec<u64>);

impl Seen {
    fn of(pages: u64) -> Result<Self, Fault> {
        let words =
            usize::try_from(pages.div_ceil(64)).map_err(|_| damaged("it claims more pages than are possible"))?;
        Ok(Self(vec![0; words]))
    }

    fn note(&mut self, first: u64, count: u64) -> Result<(), Fault> {
        for id in first..first.saturating_add(count) {
            let word = usize::try_from(id / 64).ok().and_then(|word| self.0.get_mut(word));
            let word = word.ok_or_else(|| damaged(format_args!("it refers to page {id}, which it does not have")))?;
            let bit = 1 << (id % 64);
            if *word & bit != 0 {
                return Err(damaged(format_args!("page {id} is in two places")));
            }
            *word |= bit;
        }
        Ok(())
    }
}
