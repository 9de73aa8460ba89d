//! Random policies and random questions against a naive reference, written from `docs/policy.md` and from nothing else: it
//! shares no type with the implementation and reads the policy as the operator writes it, word by word. The way through
//! the implementation is the operator's, too: two TOML files, compiled, asked.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;

use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use vswitch::control::validate::workloads;
use vswitch::packet::Addr;
use vswitch::policy::oracle::{Answer, Oracle, Peer};
use vswitch::policy::{Classifier, Party, Query, Service, Verdict};

const TENANTS: [&str; 2] = ["default", "blue"];
const TAGS: [&str; 3] = ["a", "b", "c"];
/// Workload n of the list has address n.
const ADDRESSES: [&str; 5] = ["10.0.0.1", "fd00::1", "10.0.1.1", "fe80::1", "10.0.0.2"];
const OUTSIDE: [&str; 12] = [
    "10.0.0.1",
    "10.0.0.3",
    "10.255.255.255",
    "11.0.0.0",
    "192.0.2.1",
    "0.0.0.0",
    "255.255.255.255",
    "fd00::1",
    "fe80::1",
    "ff02::2",
    "ff02::1:2",
    "ff02::16",
];
const SERVERS: [&str; 5] = ["10.0.0.1", "192.0.2.1", "fe80::1", "fd00::1", "10.0.0.3"];
const NETWORKS: [&str; 9] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.0.0.0/24",
    "10.0.0.1",
    "10.0.0.2/31",
    "255.255.255.255/32",
    "::/0",
    "fd00::/8",
    "fe80::/10",
];
const SERVICES: [&str; 16] = [
    "tcp",
    "tcp/80",
    "tcp/80-443",
    "tcp/0-80 from 1024-65535",
    "tcp from 80",
    "udp",
    "udp/67-68",
    "udp/53 from 53",
    "sctp/80",
    "icmp",
    "icmp/8",
    "icmpv6/133",
    "icmpv6/128/0",
    "ip/47",
    "ether/0x88cc",
    "ether/0x8899",
];
const TIERS: [&str; 5] = [
    "emergency",
    "infrastructure",
    "environment",
    "application",
    "baseline",
];

#[derive(Clone, Debug)]
struct Workload {
    tenant: &'static str,
    name: String,
    tags: Vec<&'static str>,
    address: &'static str,
}

#[derive(Clone, Debug)]
struct Segment {
    tenant: &'static str,
    name: String,
    tags: Vec<&'static str>,
    names: Vec<String>,
    networks: Vec<&'static str>,
}

#[derive(Clone, Debug)]
struct Rule {
    tenant: &'static str,
    name: String,
    from: Vec<String>,
    to: Vec<String>,
    services: Vec<&'static str>,
    action: &'static str,
    otherwise: &'static str,
    tier: &'static str,
    log: bool,
    limit: bool,
    staged: bool,
}

#[derive(Clone, Debug, Default)]
struct Servers {
    dhcp: Vec<&'static str>,
    routers: Vec<&'static str>,
}

#[derive(Clone, Debug)]
struct World {
    workloads: Vec<Workload>,
    segments: Vec<Segment>,
    rules: Vec<Rule>,
    /// By tenant.
    servers: [Servers; 2],
}

#[derive(Clone, Copy, Debug)]
enum Who {
    Workload(usize),
    Outside(&'static str, &'static str),
}

#[derive(Clone, Copy, Debug)]
enum What {
    Ip {
        protocol: u8,
        sport: u16,
        dport: u16,
    },
    Ether(u16),
}

// The reference. Section titles are those of docs/policy.md.

/// *What a decision says*, by names.
#[derive(Clone, PartialEq, Debug, Default)]
struct Says {
    verdict: &'static str,
    rule: Option<String>,
    also: Option<String>,
    staged: Option<String>,
    ask: bool,
    log: bool,
    notify: bool,
    limited: bool,
}

