//! `vswitch bench start`: from nothing to the first forwarded frame.

use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use super::frames::Sizes;
use super::load::Load;
use super::options::{Rings, Traffic};
use super::rig::{self, RigConfig, policy};
use super::stats::Summary;
use super::{Bench, BenchError, Cores, Progress};

/// From the start of a switch to the first frame that it forwarded.
///
/// In this process: the table is taken, the policy
/// compiled and published, two guests attach, one sends and the other one answers. What a process takes to start (some
/// ms) is not in it.
#[derive(Clone, Debug, Serialize, Args)]
pub struct Start {
    /// Connections there is room for.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1000..))]
    pub connections: u32,
    /// Rules in the policy; the last one admits the frame.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub rules: u32,
    /// Rings of the guests.
    #[command(flatten)]
    #[serde(flatten)]
    pub rings: Rings,
    /// Repetitions.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub repeats: u32,
}

/// What was seen, ms.
#[derive(Clone, Debug, Serialize)]
pub struct StartFigures {
    /// Until workers and control thread run and enforce the policy.
    pub started_ms: Summary,
    /// Until both guests are attached.
    pub attached_ms: Summary,
    /// Until the first frame was forwarded and its answer too.
    pub forwarded_ms: Summary,
}

impl Bench for Start {
    type Figures = StartFigures;

    fn measure(&self, cores: Cores, progress: Progress<'_>) -> Result<Self::Figures, BenchError> {
        let load = Traffic {
            rings: self.rings,
            sizes: Sizes::Fixed(64),
            flows: 1,
        };
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let (mut started, mut attached, mut forwarded) = (Vec::new(), Vec::new(), Vec::new());
        for n in 0..self.repeats {
            progress(&format!("repetition {} of {}", n + 1, self.repeats));
            let connections = self.connections as usize;
            let config = RigConfig {
                connections,
                ..RigConfig::new(policy(self.rules, "udp"), 0)
            };
            let start = Instant::now();
            let switch = rig::switch(cores, config)?;
            started.push(ms(start.elapsed()));
            let mut load = rig::attach(&switch, connections, |s| Load::connect(s, &load))?;
            attached.push(ms(start.elapsed()));
            load.open()?;
            forwarded.push(ms(start.elapsed()));
        }
        Ok(StartFigures {
            started_ms: Summary::of(started),
            attached_ms: Summary::of(attached),
            forwarded_ms: Summary::of(forwarded),
        })
    }
}
