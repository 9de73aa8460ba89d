//! A bucket: one cache line with a control word and slots, and the four steps every operation is made of.
//!
//! Invariants the rest of the crate relies on:
//!
//! * **B1** Every change of the occupancy bits also changes the version, and nothing else changes the control
//!   word. A control value therefore never comes back (50 bits of version do not wrap).
//! * **B2** A slot changes hands in this order: free (0) → *reserved*, by a CAS of the inserter →
//!   *occupied*, by the CAS that sets its bit → not occupied, by the CAS that clears it → free. Each step
//!   is the work of the one thread that won the previous one.
//! * **B3** Hence, when the control word reads `c` before and after a slot was read, that slot held
//!   an entry that was in the table at that time if its bit is set in `c`.
//! * **B4** A scan that found nothing under `c` is a proof of absence at some moment during the scan, even if
//!   `c` is old by its end: a key present at `c` can only be missed after its slot was cleared, so after its
//!   removal. For an insertion that isn't enough; its CAS from `c` proves absence at that instant.

use crate::hash::TAG_BITS;
use crate::sync::{AtomicU32, AtomicU64, Ordering::*};
use crate::tags;

/// Connections a bucket can hold: with the control word, one 64-byte cache line.
pub(crate) use crate::sync::SLOTS;
/// Bits of an entry index, which is local to its shard and never 0.
pub(crate) const INDEX_BITS: u32 = 20;

const _: () = assert!(TAG_BITS + INDEX_BITS == u32::BITS);
/// A slot's low bits: the tag.
pub(crate) const TAG_MASK: u32 = (1 << TAG_BITS) - 1;
/// The control word: occupancy in the low bits (14 of them, however few a model uses), version above.
const OCCUPANCY_BITS: u32 = 14;
const OCCUPANCY: u64 = (1 << OCCUPANCY_BITS) - 1;
const VERSION_ONE: u64 = 1 << OCCUPANCY_BITS;

/// A control word as it was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Control(u64);

impl Control {
    pub(crate) fn occupied(self) -> Bits {
        Bits((self.0 & OCCUPANCY) as u32)
    }

    /// The slots that are not occupied; they may be reserved.
    fn vacant(self) -> Bits {
        Bits(!self.occupied().0 & ((1 << SLOTS) - 1))
    }
}

/// A set of slots, iterated from the lowest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Bits(u32);

impl Bits {
    pub(crate) fn len(self) -> usize {
        self.0.count_ones() as usize
    }
}

impl Iterator for Bits {
    type Item = u32;

    #[inline]
    fn next(&mut self) -> Option<u32> {
        if self.0 == 0 {
            return None;
        }
        let slot = self.0.trailing_zeros();
        self.0 &= self.0 - 1;
        Some(slot)
    }
}

/// What a slot holds: a tag of the key's hash and the index of the entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Slot(u32);

impl Slot {
    #[inline]
    pub(crate) fn new(tag: u32, index: u32) -> Slot {
        Slot(index << TAG_BITS | tag)
    }

    /// `None` when the slot is free.
    #[inline]
    pub(crate) fn index(self) -> Option<u32> {
        Some(self.0 >> TAG_BITS).filter(|index| *index != 0)
    }
}

#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Bucket {
    pub(crate) control: AtomicU64,
    pub(crate) slots: [AtomicU32; SLOTS],
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Bucket>() == 64);

impl Bucket {
    #[cfg(loom)]
    pub(crate) fn zeroed() -> Bucket {
        Bucket {
            control: AtomicU64::new(0),
            slots: std::array::from_fn(|_| AtomicU32::new(0)),
        }
    }

    /// Acquire: whoever sees a bit sees the slot and the entry it stands for. All writes of the control word are
    /// read-modify-writes, so this holds for every bit, not only the newest.
    #[inline]
    pub(crate) fn control(&self) -> Control {
        Control(self.control.load(Acquire))
    }

    /// Whether the control word is still `c` (B3). The slot was read with acquire before this, so
    /// this load can't be moved in front of it; a slot value written after a removal brings that removal's control
    /// word with it.
    #[inline]
    pub(crate) fn unchanged(&self, c: Control) -> bool {
        self.control.load(Relaxed) == c.0
    }

    /// The occupied slots whose tag is `tag`.
    ///
    /// Relaxed: a candidate is read again by [`slot`](Self::slot), and absence needs no more than what
    /// `c` was read with (B4).
    #[inline]
    pub(crate) fn candidates(&self, c: Control, tag: u32) -> Bits {
        Bits(tags::equal(self, tag) & c.occupied().0)
    }

    #[inline]
    pub(crate) fn slot(&self, slot: u32) -> Slot {
        Slot(self.at(slot).load(Acquire))
    }

    /// Takes a slot that is free and was vacant in `c`, and writes `value` into it, not yet occupied (B2). `None` when
    /// every slot is occupied, or being filled or cleared by another thread.
    #[inline]
    pub(crate) fn reserve(&self, c: Control, value: Slot) -> Option<u32> {
        // A slot vacated since `c` doesn't help: the insertion has to look again anyway.
        c.vacant().find(|slot| {
            self.at(*slot)
                .compare_exchange(0, value.0, Release, Relaxed)
                .is_ok()
        })
    }

    /// Frees a slot this thread reserved, or whose bit it cleared. Release, for [`unchanged`](Self::unchanged).
    #[inline]
    pub(crate) fn free(&self, slot: u32) {
        self.at(slot).store(0, Release);
    }

    /// Occupies a slot this thread reserved, if nothing was inserted or removed since `c`: the point at which
    /// an insertion takes effect.
    pub(crate) fn occupy(&self, c: Control, slot: u32) -> bool {
        self.change(c, (c.0 | 1 << slot).wrapping_add(VERSION_ONE))
    }

    /// Clears a slot's bit, if nothing was inserted or removed since `c`: the point at which a removal takes
    /// effect.
    pub(crate) fn vacate(&self, c: Control, slot: u32) -> bool {
        self.change(c, (c.0 & !(1 << slot)).wrapping_add(VERSION_ONE))
    }

    fn change(&self, c: Control, to: u64) -> bool {
        self.control
            .compare_exchange(c.0, to, AcqRel, Relaxed)
            .is_ok()
    }

    #[inline]
    fn at(&self, slot: u32) -> &AtomicU32 {
        &self.slots[slot as usize]
    }
}
