//! The rules every tenant has: what a network needs before any application rule makes sense.
//! Ordinary rules, at the head of the infrastructure tier, visible and counted.
//!
//! Sources: DHCP ports RFC 2131 section 4.1; DHCPv6 ports and groups RFC 8415 section 7; router
//! discovery RFC 4861 section 4; the ICMPv6 that must pass RFC 4890 section 4.4.1. ICMPv6 errors
//! are not here: they pass with the connection they are about, or not at all. Neighbour
//! discovery is answered by the switch.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::model::{Action, PortRange, Rule, ServiceSpec, Tier};
use crate::packet::proto;

/// The built-in segment of a tenant's declared DHCP servers.
pub(super) const DHCP_SERVERS: &str = "infrastructure/dhcp-servers";
/// The built-in segment of a tenant's declared routers.
pub(super) const ROUTERS: &str = "infrastructure/routers";

/// Group addresses that reach a DHCP server which is not a workload: broadcast, and
/// `All_DHCP_Relay_Agents_and_Servers`.
pub(super) const DHCP_GROUPS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::BROADCAST),
    IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2)),
];

/// Group addresses that reach a router which is not a workload: all routers, and all
/// MLDv2-capable routers (RFC 9777 section 5.2.14).
pub(super) const ROUTER_GROUPS: [IpAddr; 2] = [
    IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2)),
    IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16)),
];

const fn udp(from: u16, to: u16) -> ServiceSpec {
    ServiceSpec::Ip {
        protocol: proto::UDP,
        dport: PortRange::one(to),
        sport: PortRange::one(from),
    }
}

/// The built-in rules of one tenant, in order. `from` and `to` name "any" or a built-in segment.
#[must_use]
pub fn rules(tenant: &str) -> Vec<Rule> {
    let rule = |name: &str, from: &str, to: &str, service: &[ServiceSpec]| Rule {
        tenant: tenant.to_owned(),
        tier: Tier::Infrastructure,
        service: service.to_vec(),
        from: vec![built_in(from)],
        to: vec![built_in(to)],
        ..Rule::new(&format!("infrastructure/{name}"), &[], &[], Action::Allow)
    };
    vec![
        rule("dhcp-request", "any", DHCP_SERVERS, &[udp(68, 67)]),
        rule("dhcp-answer", DHCP_SERVERS, "any", &[udp(67, 68)]),
        rule("dhcpv6-request", "any", DHCP_SERVERS, &[udp(546, 547)]),
        rule("dhcpv6-answer", DHCP_SERVERS, "any", &[udp(547, 546)]),
        rule(
            "router-solicitation",
            "any",
            ROUTERS,
            &[ServiceSpec::icmpv6(133)],
        ),
        rule(
            "router-advertisement",
            ROUTERS,
            "any",
            &[ServiceSpec::icmpv6(134)],
        ),
        rule("mld-query", ROUTERS, "any", &[ServiceSpec::icmpv6(130)]),
        rule(
            "mld-report",
            "any",
            ROUTERS,
            &[
                ServiceSpec::icmpv6(131),
                ServiceSpec::icmpv6(132),
                ServiceSpec::icmpv6(143),
            ],
        ),
    ]
}

/// A reference that is taken as it is: no operator's segment has a slash in its name.
fn built_in(name: &str) -> super::model::SegmentRef {
    super::model::SegmentRef {
        tenant: None,
        name: name.to_owned(),
    }
}
