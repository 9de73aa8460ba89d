#![allow(unsafe_code)]
//! eventfd(2): a counter that wakes whoever polls it.
//!
//! Invariant owned here: the descriptor is open for as long as the value lives.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// A non-blocking eventfd.
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

    /// One received from a peer (a vring's kick or call). Made non-blocking, so that a hostile
    /// peer cannot stop the thread that signals or drains it.
    ///
    /// # Errors
    /// The descriptor's flags cannot be changed.
    pub fn from_peer(fd: OwnedFd) -> io::Result<Self> {
        // SAFETY: no pointers; the descriptor is open because `fd` owns it.
        let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
        if flags < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: as above.
        let r = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) };
        if r < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(EventFd(fd))
    }

    /// Adds one and wakes the waiter. Never blocks; a full counter already wakes the waiter, and
    /// a peer's descriptor that is not an eventfd at all is the peer's loss, so errors are nothing.
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

#[cfg(test)]
mod tests {
    use super::EventFd;
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
    fn a_blocking_descriptor_of_a_peer_cannot_block_us() {
        let (reader, _writer) = std::os::unix::net::UnixStream::pair().unwrap();
        let e = EventFd::from_peer(OwnedFd::from(reader)).unwrap();
        assert_eq!(e.drain(), 0);
    }
}
