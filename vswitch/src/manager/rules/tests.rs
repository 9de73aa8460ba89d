use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::policy::model::Scope;

/// Thursday 2026-11-26, 13:05 UTC.
const NOON: u64 = 1_795_698_300;

fn workload(name: &str, tags: &[&str], segments: &[&str]) -> Party {
    let texts = |list: &[&str]| list.iter().map(|t| (*t).to_owned()).collect();
    Party::Workload(Arc::new(Workload {
        id: name.to_owned(),
        name: name.to_owned(),
        tenant: "default".to_owned(),
        tags: texts(tags),
        assurance: "vm".to_owned(),
        segments: texts(segments),
    }))
}

fn outside(address: &str, segments: &[&str]) -> Party {
    Party::Outside {
        address: address.parse().unwrap(),
        uplink: "wan".to_owned(),
        segments: segments.iter().map(|s| (*s).to_owned()).collect(),
    }
}

pub(super) fn question() -> Question {
    Question {
        id: 7,
        rule: "web-to-db".to_owned(),
        from: workload("web-1", &["tier:web", "env:prod"], &["web"]),
        to: workload("db-1", &[], &["db"]),
        connection: String::new(),
        protocol: proto::TCP,
        number: 5432,
        walls: [vec!["trading/buy".to_owned()], Vec::new()],
        suspicions: [vec!["port-scan".to_owned()], Vec::new()],
        history: History {
            allowed: 1,
            denied: 2,
            unanswered: 3,
        },
        questions_last_minute: 9,
        deadline_ms: 1000,
        ttl_s: 600,
        scope: Scope::Service,
    }
}

fn decide(rules: &str, question: &Question) -> Verdict {
    let rules = Rules::parse(rules).unwrap_or_else(|faults| panic!("{rules}: {faults:?}"));
    rules.decide(
        question,
        &mut Common::at(UNIX_EPOCH + Duration::from_secs(NOON)),
    )
}

fn yes(rules: &str, question: &Question) -> Option<bool> {
    decide(rules, question).yes
}

#[test]
fn rules_look_at_what_the_ends_are_bound_to() {
    let bound = "permit(principal, action, resource) when { context.walls.principal.contains(\"trading/buy\") };";
    assert_eq!(yes(bound, &question()), Some(true));
    let other = Question {
        walls: [Vec::new(), vec!["trading/buy".to_owned()]],
        ..question()
    };
    assert_eq!(yes(bound, &other), None);
    let free = "forbid(principal, action, resource) unless { context.walls.resource.isEmpty() };";
    assert_eq!(yes(free, &question()), None);
    assert_eq!(yes(free, &other), Some(false));
}

#[test]
fn rules_look_at_what_the_ends_are_suspected_of() {
    let no = "forbid(principal, action, resource) when { context.suspicions.principal.contains(\"port-scan\") };";
    assert_eq!(yes(no, &question()), Some(false));
    let other = Question {
        suspicions: [Vec::new(), vec!["port-scan".to_owned()]],
        ..question()
    };
    assert_eq!(yes(no, &other), None);
    let clean =
        "permit(principal, action, resource) when { context.suspicions.resource.isEmpty() };";
    assert_eq!(yes(clean, &question()), Some(true));
    assert_eq!(yes(clean, &other), None);
}

/// A rule with this condition.
fn when(condition: &str) -> String {
    format!("permit(principal, action, resource) when {{ {condition} }};")
}

#[test]
fn a_yes_a_no_and_neither() {
    let asked = question();
    let permit = "permit(principal in Segment::\"web\", action == Action::\"connect\", resource in Segment::\"db\");";
    let forbid = "forbid(principal, action, resource) when { principal has tags && principal.tags.contains(\"env:prod\") };";
    assert_eq!(yes(permit, &asked), Some(true));
    assert_eq!(yes(forbid, &asked), Some(false));
    assert_eq!(yes(&format!("{permit}{forbid}"), &asked), Some(false));
    assert_eq!(yes("", &asked), None);
    let other = Question {
        to: workload("db-1", &[], &["other"]),
        ..asked
    };
    assert_eq!(yes(permit, &other), None);
}

