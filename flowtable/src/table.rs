//! The table: its geometry, and where a key's bucket and entries are.

use crate::bucket::{Bucket, SLOTS, Slot};
use crate::entry::{Entry, FAR_WORDS, Far, NEAR_WORDS};
use crate::hash::{Hash, Hasher};
use crate::key::{FlowKey, Side};
use crate::mem::{Region, prefetch};
use crate::participant::Participant;
use crate::reclaim::{Domain, List};
use crate::shard::{MAX_ENTRIES_PER_SHARD, Pool};
use crate::sync::{AtomicU64, Padded};
use std::fmt;
use std::sync::Arc;

/// Connections per bucket of a full table. With 4 of 14 slots used on average, a bucket of a full
/// table has no room for a new key once in 13,000 (Poisson), of a half-full one once in 34 million.
const MEAN_LOAD: usize = 4;
/// A default shard has up to this many entries; a guess: enough shards that workers inserting at the same
/// time seldom meet, few enough that the shards fill evenly.
const DEFAULT_SHARD_ENTRIES: usize = 1 << 17;
/// Default shards beyond which only the 20 bits of an index ask for more.
const DEFAULT_SHARDS: usize = 16;
/// The hash gives the shard 20 bits; leaving 8 of them to multiply keeps shards even within 1/256.
const MAX_SHARDS: usize = 1 << 12;

/// How large a table is, and how it takes its memory.
#[derive(Clone, Debug)]
pub struct Config {
    /// Connections the table holds at most, at least 1; see the crate's *Limits*.
    pub capacity: usize,
    /// Shards, each with its own share of the capacity and at most 2^20 - 1 entries; `None` chooses one up to
    /// 131,072 connections, and a power of two beyond.
    pub shards: Option<usize>,
    /// Back all memory now, with the system's reserved huge pages if there are enough (else transparent ones),
    /// so that no insertion ever waits for a page. Without it, pages come on first touch.
    pub huge_pages: bool,
    /// The hash's secret; `None` (what a network-facing program wants) draws it at random.
    pub seed: Option<[u64; 4]>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            capacity: 1_000_000,
            shards: None,
            huge_pages: false,
            seed: None,
        }
    }
}

/// Why a table could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    /// `capacity` is 0.
    #[error("a connection table needs a capacity of at least 1")]
    ZeroCapacity,
    /// `shards` does not fit `capacity`.
    #[error(
        "{shards} shards do not fit a capacity of {capacity}: each takes 1 to 1048575 connections, \
         and there are at most 4096"
    )]
    Shards {
        /// What was asked for.
        shards: usize,
        /// What was asked for.
        capacity: usize,
    },
    /// The system did not give the memory.
    #[error("could not take memory for {capacity} connections")]
    Memory {
        /// What was asked for.
        capacity: usize,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// What a new connection starts with; see [`Participant::insert_or_get`].
#[derive(Clone, Copy, Debug)]
pub struct New {
    /// The side that opened the connection. It never changes.
    pub initiator: Side,
    /// The verdict and generation word; see [`ConnRef::advance_word`](crate::ConnRef::advance_word).
    pub word: u64,
    /// The first `last_seen`.
    pub tick: u32,
    /// The caller's own words, the first ones.
    pub user: [u64; NEAR_WORDS],
    /// The further ones. Without them those words hold whatever they held before, and the cache line they are in is not
    /// touched: connections whose kind has no use for it need not pay for it.
    pub far: Option<[u64; FAR_WORDS]>,
}

/// Why a connection was not inserted. The table is unchanged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InsertError {
    /// Every entry of the key's shard is in use, or removed and not yet reclaimed.
    #[error("the connection table is full")]
    TableFull,
    /// Every slot of the key's bucket is in use, or being filled or cleared at this moment.
    #[error("the connection's bucket is full")]
    BucketFull,
}

/// A bounded table of connections, shared by any number of threads; see the [crate docs](crate).
///
/// # Thread-safety
/// `Send` and `Sync`. A thread works on it through its own [`Participant`].
pub struct Table {
    pub(crate) buckets: Region<Bucket>,
    entries: Region<Entry>,
    fars: Region<Far>,
    pools: Box<[Pool]>,
    hasher: Hasher,
    pub(crate) buckets_per_shard: usize,
    /// Entries of a shard; some shards may use one less.
    entries_per_shard: usize,
    capacity: usize,
    pub(crate) domain: Domain,
    /// Buckets handed out to sweeps so far; 64 bits do not wrap.
    pub(crate) swept: Padded<AtomicU64>,
}

/// Where a key belongs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Place {
    shard: u32,
    /// Among all buckets of the table: less than its entries, which are less than 2^32.
    bucket: u32,
    pub(crate) tag: u32,
}

impl Place {
    #[inline]
    pub(crate) fn shard(self) -> usize {
        self.shard as usize
    }

    #[inline]
    pub(crate) fn bucket(self) -> usize {
        self.bucket as usize
    }
}

const _: () = assert!(MAX_SHARDS * (MAX_ENTRIES_PER_SHARD + 1) - 1 <= u32::MAX as usize);

impl Table {
    /// Takes all the memory the table will ever use, and seeds its hash.
    ///
    /// # Errors
    /// [`TableError`]: a capacity or number of shards that can't be, or no memory.
    pub fn new(config: Config) -> Result<Table, TableError> {
        let Config {
            capacity, shards, ..
        } = config;
        if capacity == 0 {
            return Err(TableError::ZeroCapacity);
        }
        let shards = shards.unwrap_or_else(|| default_shards(capacity));
        if shards == 0
            || shards > MAX_SHARDS
            || shards > capacity
            || capacity.div_ceil(shards) > MAX_ENTRIES_PER_SHARD
        {
            return Err(TableError::Shards { shards, capacity });
        }
        let buckets_per_shard = capacity.div_ceil(shards).div_ceil(MEAN_LOAD);
        Table::with_geometry(&config, shards, buckets_per_shard)
    }

