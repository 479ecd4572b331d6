//! Small sets and the names of keys, each one byte, so that a state of the model stays small.

use std::fmt;

/// A key that a value is stored under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(u8);

impl Key {
    /// Stored in clear.
    pub const CLEAR: Self = Self(0);
    /// The KEK version that is in use when a history begins.
    pub const FORMER: Self = Self(1);
    /// The KEK version that the first rotation makes active.
    pub const NEXT: Self = Self(2);

    /// The version that a rotation of this one makes active.
    pub fn successor(self) -> Self {
        Self(self.0 + 1)
    }

    pub fn predecessor(self) -> Self {
        Self(self.0 - 1)
    }
}

impl From<Key> for usize {
    fn from(key: Key) -> Self {
        key.0.into()
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::CLEAR { f.write_str("no key") } else { write!(f, "version {}", self.0) }
    }
}

/// A set of keys, servers, values or etcds, each known by a number below eight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Set(u8);

impl Set {
    pub fn of<T: Into<usize>>(members: impl IntoIterator<Item = T>) -> Self {
        let mut set = Self::default();
        members.into_iter().for_each(|member| set.insert(member));
        set
    }

    pub fn insert(&mut self, member: impl Into<usize>) {
        self.0 |= 1 << member.into();
    }

    pub fn remove(&mut self, member: impl Into<usize>) {
        self.0 &= !(1 << member.into());
    }

    pub fn contains(self, member: impl Into<usize>) -> bool {
        self.0 & (1 << member.into()) != 0
    }

    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub fn complement(self) -> Self {
        Self(!self.0)
    }

    pub fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The smallest member.
    pub fn first(self) -> Option<usize> {
        (!self.is_empty()).then(|| self.0.trailing_zeros() as usize)
    }
}

/// As a set of keys.
impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = (0..8).filter(|key| self.contains(usize::from(*key))).map(|key| Key(key).to_string());
        f.write_str(&keys.collect::<Vec<_>>().join(", "))
    }
}
