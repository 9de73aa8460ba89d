//! What a compiled policy answers, case by case. Random cases are compared with the oracle in
//! `oracle.rs`.

use std::net::IpAddr;

use super::model::{
    Action, Ask, Limit, ManagementPath, OnExpiry, Otherwise, Policy, Rule, Scope, Segment, Tenant,
    Tier,
};
use super::oracle::{Answer, Oracle, Peer};
use super::*;
use crate::packet::{Addr, proto};

mod edits;

fn workload(name: &str, tags: &[&str]) -> WorkloadFacts {
    WorkloadFacts {
        name: name.into(),
        tags: tags.iter().map(|&tag| tag.into()).collect(),
        ..WorkloadFacts::default()
    }
}

fn by_tag(name: &str, tag: &str) -> Segment {
    Segment {
        tags: vec![tag.into()],
        ..Segment::new(name)
    }
}

fn by_cidr(name: &str, cidr: &[&str]) -> Segment {
    Segment {
        cidr: cidr.iter().map(|cidr| cidr.parse().unwrap()).collect(),
        ..Segment::new(name)
    }
}

fn rule(name: &str, from: &str, to: &str, service: &[&str], action: Action) -> Rule {
    Rule {
        service: service.iter().map(|text| text.parse().unwrap()).collect(),
        ..Rule::new(name, &[from], &[to], action)
    }
}

fn tcp(port: u16) -> Service {
    Service::Ip {
        protocol: proto::TCP,
        sport: 40_000,
        dport: port,
    }
}

fn udp(sport: u16, dport: u16) -> Service {
    Service::Ip {
        protocol: proto::UDP,
        sport,
        dport,
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): the same numbers every run.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % below
    }
}

/// As many narrow ends as can be; only those of one set; no room for anything.
const WAYS: [&[usize]; 3] = [&[usize::MAX], &[1], &[]];

/// A compiled policy; and once more for every other way its rules may be searched (see
/// `arrange.rs`), because all must answer the same.
struct World(Compiled, Vec<Compiled>);

impl World {
    fn new(policy: &Policy, workloads: &[WorkloadFacts]) -> Self {
        let others = WAYS.map(|way| Classifier::compile_as(policy, workloads, None, way).unwrap());
        let compiled = Classifier::compile(policy, workloads, None).unwrap();
        for other in &others {
            assert_eq!(other.parties, compiled.parties);
        }
        World(compiled, others.into())
    }

    fn outside(&self, addr: &str) -> Party {
        let addr = Addr::from(addr.parse::<IpAddr>().unwrap());
        Party {
            tenant: TenantId(0),
            set: self.0.classifier.outside(TenantId(0), &addr),
        }
    }

    fn judge(&self, from: Party, to: Party, service: Service) -> Judgement {
        let query = Query { from, to, service };
        let judgement = self.0.classifier.classify(&query);
        let answer = Answer::of(&self.0.classifier, &judgement);
        for classifier in self.1.iter().map(|compiled| &compiled.classifier) {
            let other = Answer::of(classifier, &classifier.classify(&query));
            assert_eq!(answer, other);
        }
        let asked = Query {
            service: self.0.classifier.as_asked(service),
            ..query
        };
        assert_eq!(self.0.classifier.classify(&asked), judgement);
        let mut burst = [Judgement::default(); 2];
        self.0.classifier.classify_burst(&[query; 2], &mut burst);
        assert_eq!(burst, [judgement; 2]);
        judgement
    }

    /// "verdict by rule".
    fn says(&self, from: Party, to: Party, service: Service) -> String {
        let judgement = self.judge(from, to, service);
        let by = match judgement.why {
            Why::Rule(rule) => self.0.classifier.rule_name(rule),
            Why::DefaultDeny => "default",
        };
        format!("{:?} by {by}", judgement.verdict)
    }
}

