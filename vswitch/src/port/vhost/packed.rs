#![allow(unsafe_code)]
//! Packed rings (virtio 1.3 section 2.8), the device's side.
//!
//! Invariant owned here: `desc` is aligned and has room for `size` descriptors, `driver` and
//! `device` for one event suppression structure each, inside `mem`, which lives as long as the
//! ring ([`Packed::new`] checks it); positions stay below `size`; the slots taken and not yet
//! returned are at most `size`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use super::guest_mem::GuestMem;
use super::vring::{
    Bufs, CHAIN_MAX, Desc, Direction, Ring, RingError, Step, Taken, VringConfig, append,
    indirect_table, prefetch, ring_part,
};
use crate::sys::virtio::{feature, vring};

/// A place in the ring: slot and lap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Position {
    slot: u16,
    /// The wrap counter: true in the first lap.
    wrap: bool,
}

impl Position {
    #[inline]
    fn forward(self, slots: u16, size: u16) -> Position {
        let at = self.slot + slots; // both at most 32768: no overflow below 65536
        if at >= size {
            Position {
                slot: at - size,
                wrap: !self.wrap,
            }
        } else {
            Position {
                slot: at,
                wrap: self.wrap,
            }
        }
    }

    #[inline]
    fn back(self, slots: u16, size: u16) -> Position {
        match self.slot.checked_sub(slots) {
            Some(slot) => Position { slot, ..self },
            None => Position {
                slot: self.slot + (size - slots),
                wrap: !self.wrap,
            },
        }
    }

    fn to_word(self) -> u16 {
        self.slot | if self.wrap { vring::WRAP_BIT } else { 0 }
    }
}

/// A validated packed ring.
#[derive(Debug)]
pub(super) struct Packed {
    desc: *mut u8,
    driver: *mut u8,
    device: *mut u8,
    size: u16,
    indirect: bool,
    event_idx: bool,
    /// Next descriptor to take.
    next_avail: Position,
    /// Next descriptor to write as used.
    next_used: Position,
    /// `next_used` when last published.
    published: Position,
    /// Flags of the first unpublished used descriptor: written last, they show all of them.
    first_flags: Option<u16>,
    /// Slots taken and not returned.
    outstanding: u16,
    hint: usize,
    mem: Arc<GuestMem>,
}

// SAFETY: the addresses belong to `mem`, which may be used from any thread; the queue's gate
// makes the ring's user exclusive.
unsafe impl Send for Packed {}

/// Offsets in a packed descriptor.
const LEN: usize = 8;
const ID: usize = 12;
const FLAGS: usize = 14;

impl Packed {
    pub(super) fn new(config: &VringConfig, mem: Arc<GuestMem>) -> Result<Self, RingError> {
        let size = config.size;
        if size == 0 || size > vring::SIZE_MAX {
            return Err(RingError::BadSize);
        }
        let desc = ring_part(&mem, config.desc, size as usize * vring::DESC_BYTES, 16)?;
        let driver = ring_part(&mem, config.driver, 4, 4)?;
        let device = ring_part(&mem, config.device, 4, 4)?;
        // The low half is the position to take from. The high half, the used position, is the
        // same with us (nothing is outstanding between bursts), and not every front-end sends it.
        #[allow(clippy::cast_possible_truncation)] // the low half
        let base = config.base as u16;
        let start = Position {
            slot: base & !vring::WRAP_BIT,
            wrap: base & vring::WRAP_BIT != 0,
        };
        if u32::from(start.slot) >= size {
            return Err(RingError::BadBase);
        }
        #[allow(clippy::cast_possible_truncation)] // at most 32768
        let size = size as u16;
        Ok(Packed {
            desc,
            driver,
            device,
            size,
            indirect: config.features & feature::INDIRECT_DESC != 0,
            event_idx: config.features & feature::EVENT_IDX != 0,
            next_avail: start,
            next_used: start,
            published: start,
            first_flags: None,
            outstanding: 0,
            hint: 0,
            mem,
        })
    }

    /// Address of a descriptor.
    #[inline]
    fn at(&self, slot: u16) -> *mut u8 {
        debug_assert!(slot < self.size);
        // SAFETY: `slot` is below `size` (positions are kept so).
        unsafe { self.desc.add(usize::from(slot) * vring::DESC_BYTES) }
    }

