//! Who else can change a file: its owner, whom its mode lets write, and whoever can put another one in its place.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const STICKY: u32 = 0o1000;
const WRITABLE_BY_OTHERS: u32 = 0o022;
const WRITABLE_BY_ALL: u32 = 0o002;

/// Why others can change a file or folder, or put another one in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exposure {
    /// What is wrong, and where.
    pub problem: String,
    /// The command that puts it right.
    pub fix: String,
    /// Whether only members of its group can.
    pub is_group_only: bool,
}

/// Looks at a file or folder, at all folders above it and at the symlinks on the way: each must belong to root or to this
/// process's user, and be writable by nobody else, unless it is a sticky folder. What does not exist has no problem.
pub fn exposure(place: &Path) -> Option<Exposure> {
    let own = rustix::process::geteuid().as_raw();
    let trusted = [Some(0), Some(own), unmapped_uid()];
    // Whoever owns a link on the way decides where it leads.
    let symlinks = place.ancestors().filter(|place| place.is_symlink());
    let real = place.canonicalize();
    let places = real.iter().flat_map(|real| real.ancestors());
    symlinks.chain(places).find_map(|place| {
        let metadata = fs::symlink_metadata(place).ok()?;
        let (owner, mode, name) = (metadata.uid(), metadata.mode() & 0o7777, place.display());
        if !trusted.contains(&Some(owner)) {
            return Some(Exposure {
                problem: format!("{name} belongs to uid {owner}, who can change it"),
                fix: format!("chown -h {own} {name}"),
                is_group_only: false,
            });
        }
        // In a sticky folder (such as /tmp) only the owner of a file may rename it. The mode of a device or of a link says
        // nothing of the kind.
        let is_safe = !metadata.is_file() && (!metadata.is_dir() || mode & STICKY != 0);
        (mode & WRITABLE_BY_OTHERS != 0 && !is_safe).then(|| Exposure {
            problem: format!(
                "{} {name} can be written by others (mode {mode:04o})",
                if metadata.is_dir() { "folder" } else { "file" }
            ),
            fix: format!("chmod go-w {name}"),
            is_group_only: mode & WRITABLE_BY_ALL == 0,
        })
    })
}

/// What the kernel shows as the owner of files whose owner has no name in this user namespace: their owner cannot be
/// told, and no process in the namespace can be him. `None` in the first namespace, where it is an owner like others.
fn unmapped_uid() -> Option<u32> {
    let map = fs::read_to_string("/proc/self/uid_map").ok()?;
    // No user namespace: every uid is mapped.
    if map.split_whitespace().eq(["0", "0", "4294967295"]) {
        return None;
    }
    fs::read_to_string("/proc/sys/kernel/overflowuid").ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_that_others_can_write_is_exposed_and_one_that_they_can_read_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        for (mode, is_exposed) in [(0o600, false), (0o644, false), (0o666, true), (0o620, true), (0o1602, true)] {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            let found = exposure(&file);
            assert_eq!(found.is_some(), is_exposed, "{mode:o}: {found:?}");
            assert!(found.is_none_or(|found| found.is_group_only == (mode == 0o620)), "{mode:o}");
        }
        assert_eq!(exposure(&folder.path().join("missing")), None);
    }
}
