//! systemd's store of file descriptors (`FileDescriptorStoreMax=`, `sd_pid_notify_with_fds(3)`): kept while the service is
//! started again, and closed when it is stopped for good.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use sd_notify::NotifyState;

use super::keeper::Keeper;

/// Two names in turn: the new memory is there before the former one goes, whenever the process is killed.
const NAMES: [&str; 2] = ["kube-envelope-0", "kube-envelope-1"];

/// The service manager that started this process.
#[derive(Debug)]
pub struct ServiceManager {
    /// Which name was used last.
    last: AtomicUsize,
}

impl ServiceManager {
    /// None where nobody is notified, or where it says that it stores nothing (systemd 254 and later say so).
    pub fn of_this_process() -> Option<Self> {
        let stores = std::env::var("FDSTORE").map_or(true, |most| most != "0");
        (std::env::var_os("NOTIFY_SOCKET").is_some() && stores).then(|| Self { last: AtomicUsize::new(0) })
    }
}

impl Keeper for ServiceManager {
    // systemd's store has no expiry. The process that takes the memory judges how old it is by `Handover::opened`.
    fn keep(&self, memory: OwnedFd, _until: Duration) -> io::Result<()> {
        let last = self.last.load(Relaxed);
        let next = (last + 1) % NAMES.len();
        sd_notify::notify_with_fds(&[NotifyState::FdStore, NotifyState::FdName(NAMES[next])], &[memory.as_fd()])?;
        self.last.store(next, Relaxed);
        sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(NAMES[last])])
    }

    fn forget(&self) -> io::Result<()> {
        NAMES.iter().try_for_each(|name| sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]))
    }

    fn take(&self) -> io::Result<Vec<OwnedFd>> {
        let mut taken = Vec::new();
        for (descriptor, name) in sd_notify::listen_fds_with_names()? {
            let Some(at) = NAMES.iter().position(|one| *one == name) else { continue };
            // Opened again: the number alone gives no right to close it.
            taken.push(File::open(format!("/proc/self/fd/{descriptor}"))?.into());
            // What is kept next must not take the place of what was kept last.
            self.last.store(at, Relaxed);
        }
        Ok(taken)
    }
}