#[test]
fn everything_that_is_published_can_be_asked_for() {
    let asked = question();
    for condition in [
        "context.rule == \"web-to-db\"",
        "context.service.protocol == \"tcp\" && context.service has port && context.service.port == 5432",
        "context.now == datetime(\"2026-11-26T13:05:00Z\") && context.now.toTime() > duration(\"13h\")",
        "context.hour == 13 && context.minute == 5 && context.weekday == 4",
        "context.history.allowed == 1 && context.history.denied == 2 && context.history.unanswered == 3",
        "context.questions_last_minute == 9",
        "principal is Workload && principal.name == \"web-1\" && principal.tenant == \"default\" && principal.assurance == \"vm\"",
        "principal == Workload::\"web-1\" && resource is Workload && resource in Segment::\"db\"",
    ] {
        assert_eq!(yes(&when(condition), &asked), Some(true), "{condition}");
    }
    let asked = Question {
        protocol: proto::ICMP,
        number: 0x0803,
        from: outside("192.0.2.7", &["partners"]),
        ..asked
    };
    for condition in [
        "context.service has icmp_type && context.service.icmp_type == 8",
        "context.service has icmp_code && context.service.icmp_code == 3",
        "principal is Outside && principal.address.isInRange(ip(\"192.0.2.0/24\")) && principal.uplink == \"wan\"",
        "principal == Outside::\"192.0.2.7\" && principal in Segment::\"partners\"",
    ] {
        assert_eq!(yes(&when(condition), &asked), Some(true), "{condition}");
    }
}

#[test]
fn what_is_asked_fits_the_schema() {
    let names = NAMES.as_ref().expect("the schema can be read");
    let mut common = Common::at(UNIX_EPOCH + Duration::from_secs(NOON));
    let icmp = Question {
        protocol: proto::ICMPV6,
        from: outside("2001:db8::1", &[]),
        ..question()
    };
    for question in [question(), icmp] {
        let rules = Rules::parse("").unwrap();
        let pair = common.pair(&rules, names, &question.from, &question.to);
        let (pair, time) = pair.expect("they can be asked about");
        let request = request(names, &question, time).expect("it can be asked");
        let checked = Request::new(
            request.principal().unwrap().clone(),
            request.action().unwrap().clone(),
            request.resource().unwrap().clone(),
            request.context().unwrap().clone(),
            Some(&names.schema),
        );
        checked.expect("it is as published");
        Entities::from_entities(pair.entities.iter().cloned(), Some(&names.schema))
            .expect("they are as published");
    }
}

#[test]
fn rules_about_others_are_left_out_and_nothing_else() {
    let heads = [
        "",
        "== Workload::\"web-1\"",
        "== Workload::\"db-1\"",
        "== Outside::\"192.0.2.7\"",
        "in Segment::\"web\"",
        "in Segment::\"partners\"",
        "in Workload::\"web-1\"",
        "is Workload",
        "is Outside",
        "is Workload in Segment::\"db\"",
        "is Outside in Segment::\"partners\"",
    ];
    let parties = [
        workload("web-1", &[], &["web"]),
        workload("db-1", &[], &["db", "partners"]),
        outside("192.0.2.7", &["partners"]),
    ];
    let names = NAMES.as_ref().expect("the schema can be read");
    let mut common = Common::at(UNIX_EPOCH + Duration::from_secs(NOON));
    for (principal, resource) in heads.iter().flat_map(|p| heads.map(|r| (p, r))) {
        let text = format!("permit(principal {principal}, action, resource {resource});");
        let rules = Rules::parse(&text).unwrap();
        let all: PolicySet = text.parse().unwrap();
        for (from, to) in parties
            .iter()
            .flat_map(|f| parties.each_ref().map(|t| (f, t)))
        {
            let question = Question {
                from: from.clone(),
                to: to.clone(),
                ..question()
            };
            let (pair, time) = common.pair(&rules, names, from, to).unwrap();
            let request = request(names, &question, time).unwrap();
            let said = rules
                .authorizer
                .is_authorized(&request, &all, &pair.entities);
            let matches = said.decision() == Decision::Allow;
            let left = &pair.rules.policies;
            assert_eq!(!left.is_empty(), matches, "{text} {from:?} {to:?}");
            let decided = rules.decide(&question, &mut common).yes;
            assert_eq!(decided.is_some(), matches, "{text} {from:?} {to:?}");
        }
    }
}

