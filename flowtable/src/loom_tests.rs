//! What loom checks: every interleaving (to `LOOM_MAX_PREEMPTIONS`) of two or three threads on one bucket.
//!
//! Covered: insertion against insertion of the same key and of another in the same bucket, against
//! removal; removal against removal; lookup against removal followed by reuse of the memory, with the reader
//! coming online at any moment; lists left behind by a participant that goes away; the verdict word.
//!
//! **Not covered**: more than three threads; buckets of more than two slots, lanes of free entries, tags that collide,
//! more than one shard or chunk of records (other code paths of the same steps; the stress tests run them);
//! sweeping (a snapshot, then the removal covered here); weak compare-exchange failing for no reason,
//! which loom does not do and miri does; and orders weaker than loom's model knows (it
//! strengthens `SeqCst` accesses, so the code uses `SeqCst` fences only, and a load never sees a later
//! store, so the release of an announcement is argued (E2), not checked).

use crate::{Addr, Config, Endpoint, FlowKey, InsertError, New, Participant, Side, Table};
use loom::sync::atomic::Ordering::Relaxed;
use loom::thread;
use std::sync::Arc;

/// One shard with one bucket of two slots.
fn table(capacity: usize) -> Arc<Table> {
    let config = Config {
        capacity,
        seed: Some([1, 2, 3, 4]),
        ..Config::default()
    };
    Arc::new(Table::with_geometry(&config, 1, 1).expect("a table"))
}

fn key(n: u8) -> FlowKey {
    let end = |last| Endpoint {
        addr: Addr::from_v4_bytes([10, 0, 0, last]),
        port: 1,
        attachment: 1,
    };
    FlowKey::new(0, 6, &end(n), &end(255)).0
}

fn new(n: u64) -> New {
    New {
        initiator: Side::Low,
        word: n,
        tick: 0,
        user: [n; 3],
        far: Some([n; 5]),
    }
}

fn insert(p: &Participant, n: u8, value: u64) -> Result<bool, InsertError> {
    p.insert_or_get(&key(n), new(value)).map(|i| !i.existed)
}

fn value(p: &Participant, n: u8) -> Option<u64> {
    p.lookup(&key(n)).map(|conn| {
        assert_eq!(conn.key(), key(n));
        let value = conn.user(0).load(Relaxed);
        assert_eq!(conn.word(), value, "words of two connections");
        value
    })
}

#[test]
fn loom_two_inserters_of_one_key() {
    loom::model(|| {
        let table = table(2);
        let other = Arc::clone(&table);
        let race = |table: Arc<Table>, value: u64| {
            let p = table.participant();
            let inserted = p.insert_or_get(&key(1), new(value)).expect("room for both");
            (inserted.existed, inserted.conn.word(), inserted.conn.id())
        };
        let thread = thread::spawn(move || race(other, 1));
        let a = race(Arc::clone(&table), 2);
        let b = thread.join().expect("no panic");
        assert!(a.0 != b.0, "exactly one inserts");
        assert_eq!((a.1, a.2), (b.1, b.2), "both have the same connection");
        assert_eq!(a.1, if a.0 { 1 } else { 2 }, "the winner's");
        assert_eq!(table.len(), 1);
        // The loser's entry and slot are free again.
        assert_eq!(insert(&table.participant(), 2, 0), Ok(true));
    });
}

#[test]
fn loom_two_inserters_of_two_keys() {
    loom::model(|| {
        let table = table(2);
        let other = Arc::clone(&table);
        let thread = thread::spawn(move || insert(&other.participant(), 1, 1));
        assert_eq!(insert(&table.participant(), 2, 2), Ok(true));
        assert_eq!(thread.join().expect("no panic"), Ok(true));
        let p = table.participant();
        assert_eq!((value(&p, 1), value(&p, 2)), (Some(1), Some(2)));
    });
}

#[test]
fn loom_insert_against_remove() {
    loom::model(|| {
        let table = table(2);
        let other = Arc::clone(&table);
        let p = table.participant();
        assert_eq!(insert(&p, 1, 1), Ok(true));
        let thread = thread::spawn(move || {
            let p = other.participant();
            p.lookup(&key(1)).is_some_and(|conn| p.remove(conn))
        });
        let inserted = insert(&p, 1, 2).expect("room");
        let removed = thread.join().expect("no panic");
        let left = value(&p, 1);
        match (inserted, removed) {
            // The old one was still there; then it went.
            (false, true) => assert_eq!(left, None),
            (true, true) => assert_eq!(left, Some(2)),
            (_, false) => panic!("the first connection was there to be removed"),
        }
        assert_eq!(table.len(), usize::from(left.is_some()));
    });
}

#[test]
fn loom_two_removers() {
    loom::model(|| {
        let table = table(1);
        let other = Arc::clone(&table);
        let p = table.participant();
        assert_eq!(insert(&p, 1, 1), Ok(true));
        let conn = p.lookup(&key(1)).expect("in the table");
        let thread = thread::spawn(move || {
            let p = other.participant();
            p.lookup(&key(1)).is_some_and(|conn| p.remove(conn))
        });
        let here = p.remove(conn);
        assert!(
            here != thread.join().expect("no panic"),
            "exactly one removes"
        );
        assert!(!conn.is_live());
        assert_eq!(table.len(), 0);
    });
}

