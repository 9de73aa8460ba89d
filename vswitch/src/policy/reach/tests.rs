//! Random policies, every pair and service judged by the linear reference, and what follows from that worked out the long way.

use std::collections::BTreeSet;

use super::super::model::{
    Action, Ask, DEFAULT_TENANT, Otherwise, Rule, Segment, ServiceSpec, Tenant, Tier,
};
use super::super::oracle::{Oracle, Peer};
use super::super::tests::Random;
use super::super::{TenantId, Verdict};
use super::*;
use crate::packet::proto;

const SERVICES: [&str; 8] = [
    "tcp",
    "tcp/80",
    "tcp/80-443",
    "tcp/0-80 from 1024-65535",
    "udp/53",
    "icmp/8",
    "ip/47",
    "ether/0x88cc",
];
const NETWORKS: [&str; 4] = ["0.0.0.0/0", "192.0.2.0/24", "198.51.100.0/24", "fd00::/8"];
const OUTSIDE: [&str; 4] = ["192.0.2.1", "198.51.100.9", "8.8.8.8", "fd00::1"];
/// Who is left out of nothing: workloads and, last, the outside.
const WORKLOADS: usize = 8;
const TENANTS: [&str; 2] = [DEFAULT_TENANT, "blue"];

fn below(random: &mut Random, n: usize) -> usize {
    usize::try_from(random.next(n as u64)).unwrap()
}

/// A service on each side of all that the services above say.
fn probes() -> Vec<Service> {
    let mut all = vec![Service::Ether(0x88cc), Service::Ether(0x88cd)];
    let ports = [53, 54, 80, 81, 443, 444];
    for (protocol, dports) in [
        (proto::TCP, &ports[..]),
        (proto::UDP, &ports[..2]),
        (proto::ICMP, &[0x800, 0x900][..]),
        (47, &[0][..]),
        (48, &[0][..]),
    ] {
        for dport in dports {
            for sport in [1023, 1024] {
                all.push(Service::Ip {
                    protocol,
                    sport,
                    dport: *dport,
                });
            }
        }
    }
    all
}

fn workloads(random: &mut Random) -> Vec<WorkloadFacts> {
    let tags = ["a", "b", "c"];
    let each = 0..WORKLOADS;
    each.map(|n| WorkloadFacts {
        tenant: TenantId(u16::from(random.next(5) == 0)),
        name: format!("w{n}"),
        tags: { tags.iter() }
            .filter(|_| random.next(3) == 0)
            .map(ToString::to_string)
            .collect(),
        ..WorkloadFacts::default()
    })
    .collect()
}

fn random_rule(random: &mut Random, n: usize) -> Rule {
    let actions = [
        Action::Allow,
        Action::Allow,
        Action::Ask(Ask::new(Otherwise::Deny)),
        Action::Notify,
        Action::Deny,
        Action::Reject,
        Action::Pass,
    ];
    let pick = |random: &mut Random, from: &[&str]| {
        let mut ends = Vec::new();
        for _ in 0..=random.next(2) {
            let at = below(random, from.len());
            ends.push(SegmentRef::from(from[at]));
        }
        ends.dedup();
        ends
    };
    let blue = random.next(4) == 0;
    let own = ["any", "a", "b", "c", "net0", "net1", "net2", "net3"];
    let both = ["any", "a", "b", "blue/a", "blue/any", "default/b", "net1"];
    let ends: &[&str] = if blue { &both[1..6] } else { &both };
    let ends = if random.next(2) == 0 && !blue {
        &own
    } else {
        ends
    };
    let services = (0..random.next(3)).map(|_| SERVICES[below(random, 8)]);
    let service: BTreeSet<&str> = services.collect();
    Rule {
        tenant: TENANTS[usize::from(blue)].to_owned(),
        from: pick(random, ends),
        to: pick(random, ends),
        service: service.iter().map(|s| s.parse().unwrap()).collect(),
        tier: [Tier::Environment, Tier::Application][below(random, 2)],
        staged: random.next(8) == 0,
        ..Rule::new(
            &format!("r{n}"),
            &[],
            &[],
            actions[below(random, actions.len())],
        )
    }
}

