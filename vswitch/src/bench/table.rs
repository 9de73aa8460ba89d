//! The connection table alone: what a key costs to look up, insert and expire, and what a second
//! thread adds.
//!
//! Connections are IPv4 and UDP, between two attachments, spread at random over addresses and ports. Keys are
//! written just before they are used, as the switch does, and outside the clock. What is looked up is
//! found in random order; each hit hands out the connection, and its verdict word is read.
//! `benches/peers/table/run` has other tables do the same.

use std::hint::black_box;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use flowtable::{Addr, Config, Endpoint, FlowKey, New, Participant, Side, Table};
use serde::Serialize;

use super::{Bench, BenchError, Cores, Progress, Summary};
use crate::sys::affinity::pin_thread;
use crate::sys::mmap::disable_transparent_huge_pages;

/// Keys looked up together: the switch's burst.
const BURST: usize = 32;
/// Keys between two looks at the clock: some bursts, which with their keys still fit the first-level cache.
const BLOCK: usize = 256;
/// As many connections as a table may have; ten million fill most machines.
const CONNECTIONS_MAX: i64 = 100_000_000;
/// Buckets a worker sweeps in one iteration of its loop.
const SWEEP_STEP: usize = 2;
/// One more connection in this many lookups of the mixed load, for 90 % lookups.
const NEW_EVERY: usize = 10;
/// Keys each thread handles in one repetition with two threads.
const SHARED_KEYS: usize = 1 << 20;
/// The steps of splitmix64 (Steele, Lea, Flood, 2014), which peers have too.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The connection table alone, one thread and two: lookups, insertion, expiry and the stalls it makes.
#[derive(Clone, Copy, Debug, Serialize, Args)]
pub struct TableAlone {
    /// Connections in the table, which has room for an eighth more.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..=CONNECTIONS_MAX))]
    pub connections: u32,
    /// Repetitions.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..))]
    pub repeats: u32,
    /// The table in 2 MiB pages, reserved ones if there are enough (sysctl vm.nr_hugepages), else transparent ones; without it, in
    /// pages of 4 KiB.
    #[arg(long)]
    pub huge: bool,
}

/// What one step of a sweep takes, a step being what a worker does in one iteration: two buckets and a quiesce.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Stalls {
    /// Half of the steps are faster.
    pub p50_us: f64,
    /// All but one in a hundred.
    pub p99_us: f64,
    /// All but one in a thousand.
    pub p999_us: f64,
    /// The slowest.
    pub max_us: f64,
}

/// How much two threads do, each on a core of its own, for one thread's 1.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Scaling {
    /// Keys made and hashed, and nothing shared: what the machine's second core is worth.
    pub keys: Summary,
    /// Lookups in bursts.
    pub lookups: Summary,
    /// Nine lookups in bursts for every new connection.
    pub mixed: Summary,
}

/// What came out. Nanoseconds are for one key or connection, one thread.
#[derive(Clone, Debug, Serialize)]
pub struct TableFigures {
    /// Connections that found no room; the others are what was measured.
    pub refused: usize,
    /// Found, in bursts of 32.
    pub hit_ns: Summary,
    /// Not there, in bursts of 32.
    pub miss_ns: Summary,
    /// Found, one after another.
    pub hit_single_ns: Summary,
    /// Not there, one after another.
    pub miss_single_ns: Summary,
    /// Inserted into memory that was used before.
    pub insert_ns: Summary,
    /// Looked up in a burst and not found, then inserted: what a new connection costs.
    pub open_ns: Summary,
    /// Expired, memory given back.
    pub expire_ns: Summary,
    /// While all of them expire.
    pub stalls: Stalls,
    /// `None`: there is only one core.
    pub two_threads: Option<Scaling>,
    /// Mapped for each of as many as there is room for, index included.
    pub bytes_per_connection: f64,
    /// Memory that the first fill took for each of these connections, which need no second line. `None` in huge pages,
    /// which are all taken at the start.
    pub touched_bytes_per_connection: Option<f64>,
}

impl Bench for TableAlone {
    type Figures = TableFigures;

    fn measure(&self, cores: Cores, progress: Progress<'_>) -> Result<TableFigures, BenchError> {
        measure(self, cores, progress)
    }
}

