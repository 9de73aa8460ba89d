//! `vswitch bench idle`: what an idle switch costs, and what its first frame afterwards waits.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use super::frames::Sizes;
use super::load::Load;
use super::options::{Rings, Traffic, seconds};
use super::rig::{self, Rig, RigConfig, policy};
use super::stats::Summary;
use super::veth::Veth;
use super::{Bench, BenchError, Cores, Progress};
use crate::control::state::Poll;
use crate::sys::time::tsc_hz;

/// Before each late frame; the worker goes to sleep after a fraction of that.
const PAUSE: Duration = Duration::from_millis(50);

/// CPU time of an idle switch, and what the first frame after idling waits.
///
/// A switch in its default mode, with two guests attached and, as root, two containers behind veth pairs: the CPU time of
/// its threads while nothing is sent. Then the time from a guest's send to the other guest's receive:
/// right after another frame, and after a pause of 50 ms in which the worker went to sleep.
#[derive(Clone, Debug, Serialize, Args)]
pub struct Idle {
    /// Connections there is room for.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1000..))]
    pub connections: u32,
    /// Connections open, which the switch looks through meanwhile.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub flows: u32,
    /// Rings of the guests.
    #[command(flatten)]
    #[serde(flatten)]
    pub rings: Rings,
    /// Seconds without traffic; with containers as long before, while their kernels announce themselves.
    #[arg(long, default_value_t = 10.0, value_parser = seconds)]
    pub seconds: f64,
    /// Frames of each kind.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    pub frames: u32,
}

/// What was seen.
#[derive(Clone, Debug, Serialize)]
pub struct IdleFigures {
    /// Containers attached.
    pub containers: usize,
    /// Why there are none.
    pub no_containers: Option<String>,
    /// By thread: its share of a core while nothing was sent.
    pub threads: Vec<(String, f64)>,
    /// All together.
    pub share: f64,
    /// From send to receive right after another frame, µs.
    pub awake_us: Percentiles,
    /// The same after a pause, µs.
    pub asleep_us: Percentiles,
}

/// Of one kind of frame.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Percentiles {
    /// Half are no slower.
    pub p50: f64,
    /// Nine in ten.
    pub p90: f64,
    /// All.
    pub largest: f64,
}

impl Percentiles {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let largest = Summary::of(values.clone()).high;
        let at =
            |percent: usize| values.get((values.len() * percent).div_ceil(100).saturating_sub(1));
        Percentiles {
            p50: at(50).copied().unwrap_or(0.0),
            p90: at(90).copied().unwrap_or(0.0),
            largest,
        }
    }
}

impl Bench for Idle {
    type Figures = IdleFigures;

    fn measure(&self, cores: Cores, progress: Progress<'_>) -> Result<Self::Figures, BenchError> {
        progress("starting the switch");
        let others = threads()?;
        let connections = self.connections as usize;
        let config = || RigConfig {
            connections,
            poll: Poll::Adaptive,
            ..RigConfig::new(policy(1, "udp"), 0)
        };
        let (veth, no_containers) = match Veth::pair(2) {
            Ok(veth) => (Some(veth), None),
            Err(e @ BenchError::NoNamespaces(_)) => (None, Some(e.to_string())),
            Err(e) => return Err(e),
        };
        let switch = match &veth {
            Some(veth) => veth.switch(cores, config())?,
            None => rig::switch(cores, config())?,
        };
        let containers = veth.as_ref().map_or(0, |v| v.containers.len());
        let load = Traffic {
            rings: self.rings,
            sizes: Sizes::Fixed(64),
            flows: self.flows,
        };
        let load = rig::attach(&switch, connections, |s| Load::connect(s, &load))?;
        let mut rig = Rig { load, switch };
        rig.load.open()?;
        if containers > 0 {
            progress("waiting until the containers' kernels are silent");
            // They announce themselves for some seconds.
            std::thread::sleep(Duration::from_secs_f64(self.seconds));
        }
        progress("idling");
        let (start, before) = (Instant::now(), threads()?);
        std::thread::sleep(Duration::from_secs_f64(self.seconds));
        let (time, after) = (start.elapsed(), threads()?);
        let ours = after.into_iter().filter(|(id, _)| !others.contains_key(id));
        let mut shares: Vec<_> = ours
            .map(|(id, (name, time_after))| {
                let time_before = before.get(&id).map_or(Duration::ZERO, |(_, t)| *t);
                let used = time_after.saturating_sub(time_before);
                (name, used.as_secs_f64() / time.as_secs_f64())
            })
            .collect();
        shares.sort_by(|a, b| a.0.cmp(&b.0));
        progress("sending single frames");
        let mut awake = Vec::with_capacity(self.frames as usize);
        let mut asleep = Vec::with_capacity(self.frames as usize);
        one(&mut rig.load)?;
        for _ in 0..self.frames {
            awake.push(one(&mut rig.load)?);
        }
        for _ in 0..self.frames {
            std::thread::sleep(PAUSE);
            asleep.push(one(&mut rig.load)?);
        }
        Ok(IdleFigures {
            containers,
            no_containers,
            share: shares.iter().map(|(_, share)| share).sum(),
            threads: shares,
            awake_us: Percentiles::of(awake),
            asleep_us: Percentiles::of(asleep),
        })
    }
}

/// Sends a frame and polls until it is there; µs.
#[allow(clippy::cast_precision_loss)] // seconds of cycles
fn one(load: &mut Load) -> Result<f64, BenchError> {
    Ok(load.one()? as f64 * 1e6 / tsc_hz() as f64)
}

/// Name and CPU time so far of each thread of this process.
fn threads() -> io::Result<BTreeMap<String, (String, Duration)>> {
    let mut threads = BTreeMap::new();
    for task in fs::read_dir("/proc/self/task")? {
        let task = task?;
        let read = |file| fs::read_to_string(task.path().join(file));
        // One that ended this instant has no files any more.
        let (Ok(name), Ok(stat)) = (read("comm"), read("schedstat")) else {
            continue;
        };
        // Its first number: time on a CPU, ns (Documentation/scheduler/sched-stats.rst).
        let ns = stat.split_whitespace().next().and_then(|n| n.parse().ok());
        let time = Duration::from_nanos(ns.unwrap_or(0));
        let id = task.file_name().to_string_lossy().into_owned();
        threads.insert(id, (name.trim().to_owned(), time));
    }
    Ok(threads)
}