impl World {
    fn tenant_of(&self, who: Who) -> &'static str {
        match who {
            Who::Workload(n) => self.workloads[n].tenant,
            Who::Outside(tenant, _) => tenant,
        }
    }

    /// *Between tenants*
    fn judge(&self, from: Who, to: Who, what: What) -> Says {
        let opening = self.tenant_of(from);
        let other = self.tenant_of(to);
        let one = self.try_rules(opening, from, to, what);
        if opening == other {
            return one;
        }
        if one.verdict != "allow" {
            return one;
        }
        let two = self.try_rules(other, from, to, what);
        let staged = one.staged.clone().or(two.staged.clone());
        if two.verdict != "allow" {
            return Says { staged, ..two };
        }
        Says {
            verdict: "allow",
            rule: two.rule,
            also: one.rule,
            staged,
            ask: one.ask || two.ask,
            log: one.log || two.log,
            notify: one.notify || two.notify,
            limited: one.limited || two.limited,
        }
    }

    /// *Tiers and order*
    fn try_rules(&self, tenant: &'static str, from: Who, to: Who, what: What) -> Says {
        let known_as = |name: &str| match tenant {
            "default" => name.to_owned(),
            _ => format!("{tenant}/{name}"),
        };
        let mut staged = None;
        for tier in TIERS {
            if tier == "infrastructure" {
                for (name, from_side, to_side, services) in BUILT_IN {
                    let matches = services.iter().any(|service| written(service, what))
                        && self.in_built_in(tenant, from_side, from)
                        && self.in_built_in(tenant, to_side, to);
                    if matches {
                        return Says {
                            verdict: "allow",
                            rule: Some(known_as(name)),
                            staged,
                            ..Says::default()
                        };
                    }
                }
            }
            for rule in &self.rules {
                if rule.tenant != tenant || rule.tier != tier {
                    continue;
                }
                if !self.rule_matches(rule, from, to, what) {
                    continue;
                }
                if rule.staged {
                    staged = staged.or(Some(known_as(&rule.name)));
                    continue;
                }
                if rule.action == "pass" {
                    break;
                }
                return Says {
                    verdict: match rule.action {
                        "ask" | "notify" => "allow",
                        action => action,
                    },
                    rule: Some(known_as(&rule.name)),
                    also: None,
                    staged,
                    ask: rule.action == "ask",
                    log: rule.log || rule.action == "notify",
                    notify: rule.action == "notify",
                    limited: rule.limit,
                };
            }
        }
        Says {
            verdict: "deny",
            staged,
            ..Says::default()
        }
    }

    /// *Rules*
    fn rule_matches(&self, rule: &Rule, from: Who, to: Who, what: What) -> bool {
        let one_of = |list: &[String], who| {
            list.iter().any(|name| match name.split_once('/') {
                Some((tenant, name)) => self.in_segment(tenant, name, who),
                None => self.in_segment(rule.tenant, name, who),
            })
        };
        let service = match rule.services.is_empty() {
            true => matches!(what, What::Ip { .. }),
            false => rule.services.iter().any(|service| written(service, what)),
        };
        one_of(&rule.from, from) && one_of(&rule.to, to) && service
    }

    /// *Segments*
    fn in_segment(&self, tenant: &str, name: &str, who: Who) -> bool {
        if self.tenant_of(who) != tenant {
            return false;
        }
        if name == "any" {
            return matches!(who, Who::Workload(_));
        }
        let mut segments = self.segments.iter();
        let segment = segments
            .find(|s| s.tenant == tenant && s.name == name)
            .expect("references lead somewhere");
        match who {
            Who::Workload(n) => {
                let workload = &self.workloads[n];
                let tagged = segment.tags.iter().all(|tag| workload.tags.contains(tag));
                (tagged && !segment.tags.is_empty()) || segment.names.contains(&workload.name)
            }
            Who::Outside(_, address) => {
                let mut networks = segment.networks.iter();
                networks.any(|network| in_network(network, address))
            }
        }
    }

    /// *Built-in rules*
    fn in_built_in(&self, tenant: &str, side: &str, who: Who) -> bool {
        if self.tenant_of(who) != tenant {
            return false;
        }
        let servers = &self.servers[usize::from(tenant != "default")];
        let (declared, groups) = match side {
            "any" => return matches!(who, Who::Workload(_)),
            "dhcp-servers" => (&servers.dhcp, ["255.255.255.255", "ff02::1:2"]),
            _ => (&servers.routers, ["ff02::2", "ff02::16"]),
        };
        let local = |address: &str| {
            let mut workloads = self.workloads.iter();
            workloads.any(|w| w.tenant == tenant && w.address == address)
        };
        match who {
            Who::Workload(n) => declared.contains(&self.workloads[n].address),
            Who::Outside(_, address) => {
                let outside: Vec<_> = declared.iter().filter(|a| !local(a)).collect();
                outside.contains(&&address) || (!outside.is_empty() && groups.contains(&address))
            }
        }
    }
}