fn web_and_db() -> (Policy, [WorkloadFacts; 2]) {
    let policy = Policy {
        segments: vec![
            by_tag("web", "tier:web"),
            by_tag("db", "tier:db"),
            by_cidr("outside", &["0.0.0.0/0", "::/0"]),
        ],
        rules: vec![rule(
            "web-to-db",
            "web",
            "db",
            &["tcp/5432", "icmp"],
            Action::Allow,
        )],
        ..Policy::default()
    };
    let workloads = [
        workload("web-1", &["tier:web"]),
        workload("db-1", &["tier:db"]),
    ];
    (policy, workloads)
}

#[test]
fn nothing_is_allowed_without_a_policy() {
    let none = Classifier::deny_all();
    let party = Party {
        tenant: TenantId(0),
        set: none.outside(TenantId(0), &Addr::from(IpAddr::from([10, 0, 0, 1]))),
    };
    let judgement = none.classify(&Query {
        from: party,
        to: party,
        service: tcp(80),
    });
    assert_eq!(
        (judgement.verdict, judgement.why),
        (Verdict::Deny, Why::DefaultDeny)
    );
    assert!(none.limit_take(RuleId(0), 0));
    assert_eq!(none.rule_name(RuleId(0)), "unknown");
}

#[test]
fn a_rule_allows_its_service_in_its_direction_only() {
    let (policy, workloads) = web_and_db();
    let world = World::new(&policy, &workloads);
    let [web, db] = [world.0.parties[0], world.0.parties[1]];
    assert_eq!(world.says(web, db, tcp(5432)), "Allow by web-to-db");
    assert_eq!(world.says(web, db, tcp(5433)), "Deny by default");
    assert_eq!(world.says(db, web, tcp(5432)), "Deny by default");
    let echo = Service::Ip {
        protocol: proto::ICMP,
        sport: 0,
        dport: 8 << 8,
    };
    assert_eq!(world.says(web, db, echo), "Allow by web-to-db");
    assert_eq!(
        world.says(world.outside("10.0.0.1"), db, tcp(5432)),
        "Deny by default"
    );
}

#[test]
fn any_is_every_workload_and_never_the_outside() {
    let (mut policy, workloads) = web_and_db();
    policy
        .rules
        .push(rule("all", "any", "any", &[], Action::Allow));
    policy
        .rules
        .push(rule("out", "any", "outside", &["tcp/443"], Action::Notify));
    let world = World::new(&policy, &workloads);
    let [web, db] = [world.0.parties[0], world.0.parties[1]];
    let internet = world.outside("198.51.100.7");
    assert_eq!(world.says(db, web, tcp(1)), "Allow by all");
    assert_eq!(world.says(internet, web, tcp(1)), "Deny by default");
    assert_eq!(world.says(web, internet, tcp(1)), "Deny by default");
    let told = world.judge(web, internet, tcp(443));
    assert!(told.verdict == Verdict::Allow && told.notify && told.log);
    assert_eq!(
        world.says(web, db, Service::Ether(0x88cc)),
        "Deny by default"
    );
}

#[test]
fn tiers_come_before_file_order_and_pass_goes_on_with_the_next() {
    let (mut policy, workloads) = web_and_db();
    policy.rules = vec![
        rule("app", "web", "db", &[], Action::Allow),
        Rule {
            tier: Tier::Environment,
            ..rule("env-pass", "any", "db", &["tcp/1-100"], Action::Pass)
        },
        Rule {
            tier: Tier::Environment,
            ..rule("env-reject", "any", "any", &["tcp"], Action::Reject)
        },
        Rule {
            tier: Tier::Emergency,
            ..rule("stop", "any", "any", &["tcp/23"], Action::Deny)
        },
        Rule {
            tier: Tier::Baseline,
            ..rule("last", "any", "any", &["udp"], Action::Allow)
        },
    ];
    let world = World::new(&policy, &workloads);
    let [web, db] = [world.0.parties[0], world.0.parties[1]];
    assert_eq!(world.says(web, db, tcp(23)), "Deny by stop");
    assert_eq!(world.says(web, db, tcp(22)), "Allow by app");
    assert_eq!(world.says(web, db, tcp(200)), "Reject by env-reject");
    assert_eq!(world.says(db, web, udp(1, 2)), "Allow by last");
    assert_eq!(
        world.says(db, db, tcp(22)),
        "Deny by default",
        "passed, then nothing"
    );
}

