//! `vswitch bench loopback`: guest to guest through the switch, flat out.

use std::io;
use std::time::Duration;

use serde::Serialize;

use super::frames::Sizes;
use super::load::LoadConfig;
use super::machine::{Machine, Watch};
use super::rig::{Rig, RigConfig};
use super::stats::Summary;
use super::{BenchError, Cores};
use crate::control::Switch;
use crate::sys::affinity::pin_thread;
use crate::sys::time::tsc_hz;

/// Not counted, before each repetition: caches fill.
const WARM_UP: Duration = Duration::from_millis(100);
/// A switch that is idle for more than this share of the time could have done 1.3 times as much.
const GENERATOR_BOUND: f64 = 1.0 / 1.3;

/// What is measured.
#[derive(Clone, Debug, Serialize)]
pub struct Loopback {
    /// Frame sizes.
    #[serde(serialize_with = "display")]
    pub sizes: Sizes,
    /// Connections.
    pub flows: u32,
    /// Rules in the policy.
    pub rules: u32,
    /// Entries of each ring.
    pub ring: u16,
    /// Packed rings.
    pub packed: bool,
    /// Guests' memory in 2 MiB pages.
    pub huge: bool,
    /// Repetitions.
    pub repeats: u32,
    /// Length of each.
    pub seconds: f64,
    /// One more, with the cycles of each step.
    pub profile: bool,
}

fn display<T: std::fmt::Display, S: serde::Serializer>(value: &T, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(value)
}

