#![allow(unsafe_code)]
//! epoll(7): one descriptor to wait on for many.
//!
//! Invariant owned here: [`Event`] has the layout of the kernel's `struct epoll_event`, so that a
//! caller's slice can be filled in place.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// What to wait for. Errors and hang-ups are always reported.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Interest(u32);

#[allow(clippy::cast_sign_loss)] // bit masks that the C header declares as int
impl Interest {
    /// Bytes to read, a connection to accept, or the peer closed.
    pub const READ: Interest = Interest((libc::EPOLLIN | libc::EPOLLRDHUP) as u32);
    /// Room to write.
    pub const WRITE: Interest = Interest(libc::EPOLLOUT as u32);
    /// Both.
    pub const READ_WRITE: Interest = Interest(Self::READ.0 | Self::WRITE.0);

    /// The same, reported once per change instead of while it lasts.
    #[must_use]
    pub const fn edge(self) -> Interest {
        Interest(self.0 | libc::EPOLLET as u32)
    }
}

/// What happened to which descriptor.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Event(libc::epoll_event);

#[allow(clippy::cast_sign_loss)] // bit masks that the C header declares as int
impl Event {
    /// A place for [`Epoll::wait`] to fill.
    pub const EMPTY: Event = Event(libc::epoll_event { events: 0, u64: 0 });

    /// The token given to [`Epoll::add`].
    #[must_use]
    pub fn token(&self) -> u64 {
        self.0.u64
    }

    /// Whether reading makes progress (also because the peer closed, or an error waits).
    #[must_use]
    pub fn is_readable(&self) -> bool {
        const BITS: i32 = libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR;
        self.0.events & BITS as u32 != 0
    }

    /// Whether writing makes progress (also because an error waits).
    #[must_use]
    pub fn is_writable(&self) -> bool {
        const BITS: i32 = libc::EPOLLOUT | libc::EPOLLHUP | libc::EPOLLERR;
        self.0.events & BITS as u32 != 0
    }

    /// Whether the peer has gone, or the descriptor is in error.
    #[must_use]
    pub fn is_hangup(&self) -> bool {
        self.0.events & (libc::EPOLLHUP | libc::EPOLLERR | libc::EPOLLRDHUP) as u32 != 0
    }
}

impl std::fmt::Debug for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bits = self.0.events;
        f.debug_struct("Event")
            .field("token", &self.token())
            .field("bits", &format_args!("{bits:#x}"))
            .finish()
    }
}

/// A set of descriptors to wait on. Closing a descriptor removes it from the set.
#[derive(Debug)]
pub struct Epoll(OwnedFd);

impl Epoll {
    /// An empty set.
    ///
    /// # Errors
    /// The process or the system is out of descriptors.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call above returned a new descriptor that nobody else owns.
        Ok(Epoll(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Adds `fd`; events carry `token`.
    ///
    /// # Errors
    /// `fd` is closed, already in the set, or of a kind that cannot be waited on (a regular file).
    pub fn add(&self, fd: RawFd, token: u64, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, token, interest)
    }

    /// Changes token or interest of `fd`.
    ///
    /// # Errors
    /// `fd` is not in the set.
    pub fn modify(&self, fd: RawFd, token: u64, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, token, interest)
    }

    /// Removes `fd`.
    ///
    /// # Errors
    /// `fd` is not in the set.
    pub fn remove(&self, fd: RawFd) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_DEL, fd, 0, Interest(0))
    }

    fn control(&self, op: i32, fd: RawFd, token: u64, interest: Interest) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: interest.0,
            u64: token,
        };
        // SAFETY: `event` lives until the call returns; the kernel only reads it.
        let r = unsafe { libc::epoll_ctl(self.0.as_raw_fd(), op, fd, &raw mut event) };
        if r < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Waits until something happens or `timeout_ms` has passed (negative: for ever; 0: no wait)
    /// and returns how many of `events` were filled. A signal counts as nothing happened.
    ///
    /// # Errors
    /// `events` is empty.
    pub fn wait(&self, events: &mut [Event], timeout_ms: i32) -> io::Result<usize> {
        let len = i32::try_from(events.len()).unwrap_or(i32::MAX);
        // SAFETY: `Event` is a transparent `epoll_event`, and at most `len` of them are written.
        let n = unsafe {
            libc::epoll_wait(
                self.0.as_raw_fd(),
                events.as_mut_ptr().cast::<libc::epoll_event>(),
                len,
                timeout_ms,
            )
        };
        match usize::try_from(n) {
            Ok(n) => Ok(n),
            Err(_) => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => Ok(0),
                e => Err(e),
            },
        }
    }
}

impl AsRawFd for Epoll {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Waits until there is something to be read from `fd`, or so long (ppoll(2): to the nanosecond, where epoll counts
/// milliseconds). A signal counts as nothing happened.
///
/// # Errors
/// The system is out of memory.
pub fn wait_readable(fd: RawFd, timeout: Duration) -> io::Result<()> {
    let mut ready = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    let timeout = libc::timespec {
        tv_sec: timeout.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    };
    // SAFETY: `ready` and `timeout` live until the call returns; there is one pollfd; no signal mask is given.
    let r = unsafe { libc::ppoll(&raw mut ready, 1, &raw const timeout, std::ptr::null()) };
    if r < 0 {
        let e = io::Error::last_os_error();
        if e.kind() != io::ErrorKind::Interrupted {
            return Err(e);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Epoll, Event, Interest};
    use crate::sys::eventfd::EventFd;

    #[test]
    fn reports_the_token_of_what_happened() {
        let (set, a, b) = (
            Epoll::new().unwrap(),
            EventFd::new().unwrap(),
            EventFd::new().unwrap(),
        );
        set.add(a.fd(), 1, Interest::READ).unwrap();
        set.add(b.fd(), 2, Interest::READ).unwrap();
        let mut events = [Event::EMPTY; 4];
        assert_eq!(set.wait(&mut events, 0).unwrap(), 0);
        b.signal();
        assert_eq!(set.wait(&mut events, -1).unwrap(), 1);
        assert_eq!(events[0].token(), 2);
        assert!(events[0].is_readable() && !events[0].is_writable() && !events[0].is_hangup());
        assert_eq!(b.drain(), 1);
        assert_eq!(set.wait(&mut events, 0).unwrap(), 0);
        set.modify(a.fd(), 7, Interest::READ_WRITE).unwrap();
        assert_eq!(set.wait(&mut events, 0).unwrap(), 1);
        assert!(events[0].token() == 7 && events[0].is_writable());
        set.remove(a.fd()).unwrap();
        assert_eq!(set.wait(&mut events, 0).unwrap(), 0);
        assert!(set.remove(a.fd()).is_err());
    }
}
