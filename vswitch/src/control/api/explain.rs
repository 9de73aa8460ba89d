//! `explain`: what would happen to a connection.

use serde::{Deserialize, Serialize};

use super::ConnInfo;

/// `explain`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExplainQuery {
    /// Workload or address.
    pub from: String,
    /// Workload or address.
    pub to: String,
    /// `tcp/5432`, `icmp`, ...
    pub service: String,
    /// Initiator's port, when one connection is meant.
    pub src_port: Option<u16>,
}

/// One end, as `explain` understood it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EndInfo {
    /// Workload, or `outside`.
    pub name: String,
    /// Its tenant.
    pub tenant: String,
    /// Its port.
    pub port: String,
    /// Addresses considered.
    pub ip: Vec<String>,
    /// Segments it belongs to.
    pub segments: Vec<String>,
    /// `vm`, `shared-kernel`, `nested` or `none`.
    pub assurance: String,
}

/// What the switch carries in one piece, and judges on its own: in by one port, out by another.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Leg {
    /// `allow`, `deny` or `reject`.
    pub verdict: String,
    /// Why, in a sentence.
    pub why: String,
    /// Deciding rule; absent when none decided.
    pub rule: Option<String>,
    /// Its tier.
    pub tier: Option<String>,
    /// A staged rule that would have decided before.
    pub staged: Option<String>,
    /// Drop reason, when the frame is dropped before policy is asked.
    pub dropped: Option<String>,
    /// Who is judged as the sender: for what a router carries, the router.
    pub from: EndInfo,
    /// Who is judged as the receiver.
    pub to: EndInfo,
    /// Whether the peer of the port it leaves by is attached.
    pub output_up: bool,
}

/// The answer to `explain`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Explanation {
    /// `allow`, `deny` or `reject`: what the switch says to a new connection now; with the
    /// initiator's port, to the next packet of that connection.
    pub verdict: String,
    /// Why, in a sentence.
    pub why: String,
    /// Deciding rule; absent when none decided.
    pub rule: Option<String>,
    /// Its tier.
    pub tier: Option<String>,
    /// A staged rule that would have decided before.
    pub staged: Option<String>,
    /// Generation asked.
    pub generation: u64,
    /// Initiator.
    pub from: EndInfo,
    /// Other end.
    pub to: EndInfo,
    /// The way from end to end: one leg, or two when a router carries the packet from one L2
    /// domain to another; none when there is no way. The first one that does not allow decides.
    pub legs: Vec<Leg>,
    /// Port the frame would leave by at last.
    pub output_port: String,
    /// Whether its peer is attached.
    pub output_up: bool,
    /// Live connections that match, at most 16.
    pub live: Vec<ConnInfo>,
    /// What else stands in the way, or is worth knowing.
    pub notes: Vec<String>,
}
