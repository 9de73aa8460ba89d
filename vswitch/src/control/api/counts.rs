//! What is counted.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::WorkerInfo;

/// One drop reason.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DropInfo {
    /// Name.
    pub reason: String,
    /// What happened, in a sentence.
    pub sentence: String,
    /// Frames, all ports.
    pub total: u64,
    /// Frames by port (only ports that have some).
    pub ports: BTreeMap<String, u64>,
}

/// Counters.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Stats {
    /// By port, since it was opened.
    pub ports: BTreeMap<String, PortStats>,
    /// By worker.
    pub workers: Vec<WorkerInfo>,
    /// Whether every frame is accounted for.
    pub conservation: Conservation,
}

/// One port's counters.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PortStats {
    /// Counters by name.
    pub counters: BTreeMap<String, u64>,
    /// Drops by reason (only those that happened).
    pub drops: BTreeMap<String, u64>,
}

/// `rx + originated + copies + extra_segments = tx + dropped + consumed + held`, over all ports that ever
/// were. `difference` is 0 on a switch at rest; while frames move, the two sides are not read at
/// the same instant.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Conservation {
    /// Frames received.
    pub rx: u64,
    /// Frames made by the switch.
    pub originated: u64,
    /// Extra outputs of one frame.
    pub copies: u64,
    /// Extra frames from segmentation.
    pub extra_segments: u64,
    /// Frames sent.
    pub tx: u64,
    /// Frames dropped, all reasons.
    pub dropped: u64,
    /// Frames consumed by the switch.
    pub consumed: u64,
    /// Frames that wait for an answer.
    pub held: u64,
    /// Left side minus right side.
    pub difference: i64,
}
