//! A linear reference: the policy model of `docs/policy.md`, rule by rule, with nothing clever.
//! Tests and fuzzing hold the classifier against it. Not for the data path.

use std::collections::HashMap;
use std::net::IpAddr;

use super::model::{
    ANY, Action, DEFAULT_TENANT, Policy, Rule, Segment, SegmentRef, ServiceSpec, Tier,
};
use super::{Classifier, Judgement, Service, TenantId, Verdict, Why, WorkloadFacts};
use crate::packet::Addr;

/// Who a party really is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Peer {
    /// A workload, by its position.
    Workload(usize),
    /// An address behind an uplink or a router of this tenant.
    Outside(TenantId, IpAddr),
}

/// A [`Judgement`] with names instead of numbers, so that two implementations can be compared.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// What happens.
    pub verdict: Verdict,
    /// The deciding rule; `None`: no rule.
    pub rule: Option<String>,
    /// Between tenants: the opening tenant's rule that allowed, too.
    pub also: Option<String>,
    /// The manager is asked.
    pub ask: bool,
    /// Recorded.
    pub log: bool,
    /// Always reported.
    pub notify: bool,
    /// A limit applies.
    pub limited: bool,
    /// First staged rule that would have decided.
    pub staged: Option<String>,
}

impl Answer {
    /// A classifier's judgement, named.
    #[must_use]
    pub fn of(classifier: &Classifier, judgement: &Judgement) -> Self {
        let name = |rule| classifier.rule_name(rule).to_owned();
        Answer {
            verdict: judgement.verdict,
            rule: match judgement.why {
                Why::Rule(rule) => Some(name(rule)),
                Why::DefaultDeny => None,
            },
            also: judgement.also.map(name),
            ask: judgement.ask,
            log: judgement.log,
            notify: judgement.notify,
            limited: judgement.limited,
            staged: judgement.staged.map(name),
        }
    }
}

/// The reference.
#[derive(Debug)]
pub struct Oracle<'a> {
    policy: &'a Policy,
    workloads: &'a [WorkloadFacts],
    segments: HashMap<(&'a str, &'a str), &'a Segment>,
}

/// A built-in rule as the documentation's table has it.
struct BuiltIn {
    name: &'static str,
    from: Side,
    to: Side,
    protocol: u8,
    sport: Option<u16>,
    /// Destination ports; for ICMPv6 types.
    dports: &'static [u16],
}

#[derive(Clone, Copy)]
enum Side {
    Any,
    Dhcp,
    Routers,
}

const UDP: u8 = 17;
const ICMPV6: u8 = 58;

const fn built_in(
    name: &'static str,
    (from, to): (Side, Side),
    (protocol, sport): (u8, Option<u16>),
    dports: &'static [u16],
) -> BuiltIn {
    BuiltIn {
        name,
        from,
        to,
        protocol,
        sport,
        dports,
    }
}

const BUILT_IN: [BuiltIn; 8] = [
    built_in(
        "dhcp-request",
        (Side::Any, Side::Dhcp),
        (UDP, Some(68)),
        &[67],
    ),
    built_in(
        "dhcp-answer",
        (Side::Dhcp, Side::Any),
        (UDP, Some(67)),
        &[68],
    ),
    built_in(
        "dhcpv6-request",
        (Side::Any, Side::Dhcp),
        (UDP, Some(546)),
        &[547],
    ),
    built_in(
        "dhcpv6-answer",
        (Side::Dhcp, Side::Any),
        (UDP, Some(547)),
        &[546],
    ),
    built_in(
        "router-solicitation",
        (Side::Any, Side::Routers),
        (ICMPV6, None),
        &[133],
    ),
    built_in(
        "router-advertisement",
        (Side::Routers, Side::Any),
        (ICMPV6, None),
        &[134],
    ),
    built_in(
        "mld-query",
        (Side::Routers, Side::Any),
        (ICMPV6, None),
        &[130],
    ),
    built_in(
        "mld-report",
        (Side::Any, Side::Routers),
        (ICMPV6, None),
        &[131, 132, 143],
    ),
];

impl<'a> Oracle<'a> {
    /// A reference for a valid policy.
    #[must_use]
    pub fn new(policy: &'a Policy, workloads: &'a [WorkloadFacts]) -> Self {
        let segments = policy.segments.iter();
        Oracle {
            policy,
            workloads,
            segments: segments
                .map(|segment| ((segment.tenant.as_str(), segment.name.as_str()), segment))
                .collect(),
        }
    }

    /// May `from` open `service` to `to`? Cost: every rule.
    #[must_use]
    pub fn judge(&self, from: Peer, to: Peer, service: Service) -> Answer {
        let (own, other) = (self.tenant(from), self.tenant(to));
        let first = self.tenant_says(own, from, to, service);
        if own == other || first.verdict != Verdict::Allow {
            return first;
        }
        let mut second = self.tenant_says(other, from, to, service);
        second.staged = first.staged.or(second.staged);
        if second.verdict == Verdict::Allow {
            second.also = first.rule;
            second.ask |= first.ask;
            second.log |= first.log;
            second.notify |= first.notify;
            second.limited |= first.limited;
        }
        second
    }

