//! Walls as they are written: what is refused, what leads past one, and what a change takes away.

use super::super::model::{Action, Policy, Rule, Segment};
use super::super::{Classifier, FieldError, Service, WorkloadFacts, validate};
use super::*;

fn workload(name: &str, tags: &[&str]) -> WorkloadFacts {
    WorkloadFacts {
        name: name.into(),
        tags: tags.iter().map(|&tag| tag.into()).collect(),
        ips: vec![[10, 0, 0, u8::try_from(name.len()).unwrap()].into()],
        ..WorkloadFacts::default()
    }
}

fn segment(name: &str) -> Segment {
    Segment {
        tags: vec![format!("in:{name}")],
        ..Segment::new(name)
    }
}

fn allow(from: &str, to: &str) -> Rule {
    Rule::new(&format!("{from}-to-{to}"), &[from], &[to], Action::Allow)
}

fn wall() -> Wall {
    Wall {
        name: "trading".into(),
        tenant: "default".into(),
        subjects: vec!["trader".into()],
        same: None,
        datasets: vec!["buy".into(), "sell".into()],
        conflicts: Vec::new(),
        per: Per::Ever,
    }
}

fn policy() -> Policy {
    Policy {
        segments: ["trader", "buy", "sell", "cache"].map(segment).to_vec(),
        rules: vec![allow("trader", "buy"), allow("trader", "sell")],
        walls: vec![wall()],
        ..Policy::default()
    }
}

fn everybody() -> Vec<WorkloadFacts> {
    let named = [
        ("t1", "trader"),
        ("b1", "buy"),
        ("s1", "sell"),
        ("c1", "cache"),
    ];
    let facts = named.map(|(name, of)| workload(name, &[&format!("in:{of}")]));
    facts.to_vec()
}

fn lines(errors: &[FieldError]) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

fn found(policy: &Policy, workloads: &[WorkloadFacts]) -> Vec<String> {
    let compiled = Classifier::compile(policy, workloads, None).unwrap();
    lines(&against(
        policy,
        workloads,
        (&compiled.classifier, &compiled.parties),
    ))
}

fn clean(segment: &str, service: &str, expires: &str) -> Sanitised {
    Sanitised {
        tenant: "default".into(),
        segment: segment.into(),
        service: vec![service.parse().unwrap()],
        reason: "read only".into(),
        owner: "ann".into(),
        expires: expires.parse().unwrap(),
    }
}

#[test]
fn what_cannot_be_a_wall_is_refused_field_by_field() {
    let mut p = policy();
    assert_eq!(lines(&validate(&p)), [""; 0]);
    let mut nets = segment("nets");
    nets.tags.clear();
    nets.cidr.push("192.0.2.0/24".parse().unwrap());
    let mut more = nets.clone();
    more.name = "more".into();
    p.segments.extend([nets, more]);
    p.walls.push(Wall {
        subjects: vec!["nets".into(), "nobody".into()],
        datasets: vec!["buy".into(), "buy".into(), "any".into()],
        conflicts: vec![["buy".into(), "buy".into()], ["buy".into(), "sell".into()]],
        ..wall()
    });
    p.walls.push(Wall {
        name: "feeds".into(),
        subjects: Vec::new(),
        datasets: vec!["nets".into(), "more".into()],
        ..wall()
    });
    p.sanitised.push(Sanitised {
        segment: "any".into(),
        service: Vec::new(),
        reason: " ".into(),
        ..clean("cache", "tcp", "2030-01-01")
    });
    let at: Vec<_> = lines(&validate(&p));
    let at: Vec<_> = at.iter().map(|l| l.split(';').next().unwrap()).collect();
    assert_eq!(
        at,
        [
            "wall[trading].name: duplicate wall \"trading\"",
            "wall[trading].subjects[0]: it selects no workload, and only workloads can be bound",
            "wall[trading].subjects[1]: unknown segment \"nobody\"",
            "wall[trading].datasets[1]: \"buy\" is listed twice",
            "wall[trading].datasets[2]: everybody is no side",
            "wall[trading].conflicts[0]: \"buy\" is in conflict with itself",
            "wall[trading].conflicts[1]: \"sell\" is none of the wall's datasets",
            "wall[feeds].subjects: the wall binds nobody",
            "wall[feeds].datasets[1]: the outside is one party, and would be on both sides, \"nets\" and \"more\"",
            "sanitised[any].segment: everybody cannot be sanitised",
            "sanitised[any].service: it names no service",
            "sanitised[any].reason: `reason` says nothing",
        ]
    );
}