/// *Built-in rules*
const BUILT_IN: [(&str, &str, &str, &[&str]); 8] = [
    (
        "infrastructure/dhcp-request",
        "any",
        "dhcp-servers",
        &["udp/67 from 68"],
    ),
    (
        "infrastructure/dhcp-answer",
        "dhcp-servers",
        "any",
        &["udp/68 from 67"],
    ),
    (
        "infrastructure/dhcpv6-request",
        "any",
        "dhcp-servers",
        &["udp/547 from 546"],
    ),
    (
        "infrastructure/dhcpv6-answer",
        "dhcp-servers",
        "any",
        &["udp/546 from 547"],
    ),
    (
        "infrastructure/router-solicitation",
        "any",
        "routers",
        &["icmpv6/133"],
    ),
    (
        "infrastructure/router-advertisement",
        "routers",
        "any",
        &["icmpv6/134"],
    ),
    (
        "infrastructure/mld-query",
        "routers",
        "any",
        &["icmpv6/130"],
    ),
    (
        "infrastructure/mld-report",
        "any",
        "routers",
        &["icmpv6/131", "icmpv6/132", "icmpv6/143"],
    ),
];

/// *Services*: whether a service, as it is written, matches.
fn written(service: &str, what: What) -> bool {
    let (service, from) = match service.split_once(" from ") {
        Some((service, from)) => (service, from),
        None => (service, "0-65535"),
    };
    let mut parts = service.split('/');
    let name = parts.next().expect("a name");
    let rest: Vec<&str> = parts.collect();
    let (protocol, sport, dport) = match what {
        What::Ether(ethertype) => return name == "ether" && rest == [format!("0x{ethertype:04x}")],
        What::Ip {
            protocol,
            sport,
            dport,
        } => (protocol, sport, dport),
    };
    let number = match name {
        "tcp" => 6,
        "udp" => 17,
        "sctp" => 132,
        "icmp" => 1,
        "icmpv6" => 58,
        "ip" => return rest == [protocol.to_string()],
        _ => return false,
    };
    let destination = match (name, &rest[..]) {
        (_, []) => true,
        ("icmp" | "icmpv6", [kind]) => *kind == (dport / 256).to_string(),
        ("icmp" | "icmpv6", [kind, code]) => {
            *kind == (dport / 256).to_string() && *code == (dport % 256).to_string()
        }
        (_, [ports]) => in_ports(ports, dport),
        _ => false,
    };
    number == protocol && destination && in_ports(from, sport)
}

fn in_ports(written: &str, port: u16) -> bool {
    let (low, high) = written.split_once('-').unwrap_or((written, written));
    let number = |text: &str| text.parse::<u16>().expect("a port");
    (number(low)..=number(high)).contains(&port)
}

