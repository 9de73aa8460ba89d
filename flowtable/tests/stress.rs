//! Several threads on one table, through the public API: exactly one winner of every race, nothing lost,
//! nothing under another's key. Sized down for miri.
#![cfg(not(loom))]
#![expect(
    clippy::cast_possible_truncation,
    reason = "small numbers of the tests' own"
)]

use flowtable::{Addr, Config, Endpoint, FlowKey, New, Participant, Side, Table};
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Barrier};
use std::thread;

const THREADS: usize = 4;
const ROUNDS: u32 = if cfg!(miri) { 2 } else { 2000 };
const KEYS: u32 = if cfg!(miri) { 8 } else { 64 };

fn key(n: u32) -> FlowKey {
    let a = Endpoint {
        addr: Addr::from_v4_bytes(n.to_be_bytes()),
        port: 1,
        attachment: 1,
    };
    let b = Endpoint {
        addr: Addr::from_v4_bytes([10, 9, 8, 7]),
        port: 2,
        attachment: 2,
    };
    FlowKey::new(3, 6, &a, &b).0
}

/// A connection whose every word says whose it is.
fn new(n: u32, by: u64) -> New {
    let word = u64::from(n) << 32 | by;
    New {
        initiator: Side::High,
        word,
        tick: n,
        user: [word; 3],
        far: Some([word; 5]),
    }
}

fn check(conn: flowtable::ConnRef<'_>, n: u32) {
    assert_eq!(conn.key(), key(n));
    let word = conn.word();
    assert_eq!(word >> 32, u64::from(n), "a connection under another's key");
    assert_eq!(conn.last_seen(), n);
    for i in 0..flowtable::USER_WORDS {
        assert_eq!(conn.user(i).load(Relaxed), word, "words of two connections");
    }
}

fn table(capacity: usize, shards: usize) -> Arc<Table> {
    let config = Config {
        capacity,
        shards: Some(shards),
        seed: Some([4, 3, 2, 1]),
        ..Config::default()
    };
    Arc::new(Table::new(config).expect("a table"))
}

fn on_all(table: &Arc<Table>, work: impl Fn(usize, Participant) + Sync) {
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (work, p) = (&work, table.participant());
            scope.spawn(move || work(thread, p));
        }
    });
}

#[test]
fn exactly_one_inserts_and_exactly_one_removes() {
    // Room for the connections of several rounds: a removed one's memory comes back rounds later.
    let table = table(16 * KEYS as usize, 2);
    let barrier = Barrier::new(THREADS);
    let inserted: Vec<_> = (0..KEYS * ROUNDS).map(|_| AtomicUsize::new(0)).collect();
    let removed: Vec<_> = (0..KEYS * ROUNDS).map(|_| AtomicUsize::new(0)).collect();
    on_all(&table, |thread, mut p| {
        for round in 0..ROUNDS {
            let at = |n: u32| (round * KEYS + n) as usize;
            barrier.wait();
            for i in 0..KEYS {
                // Threads start at different keys and meet in the middle.
                let n = (i + thread as u32 * KEYS / 8) % KEYS;
                let result = p
                    .insert_or_get(&key(n), new(n, thread as u64))
                    .expect("room");
                check(result.conn, n);
                inserted[at(n)].fetch_add(usize::from(!result.existed), Relaxed);
            }
            barrier.wait();
            for n in 0..KEYS {
                if let Some(conn) = p.lookup(&key(n)) {
                    check(conn, n);
                    removed[at(n)].fetch_add(usize::from(p.remove(conn)), Relaxed);
                    check(conn, n);
                }
            }
            p.quiesce();
        }
    });
    assert!(inserted.iter().all(|i| i.load(Relaxed) == 1));
    assert!(removed.iter().all(|i| i.load(Relaxed) == 1));
    assert_eq!(table.len(), 0);
    all_memory_is_back(&table);
}

/// Fills the table to its last entry: none was lost, and none is there twice.
fn all_memory_is_back(table: &Arc<Table>) {
    let mut p = table.participant();
    // An insertion into a full shard is what makes the next quiesce look for what others left.
    for attempt in 0..2 {
        let mut ids: Vec<u64> = Vec::new();
        for n in 0..20 * table.capacity() as u32 {
            if let Ok(inserted) = p.insert_or_get(&key(n), new(n, 0)) {
                ids.push(inserted.conn.id());
            }
        }
        let full = ids.len() == table.capacity();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), table.len(), "an entry in two places");
        if full {
            return;
        }
        assert_eq!(
            attempt,
            0,
            "{} of {} entries lost",
            table.capacity() - ids.len(),
            table.capacity()
        );
        p.sweep(table.buckets(), |_| true);
        p.quiesce();
    }
}

