//! `vswitch bench loopback`: guest to guest through the switch, flat out.

use std::io;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::frames::{FLOWS_MAX, Sizes};
use super::load::{Load, LoadConfig, Run};
use super::options::{Repeats, Rings, display};
use super::rig::{Rig, RigConfig, policy};
use super::sample::{Passed, Sample};
use super::stats::Summary;
use super::{Bench, BenchError, Cores, Progress};
use crate::sys::affinity::pin_thread;
use crate::sys::time::tsc_hz;

/// Not counted, before each repetition: caches fill.
pub(super) const WARM_UP: Duration = Duration::from_millis(100);
/// A switch that is idle for more than this share of the time could have done 1.3 times as much.
pub(super) const GENERATOR_BOUND: f64 = 1.0 / 1.3;

/// Guest to guest through the switch: two virtio guests of our own open connections over vhost-user, then
/// both send flat out, and every frame is checked on arrival.
#[derive(Clone, Debug, Serialize, Args)]
pub struct Loopback {
    /// Bytes of each frame without FCS, or imix.
    #[arg(long = "size", default_value = "64")]
    #[serde(serialize_with = "display")]
    pub sizes: Sizes,
    /// Connections.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=FLOWS_MAX as i64))]
    pub flows: u32,
    /// Rules in the policy; the last one admits the load.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub rules: u32,
    /// Rings of the guests.
    #[command(flatten)]
    #[serde(flatten)]
    pub rings: Rings,
    /// How often, and how long.
    #[command(flatten)]
    #[serde(flatten)]
    pub repeats: Repeats,
    /// Once more, with the cycles of each step.
    #[arg(long)]
    pub profile: bool,
}

/// What was seen.
#[derive(Clone, Debug, Serialize)]
pub struct LoopbackFigures {
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

impl Bench for Loopback {
    type Figures = LoopbackFigures;

    fn measure(&self, cores: Cores, progress: Progress<'_>) -> Result<Self::Figures, BenchError> {
        progress("starting the switch");
        let load = LoadConfig {
            rings: self.rings,
            sizes: self.sizes,
            flows: self.flows,
        };
        let mut rig = rig(cores, self.rules, &load)?;
        progress("opening connections");
        rig.load.open()?;
        let (mut mpps, mut gbps, mut cycles) = (Vec::new(), Vec::new(), Vec::new());
        let (mut seconds, mut sum) = (0.0, Passed::default());
        for n in 0..self.repeats.repeats {
            progress(&format!("repetition {} of {}", n + 1, self.repeats.repeats));
            let (run, passed) = overload(&mut rig, self.repeats.time())?;
            mpps.push(run.mpps());
            gbps.push(run.gbps());
            cycles.push(passed.cycles_per_frame());
            seconds += run.seconds;
            sum.add(&passed);
        }
        let mut steps = Vec::new();
        if self.profile {
            progress("profiling");
            rig.switch.profile(true)?;
            steps = overload(&mut rig, self.repeats.time())?.1.steps;
        }
        #[allow(clippy::cast_precision_loss)] // a few GHz
        let busy = sum.cycles / (seconds * tsc_hz() as f64);
        Ok(LoopbackFigures {
            mpps: Summary::of(mpps),
            gbps: Summary::of(gbps),
            cycles_per_frame: Summary::of(cycles),
            busy,
            burst: sum.frames / sum.iterations.max(1.0),
            dropped: sum.dropped / sum.frames.max(1.0),
            generator_bound: busy < GENERATOR_BOUND,
            steps,
        })
    }
}

/// A switch with so many rules and the generator, on the generator's thread, which is pinned.
pub(super) fn rig(cores: Cores, rules: u32, load: &LoadConfig) -> Result<Rig<Load>, BenchError> {
    let config = RigConfig::new(policy(rules, "udp"), load.flows as usize);
    let rig = Rig::start(cores, config, |sockets| Load::connect(sockets, load))?;
    if let Some(core) = cores.generator {
        pin_thread(core)?;
    }
    Ok(rig)
}

/// Both guests flat out for so long.
pub(super) fn overload(rig: &mut Rig<Load>, time: Duration) -> Result<(Run, Passed), BenchError> {
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
    Ok((run, after?.since(&before?)))
}
