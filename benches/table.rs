//! The connection table, nanoseconds a key: the hash, lookups in bursts of 32 (hit and miss) and singly, insertion,
//! removal, expiry. `cargo bench --bench table`; `vswitch bench table` measures larger tables, and with two threads.
//!
//! Random keys over tables filled to their size, one thread; the time
//! criterion prints is for one burst of 32 keys unless the name says otherwise.

#![expect(
    clippy::cast_possible_truncation,
    reason = "small numbers of the bench's own"
)]

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use flowtable::{Addr, Config, Endpoint, FlowKey, New, Participant, Side, Table};
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

const BURST: usize = 32;

/// Spread over addresses and ports like the clients of one server, `n` distinct.
fn key(n: u32) -> FlowKey {
    let mixed = n.wrapping_mul(0x9e37_79b1);
    let a = Endpoint {
        addr: Addr::from_v4_bytes(mixed.to_be_bytes()),
        port: 1024,
        attachment: 1,
    };
    let b = Endpoint {
        addr: Addr::from_v4_bytes([10, 0, 0, 1]),
        port: 443,
        attachment: 2,
    };
    FlowKey::new(0, 6, &a, &b).0
}

fn new() -> New {
    New {
        initiator: Side::Low,
        word: 1,
        tick: 1,
        user: [0; 3],
        far: Some([0; 5]),
    }
}

fn table(capacity: usize) -> Participant {
    let config = Config {
        capacity,
        huge_pages: true,
        ..Config::default()
    };
    Arc::new(Table::new(config).expect("a table")).participant()
}

fn filled(len: u32) -> Participant {
    let p = table(len as usize);
    for n in 0..len {
        // A few of the last ones find their shard or bucket full.
        let _ = p.insert_or_get(&key(n), new());
    }
    p
}

/// `len` keys in random order, from `first`: what is looked up is not what was touched last.
fn shuffled(first: u32, len: u32) -> Vec<FlowKey> {
    let mut keys: Vec<_> = (first..first + len).map(key).collect();
    let mut random = 88_172_645_463_325_252u64;
    for i in (1..keys.len()).rev() {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        keys.swap(i, (random % (i as u64 + 1)) as usize);
    }
    keys
}

fn lookups(c: &mut Criterion) {
    let mut group = c.benchmark_group("lookup");
    group
        .sample_size(20)
        .measurement_time(Duration::from_secs(1));
    group.warm_up_time(Duration::from_millis(300));
    for (name, len) in [("1K", 1000), ("100K", 100_000), ("1M", 1_000_000)] {
        let p = filled(len);
        for (what, keys) in [("hit", shuffled(0, len)), ("miss", shuffled(len, len))] {
            let mut bursts = keys.chunks_exact(BURST).cycle();
            group.throughput(Throughput::Elements(BURST as u64));
            group.bench_function(format!("burst32/{what}/{name}"), |b| {
                b.iter(|| {
                    let mut hits = [None; BURST];
                    p.lookup_burst(bursts.next().expect("endless"), &mut hits);
                    black_box(hits);
                });
            });
            let mut keys = keys.iter().cycle();
            group.throughput(Throughput::Elements(1));
            group.bench_function(format!("single/{what}/{name}"), |b| {
                b.iter(|| black_box(p.lookup(keys.next().expect("endless"))));
            });
        }
    }
    group.finish();
}

fn hash(c: &mut Criterion) {
    let p = table(1000);
    let keys = shuffled(0, BURST as u32);
    let mut group = c.benchmark_group("hash");
    group.throughput(Throughput::Elements(BURST as u64));
    group.bench_function("burst32", |b| {
        b.iter(|| {
            let hashes: [u64; BURST] = std::array::from_fn(|i| p.table().hash(&keys[i]));
            black_box(hashes);
        });
    });
    group.finish();
}

fn changes(c: &mut Criterion) {
    let mut group = c.benchmark_group("change");
    group
        .sample_size(20)
        .measurement_time(Duration::from_secs(2));
    const LEN: u32 = 100_000;
    let keys = shuffled(0, LEN);
    group.throughput(Throughput::Elements(LEN.into()));
    group.bench_function("insert/100K", |b| {
        b.iter_batched_ref(
            || table(2 * LEN as usize),
            |p| {
                for key in &keys {
                    black_box(p.insert_or_get(key, new()).is_ok());
                }
            },
            BatchSize::PerIteration,
        );
    });
    group.bench_function("remove/100K", |b| {
        b.iter_batched_ref(
            || filled(LEN),
            |p| {
                for key in &keys {
                    if let Some(conn) = p.lookup(key) {
                        black_box(p.remove(conn));
                    }
                }
                p.quiesce();
            },
            BatchSize::PerIteration,
        );
    });
    group.bench_function("expire/none of 100K", |b| {
        let p = filled(LEN);
        let buckets = p.table().buckets();
        b.iter(|| p.sweep(buckets, |conn| conn.last_seen() == 0));
    });
    group.bench_function("expire/all of 100K", |b| {
        b.iter_batched_ref(
            || filled(LEN),
            |p| {
                let buckets = p.table().buckets();
                assert!(p.sweep(buckets, |_| true) > 90_000);
                p.quiesce();
            },
            BatchSize::PerIteration,
        );
    });
    group.throughput(Throughput::Elements(1));
    group.bench_function("quiesce with nothing to do", |b| {
        let mut p = filled(1000);
        b.iter(|| p.quiesce());
    });
    group.finish();
}

criterion_group!(benches, hash, lookups, changes);
criterion_main!(benches);
