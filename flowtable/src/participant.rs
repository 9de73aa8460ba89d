//! The operations, each done through a thread's own participant.

use crate::bucket::{Bucket, Control, SLOTS, Slot};
use crate::conn::ConnRef;
use crate::entry::Entry;
use crate::key::FlowKey;
use crate::mem::prefetch;
use crate::reclaim::{List, Record, generation_of};
use crate::sync::Ordering::*;
use crate::table::{InsertError, New, Place, Table};
use std::cell::Cell;
use std::fmt;
use std::sync::Arc;

/// Keys looked up together: the DPDK and OVS burst. More in flight than the CPU has line fill buffers
/// (10 to 16) gains nothing, and this many fit its first-level cache.
const BURST: usize = 32;
/// Buckets a sweep reads ahead of the entries it visits; four entries each make a burst.
const SWEEP_GROUP: usize = 8;

/// A thread's access to a [`Table`].
///
/// It is *online* from its first operation until [`offline`](Self::offline), and while it is, memory of
/// removed connections comes back only as it calls [`quiesce`](Self::quiesce): once per iteration of
/// a poll loop is right. A thread that will not call it for a while, because it blocks, goes offline first.
///
/// # Thread-safety
/// `Send` but not `Sync`: one thread at a time.
pub struct Participant {
    table: Arc<Table>,
    record: Arc<Record>,
    /// The announced epoch, while online.
    epoch: Cell<u64>,
    online: Cell<bool>,
    /// Entries waiting on each of the record's three generations of lists.
    waiting: [Cell<usize>; 3],
    /// Where the next entry is taken from, or given back to.
    lane: Cell<usize>,
    /// An insertion found no entry: the next quiesce looks for memory others left.
    starved: Cell<bool>,
}

/// What [`Participant::insert_or_get`] found or made.
#[derive(Clone, Copy, Debug)]
pub struct Inserted<'a> {
    /// The connection that is in the table.
    pub conn: ConnRef<'a>,
    /// Whether it was there before.
    pub existed: bool,
}

/// One key's way through [`Participant::lookup_burst`].
#[derive(Clone, Copy, Default)]
struct Probe<'a> {
    place: Place,
    control: Control,
    /// The first entry with the key's tag, or none because the slot was being changed.
    candidate: Option<Option<&'a Entry>>,
}

/// What a scan of a bucket under one control word found.
enum Scan<'a> {
    Found(&'a Entry),
    Absent,
    /// Somebody changed the bucket meanwhile and it matters.
    Changed,
}

impl Participant {
    pub(crate) fn new(table: Arc<Table>) -> Participant {
        let record = table.domain.claim();
        Participant {
            table,
            record,
            epoch: Cell::new(0),
            online: Cell::new(false),
            waiting: Default::default(),
            lane: Cell::new(0),
            starved: Cell::new(false),
        }
    }

    /// The table this participant works on.
    pub fn table(&self) -> &Arc<Table> {
        &self.table
    }