fn measure(
    config: &TableAlone,
    cores: Cores,
    progress: Progress<'_>,
) -> Result<TableFigures, BenchError> {
    cores.pin_worker()?;
    let n = u64::from(config.connections);
    let capacity = config.connections as usize + config.connections as usize / 8;
    if !config.huge {
        disable_transparent_huge_pages();
    }
    let table = Table::new(Config {
        capacity,
        huge_pages: config.huge,
        ..Config::default()
    });
    let table = Arc::new(table?);
    let mut flows = table.participant();

    progress("the first fill touches all memory");
    let before = resident_bytes()?;
    fill(&flows, n, false);
    let touched = resident_bytes()?.saturating_sub(before);
    expire(&mut flows);
    let (mut insert, mut open, mut expired, mut stalls) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for repeat in 1..=fills(config) {
        progress(&format!(
            "inserting and expiring, {repeat} of {}",
            fills(config)
        ));
        insert.push(fill(&flows, n, false));
        expire(&mut flows);
        open.push(fill(&flows, n, true));
        let (ns, steps) = expire(&mut flows);
        expired.push(ns);
        stalls.extend(steps);
    }
    fill(&flows, n, false);
    let present = table.len();

    let (mut hit, mut miss, mut hit_single, mut miss_single) =
        <(Vec<_>, Vec<_>, Vec<_>, Vec<_>)>::default();
    let keys = if n < 1 << 18 { 1 << 18 } else { 1 << 19 };
    let mut order = Order::new(1);
    lookups(&flows, &mut order, 0..n, keys / 2, BURST);
    for repeat in 1..=config.repeats {
        progress(&format!("looking up, {repeat} of {}", config.repeats));
        hit.push(lookups(&flows, &mut order, 0..n, keys, BURST));
        miss.push(lookups(&flows, &mut order, n..2 * n, keys, BURST));
        hit_single.push(lookups(&flows, &mut order, 0..n, keys / 4, 1));
        miss_single.push(lookups(&flows, &mut order, n..2 * n, keys / 4, 1));
    }

    let two_threads = match (cores.worker, cores.generator) {
        (Some(a), Some(b)) => Some(scaling(&table, config, [a, b], progress)?),
        _ => None,
    };
    #[allow(clippy::cast_precision_loss)] // bytes of a table
    Ok(TableFigures {
        refused: config.connections as usize - present.min(config.connections as usize),
        hit_ns: Summary::of(hit),
        miss_ns: Summary::of(miss),
        hit_single_ns: Summary::of(hit_single),
        miss_single_ns: Summary::of(miss_single),
        insert_ns: Summary::of(insert),
        open_ns: Summary::of(open),
        expire_ns: Summary::of(expired),
        stalls: percentiles(stalls),
        two_threads,
        touched_bytes_per_connection: (!config.huge).then_some(touched as f64 / n as f64),
        bytes_per_connection: table.memory_bytes() as f64 / capacity as f64,
    })
}

/// Filling takes as long as hundreds of lookups of a small table, or seconds of a large one.
fn fills(config: &TableAlone) -> u32 {
    config.repeats.min(5)
}

/// Connection number `i`: splitmix64 of the number is its source address and its ports.
#[allow(clippy::cast_possible_truncation)] // parts of the number
fn key(i: u64) -> (FlowKey, Side) {
    let x = mix((i + 1).wrapping_mul(GOLDEN));
    let end = |addr: [u8; 4], port: u16, attachment| Endpoint {
        addr: Addr::from_v4_bytes(addr),
        port,
        attachment,
    };
    let from = end(((x >> 32) as u32).to_be_bytes(), (x >> 16) as u16, 1);
    let to = end([10, 0, 0, 1], x as u16, 2);
    FlowKey::new(0, 17, &from, &to)
}

fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Which connection comes next.
pub(super) struct Order(u64);

impl Order {
    pub(super) fn new(stream: u64) -> Self {
        Order(mix(stream))
    }

    #[allow(clippy::cast_possible_truncation)] // the product's upper half
    pub(super) fn next(&mut self, among: &std::ops::Range<u64>) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        let len = among.end - among.start;
        among.start + ((u128::from(mix(self.0)) * u128::from(len)) >> 64) as u64
    }
}

