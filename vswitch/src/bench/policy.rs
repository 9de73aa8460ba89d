//! `vswitch bench policy`: what a change of policy does to traffic.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::frames::{FLOWS_MAX, Sizes};
use super::load::{Load, Watched};
use super::options::{Rings, Traffic};
use super::rig::{Rig, RigConfig, policy};
use super::stats::Summary;
use super::{Bench, BenchError, Cores, Progress};
use crate::control::api::Applied;
use crate::control::{Switch, SwitchError};
use crate::policy::model::{Action, Policy, Rule};
use crate::sys::time::{tsc, tsc_hz};

/// Length of a slice in which frames are counted.
const SLICE: Duration = Duration::from_millis(5);
/// Slices before the change, and after.
const BEFORE: usize = 60;
const AFTER: usize = 140;
/// Slices without a frame after which none is under way.
const SILENT: usize = 4;
/// A slice with less than this share of the rate before belongs to the dip.
const DIP: f64 = 0.9;

/// What a change of policy does to live connections.
///
/// Both guests are flat out on all of them. First a change that
/// denies other traffic only: every connection is judged again on its next frame, and the rate dips. Then one that denies all
/// of this traffic: the time from the call of `apply` to the last frame that arrives. Connections are opened again for
/// each repetition. The program that calls `apply` and the switch's control thread share the two cores with worker and
/// generator, where there are no more.
#[derive(Clone, Debug, Serialize, Args)]
pub struct PolicyChange {
    /// Live connections.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..=FLOWS_MAX as i64))]
    pub flows: u32,
    /// Rules in the policy; the last one admits the load.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub rules: u32,
    /// Rings of the guests.
    #[command(flatten)]
    #[serde(flatten)]
    pub rings: Rings,
    /// Repetitions.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub repeats: u32,
}

/// What was seen.
#[derive(Clone, Debug, Serialize)]
pub struct PolicyChangeFigures {
    /// From the call of `apply` to the last frame under the old verdict, µs.
    pub last_frame_us: Summary,
    /// From the call of `apply` to its return, µs: then every worker enforces the new policy.
    pub apply_us: Summary,
    /// Of that, from the publish until every worker had it, µs.
    pub settle_us: Summary,
    /// Both directions together before the change, million frames a second.
    pub before_mpps: Summary,
    /// The slowest slice after a change that denies nothing of it, by the rate before.
    pub lowest: Summary,
    /// Time of the slices below 90 % of the rate before, ms.
    pub dip_ms: Summary,
    /// Length of a slice, ms.
    pub slice_ms: f64,
    /// Mean of the repetitions by slice: ms from the change, million frames a second.
    pub curve: Vec<(f64, f64)>,
}

impl Bench for PolicyChange {
    type Figures = PolicyChangeFigures;

    fn measure(&self, cores: Cores, progress: Progress<'_>) -> Result<Self::Figures, BenchError> {
        progress("starting the switch");
        let load = Traffic {
            rings: self.rings,
            sizes: Sizes::Fixed(64),
            flows: self.flows,
        };
        let config = RigConfig::new(policy(self.rules, "udp"), self.flows as usize);
        let Rig { mut load, switch } =
            Rig::start(cores, config, |sockets| Load::connect(sockets, &load))?;
        std::thread::scope(|s| {
            let (change, changes) = channel();
            let (outcome, outcomes) = channel();
            let switch = &switch;
            // Before this thread is pinned: the other one goes where there is room.
            s.spawn(move || apply(switch, &changes, &outcome));
            cores.pin_generator()?;
            self.repeat(&mut load, &change, &outcomes, progress)
        })
    }
}

/// When a change was asked for, when it was in force, and what `apply` said.
type Outcome = (u64, u64, Result<Applied, SwitchError>);

/// Applies what comes until nobody sends any more.
fn apply(switch: &Switch, changes: &Receiver<Policy>, outcome: &Sender<Outcome>) {
    for policy in changes {
        let start = tsc();
        let applied = switch.apply_policy(policy);
        if outcome.send((start, tsc(), applied)).is_err() {
            return;
        }
    }
}

/// Traffic through a change: rates before and after, and when what happened.
struct Change {
    watched: Watched,
    /// TSC.
    asked: u64,
    returned: u64,
    applied: Applied,
}

