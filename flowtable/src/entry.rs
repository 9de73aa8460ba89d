//! One connection's memory, all of it atomics: an entry of one cache line, which is all a lookup of an IPv4 connection
//! reads, and a second line elsewhere with what IPv6 addresses and the caller's further words need.
//!
//! The key and the initiator are written before the entry is published and never again until it has
//! been reclaimed; the rest may be written by any thread at any time.

use crate::key::{FlowKey, INITIATOR, NARROW_WORDS, SPARE_WORD, Side, WIDE_WORDS};
use crate::sync::{AtomicU32, AtomicU64, Ordering::*};
use crate::table::New;

/// Words of a connection that belong to the caller.
pub const USER_WORDS: usize = NEAR_WORDS + FAR_WORDS;
/// Of these, the first ones: in the cache line that a lookup reads.
pub const NEAR_WORDS: usize = 3;
/// The others, in a cache line of their own.
pub const FAR_WORDS: usize = 5;

/// `link` of an entry that a bucket points at. Any other value is a list's next index (0 ends it):
/// the entry is free, or removed and waiting to be.
const LIVE: u32 = u32::MAX;

#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Entry {
    /// The key's narrow words; the lowest bit of the spare word is 1 when the initiator is the high side.
    key: [AtomicU64; NARROW_WORDS],
    pub(crate) word: AtomicU64,
    pub(crate) last_seen: AtomicU32,
    link: AtomicU32,
    pub(crate) user: [AtomicU64; NEAR_WORDS],
}

/// An entry's second line.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Far {
    /// The key's wide words; of an earlier connection when this one's are 0.
    key: [AtomicU64; WIDE_WORDS],
    pub(crate) user: [AtomicU64; FAR_WORDS],
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Entry>() == 64 && size_of::<Far>() == 64);

#[cfg(loom)]
fn zeroes<const N: usize>() -> [AtomicU64; N] {
    std::array::from_fn(|_| AtomicU64::new(0))
}

fn store<const N: usize>(to: &[AtomicU64; N], from: [u64; N]) {
    for (to, from) in to.iter().zip(from) {
        to.store(from, Relaxed);
    }
}

impl Far {
    #[cfg(loom)]
    pub(crate) fn zeroed() -> Far {
        Far {
            key: zeroes(),
            user: zeroes(),
        }
    }

    fn wide_words(&self) -> [u64; WIDE_WORDS] {
        std::array::from_fn(|i| self.key[i].load(Relaxed))
    }
}

impl Entry {
    #[cfg(loom)]
    pub(crate) fn zeroed() -> Entry {
        Entry {
            key: zeroes(),
            word: AtomicU64::new(0),
            last_seen: AtomicU32::new(0),
            link: AtomicU32::new(0),
            user: zeroes(),
        }
    }

    /// Fills an entry nobody else can reach, and as much of its second line as is needed. Relaxed: the bucket's
    /// control word that publishes it is written with release.
    #[inline]
    pub(crate) fn fill<'a>(&self, far: impl Fn() -> &'a Far, key: &FlowKey, new: &New) {
        let [a, mut b, c, wide @ ..] = *key.words();
        if new.initiator == Side::High {
            b |= INITIATOR;
        }
        store(&self.key, [a, b, c]);
        self.word.store(new.word, Relaxed);
        self.last_seen.store(new.tick, Relaxed);
        self.link.store(LIVE, Relaxed);
        store(&self.user, new.user);
        if key.is_wide() {
            store(&far().key, wide);
        }
        if let Some(words) = new.far {
            store(&far().user, words);
        }
    }

    /// Whether this is the entry with `key`; `far` is its second line.
    #[inline]
    pub(crate) fn has_key<'a>(&'a self, key: &FlowKey, far: impl FnOnce() -> &'a Far) -> bool {
        let [a, b, c, d, e, f] = *key.words();
        let k = |i: usize| self.key[i].load(Relaxed);
        // One branch instead of three: keys whose tags agree are nearly always equal.
        let differ = (k(0) ^ a) | ((k(SPARE_WORD) ^ b) & !INITIATOR) | (k(2) ^ c);
        if differ != 0 {
            return false;
        }
        // Equal narrow words say the same about the others.
        !key.is_wide() || far().wide_words() == [d, e, f]
    }

    pub(crate) fn key<'a>(&self, far: impl FnOnce() -> &'a Far) -> FlowKey {
        let words = std::array::from_fn(|i| self.key[i].load(Relaxed));
        FlowKey::from_entry(words, || far().wide_words())
    }

    #[inline]
    pub(crate) fn initiator(&self) -> Side {
        if self.key[SPARE_WORD].load(Relaxed) & INITIATOR == 0 {
            Side::Low
        } else {
            Side::High
        }
    }

    #[inline]
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
