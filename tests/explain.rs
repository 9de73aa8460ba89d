//! `explain` against the data path: each question is asked, then the very frame is sent, and both must say the same.

use std::time::{Duration, Instant};

use vswitch::control::api::{ExplainQuery, Explanation};
use vswitch::control::state::{PortConfig, PortKind, WorkloadConfig};
use vswitch::control::{Switch, SwitchError};
use vswitch::packet::Mac;
use vswitch::policy::model::{Action, Policy, Rule, Segment, Tenant};
use vswitch::port::mem::MemEnd;

/// Bound on whatever takes microseconds when it works.
const LIMIT: Duration = Duration::from_secs(30);
/// The source port of every first frame: the one `explain` takes when none is named.
const SPORT: u16 = 49152;

fn mac(n: u8) -> [u8; 6] {
    [0x52, 0x54, 0, 0, 0, n]
}

fn workload(name: &str, n: u8, ip: &str, vlan: Option<u16>) -> WorkloadConfig {
    WorkloadConfig {
        name: name.to_owned(),
        mac: vec![Mac(mac(n))],
        ip: vec![ip.parse().expect("an address")],
        vlan,
        ..WorkloadConfig::default()
    }
}

fn port(name: &str, workloads: Vec<WorkloadConfig>) -> PortConfig {
    PortConfig {
        workloads,
        ..PortConfig::new(name, PortKind::Mem)
    }
}

/// `a` and `b`; `c` and `d` on one port; a router `r` into VLAN 20, where `t` is, and to 10.9.0.0/16; an uplink; and in VLAN 30
/// `v`, to which nothing leads.
fn ports() -> Vec<PortConfig> {
    let routes = ["10.9.0.0/16", "10.20.0.0/24", "10.0.0.0/24"];
    vec![
        port("a", vec![workload("a", 1, "10.0.0.1", None)]),
        port("b", vec![workload("b", 2, "10.0.0.2", None)]),
        port(
            "vm",
            vec![
                workload("c", 3, "10.0.0.3", None),
                workload("d", 4, "10.0.0.4", None),
            ],
        ),
        PortConfig {
            trunk: vec![20],
            routes: routes.map(|r| r.parse().expect("a network")).to_vec(),
            ..port(
                "router",
                vec![
                    workload("r", 5, "10.0.0.5", None),
                    workload("r20", 5, "10.20.0.1", Some(20)),
                ],
            )
        },
        PortConfig {
            vlan: 20,
            ..port("t", vec![workload("t", 6, "10.20.0.6", None)])
        },
        PortConfig {
            vlan: 30,
            ..port("v", vec![workload("v", 7, "10.30.0.7", None)])
        },
        PortConfig {
            uplink: true,
            ..port("up", Vec::new())
        },
    ]
}

fn segment(name: &str) -> Segment {
    Segment {
        names: vec![name.to_owned()],
        ..Segment::new(name)
    }
}

/// A rule for one UDP port, named as the ends.
fn rule(from: &str, to: &str, dport: u16, action: Action) -> Rule {
    Rule {
        service: vec![format!("udp/{dport}").parse().expect("a service")],
        ..Rule::new(&format!("{from}-{to}-{dport}"), &[from], &[to], action)
    }
}

fn policy() -> Policy {
    let outside = Segment {
        cidr: vec!["0.0.0.0/0".parse().expect("a network")],
        ..Segment::new("outside")
    };
    // An address that no uplink carries is no outside, whatever network it is in.
    let branch = Segment {
        cidr: vec!["10.9.0.0/16".parse().expect("a network")],
        ..Segment::new("branch")
    };
    let names = ["a", "b", "c", "d", "r", "r20", "t", "v"];
    let allow = |from, to, dport| rule(from, to, dport, Action::Allow);
    Policy {
        segments: names
            .iter()
            .map(|n| segment(n))
            .chain([outside, branch])
            .collect(),
        rules: vec![
            allow("a", "b", 1),
            rule("a", "b", 2, Action::Reject),
            allow("c", "d", 1),
            // Routed: the router is judged, not what is behind it.
            allow("a", "r", 1),
            allow("a", "branch", 3),
            allow("a", "outside", 3),
            allow("r", "a", 4),
            allow("branch", "a", 5),
            allow("a", "outside", 1),
            allow("outside", "a", 1),
            // Two legs: both must allow.
            allow("a", "r", 11),
            allow("r20", "t", 11),
            allow("a", "r", 12),
            allow("r20", "t", 13),
            allow("a", "t", 14),
            // Nothing leads there, whatever is allowed.
            Rule::new("everybody", &["a", "b"], &["v"], Action::Allow),
            Rule::new("itself", &["a"], &["a"], Action::Allow),
            rule("r", "outside", 1, Action::Allow),
        ],
        ..Policy::default()
    }
}