/// Whether an address is in a network: the first bits are the same.
fn in_network(network: &str, address: &str) -> bool {
    let bits = |text: &str| -> Vec<bool> {
        let bytes = match text.parse().expect("an address") {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        let bit = |byte: u8| (0..8).map(move |n| byte & (0x80 >> n) != 0);
        bytes.into_iter().flat_map(bit).collect()
    };
    let (first, len) = network.split_once('/').unwrap_or((network, "all"));
    let (first, address) = (bits(first), bits(address));
    let len = len.parse().unwrap_or(first.len());
    first.len() == address.len() && first[..len] == address[..len]
}

// The operator's files for a world.

impl World {
    fn switch_toml(&self) -> String {
        let mut text = String::from("policy = \"policy.toml\"\n");
        for (n, w) in self.workloads.iter().enumerate() {
            let _ = write!(
                text,
                "[[port]]\nname = \"p{n}\"\nkind = \"mem\"\ntenant = \"{}\"\n[[port.workload]]\nname = \"{}\"\n\
                 mac = [\"02:00:00:00:00:{n:02x}\"]\nip = [\"{}\"]\ntags = {:?}\n",
                w.tenant, w.name, w.address, w.tags,
            );
        }
        text
    }

    fn policy_toml(&self) -> String {
        let [own, blue] = &self.servers;
        let mut text = format!(
            "[infrastructure]\ndhcp_servers = {:?}\nrouters = {:?}\n\
             [[tenant]]\nname = \"blue\"\n[tenant.infrastructure]\ndhcp_servers = {:?}\nrouters = {:?}\n",
            own.dhcp, own.routers, blue.dhcp, blue.routers,
        );
        for s in &self.segments {
            let _ = write!(
                text,
                "[[segment]]\nname = \"{}\"\ntenant = \"{}\"\ntags = {:?}\nnames = {:?}\ncidr = {:?}\n",
                s.name, s.tenant, s.tags, s.names, s.networks,
            );
        }
        for r in &self.rules {
            let _ = write!(
                text,
                "[[rule]]\nname = \"{}\"\ntenant = \"{}\"\nfrom = {:?}\nto = {:?}\naction = \"{}\"\ntier = \"{}\"\nlog = {}\n",
                r.name, r.tenant, r.from, r.to, r.action, r.tier, r.log,
            );
            if !r.services.is_empty() {
                let _ = writeln!(text, "service = {:?}", r.services);
            }
            if r.action == "ask" {
                let _ = writeln!(text, "otherwise = \"{}\"", r.otherwise);
            }
            if r.limit {
                text.push_str("limit = { connections = 5 }\n");
            }
            if r.staged {
                text.push_str("stage = \"staged\"\n");
            }
        }
        text
    }
}

// Random worlds and questions.

fn workload_list() -> impl Strategy<Value = Vec<Workload>> {
    let one = (select(&TENANTS[..]), subsequence(&TAGS[..], 0..=3));
    prop::collection::vec(one, 1..=ADDRESSES.len()).prop_map(|list| {
        let numbered = list.into_iter().enumerate();
        let workload = numbered.map(|(n, (tenant, tags))| Workload {
            tenant,
            name: format!("w{n}"),
            tags,
            address: ADDRESSES[n],
        });
        workload.collect()
    })
}

fn segment_list() -> impl Strategy<Value = Vec<Segment>> {
    let names: Vec<String> = (0..ADDRESSES.len()).map(|n| format!("w{n}")).collect();
    let one = (
        select(&TENANTS[..]),
        subsequence(&TAGS[..], 0..=2),
        prop_oneof![3 => Just(Vec::new()), 1 => subsequence(names, 1..=2)],
        prop_oneof![1 => Just(Vec::new()), 1 => subsequence(&NETWORKS[..], 1..=3)],
    );
    prop::collection::vec(one, 1..6).prop_map(|list| {
        let numbered = list.into_iter().enumerate();
        let segment = numbered.map(|(n, (tenant, mut tags, names, networks))| {
            if tags.is_empty() && names.is_empty() && networks.is_empty() {
                tags.push("a");
            }
            Segment {
                tenant,
                name: format!("s{n}"),
                tags,
                names,
                networks,
            }
        });
        segment.collect()
    })
}

fn rule_list(segments: &[Segment]) -> impl Strategy<Value = Vec<Rule>> + use<> {
    let full = |s: &Segment| format!("{}/{}", s.tenant, s.name);
    let mut ends: Vec<String> = segments.iter().map(full).collect();
    ends.extend(TENANTS.map(|tenant| format!("{tenant}/any")));
    // What the rule is about is chosen first, so that its tenant owns one of its ends.
    let list = prop::collection::vec(select(ends), 1..=2);
    let flags = (
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.15),
    );
    let one = (
        list.clone(),
        list,
        prop_oneof![1 => Just(Vec::new()), 2 => subsequence(&SERVICES[..], 1..=3)],
        select(
            &[
                "allow", "allow", "deny", "reject", "decoy", "ask", "notify", "pass",
            ][..],
        ),
        select(&["allow", "deny"][..]),
        select(&TIERS[..]),
        flags,
        any::<bool>(),
    );
    prop::collection::vec(one, 0..14).prop_map(|list| {
        let numbered = list.into_iter().enumerate();
        let rule = numbered.map(
            |(n, (from, to, services, action, otherwise, tier, flags, by_to))| {
                let (log, limit, staged) = flags;
                let owned = if by_to { &to } else { &from };
                let tenant = if owned[0].starts_with("blue/") {
                    "blue"
                } else {
                    "default"
                };
                // References to the rule's own tenant are written both ways.
                let prefix = format!("{tenant}/");
                let short = |name: String| match name.strip_prefix(&prefix) {
                    Some(own) if n % 2 == 0 => own.to_owned(),
                    _ => name,
                };
                Rule {
                    tenant,
                    name: format!("r{n}"),
                    from: from.into_iter().map(short).collect(),
                    to: to.into_iter().map(short).collect(),
                    services,
                    action,
                    otherwise,
                    tier,
                    log: log && action != "pass",
                    limit: limit && ["allow", "ask", "notify"].contains(&action),
                    staged,
                }
            },
        );
        rule.collect()
    })
}

