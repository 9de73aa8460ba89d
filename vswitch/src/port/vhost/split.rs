#![allow(unsafe_code)]
//! Split rings (virtio 1.3 section 2.7), the device's side.
//!
//! Invariant owned here: `desc`, `avail` and `used` are aligned and have room for `size` entries
//! each, inside `mem`, which lives as long as the ring ([`Split::new`] checks it); `size` is a
//! power of two.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use super::guest_mem::GuestMem;
use super::vring::{
    AHEAD, Buf, Bufs, CHAIN_MAX, Desc, Direction, Ring, RingError, Step, Taken, VringConfig,
    append, indirect_table, prefetch, prefetch_buffer, prefetch_write, ring_part, single,
};
use crate::sys::virtio::{feature, vring};

/// A validated split ring.
#[derive(Debug)]
pub(super) struct Split {
    desc: *const u8,
    avail: *mut u8,
    used: *mut u8,
    size: u16,
    event_idx: bool,
    indirect: bool,
    /// Next entry of the available ring to take.
    next_avail: u16,
    /// The guest's available index as last read.
    avail_idx: u16,
    /// Next entry of the used ring to write.
    next_used: u16,
    /// The used index the guest has seen.
    published: u16,
    /// The used index at which the guest was last asked whether it wants a call.
    asked: u16,
    /// Of the chains from `next_avail` on, those up to here were looked at; see [`Split::look`].
    looked: u16,
    /// Up to here their descriptors were asked for.
    fetched: u16,
    /// What was found, by entry of the available ring.
    found: Box<[Found; FOUND]>,
    hint: usize,
    mem: Arc<GuestMem>,
    logged: bool,
}

// SAFETY: the addresses belong to `mem`, which may be used from any thread; the queue's gate
// makes the ring's user exclusive.
unsafe impl Send for Split {}

/// A chain that is one piece; of no bytes where [`Ring::take`] has to look.
#[derive(Clone, Copy, Debug)]
struct Found {
    ptr: *mut u8,
    len: u32,
    id: u16,
}

impl Found {
    const NONE: Found = Found {
        ptr: std::ptr::null_mut(),
        len: 0,
        id: 0,
    };
}

/// Chains that can have been looked at before their turn: a power of two, for one burst.
const FOUND: usize = 32;
const _: () = assert!(FOUND.is_power_of_two() && FOUND >= AHEAD as usize);

/// Offset of the entries in both rings: flags and index come first.
const ENTRIES: usize = 4;
const IDX: usize = 2;

/// Bytes of a used ring: an event word follows the entries.
const fn used_bytes(entries: usize) -> usize {
    ENTRIES + 8 * entries + 2
}

impl Split {
    pub(super) fn new(config: &VringConfig, mem: Arc<GuestMem>) -> Result<Self, RingError> {
        let size = config.size;
        if size == 0 || size > vring::SIZE_MAX || !size.is_power_of_two() {
            return Err(RingError::BadSize);
        }
        let n = size as usize;
        let desc = ring_part(&mem, config.desc, n * vring::DESC_BYTES, 16)?;
        let avail = ring_part(&mem, config.driver, ENTRIES + 2 * n + 2, 2)?;
        let used = ring_part(&mem, config.device, used_bytes(n), 4)?;
        #[allow(clippy::cast_possible_truncation)] // at most 32768
        let size = size as u16;
        let mut ring = Split {
            desc: desc.cast_const(),
            avail,
            used,
            size,
            event_idx: config.features & feature::EVENT_IDX != 0,
            indirect: config.features & feature::INDIRECT_DESC != 0,
            next_avail: 0,
            avail_idx: 0,
            next_used: 0,
            published: 0,
            asked: 0,
            looked: 0,
            fetched: 0,
            found: Box::new([Found::NONE; FOUND]),
            hint: 0,
            mem,
            logged: config.features & feature::LOG_ALL != 0,
        };
        // Chains are returned in order, so the used index in memory is where to go on, also after
        // our own death in mid-burst: what was taken then and not returned is taken again. The
        // base the front-end gives is that same index, or (after our death) read from there too.
        let used_idx = ring.used_word(IDX).load(Ordering::Relaxed);
        ring.next_avail = used_idx;
        ring.looked = used_idx;
        ring.fetched = used_idx;
        ring.avail_idx = used_idx;
        ring.next_used = used_idx;
        ring.published = used_idx;
        ring.asked = used_idx;
        Ok(ring)
    }

    /// A 16-bit field of the available ring.
    #[inline]
    fn avail_word(&self, offset: usize) -> &AtomicU16 {
        debug_assert!(offset <= ENTRIES + 2 * self.size as usize);
        // SAFETY: the module's invariant: `offset` is inside the ring (callers use the fixed
        // fields, or an entry below `size`, or the event word behind them) and the ring is aligned.
        unsafe { AtomicU16::from_ptr(self.avail.wrapping_add(offset).cast()) }
    }

