//! Changes are whole or nothing, and time is an argument.

use std::collections::HashMap;

use super::*;
use crate::control::state::{PortKind, WorkloadConfig};
use crate::packet::Mac;
use crate::policy::model::{Action, Rule, Segment};

const SECOND_NS: u64 = 1_000_000_000;

pub(in crate::control) fn port(name: &str, n: u8) -> PortConfig {
    let mut port = PortConfig::new(name, PortKind::Mem);
    port.workloads.push(WorkloadConfig {
        name: name.to_owned(),
        mac: vec![Mac([2, 0, 0, 0, 0, n])],
        ip: vec![[10, 0, 0, n].into()],
        ..WorkloadConfig::default()
    });
    port
}

fn policy(rule: &str, action: Action) -> Policy {
    Policy {
        rules: vec![Rule::new(rule, &["any"], &["any"], action)],
        ..Policy::default()
    }
}

/// A small control side.
pub(in crate::control) fn control() -> Control {
    control_of(64, 4)
}

/// A control side whose workers do not run: nobody reads snapshots, so each one settles at once.
pub(in crate::control) fn control_of(connections: usize, max_ports: usize) -> Control {
    let config = SwitchConfig {
        connections,
        max_ports,
        ..SwitchConfig::default()
    };
    let table = flowtable::Config {
        capacity: config.connections,
        ..flowtable::Config::default()
    };
    let shared = Shared::new(1, config.max_ports, table).unwrap();
    Control::new(shared, Vec::new(), config, 0)
}

fn desired(control: &Control, ports: &[PortConfig], policy: Policy) -> Desired {
    Desired {
        decisions: None,
        switch: control.desired.switch.clone(),
        ports: ports.to_vec(),
        policy,
    }
}

/// What an observer can see of the switch.
fn state(c: &Control) -> (u64, Vec<String>, serde_json::Value) {
    let ports = c.ports.iter().map(|p| format!("{:?}", p.config)).collect();
    let policy = serde_json::to_value(&c.desired.policy).unwrap();
    (c.shared.snapshots.generation(), ports, policy)
}

#[test]
fn a_refused_change_touches_nothing() {
    let mut c = control();
    let start = desired(
        &c,
        &[port("a", 1), port("b", 2)],
        policy("r", Action::Allow),
    );
    c.apply(start.clone(), "test").unwrap();
    let before = state(&c);

    let mut bad_policy = policy("r", Action::Allow);
    bad_policy.rules[0].from = vec!["nobody".into()];
    let e = c
        .apply_policy(bad_policy.clone(), "bad", None, 0)
        .unwrap_err();
    assert!(e.to_string().contains("nobody"), "{e}");

    let mut same_mac = port("c", 1);
    same_mac.workloads[0].ip.clear();
    assert!(matches!(
        c.add_ports(vec![same_mac]),
        Err(ApplyError::Invalid(_))
    ));
    assert!(matches!(
        c.add_ports(vec![port("a", 9)]),
        Err(ApplyError::PortExists(_))
    ));
    assert!(matches!(c.remove_port("x"), Err(ApplyError::NoSuchPort(_))));

    // The first port could open, the second cannot: neither is there afterwards.
    let mut missing = port("d", 4);
    missing.kind = PortKind::AfXdp {
        interface: "vsw-none".to_owned(),
    };
    let e = c.apply(
        desired(
            &c,
            &[port("a", 1), port("c", 3), missing],
            Policy::default(),
        ),
        "x",
    );
    let e = e.unwrap_err();
    assert!(
        matches!(&e, ApplyError::Port { name, .. } if name == "d"),
        "{e}"
    );

    let mut other_switch = start;
    other_switch.switch.connections += 1;
    let e = c.apply(other_switch, "x").unwrap_err();
    assert!(e.to_string().starts_with("switch: [switch] cannot"), "{e}");
    assert_eq!(state(&c), before);
    assert_eq!(c.policy_source, "test");
}

