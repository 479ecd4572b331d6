//! What the store needs of the place where its records lie.

use std::{fmt, io};

use async_trait::async_trait;

use crate::crypto::secret::DekId;

/// Where records are kept under names. Each call may take long, or fail; none blocks the thread.
#[async_trait]
pub trait StateFiles: Send + Sync + fmt::Debug {
    /// Takes the place for this process alone, and reads every record; damaged ones are set aside.
    ///
    /// # Errors
    /// [`io::ErrorKind::ResourceBusy`] where another process has it.
    async fn load(&self) -> io::Result<Vec<(Name, Vec<u8>)>>;

    /// Writes a record durably and as a whole, or not at all.
    async fn write(&self, name: Name, record: &[u8]) -> io::Result<()>;

    /// Removes a record; a missing one is not an error.
    async fn remove(&self, name: Name) -> io::Result<()>;
}

/// What a record is. In the order of writing: what a history names is there before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// A wrapped DEK.
    Dek(DekId),
    /// The [`History`](crate::dek::history::History) of adopted generations; there is one.
    History,
}
