//! How commands run and end.

/// How a command ended; the process's exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done; where there is a verdict, only a *Yes* of now.
    Done = 0,
    /// Something failed that no other code stands for.
    Error = 1,
    /// The arguments or the configuration cannot work; nothing was touched.
    Usage = 2,
    /// Objects were refused and are quarantined.
    Quarantined = 3,
    /// The rotation stands still until it is resumed.
    Paused = 4,
    /// Not every API server uses the target key.
    NotConverged = 5,
    /// Something is stored under an older key.
    Leftovers = 6,
    /// Nothing is left in live data, and something that is named still needs the former key.
    NotYet = 7,
    /// It could not be shown that nothing is left.
    NotProven = 8,
    /// No key went out of use that could be disabled.
    NothingRotated = 9,
    /// An API server that starts now could not read something that is stored.
    WouldNotStart = 10,
    /// No KEK is old enough to be rotated.
    NotDue = 11,
}

/// Runs a command's future on a small runtime.
pub(super) fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}
