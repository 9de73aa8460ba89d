#![allow(unsafe_code)]
//! Memory that can be passed to another process, and the size of what was passed to us.
//!
//! Invariant owned here: none beyond the call; every pointer given to the kernel is to a local.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Anonymous memory that can be passed to another process, `len` bytes, zeroed.
///
/// # Errors
/// Out of memory or descriptors; with `huge`, not enough free 2 MiB pages.
pub fn memfd(name: &std::ffi::CStr, len: usize, huge: bool) -> io::Result<OwnedFd> {
    let flags = libc::MFD_CLOEXEC | if huge { libc::MFD_HUGETLB } else { 0 };
    // SAFETY: `name` is a C string that lives until the call returns.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above returned a new descriptor that nobody else owns.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let len = libc::off_t::try_from(len).map_err(|_e| io::ErrorKind::InvalidInput)?;
    // SAFETY: no pointers.
    if unsafe { libc::ftruncate(fd.as_raw_fd(), len) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // Pages that are short are said now, not by SIGBUS at their first use.
    // SAFETY: no pointers.
    if huge && unsafe { libc::fallocate(fd.as_raw_fd(), 0, 0, len) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(fd)
}

/// Whether the file is memory: a memfd, or on tmpfs or hugetlbfs. A page of any other may have to
/// come from a disk, a network or another process, and who touches it waits for that. Only these have
/// seals, and the kernel says so by itself: fstatfs(2) would ask a FUSE file's server.
#[must_use]
pub fn is_memory(fd: BorrowedFd<'_>) -> bool {
    // SAFETY: no pointers.
    unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS) >= 0 }
}

/// Size and block size of the file behind a descriptor, bytes.
///
/// # Errors
/// What fstat(2) says.
pub fn file_size(fd: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    // SAFETY: all-zero is a valid stat.
    let mut st: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: `st` lives until the call returns.
    if unsafe { libc::fstat(fd.as_raw_fd(), &raw mut st) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((
        u64::try_from(st.st_size).unwrap_or(0),
        u64::try_from(st.st_blksize).unwrap_or(4096),
    ))
}

#[cfg(test)]
mod tests {
    use super::{is_memory, memfd};
    use std::fs::File;
    use std::os::fd::AsFd;

    /// What QEMU's memory back-ends share, and what they cannot.
    #[test]
    fn memory_is_told_from_files() {
        assert!(is_memory(memfd(c"t", 4096, false).unwrap().as_fd()));
        // Without huge pages in the kernel there is nothing to tell.
        if let Ok(huge) = memfd(c"t", 2 << 20, true) {
            assert!(is_memory(huge.as_fd()));
        }
        let shm = tempfile::tempfile_in("/dev/shm").unwrap();
        assert!(is_memory(shm.as_fd()));
        let (pipe, _writer) = std::io::pipe().unwrap();
        assert!(!is_memory(pipe.as_fd()));
        for path in ["/proc/self/exe", "/dev/null", "/dev/shm", "/dev/zero"] {
            assert!(!is_memory(File::open(path).unwrap().as_fd()), "{path}");
        }
    }
}
