//! One page of a bbolt database (go.etcd.io/bbolt, internal/common/page.go): a header, then the elements of a branch or
//! of a leaf. Everything that the page says about itself is checked before it is used.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::fmt;
use std::io;

pub(super) const HEADER: usize = 16;
const ELEMENT: usize = 16;
const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
const BUCKET: usize = 0x01;

/// Why a file is refused.
#[derive(Debug)]
pub(super) enum Fault {
    /// It cannot be read.
    Io(io::Error),
    /// It is read, and it is damaged or something else.
    Damaged(String),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => damaged("it is cut short"),
            _ => Self::Io(error),
        }
    }
}

pub(super) fn damaged(problem: impl fmt::Display) -> Fault {
    Fault::Damaged(problem.to_string())
}

/// What a page holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// References to pages with greater and greater keys.
    Branch,
    /// Keys and values.
    Leaf,
}

/// A page, with the pages that continue it.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) id: u64,
    pub(super) kind: Kind,
    pub(super) count: usize,
    bytes: Vec<u8>,
}

/// One key of a leaf.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry<'a> {
    pub(super) is_bucket: bool,
    pub(super) key: &'a [u8],
    pub(super) value: &'a [u8],
}

impl Page {
    /// Checks the header, and that all elements lie inside the page.
    pub(super) fn parse(id: u64, bytes: Vec<u8>) -> Result<Self, Fault> {
        let own = long(&bytes, 0)?;
        // A page that lies at another place than it says was torn, or the file was cut and glued.
        if own != id {
            return Err(damaged(format_args!("page {id} calls itself page {own}")));
        }
        let kind = match half(&bytes, 8)? {
            BRANCH => Kind::Branch,
            LEAF => Kind::Leaf,
            other => return Err(damaged(format_args!("page {id} has the flags {other:#x} of no branch or leaf"))),
        };
        let count = usize::from(half(&bytes, 10)?);
        if element(count, 0)? > bytes.len() {
            return Err(damaged(format_args!("page {id} has no room for its {count} elements")));
        }
        Ok(Self { id, kind, count, bytes })
    }

    /// How many pages continue the one with this header.
    pub(super) fn overflow(header: &[u8]) -> Result<u64, Fault> {
        word(header, 12).map(u64::from)
    }

    /// The page that element `at` of a branch refers to.
    pub(super) fn child(&self, at: usize) -> Result<u64, Fault> {
        long(&self.bytes, element(at, 8)?)
    }

    /// Element `at` of a leaf.
    pub(super) fn entry(&self, at: usize) -> Result<Entry<'_>, Fault> {
        let number = |offset| word(&self.bytes, element(at, offset)?).map(|word| word as usize);
        // A position counts from its own element, not from the page.
        let (position, key, value) = (element(at, number(4)?)?, number(8)?, number(12)?);
        let take = |from: usize, length: usize| {
            let found = self.bytes.get(from..).and_then(|rest| rest.get(..length));
            found.ok_or_else(|| damaged(format_args!("element {at} of page {} is outside its page", self.id)))
        };
        let is_bucket = number(0)? & BUCKET != 0;
        Ok(Entry { is_bucket, key: take(position, key)?, value: take(position.saturating_add(key), value)? })
    }

    /// All elements of a leaf.
    pub(super) fn entries(&self) -> impl DoubleEndedIterator<Item = Result<Entry<'_>, Fault>> {
        (0..self.count).map(|at| self.entry(at))
    }
}

/// Where byte `offset`, counted from element `at`, is.
fn element(at: usize, offset: usize) -> Result<usize, Fault> {
    let elements = at.checked_mul(ELEMENT).and_then(|elements| elements.checked_add(HEADER));
    elements.and_then(|start| start.checked_add(offset)).ok_or_else(|| damaged("a page is longer than can be"))
}

fn bytes<const N: usize>(of: &[u8], at: usize) -> Result<[u8; N], Fault> {
    let found = of.get(at..).and_then(|rest| rest.first_chunk());
    found.copied().ok_or_else(|| damaged("a page is cut short"))
}

fn half(of: &[u8], at: usize) -> Result<u16, Fault> {
    bytes(of, at).map(u16::from_le_bytes)
}

pub(super) fn word(of: &[u8], at: usize) -> Result<u32, Fault> {
    bytes(of, at).map(u32::from_le_bytes)
}

pub(super) fn long(of: &[u8], at: usize) -> Result<u64, Fault> {
    bytes(of, at).map(u64::from_le_bytes)
}