    /// A table with `buckets_per_shard`; tests choose few to fill a bucket.
    pub(crate) fn with_geometry(
        config: &Config,
        shards: usize,
        buckets_per_shard: usize,
    ) -> Result<Table, TableError> {
        let capacity = config.capacity;
        let no_memory = |source| TableError::Memory { capacity, source };
        let entries_per_shard = capacity.div_ceil(shards);
        // The capacity exactly: the first shards have the remainder.
        let (share, larger) = (capacity / shards, capacity % shards);
        let pools = (0..shards)
            .map(|shard| {
                let limit = share + usize::from(shard < larger);
                u32::try_from(limit).map(Pool::new)
            })
            .collect::<Result<_, _>>()
            .map_err(|_too_large| TableError::Shards { shards, capacity })?;
        let huge = config.huge_pages;
        Ok(Table {
            buckets: Region::new(shards * buckets_per_shard, huge).map_err(no_memory)?,
            entries: Region::new(shards * entries_per_shard, huge).map_err(no_memory)?,
            fars: Region::new(shards * entries_per_shard, huge).map_err(no_memory)?,
            pools,
            hasher: Hasher::new(config.seed),
            buckets_per_shard,
            entries_per_shard,
            capacity,
            domain: Domain::new(shards),
            swept: Padded(AtomicU64::new(0)),
        })
    }

    /// A thread's access to the table. Not for the hot path; a thread keeps its participant.
    pub fn participant(self: &Arc<Self>) -> Participant {
        Participant::new(Arc::clone(self))
    }

    /// Connections in the table. Exact while no other thread inserts or removes, else it lags by the operations
    /// under way. Walks the participants.
    pub fn len(&self) -> usize {
        self.domain.net()
    }

    /// Whether [`len`](Self::len) is 0.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Connections the table holds at most.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Buckets in the table: how much [`Participant::sweep`] budget makes one round.
    pub fn buckets(&self) -> usize {
        self.buckets.len()
    }

    /// Bytes taken from the system for buckets and entries.
    pub fn memory_bytes(&self) -> usize {
        self.buckets.size_bytes() + self.entries.size_bytes() + self.fars.size_bytes()
    }

    /// The table's hash of a key: keyed with the table's secret, the same for both directions.
    pub fn hash(&self, key: &FlowKey) -> u64 {
        self.hasher.hash(key).0
    }

    #[inline]
    pub(crate) fn place(&self, key: &FlowKey) -> Place {
        let hash: Hash = self.hasher.hash(key);
        let shard = hash.shard(self.pools.len());
        let bucket = shard * self.buckets_per_shard + hash.bucket(self.buckets_per_shard);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "see the assertion below `Place`"
        )]
        Place {
            shard: shard as u32,
            bucket: bucket as u32,
            tag: hash.tag(),
        }
    }

    #[inline]
    pub(crate) fn bucket(&self, place: Place) -> &Bucket {
        &self.buckets[place.bucket()]
    }

    /// A shard's entry.
    #[inline]
    pub(crate) fn entry(&self, shard: usize, index: u32) -> &Entry {
        &self.entries[shard * self.entries_per_shard + index as usize - 1]
    }

    /// The entry a slot at `place` stands for, if it is not free.
    #[inline]
    pub(crate) fn entry_of(&self, place: Place, slot: Slot) -> Option<&Entry> {
        slot.index().map(|index| self.entry(place.shard(), index))
    }

    /// Its number among all entries of this table.
    #[inline]
    pub(crate) fn number(&self, entry: &Entry) -> usize {
        self.entries.position(entry)
    }

    /// The shard of an entry, and its index there.
    pub(crate) fn place_of(&self, entry: &Entry) -> (usize, u32) {
        let number = self.number(entry);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a shard has less than 2^20 entries"
        )]
        let index = (number % self.entries_per_shard) as u32 + 1;
        (number / self.entries_per_shard, index)
    }

    /// An entry's second line.
    #[inline]
    pub(crate) fn far(&self, entry: &Entry) -> &Far {
        &self.fars[self.number(entry)]
    }

    #[inline]
    pub(crate) fn has_key(&self, entry: &Entry, key: &FlowKey) -> bool {
        entry.has_key(key, || self.far(entry))
    }

    /// Asks for the entry that the next insertion into this shard takes from that lane.
    #[inline]
    pub(crate) fn prefetch_free(&self, shard: usize, lane: usize) {
        if let Some(index) = self.pools[shard].peek(lane) {
            prefetch(self.entry(shard, index));
        }
    }

    pub(crate) fn take_entry(&self, shard: usize, lane: usize) -> Option<u32> {
        self.pools[shard].take(lane, |index| self.entry(shard, index))
    }

    /// Gives entries back that nobody can reach.
    pub(crate) fn give_back(&self, shard: usize, lane: usize, list: List) {
        self.pools[shard].give_back(lane, self.entry(shard, list.last), list.first);
    }
}

fn default_shards(capacity: usize) -> usize {
    let for_contention = capacity
        .div_ceil(DEFAULT_SHARD_ENTRIES)
        .next_power_of_two()
        .min(DEFAULT_SHARDS);
    let for_index = capacity.div_ceil(MAX_ENTRIES_PER_SHARD).next_power_of_two();
    for_contention.max(for_index)
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table")
            .field("len", &self.len())
            .field("capacity", &self.capacity)
            .field("shards", &self.pools.len())
            .field("buckets", &self.buckets.len())
            .finish_non_exhaustive()
    }
}

const _: () = assert!(MEAN_LOAD < SLOTS || cfg!(loom));