struct Net {
    switch: Switch,
    ends: Vec<(String, MemEnd)>,
    sent: u64,
}

/// A frame as it comes in by a port, and the port it leaves by when it may.
struct Hop {
    by: &'static str,
    frame: Vec<u8>,
    to: &'static str,
}

impl Net {
    fn new(policy: Policy) -> Self {
        Net::with(ports(), policy)
    }

    fn with(ports: Vec<PortConfig>, policy: Policy) -> Self {
        let names: Vec<_> = ports.iter().map(|p| p.name.clone()).collect();
        let mut builder = Switch::builder()
            .connections(1000)
            .max_ports(8)
            .policy(policy);
        for port in ports {
            builder = builder.port(port);
        }
        let switch = builder.spawn().expect("nothing in the way");
        let end = |name: String| {
            let end = switch.mem_port(&name).expect("the first to take it");
            (name, end)
        };
        let ends = names.into_iter().map(end).collect();
        Net {
            switch,
            ends,
            sent: 0,
        }
    }

    fn end(&mut self, name: &str) -> &mut MemEnd {
        let found = self.ends.iter_mut().find(|(n, _)| n == name);
        &mut found.expect("a port").1
    }

    /// Sends the frame; whether it left by the port it should, and if not, why.
    fn passes(&mut self, hop: &Hop) -> Result<(), String> {
        let count = |net: &Net| {
            let drops = net.switch.drops().expect("it runs");
            let seen = drops.into_iter().filter(|d| d.total != 0);
            seen.map(|d| (d.reason, d.total)).collect::<Vec<_>>()
        };
        let before = count(self);
        self.end(hop.by).send(&hop.frame).expect("room");
        self.sent += 1;
        let start = Instant::now();
        loop {
            let sum = self.switch.stats().expect("it runs").conservation;
            if sum.rx == self.sent && sum.difference == 0 {
                break;
            }
            assert!(start.elapsed() < LIMIT, "the frame is nowhere: {sum:?}");
            std::thread::yield_now();
        }
        let mut got = Vec::new();
        for (name, end) in &mut self.ends {
            let mut frame = Vec::new();
            while end.recv(&mut frame).is_some() {
                got.push(name.clone());
            }
        }
        let mut dropped = count(self);
        dropped.retain(|d| !before.contains(d));
        match dropped.first() {
            None => {
                assert_eq!(got, [hop.to]);
                Ok(())
            }
            Some((reason, _)) => Err(reason.clone()),
        }
    }

    fn explain(&self, from: &str, to: &str, dport: u16, sport: Option<u16>) -> Explanation {
        let query = ExplainQuery {
            from: from.into(),
            to: to.into(),
            service: format!("udp/{dport}"),
            src_port: sport,
        };
        self.switch.explain(query).expect("both exist")
    }