/// What was seen.
#[derive(Clone, Debug, Serialize)]
pub struct LoopbackReport {
    /// What was asked for.
    pub config: Loopback,
    /// Where.
    pub machine: Machine,
    /// Both directions together, million frames a second.
    pub mpps: Summary,
    /// The same, gigabits a second of frames without FCS.
    pub gbps: Summary,
    /// TSC cycles of the worker's iterations that moved frames, by frame.
    pub cycles_per_frame: Summary,
    /// Share of the worker's time in such iterations.
    pub busy: f64,
    /// Frames that such an iteration moved.
    pub burst: f64,
    /// Share of frames that the switch dropped.
    pub dropped: f64,
    /// The generator was the limit.
    pub generator_bound: bool,
    /// TSC cycles by frame and step of the data path, in their order, when profiled.
    pub steps: Vec<(&'static str, f64)>,
}

/// The steps of a frame's way, as the worker's counters name them.
const STEPS: [(&str, &str); 7] = [
    ("rx", "step_rx_cycles"),
    ("parse", "step_parse_cycles"),
    ("guard, output", "step_locate_cycles"),
    ("lookup", "step_lookup_cycles"),
    ("track, judge", "step_track_cycles"),
    ("tx", "step_tx_cycles"),
    ("complete, notify", "step_complete_cycles"),
];

/// The switch's counters at one moment.
struct Sample {
    cycles: u64,
    iterations: u64,
    rx: u64,
    dropped: u64,
    steps: [u64; STEPS.len()],
}

impl Sample {
    fn take(switch: &Switch) -> Result<Self, BenchError> {
        let stats = switch.stats()?;
        let counter = |name: &str| {
            let workers = stats.workers.iter();
            workers.filter_map(|w| w.counters.get(name)).sum()
        };
        Ok(Sample {
            cycles: counter("busy_cycles"),
            iterations: counter("busy_iterations"),
            rx: stats.conservation.rx,
            dropped: stats.conservation.dropped,
            steps: STEPS.map(|(_, name)| counter(name)),
        })
    }
}

/// The repetitions so far.
#[derive(Default)]
struct Series {
    mpps: Vec<f64>,
    gbps: Vec<f64>,
    cycles: Vec<f64>,
    seconds: f64,
    busy_cycles: f64,
    iterations: f64,
    frames: f64,
    dropped: f64,
    steps: Vec<(&'static str, f64)>,
}

/// Measures, and says how far it is.
///
/// # Errors
/// See [`BenchError`].
pub fn run(
    config: &Loopback,
    progress: impl Fn(&str) + Sync,
) -> Result<LoopbackReport, BenchError> {
    let cores = Cores::choose()?;
    let watch = Watch::start(cores);
    let measure = || measure(config, cores, &progress);
    let series = std::thread::scope(|s| s.spawn(measure).join())
        .map_err(|_panic| io::Error::other("the generator's thread died"))??;
    #[allow(clippy::cast_precision_loss)] // a few GHz
    let busy = series.busy_cycles / (series.seconds * tsc_hz() as f64);
    Ok(LoopbackReport {
        config: config.clone(),
        machine: watch.end(),
        mpps: Summary::of(series.mpps),
        gbps: Summary::of(series.gbps),
        cycles_per_frame: Summary::of(series.cycles),
        busy,
        burst: series.frames / series.iterations.max(1.0),
        dropped: series.dropped / series.frames.max(1.0),
        generator_bound: busy < GENERATOR_BOUND,
        steps: series.steps,
    })
}

/// On the generator's thread.
fn measure(config: &Loopback, cores: Cores, progress: impl Fn(&str)) -> Result<Series, BenchError> {
    let rig = RigConfig {
        load: LoadConfig {
            ring: config.ring,
            packed: config.packed,
            huge: config.huge,
            sizes: config.sizes,
            flows: config.flows,
        },
        rules: config.rules,
        // Twice what is needed: in a table nearly full a bucket may have no room (`flowtable`, *Limits*).
        connections: (config.flows as usize * 2).max(1 << 14),
    };
    progress("starting the switch");
    let mut rig = Rig::start(cores, &rig)?;
    if let Some(core) = cores.generator {
        pin_thread(core)?;
    }
    progress("opening connections");
    rig.load.open()?;
    let mut series = Series::default();
    for n in 0..config.repeats {
        progress(&format!("repetition {} of {}", n + 1, config.repeats));
        repetition(&mut rig, config, &mut series, false)?;
    }
    if config.profile {
        progress("profiling");
        rig.switch.profile(true)?;
        repetition(&mut rig, config, &mut series, true)?;
    }
    Ok(series)
}

fn repetition(
    rig: &mut Rig,
    config: &Loopback,
    series: &mut Series,
    profiled: bool,
) -> Result<(), BenchError> {
    let time = Duration::from_secs_f64(config.seconds);
    let mut samples = Vec::with_capacity(2);
    let switch = &rig.switch;
    let mark = || samples.push(Sample::take(switch));
    let run = rig.load.run(WARM_UP, time, mark);
    if run.wrong > 0 {
        return Err(BenchError::Wrong(run.wrong));
    }
    let mut samples = samples.into_iter();
    let (Some(before), Some(after)) = (samples.next(), samples.next()) else {
        return Err(io::Error::other("a run has a beginning and an end").into());
    };
    let (before, after) = (before?, after?);
    #[allow(clippy::cast_precision_loss)] // far below 2^53
    let passed = |b: u64, a: u64| a.wrapping_sub(b) as f64;
    let frames = passed(before.rx, after.rx).max(1.0);
    if profiled {
        let cycles = before.steps.iter().zip(after.steps);
        let steps = STEPS.iter().zip(cycles);
        series.steps = steps
            .map(|((step, _), (b, a))| (*step, passed(*b, a) / frames))
            .collect();
        return Ok(());
    }
    let cycles = passed(before.cycles, after.cycles);
    series.mpps.push(run.mpps());
    series.gbps.push(run.gbps());
    series.cycles.push(cycles / frames);
    series.seconds += run.seconds;
    series.busy_cycles += cycles;
    series.iterations += passed(before.iterations, after.iterations);
    series.frames += frames;
    series.dropped += passed(before.dropped, after.dropped);
    Ok(())
}
