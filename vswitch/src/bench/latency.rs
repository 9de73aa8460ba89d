//! `vswitch bench latency`: how long a frame is under way.

use clap::Args;
use serde::Serialize;

use super::load::{Load, NOW};
use super::loopback::WARM_UP;
use super::options::{On, Repeats, Traffic};
use super::rig::{Rig, policy};
use super::stats::{Histogram, Summary};
use super::{Bench, BenchError, Cores, Progress};
use crate::sys::time::tsc_hz;

/// The percentiles that are shown.
pub const PERCENTILES: [(&str, f64); 4] =
    [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)];
/// Repetitions of the search for what is possible: its median counts.
const SEARCHED: u32 = 3;

/// How long a frame takes from guest to guest, by percentile, at stated loads.
///
/// Loads are shares of the most that this switch forwards, which is found first, or stated. Frames are sent evenly; a delay is from putting a frame into the sender's ring to taking it from the
/// receiver's, both on the generator's thread, whose own turns (some 100 ns to 1 µs) are part of it.
#[derive(Clone, Debug, Serialize, Args)]
pub struct Latency {
    /// Loads, per cent of the most.
    #[arg(long, value_delimiter = ',', default_values_t = [10.0, 50.0], value_parser = percent)]
    pub load: Vec<f64>,
    /// The most, million frames a second, instead of finding it: the same load for several switches.
    #[arg(long, value_name = "MPPS", value_parser = mpps)]
    pub most: Option<f64>,
    /// Which switch.
    #[command(flatten)]
    #[serde(flatten)]
    pub on: On,
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
}

fn percent(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(p) if (0.1..=100.0).contains(&p) => Ok(p),
        _ => Err("write per cent from 0.1 to 100".to_owned()),
    }
}

fn mpps(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(m) if (0.001..=1000.0).contains(&m) => Ok(m),
        _ => Err("write million frames a second from 0.001 to 1000".to_owned()),
    }
}

/// What was seen.
#[derive(Clone, Debug, Serialize)]
pub struct LatencyFigures {
    /// The most: both directions flat out, million frames a second.
    pub most_mpps: f64,
    /// By load.
    pub loads: Vec<AtLoad>,
}

/// Delays at one load.
#[derive(Clone, Debug, Serialize)]
pub struct AtLoad {
    /// Per cent of the most.
    pub percent: f64,
    /// Both directions together, million frames a second.
    pub mpps: f64,
    /// Median, lowest and highest of the repetitions, by percentile, ns.
    pub percentiles_ns: Vec<(&'static str, Summary)>,
    /// The longest delay of all, ns.
    pub largest_ns: f64,
    /// Delays of all repetitions together, from short to long: share of the frames that took no longer, and ns.
    pub curve_ns: Vec<(f64, f64)>,
    /// Frames sent.
    pub sent: u64,
    /// Frames that did not arrive.
    pub lost: u64,
    /// Frames that the generator did not get to: it was the limit.
    pub missed: u64,
}

impl Bench for Latency {
    type Figures = LatencyFigures;

    fn measure(&self, cores: Cores, progress: Progress<'_>) -> Result<Self::Figures, BenchError> {
        // Dropped in this order: the guests, then their switch.
        let (_switch, mut load) = match self.on.sockets() {
            Some(sockets) => (
                None,
                Load::on(cores, sockets, &self.traffic, NOW, progress)?,
            ),
            None => {
                let policy = policy(self.rules, self.traffic.sizes.service());
                let rig = Rig::open(cores, policy, &self.traffic, progress)?;
                (Some(rig.switch), rig.load)
            }
        };
        let most = match self.most {
            Some(most) => most,
            None => {
                progress("searching for the most");
                let run = |_| Ok(load.run(WARM_UP, self.repeats.time(), || ())?.mpps());
                let found: Result<_, BenchError> = (0..SEARCHED).map(run).collect();
                Summary::of(found?).median
            }
        };
        #[allow(clippy::cast_precision_loss)] // a few GHz
        let ns = |cycles: u64| cycles as f64 * 1e9 / tsc_hz() as f64;
        let mut loads = Vec::with_capacity(self.load.len());
        for &percent in &self.load {
            let mpps = most * percent / 100.0;
            let mut by_percentile = PERCENTILES.map(|_| Vec::new());
            let mut all = Histogram::new();
            let (mut sent, mut lost, mut missed) = (0, 0, 0);
            for n in 0..self.repeats.repeats {
                progress(&format!(
                    "{percent} % of {most:.2} Mpps, repetition {} of {}",
                    n + 1,
                    self.repeats.repeats
                ));
                let mut delays = Histogram::new();
                let trial = load.paced(mpps * 1e6, self.repeats.time(), Some(&mut delays));
                if trial.wrong > 0 {
                    return Err(BenchError::Wrong(trial.wrong));
                }
                for (values, (_, share)) in by_percentile.iter_mut().zip(PERCENTILES) {
                    values.push(ns(delays.percentile(share)));
                }
                all.merge(&delays);
                sent += trial.due - trial.missed;
                lost += trial.due - trial.missed - trial.arrived;
                missed += trial.missed;
            }
            let names = PERCENTILES.iter().map(|(name, _)| *name);
            loads.push(AtLoad {
                percent,
                mpps,
                percentiles_ns: names.zip(by_percentile.map(Summary::of)).collect(),
                largest_ns: ns(all.largest()),
                curve_ns: all
                    .curve()
                    .map(|(share, cycles)| (share, ns(cycles)))
                    .collect(),
                sent,
                lost,
                missed,
            });
        }
        Ok(LatencyFigures {
            most_mpps: most,
            loads,
        })
    }
}
