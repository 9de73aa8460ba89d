//! The switch's counters at one moment, and what happened between two.

use std::collections::BTreeMap;

use super::BenchError;
use crate::control::Switch;
use crate::sys::time::tsc_hz;

/// The steps of a frame's way, as the worker's counters name them.
pub(super) const STEPS: [(&str, &str); 7] = [
    ("rx", "step_rx_cycles"),
    ("parse", "step_parse_cycles"),
    ("guard, output", "step_locate_cycles"),
    ("lookup", "step_lookup_cycles"),
    ("track, judge", "step_track_cycles"),
    ("tx", "step_tx_cycles"),
    ("complete, notify", "step_complete_cycles"),
];

/// See the module documentation.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    /// Of all workers together, by name.
    workers: BTreeMap<String, u64>,
    rx: u64,
    dropped: u64,
}

impl Sample {
    pub(super) fn take(switch: &Switch) -> Result<Self, BenchError> {
        let stats = switch.stats()?;
        let mut workers = BTreeMap::new();
        for (name, value) in stats.workers.into_iter().flat_map(|w| w.counters) {
            *workers.entry(name).or_insert(0) += value;
        }
        Ok(Sample {
            workers,
            rx: stats.conservation.rx,
            dropped: stats.conservation.dropped,
        })
    }

    /// What happened since `before`.
    pub(super) fn since(&self, before: &Sample) -> Passed {
        let worker = |name: &str| {
            let at = |s: &Sample| s.workers.get(name).copied().unwrap_or(0);
            passed(at(before), at(self))
        };
        let frames = passed(before.rx, self.rx);
        Passed {
            cycles: worker("busy_cycles"),
            iterations: worker("busy_iterations"),
            frames,
            dropped: passed(before.dropped, self.dropped),
            steps: STEPS
                .map(|(step, name)| (step, worker(name) / frames.max(1.0)))
                .to_vec(),
        }
    }
}

#[allow(clippy::cast_precision_loss)] // far below 2^53
fn passed(before: u64, after: u64) -> f64 {
    after.wrapping_sub(before) as f64
}

/// What the switch did meanwhile.
#[derive(Clone, Debug, Default)]
pub(super) struct Passed {
    /// TSC cycles of iterations that moved frames.
    pub(super) cycles: f64,
    /// These iterations.
    pub(super) iterations: f64,
    /// Frames received.
    pub(super) frames: f64,
    /// Frames dropped.
    pub(super) dropped: f64,
    /// TSC cycles by frame and step, in the steps' order; zeros unless profiled.
    pub(super) steps: Vec<(&'static str, f64)>,
}

impl Passed {
    pub(super) fn add(&mut self, more: &Passed) {
        self.cycles += more.cycles;
        self.iterations += more.iterations;
        self.frames += more.frames;
        self.dropped += more.dropped;
    }

    /// Share of so many seconds in iterations that moved frames.
    #[allow(clippy::cast_precision_loss)] // a few GHz
    pub(super) fn busy(&self, seconds: f64) -> f64 {
        self.cycles / (seconds * tsc_hz() as f64)
    }

    pub(super) fn cycles_per_frame(&self) -> f64 {
        self.cycles / self.frames.max(1.0)
    }
}
