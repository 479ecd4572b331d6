//! The contract of a keeper of the memory.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

/// Who keeps sealed memory while the plugin is not running. All of it may block.
pub trait Keeper: Send + Sync + fmt::Debug {
    /// Keeps this in place of what it kept, until the moment `until` of the machine's time.
    ///
    /// # Errors
    /// It cannot be reached, or refuses.
    fn keep(&self, memory: OwnedFd, until: Duration) -> io::Result<()>;

    /// Keeps nothing any more.
    ///
    /// # Errors
    /// It cannot be reached.
    fn forget(&self) -> io::Result<()>;

    /// Everything that it keeps.
    ///
    /// # Errors
    /// It cannot be reached.
    fn take(&self) -> io::Result<Vec<OwnedFd>>;
}
