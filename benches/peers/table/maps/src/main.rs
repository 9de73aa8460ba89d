//! `dashmap`, `papaya`, `scc` and `RwLock<hashbrown::HashMap>` as contestants of `benches/peers/table/run`, which
//! says what all of them do.
//!
//! `maps dashmap|papaya|scc|hashbrown CONNECTIONS`
//!
//! Keys are 16 bytes, values eight, the hash is `ahash` (seeded, as ours is). A lock or a guard is taken once for 32
//! keys where the map allows it. `run` says where it runs, and which pages the allocator asks for.

use std::hint::black_box;
use std::process::ExitCode;
use std::sync::RwLock;
use std::time::{Duration, Instant};

use ahash::RandomState;

const BURST: usize = 32;
const BLOCK: usize = 256;
const ROUNDS: usize = 9;

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    addresses: u64,
    rest: u64,
}

fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Connection number `i`.
fn key(i: u64) -> Key {
    let x = mix((i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    Key {
        addresses: x & 0xffff_ffff_0000_0000 | 0x0a00_0001,
        rest: x << 32 | 17,
    }
}

/// Which connection comes next, of `n` from the first.
fn next(state: &mut u64, n: u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    ((u128::from(mix(*state ^ 0x2545_f491_4f6c_dd1d)) * u128::from(n)) >> 64) as u64
}

trait Map {
    fn with_capacity(capacity: usize) -> Self;
    fn insert(&self, key: Key, value: u64);
    /// Values found, added up, and how many.
    fn lookup(&self, keys: &[Key]) -> (u64, u64);
    fn clear(&self);
}

fn sum(found: impl Iterator<Item = Option<u64>>) -> (u64, u64) {
    found
        .flatten()
        .fold((0, 0), |(sum, n), value| (sum ^ value, n + 1))
}

impl Map for dashmap::DashMap<Key, u64, RandomState> {
    fn with_capacity(capacity: usize) -> Self {
        Self::with_capacity_and_hasher(capacity, RandomState::new())
    }
    fn insert(&self, key: Key, value: u64) {
        self.entry(key).or_insert(value);
    }
    fn lookup(&self, keys: &[Key]) -> (u64, u64) {
        sum(keys.iter().map(|key| self.get(key).map(|v| *v)))
    }
    fn clear(&self) {
        self.clear();
    }
}

impl Map for papaya::HashMap<Key, u64, RandomState> {
    fn with_capacity(capacity: usize) -> Self {
        Self::with_capacity_and_hasher(capacity, RandomState::new())
    }
    fn insert(&self, key: Key, value: u64) {
        let _ = self.pin().try_insert(key, value);
    }
    fn lookup(&self, keys: &[Key]) -> (u64, u64) {
        let pin = self.pin();
        sum(keys.iter().map(|key| pin.get(key).copied()))
    }
    fn clear(&self) {
        self.pin().clear();
    }
}

impl Map for scc::HashMap<Key, u64, RandomState> {
    fn with_capacity(capacity: usize) -> Self {
        Self::with_capacity_and_hasher(capacity, RandomState::new())
    }
    fn insert(&self, key: Key, value: u64) {
        let _ = self.insert_sync(key, value);
    }
    fn lookup(&self, keys: &[Key]) -> (u64, u64) {
        sum(keys.iter().map(|key| self.read_sync(key, |_, v| *v)))
    }
    fn clear(&self) {
        self.clear_sync();
    }
}

impl Map for RwLock<hashbrown::HashMap<Key, u64, RandomState>> {
    fn with_capacity(capacity: usize) -> Self {
        RwLock::new(hashbrown::HashMap::with_capacity_and_hasher(
            capacity,
            RandomState::new(),
        ))
    }
    fn insert(&self, key: Key, value: u64) {
        self.write()
            .expect("nobody panicked")
            .entry(key)
            .or_insert(value);
    }
    fn lookup(&self, keys: &[Key]) -> (u64, u64) {
        let map = self.read().expect("nobody panicked");
        sum(keys.iter().map(|key| map.get(key).copied()))
    }
    fn clear(&self) {
        self.write().expect("nobody panicked").clear();
    }
}

/// Nanoseconds a key of looking up `n` connections from number `first`, of which all or none are there.
fn lookups<M: Map>(
    map: &M,
    first: u64,
    n: u64,
    per_round: usize,
    there: bool,
    burst: usize,
) -> f64 {
    let (mut state, mut hits) = (1, 0);
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let mut spent = Duration::ZERO;
            for _ in 0..per_round / BLOCK {
                let keys: [Key; BLOCK] = std::array::from_fn(|_| key(first + next(&mut state, n)));
                let start = Instant::now();
                for keys in keys.chunks(burst) {
                    let (sum, found) = map.lookup(keys);
                    black_box(sum);
                    hits += found;
                }
                spent += start.elapsed();
            }
            spent.as_nanos() as f64 / per_round as f64
        })
        .collect();
    assert_eq!(
        hits,
        if there {
            (ROUNDS * per_round) as u64
        } else {
            0
        },
        "a lookup was wrong"
    );
    rounds.sort_by(f64::total_cmp);
    rounds[ROUNDS / 2]
}

/// Nanoseconds of inserting the first `n` connections, having looked for them first if so asked.
fn inserts<M: Map>(map: &M, n: u64, look_first: bool) -> f64 {
    let mut spent = Duration::ZERO;
    for first in (0..n).step_by(BLOCK) {
        let keys: Vec<Key> = (first..n.min(first + BLOCK as u64)).map(key).collect();
        let start = Instant::now();
        for keys in keys.chunks(BURST) {
            if look_first {
                assert_eq!(map.lookup(keys).1, 0, "a lookup was wrong");
            }
            for key in keys {
                map.insert(*key, first);
            }
        }
        spent += start.elapsed();
    }
    spent.as_nanos() as f64 / n as f64
}

fn measure<M: Map>(name: &str, n: u64) {
    let map = M::with_capacity((n + n / 8) as usize);
    inserts(&map, n, false);
    map.clear();
    let open = inserts(&map, n, true);
    map.clear();
    let insert = inserts(&map, n, false);
    let per_round = if n < 1 << 18 { 1 << 18 } else { 1 << 19 };
    lookups(&map, 0, n, per_round / 4, true, BURST);
    let hit = lookups(&map, 0, n, per_round, true, BURST);
    let miss = lookups(&map, n, n, per_round, false, BURST);
    let single = lookups(&map, 0, n, per_round / 4, true, 1);
    println!(
        "{{\"contestant\":\"{name}\",\"connections\":{n},\"hit_ns\":{hit:.2},\"miss_ns\":{miss:.2},\
         \"single_ns\":{single:.2},\"insert_ns\":{insert:.2},\"open_ns\":{open:.2}}}"
    );
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (Some(map), Some(Ok(n))) = (
        arguments.first(),
        arguments.get(1).map(|n| n.parse::<u64>()),
    ) else {
        eprintln!("maps dashmap|papaya|scc|hashbrown CONNECTIONS");
        return ExitCode::from(2);
    };
    match map.as_str() {
        "dashmap" => measure::<dashmap::DashMap<_, _, _>>(map, n),
        "papaya" => measure::<papaya::HashMap<_, _, _>>(map, n),
        "scc" => measure::<scc::HashMap<_, _, _>>(map, n),
        _ => measure::<RwLock<hashbrown::HashMap<_, _, _>>>(map, n),
    }
    ExitCode::SUCCESS
}
