#![allow(unsafe_code)]
//! Closes descriptors that somebody else can hold up.
//!
//! close(2) may wait: a FUSE file's for its server, a lingering socket's for its peer, an eventfd's for
//! whoever stands in an epoll set it is in, and a Unix socket's for all of these, when one was sent and
//! never taken. A peer that passes descriptors decides what they are; so a thread that serves nobody
//! closes them, and who serves others only counts how many wait.
//!
//! Invariant owned here: a [`PeerFd`]'s descriptor is taken out of it once, by its drop.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};

/// A thread that closes what one peer passed, so that only that peer's descriptors wait for each other.
/// It ends when the last descriptor is closed, and nobody waits for that.
#[derive(Clone, Debug)]
pub struct Closer {
    queue: Sender<OwnedFd>,
    waiting: Arc<AtomicUsize>,
}

impl Closer {
    /// A new one.
    ///
    /// # Errors
    /// The process may have no more threads.
    pub fn new() -> io::Result<Self> {
        let (queue, inbox) = channel::<OwnedFd>();
        let waiting = Arc::new(AtomicUsize::new(0));
        let closed = Arc::clone(&waiting);
        std::thread::Builder::new()
            .name("closer".to_owned())
            .spawn(move || {
                for fd in inbox {
                    drop(fd);
                    closed.fetch_sub(1, Ordering::Relaxed);
                }
            })?;
        Ok(Closer { queue, waiting })
    }

    /// Takes a descriptor over, to be closed here.
    #[must_use]
    pub fn own(&self, fd: impl Into<OwnedFd>) -> PeerFd {
        PeerFd {
            fd: ManuallyDrop::new(fd.into()),
            closer: self.clone(),
        }
    }

    /// Descriptors let go of and not yet closed. Whoever takes descriptors in bounds them by this.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}

/// A descriptor that a peer passed, or can put something into. Dropping it never waits.
#[derive(Debug)]
pub struct PeerFd {
    fd: ManuallyDrop<OwnedFd>,
    closer: Closer,
}

impl AsFd for PeerFd {
    #[inline]
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for PeerFd {
    fn drop(&mut self) {
        // SAFETY: only here, and nobody uses `self.fd` after its owner's drop.
        let fd = unsafe { ManuallyDrop::take(&mut self.fd) };
        self.closer.waiting.fetch_add(1, Ordering::Relaxed);
        // The thread takes from the queue for as long as there is a sender.
        let _ = self.closer.queue.send(fd);
    }
}