#[test]
fn an_unconfirmed_policy_is_reverted() {
    let mut c = control();
    let allow = policy("r", Action::Allow);
    c.apply(desired(&c, &[port("a", 1)], allow.clone()), "first")
        .unwrap();
    let confirm_ns = Some(60 * SECOND_NS);
    let now = 1000 * SECOND_NS;
    let applied = c
        .apply_policy(policy("r", Action::Deny), "second", confirm_ns, now)
        .unwrap();
    assert_eq!(applied.confirm_s, Some(60));
    assert_eq!(c.next_deadline_ns(), Some(now + 60 * SECOND_NS));
    // A second try does not move what it goes back to.
    let later = now + 10 * SECOND_NS;
    c.apply_policy(policy("s", Action::Reject), "third", confirm_ns, later)
        .unwrap();
    c.tick(later + 60 * SECOND_NS - 1);
    assert_eq!(c.policy_source, "third");
    let before = c.shared.snapshots.generation();
    c.tick(later + 60 * SECOND_NS);
    assert_eq!(
        (c.policy_source.as_str(), &c.desired.policy),
        ("first", &allow)
    );
    assert_eq!(c.shared.snapshots.generation(), before + 1);
    assert_eq!(c.next_deadline_ns(), None);
    assert!(matches!(c.confirm(), Err(ApplyError::NothingToConfirm)));
}

#[test]
fn what_is_in_force_already_has_nothing_to_confirm() {
    let mut c = control();
    let allow = policy("r", Action::Allow);
    c.apply(desired(&c, &[], allow.clone()), "first").unwrap();
    let confirm_ns = Some(60 * SECOND_NS);
    let says = "nothing waits for confirmation";
    let generation = c.shared.snapshots.generation();
    let applied = c
        .apply_policy(allow.clone(), "copy", confirm_ns, 0)
        .unwrap();
    assert_eq!((applied.confirm_s, applied.generation), (None, generation));
    assert!(applied.changes[0].starts_with(says), "{applied:?}");
    assert_eq!(c.next_deadline_ns(), None);
    // The same policy again while it waits goes on waiting; the one before ends the wait.
    let deny = policy("r", Action::Deny);
    for _ in 0..2 {
        let applied = c.apply_policy(deny.clone(), "new", confirm_ns, 0).unwrap();
        assert_eq!(applied.confirm_s, Some(60));
    }
    let applied = c.apply_policy(allow, "copy", confirm_ns, 0).unwrap();
    assert_eq!(applied.confirm_s, None);
    assert!(applied.changes[1].starts_with(says), "{applied:?}");
}

#[test]
fn a_changed_rule_is_all_that_is_compiled() {
    let mut c = control();
    let rules = |n: u16| {
        let mut rule = Rule::new(&format!("r{n}"), &["any"], &["any"], Action::Deny);
        rule.service = vec![format!("tcp/{n}").parse().unwrap()];
        rule
    };
    let mut policy = Policy {
        rules: (1..100).map(rules).collect(),
        ..Policy::default()
    };
    let start = desired(&c, &[port("a", 1), port("b", 2)], policy.clone());
    c.apply(start, "test").unwrap();
    let numbers = |c: &Control| -> HashMap<String, RuleId> {
        let rules = c.classifier().unwrap().rules();
        rules.map(|r| (r.name.to_owned(), r.id)).collect()
    };
    let before = numbers(&c);
    c.classifier().unwrap().hit(before["r5"]);
    // Numbers are given when a policy is compiled whole: these stay.
    policy.rules.remove(6);
    policy.rules.insert(0, rules(100));
    let applied = c.apply_policy(policy.clone(), "new", None, 0).unwrap();
    assert_eq!(applied.changes, ["+ rule r100", "- rule r7"]);
    let mut after = numbers(&c);
    assert!(after.remove("r100").is_some() && !after.contains_key("r7"));
    assert!(after.iter().all(|(name, id)| before[name] == *id));
    // Who is there does not change, so neither does this.
    c.add_ports(vec![PortConfig::new("uplink", PortKind::Mem)])
        .unwrap();
    assert_eq!(numbers(&c)["r3"], before["r3"]);
    c.add_ports(vec![port("c", 3)]).unwrap();
    assert_ne!(numbers(&c)["r3"], before["r3"]);
    let mut rules = c.classifier().unwrap().rules();
    assert_eq!(rules.find(|r| r.name == "r5").unwrap().hits, 1);
}

