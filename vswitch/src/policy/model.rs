//! The operator's model of a policy: tenants, segments, rules, tiers. Plain values; what they
//! mean is in `docs/policy.md`, what must hold of them in [`super::validate()`].

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Serialize, Serializer};

pub use super::service::{BadService, PortRange, ServiceSpec};
pub use super::suspicion::{Response, Suspicion};
pub use super::walls::{Per, Same, Sanitised, Wall};
use super::{TenantId, WorkloadFacts};
use crate::packet::Cidr;

/// The tenant every switch has; [`TenantId`] 0.
pub const DEFAULT_TENANT: &str = "default";

/// `name`, or `tenant/name` outside the default tenant.
#[must_use]
pub fn qualified(tenant: &str, name: &str) -> String {
    if tenant == DEFAULT_TENANT {
        name.to_owned()
    } else {
        format!("{tenant}/{name}")
    }
}

/// The segment of every workload of a tenant; never the outside.
pub const ANY: &str = "any";

/// A whole policy, as written in `policy.toml`. The default is empty: everything is denied.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct Policy {
    /// `[infrastructure]`: the default tenant's servers and management paths.
    pub infrastructure: Infrastructure,
    /// Tenants beside "default".
    #[serde(rename = "tenant")]
    pub tenants: Vec<Tenant>,
    /// Segments of all tenants.
    #[serde(rename = "segment")]
    pub segments: Vec<Segment>,
    /// Rules of all tenants, in the order they are tried within their tier.
    #[serde(rename = "rule")]
    pub rules: Vec<Rule>,
    /// Chinese walls.
    #[serde(rename = "wall")]
    pub walls: Vec<Wall>,
    /// Shared services that carry nothing over a wall.
    pub sanitised: Vec<Sanitised>,
    /// From when on a workload is suspicious.
    #[serde(rename = "suspicion")]
    pub suspicions: Vec<Suspicion>,
    /// What follows.
    #[serde(rename = "response")]
    pub responses: Vec<Response>,
}

impl Policy {
    /// The number of a tenant: 0 is "default", the others follow in order. `None` when the policy
    /// does not declare it.
    #[must_use]
    pub fn tenant_id(&self, name: &str) -> Option<TenantId> {
        if name == DEFAULT_TENANT {
            return Some(TenantId(0));
        }
        let at = self.tenants.iter().position(|tenant| tenant.name == name)?;
        u16::try_from(at + 1).ok().map(TenantId)
    }

    /// The name of a tenant.
    #[must_use]
    pub fn tenant_name(&self, id: TenantId) -> Option<&str> {
        match id.0 {
            0 => Some(DEFAULT_TENANT),
            n => self
                .tenants
                .get(usize::from(n) - 1)
                .map(|tenant| tenant.name.as_str()),
        }
    }

    /// Every tenant's name and infrastructure, in [`TenantId`] order.
    pub fn all_tenants(&self) -> impl Iterator<Item = (&str, &Infrastructure)> {
        std::iter::once((DEFAULT_TENANT, &self.infrastructure)).chain(
            self.tenants
                .iter()
                .map(|tenant| (tenant.name.as_str(), &tenant.infrastructure)),
        )
    }

    /// The segments a workload belongs to, in file order ("any" is not listed).
    pub fn segments_of<'a>(
        &'a self,
        workload: &'a WorkloadFacts,
    ) -> impl Iterator<Item = &'a Segment> {
        let tenant = self.tenant_name(workload.tenant);
        self.segments.iter().filter(move |segment| {
            Some(segment.tenant.as_str()) == tenant && segment.holds(workload)
        })
    }
}

/// `[[tenant]]`: one beside "default".
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct Tenant {
    /// Stable name.
    pub name: String,
    /// Its servers and management paths.
    pub infrastructure: Infrastructure,
}

/// What the built-in `infrastructure` rules apply to, and what no policy may cut.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct Infrastructure {
    /// Addresses of DHCP and DHCPv6 servers (an outside DHCPv6 server by its link-local address).
    pub dhcp_servers: Vec<IpAddr>,
    /// Addresses of IPv6 routers (an outside router by its link-local address).
    pub routers: Vec<IpAddr>,
    /// Paths that must stay open: a policy that denies one, or asks about it, is refused.
    pub management: Vec<ManagementPath>,
}

/// A path no policy may cut.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct ManagementPath {
    /// Who must get through.
    pub from: Vec<SegmentRef>,
    /// To whom.
    pub to: Vec<SegmentRef>,
    /// For what; empty: every IP service.
    pub service: Vec<ServiceSpec>,
}

/// `[[segment]]`: who carries all of `tags`, or is one of `names`, or (outside) has an address
/// in `cidr`.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Segment {
    /// Stable name, unique within its tenant.
    pub name: String,
    /// Owner.
    pub tenant: String,
    /// Workloads that carry all of these (none: the segment selects nobody by tag).
    pub tags: Vec<String>,
    /// Workloads of these names.
    pub names: Vec<String>,
    /// Outside addresses.
    pub cidr: Vec<Cidr>,
    /// TCP connections with an end here may be picked up mid-stream.
    pub loose: bool,
    /// Most connections its workloads may have open together as initiators.
    pub max_connections: Option<u32>,
}

