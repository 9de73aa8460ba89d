#![allow(unsafe_code)]
//! Room on a file system.
//!
//! Invariant owned here: none beyond the call; every pointer given to the kernel is to a local.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Takes room for the first `bytes` of a file (fallocate(2)), so that they can be written, or given back.
///
/// # Errors
/// `StorageFull`: there is no room; a part may have been taken. The file system cannot do that.
pub fn allocate(file: &File, bytes: u64) -> io::Result<()> {
    let len =
        libc::off_t::try_from(bytes).map_err(|_e| io::Error::from(io::ErrorKind::FileTooLarge))?;
    // SAFETY: no pointers; the descriptor is open because `file` owns it.
    match unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, len) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Bytes that this process may still write to the file's file system.
///
/// # Errors
/// What fstatvfs(3) says.
pub fn available_bytes(file: &File) -> io::Result<u64> {
    // SAFETY: all-zero is a valid statvfs.
    let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: `stat` lives until the call returns; the descriptor is open because `file` owns it.
    match unsafe { libc::fstatvfs(file.as_raw_fd(), &raw mut stat) } {
        0 => Ok(stat.f_bavail.saturating_mul(stat.f_frsize)),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::{allocate, available_bytes};

    #[test]
    fn what_is_allocated_is_no_longer_available() {
        let file = tempfile::tempfile().unwrap();
        assert!(available_bytes(&file).unwrap() > 1 << 20);
        match allocate(&file, 1 << 20) {
            Ok(()) => assert_eq!(file.metadata().unwrap().len(), 1 << 20),
            Err(e) => assert_eq!(e.raw_os_error(), Some(libc::EOPNOTSUPP)),
        }
        assert!(allocate(&file, u64::MAX).is_err());
    }
}