#[test]
fn staged_rules_report_and_do_not_decide() {
    let (mut policy, workloads) = web_and_db();
    let staged = |name| Rule {
        staged: true,
        ..rule(name, "web", "db", &["tcp"], Action::Deny)
    };
    policy.rules.insert(0, staged("first"));
    policy.rules.insert(1, staged("second"));
    policy.rules.push(staged("after"));
    let world = World::new(&policy, &workloads);
    let [web, db] = [world.0.parties[0], world.0.parties[1]];
    let reported = |port| {
        let judgement = world.judge(web, db, tcp(port));
        let staged = judgement
            .staged
            .map(|rule| world.0.classifier.rule_name(rule));
        (judgement.verdict, staged)
    };
    assert_eq!(reported(5432), (Verdict::Allow, Some("first")));
    assert_eq!(reported(80), (Verdict::Deny, Some("first")));
}

#[test]
fn what_asks_is_allowed_if_the_manager_says_so() {
    let (mut policy, workloads) = web_and_db();
    let asks = |ttl_s| {
        let terms = Ask {
            ttl_s,
            ..Ask::new(Otherwise::Allow)
        };
        let action = Action::Ask(terms);
        (terms, rule("asks", "any", "any", &["tcp/1"], action))
    };
    let allow = rule("allow", "any", "any", &["tcp/2"], Action::Allow);
    let definition = |policy: &Policy| {
        let world = World::new(policy, &workloads);
        let [web, db] = [world.0.parties[0], world.0.parties[1]];
        let told = world.judge(web, db, tcp(2));
        assert!(!told.ask && world.0.classifier.asking(&told).is_none());
        let told = world.judge(web, db, tcp(1));
        assert!(told.ask && told.verdict == Verdict::Allow);
        let asking = world.0.classifier.asking(&told).unwrap();
        assert_eq!(world.0.classifier.rule_name(asking.rule), "asks");
        asking
    };
    let (terms, rule) = asks(60);
    policy.rules = vec![rule.clone(), allow.clone()];
    let first = definition(&policy);
    assert_eq!(first.terms, terms);
    // Where it stands does not matter, what it says does.
    policy.rules = vec![allow.clone(), rule];
    let moved = definition(&policy);
    assert_eq!(moved.definition, first.definition);
    policy.rules = vec![allow, asks(61).1];
    assert_ne!(definition(&policy).definition, first.definition);
}

#[test]
fn of_two_rules_that_ask_the_stricter_terms_hold() {
    let loose = Ask::new(Otherwise::Allow);
    let strict = Ask {
        otherwise: Otherwise::Deny,
        deadline_ms: 5,
        ttl_s: 6,
        scope: Scope::Connection,
        on_expiry: OnExpiry::Cut,
    };
    assert_eq!(loose.stricter(strict), strict);
    assert_eq!(strict.stricter(loose), strict);
}

#[test]
fn nested_networks_belong_to_every_segment_around_them() {
    let policy = Policy {
        segments: vec![
            by_cidr("all", &["0.0.0.0/0"]),
            by_cidr("ten", &["10.0.0.0/8"]),
            by_cidr("host", &["10.0.0.7"]),
            by_cidr("last", &["255.255.255.255"]),
            by_cidr("six", &["fd00::/8", "ffff:ffff::/32"]),
        ],
        rules: vec![
            rule("host", "host", "any", &["tcp/1"], Action::Allow),
            rule("ten", "ten", "any", &["tcp/1-2"], Action::Allow),
            rule("last", "last", "any", &[], Action::Allow),
            rule("all", "all", "any", &["tcp/1-3"], Action::Allow),
            rule("six", "six", "any", &[], Action::Allow),
        ],
        ..Policy::default()
    };
    let world = World::new(&policy, &[workload("w", &[])]);
    let to = world.0.parties[0];
    for (addr, port, says) in [
        ("10.0.0.7", 1, "Allow by host"),
        ("10.0.0.7", 2, "Allow by ten"),
        ("10.0.0.8", 1, "Allow by ten"),
        ("10.0.0.6", 3, "Allow by all"),
        ("9.255.255.255", 1, "Allow by all"),
        ("11.0.0.0", 2, "Allow by all"),
        ("0.0.0.0", 3, "Allow by all"),
        ("255.255.255.255", 9, "Allow by last"),
        ("255.255.255.254", 9, "Deny by default"),
        ("fd00::1", 9, "Allow by six"),
        ("fe00::", 9, "Deny by default"),
        ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 9, "Allow by six"),
        ("::", 1, "Deny by default"),
    ] {
        assert_eq!(
            world.says(world.outside(addr), to, tcp(port)),
            says,
            "{addr} {port}"
        );
    }
}

