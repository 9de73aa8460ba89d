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
use crate::sync::{AtomicU64, Ordering::*, SLOT_WORDS};

/// Connections a bucket can hold.
pub(crate) const SLOTS: usize = 2 * SLOT_WORDS;
/// Bits of an entry index, which is local to its shard and never 0.
pub(crate) const INDEX_BITS: u32 = 20;

const _: () = assert!(TAG_BITS + INDEX_BITS == 32);
const INDEX_MASK: u64 = (1 << INDEX_BITS) - 1;
/// What the number of a slot in a word's high half is above that of the low half.
#[expect(clippy::cast_possible_truncation, reason = "it is 7")]
const HIGH_HALF: u32 = SLOT_WORDS as u32;
const LANE: u64 = 0xffff_ffff;
const LANE_ONES: u64 = 1 | 1 << 32;
const TAG_MASK: u64 = (1 << TAG_BITS) - 1;
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
pub(crate) struct Slot(u64);

impl Slot {
    pub(crate) fn new(tag: u64, index: u32) -> Slot {
        Slot(u64::from(index) << TAG_BITS | tag)
    }

    /// 0 when the slot is free.
    #[inline]
    pub(crate) fn index(self) -> u32 {
        (self.0 >> TAG_BITS & INDEX_MASK) as u32
    }
}

#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Bucket {
    control: AtomicU64,
    /// Word `i` holds slot `i` in its low half and slot `i + SLOT_WORDS` in its high half.
    words: [AtomicU64; SLOT_WORDS],
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Bucket>() == 64);

impl Bucket {
    #[cfg(loom)]
    pub(crate) fn zeroed() -> Bucket {
        Bucket {
            control: AtomicU64::new(0),
            words: std::array::from_fn(|_| AtomicU64::new(0)),
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
    pub(crate) fn candidates(&self, c: Control, tag: u64) -> Bits {
        let pattern = tag * LANE_ONES;
        let mut found = 0;
        for (i, word) in self.words.iter().enumerate() {
            let differ = (word.load(Relaxed) ^ pattern) & (TAG_MASK * LANE_ONES);
            // Per lane: 2^12 minus a 12-bit number keeps bit 12 exactly when that number is 0.
            let equal = ((LANE_ONES << TAG_BITS) - differ) >> TAG_BITS & LANE_ONES;
            found |= equal << i;
        }
        let slots = (found & LANE) | (found >> 32) << SLOT_WORDS;
        Bits((slots & c.0 & OCCUPANCY) as u32)
    }

    #[inline]
    pub(crate) fn slot(&self, slot: u32) -> Slot {
        let (word, shift) = self.place(slot);
        Slot(word.load(Acquire) >> shift & LANE)
    }

    /// Takes a free slot and writes `value` into it, not yet occupied (B2). `None` when every slot is
    /// occupied, or being filled or cleared by another thread.
    pub(crate) fn reserve(&self, value: Slot) -> Option<u32> {
        for (i, word) in (0..).zip(&self.words) {
            let mut seen = word.load(Relaxed);
            loop {
                let (shift, slot) = if seen & LANE == 0 {
                    (0, i)
                } else if seen >> 32 == 0 {
                    (32, i + HIGH_HALF)
                } else {
                    break;
                };
                match word.compare_exchange_weak(seen, seen | value.0 << shift, Release, Relaxed) {
                    Ok(_) => return Some(slot),
                    Err(now) => seen = now,
                }
            }
        }
        None
    }

    /// Frees a slot this thread reserved, or whose bit it cleared. Release, for [`unchanged`](Self::unchanged).
    pub(crate) fn free(&self, slot: u32) {
        let (word, shift) = self.place(slot);
        word.fetch_and(!(LANE << shift), Release);
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
    fn place(&self, slot: u32) -> (&AtomicU64, u32) {
        let slot = slot as usize;
        if slot < SLOT_WORDS {
            (&self.words[slot], 0)
        } else {
            (&self.words[slot - SLOT_WORDS], 32)
        }
    }
}