/// A slot changes hands under a reader that has an old control word: what it has seen inserted stays.
#[test]
fn loom_lookup_against_remove_and_insert_in_one_slot() {
    loom::model(|| {
        let table = table(2);
        let other = Arc::clone(&table);
        let p = table.participant();
        assert_eq!(insert(&p, 1, 1), Ok(true));
        let thread = thread::spawn(move || {
            let p = other.participant();
            let first = value(&p, 2);
            let second = value(&p, 2);
            assert!(
                first.is_none() || second.is_some(),
                "seen before it was inserted"
            );
            if first.is_some() {
                assert_eq!(value(&p, 1), None, "the older one was removed before");
            }
        });
        let conn = p.lookup(&key(1)).expect("in the table");
        assert!(p.remove(conn));
        assert_eq!(insert(&p, 2, 2), Ok(true));
        thread.join().expect("no panic");
    });
}

/// The only entry is removed and used again for another key while a reader comes online and looks.
#[test]
fn loom_lookup_against_remove_and_reuse() {
    loom::model(|| {
        let table = table(1);
        let other = Arc::clone(&table);
        let mut p = table.participant();
        assert_eq!(insert(&p, 1, 1), Ok(true));
        let thread = thread::spawn(move || {
            let p = other.participant();
            let first = value(&p, 1);
            assert!(first.is_none_or(|v| v == 1), "memory reused under a reader");
        });
        let conn = p.lookup(&key(1)).expect("in the table");
        assert!(p.remove(conn));
        p.quiesce();
        let reused = insert(&p, 2, 2);
        thread.join().expect("no panic");
        match reused {
            Ok(inserted) => assert!(inserted),
            // The reader was online; it is gone now.
            Err(e) => {
                assert_eq!(e, InsertError::TableFull);
                p.quiesce();
                assert_eq!(insert(&p, 2, 2), Ok(true));
            }
        }
        assert_eq!((value(&p, 1), value(&p, 2)), (None, Some(2)));
    });
}

/// A reader that is online from before, holds a connection across the removal, and quiesces.
#[test]
fn loom_reference_held_across_removal() {
    loom::model(|| {
        let table = table(1);
        let other = Arc::clone(&table);
        let mut p = table.participant();
        assert_eq!(insert(&p, 1, 1), Ok(true));
        let thread = thread::spawn(move || {
            let mut p = other.participant();
            let held = p
                .lookup(&key(1))
                .map(|conn| (conn.user(0).load(Relaxed), conn.key(), conn.word()));
            assert!(held.is_none_or(|held| held == (1, key(1), 1)));
            p.quiesce();
            // After its own quiet moment it may see the old, the new, or neither; never a mixture.
            value(&p, 2).inspect(|v| assert_eq!(*v, 2));
        });
        if let Some(conn) = p.lookup(&key(1)) {
            assert!(p.remove(conn));
        }
        p.quiesce();
        let _ = insert(&p, 2, 2);
        thread.join().expect("no panic");
    });
}

/// A participant removes and goes away while another is online: what it left comes back.
#[test]
fn loom_abandoned_lists_come_back() {
    loom::model(|| {
        let table = table(1);
        let other = Arc::clone(&table);
        let mut p = table.participant();
        assert_eq!(insert(&p, 1, 1), Ok(true));
        let thread = thread::spawn(move || {
            let p = other.participant();
            let conn = p.lookup(&key(1)).expect("in the table");
            assert!(p.remove(conn));
        });
        assert!(value(&p, 1).is_none_or(|v| v == 1));
        p.quiesce();
        let early = insert(&p, 2, 2);
        thread.join().expect("no panic");
        if early.is_err() {
            // Starved: looks for what others left.
            p.quiesce();
            assert_eq!(insert(&p, 2, 2), Ok(true));
        }
        assert_eq!((value(&p, 1), value(&p, 2)), (None, Some(2)));
    });
}

/// What a participant leaves behind is not taken from under a third one that still holds a connection.
#[test]
fn loom_abandoned_lists_wait_for_readers() {
    loom::model(|| {
        let table = table(1);
        let other = Arc::clone(&table);
        // The reader's record comes after those of the others: nobody meets it first by luck.
        let earlier = (table.participant(), table.participant());
        let p = table.participant();
        drop(earlier);
        assert_eq!(insert(&p, 1, 1), Ok(true));
        let conn = p.lookup(&key(1)).expect("in the table");
        let thread = thread::spawn(move || {
            let first = other.participant();
            assert!(first.lookup(&key(1)).is_some_and(|conn| first.remove(conn)));
            drop(first);
            let mut second = other.participant();
            assert_eq!(insert(&second, 2, 2), Err(InsertError::TableFull));
            second.quiesce();
            assert_eq!(insert(&second, 2, 2), Err(InsertError::TableFull));
        });
        assert_eq!((conn.key(), conn.word()), (key(1), 1));
        thread.join().expect("no panic");
        assert_eq!(
            (conn.key(), conn.word(), conn.is_live()),
            (key(1), 1, false)
        );
    });
}

#[test]
fn loom_two_writers_of_the_word() {
    const GENERATION: u64 = 1 << 16;
    loom::model(|| {
        let table = table(1);
        let other = Arc::clone(&table);
        let p = table.participant();
        assert_eq!(insert(&p, 1, 0), Ok(true));
        let judge = |table: &Arc<Table>, to: u64| {
            let p = table.participant();
            let conn = p.lookup(&key(1)).expect("in the table");
            let from = conn.word();
            match conn.advance_word(from, to) {
                Ok(()) => true,
                Err(now) => {
                    assert!(
                        now >> 16 > from >> 16 || from >> 16 > to >> 16,
                        "refused for a reason"
                    );
                    conn.advance_word(now, to).is_ok()
                }
            }
        };
        let thread = thread::spawn(move || judge(&other, GENERATION | 7));
        let newer = judge(&table, 2 * GENERATION | 8);
        let _older = thread.join().expect("no panic");
        assert!(newer, "the newest judgement is never refused");
        assert_eq!(
            p.lookup(&key(1)).map(|conn| conn.word()),
            Some(2 * GENERATION | 8)
        );
    });
}
