//! The folder of the socket: nobody else can put a socket there, and those who may connect can reach it.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tracing::warn;

use super::error::{SocketError, failed};
use super::problem::FolderProblem;
use crate::files::{Exposure, create_private_folder, exposure};

/// Why somebody else could put another socket into this folder. One that does not exist has no problem.
pub fn problem_of_folder(folder: &Path) -> Option<FolderProblem> {
    exposure(folder).map(|Exposure { problem, fix, .. }| FolderProblem {
        problem: format!("{problem}; another socket could be put there"),
        fix,
    })
}

/// The number of a group that is given by name or number.
///
/// # Errors
/// What is wrong, and the fix.
pub fn group_id(group: &str) -> Result<u32, String> {
    if let Ok(number) = group.parse() {
        return Ok(number);
    }
    let groups = fs::read_to_string("/etc/group").map_err(|error| format!("cannot read /etc/group: {error}"))?;
    find_group(&groups, group).ok_or_else(|| format!("there is no group {group} in /etc/group; give its number"))
}

/// Makes the folder of `path` where there is none, checks it, and lets those whom `mode` and `group` allow pass through.
pub(super) fn prepare(path: &Path, mode: u32, group: Option<u32>) -> Result<(), SocketError> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let made: Vec<PathBuf> = folder.ancestors().filter(|place| !place.exists()).map(Path::to_owned).collect();
    create_private_folder(folder).map_err(|source| failed("create folder", &folder.display(), source))?;
    if let Some(problem) = problem_of_folder(folder) {
        return Err(problem.into());
    }
    let passage = Passage::for_socket(mode, group);
    for place in folder.ancestors() {
        // Folders that were there before are others' to open, but for the socket's own.
        let may_change = place == folder || made.iter().any(|made| made == place);
        if let Err(error) = passage.open(place, may_change) {
            let fix = passage.fix(place);
            warn!(folder = %place.display(), %error, fix, "the API server cannot reach the socket through this folder");
        }
    }
    Ok(())
}

/// Whom the folders above the socket have to let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Passage {
    Owner,
    Group(u32),
    Everybody,
}

impl Passage {
    fn for_socket(mode: u32, group: Option<u32>) -> Self {
        if mode & 0o006 != 0 {
            Self::Everybody
        } else if mode & 0o060 != 0 {
            Self::Group(group.unwrap_or_else(|| rustix::process::getegid().as_raw()))
        } else {
            Self::Owner
        }
    }

    /// Adds the right to pass through, not to list, unless it is there.
    fn open(self, folder: &Path, may_change: bool) -> io::Result<()> {
        let metadata = fs::metadata(folder)?;
        let mode = metadata.mode() & 0o7777;
        let (is_open, missing) = match self {
            Self::Owner => (true, 0),
            Self::Group(group) => (mode & 0o001 != 0 || (metadata.gid() == group && mode & 0o010 != 0), 0o010),
            Self::Everybody => (mode & 0o001 != 0, 0o001),
        };
        if is_open {
            return Ok(());
        }
        if !may_change || metadata.uid() != rustix::process::geteuid().as_raw() {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "its mode does not let the API server through",
            ));
        }
        if let Self::Group(group) = self
            && metadata.gid() != group
        {
            std::os::unix::fs::chown(folder, None, Some(group))?;
        }
        fs::set_permissions(folder, fs::Permissions::from_mode(mode | missing))
    }

    fn fix(self, folder: &Path) -> String {
        let folder = folder.display();
        match self {
            Self::Group(group) => format!("chgrp {group} {folder} && chmod g+x {folder}"),
            Self::Owner | Self::Everybody => format!("chmod o+x {folder}"),
        }
    }
}

fn find_group(groups: &str, name: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set_mode(folder: &Path, mode: u32) {
        fs::set_permissions(folder, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn mode_of(folder: &Path) -> u32 {
        fs::metadata(folder).unwrap().mode() & 0o7777
    }

    #[test]
    fn a_folder_above_that_others_can_write_is_a_problem_unless_it_is_sticky() {
        let top = tempfile::tempdir().unwrap();
        let folder = top.path().join("a/b");
        fs::create_dir_all(&folder).unwrap();
        for place in [top.path(), &top.path().join("a"), &folder] {
            for (mode, is_problem) in [(0o777, true), (0o775, true), (0o1777, false), (0o755, false)] {
                set_mode(place, mode);
                let found = problem_of_folder(&folder);
                assert_eq!(found.is_some(), is_problem, "{} {mode:o}: {found:?}", place.display());
                if let Some(found) = found {
                    assert_eq!(found.fix, format!("chmod go-w {}", place.canonicalize().unwrap().display()));
                }
            }
            set_mode(place, 0o700);
        }
    }

    #[test]
    fn a_folder_or_symlink_of_another_user_is_a_problem() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let top = tempfile::tempdir().unwrap();
        let (real, link) = (top.path().join("real"), top.path().join("link"));
        fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        assert_eq!(problem_of_folder(&link), None);
        std::os::unix::fs::lchown(&link, Some(65534), None).unwrap();
        assert_eq!(problem_of_folder(&real), None);
        let problem = problem_of_folder(&link).unwrap();
        assert!(problem.problem.contains("belongs to uid 65534"), "{problem}");
        std::os::unix::fs::chown(&real, Some(65534), None).unwrap();
        assert!(problem_of_folder(&real).is_some());
    }

    #[test]
    fn the_folders_let_through_those_who_may_connect_and_no_others() {
        let own_group = rustix::process::getegid().as_raw();
        for (mode, group, expected) in [
            (0o600, None, 0o700),
            (0o660, None, 0o710),
            (0o660, Some(own_group), 0o710),
            (0o666, None, 0o701),
            (0o666, Some(own_group), 0o701),
        ] {
            let top = tempfile::tempdir().unwrap();
            set_mode(top.path(), 0o700);
            let folder = top.path().join("a/b");
            prepare(&folder.join("kms.sock"), mode, group).unwrap();
            assert_eq!((mode_of(&folder), mode_of(&top.path().join("a"))), (expected, expected), "{mode:o} {group:?}");
            assert_eq!(mode_of(top.path()), 0o700, "what was there before is left alone");
            prepare(&folder.join("kms.sock"), mode, group).unwrap();
            assert_eq!(mode_of(&folder), expected);
        }
    }

    #[test]
    fn a_group_is_found_by_name_or_number() {
        let groups = "root:x:0:\nkube:x:990:a,b\nbroken\n";
        assert_eq!(find_group(groups, "kube"), Some(990));
        assert_eq!(find_group(groups, "broken"), None);
        assert_eq!(find_group(groups, "kub"), None);
        assert_eq!(group_id("4321"), Ok(4321));
        assert!(group_id("no such group").unwrap_err().contains("/etc/group"));
    }
}
