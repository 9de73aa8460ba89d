#![allow(unsafe_code)]
//! Memory mappings.
//!
//! Invariant owned here: `as_ptr()..as_ptr() + len()` is mapped while the value lives. What may be
//! done with the bytes (who else reads or writes them) is the owner's business, so only a raw
//! pointer is given out.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

/// From now on the kernel backs what this process maps with pages of the smallest size only, unless
/// reserved huge pages are asked for.
pub fn disable_transparent_huge_pages() {
    // SAFETY: takes no pointer. It fails only where there are none of them.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
}

/// A mapping, removed when dropped.
#[derive(Debug)]
pub struct Mapping {
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: an address range belongs to the process, not to a thread.
unsafe impl Send for Mapping {}
// SAFETY: as above; shared access gives out a raw pointer only.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Private zeroed memory, `len` bytes.
    ///
    /// # Errors
    /// Out of memory.
    pub fn anonymous(len: usize) -> io::Result<Mapping> {
        Mapping::map(len, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
    }

    /// `len` bytes of `fd` from `offset` (a multiple of the page size) on, shared with whoever else
    /// maps them.
    ///
    /// # Errors
    /// `fd` cannot be mapped, or not that much of it.
    pub fn shared(fd: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<Mapping> {
        let offset = libc::off_t::try_from(offset).map_err(|_e| io::ErrorKind::InvalidInput)?;
        // Without a reservation: a guest's memory is its owner's to account for.
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
        Mapping::map(len, flags, fd.as_raw_fd(), offset)
    }

    fn map(len: usize, flags: i32, fd: i32, offset: libc::off_t) -> io::Result<Mapping> {
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let ptr = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                fd,
                offset,
            )
        };
        if ptr == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        match NonNull::new(ptr.cast()) {
            Some(ptr) => Ok(Mapping { ptr, len }),
            None => Err(io::Error::from_raw_os_error(libc::ENOMEM)),
        }
    }

    /// First byte.
    #[inline]
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    /// Bytes.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none (there always are).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `map`, and nothing refers to it after its owner is gone.
        unsafe { libc::munmap(self.ptr.as_ptr().cast(), self.len) };
    }
}
