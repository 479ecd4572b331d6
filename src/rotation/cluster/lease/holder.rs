//! Who holds the Lease: a process, told apart from every other one, so that one that is gone is recognised on its own
//! machine.

/// Who holds the Lease, as its `holderIdentity` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder(pub(super) String);

impl Holder {
    /// This process, on this machine.
    pub fn this_process() -> Self {
        let host = read("/proc/sys/kernel/hostname");
        let pid = std::process::id();
        Self(format!("{host} pid {pid} start {} in {}", start_of(pid).unwrap_or_default(), place()))
    }

    /// Nobody: the Lease is free.
    pub(super) fn nobody() -> Self {
        Self(String::new())
    }

    /// Whether this names a process that ran on this machine, in this pid namespace, and is gone.
    pub(super) fn is_gone(&self) -> bool {
        let parts: Vec<_> = self.0.split(' ').collect();
        let [_, "pid", pid, "start", start, "in", at] = parts.as_slice() else { return false };
        // A pid is used again; with the time of the start it means one process.
        let same_process = pid.parse().ok().and_then(start_of).is_some_and(|running| running == *start);
        *at == place() && !same_process
    }
}

/// Which boot of which machine, and which pid namespace: where a pid means one process.
fn place() -> String {
    let boot = read("/proc/sys/kernel/random/boot_id");
    let namespace = std::fs::read_link("/proc/self/ns/pid").map(|link| link.display().to_string()).unwrap_or_default();
    format!("{boot}/{namespace}")
}

fn read(file: &str) -> String {
    std::fs::read_to_string(file).unwrap_or_default().trim().to_owned()
}

/// When a process started, in ticks since boot: field 22 of `proc_pid_stat(5)`, counted after the name in brackets.
fn start_of(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_is_gone_when_its_process_on_this_machine_is() {
        let own = Holder::this_process();
        assert!(!own.is_gone());
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let other = Holder(own.0.replace(&format!("pid {} ", std::process::id()), &format!("pid {} ", child.id())));
        child.wait().unwrap();
        assert!(other.is_gone());
        assert!(!Holder("elsewhere pid 1 start 1 in another/pid:[1]".into()).is_gone(), "nothing is known of it");
        assert!(!Holder("some text".into()).is_gone());
        assert!(!Holder::nobody().is_gone());
    }
}