fn new(side: Side) -> New {
    New {
        initiator: side,
        word: 1 << 16 | 1,
        tick: 1,
        user: [0; flowtable::NEAR_WORDS],
        far: None,
    }
}

/// Inserts the first `n` connections, having looked for them in bursts if `look_first`; nanoseconds each.
fn fill(flows: &Participant, n: u64, look_first: bool) -> f64 {
    let mut spent = Duration::ZERO;
    let mut keys = Vec::with_capacity(BLOCK);
    for first in (0..n).step_by(BLOCK) {
        keys.clear();
        keys.extend((first..n.min(first + BLOCK as u64)).map(key));
        let start = Instant::now();
        for burst in keys.chunks(BURST) {
            let mut bare = [FlowKey::default(); BURST];
            if look_first {
                for (bare, (key, _)) in bare.iter_mut().zip(burst) {
                    *bare = *key;
                }
                let mut hits = [None; BURST];
                flows.lookup_burst(&bare[..burst.len()], &mut hits);
                black_box(hits.iter().all(Option::is_none));
            }
            for (key, side) in burst {
                // No room: counted by who looks at the table's length.
                let _ = black_box(flows.insert_or_get(key, new(*side)));
            }
        }
        spent += start.elapsed();
    }
    per(spent, n)
}

/// Expires everything; nanoseconds each, and each step's.
fn expire(flows: &mut Participant) -> (f64, Vec<Duration>) {
    let table = Arc::clone(flows.table());
    let n = table.len() as u64;
    let mut steps = Vec::with_capacity(table.buckets() / SWEEP_STEP + 1);
    let mut last = Instant::now();
    let begin = last;
    while !table.is_empty() {
        flows.sweep(SWEEP_STEP, |conn| conn.last_seen() == 1);
        flows.quiesce();
        let now = Instant::now();
        steps.push(now - last);
        last = now;
    }
    (per(last - begin, n.max(1)), steps)
}

/// Looks up `n` connections `among` these, `burst` at a time; nanoseconds each.
fn lookups(
    flows: &Participant,
    order: &mut Order,
    among: std::ops::Range<u64>,
    n: usize,
    burst: usize,
) -> f64 {
    let mut spent = Duration::ZERO;
    let mut keys = [FlowKey::default(); BLOCK];
    for _ in 0..n / BLOCK {
        for to in &mut keys {
            *to = key(order.next(&among)).0;
        }
        let mut hits = [None; BURST];
        let mut sum = 0;
        let start = Instant::now();
        for keys in keys.chunks(burst) {
            if let [key] = keys {
                sum ^= flows.lookup(key).map_or(0, |conn| conn.word());
                continue;
            }
            flows.lookup_burst(keys, &mut hits);
            for conn in hits.iter().flatten() {
                sum ^= conn.word();
            }
        }
        black_box(sum);
        spent += start.elapsed();
    }
    per(spent, n as u64)
}

/// Memory that backs this process, as proc_pid_statm(5) counts it.
fn resident_bytes() -> std::io::Result<u64> {
    /// What x86-64 has; other pages only make the figure wrong by their ratio.
    const PAGE_BYTES: u64 = 4096;
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages = statm.split(' ').nth(1).and_then(|n| n.parse::<u64>().ok());
    pages
        .map(|n| n * PAGE_BYTES)
        .ok_or_else(|| std::io::Error::other("/proc/self/statm has no second number"))
}

#[allow(clippy::cast_precision_loss)] // nanoseconds of a measurement
fn per(spent: Duration, n: u64) -> f64 {
    spent.as_nanos() as f64 / n as f64
}

fn percentiles(mut steps: Vec<Duration>) -> Stalls {
    steps.sort_unstable();
    #[allow(clippy::cast_precision_loss)] // nanoseconds of a step
    let at = |per_mille: usize| {
        let i = (steps.len() * per_mille / 1000).min(steps.len().saturating_sub(1));
        steps.get(i).map_or(0.0, |d| d.as_nanos() as f64 / 1e3)
    };
    Stalls {
        p50_us: at(500),
        p99_us: at(990),
        p999_us: at(999),
        max_us: at(1000),
    }
}

