//! Quarantine of a workload.

use serde::{Deserialize, Serialize};

/// A quarantine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct QuarantineInfo {
    /// Who was meant: itself, or a workload that it shares a VM, a MAC or an address with.
    pub name: String,
    /// Since when, in seconds since 1970.
    pub since: u64,
    /// Who did it.
    pub who: String,
    /// Why.
    pub reason: String,
    /// It is in the ledger, and outlives the daemon.
    pub recorded: bool,
    /// Its freeze, while there is one.
    #[serde(default)]
    pub freeze: Option<FreezeInfo>,
    /// What else there is to say; empty when there is nothing.
    #[serde(default)]
    pub note: String,
    /// Connections that go on.
    pub kept: Vec<KeptInfo>,
}

/// A connection that goes on in quarantine, and what it has carried since (or since the daemon started).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KeptInfo {
    /// As `conn list` shows it.
    pub connection: String,
    /// `live`; `frozen`, or `comparing` while its guest, which went back to a snapshot, is asked what it remembers; `awaited`: known from an earlier run of the daemon, and not heard of since; or `over`.
    pub state: String,
    /// Answers given in the frozen guest's name.
    #[serde(default)]
    pub answers: u64,
    /// Packets for the frozen guest that were not delivered.
    #[serde(default)]
    pub undelivered: u64,
    /// What became of it when its guest was thawed.
    #[serde(default)]
    pub outcome: Option<String>,
    /// Packets from the initiator.
    pub original_pkts: u64,
    /// Their bytes, L2 without FCS.
    pub original_bytes: u64,
    /// Packets to it.
    pub reply_pkts: u64,
    /// Their bytes.
    pub reply_bytes: u64,
}

/// A freeze: nothing reaches the workload, and the peers of what is kept are answered in its stead.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FreezeInfo {
    /// Since when, in seconds since 1970.
    pub since: u64,
    /// Who did it.
    pub who: String,
    /// `frozen`; `too long`: its peers were reset; `thawing`; or `comparing`.
    pub state: String,
    /// How long it may last, seconds.
    pub max_s: u32,
    /// What is left of that.
    pub left_s: u64,
    /// What its machine was told, or what is to be done.
    pub note: String,
}