#[test]
fn annotations_narrow_and_name_an_answer() {
    let rules = "@id(\"b\") @ttl(\"60\") permit(principal, action, resource);\n\
                 @id(\"a\") @ttl(\"30\") @scope(\"connection\") permit(principal, action, resource);\n\
                 permit(principal == Workload::\"web-1\", action, resource);\n\
                 @id(\"c\") @ttl(\"1\") permit(principal, action, resource == Workload::\"nobody\");";
    assert_eq!(
        decide(rules, &question()),
        Verdict {
            yes: Some(true),
            ttl_s: Some(30),
            once: true,
            reason: "permit a, b, policy2".to_owned(),
        }
    );
}

#[test]
fn a_forbid_that_fails_forbids() {
    let fails = "9223372036854775807 + context.questions_last_minute > 0";
    let permit = "permit(principal, action, resource);";
    let broken =
        format!("{permit} @id(\"sum\") forbid(principal, action, resource) when {{ {fails} }};");
    let said = decide(&broken, &question());
    assert_eq!(said.yes, Some(false));
    assert!(said.reason.starts_with("forbid sum failed: "), "{said:?}");
    assert_eq!(
        yes(&format!("{permit}{}", when(fails)), &question()),
        Some(true)
    );
}

#[test]
fn what_is_wrong_is_refused_at_its_place() {
    for (rules, at, what) in [
        ("permit(principal, action, resource)", "", "unexpected end"),
        (
            "permit(princpal, action, resource);",
            "princpal",
            "princpal",
        ),
        (
            "permit(principal, action, resource);\npermit(principal, action, resource) when { context.houre == 1 };",
            "context.houre",
            "houre",
        ),
        (
            "permit(principal in Group::\"x\", action, resource);",
            "Group",
            "Group",
        ),
        (
            "permit(principal, action, resource) when { context.hour == \"13\" };",
            "",
            "",
        ),
        (
            "permit(principal == ?principal, action, resource);",
            "?principal",
            "template",
        ),
        (
            "@ttl(\"soon\") permit(principal, action, resource);",
            "@ttl",
            "is no time",
        ),
        (
            "@ttl(\"0\") permit(principal, action, resource);",
            "@ttl",
            "is no time",
        ),
        (
            "@scope(\"all\") permit(principal, action, resource);",
            "@scope",
            "not known",
        ),
        (
            "@scope(\"connection\") forbid(principal, action, resource);",
            "@scope",
            "never about one connection",
        ),
        (
            "@owner(\"ann\") permit(principal, action, resource);",
            "@owner",
            "not known",
        ),
        (
            "@id(\"a\") permit(principal, action, resource);\n @id(\"a\") forbid(principal, action, resource);",
            "@id(\"a\") forbid",
            "another rule",
        ),
    ] {
        let faults = Rules::parse(rules).expect_err(rules);
        let fits = |f: &&Fault| f.what.contains(what) && rules[f.offset..].starts_with(at);
        let found = faults.iter().find(fits);
        assert!(found.is_some(), "{rules}: {faults:?}");
    }
}

#[test]
fn every_fault_is_found_at_once() {
    let rules = "permit(principal, action, resource) when { context.houre == 1 };\n\
                 @ttl(\"x\") permit(principal, action, resource);";
    assert_eq!(Rules::parse(rules).expect_err("two").len(), 2);
}