    /// Asks, then sends the frame of each leg until one is dropped: both must agree on every leg.
    fn agree(&mut self, from: &str, to: &str, dport: u16, hops: &[Hop]) -> Explanation {
        let said = self.explain(from, to, dport, None);
        let what = format!("{from} to {to} udp/{dport}: {said:#?}");
        let mut verdict = Ok(());
        for (n, hop) in hops.iter().enumerate() {
            verdict = self.passes(hop);
            let leg = &said.legs[n];
            assert_eq!(
                leg.verdict == "allow",
                verdict.is_ok(),
                "leg {n}: {verdict:?}, {what}"
            );
            assert_eq!(
                (leg.from.port.as_str(), leg.to.port.as_str()),
                (hop.by, hop.to),
                "{what}"
            );
            match &verdict {
                Ok(()) => {}
                Err(reason) => {
                    let policy = reason.starts_with("policy_");
                    let dropped = leg.dropped.as_ref();
                    assert_eq!(dropped, (!policy).then_some(reason), "{what}");
                    assert_eq!(leg.verdict == "reject", reason == "policy_reject", "{what}");
                    break;
                }
            }
        }
        assert_eq!(
            said.verdict == "allow",
            verdict.is_ok(),
            "{verdict:?}, {what}"
        );
        said
    }
}

fn datagram(macs: (u8, u8), ips: ([u8; 4], [u8; 4]), ports: (u16, u16)) -> Vec<u8> {
    let mut frame = Vec::new();
    etherparse::PacketBuilder::ethernet2(mac(macs.0), mac(macs.1))
        .ipv4(ips.0, ips.1, 64)
        .udp(ports.0, ports.1)
        .write(&mut frame, b"hello")
        .expect("a vector takes it");
    frame
}

fn tagged(frame: &[u8], vlan: u16) -> Vec<u8> {
    let tag = [&[0x81, 0][..], &vlan.to_be_bytes()].concat();
    [&frame[..12], &tag, &frame[12..]].concat()
}

const A: [u8; 4] = [10, 0, 0, 1];
const B: [u8; 4] = [10, 0, 0, 2];
const T: [u8; 4] = [10, 20, 0, 6];
const V: [u8; 4] = [10, 30, 0, 7];
const BRANCH: [u8; 4] = [10, 9, 1, 1];
const WORLD: [u8; 4] = [8, 8, 8, 8];

/// One leg.
fn hop(
    by: &'static str,
    to: &'static str,
    macs: (u8, u8),
    ips: ([u8; 4], [u8; 4]),
    dport: u16,
) -> [Hop; 1] {
    let frame = datagram(macs, ips, (SPORT, dport));
    [Hop { by, frame, to }]
}

#[test]
fn between_workloads_on_one_port_or_two() {
    let mut net = Net::new(policy());
    for (dport, verdict) in [(1, "allow"), (2, "reject"), (3, "deny")] {
        let said = net.agree("a", "b", dport, &hop("a", "b", (1, 2), (A, B), dport));
        assert_eq!(said.verdict, verdict);
        assert_eq!(said.rule.is_some(), verdict != "deny");
    }
    // Out of the VM, through the firewall, and back in.
    let (c, d) = ([10, 0, 0, 3], [10, 0, 0, 4]);
    for dport in [1, 2] {
        let said = net.agree("c", "d", dport, &hop("vm", "vm", (3, 4), (c, d), dport));
        assert_eq!(said.output_port, "vm");
    }
}

#[test]
fn what_a_router_carries_is_judged_as_the_routers() {
    let mut net = Net::new(policy());
    for (dport, verdict) in [(1, "allow"), (2, "deny"), (3, "deny")] {
        let hops = hop("a", "router", (1, 5), (A, BRANCH), dport);
        let said = net.agree("a", "10.9.1.1", dport, &hops);
        assert_eq!(
            (said.verdict.as_str(), said.to.name.as_str()),
            (verdict, "r")
        );
        assert_eq!(said.to.segments, ["r"]);
    }
    for (dport, verdict) in [(4, "allow"), (5, "deny")] {
        let hops = hop("router", "a", (5, 1), (BRANCH, A), dport);
        let said = net.agree("10.9.1.1", "a", dport, &hops);
        assert_eq!(
            (said.verdict.as_str(), said.from.name.as_str()),
            (verdict, "r")
        );
    }
    // From behind the router to the outside.
    for dport in [1, 2] {
        let hops = hop("router", "up", (5, 99), (BRANCH, WORLD), dport);
        net.agree("10.9.1.1", "8.8.8.8", dport, &hops);
    }
}

