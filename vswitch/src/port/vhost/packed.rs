#![allow(unsafe_code)]
//! Packed rings (virtio 1.3 section 2.8), the device's side.
//!
//! Invariant owned here: `desc` is aligned and has room for `size` descriptors, `driver` and
//! `device` for one event suppression structure each, inside `mem`, which lives as long as the
//! ring ([`Packed::new`] checks it); positions stay below `size`; the slots taken and not yet
//! returned are at most `size`.
//!
//! # Going on after our own death
//!
//! A front-end cannot know how far a packed ring is: it replays the base of long ago. The ring itself
//! knows, for the price of marking *every* descriptor of a returned chain and not just its first one:
//! then the `USED` bits are ours alone. The driver, when it offers a slot, gives that bit the value
//! we gave it a lap before; we turn it when we return the slot. So all slots before our position have
//! the bit of this lap, and all others that of the lap before ([`Packed::resume`]). In the same way
//! the `AVAIL` bits tell the driver's position, and a ring made anew (all zero) starts at its start.
//!
//! A process may die between any two stores. A descriptor is marked with one store of eight bytes
//! (length, id, flags), the others of its chain before it, and of the chains that are shown together
//! the first one last. Who was cut off before that one leaves a first chain that looks available and
//! others behind it that do not. Those cannot be taken again (their descriptors are gone), so the
//! guest gets all of them back, with nothing in them: frames to the guest are lost, which is better
//! than one made of parts; frames from the guest were sent already.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering, compiler_fence, fence};

use super::guest_mem::GuestMem;
use super::vring::{
    AHEAD, Buf, Bufs, CHAIN_MAX, Desc, Direction, Ring, RingError, Step, Taken, VringConfig,
    append, indirect_table, prefetch, prefetch_buffer, prefetch_write, ring_part, single,
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

    /// Slots from here to `to`, below two laps: positions repeat after two.
    fn distance(self, to: Position, size: u16) -> u32 {
        let size = u32::from(size);
        let place = |p: Position| u32::from(p.slot) + if p.wrap { 0 } else { size };
        (place(to) + 2 * size - place(self)) % (2 * size)
    }
}