#[test]
fn between_tenants_both_must_allow() {
    let mut policy = Policy {
        tenants: vec![Tenant {
            name: "b".into(),
            ..Tenant::default()
        }],
        segments: vec![
            by_tag("web", "web"),
            Segment {
                tenant: "b".into(),
                ..by_tag("db", "db")
            },
        ],
        rules: vec![rule("out", "web", "b/db", &["tcp/1-2"], Action::Allow)],
        ..Policy::default()
    };
    policy.rules.push(Rule {
        tenant: "b".into(),
        limit: Some(Limit {
            connections: Some(5),
            bits: None,
        }),
        ..rule("in", "default/any", "db", &["tcp/2-3"], Action::Allow)
    });
    // A tenant's own "any" never means another's workloads.
    policy
        .rules
        .push(rule("own", "any", "any", &["tcp/9"], Action::Allow));
    let mut db = workload("db-1", &["db", "web"]);
    db.tenant = TenantId(1);
    let world = World::new(&policy, &[workload("web-1", &["web"]), db]);
    let [web, db] = [world.0.parties[0], world.0.parties[1]];
    assert_eq!(
        world.says(web, db, tcp(1)),
        "Deny by default",
        "b did not allow"
    );
    assert_eq!(world.says(web, db, tcp(2)), "Allow by b/in");
    assert_eq!(
        world.says(web, db, tcp(3)),
        "Deny by default",
        "default did not allow"
    );
    assert_eq!(world.says(web, db, tcp(9)), "Deny by default");
    // Rules of the next tenant come right after.
    assert_eq!(world.says(web, web, tcp(5)), "Deny by default");
    assert_eq!(world.says(web, web, udp(68, 67)), "Deny by default");
    assert_eq!(world.says(db, db, tcp(5)), "Deny by default");
    let both = world.judge(web, db, tcp(2));
    let also = both.also.map(|rule| world.0.classifier.rule_name(rule));
    assert_eq!(also, Some("out"));
    assert!(both.limited);
}

#[test]
fn dhcp_and_routers_work_once_declared() {
    let (mut policy, _) = web_and_db();
    policy.infrastructure.dhcp_servers =
        vec!["10.0.0.2".parse().unwrap(), "192.0.2.1".parse().unwrap()];
    policy.infrastructure.routers = vec!["fe80::1".parse().unwrap()];
    let mut server = workload("dhcp", &[]);
    server.ips = vec!["10.0.0.2".parse().unwrap()];
    let world = World::new(&policy, &[workload("client", &[]), server]);
    let [client, server] = [world.0.parties[0], world.0.parties[1]];
    assert_eq!(
        world.says(client, server, udp(68, 67)),
        "Allow by infrastructure/dhcp-request"
    );
    assert_eq!(
        world.says(server, client, udp(67, 68)),
        "Allow by infrastructure/dhcp-answer"
    );
    assert_eq!(world.says(client, server, udp(67, 68)), "Deny by default");
    assert_eq!(
        world.says(client, client, udp(67, 68)),
        "Deny by default",
        "not a server"
    );
    for addr in ["192.0.2.1", "255.255.255.255"] {
        let outside = world.outside(addr);
        assert_eq!(
            world.says(client, outside, udp(68, 67)),
            "Allow by infrastructure/dhcp-request"
        );
    }
    assert_eq!(
        world.says(client, world.outside("10.0.0.2"), udp(68, 67)),
        "Deny by default"
    );
    let advertisement = Service::Ip {
        protocol: proto::ICMPV6,
        sport: 0,
        dport: 134 << 8,
    };
    let router = world.outside("fe80::1");
    assert_eq!(
        world.says(router, client, advertisement),
        "Allow by infrastructure/router-advertisement"
    );
    assert_eq!(
        world.says(world.outside("fe80::2"), client, advertisement),
        "Deny by default"
    );
}

