//! The table against a `HashMap`, on small tables of few buckets so that full tables, full buckets and equal
//! tags happen.

use crate::bucket::SLOTS;
use crate::sync::Ordering::Relaxed;
use crate::{Addr, Config, Endpoint, FlowKey, InsertError, New, Participant, Side, Table};
use proptest::prelude::*;
use std::collections::HashMap;
use std::sync::Arc;

/// A tuple that collides a lot: two addresses, two ports, and attachments that alone make it another.
#[derive(Clone, Copy, Debug)]
struct Tuple {
    from: u8,
    to: u8,
    port: u16,
    attachment: u32,
    zone: u16,
}

impl Tuple {
    fn key(self) -> (FlowKey, Side) {
        let end = |last, port| Endpoint {
            addr: Addr::from_v4_bytes([10, 0, 0, last]),
            port,
            attachment: self.attachment,
        };
        FlowKey::new(self.zone, 6, &end(self.from, self.port), &end(self.to, 9))
    }

    fn reversed(self) -> (FlowKey, Side) {
        let end = |last, port| Endpoint {
            addr: Addr::from_v4_bytes([10, 0, 0, last]),
            port,
            attachment: self.attachment,
        };
        FlowKey::new(self.zone, 6, &end(self.to, 9), &end(self.from, self.port))
    }
}

#[derive(Clone, Debug)]
enum Step {
    Insert(Tuple),
    Lookup(Tuple),
    Remove(Tuple),
    Burst(Vec<Tuple>),
    Advance(Tuple, u64),
    Touch(Tuple, u32),
    SweepRound { chunk: usize, remove_odd: bool },
    Quiesce,
    Offline,
}

