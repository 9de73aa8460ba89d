#![allow(unsafe_code)]
//! Shared memory: memfds and mappings of descriptors.
//!
//! Invariant owned here: a [`Mapping`] is exactly one mmap(2) of this process, unmapped when the
//! value is dropped and not before; its address never changes.

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
    Ok(fd)
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

/// A shared, writable mapping of a descriptor.
#[derive(Debug)]
pub struct Mapping {
    ptr: *mut u8,
    len: usize,
}

// SAFETY: a mapping is an address range without thread affinity; whoever dereferences it answers
// for the access.
unsafe impl Send for Mapping {}
// SAFETY: as above; `&Mapping` only gives out the address and the length.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes from `offset` (a multiple of the page size) of `fd`.
    ///
    /// # Errors
    /// What mmap(2) says.
    pub fn new(fd: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<Self> {
        let offset = libc::off_t::try_from(offset).map_err(|_e| io::ErrorKind::InvalidInput)?;
        // SAFETY: a fresh mapping at an address of the kernel's choice disturbs nothing.
        let p = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                fd.as_raw_fd(),
                offset,
            )
        };
        if p == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Mapping { ptr: p.cast(), len })
    }

    /// First byte.
    #[inline]
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.ptr
    }

    /// Bytes.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the mapping is empty; never so, mmap(2) refuses it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range this value mapped; users hold a reference to the value while they use it.
        unsafe { libc::munmap(self.ptr.cast(), self.len) };
    }
}