fn change(
    load: &mut Load,
    policy: Policy,
    change: &Sender<Policy>,
    outcomes: &Receiver<Outcome>,
) -> Result<Change, BenchError> {
    let mut policy = Some(policy);
    let watched = load.watched(SLICE, BEFORE + AFTER, |slice| {
        if let Some(policy) = policy.take_if(|_| slice == BEFORE) {
            // That nobody takes it shows below.
            let _ = change.send(policy);
        }
    });
    if watched.wrong > 0 {
        return Err(BenchError::Wrong(watched.wrong));
    }
    let (asked, returned, applied) = outcomes.recv().map_err(|_gone| SwitchError::Down)?;
    Ok(Change {
        watched,
        asked,
        returned,
        applied: applied?,
    })
}

/// Goes on until nothing arrives for a while; when the last frame did, if any. By now the policy that denies all is
/// in force, so it is only what is under way.
fn silence(load: &mut Load) -> Result<Option<u64>, BenchError> {
    let mut last = None;
    for _ in 0..AFTER {
        let watched = load.watched(SLICE, SILENT, |_| ());
        if watched.slices.iter().all(|&n| n == 0) {
            return Ok(last);
        }
        last = Some(watched.last);
    }
    Err(BenchError::NotEnforced)
}

impl PolicyChange {
    fn repeat(
        &self,
        load: &mut Load,
        changes: &Sender<Policy>,
        outcomes: &Receiver<Outcome>,
        progress: Progress<'_>,
    ) -> Result<PolicyChangeFigures, BenchError> {
        #[allow(clippy::cast_precision_loss)] // a few GHz
        let us = |cycles: u64| cycles as f64 * 1e6 / tsc_hz() as f64;
        let as_before = policy(self.rules, "udp");
        let mut other = as_before.clone();
        other.rules.insert(0, {
            let service = "tcp/9".parse().into_iter().collect();
            Rule {
                service,
                ..Rule::new("other", &["any"], &["any"], Action::Deny)
            }
        });
        let denying = policy(self.rules, "tcp/9000");
        let (mut last_frame, mut returned, mut settled) = (Vec::new(), Vec::new(), Vec::new());
        let (mut before, mut lowest, mut dip) = (Vec::new(), Vec::new(), Vec::new());
        let mut sums = vec![0.0; BEFORE + AFTER];
        progress("opening connections");
        load.open()?;
        for n in 0..self.repeats {
            progress(&format!("repetition {} of {}", n + 1, self.repeats));
            let dipped = change(load, other.clone(), changes, outcomes)?;
            let rates: Vec<f64> = dipped.watched.slices.iter().map(|&n| mpps(n)).collect();
            let (then, after) = rates.split_at(BEFORE);
            let usual = Summary::of(then.to_vec()).median;
            let share = after.iter().map(|r| r / usual.max(f64::MIN_POSITIVE));
            lowest.push(share.clone().fold(f64::INFINITY, f64::min));
            dip.push(
                share
                    .filter(|&s| s < DIP)
                    .map(|_| SLICE.as_secs_f64() * 1e3)
                    .sum(),
            );
            before.push(usual);
            for (sum, rate) in sums.iter_mut().zip(&rates) {
                *sum += rate;
            }

            let cut = change(load, denying.clone(), changes, outcomes)?;
            let last = silence(load)?.unwrap_or(cut.watched.last);
            last_frame.push(us(last.saturating_sub(cut.asked)));
            returned.push(us(cut.returned.wrapping_sub(cut.asked)));
            #[allow(clippy::cast_precision_loss)] // seconds
            settled.push(cut.applied.settle_us as f64);

            changes
                .send(as_before.clone())
                .map_err(|_gone| SwitchError::Down)?;
            let (_, _, applied) = outcomes.recv().map_err(|_gone| SwitchError::Down)?;
            applied?;
            load.open()?;
        }
        let slice_ms = SLICE.as_secs_f64() * 1e3;
        let curve = (0u32..).zip(sums).map(|(i, sum)| {
            let from_change = f64::from(i) - f64::from(u32::try_from(BEFORE).unwrap_or(0));
            (from_change * slice_ms, sum / f64::from(self.repeats))
        });
        Ok(PolicyChangeFigures {
            last_frame_us: Summary::of(last_frame),
            apply_us: Summary::of(returned),
            settle_us: Summary::of(settled),
            before_mpps: Summary::of(before),
            lowest: Summary::of(lowest),
            dip_ms: Summary::of(dip),
            slice_ms,
            curve: curve.collect(),
        })
    }
}

/// Million frames a second, of the frames of a slice.
#[allow(clippy::cast_precision_loss)] // far below 2^53
fn mpps(frames: u64) -> f64 {
    frames as f64 / SLICE.as_secs_f64() / 1e6
}