#[test]
fn nobody_stands_on_both_sides() {
    let mut who = everybody();
    who.push(workload("both", &["in:buy", "in:sell"]));
    let said = found(&policy(), &who);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("workload \"both\" is on both sides, \"buy\" and \"sell\""));
    // Where these two may meet, somebody may be both.
    let mut p = policy();
    p.walls[0].datasets.push("cache".into());
    p.walls[0].conflicts = vec![["buy".into(), "cache".into()]];
    assert_eq!(found(&p, &who), [""; 0]);
}

#[test]
fn what_leads_past_the_subjects_is_told_with_its_rules() {
    let path = |change: &dyn Fn(&mut Policy)| {
        let mut p = policy();
        change(&mut p);
        found(&p, &everybody())
    };
    assert_eq!(path(&|_| ()), [""; 0], "subjects stand between");
    let direct = path(&|p| p.rules.push(allow("sell", "buy")));
    assert!(
        direct[0].contains("b1 - (rule sell-to-buy) - s1"),
        "{direct:?}"
    );
    let through = |p: &mut Policy| {
        p.rules
            .extend([allow("buy", "cache"), allow("sell", "cache")]);
    };
    let said = path(&through);
    assert!(
        said[0].contains("b1 - (rule buy-to-cache) - c1 - (rule sell-to-cache) - s1"),
        "{said:?}"
    );
    // An earlier rule that denies one step counts, and so does a service that is sanitised.
    let denied = path(&|p| {
        through(p);
        p.rules
            .insert(0, Rule::new("no", &["sell"], &["cache"], Action::Deny));
    });
    assert_eq!(denied, [""; 0]);
    let some = path(&|p| {
        through(p);
        p.sanitised.push(clean("cache", "udp/53", "2030-01-01"));
    });
    assert_eq!(some.len(), 1, "other services are not");
    let all = path(&|p| {
        through(p);
        p.rules
            .iter_mut()
            .skip(2)
            .for_each(|r| r.service = vec!["udp/53".parse().unwrap()]);
        p.sanitised.push(clean("cache", "udp/53", "2030-01-01"));
    });
    assert_eq!(all, [""; 0]);
    let staged = path(&|p| {
        through(p);
        p.rules[2].staged = true;
    });
    assert_eq!(staged, [""; 0]);
    // The outside is one party, and hands over what it gets.
    let outside = path(&|p| {
        for (name, net) in [("here", "192.0.2.0/25"), ("there", "192.0.2.128/25")] {
            let mut s = Segment::new(name);
            s.cidr.push(net.parse().unwrap());
            p.segments.push(s);
        }
        p.rules
            .extend([allow("buy", "here"), allow("there", "sell")]);
    });
    assert!(
        outside[0].contains("b1 - (rule buy-to-here) - outside - (rule there-to-sell) - s1"),
        "{outside:?}"
    );
    // The stages of a transaction hand over to each other.
    let per = path(&|p| {
        through(p);
        p.walls[0].per = Per::Transaction;
    });
    assert_eq!(per, [""; 0]);
}

