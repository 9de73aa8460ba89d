//! One connection's memory: 128 bytes, two cache lines, all of it atomics.
//!
//! The key and the initiator are written before the entry is published and never again until it has
//! been reclaimed; the rest may be written by any thread at any time.

use crate::key::{FlowKey, KEY_WORDS, SPARE_WORD, Side};
use crate::sync::{AtomicU32, AtomicU64, Ordering::*};
use crate::table::New;

/// Words of a connection that belong to the caller.
pub const USER_WORDS: usize = 8;

/// `link` of an entry that a bucket points at. Any other value is a list's next index (0 ends it):
/// the entry is free, or removed and waiting to be.
const LIVE: u32 = u32::MAX;

#[derive(Debug)]
#[repr(C, align(128))]
pub(crate) struct Entry {
    /// The key; the low byte of the spare word is 1 when the initiator is the high side.
    key: [AtomicU64; KEY_WORDS],
    pub(crate) word: AtomicU64,
    pub(crate) last_seen: AtomicU32,
    link: AtomicU32,
    pub(crate) user: [AtomicU64; USER_WORDS],
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Entry>() == 128);

impl Entry {
    #[cfg(loom)]
    pub(crate) fn zeroed() -> Entry {
        Entry {
            key: std::array::from_fn(|_| AtomicU64::new(0)),
            word: AtomicU64::new(0),
            last_seen: AtomicU32::new(0),
            link: AtomicU32::new(0),
            user: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    /// Fills an entry nobody else can reach. Relaxed: the slot and the bucket's control word that
    /// publish it are written with release.
    pub(crate) fn fill(&self, key: &FlowKey, new: &New) {
        let initiator = u64::from(new.initiator == Side::High);
        for (i, (to, from)) in self.key.iter().zip(key.words()).enumerate() {
            to.store(
                if i == SPARE_WORD {
                    from | initiator
                } else {
                    *from
                },
                Relaxed,
            );
        }
        self.word.store(new.word, Relaxed);
        self.last_seen.store(new.tick, Relaxed);
        self.link.store(LIVE, Relaxed);
        for (to, from) in self.user.iter().zip(new.user) {
            to.store(from, Relaxed);
        }
    }

    #[inline]
    pub(crate) fn has_key(&self, key: &FlowKey) -> bool {
        let w = key.words();
        let k = |i: usize| self.key[i].load(Relaxed);
        // One branch instead of six: keys whose tags agree are nearly always equal.
        (k(0) ^ w[0])
            | (k(1) ^ w[1])
            | (k(2) ^ w[2])
            | (k(3) ^ w[3])
            | ((k(SPARE_WORD) ^ w[SPARE_WORD]) & !0xff)
            | (k(5) ^ w[5])
            == 0
    }

    pub(crate) fn key(&self) -> FlowKey {
        FlowKey::from_words(std::array::from_fn(|i| self.key[i].load(Relaxed)))
    }

    pub(crate) fn initiator(&self) -> Side {
        if self.key[SPARE_WORD].load(Relaxed) & 1 == 0 {
            Side::Low
        } else {
            Side::High
        }
    }

    pub(crate) fn is_live(&self) -> bool {
        self.link.load(Acquire) == LIVE
    }

    /// The next index of the list this entry is on.
    pub(crate) fn next(&self) -> u32 {
        self.link.load(Relaxed)
    }

    /// Puts the entry in front of `next` on a list. Release, so that whoever sees the connection dead also sees
    /// it gone from its bucket.
    pub(crate) fn set_next(&self, next: u32) {
        self.link.store(next, Release);
    }
}
