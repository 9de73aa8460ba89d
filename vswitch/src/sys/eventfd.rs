#![allow(unsafe_code)]
//! eventfd(2): a counter that wakes whoever polls it.
//!
//! Invariant owned here: the descriptor is open for as long as the value lives.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// A non-blocking eventfd of our own. One that a peer gave us is signalled by
/// [`crate::sys::aio::Signaller`] and never read, because the peer can make it block.
#[derive(Debug)]
pub struct EventFd(OwnedFd);

impl EventFd {
    /// A new one, at zero.
    ///
    /// # Errors
    /// The process or the system is out of descriptors.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call above returned a new descriptor that nobody else owns.
        Ok(EventFd(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Adds one and wakes the waiter. Never blocks; a full counter already wakes the waiter, so an
    /// error is nothing.
    #[inline]
    pub fn signal(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: reads eight bytes of `one`, which lives until the call returns.
        let _ = unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    /// Takes the count and sets it to zero; 0 when nothing was signalled. Never blocks.
    #[inline]
    pub fn drain(&self) -> u64 {
        let mut count = [0u8; 8];
        // SAFETY: writes at most eight bytes into `count`, which lives until the call returns.
        let n = unsafe { libc::read(self.0.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
        if n == 8 { u64::from_ne_bytes(count) } else { 0 }
    }

    /// The descriptor, to be polled; open for as long as the value lives.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// A second descriptor of the same counter, for another owner.
    ///
    /// # Errors
    /// The process or the system is out of descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(EventFd)
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Passes on what a peer calls an eventfd if it is one. The poll of anything else (an epoll set with
/// a file in it, say) could make us wait for whoever serves that. The kernel says what it is without
/// asking anybody, in /proc; no file can have this name, as theirs start with a slash.
///
/// # Errors
/// `InvalidInput`: it is something else. `NotFound`: /proc is not mounted.
pub fn from_peer<F: AsFd>(fd: F) -> io::Result<F> {
    let link = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    if std::fs::read_link(link)?.as_os_str() == "anon_inode:[eventfd]" {
        Ok(fd)
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the descriptor is not an eventfd",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::{EventFd, from_peer};
    use std::os::fd::OwnedFd;

    #[test]
    fn counts_and_drains() {
        let e = EventFd::new().unwrap();
        assert_eq!(e.drain(), 0);
        e.signal();
        e.try_clone().unwrap().signal();
        assert_eq!(e.drain(), 2);
        assert_eq!(e.drain(), 0);
    }

    #[test]
    fn a_peer_gives_an_eventfd_or_nothing() {
        assert!(from_peer(EventFd::new().unwrap()).is_ok());
        let (socket, _) = std::os::unix::net::UnixStream::pair().unwrap();
        let (pipe, _writer) = std::io::pipe().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let file = std::fs::File::create(dir.path().join("anon_inode:[eventfd]")).unwrap();
        for fd in [OwnedFd::from(socket), pipe.into(), file.into()] {
            assert_eq!(
                from_peer(fd).unwrap_err().kind(),
                std::io::ErrorKind::InvalidInput
            );
        }
    }
}