#[test]
fn who_shares_is_one() {
    let p = policy();
    let mut of = wall();
    let mut t = workload("t1", &["in:trader", "desk:a", "desks"]);
    t.volumes = vec!["v1".into()];
    let keys = |wall: &Wall, w: &WorkloadFacts| {
        let keys = wall.keys(&p, w);
        keys.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(keys(&of, &t), ["workload t1"]);
    of.same = Some("tag:desk".parse().unwrap());
    assert_eq!(keys(&of, &t), ["workload t1", "tag desk:a"]);
    assert_eq!(keys(&of, &workload("x", &["desk:a"])), ["workload x"]);
    of.same = Some("volume".parse().unwrap());
    assert_eq!(keys(&of, &t), ["workload t1", "volume v1"]);
    for key in of.keys(&p, &t).into_iter().chain([Key::Outside]) {
        assert_eq!(key.to_string().parse(), Ok(key));
    }
    assert!("tag:".parse::<Same>().is_err() && "volumes".parse::<Same>().is_err());
}

#[test]
fn days_are_counted() {
    let end = |day: &str| day.parse::<Day>().map(Day::end_s);
    assert_eq!(end("1970-01-01"), Ok(86_400));
    // `date -u -d 2026-12-01 +%s`
    assert_eq!(end("2026-11-30"), Ok(1_796_083_200));
    assert_eq!(end("2024-02-29"), Ok(1_709_251_200));
    for bad in [
        "",
        "2026-2-1",
        "2025-02-29",
        "2026-13-01",
        "2026-00-10",
        "+026-01-01",
        "2026-01-01T00:00",
    ] {
        assert!(bad.parse::<Day>().is_err(), "{bad}");
    }
    assert_eq!(
        "2026-11-30".parse::<Day>().unwrap().to_string(),
        "2026-11-30"
    );
    for day in [
        "1970-01-01",
        "1999-12-31",
        "2000-02-29",
        "2026-11-30",
        "2100-03-01",
    ] {
        let day: Day = day.parse().unwrap();
        assert_eq!((Day::of(day.end_s() - 1), day.end_s() % 86_400), (day, 0));
        assert_ne!(Day::of(day.end_s()), day);
    }
    let dns = clean("cache", "udp/53", "2026-11-30");
    let query = |protocol, dport| Service::Ip {
        protocol,
        sport: 1,
        dport,
    };
    assert!(
        dns.serves(query(17, 53)) && !dns.serves(query(6, 53)) && !dns.serves(Service::Ether(53))
    );
}

fn weakened(change: &dyn Fn(&mut Policy, &mut Vec<WorkloadFacts>)) -> Vec<String> {
    let (p, who) = (policy(), everybody());
    let (mut after, mut then) = (p.clone(), who.clone());
    change(&mut after, &mut then);
    let bindings = [Binding {
        wall: "trading".into(),
        subject: Key::Workload("t1".into()),
        side: "buy".into(),
    }];
    let state = |policy, workloads| State { policy, workloads };
    weakenings(state(&p, &who), state(&after, &then), &bindings)
}

#[test]
fn what_adds_to_a_wall_weakens_nothing() {
    assert_eq!(weakened(&|_, _| ()), [""; 0]);
    let more = weakened(&|p, who| {
        p.walls[0].subjects.push("cache".into());
        p.walls[0].datasets.push("cache".into());
        p.walls[0].same = Some(Same::Volume);
        p.segments[1].names.push("b2".into());
        p.walls.push(Wall {
            name: "other".into(),
            ..wall()
        });
        p.rules.clear();
        who.push(workload("t22", &["in:trader"]));
        who[0].tags.push("more".into());
        who[0].ips.clear();
    });
    assert_eq!(more, [""; 0]);
}

#[test]
fn every_way_to_weaken_a_wall_is_told() {
    let one = |change: &dyn Fn(&mut Policy, &mut Vec<WorkloadFacts>)| {
        let said = weakened(change);
        assert!(!said.is_empty());
        said.join("\n")
    };
    let cases: Vec<(&str, String)> = vec![
        ("trading is removed", one(&|p, _| p.walls.clear())),
        (
            "trading is removed",
            one(&|p, _| p.walls[0].name = "x".into()),
        ),
        (
            "trader is none of its subjects",
            one(&|p, _| p.walls[0].subjects = vec!["cache".into()]),
        ),
        (
            "sell is none of its datasets",
            one(&|p, _| {
                p.walls[0].datasets.pop();
            }),
        ),
        (
            "segment buy selects less",
            one(&|p, _| p.segments[1].tags.push("more".into())),
        ),
        (
            "t1 is no subject",
            one(&|p, _| p.segments[0].tags = vec!["other".into()]),
        ),
        ("t1 is no subject", one(&|_, who| who[0].tags.clear())),
        ("b1 is no part of buy", one(&|_, who| who[1].tags.clear())),
        (
            "in conflict no more",
            one(&|p, _| {
                p.walls[0].datasets.push("cache".into());
                p.walls[0].conflicts = vec![["buy".into(), "cache".into()]];
            }),
        ),
        (
            "within a transaction only",
            one(&|p, _| p.walls[0].per = Per::Transaction),
        ),
        (
            "cache udp/53 is sanitised",
            one(&|p, _| p.sanitised.push(clean("cache", "udp/53", "2030-01-01"))),
        ),
        (
            "t1 renamed takes the place of t1",
            one(&|_, who| {
                who[0] = WorkloadFacts {
                    name: "t1 renamed".into(),
                    ..who[0].clone()
                };
            }),
        ),
    ];
    for (what, said) in cases {
        assert!(said.contains(what), "{what} is not said: {said}");
    }
}

#[test]
fn what_is_shared_and_what_is_sanitised_is_watched_too() {
    let mut p = policy();
    p.walls[0].same = Some("tag:desk".parse().unwrap());
    p.sanitised.push(clean("cache", "udp/53", "2030-01-01"));
    let mut who = everybody();
    who[0].tags.push("desk:a".into());
    let said = |change: &dyn Fn(&mut Policy, &mut Vec<WorkloadFacts>)| {
        let (mut after, mut then) = (p.clone(), who.clone());
        change(&mut after, &mut then);
        let state = |policy, workloads| State { policy, workloads };
        weakenings(state(&p, &who), state(&after, &then), &[]).join("\n")
    };
    let cases: Vec<(&str, String)> = vec![
        (
            "same is tag:desk no more",
            said(&|p, _| p.walls[0].same = None),
        ),
        (
            "t1 leaves tag desk:a",
            said(&|_, who| who[0].tags = vec!["in:trader".into(), "desk:b".into()]),
        ),
        (
            "sanitised until 2031-01-01",
            said(&|p, _| p.sanitised[0].expires = "2031-01-01".parse().unwrap()),
        ),
        (
            "the segment selects more",
            said(&|p, _| p.segments[3].names.push("x".into())),
        ),
        (
            "new is sanitised as cache",
            said(&|_, who| who.push(workload("new", &["in:cache"]))),
        ),
        (
            "t1 is sanitised as cache",
            said(&|_, who| who[0].tags.push("in:cache".into())),
        ),
    ];
    for (what, said) in cases {
        assert!(said.contains(what), "{what} is not said: {said}");
    }
    assert_eq!(
        said(&|p, _| p.sanitised[0].expires = "2029-01-01".parse().unwrap()),
        ""
    );
    assert_eq!(said(&|p, _| p.sanitised.clear()), "");
    // One who was bound comes back as nobody in particular.
    let gone: Vec<_> = who[1..].to_vec();
    let back = [&gone[..], &[workload("t1", &["other"])]].concat();
    let bindings = [Binding {
        wall: "trading".into(),
        subject: Key::Workload("t1".into()),
        side: "buy".into(),
    }];
    let state = |workloads| State {
        policy: &p,
        workloads,
    };
    let said = weakenings(state(&gone), state(&back), &bindings).join("\n");
    assert!(
        said.contains("t1 comes back as no subject, and is bound to buy"),
        "{said}"
    );
}
