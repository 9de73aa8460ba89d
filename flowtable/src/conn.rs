//! A connection in the hands of a caller.

use crate::entry::{Entry, FAR_WORDS, NEAR_WORDS, USER_WORDS};
use crate::key::{FlowKey, Side};
use crate::mem::prefetch;
use crate::sync::{AtomicU64, Ordering::*};
use crate::table::Table;
use std::fmt;

/// Bits of the verdict word below the generation.
const GENERATION_SHIFT: u32 = 16;

/// A connection, good until the [`Participant`](crate::Participant) it came from quiesces or goes offline: its key and
/// initiator do not change and its memory is not used for another, even if someone removes it meanwhile.
#[derive(Clone, Copy)]
pub struct ConnRef<'a> {
    entry: &'a Entry,
    table: &'a Table,
}

const _: () = assert!(size_of::<Option<ConnRef<'_>>>() == 16);

impl<'a> ConnRef<'a> {
    #[inline]
    pub(crate) fn new(entry: &'a Entry, table: &'a Table) -> ConnRef<'a> {
        ConnRef { entry, table }
    }

    pub(crate) fn entry(&self) -> &'a Entry {
        self.entry
    }

    pub(crate) fn is_in(&self, table: &Table) -> bool {
        std::ptr::eq(self.table, table)
    }

    /// The key it was inserted with.
    pub fn key(&self) -> FlowKey {
        self.entry.key(|| self.table.far(self.entry))
    }

    /// The side that opened it.
    #[inline]
    pub fn initiator(&self) -> Side {
        self.entry.initiator()
    }

    /// The verdict and generation word: generation in the high 48 bits, the caller's own 16 below. Acquire: what
    /// was written before the word was advanced to this value is seen.
    #[inline]
    pub fn word(&self) -> u64 {
        self.entry.word.load(Acquire)
    }

    /// Sets the word to `to` if it is `from`. The generation only moves forward: a `to` with a lower one than the
    /// current is refused, so a worker under an old policy can't undo a judgement under a newer one.
    ///
    /// # Errors
    /// The current word, when it is not `from` or is of a later generation than `to`.
    pub fn advance_word(&self, from: u64, to: u64) -> Result<(), u64> {
        if to >> GENERATION_SHIFT < from >> GENERATION_SHIFT {
            return Err(self.word());
        }
        self.entry
            .word
            .compare_exchange(from, to, AcqRel, Acquire)
            .map(|_| ())
    }

    /// The tick of the last [`touch`](Self::touch).
    #[inline]
    pub fn last_seen(&self) -> u32 {
        self.entry.last_seen.load(Relaxed)
    }

    /// Notes that the connection was seen at `tick`. Writes only when that changes something, so a busy connection
    /// costs its cache line once a tick.
    #[inline]
    pub fn touch(&self, tick: u32) {
        if self.entry.last_seen.load(Relaxed) != tick {
            self.entry.last_seen.store(tick, Relaxed);
        }
    }

    /// False once a removal has returned, and perhaps a moment earlier.
    #[inline]
    pub fn is_live(&self) -> bool {
        self.entry.is_live()
    }

    /// The caller's word `i`, below [`USER_WORDS`] (a larger one wraps, and is a bug that debug builds report). The table
    /// writes it at insertion only. The first [`NEAR_WORDS`] cost nothing after a lookup, the others a cache line.
    #[inline]
    pub fn user(&self, i: usize) -> &'a AtomicU64 {
        debug_assert!(i < USER_WORDS, "a connection has {USER_WORDS} user words");
        if i < NEAR_WORDS {
            &self.entry.user[i]
        } else {
            &self.table.far(self.entry).user[(i - NEAR_WORDS) % FAR_WORDS]
        }
    }

    /// Asks for the cache line of the user words from [`NEAR_WORDS`] on, for whoever will read them soon.
    #[inline]
    pub fn prefetch_far(&self) {
        prefetch(self.table.far(self.entry));
    }

    /// A number no other connection in the table has; a later one may get it again once this is gone.
    pub fn id(&self) -> u64 {
        self.table.number(self.entry) as u64
    }
}

impl fmt::Debug for ConnRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnRef")
            .field("id", &self.id())
            .field("key", &self.key())
            .field("initiator", &self.initiator())
            .field("word", &self.word())
            .field("last_seen", &self.last_seen())
            .field("live", &self.is_live())
            .finish()
    }
}