fn servers() -> impl Strategy<Value = Servers> {
    let some = subsequence(&SERVERS[..], 0..=3);
    (some.clone(), some).prop_map(|(dhcp, routers)| Servers { dhcp, routers })
}

fn world() -> impl Strategy<Value = World> {
    let base = (workload_list(), segment_list(), [servers(), servers()]);
    base.prop_flat_map(|(workloads, segments, servers)| {
        rule_list(&segments).prop_map(move |rules| World {
            workloads: workloads.clone(),
            segments: segments.clone(),
            rules,
            servers: servers.clone(),
        })
    })
}

fn who() -> impl Strategy<Value = Who> {
    prop_oneof![
        2 => (0..ADDRESSES.len()).prop_map(Who::Workload),
        1 => (select(&TENANTS[..]), select(&OUTSIDE[..])).prop_map(|(t, a)| Who::Outside(t, a)),
    ]
}

fn what() -> impl Strategy<Value = What> {
    let port = select(
        &[
            0, 53, 67, 68, 79, 80, 81, 443, 444, 546, 547, 1023, 1024, 65535,
        ][..],
    );
    let icmp = (128..=143u16, 0..=1u16).prop_map(|(kind, code)| kind * 256 + code);
    let ip = |protocol, sport, dport| What::Ip {
        protocol,
        sport,
        dport,
    };
    prop_oneof![
        6 => (select(&[6, 17, 132][..]), port.clone(), port).prop_map(move |(p, s, d)| ip(p, s, d)),
        3 => icmp.prop_map(move |dport| ip(58, 0, dport)),
        1 => select(&[0, 8 * 256, 8 * 256 + 1][..]).prop_map(move |dport| ip(1, 0, dport)),
        1 => select(&[47, 50][..]).prop_map(move |protocol| ip(protocol, 0, 0)),
        1 => select(&[0x88cc, 0x8899, 0x8900][..]).prop_map(What::Ether),
    ]
}