#[test]
fn the_outside_is_known_by_its_address() {
    let mut net = Net::new(policy());
    for dport in [1, 2] {
        let hops = hop("a", "up", (1, 99), (A, WORLD), dport);
        let said = net.agree("a", "8.8.8.8", dport, &hops);
        assert_eq!(
            (said.to.name.as_str(), said.to.segments),
            ("outside", vec!["outside".to_owned()])
        );
        net.agree(
            "8.8.8.8",
            "a",
            dport,
            &hop("up", "a", (99, 1), (WORLD, A), dport),
        );
    }
    // The outside is no way from the outside to the outside.
    let hops = hop("up", "up", (99, 98), (WORLD, [9, 9, 9, 9]), 1);
    let said = net.agree("8.8.8.8", "9.9.9.9", 1, &hops);
    assert_eq!(said.legs[0].dropped.as_deref(), Some("unknown_destination"));
}

#[test]
fn to_itself_and_where_nothing_leads() {
    let mut net = Net::new(policy());
    let said = net.agree("a", "a", 1, &hop("a", "a", (1, 1), (A, A), 1));
    assert_eq!(said.legs[0].dropped.as_deref(), Some("same_port"));
    // VLAN 30 has neither router nor uplink. To the uplink of its own domain `a` may send it, as to any address.
    for dport in [1, 2] {
        let said = net.explain("b", "v", dport, None);
        assert_eq!((said.verdict.as_str(), said.rule), ("deny", None));
        let said = net.explain("v", "8.8.8.8", dport, None);
        assert_eq!(
            (said.verdict.as_str(), said.rule, said.legs.len()),
            ("deny", None, 0)
        );
    }
    let drop = net.passes(&hop("b", "v", (2, 7), (B, V), 1)[0]);
    assert_eq!(
        drop,
        Err("policy_default_deny".to_owned()),
        "as any frame for the outside"
    );
    let drop = net.passes(&hop("v", "up", (7, 99), (V, WORLD), 1)[0]);
    assert_eq!(drop, Err("unknown_destination".to_owned()));
    // Nobody's address: the question is wrong, not the answer no.
    let query = ExplainQuery {
        from: "a".into(),
        to: "nobody".into(),
        service: "udp/1".into(),
        src_port: None,
    };
    assert!(matches!(
        net.switch.explain(query),
        Err(SwitchError::Question(_))
    ));
}

#[test]
fn between_domains_both_legs_are_judged_and_shown() {
    let mut net = Net::new(policy());
    for (dport, legs) in [
        (11, ["allow", "allow"]),
        (12, ["allow", "deny"]),
        (13, ["deny", "allow"]),
        (14, ["deny", "deny"]),
    ] {
        let frame = |macs| datagram(macs, (A, T), (SPORT, dport));
        let hops = [
            Hop {
                by: "a",
                frame: frame((1, 5)),
                to: "router",
            },
            Hop {
                by: "router",
                frame: tagged(&frame((5, 6)), 20),
                to: "t",
            },
        ];
        let said = net.agree("a", "t", dport, &hops);
        let verdicts: Vec<_> = said.legs.iter().map(|l| l.verdict.as_str()).collect();
        assert_eq!(verdicts, legs);
        let names: Vec<_> = said
            .legs
            .iter()
            .map(|l| (l.from.name.as_str(), l.to.name.as_str()))
            .collect();
        assert_eq!(names, [("a", "r"), ("r20", "t")]);
    }
    // The router's own workload has no leg to itself.
    let hops = [Hop {
        by: "router",
        frame: tagged(&datagram((5, 6), ([10, 0, 0, 5], T), (SPORT, 11)), 20),
        to: "t",
    }];
    net.agree("r", "t", 11, &hops);
}

