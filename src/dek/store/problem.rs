//! Why the state folder does not hold what it should, and what to do about it.

use std::io;

/// What could not be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failed {
    Read,
    Write,
}

/// The reason as an operator reads it, with the fix where the kind of the error tells one.
pub(super) fn words(failed: Failed, error: &io::Error) -> String {
    let what = match failed {
        Failed::Read => "read",
        Failed::Write => "written",
    };
    let problem = format!("stateDir cannot be {what} ({error})");
    match fix(error.kind()) {
        Some(fix) => format!("{problem}: {fix}"),
        None => problem,
    }
}

fn fix(kind: io::ErrorKind) -> Option<&'static str> {
    use io::ErrorKind::{
        AlreadyExists, NotADirectory, NotFound, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull,
    };
    match kind {
        StorageFull | QuotaExceeded => Some("make room"),
        ReadOnlyFilesystem => Some("mount it so that it can be written"),
        PermissionDenied => Some(
            "give it to the plugin's user; if it was made or replaced after the start, restart the plugin, whose sandbox \
             knows the folder that was there before",
        ),
        NotFound => Some("it was removed or moved away: make it again, for the plugin's user"),
        NotADirectory | AlreadyExists => Some("remove what is in its place"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_asked_for_where_it_is_missing_and_nowhere_else() {
        let of = |errno| words(Failed::Write, &io::Error::from_raw_os_error(errno));
        assert!(of(libc::ENOSPC).ends_with(": make room") && of(libc::EDQUOT).ends_with(": make room"));
        for errno in [libc::ENOENT, libc::EROFS, libc::EACCES, libc::EPERM, libc::ENOTDIR, libc::EIO] {
            assert!(!of(errno).contains("room"), "{}", of(errno));
        }
        assert!(of(libc::ENOENT).contains("make it again") && of(libc::EROFS).contains("mount"), "{}", of(libc::EROFS));
    }
}
