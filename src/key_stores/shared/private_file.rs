//! Files that hold keys: read only where nobody but their owner can read them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use zeroize::Zeroizing;

use crate::kek::KekError;

const MAX_BYTES: u64 = 1 << 20;

/// Why such a file was not read.
#[derive(Debug)]
pub(in crate::key_stores) enum Problem {
    /// It does not exist.
    Missing,
    /// Others can read it, or it cannot be read now.
    Other(KekError),
}

/// Reads a file that is called `what` in messages.
pub(in crate::key_stores) fn read(what: &str, file: &Path) -> Result<Zeroizing<String>, Problem> {
    let name = file.display();
    let failed =
        |problem: String, error: std::io::Error| Problem::Other(KekError::unavailable(problem).with_source(error));
    let mut handle = crate::files::open_at_once(file).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Problem::Missing,
        _ => failed(format!("cannot open {what} {name}"), error),
    })?;
    // Of the open file: what is examined is then what is read, whatever the path leads to a moment later.
    let metadata = handle.metadata().map_err(|error| failed(format!("cannot examine {what} {name}"), error))?;
    check(what, file, &metadata).map_err(Problem::Other)?;
    let mut text = Zeroizing::new(String::new());
    std::io::Read::read_to_string(&mut handle, &mut text)
        .map_err(|error| failed(format!("cannot read {what} {name}"), error))?;
    Ok(text)
}

fn check(what: &str, file: &Path, metadata: &fs::Metadata) -> Result<(), KekError> {
    let name = file.display();
    if !metadata.is_file() {
        return Err(KekError::misconfigured(format!("{what} {name} is not a regular file")));
    }
    if metadata.len() > MAX_BYTES {
        return Err(KekError::misconfigured(format!("{what} {name} is larger than {MAX_BYTES} bytes")));
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(KekError::misconfigured(format!(
            "{what} {name} has mode {:04o}: others can read it; fix with: chmod 0600 {name}",
            metadata.mode() & 0o7777
        )));
    }
    let user = rustix::process::geteuid().as_raw();
    // The owner of a file can change its mode, and then read it.
    if metadata.uid() != user && metadata.uid() != 0 {
        return Err(KekError::misconfigured(format!(
            "{what} {name} belongs to uid {}, and this program runs as uid {user}; fix with: chown {user} {name}",
            metadata.uid()
        )));
    }
    Ok(())
}