fn policy(random: &mut Random) -> Policy {
    let mut policy = Policy::default();
    policy.tenants.push(Tenant {
        name: "blue".into(),
        ..Tenant::default()
    });
    for tenant in TENANTS {
        for tag in ["a", "b", "c"] {
            policy.segments.push(Segment {
                tenant: tenant.into(),
                tags: vec![tag.into()],
                ..Segment::new(tag)
            });
        }
        for (n, network) in NETWORKS.iter().enumerate() {
            policy.segments.push(Segment {
                tenant: tenant.into(),
                cidr: vec![network.parse().unwrap()],
                ..Segment::new(&format!("net{n}"))
            });
        }
    }
    for n in 0..2 + below(random, 8) {
        policy.rules.push(random_rule(random, n));
    }
    policy
}

/// Every case, and a policy compiled for its workloads.
fn cases(count: u64) -> impl Iterator<Item = (Policy, Vec<WorkloadFacts>, Classifier, Random)> {
    (0..count).filter_map(|seed| {
        let mut random = Random(seed);
        let (policy, workloads) = (policy(&mut random), workloads(&mut random));
        let compiled = Classifier::compile(&policy, &workloads, None).ok()?;
        Some((policy, workloads, compiled.classifier, random))
    })
}

fn peers(n: usize) -> Vec<Peer> {
    if n < WORKLOADS {
        return vec![Peer::Workload(n)];
    }
    let tenants = [TenantId(0), TenantId(1)].into_iter();
    tenants
        .flat_map(|t| OUTSIDE.map(|ip| Peer::Outside(t, ip.parse().unwrap())))
        .collect()
}

/// How one may open something to another, by the reference.
fn reference(oracle: &Oracle<'_>, a: Peer, b: Peer, service: Service) -> Option<How> {
    let answer = oracle.judge(a, b, service);
    let rule = answer.rule.filter(|_| answer.verdict == Verdict::Allow)?;
    assert!(!rule.contains("infrastructure/"), "{rule}");
    Some(match (answer.ask, answer.notify) {
        (true, _) => How::Ask,
        (false, true) => How::Notify,
        (false, false) => How::Allow,
    })
}

type Matrix = Vec<Vec<Option<Level>>>;

/// By two of them, how far the one may reach the other in one step.
fn matrix(oracle: &Oracle<'_>, walled: impl Fn(usize, usize) -> bool) -> Matrix {
    let probes = probes();
    let all = 0..=WORKLOADS;
    all.clone()
        .map(|a| {
            let to = all.clone().map(|b| {
                let pairs = peers(a).into_iter();
                let pairs = pairs.flat_map(|x| peers(b).into_iter().map(move |y| (x, y)));
                let hows = pairs.flat_map(|(x, y)| {
                    let each = probes.iter();
                    each.filter_map(move |s| reference(oracle, x, y, *s))
                });
                let level = |how| match how {
                    _ if walled(a, b) => Level::Walled,
                    How::Ask => Level::Ask,
                    _ => Level::Open,
                };
                hows.map(level).min()
            });
            to.collect()
        })
        .collect()
}

/// Everybody who is reached from one of them by steps of at most that level.
fn closure(matrix: &Matrix, start: usize, most: Level) -> BTreeSet<usize> {
    let mut found = BTreeSet::new();
    let mut todo = vec![start];
    while let Some(n) = todo.pop() {
        if n == WORKLOADS && start != WORKLOADS {
            continue;
        }
        let next = (0..=WORKLOADS).filter(|m| matrix[n][*m].is_some_and(|l| l <= most));
        for next in next {
            if found.insert(next) {
                todo.push(next);
            }
        }
    }
    found
}

fn end(n: usize) -> End {
    if n < WORKLOADS {
        End::Workload(n)
    } else {
        End::Outside(None)
    }
}

fn world<'a>(
    (policy, workloads, classifier): (&'a Policy, &'a [WorkloadFacts], &'a Classifier),
    walls: impl Into<Option<Walls<'a>>>,
) -> World<'a> {
    World {
        policy,
        classifier,
        workloads,
        apart: &[],
        answers: &[],
        walls: walls.into(),
        today: Day::of(0),
    }
}

