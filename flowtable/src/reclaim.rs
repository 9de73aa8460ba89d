//! When a removed entry may be used again: quiescent states (QSBR), by epochs.
//!
//! * **E1** A participant that is online has announced an epoch `l`. The table's epoch moves from `g` to `g + 1`
//!   only when every online participant has announced `g`. So `g` is `l` or `l + 1` for each of them.
//! * **E2** An entry removed by a participant at its epoch `l` waits on that participant's list `l % 3` and is
//!   free when the table's epoch is `l + 3`. By then the remover has announced `l + 1` (or gone offline) *after*
//!   the removal, which the move to `l + 2` acquired; so whoever announces `l + 2` sees the entry gone
//!   from its bucket, and the move to `l + 3` waited until everybody online had, with no
//!   [`ConnRef`](crate::ConnRef) in hand from before.
//! * **E3** A participant coming online publishes its epoch, fences (`SeqCst`), and reads the table's epoch again; a
//!   move of the epoch fences before it reads the participants. Either the move sees the newcomer, or the newcomer
//!   sees everything that happened before the move, hence what E2 needs it to see.
//! * **E4** A participant that goes offline or away with entries still waiting leaves its lists in a record of their
//!   own with its last epoch; whoever moves the epoch past it gives them back.
//!
//! Nothing here blocks: a participant that neither quiesces nor goes offline only keeps memory from
//! coming back.

use crate::sync::{AtomicI64, AtomicU64, Ordering::*, Padded, RECORDS_PER_CHUNK, fence};
use std::sync::{Arc, OnceLock};

/// A participant's record: one writer, read by whoever tries to move the epoch.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Record {
    /// One of the values below; for `ONLINE` and `ABANDONED` the epoch is above the two low bits.
    state: AtomicU64,
    /// Connections inserted minus removed, by all owners this record had. Only the owner writes.
    net: AtomicI64,
    /// Per shard, the lists of entries removed in the last three epochs.
    limbo: Box<[[AtomicU64; 3]]>,
}

/// Nobody's.
const FREE: u64 = 0;
/// Somebody's who holds no reference: an offline participant, or lists being moved.
const TAKEN: u64 = 1;
/// A participant that may hold references.
const ONLINE: u64 = 2;
/// Lists without an owner.
const ABANDONED: u64 = 3;
const STATE: u64 = 3;

/// A list of entries of one shard in one word: first index low, last index high, 0 when empty. Only the
/// owner of the record touches it, so everything is relaxed; the record's state carries it over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct List {
    pub(crate) first: u32,
    pub(crate) last: u32,
}

impl List {
    fn from_word(word: u64) -> Option<List> {
        let list = List {
            first: (word & 0xffff_ffff) as u32,
            last: (word >> 32) as u32,
        };
        (list.first != 0).then_some(list)
    }

    fn to_word(self) -> u64 {
        u64::from(self.last) << 32 | u64::from(self.first)
    }
}

/// Which of the three lists belongs to `epoch`.
pub(crate) fn generation_of(epoch: u64) -> usize {
    (epoch % 3) as usize
}

impl Record {
    fn new(shards: usize) -> Record {
        Record {
            state: AtomicU64::new(FREE),
            net: AtomicI64::new(0),
            limbo: (0..shards)
                .map(|_| std::array::from_fn(|_| AtomicU64::new(0)))
                .collect(),
        }
    }

    /// Adds to the connections counted here. Not a read-modify-write: only the owner writes.
    pub(crate) fn count(&self, by: i64) {
        self.net
            .store(self.net.load(Relaxed).wrapping_add(by), Relaxed);
    }

    /// Puts `index` on a list whose epoch is `epoch`; `link` is told what comes after it.
    pub(crate) fn push(&self, shard: usize, epoch: u64, index: u32, link: impl FnOnce(u32)) {
        let word = &self.limbo[shard][generation_of(epoch)];
        let list = List::from_word(word.load(Relaxed));
        link(list.map_or(0, |l| l.first));
        let last = list.map_or(index, |l| l.last);
        word.store(List { first: index, last }.to_word(), Relaxed);
    }

    /// Empties the lists of one generation into `free`.
    pub(crate) fn drain(&self, generation: usize, mut free: impl FnMut(usize, List)) {
        for (shard, lists) in self.limbo.iter().enumerate() {
            if let Some(list) = List::from_word(lists[generation].load(Relaxed)) {
                lists[generation].store(0, Relaxed);
                free(shard, list);
            }
        }
    }