#[test]
fn the_rules_of_the_example_know_the_hours_and_who_is_who() {
    const RULES: &str = include_str!("../../../../examples/finance/decisions.cedar");
    const HOUR: u64 = 3600;
    let rules = Rules::parse(RULES).unwrap();
    let said = |tags: &[&str], hours_later: u64| {
        let asked = Question {
            rule: "reports".to_owned(),
            from: workload("analyst", tags, &["analyst"]),
            to: workload("payments-db", &[], &["payments-db"]),
            ..question()
        };
        let at = UNIX_EPOCH + Duration::from_secs(NOON + hours_later * HOUR);
        rules.decide(&asked, &mut Common::at(at)).reason
    };
    // Thursday 13:05, 18:05, 19:05, and Sunday 13:05.
    for (hours_later, reason) in [
        (0, "permit office-hours"),
        (5, "permit office-hours"),
        (6, "no rule matches"),
        (72, "no rule matches"),
    ] {
        assert_eq!(said(&["role:analyst"], hours_later), reason);
    }
    assert_eq!(said(&["cleared:payments"], 72), "permit cleared");
    assert_eq!(
        said(&["cleared:payments", "in-training"], 0),
        "forbid in-training"
    );
    // Of money, people decide.
    let wire = Question {
        rule: "wire".to_owned(),
        from: workload("settle", &["stage:settle"], &["settle"]),
        to: workload("bank", &[], &["bank"]),
        ..question()
    };
    let at = UNIX_EPOCH + Duration::from_secs(NOON);
    assert_eq!(rules.decide(&wire, &mut Common::at(at)).yes, None);
}

#[test]
fn what_is_kept_ready_is_as_what_is_made_anew() {
    let rules = Rules::parse(
        "@id(\"a\") permit(principal == Workload::\"w-7\", action, resource) when { context.minute == 1 };",
    )
    .unwrap();
    let mut common = Common::at(UNIX_EPOCH);
    let asked = |n: usize| Question {
        from: Party::Workload(Arc::new(Workload {
            id: format!("w-{n}"),
            ..Workload::default()
        })),
        ..question()
    };
    let mut yes = |n, at| {
        common.advance(UNIX_EPOCH + Duration::from_secs(at));
        assert!(common.known <= PAIRS);
        rules.decide(&asked(n), &mut common).yes
    };
    assert_eq!(
        (yes(7, 0), yes(7, 60), yes(8, 60)),
        (None, Some(true), None)
    );
    // More than are kept.
    for n in 0..2 * PAIRS {
        assert_eq!(yes(n, 61), (n == 7).then_some(true), "{n}");
    }
    assert_eq!((yes(7, 62), yes(7, 120)), (Some(true), None));
}

#[test]
fn what_was_said_is_said_again_to_what_is_alike_only() {
    let rules = Rules::parse(
        "@id(\"high\") permit(principal, action, resource) when { context.service has port && context.service.port >= 1000 };\n\
         @id(\"bad\") forbid(principal, action, resource == Workload::\"db-2\") when { context.history.denied > 2 };",
    )
    .unwrap();
    let mut common = Common::at(UNIX_EPOCH);
    let mut said = |question: Question| rules.decide(&question, &mut common).reason;
    let to = |number| Question {
        number,
        ..question()
    };
    // Twice each, and more than are kept.
    for number in (990..1050).flat_map(|n| [n, n]) {
        let expected = if number < 1000 {
            "no rule matches"
        } else {
            "permit high"
        };
        assert_eq!(said(to(number)), expected, "{number}");
    }
    // History is another each time.
    let after = |denied| Question {
        to: workload("db-2", &[], &[]),
        history: History {
            denied,
            ..History::default()
        },
        ..question()
    };
    for (denied, expected) in [(2, "permit high"), (3, "forbid bad"), (0, "permit high")] {
        assert_eq!(said(after(denied)), expected, "{denied}");
    }
    // The same number of another protocol.
    let icmp = Question {
        protocol: proto::ICMP,
        number: 1000,
        ..question()
    };
    assert_eq!(said(icmp), "no rule matches");
    assert_eq!(said(to(1000)), "permit high");
}