#[test]
fn what_may_be_opened_is_what_the_reference_says() {
    for (policy, workloads, classifier, _) in cases(20) {
        let oracle = Oracle::new(&policy, &workloads);
        let world = world((&policy, &workloads, &classifier), None);
        let graph = Graph::new(world, &[]);
        for a in 0..=WORKLOADS {
            for b in 0..=WORKLOADS {
                let judged = graph.judge(graph.node(end(a)), graph.node(end(b)));
                for (x, y) in peers(a)
                    .into_iter()
                    .flat_map(|x| peers(b).into_iter().map(move |y| (x, y)))
                {
                    for service in probes() {
                        let is_of = |peer, party: usize| match peer {
                            Peer::Workload(_) => true,
                            Peer::Outside(tenant, ip) => {
                                let set = classifier.outside(tenant, &Addr::from(ip));
                                let node = graph.nodes.last().unwrap();
                                node.parties[party] == Party { tenant, set }
                            }
                        };
                        let sport = match service {
                            Service::Ip { sport, .. } => sport,
                            Service::Ether(_) => 0,
                        };
                        let said = judged.iter().filter(|j| {
                            is_of(x, j.piece.parties.0)
                                && is_of(y, j.piece.parties.1)
                                && part(&j.piece, service).is_some()
                                && j.piece.sports.contains(sport)
                        });
                        let said: Vec<How> = said.map(|j| j.how).collect();
                        let expected = reference(&oracle, x, y, service);
                        assert_eq!(
                            said,
                            Vec::from_iter(expected),
                            "{x:?} {y:?} {service:?}\n{policy:#?}\n{workloads:#?}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn who_is_reached_is_who_the_reference_leads_to() {
    for (policy, workloads, classifier, mut random) in cases(40) {
        let oracle = Oracle::new(&policy, &workloads);
        let (x, y) = (below(&mut random, 9), below(&mut random, 9));
        let walled = |a: usize, b: usize| (a.min(b), a.max(b)) == (x.min(y), x.max(y));
        let walls = |a: End, b: End, next: bool| {
            let n = |end| match end {
                End::Workload(n) => n,
                End::Outside(_) => WORKLOADS,
            };
            (next && walled(n(a), n(b))).then(|| "wall".to_owned())
        };
        let apart: Vec<u64> = (0..WORKLOADS as u64).collect();
        let world = World {
            apart: &apart,
            ..world(
                (&policy, &workloads, &classifier),
                Some(&walls as Walls<'_>),
            )
        };
        let matrix = matrix(&oracle, walled);
        let back: Matrix = (0..=WORKLOADS)
            .map(|a| (0..=WORKLOADS).map(|b| matrix[b][a]).collect())
            .collect();
        for start in 0..=WORKLOADS {
            for (to, matrix) in [(false, &matrix), (true, &back)] {
                let mut known = closure(matrix, start, Level::Open);
                known.remove(&start);
                let mut expected = vec![known.clone()];
                let mut asked = closure(matrix, start, Level::Ask);
                asked.remove(&start);
                expected.push(asked.difference(&known).copied().collect());
                let near = asked.iter().chain([&start]);
                let near = near.filter(|n| **n != WORKLOADS || start == WORKLOADS);
                let walled: BTreeSet<usize> = near
                    .flat_map(|n| (0..=WORKLOADS).filter(|m| matrix[*n][*m].is_some()))
                    .filter(|m| *m != start && !asked.contains(m))
                    .collect();
                expected.push(walled);
                let reach = reach(&world, end(start), to, usize::MAX);
                let name = |n: &usize| match workloads.get(*n) {
                    Some(w) => qualified(policy.tenant_name(w.tenant).unwrap(), &w.name),
                    None => "outside".to_owned(),
                };
                let levels = [Level::Open, Level::Ask, Level::Walled];
                for (level, expected) in levels.into_iter().zip(&expected) {
                    let at = reach.found.iter().filter(|f| f.level == level);
                    let found: BTreeSet<_> = at.flat_map(|f| f.who.names.clone()).collect();
                    let expected: BTreeSet<_> = expected.iter().map(name).collect();
                    assert_eq!(
                        found, expected,
                        "{start} {to} {level:?} {policy:#?} {workloads:#?}"
                    );
                    assert_eq!(reach.workloads[level as usize], expected.len());
                }
                assert!(reach.found.iter().all(|f| !f.by.is_empty()), "{reach:#?}");
                assert!(!reach.cut_off);
            }
        }
    }
}

#[test]
fn what_a_yes_opens_is_what_was_not_open_before() {
    let mut gained = 0;
    for (policy, workloads, classifier, _) in cases(25) {
        let oracle = Oracle::new(&policy, &workloads);
        let world = world((&policy, &workloads, &classifier), None);
        let before = matrix(&oracle, |_, _| false);
        let closed = |matrix: &Matrix| {
            let all = (0..=WORKLOADS).map(|n| {
                let mut to = closure(matrix, n, Level::Open);
                to.remove(&n);
                to
            });
            all.collect::<Vec<_>>()
        };
        let was = closed(&before);
        for a in 0..=WORKLOADS {
            for b in (0..=WORKLOADS).filter(|b| *b != a) {
                let mut after = before.clone();
                after[a][b] = Some(Level::Open);
                let is = closed(&after);
                let new = is
                    .iter()
                    .zip(&was)
                    .map(|(is, was)| is.difference(was).count());
                let service = "tcp/80".parse::<ServiceSpec>().unwrap();
                let asked = (
                    end(a),
                    end(b),
                    Service::Ip {
                        protocol: 6,
                        sport: 0,
                        dport: 80,
                    },
                );
                let opened = opened(&world, asked, usize::MAX);
                assert_eq!(opened.service, service.to_string());
                assert_eq!(
                    opened.pairs,
                    new.sum::<usize>() as u64,
                    "{a} {b} {policy:#?} {workloads:#?}"
                );
                assert_eq!(opened.known, was[a].contains(&b));
                let through: usize = opened.through.iter().map(|f| f.who.size).sum();
                let mut own = is[a].difference(&was[a]).count();
                own -= usize::from(!opened.known);
                assert_eq!(
                    through, own,
                    "{a} {b} {opened:#?} {policy:#?} {workloads:#?}"
                );
                gained += through + opened.others.len();
            }
        }
    }
    assert!(gained > 20, "the cases are about nothing: {gained}");
}

#[test]
fn a_policy_that_replaces_another_opens_and_closes_what_the_reference_says() {
    let mut seen = 0;
    for (old, workloads, before, mut random) in cases(60) {
        let mut new = old.clone();
        match random.next(4) {
            0 => new.rules.push(random_rule(&mut random, 99)),
            1 => drop(new.rules.remove(0)),
            2 => new.rules.swap(0, 1),
            _ => new.segments[below(&mut random, 3)].tags = vec!["b".into()],
        }
        let Ok(after) = Classifier::compile(&new, &workloads, None) else {
            continue;
        };
        let state = |policy, classifier| State {
            policy,
            classifier,
            workloads: &workloads,
        };
        let states = (state(&old, &before), state(&new, &after.classifier));
        let compared = compare(&states.0, &states.1, usize::MAX);
        let mut told = BTreeSet::new();
        for change in compared.opened.iter().chain(&compared.closed) {
            assert!(!change.service.is_empty());
            for a in &change.from.names {
                for b in &change.to.names {
                    told.insert((a.clone(), b.clone(), change.before, change.after));
                }
            }
        }
        let few = compared.opened.iter().chain(&compared.closed);
        if few.into_iter().any(|c| c.from.size.max(c.to.size) > NAMES) {
            continue;
        }
        let oracles = [Oracle::new(&old, &workloads), Oracle::new(&new, &workloads)];
        let mut expected = BTreeSet::new();
        let name = |n: usize| match workloads.get(n) {
            Some(w) => qualified(old.tenant_name(w.tenant).unwrap(), &w.name),
            None => "outside".to_owned(),
        };
        for a in 0..=WORKLOADS {
            for b in 0..=WORKLOADS {
                for (x, y) in peers(a)
                    .into_iter()
                    .flat_map(|x| peers(b).into_iter().map(move |y| (x, y)))
                {
                    for service in probes() {
                        let hows = oracles.each_ref().map(|oracle| {
                            let how = reference(oracle, x, y, service);
                            how.map(|how| if how == How::Ask { how } else { How::Allow })
                        });
                        if hows[0] != hows[1] {
                            expected.insert((name(a), name(b), hows[0], hows[1]));
                        }
                    }
                }
            }
        }
        seen += expected.len();
        assert_eq!(told, expected, "{old:#?} {new:#?} {workloads:#?}");
    }
    assert!(seen > 20, "the cases are about nothing: {seen}");
}

#[test]
fn an_answer_that_stands_opens_its_service_or_closes_it() {
    let mut policy = Policy::default();
    let ask = Action::Ask(Ask::new(Otherwise::Deny));
    policy.rules.push(Rule {
        service: vec!["tcp/80-90".parse().unwrap()],
        ..Rule::new("asks", &["any"], &["any"], ask)
    });
    let named = |name: &str| WorkloadFacts {
        name: name.into(),
        ..WorkloadFacts::default()
    };
    let workloads = [named("a"), named("b"), named("c")];
    let compiled = Classifier::compile(&policy, &workloads, None).unwrap();
    let answer = |to, dport, yes| Standing {
        from: End::Workload(0),
        to: End::Workload(to),
        service: Service::Ip {
            protocol: proto::TCP,
            sport: 0,
            dport,
        },
        yes,
    };
    let answers = [
        answer(1, 80, true),
        answer(2, 81, false),
        answer(2, 99, true),
    ];
    let world = World {
        answers: &answers,
        ..world((&policy, &workloads, &compiled.classifier), None)
    };
    let reach = reach(&world, End::Workload(0), false, 10);
    let told: Vec<_> = reach
        .found
        .iter()
        .map(|f| {
            let by = f.by.iter().map(|g| (g.how, g.service.join(" ")));
            (f.who.names[0].as_str(), f.level, by.collect::<Vec<_>>())
        })
        .collect();
    let ask = (How::Ask, "tcp/80-90".to_owned());
    assert_eq!(
        told,
        [
            (
                "b",
                Level::Open,
                vec![ask.clone(), (How::Yes, "tcp/80".to_owned())]
            ),
            ("c", Level::Ask, vec![ask, (How::No, "tcp/81".to_owned())]),
        ]
    );
    assert_eq!(reach.workloads, [1, 1, 0]);
}

/// What is had goes on: whoever is kept from the first one is kept from those behind him, but for what is sanitised.
#[test]
fn a_wall_stands_across_the_whole_way() {
    let named = |name: &str| WorkloadFacts {
        name: name.into(),
        ..WorkloadFacts::default()
    };
    let workloads = ["a", "b", "c"].map(named);
    let mut policy = Policy::default();
    for name in ["a", "b", "c"] {
        policy.segments.push(Segment {
            names: vec![name.into()],
            ..Segment::new(name)
        });
    }
    let services = || vec!["tcp/80".parse().unwrap(), "udp/53".parse().unwrap()];
    for (from, to) in [("a", "b"), ("b", "c")] {
        policy.rules.push(Rule {
            service: services(),
            ..Rule::new(from, &[from], &[to], Action::Allow)
        });
    }
    let walls = |a: End, b: End, next: bool| {
        let both = [a, b].contains(&End::Workload(0)) && [a, b].contains(&End::Workload(2));
        (both && !next).then(|| "w: x and y".to_owned())
    };
    let level = |policy: &Policy| {
        let compiled = Classifier::compile(policy, &workloads, None).unwrap();
        let world = World {
            apart: &[1, 2, 3],
            ..world(
                (policy, &workloads, &compiled.classifier),
                Some(&walls as Walls<'_>),
            )
        };
        let reach = reach(&world, End::Workload(0), false, 10);
        let c = reach.found.iter().find(|f| f.who.names == ["c"]).unwrap();
        (c.level, c.by.clone())
    };
    let (walled, by) = level(&policy);
    let wall = by[0].wall.as_deref();
    assert_eq!((walled, wall), (Level::Walled, Some("w: x and y")));
    policy.sanitised.push(super::super::walls::Sanitised {
        tenant: DEFAULT_TENANT.into(),
        segment: "c".into(),
        service: vec!["udp/53".parse().unwrap()],
        reason: "names".into(),
        owner: "ann".into(),
        expires: Day::of(0),
    });
    let (open, by) = level(&policy);
    assert_eq!(open, Level::Open);
    let walls = by.iter().map(|g| (g.service.join(" "), g.wall.is_some()));
    let walls: Vec<_> = walls.collect();
    let want = [("tcp/80".to_owned(), true), ("udp/53".to_owned(), false)];
    assert_eq!(walls, want);
}

#[test]
fn services_are_told_in_few_words() {
    let mut policy = Policy::default();
    for (name, service, action) in [
        ("no", "tcp/22", Action::Deny),
        ("no-ping", "icmp/3/4", Action::Deny),
        ("all", "tcp", Action::Allow),
        ("ping", "icmp/3", Action::Allow),
        ("low", "udp/53 from 1024-65535", Action::Allow),
    ] {
        policy.rules.push(Rule {
            service: vec![service.parse().unwrap()],
            ..Rule::new(name, &["any"], &["any"], action)
        });
    }
    policy
        .rules
        .push(Rule::new("rest", &["any"], &["any"], Action::Notify));
    let workloads = ["a", "b"].map(|name| WorkloadFacts {
        name: name.into(),
        ..WorkloadFacts::default()
    });
    let compiled = Classifier::compile(&policy, &workloads, None).unwrap();
    let world = world((&policy, &workloads, &compiled.classifier), None);
    let reach = reach(&world, End::Workload(0), false, 10);
    let told: Vec<_> = reach.found[0]
        .by
        .iter()
        .map(|g| (g.rule.as_str(), g.service.join(" ")))
        .collect();
    assert_eq!(
        told,
        [
            ("all", "tcp/0-21 tcp/23-65535".to_owned()),
            ("ping", "icmp/3/0-3 icmp/3/5-255".to_owned()),
            ("low", "udp/53 from 1024-65535".to_owned()),
            ("rest", "udp/53 from 0-1023 ip/0 icmp/0-2 icmp/4-255 ip/2-5 ip/7-16 udp/0-52 udp/54-65535 ip/18-255".to_owned()),
        ]
    );
}

/// Ten thousand workloads that are all in segments of their own, and each of which some of the others may connect to.
#[test]
fn many_workloads_are_bounded_work() {
    let count = if cfg!(miri) { 100 } else { 10_000 };
    let mut policy = Policy::default();
    let mut workloads = Vec::new();
    for n in 0..count {
        policy.segments.push(Segment {
            names: vec![format!("w{n}")],
            ..Segment::new(&format!("s{n}"))
        });
        workloads.push(WorkloadFacts {
            name: format!("w{n}"),
            ..WorkloadFacts::default()
        });
        for step in [1, 7] {
            let to = format!("s{}", (n + step) % count);
            let from = format!("s{n}");
            let rule = Rule::new(&format!("r{n}-{step}"), &[&from], &[&to], Action::Allow);
            policy.rules.push(rule);
        }
    }
    let compiled = Classifier::compile(&policy, &workloads, None).unwrap();
    let sparse = world((&policy, &workloads, &compiled.classifier), None);
    let found = reach(&sparse, End::Workload(0), false, 5);
    assert_eq!(found.workloads, [count - 1, 0, 0]);
    assert_eq!((found.found.len(), found.more), (5, count - 6));
    assert!(!found.cut_off);
    let graph = Graph::new(sparse, &[]);
    graph.walk(0, false, Level::Walled);
    let asked = graph.links.asked();
    assert!(asked < count as u64 * 4, "{asked}");
    // The worst: everybody may be connected to by everybody, were it not denied.
    policy.rules = vec![
        Rule::new("no", &["any"], &["any"], Action::Deny),
        Rule::new("all", &["any"], &["any"], Action::Allow),
    ];
    let compiled = Classifier::compile(&policy, &workloads, None).unwrap();
    let dense = world((&policy, &workloads, &compiled.classifier), None);
    let found = reach(&dense, End::Workload(0), false, 5);
    assert_eq!(found.workloads, [0, 0, 0]);
}