    /// The connection with this key, if there is one. Cost: two dependent cache misses in a large table.
    #[inline]
    pub fn lookup(&self, key: &FlowKey) -> Option<ConnRef<'_>> {
        self.ensure_online();
        self.find(self.table.place(key), key)
    }

    /// Looks up `keys[i]` into `hits[i]`, in bursts of 32 whose cache misses overlap. When the
    /// lengths differ, the shorter one counts.
    pub fn lookup_burst<'a>(&'a self, keys: &[FlowKey], hits: &mut [Option<ConnRef<'a>>]) {
        self.ensure_online();
        for (keys, hits) in keys.chunks(BURST).zip(hits.chunks_mut(BURST)) {
            self.lookup_chunk(keys, hits);
        }
    }

    /// Three passes, so that each pass waits for all its cache lines at once: the buckets' are asked for, then the
    /// candidates' entries, then these are compared.
    #[inline]
    fn lookup_chunk<'a>(&'a self, keys: &[FlowKey], hits: &mut [Option<ConnRef<'a>>]) {
        let table = &*self.table;
        let mut probes = [Probe::default(); BURST];
        for (probe, key) in probes.iter_mut().zip(keys) {
            probe.place = table.place(key);
            prefetch(table.bucket(probe.place));
        }
        for (probe, _) in probes.iter_mut().zip(keys) {
            let bucket = table.bucket(probe.place);
            probe.control = bucket.control();
            if let Some(slot) = bucket.candidates(probe.control, probe.place.tag).next() {
                // None if it is being changed.
                let entry = table.entry_of(probe.place, bucket.slot(slot));
                entry.inspect(|e| prefetch(*e));
                probe.candidate = Some(entry);
            }
        }
        for ((hit, key), probe) in hits.iter_mut().zip(keys).zip(&probes) {
            *hit = match probe.candidate {
                None => None,
                Some(Some(entry))
                    if table.has_key(entry, key)
                        && table.bucket(probe.place).unchanged(probe.control) =>
                {
                    Some(ConnRef::new(entry, table))
                }
                // Another connection with the same tag, or a bucket that is changing: both rare.
                Some(_) => self.find(probe.place, key),
            };
        }
    }

    /// Inserts a connection, or returns the one that has the key already, in which case `new` is not used.
    ///
    /// # Errors
    /// [`InsertError`]: no entry or no slot; a removed connection's memory is not there before every
    /// online participant has quiesced.
    pub fn insert_or_get(&self, key: &FlowKey, new: New) -> Result<Inserted<'_>, InsertError> {
        self.ensure_online();
        let place = self.table.place(key);
        let bucket = self.table.bucket(place);
        // While the bucket is waited for.
        self.table.prefetch_free(place.shard(), self.lane.get());
        let mut mine: Option<(u32, u32)> = None;
        loop {
            let c = bucket.control();
            match self.scan(bucket, c, place, key) {
                Scan::Changed => continue,
                Scan::Found(entry) => {
                    if let Some((mine, slot)) = mine {
                        bucket.free(slot);
                        self.give_back_one(place.shard(), mine);
                    }
                    return Ok(Inserted {
                        conn: ConnRef::new(entry, &self.table),
                        existed: true,
                    });
                }
                Scan::Absent => {}
            }
            let (index, slot) = match mine {
                Some(mine) => mine,
                None => *mine.insert(self.prepare(bucket, c, place, key, &new)?),
            };
            if bucket.occupy(c, slot) {
                self.record.count(1);
                return Ok(Inserted {
                    conn: ConnRef::new(self.table.entry(place.shard(), index), &self.table),
                    existed: false,
                });
            }
        }
    }

    /// A filled entry in a reserved slot: everything of an insertion but its effect.
    fn prepare(
        &self,
        bucket: &Bucket,
        c: Control,
        place: Place,
        key: &FlowKey,
        new: &New,
    ) -> Result<(u32, u32), InsertError> {
        if c.occupied().len() == SLOTS {
            return Err(InsertError::BucketFull);
        }
        let Some(index) = self.table.take_entry(place.shard(), self.next_lane()) else {
            self.starved.set(true);
            return Err(InsertError::TableFull);
        };
        let Some(slot) = bucket.reserve(c, Slot::new(place.tag, index)) else {
            self.give_back_one(place.shard(), index);
            return Err(InsertError::BucketFull);
        };
        let entry = self.table.entry(place.shard(), index);
        entry.fill(|| self.table.far(entry), key, new);
        Ok((index, slot))
    }

    /// Gives back an entry that was never occupied. At once: whoever read its index from the slot finds the
    /// control word changed, or the slot's bit clear, and does not use it (B3).
    fn give_back_one(&self, shard: usize, index: u32) {
        self.table.give_back(
            shard,
            self.next_lane(),
            List {
                first: index,
                last: index,
            },
        );
    }

    /// Removes a connection: true for exactly one of all the calls that try. A connection of another
    /// table is left alone.
    pub fn remove(&self, conn: ConnRef<'_>) -> bool {
        self.ensure_online();
        let place = self.table.place(&conn.key());
        self.remove_from(self.table.bucket(place), conn)
    }

    fn remove_from(&self, bucket: &Bucket, conn: ConnRef<'_>) -> bool {
        if !conn.is_in(&self.table) {
            return false;
        }
        let entry = conn.entry();
        let (shard, index) = self.table.place_of(entry);
        loop {
            let c = bucket.control();
            // The index alone identifies the connection: `conn` keeps its entry from being used again.
            let Some(slot) = c
                .occupied()
                .find(|slot| bucket.slot(*slot).index() == Some(index))
            else {
                return false;
            };
            if bucket.vacate(c, slot) {
                bucket.free(slot);
                self.retire(entry, shard, index);
                return true;
            }
        }
    }

    fn retire(&self, entry: &Entry, shard: usize, index: u32) {
        let epoch = self.epoch.get();
        self.record
            .push(shard, epoch, index, |next| entry.set_next(next));
        let waiting = &self.waiting[generation_of(epoch)];
        waiting.set(waiting.get() + 1);
        self.record.count(-1);
    }

    /// Visits the connections in the next `budget` buckets of the table's one sweep, which all participants share, and
    /// removes those `f` says true to. A round is [`Table::buckets`] buckets, and visits every connection that is
    /// there all the time once; one call is at most a round. Returns how many were removed.
    pub fn sweep(&self, budget: usize, f: impl FnMut(ConnRef<'_>) -> bool) -> usize {
        self.ensure_online();
        let buckets = self.table.buckets.len();
        let budget = budget.min(buckets);
        let from = self.table.swept.0.fetch_add(budget as u64, Relaxed);
        let from = usize::try_from(from % buckets as u64).unwrap_or(0);
        self.visit((from..buckets).chain(0..from).take(budget), f)
    }

    /// Visits every connection; one that is in the table throughout is seen exactly once.
    pub fn for_each(&self, mut f: impl FnMut(ConnRef<'_>)) {
        self.ensure_online();
        self.visit(0..self.table.buckets.len(), |conn| {
            f(conn);
            false
        });
    }

    /// Visits the connections in `buckets`, a group of buckets at a time so that cache misses overlap, and
    /// removes those `f` says true to.
    fn visit(
        &self,
        mut buckets: impl Iterator<Item = usize>,
        mut f: impl FnMut(ConnRef<'_>) -> bool,
    ) -> usize {
        let mut removed = 0;
        let mut group = [(0usize, [0u32; SLOTS], 0usize); SWEEP_GROUP];
        loop {
            let mut used = 0;
            for ((bucket, indices, len), at) in group.iter_mut().zip(&mut buckets) {
                *bucket = at;
                *len = snapshot(&self.table.buckets[at], indices);
                let shard = at / self.table.buckets_per_shard;
                for index in indices.iter().take(*len) {
                    prefetch(self.table.entry(shard, *index));
                }
                used += 1;
            }
            if used == 0 {
                return removed;
            }
            for (bucket, indices, len) in group.iter().take(used) {
                let shard = bucket / self.table.buckets_per_shard;
                for index in indices.iter().take(*len) {
                    let conn = ConnRef::new(self.table.entry(shard, *index), &self.table);
                    if conn.is_live()
                        && f(conn)
                        && self.remove_from(&self.table.buckets[*bucket], conn)
                    {
                        removed += 1;
                    }
                }
            }
        }
    }

    /// Says that this thread holds no [`ConnRef`], which `&mut` makes the compiler prove, and takes back the memory of
    /// connections removed long enough ago. One load when there is nothing to do.
    #[inline]
    pub fn quiesce(&mut self) {
        if self.table.domain.epoch() != self.epoch.get() || self.has_waiting() || self.starved.get()
        {
            self.quiesce_slow();
        }
    }

    fn quiesce_slow(&mut self) {
        if !self.online.get() {
            return;
        }
        let domain = &self.table.domain;
        // Three moves age the newest list, if nobody else is online to wait for; a fourth look frees it.
        for _ in 0..=3 {
            let now = domain.epoch();
            if now != self.epoch.get() {
                self.record.announce(now);
                self.epoch.set(now);
                // E1: `now` is one more than before, so this generation's list is three epochs old.
                self.record.drain(generation_of(now), |shard, list| {
                    self.table.give_back(shard, self.next_lane(), list);
                });
                self.waiting[generation_of(now)].set(0);
            }
            if !(self.has_waiting() || self.starved.get()) {
                break;
            }
            let give_back = |shard, list| self.table.give_back(shard, self.next_lane(), list);
            if !domain.try_advance(now, give_back) {
                break;
            }
        }
        self.starved.set(false);
    }

    /// Each lane in turn.
    #[inline]
    fn next_lane(&self) -> usize {
        let lane = self.lane.get();
        self.lane.set(lane.wrapping_add(1));
        lane
    }

    /// Whether somebody may still have in hand what this participant removed; who goes on calling
    /// [`quiesce`](Self::quiesce) learns when nobody has.
    pub fn has_removed(&self) -> bool {
        self.has_waiting()
    }

    fn has_waiting(&self) -> bool {
        self.waiting.iter().any(|w| w.get() != 0)
    }

    /// Steps aside, before blocking or doing something else for long: nobody waits for this thread. What it removed and
    /// could not yet take back is left to the others.
    pub fn offline(&mut self) {
        if !self.online.get() {
            return;
        }
        self.quiesce();
        if self.has_waiting() {
            self.table
                .domain
                .abandon_lists(&self.record, self.epoch.get());
            for waiting in &self.waiting {
                waiting.set(0);
            }
        }
        self.record.leave();
        self.online.set(false);
    }

    /// Comes back. The first operation does it too; this is for doing it at a time of one's choosing.
    pub fn online(&mut self) {
        self.ensure_online();
    }

    #[inline]
    fn ensure_online(&self) {
        if !self.online.get() {
            self.come_online();
        }
    }

    #[cold]
    fn come_online(&self) {
        self.epoch.set(self.table.domain.come_online(&self.record));
        self.online.set(true);
    }

    #[inline(never)]
    fn find(&self, place: Place, key: &FlowKey) -> Option<ConnRef<'_>> {
        let bucket = self.table.bucket(place);
        loop {
            match self.scan(bucket, bucket.control(), place, key) {
                Scan::Found(entry) => return Some(ConnRef::new(entry, &self.table)),
                Scan::Absent => return None,
                Scan::Changed => {}
            }
        }
    }

    #[inline]
    fn scan(&self, bucket: &Bucket, c: Control, place: Place, key: &FlowKey) -> Scan<'_> {
        for slot in bucket.candidates(c, place.tag) {
            let Some(entry) = self.table.entry_of(place, bucket.slot(slot)) else {
                return Scan::Changed;
            };
            if self.table.has_key(entry, key) {
                return if bucket.unchanged(c) {
                    Scan::Found(entry)
                } else {
                    Scan::Changed
                };
            }
        }
        Scan::Absent
    }
}