#[test]
fn a_confirmed_policy_stays() {
    let mut c = control();
    c.apply_policy(policy("r", Action::Deny), "new", Some(SECOND_NS), 0)
        .unwrap();
    c.confirm().unwrap();
    c.tick(100 * SECOND_NS);
    assert_eq!(c.policy_source, "new");
}

#[test]
fn attachments_keep_their_numbers_and_ports_theirs_until_settled() {
    let mut c = control();
    let allow = policy("r", Action::Allow);
    c.apply(desired(&c, &[port("a", 1), port("b", 2)], allow), "t")
        .unwrap();
    let [a, b] = [0, 1].map(|n| {
        let port = &c.ports[n].config;
        c.attachments.of(port, &port.workloads[0]).unwrap()
    });
    // A reader that does not move on, as a worker in the middle of a burst.
    let mut reader = c.shared.snapshots.reader();
    c.shared.snapshots.publish(Snapshot::empty(1));
    let gone = c.ports.remove(0);
    let id = gone.port.id;
    let generation = c.shared.snapshots.generation();
    c.closing.push((generation, gone));
    let plan = Plan {
        open: vec![0],
        keep: Vec::new(),
        close: Vec::new(),
    };
    let opened = c.open(&plan, &[port("c", 3)]).unwrap();
    assert_ne!(opened[0].port.id, id, "a worker may still know the number");
    drop(opened);
    reader.refresh();
    c.reap();
    let opened = c.open(&plan, &[port("c", 3)]).unwrap();
    assert_eq!(opened[0].port.id, id);
    assert_eq!(c.attachments.intern("a", "a"), a);
    assert_eq!(c.attachments.name(b.0), "b");
    assert_ne!(c.attachments.intern("a", "red/a"), a, "another tenant's");
}

#[test]
fn tags_and_runtime_ports_survive_a_reload_and_removal_is_remembered() {
    let mut c = control();
    let allow = policy("r", Action::Allow);
    let files = desired(&c, &[port("a", 1), port("b", 2)], allow);
    c.apply(files.clone(), "f").unwrap();
    c.tag("a", &["tier:web".to_owned()], &[]).unwrap();
    c.remove_port("b").unwrap();
    c.add_ports(vec![port("c", 3)]).unwrap();
    c.apply(files.clone(), "f").unwrap();
    let names: Vec<_> = c.desired.ports.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["a", "c"]);
    assert_eq!(c.desired.ports[0].workloads[0].tags, ["tier:web"]);
    // The files no longer have b: the name is free again.
    let mut without = files.clone();
    without.ports.remove(1);
    c.apply(without, "f").unwrap();
    c.apply(files, "f").unwrap();
    assert!(c.desired.ports.iter().any(|p| p.name == "b"));
    assert!(matches!(
        c.tag("x", &[], &[]),
        Err(ApplyError::NoSuchWorkload(_))
    ));
}

/// A tag is enough to enter a segment's quota.
#[test]
fn quotas_of_segments_reach_the_data_path() {
    let mut c = control();
    let mut limited = policy("r", Action::Allow);
    limited.segments.push(Segment {
        tags: vec!["tier:web".to_owned()],
        max_connections: Some(7),
        ..Segment::new("web")
    });
    c.apply(desired(&c, &[port("a", 1), port("b", 2)], limited), "t")
        .unwrap();
    let quotas = |c: &Control| {
        let snapshot = c.shared.snapshots.current();
        let owners = snapshot.owners().iter();
        let each = owners.map(|o| snapshot.segment_quotas(o).map(|q| q.max).collect());
        each.collect::<Vec<Vec<_>>>()
    };
    assert_eq!(quotas(&c), vec![Vec::<u32>::new(); 2]);
    c.tag("b", &["tier:web".to_owned()], &[]).unwrap();
    assert_eq!(quotas(&c), [vec![], vec![7]]);
}

#[test]
fn the_plan_is_data() {
    let mut c = control();
    c.apply(
        desired(&c, &[port("keep", 1), port("go", 2)], Policy::default()),
        "t",
    )
    .unwrap();
    let mut kept = port("keep", 1);
    kept.uplink = true;
    let plan = plan(&c.ports, &[port("new", 3), kept], None).unwrap();
    assert_eq!(
        plan,
        Plan {
            open: vec![0],
            keep: vec!["keep".to_owned()],
            close: vec!["go".to_owned()],
        }
    );
}