impl Segment {
    /// An empty segment of the default tenant.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Segment {
            name: name.to_owned(),
            tenant: DEFAULT_TENANT.to_owned(),
            tags: Vec::new(),
            names: Vec::new(),
            cidr: Vec::new(),
            loose: false,
            max_connections: None,
        }
    }

    /// Whether a workload of the same tenant belongs to it.
    #[must_use]
    pub fn holds(&self, workload: &WorkloadFacts) -> bool {
        let tagged =
            !self.tags.is_empty() && self.tags.iter().all(|tag| workload.tags.contains(tag));
        tagged || self.names.contains(&workload.name)
    }
}

/// `segment`, or `tenant/segment` for another tenant's.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SegmentRef {
    /// Whose; `None`: the tenant the reference stands in.
    pub tenant: Option<String>,
    /// Name, or [`ANY`].
    pub name: String,
}

impl From<&str> for SegmentRef {
    fn from(text: &str) -> Self {
        match text.split_once('/') {
            Some((tenant, name)) => SegmentRef {
                tenant: Some(tenant.to_owned()),
                name: name.to_owned(),
            },
            None => SegmentRef {
                tenant: None,
                name: text.to_owned(),
            },
        }
    }
}

impl fmt::Display for SegmentRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(tenant) = &self.tenant {
            write!(f, "{tenant}/")?;
        }
        f.write_str(&self.name)
    }
}

impl Serialize for SegmentRef {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

/// `[[rule]]`.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Rule {
    /// Stable name, unique within its tenant.
    pub name: String,
    /// Owner.
    pub tenant: String,
    /// Who opens the connection: any of these.
    pub from: Vec<SegmentRef>,
    /// To whom: any of these.
    pub to: Vec<SegmentRef>,
    /// For what; empty: every IP service.
    pub service: Vec<ServiceSpec>,
    /// What happens.
    #[serde(flatten)]
    pub action: Action,
    /// When it is tried.
    pub tier: Tier,
    /// Record its decisions.
    pub log: bool,
    /// What it admits stands in the ledger first.
    pub require_record: Record,
    /// How much it admits.
    pub limit: Option<Limit>,
    /// Reported, not enforced.
    pub staged: bool,
}

impl Rule {
    /// A rule of the default tenant for every IP service.
    #[must_use]
    pub fn new(name: &str, from: &[&str], to: &[&str], action: Action) -> Self {
        Rule {
            name: name.to_owned(),
            tenant: DEFAULT_TENANT.to_owned(),
            from: from.iter().map(|&name| name.into()).collect(),
            to: to.iter().map(|&name| name.into()).collect(),
            service: Vec::new(),
            action,
            tier: Tier::default(),
            log: false,
            require_record: Record::No,
            limit: None,
            staged: false,
        }
    }

    /// Whether first packets of what it admits wait: for an answer, or for a record.
    #[must_use]
    pub fn holds(&self) -> bool {
        let is_recorded = self.require_record != Record::No && self.action.admits();
        is_recorded || matches!(self.action, Action::Ask(_))
    }
}

/// `require_record`: whether a rule admits what is not recorded.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Record {
    /// It does.
    #[default]
    No,
    /// Nothing new: a connection's first packet waits until a record of it is durable.
    New,
    /// Nor does anything go on while nothing can be recorded.
    Strict,
}

/// `action`, with what only that action needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(tag = "action", rename_all = "kebab-case")]
pub enum Action {
    /// Forward.
    Allow,
    /// Drop.
    Deny,
    /// Drop and tell the sender.
    Reject,
    /// Drop, and answer in the receiver's stead.
    Decoy,
    /// The manager decides.
    Ask(Ask),
    /// Forward, and always report.
    Notify,
    /// No decision here: go on with the next tier.
    Pass,
}

impl Action {
    /// As written in the file.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Action::Allow => "allow",
            Action::Deny => "deny",
            Action::Reject => "reject",
            Action::Decoy => "decoy",
            Action::Ask(_) => "ask",
            Action::Notify => "notify",
            Action::Pass => "pass",
        }
    }

    /// Whether it can forward anything.
    #[must_use]
    pub const fn admits(self) -> bool {
        matches!(self, Action::Allow | Action::Ask(_) | Action::Notify)
    }
}

/// What an `ask` rule says about its questions.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize)]
pub struct Ask {
    /// What happens when there is no answer in time.
    pub otherwise: Otherwise,
    /// How long the first frames are held for an answer, milliseconds.
    pub deadline_ms: u32,
    /// How long an answer holds at most, seconds.
    pub ttl_s: u32,
    /// What an answer is about at most.
    pub scope: Scope,
    /// What becomes of connections that a yes admitted when its time is over.
    pub on_expiry: OnExpiry,
}

impl Ask {
    /// A second: as long as a client's first retransmission of a SYN takes (RFC 6298), so that a held one is not noticed.
    pub const DEADLINE_MS: u32 = 1000;
    /// An hour.
    pub const TTL_S: u32 = 3600;

