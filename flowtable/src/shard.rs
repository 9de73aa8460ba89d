//! A shard's supply of entries: those never used, and a lock-free list of those given back.

use crate::bucket::INDEX_BITS;
use crate::entry::Entry;
use crate::sync::{AtomicU32, AtomicU64, Ordering::*};

/// Entries a shard can have: an index is 20 bits and 0 means none.
pub(crate) const MAX_ENTRIES_PER_SHARD: usize = (1 << INDEX_BITS) - 1;
const INDEX_MASK: u64 = (1 << INDEX_BITS) - 1;
const VERSION_ONE: u64 = 1 << INDEX_BITS;

/// The free entries of one shard, a stack. On a cache line pair of its own: every insertion writes it.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Pool {
    /// The first free index, below a version (44 bits, does not wrap) that makes every value new, so that
    /// a pop whose entry was taken and given back meanwhile fails.
    head: AtomicU64,
    /// Entries 1 to `used` have been handed out at least once. Others are untouched memory: a table
    /// costs what it has held.
    used: AtomicU32,
    limit: u32,
}

impl Pool {
    pub(crate) fn new(limit: u32) -> Pool {
        Pool {
            head: AtomicU64::new(0),
            used: AtomicU32::new(0),
            limit,
        }
    }

    /// An entry for the caller alone, or `None` when all are in use or not yet reclaimed.
    pub(crate) fn take<'a>(&self, entry: impl Fn(u32) -> &'a Entry) -> Option<u32> {
        let mut head = self.head.load(Acquire);
        while let Some(index) = index(head) {
            // May be any value if the entry is no longer free; the version makes the CAS fail then.
            let next = entry(index).next();
            let to = (head & !INDEX_MASK).wrapping_add(VERSION_ONE) | u64::from(next) & INDEX_MASK;
            match self.head.compare_exchange_weak(head, to, AcqRel, Acquire) {
                Ok(_) => return Some(index),
                Err(now) => head = now,
            }
        }
        let mut used = self.used.load(Relaxed);
        while used < self.limit {
            match self
                .used
                .compare_exchange_weak(used, used + 1, Relaxed, Relaxed)
            {
                Ok(_) => return Some(used + 1),
                Err(now) => used = now,
            }
        }
        None
    }

    /// Gives back a list of entries, from the index `first` to `last_entry`, that nobody can reach any more: one CAS
    /// however many they are.
    pub(crate) fn give_back(&self, last_entry: &Entry, first: u32) {
        let mut head = self.head.load(Relaxed);
        loop {
            last_entry.set_next(index(head).unwrap_or(0));
            let to = (head & !INDEX_MASK).wrapping_add(VERSION_ONE) | u64::from(first);
            match self.head.compare_exchange_weak(head, to, Release, Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }
}

fn index(head: u64) -> Option<u32> {
    match (head & INDEX_MASK) as u32 {
        0 => None,
        index => Some(index),
    }
}
