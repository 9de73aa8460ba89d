//! Policy: the operator's model, its compiler, the classifier and its linear oracle. Never sees
//! ports or packets' bytes.
//!
//! A workload (or an outside address) belongs to some set of segments. Equal sets get one
//! [`SetId`], so that a question to the classifier is two small numbers and a service.

mod arrange;
mod cells;
pub mod classbench;
mod classify;
mod compile;
mod diff;
mod edit;
mod error;
mod infrastructure;
mod known;
mod lanes;
mod limit;
mod links;
mod management;
pub mod model;
pub mod oracle;
mod ranges;
pub mod reach;
mod service;
pub mod suspicion;
#[cfg(test)]
mod tests;
mod validate;
pub mod walls;

pub use classify::{Asking, Classifier, RuleView};
pub use compile::Compiled;
pub use diff::{Change, Diff, FieldChange, How, Kind, diff};
pub use edit::Edit;
pub use error::{FieldError, FieldPath};
pub use infrastructure::rules as infrastructure_rules;
pub use validate::validate;
pub(crate) use validate::{bad_cidr, bad_name, nearest};

/// A tenant; 0 is the one every switch has.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct TenantId(pub u16);

/// A distinct set of segments within a tenant. Meaningful only with the classifier that made it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct SetId(pub u32);

/// A rule, by its position in the compiled policy. Meaningful only with its classifier.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RuleId(pub u32);

/// One end of a connection, as policy sees it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Party {
    /// Whose it is.
    pub tenant: TenantId,
    /// Which segments it belongs to.
    pub set: SetId,
}

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Service {
    /// An IP packet that starts a connection.
    Ip {
        /// IP protocol number.
        protocol: u8,
        /// Source port; 0 when the protocol has none.
        sport: u16,
        /// Destination port; for ICMP and ICMPv6 `type << 8 | code`; 0 when the protocol has none.
        dport: u16,
    },
    /// A frame that is neither IP nor ARP.
    Ether(u16),
}

/// The question: may `from` open `service` to `to`?
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Query {
    /// The initiator.
    pub from: Party,
    /// The other end.
    pub to: Party,
    /// What it wants.
    pub service: Service,
}

/// What policy answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Verdict {
    /// Forward.
    Allow,
    /// Drop.
    Deny,
    /// Drop and tell the sender (RST, ICMP unreachable).
    Reject,
    /// Drop, and answer in the receiver's stead what would open a TCP connection.
    Decoy,
}

/// Which part of the policy decided.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// This rule.
    Rule(RuleId),
    /// No rule: the end of the last tier.
    DefaultDeny,
}

/// The classifier's answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Judgement {
    /// What happens.
    pub verdict: Verdict,
    /// Who says so.
    pub why: Why,
    /// Between tenants both must allow: the source's rule, when `why` names the destination's. It
    /// is counted and limited like the one in `why`.
    pub also: Option<RuleId>,
    /// It is allowed only if the manager says so: a deciding rule asks.
    pub ask: bool,
    /// The deciding rule's decisions are recorded (`log`, or `notify`).
    pub log: bool,
    /// Allowed, and always reported (`notify`).
    pub notify: bool,
    /// The deciding rule has a `limit`.
    pub limited: bool,
    /// First staged rule that would have matched before the deciding one.
    pub staged: Option<RuleId>,
}

impl Default for Judgement {
    /// What no rule is about is denied.
    fn default() -> Self {
        Judgement {
            verdict: Verdict::Deny,
            why: Why::DefaultDeny,
            also: None,
            ask: false,
            log: false,
            notify: false,
            limited: false,
            staged: None,
        }
    }
}

/// What policy needs to know of a workload to find its segments.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct WorkloadFacts {
    /// Whose it is.
    pub tenant: TenantId,
    /// Stable name.
    pub name: String,
    /// Its tags.
    pub tags: Vec<String>,
    /// Its addresses (the infrastructure rule set knows declared servers by address).
    pub ips: Vec<std::net::IpAddr>,
    /// Volumes it has, by stable name: whoever else has one of them has its data (`walls`).
    pub volumes: Vec<String>,
}
