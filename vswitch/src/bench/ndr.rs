//! `vswitch bench ndr`: the highest rate without loss, and with half a per cent.

use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use super::loopback::overload;
use super::mlr::{Goal, Search};
use super::options::{Traffic, seconds};
use super::rig::{Rig, policy};
use super::{Bench, BenchError, Cores, Progress};

/// Names and loss ratios of the goals, as FD.io CSIT has them.
const GOALS: [(&str, f64); 2] = [("NDR", 0.0), ("PDR", 0.005)];
/// Bad trials of all that still make a lower bound, and relative distance of the bounds: CSIT's too.
const EXCEED: f64 = 0.5;
const WIDTH: f64 = 0.005;
/// The highest load tried, by the rate flat out: nothing beyond arrives.
const MOST: f64 = 1.5;
/// How long both guests send flat out.
const FLAT_OUT: Duration = Duration::from_millis(500);

/// The highest rate from guest to guest at which no frame is lost (NDR), and at which half a per cent is (PDR).
///
/// A search in the manner of MLRsearch (draft-ietf-bmwg-mlrsearch): half of the trials at a load may be worse, the bounds
/// are at most 0.5 % apart. A frame that finds no room in its sender's ring is lost.
#[derive(Clone, Debug, Serialize, Args)]
pub struct Ndr {
    /// What the guests exchange.
    #[command(flatten)]
    #[serde(flatten)]
    pub traffic: Traffic,
    /// Rules in the policy; the last one admits the load.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub rules: u32,
    /// Seconds of each trial.
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    pub trial: f64,
    /// Trials by which a load near the answer is judged; a good half decides sooner.
    #[arg(long, default_value_t = 21, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub trials: u32,
    /// Seconds after which the search ends as it stands.
    #[arg(long, default_value_t = 600.0, value_parser = seconds)]
    pub at_most: f64,
}

/// What was seen. Rates are of both directions together, million frames a second.
#[derive(Clone, Debug, Serialize)]
pub struct NdrFigures {
    /// Flat out: what arrives when more is offered than is carried.
    pub overload_mpps: f64,
    /// By goal.
    pub goals: Vec<Carried>,
    /// Trials made.
    pub trials: u32,
}

/// The answer to one goal.
#[derive(Clone, Debug, Serialize)]
pub struct Carried {
    /// NDR or PDR.
    pub goal: &'static str,
    /// Loss that it allows.
    pub loss: f64,
    /// What arrives when the lower bound is offered ("conditional throughput").
    pub mpps: f64,
    /// The lower bound: carried.
    pub lower_mpps: f64,
    /// The upper bound: not carried. `None`: there was none up to one and a half times the rate flat out.
    pub upper_mpps: Option<f64>,
    /// The bounds are as close as they shall be.
    pub converged: bool,
    /// Above the lower bound it was the generator that could not follow.
    pub generator_bound: bool,
}

impl Bench for Ndr {
    type Figures = NdrFigures;

    fn measure(&self, cores: Cores, progress: Progress<'_>) -> Result<Self::Figures, BenchError> {
        let policy = policy(self.rules, self.traffic.sizes.service());
        let mut rig = Rig::open(cores, policy, &self.traffic, progress)?;
        let flat_out = overload(&mut rig, FLAT_OUT)?.0.mpps();
        let (start, time) = (Instant::now(), Duration::from_secs_f64(self.trial));
        let (mut trials, mut wrong, mut slow) = (0, 0, Vec::new());
        let mut search = Search::new(MOST * flat_out, |mpps| {
            if start.elapsed().as_secs_f64() + self.trial > self.at_most || wrong > 0 {
                return None;
            }
            trials += 1;
            progress(&format!("trial {trials} at {mpps:.3} Mpps"));
            let trial = rig.load.paced(mpps * 1e6, time, None);
            wrong = trial.wrong;
            if trial.missed > 0 {
                slow.push(mpps);
            }
            Some(trial.loss())
        });
        let mut guess = flat_out;
        let found = GOALS.map(|(name, loss)| {
            let goal = Goal {
                loss,
                trials: self.trials,
                exceed: EXCEED,
                width: WIDTH,
            };
            let found = search.find(&goal, guess);
            if found.lower > 0.0 {
                guess = found.lower;
            }
            (name, loss, found)
        });
        if wrong > 0 {
            return Err(BenchError::Wrong(wrong));
        }
        let goals = found.map(|(goal, loss, found)| Carried {
            goal,
            loss,
            mpps: found.conditional,
            lower_mpps: found.lower,
            upper_mpps: found.upper,
            converged: found.converged,
            generator_bound: slow.iter().any(|&mpps| Some(mpps) == found.upper),
        });
        Ok(NdrFigures {
            overload_mpps: flat_out,
            goals: goals.to_vec(),
            trials,
        })
    }
}
