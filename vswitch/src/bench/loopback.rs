//! `vswitch bench loopback`: guest to guest through the switch, flat out.

use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::load::{Load, Run};
use super::options::{Repeats, Traffic};
use super::rig::{Rig, policy};
use super::sample::{Passed, Sample};
use super::stats::Summary;
use super::{Bench, BenchError, Cores, Progress};

/// Not counted, before each repetition: caches fill.
pub(super) const WARM_UP: Duration = Duration::from_millis(100);
/// A switch that is idle for more than this share of the time could have done 1.3 times as much.
pub(super) const GENERATOR_BOUND: f64 = 1.0 / 1.3;

/// Guest to guest through the switch: two virtio guests of our own open connections over vhost-user, then
/// both send flat out, and every frame is checked on arrival.
#[derive(Clone, Debug, Serialize, Args)]
pub struct Loopback {
    /// What the guests exchange.
    #[command(flatten)]
    #[serde(flatten)]
    pub traffic: Traffic,
    /// Rules in the policy; the last one admits the load.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub rules: u32,
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
        let policy = policy(self.rules, self.traffic.sizes.service());
        let mut rig = Rig::open(cores, policy, &self.traffic, progress)?;
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
        let busy = sum.busy(seconds);
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

/// Both guests flat out for so long.
pub(super) fn overload(rig: &mut Rig<Load>, time: Duration) -> Result<(Run, Passed), BenchError> {
    let mut samples = Vec::with_capacity(2);
    let switch = &rig.switch;
    let mark = || samples.push(Sample::take(switch));
    let run = rig.load.run(WARM_UP, time, mark)?;
    let mut samples = samples.into_iter();
    let (Some(before), Some(after)) = (samples.next(), samples.next()) else {
        return Err(std::io::Error::other("a run has a beginning and an end").into());
    };
    Ok((run, after?.since(&before?)))
}
