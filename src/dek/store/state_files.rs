//! What the store needs of the place where its records lie.

use std::collections::BTreeSet;
use std::{fmt, io};

use async_trait::async_trait;

use crate::crypto::secret::DekId;

/// Where records are kept under names. Each call may take long, or fail; none blocks the thread.
#[async_trait]
pub trait StateFiles: Send + Sync + fmt::Debug {
    /// Takes the place for this process alone, or looks whether it still has it and may write there.
    ///
    /// # Errors
    /// [`io::ErrorKind::ResourceBusy`] where another process has it. Whatever the error is, the place can perhaps be
    /// read all the same.
    async fn take(&self) -> io::Result<Place>;

    /// Reads every record, also where the place is not taken. Damaged ones are set aside where it is.
    async fn load(&self) -> io::Result<Vec<(Name, Vec<u8>)>>;

    /// The records that are there; none where the place is missing.
    async fn names(&self) -> io::Result<BTreeSet<Name>>;

    /// Writes a record durably and as a whole, or not at all.
    ///
    /// # Errors
    /// The place is not the one that was taken, or cannot be written.
    async fn write(&self, name: Name, record: &[u8]) -> io::Result<()>;

    /// Removes a record; a missing one is not an error.
    async fn remove(&self, name: Name) -> io::Result<()>;
}

/// What was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The one that this process had before.
    Same,
    /// One of which it does not know what is in it: at the start, or since another one was put there.
    Other,
}

/// What a record is. In the order of writing: what a history names is there before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// A wrapped DEK.
    Dek(DekId),
    /// The [`History`](crate::dek::history::History) of adopted generations; there is one.
    History,
}
