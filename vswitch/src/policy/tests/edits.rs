//! A policy that was edited is the policy as it is now: what its classifier answers, lists and
//! remembers is what one compiled anew does.

use super::*;

impl World {
    /// Edits every classifier; or none, where it cannot be done to all: sets have numbers of their own
    /// in what is compiled anew. Returns whether they were edited.
    fn change(&mut self, before: &Policy, after: &Policy, workloads: &[WorkloadFacts]) -> bool {
        let edit = Edit::between(before, after);
        let all = [&self.0].into_iter().chain(&self.1);
        let edited = all.map(|compiled| compiled.classifier.edit(edit.as_ref()?));
        let edited: Option<Vec<Compiled>> = edited.collect();
        let is_edited = edited.is_some();
        let mut all = edited.unwrap_or_else(|| {
            let previous = Some(&self.0.classifier);
            let anew = |way: &&[usize]| Classifier::compile_as(after, workloads, previous, way);
            let main = Classifier::compile(after, workloads, previous);
            let all = [main].into_iter().chain(WAYS.iter().map(anew));
            all.collect::<Result<_, _>>().unwrap()
        });
        *self = World(all.remove(0), all);
        for other in &self.1 {
            assert_eq!(other.parties, self.0.parties);
        }
        is_edited
    }
}

/// Everything a listing says.
fn listing(classifier: &Classifier) -> Vec<String> {
    // All but the number.
    let rules = classifier.rules().map(|rule| RuleView {
        id: RuleId(0),
        ..rule
    });
    rules.map(|rule| format!("{rule:?}")).collect()
}

/// Adds, removes, replaces or moves a rule.
fn change(policy: &mut Policy, name: &str, pick: &mut impl FnMut(usize) -> usize) {
    let len = policy.rules.len();
    let (at, other) = (pick(len + 1), pick(len.max(1)));
    let mut rule = crowded_rule(name, pick);
    match pick(8) {
        0 | 1 => policy.rules.insert(at, rule),
        _ if at == len => {}
        2 | 3 => drop(policy.rules.remove(at)),
        4 => policy.rules[at] = rule,
        5 => {
            rule.name.clone_from(&policy.rules[at].name);
            policy.rules[at] = rule;
        }
        6 => {
            policy.rules[at].action = Action::Allow;
            policy.rules[at].limit = (pick(2) == 0).then_some(Limit {
                connections: Some(9),
                bits: None,
            });
        }
        _ => {
            let rule = policy.rules.remove(at);
            policy.rules.insert(other, rule);
        }
    }
}

#[test]
fn edited_policies_answer_like_the_oracle() {
    let mut random = Random(11);
    let (mut steps, mut edited) = (0, 0);
    for _ in 0..30 {
        let mut pick = |below: usize| usize::try_from(random.next(below as u64)).unwrap();
        let (mut policy, workloads) = crowded(&mut pick);
        let mut world = World::new(&policy, &workloads);
        for step in 0..40 {
            let before = policy.clone();
            for n in 0..1 + pick(2) {
                change(&mut policy, &format!("new{step}-{n}"), &mut pick);
            }
            let previous = &world.0.classifier;
            let anew = Classifier::compile(&policy, &workloads, Some(previous)).unwrap();
            edited += usize::from(world.change(&before, &policy, &workloads));
            steps += 1;
            assert_eq!(listing(&world.0.classifier), listing(&anew.classifier));
            for judgement in compare(&world, &policy, &workloads, 50, &mut pick) {
                if let Some(rule) = judgement.staged {
                    world.0.classifier.staged_hit(rule);
                }
                if let Why::Rule(rule) = judgement.why {
                    world.0.classifier.hit(rule);
                }
            }
        }
    }
    assert!(edited * 2 > steps, "only {edited} of {steps} were edited");
}

/// A classifier, and the policy it is of.
struct Kept(Policy, [WorkloadFacts; 2], Classifier);

impl Kept {
    fn new(rules: Vec<Rule>) -> Self {
        let (mut policy, workloads) = web_and_db();
        policy.rules = rules;
        let compiled = Classifier::compile(&policy, &workloads, None).unwrap();
        Kept(policy, workloads, compiled.classifier)
    }