    fn tenant(&self, peer: Peer) -> &'a str {
        let id = match peer {
            Peer::Workload(n) => self.workloads.get(n).map_or(TenantId(0), |w| w.tenant),
            Peer::Outside(tenant, _) => tenant,
        };
        self.policy.tenant_name(id).unwrap_or(DEFAULT_TENANT)
    }

    fn tenant_says(&self, tenant: &'a str, from: Peer, to: Peer, service: Service) -> Answer {
        let full_name = |name: &str| {
            if tenant == DEFAULT_TENANT {
                name.to_owned()
            } else {
                format!("{tenant}/{name}")
            }
        };
        let mut answer = Answer {
            verdict: Verdict::Deny,
            rule: None,
            also: None,
            ask: false,
            log: false,
            notify: false,
            limited: false,
            staged: None,
        };
        'tiers: for tier in Tier::ALL {
            if tier == Tier::Infrastructure {
                for rule in &BUILT_IN {
                    if self.built_in_matches(rule, tenant, from, to, service) {
                        answer.verdict = Verdict::Allow;
                        answer.rule = Some(full_name(&format!("infrastructure/{}", rule.name)));
                        return answer;
                    }
                }
            }
            for rule in &self.policy.rules {
                if rule.tenant != tenant
                    || rule.tier != tier
                    || !self.matches(rule, from, to, service)
                {
                    continue;
                }
                if rule.staged {
                    answer.staged.get_or_insert_with(|| full_name(&rule.name));
                    continue;
                }
                answer.verdict = match rule.action {
                    Action::Pass => continue 'tiers,
                    Action::Allow | Action::Notify | Action::Ask(_) => Verdict::Allow,
                    Action::Deny => Verdict::Deny,
                    Action::Reject => Verdict::Reject,
                    Action::Decoy => Verdict::Decoy,
                };
                answer.rule = Some(full_name(&rule.name));
                answer.ask = rule.holds();
                answer.notify = rule.action == Action::Notify;
                answer.log = rule.log || answer.notify;
                answer.limited = rule.limit.is_some();
                return answer;
            }
        }
        answer
    }

    fn matches(&self, rule: &Rule, from: Peer, to: Peer, service: Service) -> bool {
        let named = |list: &[SegmentRef], peer| {
            list.iter().any(|segment| {
                let tenant = segment.tenant.as_deref().unwrap_or(&rule.tenant);
                self.belongs(peer, tenant, &segment.name)
            })
        };
        let asked = match (service, rule.service.is_empty()) {
            (Service::Ip { .. }, true) => true,
            (Service::Ether(_), true) => false,
            (_, false) => rule.service.iter().any(|spec| is_service(*spec, service)),
        };
        asked && named(&rule.from, from) && named(&rule.to, to)
    }

    /// Whether a party is in `tenant/segment`.
    fn belongs(&self, peer: Peer, tenant: &str, segment: &str) -> bool {
        if self.tenant(peer) != tenant {
            return false;
        }
        match peer {
            Peer::Workload(_) if segment == ANY => true,
            Peer::Outside(..) if segment == ANY => false,
            Peer::Workload(n) => {
                let segment = self.segments.get(&(tenant, segment));
                let workload = self.workloads.get(n);
                segment.zip(workload).is_some_and(|(s, w)| s.holds(w))
            }
            Peer::Outside(_, addr) => {
                let addr = addr.to_canonical();
                let segment = self.segments.get(&(tenant, segment));
                segment.is_some_and(|s| s.cidr.iter().any(|cidr| cidr.contains(addr)))
            }
        }
    }

    fn built_in_matches(
        &self,
        rule: &BuiltIn,
        tenant: &str,
        from: Peer,
        to: Peer,
        service: Service,
    ) -> bool {
        let Service::Ip {
            protocol,
            sport,
            dport,
        } = service
        else {
            return false;
        };
        let wanted = if rule.protocol == ICMPV6 {
            dport >> 8
        } else {
            dport
        };
        protocol == rule.protocol
            && rule.sport.is_none_or(|port| port == sport)
            && rule.dports.contains(&wanted)
            && self.on_side(rule.from, tenant, from)
            && self.on_side(rule.to, tenant, to)
    }

    fn on_side(&self, side: Side, tenant: &str, peer: Peer) -> bool {
        if self.tenant(peer) != tenant {
            return false;
        }
        let all = self.policy.all_tenants().find(|(name, _)| *name == tenant);
        let Some((_, infrastructure)) = all else {
            return false;
        };
        let (servers, groups) = match side {
            Side::Any => return matches!(peer, Peer::Workload(_)),
            Side::Dhcp => (
                &infrastructure.dhcp_servers,
                ["255.255.255.255", "ff02::1:2"],
            ),
            Side::Routers => (&infrastructure.routers, ["ff02::2", "ff02::16"]),
        };
        match peer {
            Peer::Workload(n) => {
                let workload = self.workloads.get(n);
                workload.is_some_and(|w| w.ips.iter().any(|ip| servers.contains(ip)))
            }
            Peer::Outside(id, addr) => {
                let mine = self.workloads.iter().filter(|w| w.tenant == id);
                let local: Vec<&IpAddr> = mine.flat_map(|w| &w.ips).collect();
                let mut outside = servers.iter().filter(|ip| !local.contains(ip)).peekable();
                let any_outside = outside.peek().is_some();
                let same = |ip: &IpAddr| Addr::from(*ip) == Addr::from(addr);
                outside.any(same)
                    || any_outside && groups.iter().any(|g| g.parse().is_ok_and(|ip| same(&ip)))
            }
        }
    }
}

fn is_service(spec: ServiceSpec, service: Service) -> bool {
    match (spec, service) {
        (
            ServiceSpec::Ip {
                protocol: wanted,
                dport: dports,
                sport: sports,
            },
            Service::Ip {
                protocol,
                sport,
                dport,
            },
        ) => wanted == protocol && dports.contains(dport) && sports.contains(sport),
        (ServiceSpec::Ether(wanted), Service::Ether(ethertype)) => wanted == ethertype,
        (ServiceSpec::Ip { .. }, Service::Ether(_))
        | (ServiceSpec::Ether(_), Service::Ip { .. }) => false,
    }
}
