//! Questions, walls, transactions, and changes that wait for a second person.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::policy::model::{Otherwise, Scope};
use crate::policy::reach::Opened;

/// A question that waits: somebody wants to connect, and a rule says to ask.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AskInfo {
    /// What to call it in an answer: 16 hexadecimal digits, used once.
    pub id: String,
    /// The rule that asks.
    pub rule: String,
    /// Who wants to connect, as in [`super::ConnInfo`].
    pub from: String,
    /// To whom.
    pub to: String,
    /// `tcp`, `udp`, ...
    pub protocol: String,
    /// Of the connection that came first: its source,
    pub src: String,
    /// its source port, or echo identifier,
    pub sport: u16,
    /// its destination,
    pub dst: String,
    /// and its destination port; for ICMP `type << 8 | code`.
    pub dport: u16,
    /// Protocol and destination port.
    pub service: String,
    /// What happens without an answer.
    pub otherwise: Otherwise,
    /// The widest an answer may be.
    pub scope: Scope,
    /// The longest it may hold, seconds.
    pub ttl_s: u32,
    /// How long it has waited.
    pub waited_ms: u64,
    /// How long it will.
    pub left_ms: u64,
    /// What a yes would open; absent where that was not worked out, as in long lists.
    #[serde(default)]
    pub opens: Option<Opened>,
}

#[cfg(feature = "manager")]
impl AskInfo {
    /// The connection that came first, as it is recorded.
    pub(in crate::control) fn connection(&self) -> String {
        connection((&self.src, self.sport), (&self.dst, self.dport))
    }
}

/// A connection, as it is recorded.
#[cfg(feature = "manager")]
pub(super) fn connection((src, sport): (&str, u16), (dst, dport): (&str, u16)) -> String {
    let [sport, dport] = [sport, dport].map(|port| port.to_string());
    [src, ":", &*sport, " > ", dst, ":", &*dport].concat()
}

/// An answer to a question.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AskAnswer {
    /// Which: its id, or enough of its beginning.
    pub id: String,
    /// Yes or no.
    pub yes: bool,
    /// What it is about; absent: as much as the rule admits.
    pub scope: Option<Scope>,
    /// How long it holds, seconds; absent: as long as the rule admits.
    pub ttl_s: Option<u32>,
}

/// A Chinese wall.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WallInfo {
    /// Its name.
    pub name: String,
    /// It binds within transactions only.
    pub per_transaction: bool,
    /// Workloads that are bound by it.
    pub subjects: Vec<String>,
    /// Its sides, with who is part of each.
    pub sides: BTreeMap<String, Vec<String>>,
    /// Who carries a side.
    pub bindings: Vec<BindingInfo>,
}

/// Somebody carries a side.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BindingInfo {
    /// Who: `workload NAME`, `tag TAG`, `volume NAME` or `outside`.
    pub subject: String,
    /// The side.
    pub side: String,
    /// For as long as this transaction is open.
    pub transaction: Option<String>,
    /// Payload has passed; if not, the side is only reserved.
    pub committed: bool,
    /// Since when, in seconds since 1970.
    pub since: u64,
    /// By which connection.
    pub connection: String,
}

/// What somebody carries, at one wall.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WallCarrier {
    /// The wall; of a transaction, followed by a space and its name.
    pub wall: String,
    /// What he is known by: whoever shares one of these is the same.
    pub known_by: Vec<String>,
    /// Sides that he carries.
    pub carries: Vec<String>,
    /// Sides that he is kept from.
    pub kept_from: Vec<String>,
}

/// An open transaction.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TransactionInfo {
    /// Its name.
    pub name: String,
    /// The wall that it is one of.
    pub wall: String,
    /// Workloads whose connections are part of it.
    pub workloads: Vec<String>,
}

/// A change that waits for a second person, because it takes something away from a wall.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProposalInfo {
    /// What to call it: 16 hexadecimal digits.
    pub id: String,
    /// Who wants it.
    pub by: String,
    /// What he asked for, such as `policy-apply`.
    pub call: String,
    /// What it takes away, a line each.
    pub weakens: Vec<String>,
    /// How long it has waited.
    pub waited_s: u64,
}