#[test]
fn churn_on_a_full_table_with_everything_at_once() {
    const CAPACITY: usize = if cfg!(miri) { 8 } else { 32 };
    let table = table(CAPACITY, 1);
    let stay = key(u32::MAX);
    let owner = table.participant();
    owner.insert_or_get(&stay, new(u32::MAX, 0)).expect("room");
    drop(owner);
    on_all(&table, |thread, mut p| {
        let mut random = 1 + thread as u64;
        let mut hits = [None; 16];
        for step in 0..ROUNDS * 40 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let n = (random >> 8) as u32 % KEYS;
            match random % 16 {
                0..6 => {
                    if let Ok(inserted) = p.insert_or_get(&key(n), new(n, u64::from(step))) {
                        check(inserted.conn, n);
                    }
                }
                6..9 => {
                    if let Some(conn) = p.lookup(&key(n)) {
                        check(conn, n);
                        p.remove(conn);
                        check(conn, n);
                    }
                }
                9..12 => {
                    let keys: [_; 16] = std::array::from_fn(|i| key((n + i as u32) % KEYS));
                    p.lookup_burst(&keys, &mut hits);
                    for (i, hit) in (0..).zip(hits.iter()) {
                        if let Some(conn) = hit {
                            check(*conn, (n + i) % KEYS);
                        }
                    }
                    hits = [None; 16];
                }
                12 => {
                    p.sweep(2, |conn| conn.key() != stay && conn.word() % 4 == 0);
                }
                13 => {
                    let mut seen = 0;
                    p.for_each(|conn| {
                        check(conn, conn.last_seen());
                        seen += usize::from(conn.key() == stay);
                    });
                    assert_eq!(seen, 1, "a connection that was there throughout");
                }
                14 => p.offline(),
                _ => {}
            }
            if step % 4 == 0 {
                hits = [None; 16];
                p.quiesce();
            }
            assert!(table.len() <= CAPACITY + THREADS, "grossly over capacity");
        }
    });
    let mut p = table.participant();
    assert!(p.lookup(&stay).is_some());
    p.sweep(table.buckets(), |_| true);
    p.quiesce();
    assert_eq!(table.len(), 0);
    all_memory_is_back(&table);
}

#[test]
fn sweeping_threads_share_a_round() {
    let capacity = if cfg!(miri) { 64 } else { 4096 };
    let table = table(capacity, 1);
    let p = table.participant();
    let mut there = 0;
    for n in 0..capacity as u32 {
        there += usize::from(p.insert_or_get(&key(n), new(n, 0)).is_ok());
    }
    assert!(
        there >= capacity - capacity / 500,
        "{there} of {capacity}: buckets fill too early"
    );
    drop(p);
    let budget = 4;
    let turns = AtomicUsize::new(table.buckets() / budget);
    assert_eq!(
        table.buckets() % budget,
        0,
        "a whole number of turns makes a round"
    );
    let visits: Vec<_> = (0..capacity).map(|_| AtomicUsize::new(0)).collect();
    let removed = AtomicUsize::new(0);
    on_all(&table, |_, p| {
        while turns
            .fetch_update(Relaxed, Relaxed, |t| t.checked_sub(1))
            .is_ok()
        {
            let n = p.sweep(budget, |conn| {
                visits[conn.last_seen() as usize].fetch_add(1, Relaxed);
                true
            });
            removed.fetch_add(n, Relaxed);
        }
    });
    assert_eq!(
        visits.iter().filter(|v| v.load(Relaxed) == 1).count(),
        there
    );
    assert_eq!(removed.load(Relaxed), there);
    assert_eq!(table.len(), 0);
}

/// What the crate's *Limits* promise of a table with several shards, and of the hash that spreads the keys.
#[test]
fn shards_and_buckets_fill_evenly() {
    let (capacity, shards, percent) = if cfg!(miri) {
        (128, 2, 60)
    } else {
        (1 << 18, 4, 98)
    };
    let table = table(capacity, shards);
    let p = table.participant();
    let mut bucket_full = 0;
    for n in 0.. {
        match p.insert_or_get(&key(n), new(n, 0)) {
            Ok(_) => {}
            Err(flowtable::InsertError::BucketFull) => bucket_full += 1,
            Err(flowtable::InsertError::TableFull) => break,
        }
    }
    assert!(
        table.len() * 100 >= capacity * percent,
        "{} of {capacity}",
        table.len()
    );
    // Poisson: about 1 in 150,000 on average while filling.
    assert!(bucket_full <= 12, "{bucket_full} full buckets");
}
