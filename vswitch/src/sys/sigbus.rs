#![allow(unsafe_code)]
//! Memory that a peer can truncate under us.
//!
//! Touching a shared mapping beyond the end of its file raises SIGBUS, which would kill the
//! process and every port with it. [`watch`] registers a mapping; the handler maps private zero
//! pages over the whole of a registered mapping in which a fault happens, and marks it broken. The
//! faulting access then simply continues, and the mapping's owner stops using it.
//!
//! Invariant owned here: while a [`Watched`] lives, its slot describes exactly one mapping of its
//! owner; the handler touches only atomics and makes system calls.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, Once, OnceLock, PoisonError};

/// Mappings watched at once: 256 ports with a few regions each.
const SLOTS: usize = 2048;

struct Slot {
    /// First address; 0 when the slot is free.
    start: AtomicUsize,
    len: AtomicUsize,
    broken: AtomicBool,
}

static TABLE: [Slot; SLOTS] = [const {
    Slot {
        start: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        broken: AtomicBool::new(false),
    }
}; SLOTS];
/// How often any watched mapping broke: one load per burst tells a worker that nothing happened.
static FAULTS: AtomicU32 = AtomicU32::new(0);
static INSTALL: Once = Once::new();
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();
/// Taken to claim a slot, never by the handler.
static CLAIM: Mutex<()> = Mutex::new(());

/// A registration; ends when dropped. Drop it before the mapping is unmapped.
#[derive(Debug)]
pub struct Watched {
    slot: usize,
}

/// Registers the mapping `start..start + len`.
///
/// # Errors
/// 2048 mappings are registered already, or the handler cannot be installed.
pub fn watch(start: *mut u8, len: usize) -> io::Result<Watched> {
    INSTALL.call_once(install);
    if PREVIOUS.get().is_none() {
        return Err(io::Error::other("cannot install a SIGBUS handler"));
    }
    let _claim = CLAIM.lock().unwrap_or_else(PoisonError::into_inner);
    for (slot, s) in TABLE.iter().enumerate() {
        if s.start.load(Ordering::Relaxed) == 0 {
            s.broken.store(false, Ordering::Relaxed);
            s.len.store(len, Ordering::Relaxed);
            // Last, and Release: the handler reads `len` only of a slot with a start.
            s.start.store(start as usize, Ordering::Release);
            return Ok(Watched { slot });
        }
    }
    Err(io::Error::other("too many shared memory regions"))
}

impl Watched {
    /// Whether the mapping was truncated and now is private zero pages.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        TABLE
            .get(self.slot)
            .is_some_and(|s| s.broken.load(Ordering::Relaxed))
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(s) = TABLE.get(self.slot) {
            s.start.store(0, Ordering::Release);
        }
    }
}

/// Changes whenever a watched mapping breaks.
#[inline]
#[must_use]
pub fn faults() -> u32 {
    FAULTS.load(Ordering::Relaxed)
}

fn install() {
    // SAFETY: all-zero is a valid sigaction.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_sigbus as extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void)
        as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: as above.
    let mut previous: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: both live until the call returns; the handler has the signature SA_SIGINFO asks for.
    if unsafe { libc::sigaction(libc::SIGBUS, &raw const action, &raw mut previous) } == 0 {
        let _ = PREVIOUS.set(previous);
    }
}

/// Only async-signal-safe steps: atomics, mmap(2), sigaction(2).
extern "C" fn on_sigbus(_signal: i32, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo to an SA_SIGINFO handler.
    let info = unsafe { &*info };
    // SAFETY: SIGBUS carries an address.
    let addr = unsafe { info.si_addr() } as usize;
    for s in &TABLE {
        let start = s.start.load(Ordering::Acquire);
        let len = s.len.load(Ordering::Relaxed);
        if start == 0 || addr < start || addr - start >= len {
            continue;
        }
        // SAFETY: the range is a mapping of this process that its owner registered and still
        // holds; replacing its pages changes no address, only the content, which is shared with a
        // peer and may change at any time anyway.
        let p = unsafe {
            libc::mmap(
                start as *mut libc::c_void,
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if p != libc::MAP_FAILED {
            s.broken.store(true, Ordering::Release);
            FAULTS.fetch_add(1, Ordering::Release);
            return;
        }
    }
    // Not ours: put back who was there before; the access faults again and goes to him.
    if let Some(previous) = PREVIOUS.get() {
        // SAFETY: a value that sigaction(2) itself returned.
        unsafe { libc::sigaction(libc::SIGBUS, previous, std::ptr::null_mut()) };
    }
}