#[test]
fn a_policy_that_cuts_management_is_refused() {
    let (mut policy, workloads) = web_and_db();
    policy.infrastructure.management = vec![ManagementPath {
        from: vec!["web".into()],
        to: vec!["db".into()],
        service: vec!["tcp/20-30".parse().unwrap()],
    }];
    let refusal = |policy: &Policy| -> Vec<String> {
        match Classifier::compile(policy, &workloads, None) {
            Ok(_) => Vec::new(),
            Err(errors) => errors.iter().map(ToString::to_string).collect(),
        }
    };
    let says = |what: &str| {
        [format!(
            "infrastructure.management[0]: {what} on this management path; allow it in an earlier \
             tier or before that rule, or remove the path"
        )]
    };
    assert_eq!(refusal(&policy), says("the default denies tcp/20"));
    policy
        .rules
        .push(rule("manage", "any", "any", &["tcp"], Action::Allow));
    assert_eq!(refusal(&policy), [""; 0]);
    policy.rules.insert(
        0,
        rule("one", "web", "any", &["tcp/25 from 7"], Action::Reject),
    );
    assert_eq!(refusal(&policy), says("rule \"one\" denies tcp/25"));
    policy.rules[0].action = Action::Ask(Ask::new(Otherwise::Allow));
    assert_eq!(refusal(&policy), says("rule \"one\" asks about tcp/25"));
    policy.rules[0].staged = true;
    assert_eq!(refusal(&policy), [""; 0]);
}

#[test]
fn counts_and_buckets_outlive_a_reload_and_a_changed_limit_starts_anew() {
    let (mut policy, workloads) = web_and_db();
    let limit = |connections| {
        Some(Limit {
            connections: Some(connections),
            bits: None,
        })
    };
    policy.rules[0].limit = limit(1);
    let compile = |policy: &Policy, previous: Option<&Classifier>| {
        Classifier::compile(policy, &workloads, previous)
            .unwrap()
            .classifier
    };
    let find = |classifier: &Classifier| {
        let rule = classifier.rules().find(|rule| rule.name == "web-to-db");
        rule.map(|rule| (rule.id, rule.hits)).unwrap()
    };
    let first = compile(&policy, None);
    let (id, _) = find(&first);
    first.hit(id);
    assert!(first.limit_take(id, 10));
    // Something before it, so that its number changes.
    policy
        .rules
        .insert(0, rule("new", "any", "any", &["udp"], Action::Deny));
    let second = compile(&policy, Some(&first));
    let (moved, hits) = find(&second);
    assert_eq!((moved, hits), (RuleId(id.0 + 1), 1));
    assert!(!second.limit_take(moved, 11), "still spent");
    policy.rules[1].limit = limit(2);
    let third = compile(&policy, Some(&second));
    assert_eq!(find(&third).1, 1);
    assert!(third.limit_take(moved, 12));
}

/// A rule over few segments, with everything that changes the order they are tried in.
fn crowded_rule(name: &str, pick: &mut impl FnMut(usize) -> usize) -> Rule {
    let low = pick(60);
    let services = [
        format!("tcp/{}-{}", low, low + pick(9)),
        "tcp from 7".into(),
    ];
    let services: Vec<&str> = services.iter().map(String::as_str).collect();
    let service = [&[][..], &services[..1], &services[..]][pick(40).min(2)];
    let asks = Ask::new(Otherwise::Deny);
    let actions = [
        Action::Allow,
        Action::Reject,
        Action::Pass,
        Action::Ask(asks),
    ];
    let mut end = || ["s0", "s1", "s2", "s3", "s4", "s5", "any"][pick(7)];
    let (from, to, more) = (end(), end(), end());
    let mut rule = rule(name, from, to, service, actions[pick(4)]);
    if pick(3) == 0 {
        rule.to.push(more.into());
    }
    rule.tier = Tier::ALL[pick(5)];
    rule.staged = pick(9) == 0;
    rule
}