    fn move_lists_to(&self, other: &Record) {
        for (from, to) in self
            .limbo
            .iter()
            .flatten()
            .zip(other.limbo.iter().flatten())
        {
            to.store(from.load(Relaxed), Relaxed);
            from.store(0, Relaxed);
        }
    }

    /// Says that the owner holds no reference from before now. Release: what it read with those
    /// references happened before; so did its removals (E2).
    pub(crate) fn announce(&self, epoch: u64) {
        self.state.store(epoch << 2 | ONLINE, Release);
    }

    /// Says that the owner holds no reference at all.
    pub(crate) fn leave(&self) {
        self.state.store(TAKEN, Release);
    }

    /// Ends the ownership of a record without lists.
    pub(crate) fn release(&self) {
        self.state.store(FREE, Release);
    }

    fn take_if(&self, state: u64) -> bool {
        self.state
            .compare_exchange(state, TAKEN, Acquire, Relaxed)
            .is_ok()
    }
}

/// The table's epoch and its participants.
#[derive(Debug)]
pub(crate) struct Domain {
    epoch: Padded<AtomicU64>,
    records: Chunk,
    shards: usize,
}

/// Records are added and never taken away, so walking them needs no protection.
#[derive(Debug)]
struct Chunk {
    records: [Arc<Record>; RECORDS_PER_CHUNK],
    next: OnceLock<Box<Chunk>>,
}

impl Chunk {
    fn new(shards: usize) -> Chunk {
        Chunk {
            records: std::array::from_fn(|_| Arc::new(Record::new(shards))),
            next: OnceLock::new(),
        }
    }
}

impl Domain {
    pub(crate) fn new(shards: usize) -> Domain {
        Domain {
            epoch: Padded(AtomicU64::new(0)),
            records: Chunk::new(shards),
            shards,
        }
    }

    /// Acquire: what happened before the epoch moved here happened before what follows.
    #[inline]
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.0.load(Acquire)
    }

    /// A record for the caller alone, with empty lists.
    pub(crate) fn claim(&self) -> Arc<Record> {
        let mut chunk = &self.records;
        loop {
            if let Some(record) = chunk.records.iter().find(|r| r.take_if(FREE)) {
                return Arc::clone(record);
            }
            chunk = chunk.next.get_or_init(|| Box::new(Chunk::new(self.shards)));
        }
    }

    fn records(&self) -> impl Iterator<Item = &Record> {
        std::iter::successors(Some(&self.records), |chunk| {
            chunk.next.get().map(|next| &**next)
        })
        .flat_map(|chunk| chunk.records.iter().map(|r| &**r))
    }

    /// Connections in the table, as far as the participants' counts agree with one another.
    pub(crate) fn net(&self) -> usize {
        let net = self
            .records()
            .fold(0i64, |sum, r| sum.wrapping_add(r.net.load(Relaxed)));
        usize::try_from(net).unwrap_or(0)
    }

    /// Puts `record` online and returns the epoch it announced (E3).
    pub(crate) fn come_online(&self, record: &Record) -> u64 {
        let mut epoch = self.epoch();
        loop {
            record.announce(epoch);
            fence(SeqCst);
            let now = self.epoch();
            if now == epoch {
                return epoch;
            }
            epoch = now;
        }
    }

    /// Moves the epoch on from `epoch`, if every online participant has announced it (E1), and gives back
    /// abandoned lists that have come of age (E4). Returns whether the epoch is past `epoch`.
    pub(crate) fn try_advance(&self, epoch: u64, mut free: impl FnMut(usize, List)) -> bool {
        // E3: whoever comes online after this sees what happened before it.
        fence(SeqCst);
        for record in self.records() {
            let state = record.state.load(Acquire);
            match state & STATE {
                ONLINE if state >> 2 != epoch => return false,
                ABANDONED if epoch >= (state >> 2) + 3 && record.take_if(state) => {
                    for generation in 0..3 {
                        record.drain(generation, &mut free);
                    }
                    record.release();
                }
                _ => {}
            }
        }
        match self
            .epoch
            .0
            .compare_exchange(epoch, epoch + 1, AcqRel, Relaxed)
        {
            Ok(_) => true,
            Err(now) => now > epoch,
        }
    }

    /// Leaves the lists of `record`, whose owner's last epoch was `epoch`, to whoever comes (E4).
    pub(crate) fn abandon_lists(&self, record: &Record, epoch: u64) {
        let heir = self.claim();
        record.move_lists_to(&heir);
        heir.state.store(epoch << 2 | ABANDONED, Release);
    }
}
