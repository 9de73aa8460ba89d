//! A shard's supply of entries: those never used, and lock-free lists of those given back.
//!
//! Several lists, *lanes*, because the way to the next free entry leads through the one before: a thread that
//! takes from each in turn has asked for an entry long before it needs it.

use crate::bucket::INDEX_BITS;
use crate::entry::Entry;
use crate::mem::prefetch;
use crate::sync::{AtomicU32, AtomicU64, LANES, Ordering::*};

/// Entries a shard can have: an index is 20 bits and 0 means none.
pub(crate) const MAX_ENTRIES_PER_SHARD: usize = (1 << INDEX_BITS) - 1;
const INDEX_MASK: u64 = (1 << INDEX_BITS) - 1;
const VERSION_ONE: u64 = 1 << INDEX_BITS;

/// The free entries of one shard, stacks. On a cache line pair of its own: every insertion writes it.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Pool {
    /// Each has the first free index, below a version (44 bits, does not wrap) that makes every value new, so that
    /// a pop whose entry was taken and given back meanwhile fails.
    heads: [AtomicU64; LANES],
    /// Entries 1 to `used` have been handed out at least once. Others are untouched memory: a table
    /// costs what it has held.
    used: AtomicU32,
    limit: u32,
}

impl Pool {
    pub(crate) fn new(limit: u32) -> Pool {
        Pool {
            heads: std::array::from_fn(|_| AtomicU64::new(0)),
            used: AtomicU32::new(0),
            limit,
        }
    }

    /// The entry that would be taken from that lane now; `None` if the lane is empty.
    #[inline]
    pub(crate) fn peek(&self, lane: usize) -> Option<u32> {
        index(self.heads[lane % LANES].load(Relaxed))
    }

    /// An entry for the caller alone, of that lane if it has one; `None` when all are in use or not yet reclaimed.
    #[inline]
    pub(crate) fn take<'a>(&self, lane: usize, entry: impl Fn(u32) -> &'a Entry) -> Option<u32> {
        let (before, from) = self.heads.split_at(lane % LANES);
        let mut heads = from.iter().chain(before);
        heads
            .find_map(|head| take(head, &entry))
            .or_else(|| self.take_unused())
    }

    fn take_unused(&self) -> Option<u32> {
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
    pub(crate) fn give_back(&self, lane: usize, last_entry: &Entry, first: u32) {
        let list = &self.heads[lane % LANES];
        let mut head = list.load(Relaxed);
        loop {
            last_entry.set_next(index(head).unwrap_or(0));
            let to = (head & !INDEX_MASK).wrapping_add(VERSION_ONE) | u64::from(first);
            match list.compare_exchange_weak(head, to, Release, Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }
}

/// Pops an entry of one list.
#[inline]
fn take<'a>(list: &AtomicU64, entry: impl Fn(u32) -> &'a Entry) -> Option<u32> {
    let mut head = list.load(Acquire);
    while let Some(index) = index(head) {
        // May be any value if the entry is no longer free; the version makes the CAS fail then.
        let next = u64::from(entry(index).next()) & INDEX_MASK;
        let to = (head & !INDEX_MASK).wrapping_add(VERSION_ONE) | next;
        match list.compare_exchange_weak(head, to, AcqRel, Acquire) {
            Ok(_) => {
                // For whoever takes the next one: it is read and then written, and may be far away.
                if let Some(next) = self::index(next) {
                    prefetch(entry(next));
                }
                return Some(index);
            }
            Err(now) => head = now,
        }
    }
    None
}

fn index(head: u64) -> Option<u32> {
    match (head & INDEX_MASK) as u32 {
        0 => None,
        index => Some(index),
    }
}
