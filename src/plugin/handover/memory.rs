//! Memory that has a file descriptor and nothing else, and that nobody can change once it is sealed.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};
use zeroize::Zeroizing;

use crate::dek::handover::MAX_BYTES;

const SEALS: SealFlags = SealFlags::SEAL.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::WRITE);

/// # Errors
/// The kernel gives none.
pub(super) fn sealed(bytes: &[u8]) -> io::Result<OwnedFd> {
    let memory = memfd_create("kube-envelope", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(memory);
    file.write_all(bytes)?;
    let memory = OwnedFd::from(file);
    fcntl_add_seals(&memory, SEALS)?;
    Ok(memory)
}

/// # Errors
/// It is not sealed memory, or larger than any of ours.
pub(super) fn read(memory: &OwnedFd) -> io::Result<Zeroizing<Vec<u8>>> {
    let refused = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    // Without the seals, whoever holds a copy of the descriptor could still change the bytes between two reads of them.
    if !fcntl_get_seals(memory.as_fd()).is_ok_and(|seals| seals.contains(SEALS)) {
        return Err(refused("what is kept is not sealed memory"));
    }
    // Whoever wrote it left the position at its end, and all copies of a descriptor share one.
    let mut file = File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(memory)))?;
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    if length > MAX_BYTES {
        return Err(refused("what is kept is too large"));
    }
    let mut bytes = Zeroizing::new(vec![0; length]);
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_memory_is_read_as_often_as_one_likes_and_cannot_be_changed() {
        let memory = sealed(b"some bytes").unwrap();
        for _ in 0..2 {
            assert_eq!(*read(&memory).unwrap(), b"some bytes");
        }
        assert!(File::from(memory).write_all(b"others").is_err());
    }

    #[test]
    fn anything_else_is_refused() {
        assert!(read(&tempfile::tempfile().unwrap().into()).is_err(), "a file");
        let open = memfd_create("it", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        assert!(read(&open).is_err(), "memory that can still be changed");
    }
}