fn tuple() -> impl Strategy<Value = Tuple> {
    (0..6u8, 0..6u8, 0..3u16, 0..2u32, 0..2u16).prop_map(|(from, to, port, attachment, zone)| {
        Tuple {
            from,
            to,
            port,
            attachment,
            zone,
        }
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => tuple().prop_map(Step::Insert),
        4 => tuple().prop_map(Step::Lookup),
        3 => tuple().prop_map(Step::Remove),
        2 => prop::collection::vec(tuple(), 0..40).prop_map(Step::Burst),
        2 => (tuple(), 0..1u64 << 19).prop_map(|(t, w)| Step::Advance(t, w)),
        1 => (tuple(), 0..3u32).prop_map(|(t, n)| Step::Touch(t, n)),
        1 => (1..5usize, any::<bool>())
            .prop_map(|(chunk, remove_odd)| Step::SweepRound { chunk, remove_odd }),
        3 => Just(Step::Quiesce),
        1 => Just(Step::Offline),
    ]
}

#[derive(Clone, Copy, PartialEq, Debug)]
struct Conn {
    initiator: Side,
    word: u64,
    tick: u32,
    value: u64,
}

struct Model {
    table: Arc<Table>,
    conns: HashMap<FlowKey, Conn>,
    /// Entries removed and not given back: since the last quiesce.
    held: usize,
    next: u64,
}

impl Model {
    fn in_bucket(&self, key: &FlowKey) -> usize {
        let bucket = |key: &FlowKey| self.table.place(key).bucket();
        self.conns
            .keys()
            .filter(|k| bucket(k) == bucket(key))
            .count()
    }

    fn check_lookup(&self, p: &Participant, t: Tuple) {
        let expected = self.conns.get(&t.key().0);
        for key in [t.key().0, t.reversed().0] {
            let found = p.lookup(&key).map(|c| {
                assert_eq!(c.key(), key);
                assert!(c.is_live());
                assert!((1..8).all(|i| c.user(i).load(Relaxed) == c.user(0).load(Relaxed)));
                Conn {
                    initiator: c.initiator(),
                    word: c.word(),
                    tick: c.last_seen(),
                    value: c.user(0).load(Relaxed),
                }
            });
            assert_eq!(found.as_ref(), expected, "{key:?}");
        }
    }

    fn step(&mut self, p: &mut Participant, step: Step) {
        match step {
            Step::Insert(t) => {
                let (key, initiator) = t.key();
                self.next += 1;
                let value = self.next;
                let new = New {
                    initiator,
                    word: value,
                    tick: 0,
                    user: [value; 3],
                    far: Some([value; 5]),
                };
                let in_bucket = self.in_bucket(&key);
                let full = self.conns.len() + self.held >= self.table.capacity();
                match p.insert_or_get(&key, new) {
                    Ok(inserted) if inserted.existed => {
                        let old = self.conns[&key];
                        assert_eq!(inserted.conn.user(0).load(Relaxed), old.value);
                    }
                    Ok(inserted) => {
                        assert_eq!(inserted.conn.key(), key);
                        assert!(!full, "more than the capacity");
                        let conn = Conn {
                            initiator,
                            word: value,
                            tick: 0,
                            value,
                        };
                        assert!(self.conns.insert(key, conn).is_none(), "a duplicate");
                    }
                    Err(e) => {
                        assert!(!self.conns.contains_key(&key), "refused what it has");
                        match e {
                            InsertError::TableFull => assert!(full),
                            InsertError::BucketFull => assert_eq!(in_bucket, SLOTS),
                        }
                    }
                }
            }
            Step::Lookup(t) => self.check_lookup(p, t),
            Step::Remove(t) => {
                let key = t.key().0;
                let found = p.lookup(&key);
                assert_eq!(found.is_some(), self.conns.remove(&key).is_some());
                if let Some(conn) = found {
                    assert!(p.remove(conn));
                    assert!(!p.remove(conn));
                    assert!(!conn.is_live());
                    self.held += 1;
                }
            }
            Step::Burst(tuples) => {
                let keys: Vec<_> = tuples.iter().map(|t| t.key().0).collect();
                let mut hits = vec![None; keys.len()];
                p.lookup_burst(&keys, &mut hits);
                for (key, hit) in keys.iter().zip(hits) {
                    let value = hit.map(|c| c.user(7).load(Relaxed));
                    assert_eq!(value, self.conns.get(key).map(|c| c.value));
                }
            }
            Step::Advance(t, to) => {
                let key = t.key().0;
                if let Some(conn) = p.lookup(&key) {
                    let model = self.conns.get_mut(&key).expect("in the model");
                    assert_eq!(conn.advance_word(model.word ^ 1, u64::MAX), Err(model.word));
                    if to >> 16 >= model.word >> 16 {
                        assert_eq!(conn.advance_word(model.word, to), Ok(()));
                        model.word = to;
                    } else {
                        assert_eq!(conn.advance_word(model.word, to), Err(model.word));
                    }
                }
            }
            Step::Touch(t, tick) => {
                let key = t.key().0;
                if let Some(conn) = p.lookup(&key) {
                    conn.touch(tick);
                    self.conns.get_mut(&key).expect("in the model").tick = tick;
                }
            }
            Step::SweepRound { chunk, remove_odd } => {
                let before = self.conns.len();
                let mut seen = Vec::new();
                let (mut removed, mut done) = (0, 0);
                while done < self.table.buckets() {
                    let budget = chunk.min(self.table.buckets() - done);
                    done += budget;
                    removed += p.sweep(budget, |c| {
                        seen.push(c.key());
                        remove_odd && c.user(0).load(Relaxed) % 2 == 1
                    });
                }
                seen.sort_unstable_by_key(|k| *k.words());
                let mut expected: Vec<_> = self.conns.keys().copied().collect();
                expected.sort_unstable_by_key(|k| *k.words());
                assert_eq!(seen, expected, "every connection once a round");
                if remove_odd {
                    self.conns.retain(|_, c| c.value % 2 == 0);
                }
                assert_eq!(removed, before - self.conns.len());
                self.held += removed;
            }
            Step::Quiesce => {
                p.quiesce();
                self.held = 0;
            }
            Step::Offline => {
                p.offline();
                self.held = 0;
            }
        }
        assert_eq!(self.table.len(), self.conns.len());
    }
}

fn run(capacity: usize, shards: usize, buckets: usize, seed: u64, steps: Vec<Step>) {
    let config = Config {
        capacity,
        seed: Some([seed, 2, 3, 4]),
        ..Config::default()
    };
    let table = Arc::new(Table::with_geometry(&config, shards, buckets).expect("a table"));
    let mut p = table.participant();
    let mut model = Model {
        table,
        conns: HashMap::new(),
        held: 0,
        next: 0,
    };
    for step in steps {
        model.step(&mut p, step);
    }
    let mut listed = 0;
    p.for_each(|c| {
        listed += 1;
        assert_eq!(model.conns[&c.key()].value, c.user(0).load(Relaxed));
    });
    assert_eq!(listed, model.conns.len());
}

/// Miri takes a second for what takes a millisecond here.
const CASES: u32 = if cfg!(miri) { 2 } else { 256 };
const STEPS: usize = if cfg!(miri) { 60 } else { 300 };

proptest! {
    #![proptest_config(ProptestConfig {
        cases: CASES,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// A table that fills before its buckets do.
    #[test]
    fn model_full_table(seed: u64, steps in prop::collection::vec(step(), 1..STEPS)) {
        run(12, 1, 4, seed, steps);
    }

    /// One bucket, which fills before the table does.
    #[test]
    fn model_full_bucket(seed: u64, steps in prop::collection::vec(step(), 1..STEPS)) {
        run(40, 1, 1, seed, steps);
    }

    /// Several shards: each bucket's entries are its own shard's.
    #[test]
    fn model_shards(seed: u64, steps in prop::collection::vec(step(), 1..STEPS)) {
        run(900, 3, 3, seed, steps);
    }
}

#[test]
fn other_attachments_are_another_connection() {
    let table = Arc::new(
        Table::new(Config {
            capacity: 16,
            ..Config::default()
        })
        .expect("a table"),
    );
    let p = table.participant();
    let end = |last, attachment| Endpoint {
        addr: Addr::from_v4_bytes([10, 0, 0, last]),
        port: 5,
        attachment,
    };
    let new = |word| New {
        initiator: Side::Low,
        word,
        tick: 0,
        user: [0; 3],
        far: Some([0; 5]),
    };
    for (n, (a, b)) in (0..).zip([(1, 2), (1, 3), (2, 1), (3, 2)]) {
        let key = FlowKey::new(0, 17, &end(1, a), &end(2, b)).0;
        assert!(!p.insert_or_get(&key, new(n)).expect("room").existed);
        assert_eq!(p.lookup(&key).map(|c| c.word()), Some(n));
    }
}

/// Keys whose tags and buckets agree are told apart by comparing them whole, singly and in a burst.
#[test]
fn equal_tags_are_told_apart() {
    let config = Config {
        capacity: 64,
        seed: Some([9; 4]),
        ..Config::default()
    };
    let table = Arc::new(Table::with_geometry(&config, 1, 1).expect("a table"));
    let keys = (0..u32::MAX).map(|n| {
        let end = |n: u32| Endpoint {
            addr: Addr::from_v4_bytes(n.to_be_bytes()),
            port: 1,
            attachment: 1,
        };
        FlowKey::new(0, 6, &end(n), &end(u32::MAX)).0
    });
    let tag = table.place(&keys.clone().next().expect("a key")).tag;
    let same: Vec<_> = keys.filter(|k| table.place(k).tag == tag).take(4).collect();
    let p = table.participant();
    for (n, key) in (0..).zip(&same[..3]) {
        let new = New {
            initiator: Side::Low,
            word: n,
            tick: 0,
            user: [0; 3],
            far: Some([0; 5]),
        };
        assert!(!p.insert_or_get(key, new).expect("room").existed);
    }
    let mut hits = [None; 4];
    p.lookup_burst(&same, &mut hits);
    let words: Vec<_> = hits.iter().map(|h| h.map(|c| c.word())).collect();
    assert_eq!(words, [Some(0), Some(1), Some(2), None]);
}
