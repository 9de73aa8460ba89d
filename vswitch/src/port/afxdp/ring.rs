#![allow(unsafe_code)]
//! The four rings a socket shares with the kernel (Documentation/networking/af_xdp.rst): single
//! producer, single consumer, free-running 32-bit counters.
//!
//! Invariant owned here: counters and entries lie inside the mapping, whose layout the kernel told;
//! entries are read only below the producer's counter and written only within the consumer's
//! room; each counter has one writer, which is the type's own side.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::sys::mmap::Mapping;

#[derive(Debug)]
struct Ring<T> {
    /// Keeps the memory that the pointers below point into.
    _memory: Mapping,
    producer: *const AtomicU32,
    consumer: *const AtomicU32,
    flags: *const AtomicU32,
    entries: *mut T,
    mask: u32,
    cached_producer: u32,
    cached_consumer: u32,
}

// SAFETY: the pointers lead into memory shared by the process; one side is used by one thread at a
// time, because its methods take `&mut self`.
unsafe impl<T: Send> Send for Ring<T> {}

impl<T: Copy> Ring<T> {
    /// Maps the ring of `len` entries (a power of two) found at `page_offset` of the socket.
    fn map(
        socket: BorrowedFd<'_>,
        layout: &libc::xdp_ring_offset,
        len: u32,
        page_offset: u64,
    ) -> io::Result<Ring<T>> {
        let at = |offset: u64| usize::try_from(offset).map_err(io::Error::other);
        let (producer, consumer) = (at(layout.producer)?, at(layout.consumer)?);
        let (entries, flags) = (at(layout.desc)?, at(layout.flags)?);
        let bytes = entries + len as usize * size_of::<T>();
        if !len.is_power_of_two() || producer.max(consumer).max(flags) + 4 > bytes {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let memory = Mapping::shared(socket, page_offset, bytes)?;
        // Offsets are inside `bytes`, checked above, and aligned: the kernel laid them out for
        // 32-bit counters and for entries of this type.
        let base = memory.as_ptr();
        Ok(Ring {
            producer: base.wrapping_add(producer).cast(),
            consumer: base.wrapping_add(consumer).cast(),
            flags: base.wrapping_add(flags).cast(),
            entries: base.wrapping_add(entries).cast(),
            _memory: memory,
            mask: len - 1,
            cached_producer: 0,
            cached_consumer: 0,
        })
    }

    #[inline]
    fn counter(&self, which: *const AtomicU32) -> &AtomicU32 {
        // SAFETY: the three pointers handed in are inside the mapping and aligned (see `map`); the
        // kernel accesses them atomically too.
        unsafe { &*which }
    }

    #[inline]
    fn entry(&self, index: u32) -> *mut T {
        self.entries.wrapping_add((index & self.mask) as usize)
    }
}

/// A ring we fill: fill ring, tx ring.
#[derive(Debug)]
pub(super) struct Producer<T>(Ring<T>);

impl<T: Copy> Producer<T> {
    pub(super) fn map(
        socket: BorrowedFd<'_>,
        layout: &libc::xdp_ring_offset,
        len: u32,
        page_offset: u64,
    ) -> io::Result<Self> {
        Ring::map(socket, layout, len, page_offset).map(Producer)
    }

    /// Whether `want` entries fit; looks at the kernel's counter only when it must.
    #[inline]
    pub(super) fn has_room(&mut self, want: u32) -> bool {
        let r = &mut self.0;
        if r.mask + 1 - r.cached_producer.wrapping_sub(r.cached_consumer) >= want {
            return true;
        }
        r.cached_consumer = r.counter(r.consumer).load(Ordering::Acquire);
        r.mask + 1 - r.cached_producer.wrapping_sub(r.cached_consumer) >= want
    }

    /// Writes an entry, to be shown by [`Producer::publish`]; `false` when there is no room.
    #[inline]
    pub(super) fn push(&mut self, value: T) -> bool {
        if !self.has_room(1) {
            return false;
        }
        let slot = self.0.entry(self.0.cached_producer);
        // SAFETY: `entry` masks the index into the mapping; the kernel has released the slot, as
        // `has_room` has just seen.
        unsafe { slot.write(value) };
        self.0.cached_producer = self.0.cached_producer.wrapping_add(1);
        true
    }

    /// Shows what was pushed to the kernel.
    #[inline]
    pub(super) fn publish(&self) {
        let r = &self.0;
        r.counter(r.producer)
            .store(r.cached_producer, Ordering::Release);
    }

    /// Whether the kernel has not taken everything yet.
    #[inline]
    pub(super) fn is_pending(&self) -> bool {
        let r = &self.0;
        r.counter(r.consumer).load(Ordering::Acquire) != r.cached_producer
    }

    /// Whether the kernel wants a system call to go on.
    #[inline]
    pub(super) fn needs_wakeup(&self) -> bool {
        self.0.counter(self.0.flags).load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }
}

/// A ring the kernel fills: rx ring, completion ring.
#[derive(Debug)]
pub(super) struct Consumer<T>(Ring<T>);

impl<T: Copy> Consumer<T> {
    pub(super) fn map(
        socket: BorrowedFd<'_>,
        layout: &libc::xdp_ring_offset,
        len: u32,
        page_offset: u64,
    ) -> io::Result<Self> {
        Ring::map(socket, layout, len, page_offset).map(Consumer)
    }

    /// Entries waiting, after a look at the kernel's counter.
    #[inline]
    pub(super) fn available(&mut self) -> u32 {
        let r = &mut self.0;
        r.cached_producer = r.counter(r.producer).load(Ordering::Acquire);
        r.cached_producer.wrapping_sub(r.cached_consumer)
    }

    /// The entry `n` places behind the next one, of those [`Consumer::available`] counted.
    #[inline]
    pub(super) fn peek(&self, n: u32) -> Option<T> {
        let r = &self.0;
        if n >= r.cached_producer.wrapping_sub(r.cached_consumer) {
            return None;
        }
        let slot = r.entry(r.cached_consumer.wrapping_add(n));
        // SAFETY: `entry` masks the index into the mapping; the entry is below the producer's
        // counter, so the kernel has written it and leaves it alone until `release`.
        Some(unsafe { slot.read() })
    }

    /// Gives the first `n` entries back to the kernel.
    #[inline]
    pub(super) fn release(&mut self, n: u32) {
        let r = &mut self.0;
        r.cached_consumer = r.cached_consumer.wrapping_add(n);
        r.counter(r.consumer)
            .store(r.cached_consumer, Ordering::Release);
    }
}