    /// The policy as `change` makes it; its classifier, if it can be had by an edit.
    fn try_to(&self, change: impl FnOnce(&mut Policy)) -> (Policy, Option<Classifier>) {
        let mut policy = self.0.clone();
        change(&mut policy);
        let edit = Edit::between(&self.0, &policy);
        let compiled = edit.and_then(|edit| self.2.edit(&edit));
        (policy, compiled.map(|compiled| compiled.classifier))
    }

    fn edit(&mut self, change: impl FnOnce(&mut Policy)) {
        let (policy, classifier) = self.try_to(change);
        (self.0, self.2) = (policy, classifier.unwrap());
        let anew = Classifier::compile(&self.0, &self.1, None).unwrap();
        assert_eq!(listing(&self.2), listing(&anew.classifier));
    }

    /// What web may do at a port of db.
    fn says(&self, port: u16) -> String {
        let compiled = Classifier::compile(&self.0, &self.1, None).unwrap();
        let query = Query {
            from: compiled.parties[0],
            to: compiled.parties[1],
            service: tcp(port),
        };
        let answer = |classifier: &Classifier| Answer::of(classifier, &classifier.classify(&query));
        let answer = [&self.2, &compiled.classifier].map(answer);
        assert_eq!(answer[0], answer[1]);
        let by = answer[0].rule.as_deref().unwrap_or("default");
        format!("{:?} by {by}", answer[0].verdict)
    }
}

fn deny(name: &str, service: &[&str]) -> Rule {
    rule(name, "any", "any", service, Action::Deny)
}

fn allow(name: &str, service: &[&str]) -> Rule {
    rule(name, "web", "db", service, Action::Allow)
}

#[test]
fn a_tier_gets_its_first_rule_and_loses_its_last() {
    let mut kept = Kept::new(vec![allow("app", &["tcp"])]);
    let tier = |tier, rule| Rule { tier, ..rule };
    kept.edit(|p| {
        p.rules
            .push(tier(Tier::Emergency, deny("stop", &["tcp/1"])));
    });
    assert_eq!(kept.says(1), "Deny by stop");
    assert_eq!(kept.says(2), "Allow by app");
    let pass = rule("pass", "any", "any", &["tcp/2"], Action::Pass);
    kept.edit(|p| p.rules.insert(0, tier(Tier::Environment, pass)));
    kept.edit(|p| {
        p.rules
            .push(tier(Tier::Environment, deny("not", &["tcp/2-3"])));
    });
    assert_eq!(kept.says(2), "Allow by app", "passed");
    assert_eq!(kept.says(3), "Deny by not");
    kept.edit(|p| {
        p.rules
            .push(tier(Tier::Baseline, allow("last", &["udp", "tcp/2"])));
    });
    kept.edit(|p| p.rules.retain(|rule| rule.name != "app"));
    assert_eq!(kept.says(2), "Allow by last");
    assert_eq!(kept.says(4), "Deny by default");
    kept.edit(|p| p.rules.clear());
    assert_eq!(kept.says(2), "Deny by default");
}

#[test]
fn what_a_rule_left_nothing_of_is_met_when_it_is_gone() {
    let mut kept = Kept::new(vec![
        deny("all", &[]),
        deny("tcp", &["tcp"]),
        allow("one", &["tcp/1"]),
        allow("two", &["tcp/1-2"]),
    ]);
    assert_eq!(kept.says(1), "Deny by all");
    kept.edit(|p| drop(p.rules.remove(0)));
    assert_eq!(kept.says(1), "Deny by tcp");
    kept.edit(|p| drop(p.rules.remove(0)));
    assert_eq!(kept.says(1), "Allow by one");
    assert_eq!(kept.says(2), "Allow by two");
    kept.edit(|p| drop(p.rules.remove(0)));
    assert_eq!(kept.says(1), "Allow by two");
    kept.edit(|p| p.rules.push(deny("new", &[])));
    assert_eq!(kept.says(1), "Allow by two");
    assert_eq!(kept.says(3), "Deny by new");
}

