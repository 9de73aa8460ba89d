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
    /// Connections that go on.
    pub kept: Vec<KeptInfo>,
}

/// A connection that goes on in quarantine, and what it has carried since (or since the daemon started).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KeptInfo {
    /// As `conn list` shows it.
    pub connection: String,
    /// `live`; `awaited`: known from an earlier run of the daemon, and not heard of since; or `over`.
    pub state: String,
    /// Packets from the initiator.
    pub original_pkts: u64,
    /// Their bytes, L2 without FCS.
    pub original_bytes: u64,
    /// Packets to it.
    pub reply_pkts: u64,
    /// Their bytes.
    pub reply_bytes: u64,
}