/// What the threads do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Work {
    /// Makes keys and hashes them.
    Keys,
    /// Looks them up, too.
    Lookups,
    /// Inserts a connection for every nine lookups, too.
    Mixed,
}

/// One thread and two in turns, on the table as it is filled.
fn scaling(
    table: &Arc<Table>,
    config: &TableAlone,
    cores: [usize; 2],
    progress: Progress<'_>,
) -> Result<Scaling, BenchError> {
    let n = u64::from(config.connections);
    let (mut keys, mut lookups, mut mixed) = (Vec::new(), Vec::new(), Vec::new());
    for repeat in 1..=config.repeats {
        progress(&format!(
            "one thread and two, {repeat} of {}",
            config.repeats
        ));
        for (work, ratios) in [
            (Work::Keys, &mut keys),
            (Work::Lookups, &mut lookups),
            (Work::Mixed, &mut mixed),
        ] {
            let [one, other] = [cores.get(..1), cores.get(..1)]
                .map(|alone| together(table, n, alone.unwrap_or_default(), work));
            let both = together(table, n, &cores, work);
            // Before and after, so that a change of the machine's speed weighs less.
            let alone = f64::midpoint(one?, other?);
            ratios.push(both? / alone);
        }
    }
    Ok(Scaling {
        keys: Summary::of(keys),
        lookups: Summary::of(lookups),
        mixed: Summary::of(mixed),
    })
}

/// Keys per nanosecond of as many threads as cores.
#[allow(clippy::cast_precision_loss)] // keys of a measurement
fn together(table: &Arc<Table>, n: u64, cores: &[usize], work: Work) -> Result<f64, BenchError> {
    let barrier = Barrier::new(cores.len());
    let rates = thread::scope(|scope| {
        let threads: Vec<_> = cores
            .iter()
            .zip(1..)
            .map(|(core, stream)| {
                let (barrier, mut flows) = (&barrier, table.participant());
                scope.spawn(move || {
                    let pinned = pin_thread(*core);
                    barrier.wait();
                    let start = Instant::now();
                    share(&mut flows, stream, n, work);
                    pinned.map(|()| SHARED_KEYS as f64 / start.elapsed().as_nanos() as f64)
                })
            })
            .collect();
        let dead = |_| std::io::Error::other("a measuring thread died");
        let joined = threads.into_iter().map(|t| t.join().map_err(dead)?);
        joined.sum::<std::io::Result<f64>>()
    })?;
    Ok(rates)
}

/// One thread's share. Of the mixed load's new connections only some are in the table at a time: the oldest
/// is removed for each one inserted.
fn share(flows: &mut Participant, stream: u64, n: u64, work: Work) {
    let mut order = Order::new(stream);
    let first_new = (stream + 1) * (1 << 40);
    let (mut newest, mut oldest) = (first_new, first_new);
    let mut keys = [FlowKey::default(); BURST];
    for done in (0..SHARED_KEYS).step_by(BURST) {
        for to in &mut keys {
            *to = key(order.next(&(0..n))).0;
        }
        if work == Work::Keys {
            let hashes = keys.iter().map(|key| flows.table().hash(key));
            black_box(hashes.fold(0, |sum, hash| sum ^ hash));
            continue;
        }
        let mut hits = [None; BURST];
        flows.lookup_burst(&keys, &mut hits);
        let sum = hits.iter().flatten().fold(0, |sum, conn| sum ^ conn.word());
        black_box(sum);
        if work == Work::Lookups {
            continue;
        }
        let due = (done + BURST) / NEW_EVERY - done / NEW_EVERY;
        for _ in 0..due {
            let (key, side) = key(newest);
            let _ = black_box(flows.insert_or_get(&key, new(side)));
            newest += 1;
        }
        while newest - oldest > (n / 32).max(1) {
            if let Some(conn) = flows.lookup(&key(oldest).0) {
                flows.remove(conn);
            }
            oldest += 1;
        }
        flows.quiesce();
    }
    while oldest < newest {
        if let Some(conn) = flows.lookup(&key(oldest).0) {
            flows.remove(conn);
        }
        oldest += 1;
    }
    flows.quiesce();
}