#[test]
fn too_much_is_compiled_anew() {
    let many = |n: usize| (0..n).map(|n| allow(&format!("r{n}"), &[&format!("tcp/{n}")]));
    let kept = Kept::new([deny("all", &[])].into_iter().chain(many(100)).collect());
    let edited = |change: &dyn Fn(&mut Policy)| kept.try_to(change).1.is_some();
    assert!(!edited(&|p| drop(p.rules.remove(0))), "too many heirs");
    assert!(!edited(&|p| p.rules[0].staged = true), "too many heirs");
    // What is as broad leaves as little of them.
    assert!(edited(&|p| p.rules[0].action = Action::Reject));
    assert!(edited(&|p| p.rules[0].name = "other".into()));
    assert!(edited(&|p| drop(p.rules.drain(1..65))));
    assert!(!edited(&|p| drop(p.rules.drain(1..66))));
    let add = |n| {
        move |p: &mut Policy| {
            p.rules.extend(many(n).map(|r| Rule {
                name: format!("x{}", r.name),
                ..r
            }));
        }
    };
    assert!(edited(&add(64)) && !edited(&add(65)));
    assert!(!edited(
        &|p| p.rules[1].service = vec!["tcp/1".parse().unwrap(); 65]
    ));
    assert!(!edited(&|p| p.segments[0].loose = true));
    // Little by little is as much.
    let mut kept = Kept::new(vec![deny("all", &[])]);
    for n in 0..64 {
        kept.edit(|p| {
            p.rules
                .insert(0, allow(&format!("r{n}"), &[&format!("tcp/{n}")]));
        });
    }
    assert!(
        kept.try_to(|p| p.rules.insert(0, allow("more", &[])))
            .1
            .is_none()
    );
    // What was added is changed and taken out again without a trace.
    for _ in 0..64 {
        kept.edit(|p| p.rules[0].log = true);
        kept.edit(|p| drop(p.rules.remove(0)));
    }
    assert!(kept.2.edits.is_none());
}

#[test]
fn what_cannot_stand_is_not_edited() {
    let mut kept = Kept::new(vec![allow("a", &["tcp"]), allow("b", &["udp"])]);
    kept.0.infrastructure.management = vec![ManagementPath {
        from: vec!["web".into()],
        to: vec!["db".into()],
        service: vec!["tcp/20-30".parse().unwrap()],
    }];
    kept.2 = Classifier::compile(&kept.0, &kept.1, None)
        .unwrap()
        .classifier;
    for (stands, change) in [
        (
            true,
            &(|p: &mut Policy| p.rules[0].log = true) as &dyn Fn(&mut Policy),
        ),
        (true, &|p| {
            p.rules.insert(0, deny("c", &["tcp/19", "tcp/31"]));
        }),
        (true, &|p| p.rules.push(deny("c", &["tcp/25"]))),
        (false, &|p| p.rules.insert(0, deny("c", &["tcp/25 from 9"]))),
        (false, &|p| {
            p.rules[0].service = vec!["tcp/20-29".parse().unwrap()];
        }),
        (false, &|p| drop(p.rules.remove(0))),
        (false, &|p| p.rules.push(allow("a", &["icmp"]))),
        (false, &|p| p.rules[1].name = "a".into()),
        (true, &|p| p.rules.swap(0, 1)),
        (false, &|p| p.rules[1].name = "a b".into()),
        (false, &|p| p.rules[1].to = vec!["nobody".into()]),
        (false, &|p| p.rules[1].to = vec!["nobody/db".into()]),
        (false, &|p| p.rules[1].to.clear()),
        (false, &|p| p.rules[1].tenant = "nobody".into()),
        (false, &|p| p.rules[1].limit = Some(Limit::default())),
    ] {
        let (policy, classifier) = kept.try_to(change);
        let errors = Classifier::compile(&policy, &kept.1, None).err();
        assert_eq!(classifier.is_some(), stands, "{:?}", policy.rules);
        assert_eq!(errors.is_none(), stands, "{errors:?}");
    }
}