    /// A 16-bit field of the used ring.
    #[inline]
    fn used_word(&self, offset: usize) -> &AtomicU16 {
        debug_assert!(offset <= ENTRIES + 8 * self.size as usize);
        // SAFETY: as in `avail_word`.
        unsafe { AtomicU16::from_ptr(self.used.wrapping_add(offset).cast()) }
    }

    /// Marks the used ring as written, where that is wanted: all of it, which is a page or two.
    #[inline]
    fn wrote_used(&self) {
        self.wrote(self.used, used_bytes(usize::from(self.size)));
    }

    /// Reads the guest's available index: everything it made available before is visible then.
    #[inline]
    fn refresh(&mut self) -> Result<u16, RingError> {
        // Acquire: the entries and descriptors behind the index were written before it.
        let idx = u16::from_le(self.avail_word(IDX).load(Ordering::Acquire));
        if idx.wrapping_sub(self.next_avail) > self.size {
            return Err(RingError::AvailJump);
        }
        self.avail_idx = idx;
        Ok(idx.wrapping_sub(self.next_avail))
    }

    /// The head in entry `at` of the available ring.
    #[inline]
    fn head(&self, at: u16) -> u16 {
        let slot = usize::from(at & (self.size - 1));
        u16::from_le(self.avail_word(ENTRIES + 2 * slot).load(Ordering::Relaxed))
    }

    /// Walks a chain in a table. `Ok(false)`: no room.
    #[inline]
    fn walk(&mut self, head: u16, want: Direction, bufs: &mut Bufs) -> Result<bool, RingError> {
        let (mut table, mut entries, mut nested) = (self.desc, u32::from(self.size), false);
        let mut index = u32::from(head);
        let mut left = entries.min(CHAIN_MAX);
        loop {
            if index >= entries {
                return Err(RingError::BadIndex);
            }
            // A loop runs out of this too.
            left = left.checked_sub(1).ok_or(RingError::ChainTooLong)?;
            // SAFETY: `index` is below the table's entries: the ring's own (the invariant) or an
            // indirect table's (`indirect_table` checked its bounds).
            let at = unsafe { table.add(index as usize * vring::DESC_BYTES) };
            // SAFETY: as above.
            let desc = unsafe { Desc::read(at) };
            let (flags, next) = (desc.w0, desc.w1);
            if flags & vring::DESC_F_INDIRECT != 0 {
                if nested || !self.indirect || flags & vring::DESC_F_NEXT != 0 {
                    return Err(RingError::BadIndirect);
                }
                (table, entries) = indirect_table(&self.mem, &mut self.hint, &desc)?;
                (index, nested, left) = (0, true, entries);
                continue;
            }
            if (flags & vring::DESC_F_WRITE != 0) != (want == Direction::Writable) {
                return Err(RingError::Direction);
            }
            if !append(&self.mem, &mut self.hint, &desc, bufs)? {
                return Ok(false);
            }
            if flags & vring::DESC_F_NEXT == 0 {
                return Ok(true);
            }
            index = u32::from(next);
        }
    }
}

impl Split {
    /// Asks for the descriptors of the next `n` chains.
    #[inline]
    fn fetch(&mut self, n: u16) {
        let mut done = self.fetched.wrapping_sub(self.next_avail);
        if done > self.size {
            done = 0; // it fell behind
        }
        for i in done..n {
            let head = self.head(self.next_avail.wrapping_add(i));
            prefetch(
                self.desc
                    .wrapping_add(usize::from(head) * vring::DESC_BYTES),
            );
        }
        self.fetched = self.next_avail.wrapping_add(n.max(done));
    }

    /// Looks at the next `n` chains, at most [`FOUND`], and asks for their buffers' first lines: what their turn will
    /// then find. A chain is a single direct descriptor inside one region, as nearly all are, or is not looked at
    /// further.
    #[inline(always)]
    fn look(&mut self, n: u16, want: Direction) {
        let mut near = self.mem.near(self.hint);
        for i in self.looked.wrapping_sub(self.next_avail)..n {
            let at = self.next_avail.wrapping_add(i);
            let id = self.head(at);
            let mut found = Found::NONE;
            if id < self.size {
                let desc = self.desc.wrapping_add(usize::from(id) * vring::DESC_BYTES);
                // SAFETY: `id` is below the table's entries.
                let desc = unsafe { Desc::read(desc) };
                if !near.has(desc.addr) {
                    near = self.mem.around(desc.addr, &mut self.hint);
                }
                if let Some(buf) = single(near, &desc, desc.w0, want) {
                    prefetch_buffer(buf.ptr, want);
                    let Buf { ptr, len } = buf;
                    found = Found { ptr, len, id };
                }
            }
            self.found[usize::from(at) % FOUND] = found;
        }
        self.looked = self
            .next_avail
            .wrapping_add(n.max(self.looked.wrapping_sub(self.next_avail)));
    }
}