    /// Of a connection that only waits for its record. A disk that takes longer than five seconds is broken; what is recorded is
    /// admitted once, and at once.
    pub(super) const RECORD: Ask = Ask {
        otherwise: Otherwise::Deny,
        deadline_ms: 5000,
        ttl_s: 5,
        scope: Scope::Connection,
        on_expiry: OnExpiry::Keep,
    };

    /// With everything as it is where nothing is said.
    #[must_use]
    pub const fn new(otherwise: Otherwise) -> Self {
        Ask {
            otherwise,
            deadline_ms: Self::DEADLINE_MS,
            ttl_s: Self::TTL_S,
            scope: Scope::Service,
            on_expiry: OnExpiry::Keep,
        }
    }

    /// What holds where two rules ask.
    #[must_use]
    pub fn stricter(self, other: Ask) -> Ask {
        let deny = [self, other].iter().any(|a| a.otherwise == Otherwise::Deny);
        let cut = [self, other].iter().any(|a| a.on_expiry == OnExpiry::Cut);
        Ask {
            otherwise: if deny {
                Otherwise::Deny
            } else {
                Otherwise::Allow
            },
            deadline_ms: self.deadline_ms.min(other.deadline_ms),
            ttl_s: self.ttl_s.min(other.ttl_s),
            scope: self.scope.min(other.scope),
            on_expiry: if cut { OnExpiry::Cut } else { OnExpiry::Keep },
        }
    }
}

/// `scope`: what one answer is about.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// The connection that was asked about, once.
    Connection,
    /// Every connection between the two, to that service.
    Service,
}

/// `on_expiry`: whether connections end with the yes that admitted them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnExpiry {
    /// They go on.
    Keep,
    /// They are cut.
    Cut,
}

/// `otherwise`: what an `ask` rule says when nobody answers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Otherwise {
    /// Forward.
    Allow,
    /// Drop.
    Deny,
}

/// `tier`, in the order they are tried.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tier {
    /// For an incident.
    Emergency,
    /// What every network needs; the built-in rules stand at its head.
    Infrastructure,
    /// Between environments (production, test).
    Environment,
    /// Applications: where rules belong unless they say otherwise.
    #[default]
    Application,
    /// What is left.
    Baseline,
}

impl Tier {
    /// All, in order.
    pub const ALL: [Tier; 5] = [
        Tier::Emergency,
        Tier::Infrastructure,
        Tier::Environment,
        Tier::Application,
        Tier::Baseline,
    ];

    /// As written in the file.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Tier::Emergency => "emergency",
            Tier::Infrastructure => "infrastructure",
            Tier::Environment => "environment",
            Tier::Application => "application",
            Tier::Baseline => "baseline",
        }
    }
}

impl FromStr for Tier {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Tier::ALL
            .into_iter()
            .find(|tier| tier.name() == text)
            .ok_or(())
    }
}

/// `limit`: how much a rule admits; what is above is dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Limit {
    /// New connections per second.
    pub connections: Option<u64>,
    /// Bits per second, both directions together.
    pub bits: Option<u64>,
}

/// Reads `10_000`, `"10k"`, `"10M"`, `"1G"`, `"1T"` (powers of 1000) as a rate per second.
#[must_use]
pub fn parse_rate(text: &str) -> Option<u64> {
    let (number, unit) = match text.as_bytes().last()? {
        b'k' => (text.strip_suffix('k')?, 1_000),
        b'M' => (text.strip_suffix('M')?, 1_000_000),
        b'G' => (text.strip_suffix('G')?, 1_000_000_000),
        b'T' => (text.strip_suffix('T')?, 1_000_000_000_000),
        _ => (text, 1),
    };
    if !number.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    number.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_powers_of_a_thousand() {
        assert_eq!(parse_rate("10M"), Some(10_000_000));
        assert_eq!(parse_rate("250"), Some(250));
        assert_eq!(parse_rate("1G"), Some(1_000_000_000));
        for bad in [
            "",
            "M",
            "-1",
            "1.5M",
            "1 M",
            "10Mi",
            "+1",
            "99999999999999T",
        ] {
            assert_eq!(parse_rate(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_segment_holds_by_all_tags_or_by_name() {
        let mut segment = Segment::new("s");
        segment.tags = vec!["a".into(), "b".into()];
        let mut workload = WorkloadFacts {
            name: "w".into(),
            tags: vec!["b".into()],
            ..WorkloadFacts::default()
        };
        assert!(!segment.holds(&workload));
        workload.tags.push("a".into());
        assert!(segment.holds(&workload));
        workload.tags.clear();
        segment.names.push("w".into());
        assert!(segment.holds(&workload));
        assert!(!Segment::new("empty").holds(&workload));
    }

    #[test]
    fn a_rule_shows_its_action_flat() {
        let rule = Rule::new(
            "r",
            &["any"],
            &["other/db"],
            Action::Ask(Ask::new(Otherwise::Deny)),
        );
        let json = serde_json::to_value(&rule).unwrap();
        assert_eq!(json["action"], "ask");
        assert_eq!(json["otherwise"], "deny");
        assert_eq!(json["to"][0], "other/db");
        assert_eq!(json["tier"], "application");
    }
}