/// The indices of all connections that were in the bucket at one moment.
fn snapshot(bucket: &Bucket, indices: &mut [u32; SLOTS]) -> usize {
    loop {
        let c = bucket.control();
        let mut len = 0;
        for (to, slot) in indices.iter_mut().zip(c.occupied()) {
            *to = bucket.slot(slot).index().unwrap_or(0);
            len += 1;
        }
        if bucket.unchanged(c) {
            return len;
        }
    }
}

impl Drop for Participant {
    fn drop(&mut self) {
        self.offline();
        self.record.release();
    }
}

impl fmt::Debug for Participant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Participant")
            .field("online", &self.online.get())
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::{Addr, Config, Endpoint, Side};

    pub(super) fn table(capacity: usize) -> Arc<Table> {
        Arc::new(
            Table::new(Config {
                capacity,
                seed: Some([1, 2, 3, 4]),
                ..Config::default()
            })
            .expect("a table"),
        )
    }

    pub(super) fn key(n: u32) -> FlowKey {
        let src = Endpoint {
            addr: Addr::from_v4_bytes(n.to_be_bytes()),
            port: 1000,
            attachment: 1,
        };
        let dst = Endpoint {
            addr: Addr::from_v4_bytes([10, 0, 0, 1]),
            port: 80,
            attachment: 2,
        };
        FlowKey::new(1, 6, &src, &dst).0
    }

    pub(super) fn new(n: u64) -> New {
        New {
            initiator: Side::High,
            word: n,
            tick: 7,
            user: [n; 3],
            far: Some([n; 5]),
        }
    }

    #[test]
    fn capacity_is_exact_and_memory_comes_back() {
        let table = table(16);
        let mut p = table.participant();
        for n in 0..16 {
            let inserted = p.insert_or_get(&key(n), new(n.into())).expect("room");
            assert!(!inserted.existed);
        }
        assert_eq!(
            p.insert_or_get(&key(16), new(0)).expect_err("full"),
            InsertError::TableFull
        );
        assert!(
            p.insert_or_get(&key(3), new(0))
                .expect("in the table")
                .existed
        );
        assert_eq!(table.len(), 16);
        let conn = p.lookup(&key(5)).expect("in the table");
        assert!(p.remove(conn));
        assert!(!p.remove(conn));
        assert!(!conn.is_live());
        assert_eq!(conn.key(), key(5));
        assert!(p.lookup(&key(5)).is_none());
        assert_eq!(
            p.insert_or_get(&key(16), new(0)).expect_err("held"),
            InsertError::TableFull
        );
        p.quiesce();
        assert!(!p.insert_or_get(&key(16), new(0)).expect("room").existed);
        assert_eq!(table.len(), 16);
    }

    #[test]
    fn a_burst_finds_what_single_lookups_find() {
        const LEN: u32 = if cfg!(miri) { 64 } else { 1000 };
        let table = table(LEN as usize);
        let p = table.participant();
        for n in (0..LEN).step_by(2) {
            p.insert_or_get(&key(n), new(n.into())).expect("room");
        }
        let keys: Vec<_> = (0..64).map(key).collect();
        for len in [0, 1, 31, 32, 33, 64] {
            let mut hits = [None; 64];
            p.lookup_burst(&keys[..len], &mut hits);
            for (n, hit) in (0u32..).zip(&hits) {
                let expected = (n as usize) < len && n % 2 == 0;
                assert_eq!(hit.is_some(), expected, "key {n} of {len}");
                if let Some(conn) = hit {
                    assert_eq!((conn.key(), conn.word()), (key(n), n.into()));
                    assert_eq!(conn.user(3).load(Relaxed), n.into());
                    assert_eq!((conn.initiator(), conn.last_seen()), (Side::High, 7));
                }
            }
        }
    }
}
