//! Quarantine: what goes on, what ends, and what nobody may begin.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use flowtable::{Endpoint, FlowKey, Side};

use super::counted::arp;
use super::rig::*;
use crate::datapath::quarantine::{Carried, Kept, Quarantine};
use crate::datapath::snapshot::AttachmentId;
use crate::drop_reason::DropReason as R;
use crate::event::ConnEventKind;
use crate::packet::Addr;
use crate::policy::model::{Action, Ask, Otherwise, Policy};

/// Attachments are numbered in the order of the layout.
const A: u32 = 101;
const B: u32 = 102;
const A_B: fn() -> Talk = || talk(1, "10.0.0.1", 2, "10.0.0.2");
const C_A: fn() -> Talk = || talk(3, "10.0.0.3", 1, "10.0.0.1");

fn layout() -> Vec<RigPort> {
    let one = |name, n, ip| port(name, vec![guest(name, n, &[ip], name)]);
    vec![
        one("a", 1, "10.0.0.1"),
        one("b", 2, "10.0.0.2"),
        one("c", 3, "10.0.0.3"),
    ]
}

fn policy(action: Action) -> Policy {
    let services = ["tcp", "udp", "icmp", "ether/0x88b5"];
    Policy {
        rules: vec![rule("all", "any", "any", &services, action)],
        ..Policy::default()
    }
}

/// The key of a connection from a to b, and the side of a.
fn key(protocol: u8, sport: u16, dport: u16) -> (FlowKey, Side) {
    let end = |addr: &str, port, attachment| Endpoint {
        addr: Addr::from(addr.parse::<std::net::IpAddr>().unwrap()),
        port,
        attachment,
    };
    let (a, b) = (end("10.0.0.1", sport, A), end("10.0.0.2", dport, B));
    FlowKey::new(0, protocol, &a, &b)
}

fn connect(r: &mut Rig, sport: u16) {
    let t = A_B();
    for (from, to, f) in [
        ("a", "b", t.tcp((sport, 80), "S", 100, 0, b"")),
        ("b", "a", t.back().tcp((80, sport), "SA", 500, 101, b"")),
        ("a", "b", t.tcp((sport, 80), "A", 101, 501, b"")),
    ] {
        r.send(from, &f).reached(to, &f);
    }
}

/// Puts a into quarantine, with these connections to b.
fn quarantine(r: &mut Rig, keep: &[(FlowKey, Side)], carried: fn() -> Carried) -> Arc<Carried> {
    let one = Arc::new(carried());
    let kept = keep.iter().map(|(key, initiator)| {
        let carried = Arc::clone(&one);
        let initiator = *initiator;
        let frozen = [None, None];
        let kept = Kept {
            initiator,
            carried,
            frozen,
        };
        (*key, kept)
    });
    let held = HashSet::from([AttachmentId(A)]);
    let quarantine = Quarantine::new(held, kept.collect::<HashMap<_, _>>());
    r.quarantine = Some(Arc::new(quarantine));
    r.apply(&policy(Action::Allow));
    one
}

/// It is dropped, and its sender is told.
#[track_caller]
fn refused(out: &Outcome, sender: &str) {
    assert_eq!(out.drops.get(R::Quarantined.name()), Some(&1), "{out:?}");
    assert_eq!(out.drops.len(), 1, "{out:?}");
    assert_eq!(out.got.keys().collect::<Vec<_>>(), [&sender], "a reset");
}

