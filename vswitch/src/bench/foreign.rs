//! `vswitch bench foreign`: the generator of `loopback` on a switch that is not ours.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::Args;
use serde::Serialize;

use super::load::{Attach, Load, NOW};
use super::loopback::{GENERATOR_BOUND, WARM_UP};
use super::options::{Repeats, Traffic, seconds};
use super::stats::Summary;
use super::{Bench, BenchError, Cores, Progress};

/// How long another switch may take to connect, unless said: some look once a second.
const CONNECTED_WITHIN: Duration = Duration::from_secs(10);

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
    /// Listens at the sockets, which must not exist, for the other switch to connect.
    #[arg(long)]
    pub listen: bool,
    /// Waits so long, seconds, for the other switch to be there and to forward, and says when the first frame came
    /// through.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub wait: Option<f64>,
    /// How often, and how long.
    #[command(flatten)]
    #[serde(flatten)]
    pub repeats: Repeats,
}

/// What was seen.
#[derive(Clone, Debug, Serialize)]
pub struct ForeignFigures {
    /// When the first frame came through, seconds since 1970, if it was waited for.
    pub first_at: Option<f64>,
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
        let sockets = [&*self.a, &*self.b];
        let wait = self.wait.map(Duration::from_secs_f64);
        let how = match (self.listen, wait) {
            (true, within) => Attach::Listen(within.unwrap_or(CONNECTED_WITHIN)),
            (false, Some(within)) => Attach::Connect(within),
            (false, None) => NOW,
        };
        let (mut load, first_at) = match wait {
            None => {
                let load = Load::on(cores, sockets, &self.traffic, how, progress)?;
                (load, None)
            }
            Some(within) => {
                progress("waiting for the other switch");
                let mut load = Load::attach(sockets, &self.traffic, how)?;
                load.first(within)?;
                let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
                cores.pin_generator()?;
                load.open()?;
                (load, at.ok().map(|at| at.as_secs_f64()))
            }
        };
        let (mut mpps, mut gbps) = (Vec::new(), Vec::new());
        let (mut seconds, mut busy) = (0.0, 0.0);
        for n in 0..self.repeats.repeats {
            progress(&format!("repetition {} of {}", n + 1, self.repeats.repeats));
            let run = load.run(WARM_UP, self.repeats.time(), || ())?;
            mpps.push(run.mpps());
            gbps.push(run.gbps());
            seconds += run.seconds;
            busy += run.busy_seconds;
        }
        let generator_busy = busy / seconds;
        Ok(ForeignFigures {
            first_at,
            mpps: Summary::of(mpps),
            gbps: Summary::of(gbps),
            generator_busy,
            generator_bound: generator_busy > GENERATOR_BOUND,
        })
    }
}