impl Ring for Split {
    #[inline]
    fn peek(&mut self, max: usize, want: Direction) -> Result<usize, RingError> {
        let mut n = usize::from(self.avail_idx.wrapping_sub(self.next_avail));
        // The index is the line most fought over: read only when what is known does not suffice.
        if n < max {
            n = usize::from(self.refresh()?);
        }
        let n = n.min(max);
        #[allow(clippy::cast_possible_truncation)] // at most FOUND
        let near = n.min(FOUND) as u16;
        self.fetch(near);
        self.look(near, want);
        Ok(n)
    }

    #[inline]
    fn take_single(&mut self, _want: Direction) -> Option<(Taken, Buf)> {
        if self.next_avail == self.looked {
            return None;
        }
        let Found { ptr, len, id } = self.found[usize::from(self.next_avail) % FOUND];
        if len == 0 {
            return None;
        }
        self.next_avail = self.next_avail.wrapping_add(1);
        Some((Taken { id, slots: 1 }, Buf { ptr, len }))
    }

    #[inline]
    fn take(&mut self, want: Direction, bufs: &mut Bufs) -> Result<Step, RingError> {
        if self.next_avail == self.avail_idx && self.refresh()? == 0 {
            return Ok(Step::Empty);
        }
        let id = self.head(self.next_avail);
        let before = bufs.len();
        if !self.walk(id, want, bufs)? {
            bufs.truncate(before);
            return Ok(Step::NoRoom);
        }
        let was_looked_at = self.next_avail != self.looked;
        self.next_avail = self.next_avail.wrapping_add(1);
        if !was_looked_at {
            self.looked = self.next_avail;
        }
        Ok(Step::Chain(Taken { id, slots: 1 }))
    }

    #[inline]
    fn untake(&mut self, _taken: Taken) {
        self.next_avail = self.next_avail.wrapping_sub(1);
        self.looked = self.next_avail;
    }

    #[inline]
    fn put(&mut self, taken: Taken, written: u32) {
        let slot = usize::from(self.next_used & (self.size - 1));
        let element = u64::from(taken.id) | u64::from(written) << 32;
        // SAFETY: the slot is below `size`, so the element is inside the used ring; it is only
        // four-aligned, hence unaligned.
        let at = unsafe { self.used.add(ENTRIES + 8 * slot) }.cast::<u64>();
        // SAFETY: as above. The guest does not read it before the index says so.
        unsafe { at.write_unaligned(element.to_le()) };
        self.next_used = self.next_used.wrapping_add(1);
    }

    #[inline]
    fn ahead(&mut self, want: Direction) {
        let known = self.avail_idx.wrapping_sub(self.next_avail);
        self.look(known.min(AHEAD), want);
        self.fetch(known.min(2 * AHEAD));
        // The burst's elements of the used ring: eight to a line.
        for i in 0..=AHEAD / 8 {
            let slot = usize::from(self.next_used.wrapping_add(8 * i) & (self.size - 1));
            prefetch_write(self.used.wrapping_add(ENTRIES + 8 * slot));
        }
    }

    #[inline]
    fn publish(&mut self) {
        if self.next_used != self.published {
            // Release: elements and buffers are written before the index shows them.
            self.used_word(IDX)
                .store(self.next_used.to_le(), Ordering::Release);
            self.published = self.next_used;
            self.wrote_used();
        }
    }

    #[inline]
    fn wants_call(&mut self) -> bool {
        let old = std::mem::replace(&mut self.asked, self.published);
        if old == self.published {
            return false;
        }
        // virtio 1.3 section 2.7.7.2.
        if self.event_idx {
            let at = ENTRIES + 2 * usize::from(self.size);
            let event = u16::from_le(self.avail_word(at).load(Ordering::Relaxed));
            vring::need_event(event, self.published, old)
        } else {
            let flags = u16::from_le(self.avail_word(0).load(Ordering::Relaxed));
            flags & vring::AVAIL_F_NO_INTERRUPT == 0
        }
    }

    fn arm(&mut self) -> bool {
        if self.event_idx {
            let at = ENTRIES + 8 * usize::from(self.size);
            self.used_word(at)
                .store(self.next_avail.to_le(), Ordering::Relaxed);
        } else {
            self.used_word(0).store(0, Ordering::Relaxed);
        }
        self.wrote_used();
        // Full: our wish must be out before we look whether something came in between; the guest
        // publishes and then reads the wish (virtio 1.3 section 2.7.13.4.1).
        fence(Ordering::SeqCst);
        // A bad index counts as something waiting: the next burst reports it.
        self.refresh().is_ok_and(|n| n > 0) || self.refresh().is_err()
    }

    fn disarm(&mut self) {
        // With EVENT_IDX the position armed for lies behind us now, and asks for nothing until
        // the index has gone around once: one spare kick in 65536 chains.
        if !self.event_idx {
            self.used_word(0)
                .store(vring::USED_F_NO_NOTIFY.to_le(), Ordering::Relaxed);
            self.wrote_used();
        }
    }

    fn base(&self) -> u32 {
        u32::from(self.next_avail)
    }

    fn mem(&self) -> &GuestMem {
        &self.mem
    }

    #[inline]
    fn is_logged(&self) -> bool {
        self.logged
    }
}