#[test]
fn what_is_kept_goes_on_and_the_rest_ends() {
    let mut r = Rig::new(layout(), &policy(Action::Allow));
    for sport in [1000, 1001, 1002] {
        connect(&mut r, sport);
    }
    let carried = quarantine(&mut r, &[key(6, 1000, 80)], Carried::default);
    r.events();
    let there = A_B().tcp((1000, 80), "PA", 101, 501, b"hello");
    let back = A_B().back().tcp((80, 1000), "PA", 501, 106, b"hi");
    r.send("a", &there).reached("b", &there);
    r.send("b", &back).reached("a", &back);
    r.send("b", &back).reached("a", &back);
    let sizes = [there.len() as u64, 2 * back.len() as u64];
    assert_eq!(carried.counts(), ([1, 2], sizes));
    // What does not fit the connection is no part of it.
    let stray = A_B().tcp((1000, 80), "PA", 900_000_000, 501, b"?");
    r.send("a", &stray).dropped(R::TcpOutOfWindow);
    assert_eq!(carried.counts(), ([1, 2], sizes));

    // The others end, from whichever side they are used, and that is told.
    refused(
        &r.send("a", &A_B().tcp((1001, 80), "PA", 101, 501, b"x")),
        "a",
    );
    refused(
        &r.send("b", &A_B().back().tcp((80, 1002), "PA", 501, 101, b"x")),
        "b",
    );
    let told = r.events();
    let of = |kind, reason| {
        let of = told.iter().filter(|e| (e.kind, e.reason) == (kind, reason));
        of.map(|e| e.sport).collect::<HashSet<_>>()
    };
    assert_eq!(of(ConnEventKind::Cut, None), HashSet::from([1001, 1002]));
    let denied = of(ConnEventKind::Deny, Some(R::Quarantined));
    assert_eq!(denied, HashSet::from([1001, 80]));
    assert_eq!(r.shared.table.len(), 1);
    // Nobody begins anything.
    refused(&r.send("a", &A_B().tcp((1, 80), "S", 1, 0, b"")), "a");
    refused(
        &r.send("b", &A_B().back().tcp((1, 80), "S", 1, 0, b"")),
        "b",
    );
    refused(&r.send("c", &C_A().udp(1, 80, b"x")), "c");
    // Others do.
    let other = talk(3, "10.0.0.3", 2, "10.0.0.2").udp(1, 80, b"x");
    r.send("c", &other).reached("b", &other);

    // It may end, and is then over: no SYN opens it again, and no segment picks it up.
    let fin = A_B().tcp((1000, 80), "RA", 106, 503, b"");
    r.send("a", &fin).reached("b", &fin);
    refused(&r.send("a", &A_B().tcp((1000, 80), "S", 9, 0, b"")), "a");
    refused(
        &r.send("a", &A_B().tcp((1000, 80), "PA", 106, 503, b"x")),
        "a",
    );
}

#[test]
fn what_nobody_uses_ends_too() {
    let mut r = Rig::new(layout(), &policy(Action::Allow));
    connect(&mut r, 1000);
    connect(&mut r, 1001);
    quarantine(&mut r, &[key(6, 1000, 80)], Carried::default);
    r.events();
    r.pass_secs(10);
    assert_eq!(r.shared.table.len(), 1);
    let told: Vec<_> = r.events().iter().map(|e| (e.kind, e.sport)).collect();
    assert_eq!(told, [(ConnEventKind::Cut, 1001)]);
    assert_eq!(r.open_connections("a"), 1);
}

#[test]
fn others_learn_only_of_what_is_kept() {
    let mut r = Rig::new(layout(), &policy(Action::Allow));
    connect(&mut r, 1000);
    let broadcast = [&[0xff; 6], &A_B().udp(1, 9, b"x")[6..]].concat();
    let out = r.send("a", &broadcast);
    assert_eq!(out.got.len(), 2, "{out:?}");
    quarantine(&mut r, &[key(6, 1000, 80)], Carried::default);
    r.send("a", &broadcast).dropped(R::Quarantined);
    let ether = [&A_B().udp(1, 9, b"x")[..12], &[0x88, 0xb5], &[0; 46]].concat();
    r.send("a", &ether).dropped(R::Quarantined);
    let from_c = [&[0xff; 6], &C_A().udp(1, 9, b"x")[6..]].concat();
    let out = r.send("c", &from_c);
    assert_eq!(out.got.keys().collect::<Vec<_>>(), [&"b"], "{out:?}");
    // The two ends of what is kept find each other, and nobody else does.
    for (from, n, to, known) in [
        ("a", 1, 2, true),
        ("b", 2, 1, true),
        ("a", 1, 3, false),
        ("c", 3, 1, false),
    ] {
        let out = r.send(from, &arp(n, [10, 0, 0, n], [10, 0, 0, to]));
        if known {
            out.one(from);
        } else {
            out.dropped(R::Quarantined);
        }
    }
}