#[test]
fn counts_and_buckets_outlive_an_edit_and_a_changed_limit_starts_anew() {
    let limit = |connections| {
        Some(Limit {
            connections: Some(connections),
            bits: None,
        })
    };
    let find = |kept: &Kept, name: &str| {
        let rule = kept.2.rules().find(|rule| rule.name == name).unwrap();
        (rule.id, rule.hits, rule.staged_hits)
    };
    let mut kept = Kept::new(vec![allow("a", &["tcp/1"]), allow("b", &["tcp"])]);
    kept.0.rules[0].limit = limit(1);
    kept.2 = Classifier::compile(&kept.0, &kept.1, None)
        .unwrap()
        .classifier;
    let (a, b) = (find(&kept, "a").0, find(&kept, "b").0);
    kept.2.hit(a);
    kept.2.hit(b);
    kept.2.staged_hit(b);
    assert!(kept.2.limit_take(a, 10));
    let change = |kept: &mut Kept, change: &dyn Fn(&mut Policy)| {
        let (policy, classifier) = kept.try_to(change);
        (kept.0, kept.2) = (policy, classifier.unwrap());
    };
    for _ in 0..2 {
        change(&mut kept, &|p| p.rules[0].log ^= true);
        let a = find(&kept, "a");
        assert_eq!((a.1, find(&kept, "b").1, find(&kept, "b").2), (1, 1, 1));
        assert!(!kept.2.limit_take(a.0, 11), "still spent");
    }
    change(&mut kept, &|p| p.rules[0].limit = limit(2));
    let (a, hits, _) = find(&kept, "a");
    assert_eq!(hits, 1);
    assert!(kept.2.limit_take(a, 12));
    change(&mut kept, &|p| p.rules.swap(0, 1));
    assert!(kept.2.limit_take(find(&kept, "a").0, 12), "moved");
    assert!(!kept.2.limit_take(find(&kept, "a").0, 12), "moved");
    change(&mut kept, &|p| p.rules[1].name = "c".into());
    assert_eq!(find(&kept, "c").1, 0);
}

#[test]
fn between_tenants_edits_mean_their_own() {
    let mut policy = Policy {
        tenants: ["t", "u"]
            .map(|name| Tenant {
                name: name.into(),
                ..Tenant::default()
            })
            .into(),
        segments: ["t", "u"]
            .map(|tenant| Segment {
                tenant: tenant.into(),
                ..by_tag("s", "x")
            })
            .into(),
        ..Policy::default()
    };
    let workloads = [1, 2].map(|n| WorkloadFacts {
        tenant: TenantId(n),
        ..workload("w", &["x"])
    });
    let of = |tenant: &str, rule: Rule| Rule {
        tenant: tenant.into(),
        ..rule
    };
    let mut compiled = Classifier::compile(&policy, &workloads, None).unwrap();
    let says = |compiled: &Compiled| {
        let parties = &compiled.parties;
        [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(from, to)| {
            let query = Query {
                from: parties[from],
                to: parties[to],
                service: tcp(1),
            };
            Answer::of(&compiled.classifier, &compiled.classifier.classify(&query))
        })
    };
    let rules = [
        of("u", rule("in", "t/s", "s", &[], Action::Allow)),
        of("t", rule("in", "s", "s", &[], Action::Notify)),
        of("t", rule("out", "any", "u/s", &["tcp/1"], Action::Allow)),
        of(
            "t",
            Rule {
                staged: true,
                ..rule("test", "any", "u/any", &[], Action::Reject)
            },
        ),
        of(
            "u",
            Rule {
                tier: Tier::Baseline,
                ..rule("all", "any", "any", &[], Action::Reject)
            },
        ),
        of(
            "u",
            Rule {
                tier: Tier::Emergency,
                ..rule("now", "any", "any", &[], Action::Pass)
            },
        ),
    ];
    for (n, rule) in rules.into_iter().enumerate() {
        let before = policy.clone();
        policy.rules.insert(n / 2, rule);
        let anew = Classifier::compile(&policy, &workloads, None).unwrap();
        compiled = compiled
            .classifier
            .edit(&Edit::between(&before, &policy).unwrap())
            .unwrap();
        assert_eq!(says(&compiled), says(&anew));
        assert_eq!(listing(&compiled.classifier), listing(&anew.classifier));
    }
    let last = says(&compiled);
    assert_eq!(last[1].rule.as_deref(), Some("u/in"));
    assert_eq!(last[1].also.as_deref(), Some("t/out"));
    assert_eq!(last[1].staged.as_deref(), Some("t/test"));
}