/// Many such rules, and who they are about.
fn crowded(pick: &mut impl FnMut(usize) -> usize) -> (Policy, [WorkloadFacts; 4]) {
    let segment = |n: usize| match n {
        0..4 => by_tag(&format!("s{n}"), ["a", "b", "c", "d"][n]),
        _ => by_cidr(&format!("s{n}"), &[["10.0.0.0/8", "10.1.0.0/16"][n - 4]]),
    };
    let policy = Policy {
        segments: (0..6).map(segment).collect(),
        rules: (0..pick(400))
            .map(|n| crowded_rule(&format!("r{n}"), pick))
            .collect(),
        ..Policy::default()
    };
    let tags = [&["a"][..], &["a", "b"], &["b", "c", "d"], &[]];
    (policy, tags.map(|tags| workload(&tags.concat(), tags)))
}

/// Asks at random; the oracle says the same. Returns what was answered.
fn compare(
    world: &World,
    policy: &Policy,
    workloads: &[WorkloadFacts; 4],
    questions: usize,
    pick: &mut impl FnMut(usize) -> usize,
) -> Vec<Judgement> {
    let oracle = Oracle::new(policy, workloads);
    let ask = |_| {
        let outside = ["10.2.0.0", "10.1.0.0", "11.0.0.0"];
        let mut who = || match pick(7) {
            n @ 0..4 => (world.0.parties[n], Peer::Workload(n)),
            n => {
                let addr = outside[n - 4];
                let peer = Peer::Outside(TenantId(0), addr.parse().unwrap());
                (world.outside(addr), peer)
            }
        };
        let ((from, one), (to, other)) = (who(), who());
        let service = Service::Ip {
            protocol: proto::TCP,
            sport: [7, 8][pick(2)],
            dport: u16::try_from(pick(72)).unwrap(),
        };
        let judgement = world.judge(from, to, service);
        let answer = Answer::of(&world.0.classifier, &judgement);
        assert_eq!(answer, oracle.judge(one, other, service));
        judgement
    };
    (0..questions).map(ask).collect()
}

#[test]
fn crowded_policies_answer_like_the_oracle() {
    let mut random = Random(3);
    for _ in 0..60 {
        let mut pick = |below: usize| usize::try_from(random.next(below as u64)).unwrap();
        let (policy, workloads) = crowded(&mut pick);
        let world = World::new(&policy, &workloads);
        compare(&world, &policy, &workloads, 300, &mut pick);
    }
}

#[test]
fn long_cells_are_indexed_and_answer_the_same() {
    let (mut policy, workloads) = web_and_db();
    policy.rules = (0..2000u16)
        .map(|n| {
            let service = [format!("tcp/{}-{} from {}-65535", n, n + 5, n % 7)];
            let service: Vec<&str> = service.iter().map(String::as_str).collect();
            rule(&format!("r{n}"), "web", "db", &service, Action::Allow)
        })
        .collect();
    let world = World::new(&policy, &workloads);
    assert_eq!(world.0.classifier.whole.cells.indexes.len(), 1);
    let [web, db] = [world.0.parties[0], world.0.parties[1]];
    for (sport, dport, says) in [
        (9, 0, "Allow by r0"),
        (0, 3, "Allow by r0"),
        (9, 1000, "Allow by r995"),
        (0, 12, "Allow by r7"),
        (0, 13, "Deny by default"),
        (0, 2000, "Allow by r1995"),
        (9, 2004, "Allow by r1999"),
        (9, 2005, "Deny by default"),
    ] {
        let service = Service::Ip {
            protocol: proto::TCP,
            sport,
            dport,
        };
        let says = says.to_owned();
        assert_eq!(world.says(web, db, service), says, "{sport} {dport}");
    }
}