/// What marks a used descriptor in a lap.
#[inline]
fn used_mark(wrap: bool) -> u16 {
    if wrap {
        vring::DESC_F_AVAIL | vring::DESC_F_USED
    } else {
        0
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
    /// `published` when the guest was last asked whether it wants a call.
    asked: Position,
    /// The first unpublished used descriptor's length, id and flags: written last, they show all.
    first: Option<u64>,
    /// Slots taken and not returned.
    outstanding: u16,
    hint: usize,
    mem: Arc<GuestMem>,
    logged: bool,
}

// SAFETY: the addresses belong to `mem`, which may be used from any thread; the queue's gate
// makes the ring's user exclusive.
unsafe impl Send for Packed {}

/// Offsets in a packed descriptor: length, id and flags together, and the flags.
const REST: usize = 8;
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
            asked: start,
            first: None,
            outstanding: 0,
            hint: 0,
            mem,
            logged: config.features & feature::LOG_ALL != 0,
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

    /// Length, id and flags in one.
    #[inline]
    fn rest(&self, slot: u16) -> &AtomicU64 {
        let at = self.at(slot).wrapping_add(REST).cast();
        // SAFETY: the second half of the descriptor at `slot`, which is 16-aligned.
        unsafe { AtomicU64::from_ptr(at) }
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

    /// Whether one of the two ownership bits is set.
    fn bit(&self, slot: u16, bit: u16) -> bool {
        u16::from_le(self.flags(slot).load(Ordering::Acquire)) & bit != 0
    }

    /// The position of the side that owns `bit`, and whether the whole ring agrees with it: slots
    /// before it have the bit of its lap, slots from it on the other.
    fn edge(&self, bit: u16) -> (Position, bool) {
        let wrap = self.bit(0, bit);
        let differs = |slot: &u16| self.bit(*slot, bit) != wrap;
        match (1..self.size).find(differs) {
            Some(slot) => {
                let clean = (slot..self.size).all(|s| differs(&s));
                (Position { slot, wrap }, clean)
            }
            None => (
                Position {
                    slot: 0,
                    wrap: !wrap,
                },
                true,
            ),
        }
    }

    /// Goes on where the ring says it stands, whoever served it before and however that ended (see
    /// the module). Costs a pass over the ring.
    ///
    /// # Errors
    /// [`RingError::PositionLost`]: the descriptors contradict each other.
    pub(super) fn resume(&mut self) -> Result<(), RingError> {
        let base = self.next_avail;
        // Ours first: the driver goes on offering meanwhile, never further than a lap from ours.
        let (ours, clean) = self.edge(vring::DESC_F_USED);
        // One that is cut short by a chain just being offered is as good.
        let (drivers, _) = self.edge(vring::DESC_F_AVAIL);
        let found = if clean && ours.distance(drivers, self.size) <= u32::from(self.size) {
            self.set_position(ours);
            Ok(())
        } else {
            self.finish(drivers)
        };
        if let Err(e) = found {
            self.first = None;
            return Err(e);
        }
        self.step_to(base, drivers);
        self.next_avail = self.next_used;
        self.publish();
        if self.next_avail != base {
            tracing::debug!(
                base = base.to_word(),
                position = self.next_avail.to_word(),
                "packed ring goes on elsewhere than the front-end said"
            );
        }
        Ok(())
    }

    fn set_position(&mut self, at: Position) {
        self.next_avail = at;
        self.next_used = at;
        self.published = at;
        self.asked = at;
    }

    /// Gives the guest back, empty, all chains up to the last one that is marked as used: what was
    /// cut off, or what stands before chains that QEMU threw away. (It does that at the base of long
    /// ago when a guest sends while nobody serves its ring.) The driver can have offered one lap
    /// before `end`, its own position.
    #[cold]
    fn finish(&mut self, end: Position) -> Result<(), RingError> {
        let oldest = end.back(self.size, self.size);
        let returned = |ring: &Self, i: u16| {
            let at = oldest.forward(i, ring.size);
            ring.bit(at.slot, vring::DESC_F_USED) == at.wrap
        };
        let first = (0..self.size).find(|&i| !returned(self, i));
        let first = first.unwrap_or(self.size);
        let last = (first..self.size).rev().find(|&i| returned(self, i));
        self.set_position(oldest.forward(first, self.size));
        let (mut i, end) = (first, last.map_or(first, |last| last + 1));
        while i < end {
            let taken = if returned(self, i) {
                // Seen only when all before it were: its length can still be changed.
                let rest = u64::from_le(self.rest(self.next_used.slot).load(Ordering::Relaxed));
                #[allow(clippy::cast_possible_truncation)] // taking a word apart
                let id = (rest >> 32) as u16;
                Taken { id, slots: 1 }
            } else {
                self.chain_at(self.next_used, self.size - i)?
            };
            i += taken.slots;
            self.give_back(taken);
        }
        Ok(())
    }

    /// When the front-end's base is just one chain further, these may be the rest of a chain that
    /// somebody else returned: QEMU and other back-ends mark only the first descriptor. Giving them
    /// back is right then, and costs one frame when the base is there by chance.
    fn step_to(&mut self, base: Position, drivers: Position) {
        let at = self.next_used;
        let slots = at.distance(base, self.size);
        if slots > 0
            && slots <= at.distance(drivers, self.size)
            && let Ok(taken) = self.chain_at(at, self.size)
            && u32::from(taken.slots) == slots
        {
            self.give_back(taken);
        }
    }

    fn give_back(&mut self, taken: Taken) {
        self.outstanding = taken.slots;
        self.put(taken, 0);
    }

    /// The chain at a position, by its flags alone, at most `max` slots.
    fn chain_at(&self, mut at: Position, max: u16) -> Result<Taken, RingError> {
        for slots in 1..=max {
            // SAFETY: a position's slot is below `size`.
            let desc = unsafe { Desc::read(self.at(at.slot)) };
            if desc.w1 & vring::DESC_F_NEXT == 0 {
                return Ok(Taken { id: desc.w0, slots });
            }
            at = at.forward(1, self.size);
        }
        Err(RingError::PositionLost)
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
    fn peek(&mut self, max: usize, _want: Direction) -> Result<usize, RingError> {
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
    fn take_single(&mut self, want: Direction) -> Option<(Taken, Buf)> {
        if self.outstanding >= self.size || !self.waits() {
            return None;
        }
        // SAFETY: a position's slot is below `size`.
        let desc = unsafe { Desc::read(self.at(self.next_avail.slot)) };
        let near = self.mem.around(desc.addr, &mut self.hint);
        let buf = single(near, &desc, desc.w1, want)?;
        prefetch_buffer(buf.ptr, want);
        self.next_avail = self.next_avail.forward(1, self.size);
        self.outstanding += 1;
        let taken = Taken {
            id: desc.w0,
            slots: 1,
        };
        Some((taken, buf))
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
        let at = self.next_used;
        if taken.slots > 1 {
            for i in 1..taken.slots {
                let inner = at.forward(i, self.size);
                // Marked for ourselves (see the module). The chain stays legible.
                let more = i + 1 < taken.slots;
                let next = if more { vring::DESC_F_NEXT } else { 0 };
                let flags = used_mark(inner.wrap) | next;
                self.flags(inner.slot)
                    .store(flags.to_le(), Ordering::Relaxed);
            }
            // What a killed process did is what its instructions say, in their order.
            compiler_fence(Ordering::Release);
        }
        let write = if written > 0 { vring::DESC_F_WRITE } else { 0 };
        let flags = used_mark(at.wrap) | write;
        let rest = u64::from(written) | u64::from(taken.id) << 32 | u64::from(flags) << 48;
        if self.first.is_none() {
            self.first = Some(rest);
        } else {
            // The guest looks at used descriptors in order and stops at the first, which is not
            // marked yet; `publish` orders these stores before that one.
            self.rest(at.slot).store(rest.to_le(), Ordering::Relaxed);
        }
        self.next_used = at.forward(taken.slots, self.size);
        self.outstanding -= taken.slots;
    }

    #[inline]
    fn ahead(&mut self, want: Direction) {
        // Whether these are chains that wait, or were used long ago, does not matter to a hint.
        let mut at = self.next_avail;
        for _ in 0..AHEAD.min(self.size) {
            // SAFETY: a position's slot is below `size`.
            let desc = unsafe { Desc::read(self.at(at.slot)) };
            if (desc.w1 & vring::DESC_F_AVAIL != 0) != at.wrap {
                break;
            }
            if let Some((ptr, _)) = self.mem.span(desc.addr, &mut self.hint) {
                prefetch_buffer(ptr, want);
            }
            at = at.forward(1, self.size);
        }
        // Read, and written when used: four to a line.
        for i in (0..AHEAD.min(self.size)).step_by(4) {
            prefetch_write(self.at(at.forward(i, self.size).slot));
        }
    }

    #[inline]
    fn publish(&mut self) {
        if let Some(first) = self.first.take() {
            // Release: everything written by `put`, and the buffers, before the mark that shows them.
            self.rest(self.published.slot)
                .store(first.to_le(), Ordering::Release);
            self.published = self.next_used;
            // All of the ring, which is a few pages.
            self.wrote(self.desc, usize::from(self.size) * vring::DESC_BYTES);
        }
    }

    #[inline]
    fn wants_call(&mut self) -> bool {
        let new = self.published;
        let old = std::mem::replace(&mut self.asked, new);
        if old == new {
            return false;
        }
        // virtio 1.3 section 2.8.21.3.1.
        // SAFETY: `driver` has two aligned words (the module's invariant).
        let wish = unsafe { AtomicU16::from_ptr(Self::event(self.driver, 1)) };
        match u16::from_le(wish.load(Ordering::Relaxed)) {
            vring::EVENT_DISABLE => false,
            vring::EVENT_DESC if self.event_idx => {
                // SAFETY: as above.
                let event = unsafe { AtomicU16::from_ptr(Self::event(self.driver, 0)) };
                let event = u16::from_le(event.load(Ordering::Relaxed));
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
        self.wrote(self.device, 4);
        // Full: our wish must be out before we look whether something came in between.
        fence(Ordering::SeqCst);
        self.waits()
    }

    fn disarm(&mut self) {
        // SAFETY: as in `arm`.
        let wish = unsafe { AtomicU16::from_ptr(Self::event(self.device, 1)) };
        wish.store(vring::EVENT_DISABLE.to_le(), Ordering::Relaxed);
        self.wrote(self.device, 4);
    }

    fn base(&self) -> u32 {
        u32::from(self.next_avail.to_word()) | u32::from(self.next_used.to_word()) << 16
    }

    fn mem(&self) -> &GuestMem {
        &self.mem
    }

    #[inline]
    fn is_logged(&self) -> bool {
        self.logged
    }
}

#[cfg(test)]
#[path = "packed_tests.rs"]
mod tests;