    #[inline]
    fn flags(&self, slot: u16) -> &AtomicU16 {
        let at = self.at(slot).wrapping_add(FLAGS).cast();
        // SAFETY: inside the descriptor at `slot`, two-aligned.
        unsafe { AtomicU16::from_ptr(at) }
    }

    /// A field of an event suppression structure: offset and wrap, or flags.
    #[inline]
    fn event(structure: *mut u8, word: usize) -> *mut u16 {
        // Both structures have two words (`new` checked four bytes); `word` is 0 or 1.
        structure.cast::<u16>().wrapping_add(word)
    }

    /// Whether a descriptor chain starts at the next position.
    #[inline]
    fn waits(&self) -> bool {
        let Position { slot, wrap } = self.next_avail;
        // Acquire: the guest writes the chain before these flags.
        let flags = u16::from_le(self.flags(slot).load(Ordering::Acquire));
        let avail = flags & vring::DESC_F_AVAIL != 0;
        let used = flags & vring::DESC_F_USED != 0;
        avail == wrap && used != wrap
    }

    /// Walks an indirect table: the entries in order (flags other than WRITE mean nothing).
    fn walk_table(
        &mut self,
        table: *const u8,
        entries: u32,
        want: Direction,
        bufs: &mut Bufs,
    ) -> Result<bool, RingError> {
        for i in 0..entries {
            // SAFETY: `indirect_table` checked that the table has `entries` entries.
            let at = unsafe { table.add(i as usize * vring::DESC_BYTES) };
            // SAFETY: as above.
            let desc = unsafe { Desc::read(at) };
            if desc.w1 & vring::DESC_F_INDIRECT != 0 {
                return Err(RingError::BadIndirect);
            }
            if !self.append(&desc, want, bufs)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    #[inline]
    fn append(&mut self, desc: &Desc, want: Direction, bufs: &mut Bufs) -> Result<bool, RingError> {
        if (desc.w1 & vring::DESC_F_WRITE != 0) != (want == Direction::Writable) {
            return Err(RingError::Direction);
        }
        append(&self.mem, &mut self.hint, desc, bufs)
    }

    /// Walks the chain at the next position. `None`: no room.
    #[inline]
    fn walk(&mut self, want: Direction, bufs: &mut Bufs) -> Result<Option<Taken>, RingError> {
        let max = u32::from(self.size).min(CHAIN_MAX);
        let mut at = self.next_avail;
        let mut slots = 0u16;
        loop {
            // A chain without an end runs out of this.
            if u32::from(slots) >= max || slots >= self.size - self.outstanding {
                return Err(RingError::ChainTooLong);
            }
            // SAFETY: a position's slot is below `size`.
            let desc = unsafe { Desc::read(self.at(at.slot)) };
            let (id, flags) = (desc.w0, desc.w1);
            at = at.forward(1, self.size);
            slots += 1;
            if flags & vring::DESC_F_INDIRECT != 0 {
                if !self.indirect || flags & vring::DESC_F_NEXT != 0 {
                    return Err(RingError::BadIndirect);
                }
                let (table, entries) = indirect_table(&self.mem, &mut self.hint, &desc)?;
                let whole = self.walk_table(table, entries, want, bufs)?;
                return Ok(whole.then_some(Taken { id, slots }));
            }
            if !self.append(&desc, want, bufs)? {
                return Ok(None);
            }
            if flags & vring::DESC_F_NEXT == 0 {
                // The id stands in the chain's last descriptor (virtio 1.3 section 2.8.6).
                return Ok(Some(Taken { id, slots }));
            }
        }
    }
}

impl Ring for Packed {
    #[inline]
    fn peek(&mut self, max: usize) -> Result<usize, RingError> {
        if !self.waits() {
            return Ok(0);
        }
        // Four descriptors to a cache line; the burst's are probably in the next few.
        let lines = max.div_ceil(4).min(8);
        let line = self.at(self.next_avail.slot).cast_const();
        for i in 1..=lines {
            prefetch(line.wrapping_add(64 * i));
        }
        Ok(max)
    }

    #[inline]
    fn take(&mut self, want: Direction, bufs: &mut Bufs) -> Result<Step, RingError> {
        if self.outstanding >= self.size || !self.waits() {
            return Ok(Step::Empty);
        }
        let before = bufs.len();
        let Some(taken) = self.walk(want, bufs)? else {
            bufs.truncate(before);
            return Ok(Step::NoRoom);
        };
        self.next_avail = self.next_avail.forward(taken.slots, self.size);
        self.outstanding += taken.slots;
        Ok(Step::Chain(taken))
    }

    #[inline]
    fn untake(&mut self, taken: Taken) {
        self.next_avail = self.next_avail.back(taken.slots, self.size);
        self.outstanding -= taken.slots;
    }

    #[inline]
    fn put(&mut self, taken: Taken, written: u32) {
        let Position { slot, wrap } = self.next_used;
        let at = self.at(slot);
        let (len, id) = (at.wrapping_add(LEN), at.wrapping_add(ID));
        // SAFETY: inside the descriptor, which is 16-aligned, so the length is four-aligned.
        unsafe { len.cast::<u32>().write(written.to_le()) };
        // SAFETY: as above, two-aligned.
        unsafe { id.cast::<u16>().write(taken.id.to_le()) };
        let mark = if wrap {
            vring::DESC_F_AVAIL | vring::DESC_F_USED
        } else {
            0
        };
        let write = if written > 0 { vring::DESC_F_WRITE } else { 0 };
        let flags = mark | write;
        if self.first_flags.is_none() {
            self.first_flags = Some(flags);
        } else {
            // The guest looks at used descriptors in order and stops at the first, which is not
            // marked yet; `publish` orders these stores before that one.
            self.flags(slot).store(flags.to_le(), Ordering::Relaxed);
        }
        self.next_used = self.next_used.forward(taken.slots, self.size);
        self.outstanding -= taken.slots;
    }

    #[inline]
    fn publish(&mut self) -> bool {
        let Some(flags) = self.first_flags.take() else {
            return false;
        };
        let old = self.published;
        // Release: everything written by `put`, and the buffers, before the mark that shows them.
        self.flags(old.slot).store(flags.to_le(), Ordering::Release);
        self.published = self.next_used;
        // Full: the mark must be out before we read whether the guest sleeps (virtio 1.3 section
        // 2.8.21.3.1); it writes its wish and then looks at the descriptor.
        fence(Ordering::SeqCst);
        // SAFETY: `driver` has two aligned words (the module's invariant).
        let wish = unsafe { AtomicU16::from_ptr(Self::event(self.driver, 1)) };
        match u16::from_le(wish.load(Ordering::Relaxed)) {
            vring::EVENT_DISABLE => false,
            vring::EVENT_DESC if self.event_idx => {
                // SAFETY: as above.
                let event = unsafe { AtomicU16::from_ptr(Self::event(self.driver, 0)) };
                let event = u16::from_le(event.load(Ordering::Relaxed));
                let new = self.next_used;
                // Slots of another lap are brought into this one; wrapping arithmetic does the rest.
                let mut old = old.slot;
                if new.slot <= old {
                    old = old.wrapping_sub(self.size);
                }
                let mut at = event & !vring::WRAP_BIT;
                if (event & vring::WRAP_BIT != 0) != new.wrap {
                    at = at.wrapping_sub(self.size);
                }
                vring::need_event(at, new.slot, old)
            }
            _ => true,
        }
    }

    fn arm(&mut self) -> bool {
        // SAFETY: `device` has two aligned words (the module's invariant).
        let wish = unsafe { AtomicU16::from_ptr(Self::event(self.device, 1)) };
        // Every kick rather than one at a position: we are armed only until the first one.
        wish.store(vring::EVENT_ENABLE.to_le(), Ordering::Relaxed);
        // Full: our wish must be out before we look whether something came in between.
        fence(Ordering::SeqCst);
        self.waits()
    }

    fn disarm(&mut self) {
        // SAFETY: as in `arm`.
        let wish = unsafe { AtomicU16::from_ptr(Self::event(self.device, 1)) };
        wish.store(vring::EVENT_DISABLE.to_le(), Ordering::Relaxed);
    }

    fn base(&self) -> u32 {
        u32::from(self.next_avail.to_word()) | u32::from(self.next_used.to_word()) << 16
    }

    fn mem(&self) -> &GuestMem {
        &self.mem
    }
}

#[cfg(test)]
mod tests {
    use super::Position;

    #[test]
    fn positions_wrap_and_come_back() {
        for size in [1u16, 2, 3, 256, 32768] {
            for slot in [0, size / 2, size - 1] {
                for slots in [1, size / 2, size] {
                    let p = Position { slot, wrap: true };
                    let q = p.forward(slots, size);
                    assert!(q.slot < size);
                    assert_eq!(q.back(slots, size), p, "{size} {slot} {slots}");
                }
            }
        }
    }
}
