//! `vswitch bench foreign`: the generator of `loopback` on a switch that is not ours.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::load::Load;
use super::loopback::{GENERATOR_BOUND, WARM_UP};
use super::options::{Repeats, Traffic};
use super::stats::Summary;
use super::{Bench, BenchError, Cores, Progress};

/// The load of `loopback` on another switch, which listens at two vhost-user sockets and forwards between them.
///
/// Guest A is 52:54:00:be:00:01 with 10.99.0.1 and opens UDP connections, B is 52:54:00:be:00:02 with 10.99.0.2 and answers. The
/// other switch must not run on the generator's core.
#[derive(Clone, Debug, Serialize, Args)]
pub struct Foreign {
    /// Socket of the port for guest A.
    #[arg(value_name = "SOCKET-A")]
    pub a: PathBuf,
    /// Socket of the port for guest B.
    #[arg(value_name = "SOCKET-B")]
    pub b: PathBuf,
    /// What the guests exchange.
    #[command(flatten)]
    #[serde(flatten)]
    pub traffic: Traffic,
    /// How often, and how long.
    #[command(flatten)]
    #[serde(flatten)]
    pub repeats: Repeats,
}

/// What was seen.
#[derive(Clone, Debug, Serialize)]
pub struct ForeignFigures {
    /// Both directions together, million frames a second.
    pub mpps: Summary,
    /// The same, gigabits a second of frames without FCS.
    pub gbps: Summary,
    /// Share of its time in which the generator had something to do.
    pub generator_busy: f64,
    /// The generator was the limit: it could not have done 1.3 times as much.
    pub generator_bound: bool,
}

impl Bench for Foreign {
    type Figures = ForeignFigures;

    fn measure(&self, cores: Cores, progress: Progress<'_>) -> Result<Self::Figures, BenchError> {
        progress("attaching");
        let mut load = Load::connect([&self.a, &self.b], &self.traffic)?;
        cores.pin_generator()?;
        progress("opening connections");
        load.open()?;
        let (mut mpps, mut gbps) = (Vec::new(), Vec::new());
        let (mut seconds, mut busy) = (0.0, 0.0);
        for n in 0..self.repeats.repeats {
            progress(&format!("repetition {} of {}", n + 1, self.repeats.repeats));
            let run = load.run(WARM_UP, self.repeats.time(), || ());
            if run.wrong > 0 {
                return Err(BenchError::Wrong(run.wrong));
            }
            mpps.push(run.mpps());
            gbps.push(run.gbps());
            seconds += run.seconds;
            busy += run.busy_seconds;
        }
        let generator_busy = busy / seconds;
        Ok(ForeignFigures {
            mpps: Summary::of(mpps),
            gbps: Summary::of(gbps),
            generator_busy,
            generator_bound: generator_busy > GENERATOR_BOUND,
        })
    }
}
