//! Keeps secrets out of core files, debuggers and swap, as far as the process may.

use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{CapabilitySet, capabilities, set_no_new_privs};
use tracing::warn;

/// Applies what is allowed; what is not is a warning that says what to grant.
pub fn apply() {
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        warn!(%error, "debuggers and core files are not kept out");
    }
    if let Err(error) = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }) {
        warn!(%error, "core files are not switched off");
    }
    if let Err(error) = set_no_new_privs(true) {
        warn!(%error, "privileges gained by exec are not switched off");
    }
    lock_memory();
}

/// Locks all pages as they are touched. Under a finite limit a later allocation would fail, so then not at all.
fn lock_memory() {
    let unlimited = getrlimit(Resource::Memlock).current.is_none();
    let privileged = capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK));
    let locked = if unlimited || privileged {
        mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT)
            .map_err(|error| error.to_string())
    } else {
        Err("RLIMIT_MEMLOCK is finite".to_owned())
    };
    if let Err(error) = locked {
        warn!(error, "keys in memory may be swapped out; grant CAP_IPC_LOCK or set LimitMEMLOCK=infinity");
    }
}