fn named(answer: &Answer) -> Says {
    Says {
        verdict: match answer.verdict {
            Verdict::Allow => "allow",
            Verdict::Deny => "deny",
            Verdict::Reject => "reject",
            Verdict::Decoy => "decoy",
        },
        rule: answer.rule.clone(),
        also: answer.also.clone(),
        staged: answer.staged.clone(),
        ask: answer.ask,
        log: answer.log,
        notify: answer.notify,
        limited: answer.limited,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn random_policies_answer_like_the_reference(
        world in world(),
        questions in prop::collection::vec((who(), who(), what()), 60),
    ) {
        let desired = vswitch::config::parse(
            ("switch.toml", "policy.toml"),
            &world.switch_toml(),
            &world.policy_toml(),
        ).unwrap_or_else(|errors| panic!("{errors}\n{}", world.policy_toml()));
        let facts = workloads(&desired);
        let compiled = Classifier::compile(&desired.policy, &facts, None).expect("it was checked");
        let oracle = Oracle::new(&desired.policy, &facts);
        for (from, to, what) in questions {
            let exists = |who| !matches!(who, Who::Workload(n) if n >= world.workloads.len());
            if !exists(from) || !exists(to) {
                continue;
            }
            let service = match what {
                What::Ip { protocol, sport, dport } => Service::Ip { protocol, sport, dport },
                What::Ether(ethertype) => Service::Ether(ethertype),
            };
            let id = |tenant: &str| desired.policy.tenant_id(tenant).expect("declared");
            let party = |who| match who {
                Who::Workload(n) => compiled.parties[n],
                Who::Outside(tenant, address) => {
                    let address: IpAddr = address.parse().expect("an address");
                    let set = compiled.classifier.outside(id(tenant), &Addr::from(address));
                    Party { tenant: id(tenant), set }
                }
            };
            let peer = |who| match who {
                Who::Workload(n) => Peer::Workload(n),
                Who::Outside(tenant, a) => Peer::Outside(id(tenant), a.parse().expect("an address")),
            };
            let query = Query { from: party(from), to: party(to), service };
            let answer = Answer::of(&compiled.classifier, &compiled.classifier.classify(&query));
            prop_assert_eq!(named(&answer), world.judge(from, to, what), "{:?} {:?} {:?}", from, to, what);
            prop_assert_eq!(answer, oracle.judge(peer(from), peer(to), service));
        }
    }
}

/// A policy of every built-in rule and nothing else is as the documentation's table says.
#[test]
fn built_in_rules_are_listed_as_documented() {
    let compiled = Classifier::compile(&Default::default(), &[], None).expect("an empty policy");
    let listed: Vec<&str> = compiled.classifier.rules().map(|rule| rule.name).collect();
    assert_eq!(listed, BUILT_IN.map(|(name, ..)| name));
    let defined = vswitch::policy::infrastructure_rules("default");
    for (rule, (name, from, to, services)) in defined.iter().zip(BUILT_IN) {
        let short = |list: &[vswitch::policy::model::SegmentRef]| {
            let name = list[0].to_string();
            name.strip_prefix("infrastructure/")
                .unwrap_or(&name)
                .to_owned()
        };
        let written: Vec<String> = rule.service.iter().map(ToString::to_string).collect();
        assert_eq!(rule.name, name);
        assert_eq!(
            (short(&rule.from), short(&rule.to)),
            (from.to_owned(), to.to_owned())
        );
        assert_eq!(written, services);
    }
    let table = include_str!("../docs/policy.md");
    for (name, ..) in BUILT_IN {
        assert!(
            table.contains(&format!("| `{name}` |")),
            "{name} is not in docs/policy.md"
        );
    }
}

/// Every service form that the tests use is one that the implementation prints as it is written.
#[test]
fn the_examples_of_services_are_canonical() {
    let distinct: BTreeSet<_> = SERVICES.into_iter().collect();
    assert_eq!(distinct.len(), SERVICES.len());
    for text in SERVICES {
        let spec: vswitch::policy::model::ServiceSpec = text.parse().expect("a service");
        assert_eq!(spec.to_string(), text);
    }
}