#[test]
fn an_answer_is_part_of_its_connection() {
    let mut net = Net::new(policy());
    let there = |net: &mut Net| net.passes(&hop("a", "b", (1, 2), (A, B), 1)[0]);
    let back = Hop {
        by: "b",
        frame: datagram((2, 1), (B, A), (1, SPORT)),
        to: "a",
    };
    // Without a connection it is a connection of its own, which no rule allows.
    assert_eq!(net.explain("b", "a", SPORT, Some(1)).verdict, "deny");
    assert!(net.passes(&back).is_err());
    there(&mut net).expect("allowed");
    let said = net.explain("b", "a", SPORT, Some(1));
    assert_eq!(
        (said.verdict.as_str(), said.rule.as_deref()),
        ("allow", Some("a-b-1"))
    );
    assert_eq!(said.live.len(), 1);
    net.passes(&back).expect("an answer");
    // From another port, or without one, it is a question of its own.
    assert_eq!(net.explain("b", "a", SPORT, Some(2)).verdict, "deny");
    let said = net.explain("b", "a", SPORT, None);
    assert_eq!((said.verdict.as_str(), said.live.len()), ("deny", 0));
    // The same under a policy with another name for it, which judges the connection in its original direction.
    let mut renamed = policy();
    renamed.rules[0].name = "renamed".to_owned();
    net.switch.apply_policy(renamed).expect("valid");
    let said = net.explain("b", "a", SPORT, Some(1));
    assert_eq!(
        (said.verdict.as_str(), said.rule.as_deref()),
        ("allow", Some("renamed"))
    );
    net.passes(&back).expect("an answer");
    // And under one that forbids it.
    let mut without = policy();
    without.rules.remove(0);
    net.switch.apply_policy(without).expect("valid");
    let said = net.explain("b", "a", SPORT, Some(1));
    assert_eq!((said.verdict.as_str(), said.live.len()), ("deny", 1));
    assert!(net.passes(&back).is_err());
    assert_eq!(net.explain("b", "a", SPORT, Some(1)).live.len(), 0, "cut");
}

/// Two tenants' workloads of the same name, address and MAC.
#[test]
fn a_name_is_the_default_tenants_unless_another_is_said() {
    let red = |name: &str, n: u8| PortConfig {
        tenant: "red".to_owned(),
        ..port(
            &format!("red-{name}"),
            vec![workload(name, n, &format!("10.0.0.{n}"), None)],
        )
    };
    let mut layout = ports();
    layout.retain(|p| ["a", "b"].contains(&p.name.as_str()));
    layout.extend([red("a", 1), red("b", 2), red("c", 3)]);
    let of_red = Rule {
        tenant: "red".to_owned(),
        ..rule("any", "any", 1, Action::Allow)
    };
    let policy = Policy {
        tenants: vec![Tenant {
            name: "red".to_owned(),
            ..Tenant::default()
        }],
        rules: vec![of_red, rule("any", "any", 2, Action::Allow)],
        ..Policy::default()
    };
    let mut net = Net::with(layout, policy);
    for (from, to, ports, dport) in [
        ("a", "b", ["a", "b"], 2),
        ("default/a", "b", ["a", "b"], 2),
        ("a", "default/b", ["a", "b"], 2),
        ("red/a", "red/b", ["red-a", "red-b"], 1),
        // Nobody else has that one.
        ("c", "red/b", ["red-c", "red-b"], 1),
    ] {
        let macs = if from == "c" { (3, 2) } else { (1, 2) };
        let ips = ([10, 0, 0, macs.0], B);
        for dport in [dport, 3 - dport] {
            net.agree(from, to, dport, &hop(ports[0], ports[1], macs, ips, dport));
        }
        let said = net.explain(from, to, dport, None);
        assert_eq!(said.verdict, "allow", "{from} to {to}");
    }
    for nobody in ["red/nobody", "default/c", "blue/a", "red/", "/a"] {
        let query = ExplainQuery {
            from: nobody.into(),
            to: "b".into(),
            service: "udp/1".into(),
            src_port: None,
        };
        let said = net.switch.explain(query);
        assert!(matches!(said, Err(SwitchError::Question(_))), "{nobody}");
    }
}
