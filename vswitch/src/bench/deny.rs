//! `vswitch bench deny`: what turning frames away costs.

use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use super::frames::{FIRST, PORTS_AT, Reply, Sizes, headers, put};
use super::load::{Load, Source};
use super::loopback::{GENERATOR_BOUND, WARM_UP, overload};
use super::options::{Repeats, Rings, Traffic};
use super::rig::{Rig, policy};
use super::sample::{Passed, Sample};
use super::stats::Summary;
use super::{Bench, BenchError, Cores, Progress};
use crate::packet::proto;

/// Bytes of a frame without FCS.
const BYTES: u16 = 64;
/// The only services that are allowed: those of the load that is forwarded.
pub(super) const ALLOWED: &str = "udp/9000-9511";
/// First destination port of what is denied, and how many: none of the allowed ones, and none of those that the load's connections
/// come from, or a frame from an allowed one would be an answer on one of them.
const PORT: u16 = 10_000;
const PORTS: u64 = 6_000;
const _: () = assert!(PORT as u64 + PORTS <= FIRST as u64, "see above");

/// How fast frames that no rule admits are dropped, beside what is forwarded.
///
/// In turns: both guests send frames of 64 bytes on established connections, then
/// frames of as many bytes that no rule admits, each from ports not seen before. The second rate by the first is
/// what a flood of unwanted frames costs.
#[derive(Clone, Debug, Serialize, Args)]
pub struct Deny {
    /// Connections of what is forwarded.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub flows: u32,
    /// Rules in the policy; none admits what is denied.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub rules: u32,
    /// Rings of the guests.
    #[command(flatten)]
    #[serde(flatten)]
    pub rings: Rings,
    /// How often, and how long each of the two.
    #[command(flatten)]
    #[serde(flatten)]
    pub repeats: Repeats,
    /// Once more, with the cycles of each step.
    #[arg(long)]
    pub profile: bool,
}

/// What was seen.
#[derive(Clone, Debug, Serialize)]
pub struct DenyFigures {
    /// Forwarded, both directions together, million frames a second.
    pub forwarded_mpps: Summary,
    /// Denied, both directions together, million frames a second.
    pub denied_mpps: Summary,
    /// The second by the first, repetition by repetition.
    pub ratio: Summary,
    /// TSC cycles of the worker's iterations that moved frames, by frame forwarded.
    pub forwarded_cycles: Summary,
    /// The same by frame denied.
    pub denied_cycles: Summary,
    /// Share of the worker's time in such iterations, while it denied.
    pub busy: f64,
    /// The generator was the limit of what was denied.
    pub generator_bound: bool,
    /// Frames denied in all repetitions.
    pub denied: f64,
    /// TSC cycles by frame and step of the data path, in their order, forwarded and denied, when profiled.
    pub steps: Vec<(&'static str, f64, f64)>,
}

impl Bench for Deny {
    type Figures = DenyFigures;

    fn measure(&self, cores: Cores, progress: Progress<'_>) -> Result<Self::Figures, BenchError> {
        let traffic = Traffic {
            rings: self.rings,
            sizes: Sizes::Fixed(BYTES.into()),
            flows: self.flows,
        };
        let mut rig = Rig::open(cores, policy(self.rules, ALLOWED), &traffic, progress)?;
        let (mut forwarded, mut denied, mut ratio) = (Vec::new(), Vec::new(), Vec::new());
        let (mut forwarded_cycles, mut denied_cycles) = (Vec::new(), Vec::new());
        let (mut seconds, mut sum) = (0.0, Passed::default());
        let mut fresh = [Reply::No, Reply::Yes].map(Fresh::new);
        for n in 0..self.repeats.repeats {
            progress(&format!("repetition {} of {}", n + 1, self.repeats.repeats));
            let (run, passed) = overload(&mut rig, self.repeats.time())?;
            forwarded.push(run.mpps());
            forwarded_cycles.push(passed.cycles_per_frame());
            let (time, passed) = denied_for(&mut rig, &mut fresh, self.repeats.time())?;
            let mpps = passed.dropped / time / 1e6;
            denied.push(mpps);
            denied_cycles.push(passed.cycles_per_frame());
            ratio.push(mpps / run.mpps().max(f64::MIN_POSITIVE));
            seconds += time;
            sum.add(&passed);
        }
        let mut steps = Vec::new();
        if self.profile {
            progress("profiling");
            rig.switch.profile(true)?;
            let forwarded = overload(&mut rig, self.repeats.time())?.1.steps;
            let denied = denied_for(&mut rig, &mut fresh, self.repeats.time())?
                .1
                .steps;
            let both = forwarded.into_iter().zip(denied);
            steps = both.map(|((step, f), (_, d))| (step, f, d)).collect();
        }
        let busy = sum.busy(seconds);
        Ok(DenyFigures {
            forwarded_mpps: Summary::of(forwarded),
            denied_mpps: Summary::of(denied),
            ratio: Summary::of(ratio),
            forwarded_cycles: Summary::of(forwarded_cycles),
            denied_cycles: Summary::of(denied_cycles),
            busy,
            generator_bound: busy < GENERATOR_BOUND,
            denied: sum.dropped,
            steps,
        })
    }
}

/// Frames of connections that nobody has, each of another one.
#[derive(Debug)]
pub(super) struct Fresh {
    frame: Vec<u8>,
    number: u64,
}

impl Fresh {
    pub(super) fn new(reply: Reply) -> Self {
        let mut frame = headers(reply, proto::UDP, BYTES - 14, 0);
        frame.extend([0; 4]);
        frame.extend((BYTES - 34).to_be_bytes());
        frame.resize(BYTES.into(), 0);
        Fresh { frame, number: 0 }
    }
}

impl Source for Fresh {
    #[inline]
    fn next(&mut self) -> &[u8] {
        #[allow(clippy::cast_possible_truncation)] // 16 bits; below PORTS
        let (low, high) = (self.number as u16, (self.number >> 16) % PORTS);
        #[allow(clippy::cast_possible_truncation)] // below PORTS
        let ([a, b], [c, d]) = (low.to_be_bytes(), (PORT + high as u16).to_be_bytes());
        put(&mut self.frame, PORTS_AT, [a, b, c, d]);
        self.number += 1;
        &self.frame
    }
}

/// Both guests send what is denied: seconds, and what the switch did.
pub(super) fn denied_for(
    rig: &mut Rig<Load>,
    fresh: &mut [Fresh; 2],
    time: Duration,
) -> Result<(f64, Passed), BenchError> {
    flood(rig, fresh, WARM_UP)?;
    let before = Sample::take(&rig.switch)?;
    let seconds = flood(rig, fresh, time)?;
    Ok((seconds, Sample::take(&rig.switch)?.since(&before)))
}

/// Both guests send what is denied for so long; the seconds it was.
fn flood(rig: &mut Rig<Load>, fresh: &mut [Fresh; 2], time: Duration) -> Result<f64, BenchError> {
    let start = Instant::now();
    loop {
        let admitted = rig.load.others(fresh);
        let elapsed = start.elapsed();
        if admitted > 0 {
            return Err(BenchError::Admitted(admitted));
        }
        if elapsed >= time {
            return Ok(elapsed.as_secs_f64());
        }
    }
}
