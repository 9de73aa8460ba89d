//! The policy in force, and changes.

use serde::{Deserialize, Serialize};

use crate::policy::reach::Compared;

/// The policy in force.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PolicyView {
    /// Generation of the snapshot.
    pub generation: u64,
    /// Where it came from.
    pub source: String,
    /// Seconds until it is reverted unless confirmed.
    pub confirm_s: Option<u64>,
    /// The policy as it was written.
    pub policy: serde_json::Value,
    /// Every rule in the order tried, built-in ones included, with hit counts.
    pub rules: Vec<RuleInfo>,
}

/// One rule.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RuleInfo {
    /// Name.
    pub name: String,
    /// Tier.
    pub tier: String,
    /// Action.
    pub action: String,
    /// Reported only.
    pub staged: bool,
    /// Ships with the switch.
    pub built_in: bool,
    /// Initiators.
    pub from: Vec<String>,
    /// Other ends.
    pub to: Vec<String>,
    /// Services; empty: all.
    pub service: Vec<String>,
    /// How often it decided (or would have, when staged).
    pub hits: u64,
}

/// How a policy differs from the one in force.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PolicyDiff {
    /// Whether anything differs.
    pub differs: bool,
    /// One line per difference: `+ rule a`, `- segment b`, `~ rule c: action allow -> deny`.
    pub changes: Vec<String>,
    /// Pairs that can connect then and cannot now, and the other way; absent when there is nothing to compare.
    #[serde(default)]
    pub pairs: Option<Compared>,
    /// Why the policy could not be applied; empty when it can.
    #[serde(default)]
    pub refused: Vec<String>,
}

/// A change is in force at every worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Applied {
    /// The new generation.
    pub generation: u64,
    /// What was done, one line each.
    pub changes: Vec<String>,
    /// Microseconds from the publish until the last worker had it.
    pub settle_us: u64,
    /// Reverted after so many seconds unless confirmed.
    pub confirm_s: Option<u64>,
}

impl Applied {
    /// Something was done that no worker had to wait for.
    pub(in crate::control) fn at(generation: u64, changes: Vec<String>) -> Self {
        Applied {
            generation,
            changes,
            settle_us: 0,
            confirm_s: None,
        }
    }
}
