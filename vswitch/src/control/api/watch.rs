//! `watch`: what happens.

use serde::{Deserialize, Serialize};

/// What `watch` shows.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct WatchFilter {
    /// Only events with this workload at an end: NAME or TENANT/NAME.
    pub workload: Option<String>,
    /// Only these kinds (`allow`, `deny`, `cut`, ...); empty: all.
    pub kinds: Vec<String>,
}

/// One event, as `watch` shows it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct WatchEvent {
    /// Seconds since the switch started.
    pub time_s: f64,
    /// `allow`, `deny`, `reject`, `cut`, `close`, `expire`, ...; `ask` when somebody is asked, `yes` or `no` when that was
    /// answered, `wall` when a wall binds, frees or refuses somebody, `suspicion` when somebody is
    /// suspected, `restart` when somebody is restarted.
    pub kind: String,
    /// Drop reason.
    pub reason: Option<String>,
    /// Rule.
    pub rule: Option<String>,
    /// Port the frame came in by.
    pub port: String,
    /// Initiator: NAME, or TENANT/NAME outside the default tenant; `outside(PORT)` behind an uplink;
    /// `-` when unknown.
    pub from: String,
    /// Other end.
    pub to: String,
    /// `tcp`, `udp`, ..., or `ether/0x88cc`.
    pub protocol: String,
    /// Initiator's address.
    pub src: String,
    /// Initiator's port, or echo identifier.
    pub sport: u16,
    /// The other end's address.
    pub dst: String,
    /// The other end's port.
    pub dport: u16,
    /// Initiator's MAC.
    pub src_mac: String,
    /// The other end's MAC.
    pub dst_mac: String,
    /// Generation it was judged under.
    pub generation: u64,
    /// Bytes from the initiator, when a connection ended; payload that came to a decoy.
    pub original_bytes: u64,
    /// Bytes to the initiator.
    pub reply_bytes: u64,
    /// Of a question: its id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ask: Option<String>,
    /// Of an answer: who gave it. Of a wall or a restart: who did it, or wanted it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub who: Option<String>,
    /// Of an answer: why. Of a wall: what. Of a suspicion: why, and what follows. Of a restart, whose workload
    /// stands in `from`: how far it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The wall. Whoever is bound stands in `from`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wall: Option<String>,
    /// Of a suspicion: the detector. The suspect stands in `from`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detector: Option<String>,
    /// Events lost so far, at all workers.
    pub lost: u64,
}

#[cfg(feature = "manager")]
impl WatchEvent {
    /// The connection it is about, as it is recorded.
    pub(in crate::control) fn connection(&self) -> String {
        super::decisions::connection((&self.src, self.sport), (&self.dst, self.dport))
    }
}