#[test]
fn policy_cuts_what_is_kept() {
    let mut r = Rig::new(layout(), &policy(Action::Allow));
    connect(&mut r, 1000);
    quarantine(&mut r, &[key(6, 1000, 80)], Carried::default);
    r.apply(&policy(Action::Deny));
    let data = A_B().tcp((1000, 80), "PA", 101, 501, b"x");
    r.send("a", &data).dropped(R::PolicyDeny);
    r.apply(&policy(Action::Allow));
    refused(&r.send("a", &data), "a");
}

#[test]
fn what_is_kept_needs_no_answer_then_and_later() {
    let asks = || policy(Action::Ask(Ask::new(Otherwise::Deny)));
    let mut r = Rig::new(layout(), &policy(Action::Allow));
    connect(&mut r, 1000);
    connect(&mut r, 1001);
    quarantine(&mut r, &[key(6, 1000, 80)], Carried::default);
    // Nobody has answered for it, as when the answers of a workload were taken back.
    r.apply(&asks());
    let data = A_B().tcp((1000, 80), "PA", 101, 501, b"x");
    r.send("a", &data).reached("b", &data);
    // Released: what was kept goes on, and what was not needs an answer as ever.
    let kept = Arc::clone(r.quarantine.as_ref().unwrap());
    let (key, _) = key(6, 1000, 80);
    let granted = HashMap::from([(key, kept.kept(&key).unwrap().clone())]);
    r.quarantine = Some(Arc::new(Quarantine::new(HashSet::new(), granted)));
    r.apply(&asks());
    r.send("a", &data).reached("b", &data);
    let other = A_B().tcp((1001, 80), "PA", 101, 501, b"x");
    assert_eq!(
        r.send("a", &other).drops.get(R::PolicyAskDenied.name()),
        Some(&1)
    );
}

#[test]
fn what_is_awaited_is_picked_up_once_from_either_end() {
    for from_a in [true, false] {
        let mut r = Rig::new(layout(), &policy(Action::Allow));
        let carried = quarantine(&mut r, &[key(6, 1000, 80)], Carried::awaited);
        let t = A_B();
        // Its tuple is not enough: it goes on, or is over.
        refused(&r.send("a", &t.tcp((1000, 80), "S", 1, 0, b"")), "a");
        r.send("b", &t.back().tcp((80, 1000), "R", 501, 0, b""))
            .dropped(R::Quarantined);
        refused(&r.send("a", &t.tcp((1001, 80), "PA", 101, 501, b"x")), "a");
        assert!(carried.is_awaited());
        let there = t.tcp((1000, 80), "PA", 101, 501, b"hello");
        let back = t.back().tcp((80, 1000), "PA", 501, 101, b"hi");
        let order = [("a", "b", &there), ("b", "a", &back)];
        let order = if from_a { order } else { [order[1], order[0]] };
        for (from, to, frame) in order {
            r.send(from, frame).reached(to, frame);
        }
        assert!(!carried.is_awaited());
        let sizes = [there.len() as u64, back.len() as u64];
        assert_eq!(carried.counts(), ([1, 1], sizes));
        // Whoever opened it pays for it.
        assert_eq!((r.open_connections("a"), r.open_connections("b")), (1, 0));
        // A reset ends it for good.
        let reset = t.tcp((1000, 80), "RA", 106, 503, b"");
        r.send("a", &reset).reached("b", &reset);
        r.pass_secs(30);
        assert_eq!(r.shared.table.len(), 0);
        refused(&r.send("a", &there), "a");
    }
}

#[test]
fn what_policy_does_not_allow_is_not_picked_up() {
    let mut r = Rig::new(layout(), &policy(Action::Allow));
    let carried = quarantine(&mut r, &[key(17, 1000, 80)], Carried::awaited);
    r.apply(&policy(Action::Deny));
    let back = A_B().back().udp(80, 1000, b"x");
    r.send("b", &back).dropped(R::PolicyDeny);
    assert!(carried.is_awaited());
    let mut only = policy(Action::Allow);
    only.rules[0] = rule("one-way", "a", "b", &["udp/80"], Action::Allow);
    only.segments = vec![segment("a", "a"), segment("b", "b")];
    r.apply(&only);
    // It is judged as it was opened, by a.
    r.send("b", &back).reached("a", &back);
    assert_eq!((r.open_connections("a"), r.open_connections("b")), (1, 0));
}
