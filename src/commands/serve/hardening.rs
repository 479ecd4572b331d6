//! Keeps secrets out of core files, debuggers and swap, as far as the process may.

use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{CapabilitySet, capabilities, set_no_new_privs};
use tracing::warn;

/// How many file descriptors the two listeners may use; the rest is for the KEKs, files and logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptors {
    /// Connections to the socket.
    pub connections: usize,
    /// Connections to the health endpoints.
    pub health: usize,
}

impl Descriptors {
    /// At most a quarter of `limit` for the socket, where one connection is needed, and a sixteenth for health.
    fn within(limit: u64) -> Self {
        // Most descriptors stay for connections to key stores, files and modules.
        let share = |part, most| usize::try_from(limit / part).unwrap_or(usize::MAX).clamp(4, most);
        Self { connections: share(4, 256), health: share(16, 64) }
    }
}

/// Raises the limit of open files to what is allowed, and divides it.
pub fn raise_descriptors() -> Descriptors {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        warn!(%error, "the limit of open files is not raised");
    }
    Descriptors::within(getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX))
}

/// Applies what is allowed; what is not is a warning that says what to grant.
pub fn apply() {
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        warn!(%error, "debuggers and core files are not disabled");
    }
    if let Err(error) = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }) {
        warn!(%error, "core files are not disabled");
    }
    if let Err(error) = set_no_new_privs(true) {
        warn!(%error, "privileges gained by exec are not disabled");
    }
    lock_memory();
}

/// Locks all pages as they are touched. Under a finite limit a later allocation would fail, so then not at all.
fn lock_memory() {
    let unlimited = getrlimit(Resource::Memlock).current.is_none();
    let privileged = capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK));
    // With a finite limit and without the capability, allocations would fail later, once the limit is reached.
    let locked = if unlimited || privileged {
        // ONFAULT: only pages that are used are locked, not the whole of every thread's stack.
        mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT)
            .map_err(|error| error.to_string())
    } else {
        Err("RLIMIT_MEMLOCK is finite".to_owned())
    };
    if let Err(error) = locked {
        warn!(error, "keys in memory may be swapped out; grant CAP_IPC_LOCK or set LimitMEMLOCK=infinity");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_listeners_never_take_all_descriptors() {
        for limit in [64, 256, 1024, 65_536, u64::MAX] {
            let Descriptors { connections, health } = Descriptors::within(limit);
            let left = limit.saturating_sub(u64::try_from(connections + health).unwrap());
            assert!(left >= limit / 2, "{limit}: {connections} and {health}");
            assert!(connections >= 4 && health >= 4, "{limit}");
        }
    }
}
