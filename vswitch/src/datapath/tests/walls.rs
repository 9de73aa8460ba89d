//! Passes: who needs one, what waits for it, and what a connection on probation may do.

use std::sync::Arc;

use super::rig::*;
use crate::datapath::passes::{Clean, Walls, pair};
use crate::datapath::snapshot::AttachmentId;
use crate::datapath::verdicts::Pass;
use crate::drop_reason::DropReason as R;
use crate::event::{About, AskEvent, ConnEventKind, Detector};
use crate::policy::TenantId;
use crate::policy::model::{Action, Ask, Otherwise, Policy};

const WALLS: u64 = 77;
const A_B: fn() -> Talk = || talk(1, "10.0.0.1", 2, "10.0.0.2");

fn layout() -> Vec<RigPort> {
    let one = |name, n, ip| port(name, vec![guest(name, n, &[ip], name)]);
    vec![one("a", 1, "10.0.0.1"), one("b", 2, "10.0.0.2")]
}

fn policy(action: Action) -> Policy {
    Policy {
        rules: vec![rule("all", "any", "any", &["tcp", "udp", "icmp"], action)],
        ..Policy::default()
    }
}

fn walled(action: Action, clean: Vec<Clean>) -> Rig {
    let mut rig = Rig::new(layout(), &policy(action));
    rig.walls = Some(Arc::new(Walls {
        definition: WALLS,
        clean,
    }));
    rig.apply(&policy(action));
    rig
}

fn rig() -> Rig {
    walled(Action::Allow, Vec::new())
}

/// The key of the connection that was asked about.
fn conn(e: &AskEvent) -> flowtable::FlowKey {
    let end = |addr, port, attachment| flowtable::Endpoint {
        addr,
        port,
        attachment,
    };
    let from = end(e.src, e.sport, e.src_attachment);
    let to = end(e.dst, e.dport, e.dst_attachment);
    flowtable::FlowKey::new(e.tenant, e.protocol, &from, &to).0
}

impl Rig {
    fn wall_asked(&mut self) -> AskEvent {
        let asks = self.asks();
        assert_eq!(asks.len(), 1, "{asks:?}");
        assert_eq!(asks[0].about, About::Wall);
        asks[0]
    }

    fn give_pass(&mut self, about: &flowtable::FlowKey, pass: Pass) -> Outcome {
        let mut access = self.shared.verdicts.participant();
        let verdicts = &self.shared.verdicts;
        assert!(verdicts.give_pass(&access, about, pass, WALLS));
        access.offline();
        self.step()
    }
}

fn of_pair(e: &AskEvent) -> flowtable::FlowKey {
    let [a, b] = [e.src_attachment, e.dst_attachment].map(AttachmentId);
    assert_eq!(pair(e.tenant, a, b), pair(e.tenant, b, a));
    pair(e.tenant, a, b)
}

#[test]
fn two_need_a_pass_and_then_any_service_either_way() {
    let mut r = rig();
    let syn = A_B().tcp((1000, 80), "S", 1, 0, b"");
    assert_eq!(r.send("a", &syn), Outcome::default());
    let ask = r.wall_asked();
    r.give_pass(&of_pair(&ask), Pass::Yes).reached("b", &syn);
    let back = A_B().back().udp(7, 7, b"x");
    r.send("b", &back).reached("a", &back);
    assert_eq!(r.asks(), []);
    assert_eq!(r.worker_values().conn_asked, 0, "no rule asked");
}

#[test]
fn a_wall_is_told_and_sticks() {
    let mut r = rig();
    let syn = A_B().tcp((1000, 80), "S", 1, 0, b"");
    r.send("a", &syn);
    let ask = r.wall_asked();
    let refused = |out: &Outcome| {
        assert_eq!(out.drops.get(R::Wall.name()), Some(&1), "{out:?}");
        assert_eq!(out.got.keys().collect::<Vec<_>>(), [&"a"], "a reset");
    };
    refused(&r.give_pass(&of_pair(&ask), Pass::No));
    refused(&r.send("a", &syn));
    assert_eq!(r.asks(), []);
    let told = r.events();
    assert_eq!(told.len(), 2, "{told:?}");
    let right = |e: &crate::event::ConnEvent| {
        (e.kind, e.reason, e.rule) == (ConnEventKind::Deny, Some(R::Wall), ask.rule)
    };
    assert!(told.iter().all(right), "{told:?}");
    // Other walls' passes count for nothing.
    let mut access = r.shared.verdicts.participant();
    let verdicts = &r.shared.verdicts;
    verdicts.give_pass(&access, &of_pair(&ask), Pass::Yes, WALLS + 1);
    access.offline();
    assert_eq!(r.send("a", &syn), Outcome::default());
    r.wall_asked();
}

#[test]
fn the_first_payload_of_a_connection_on_probation_is_told() {
    for reply in [false, true] {
        let mut r = rig();
        let syn = A_B().tcp((1000, 80), "S", 100, 0, b"");
        r.send("a", &syn);
        let ask = r.wall_asked();
        r.give_pass(&conn(&ask), Pass::Probation).reached("b", &syn);
        let syn_ack = A_B().back().tcp((80, 1000), "SA", 500, 101, b"");
        r.send("b", &syn_ack).reached("a", &syn_ack);
        let ack = A_B().tcp((1000, 80), "A", 101, 501, b"");
        r.send("a", &ack).reached("b", &ack);
        assert_eq!(r.asks(), [], "nothing passed yet");
        let data = if reply {
            let data = A_B().back().tcp((80, 1000), "PA", 501, 101, b"hello");
            r.send("b", &data).reached("a", &data);
            A_B().back().tcp((80, 1000), "PA", 506, 101, b"more")
        } else {
            let data = A_B().tcp((1000, 80), "PA", 101, 501, b"hello");
            r.send("a", &data).reached("b", &data);
            A_B().tcp((1000, 80), "PA", 106, 501, b"more")
        };
        let told = r.asks();
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!(
            (told[0].about, conn(&told[0])),
            (About::Payload, conn(&ask))
        );
        // From now on it is as any other.
        let stale = r.worker_values().conn_stale;
        let (from, to) = if reply { ("b", "a") } else { ("a", "b") };
        r.send(from, &data).reached(to, &data);
        assert_eq!(r.worker_values().conn_stale, stale);
        assert_eq!(r.asks(), []);
    }
}

#[test]
fn probation_is_for_one_connection() {
    let mut r = rig();
    let syn = |sport| A_B().tcp((sport, 80), "S", 1, 0, b"");
    r.send("a", &syn(1000));
    let ask = r.wall_asked();
    r.give_pass(&conn(&ask), Pass::Probation)
        .reached("b", &syn(1000));
    // Another one waits; and so does the same one when its pass was taken back.
    assert_eq!(r.send("a", &syn(1001)), Outcome::default());
    assert_eq!(r.wall_asked().sport, 1001);
    let mut access = r.shared.verdicts.participant();
    assert!(r.shared.verdicts.was_used(&access, &conn(&ask)));
    r.shared.verdicts.take_back(&access, &conn(&ask));
    access.offline();
    let syn_ack = A_B().back().tcp((80, 1000), "SA", 9, 2, b"");
    let out = r.send("b", &syn_ack);
    assert_eq!(out.got.len(), 0, "{out:?}");
    assert_eq!(conn(&r.wall_asked()), conn(&ask));
    // One that was not used is taken back for good.
    let mut access = r.shared.verdicts.participant();
    let verdicts = &r.shared.verdicts;
    let other = pair(0, AttachmentId(8), AttachmentId(9));
    assert!(verdicts.give_pass(&access, &other, Pass::Probation, WALLS));
    assert!(!verdicts.was_used(&access, &other));
    access.offline();
}

#[test]
fn payload_in_the_first_frame_counts() {
    let mut r = rig();
    let syn = A_B().tcp((1000, 80), "S", 1, 0, b"early");
    r.send("a", &syn);
    let ask = r.wall_asked();
    r.give_pass(&conn(&ask), Pass::Probation).reached("b", &syn);
    let told = r.asks();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].about, About::Payload);
}

#[test]
fn what_is_sanitised_needs_no_pass() {
    let clean = Clean {
        tenant: TenantId(0),
        attachments: [AttachmentId(102)].into(),
        cidr: Vec::new(),
        service: vec!["udp/53".parse().unwrap()],
    };
    let mut r = walled(Action::Allow, vec![clean]);
    let question = A_B().udp(1000, 53, b"q");
    r.send("a", &question).reached("b", &question);
    let answer = A_B().back().udp(53, 1000, b"a");
    r.send("b", &answer).reached("a", &answer);
    // Not the other way round, and nothing else.
    for (from, frame) in [
        ("b", A_B().back().udp(1000, 53, b"q")),
        ("a", A_B().udp(1000, 54, b"q")),
    ] {
        assert_eq!(r.send(from, &frame), Outcome::default());
    }
    assert_eq!(r.asks().len(), 2, "each port asks for itself");
}

#[test]
fn a_yes_for_once_is_not_used_up_before_the_wall() {
    let ask = Action::Ask(Ask::new(Otherwise::Deny));
    let mut r = walled(ask, Vec::new());
    let syn = A_B().tcp((1000, 80), "S", 1, 0, b"");
    r.send("a", &syn);
    let asked = r.asks();
    assert_eq!((asked.len(), asked[0].about), (1, About::Rule));
    let judgement = crate::policy::Judgement {
        verdict: crate::policy::Verdict::Allow,
        why: crate::policy::Why::Rule(crate::policy::RuleId(asked[0].rule)),
        ask: true,
        ..crate::policy::Judgement::default()
    };
    let once = crate::datapath::verdicts::Answer {
        yes: true,
        once: true,
        keep: false,
        expires_ns: u64::MAX,
        definition: r.classifier().asking(&judgement).unwrap().definition,
    };
    let mut access = r.shared.verdicts.participant();
    assert!(r.shared.verdicts.give(&access, &conn(&asked[0]), once));
    access.offline();
    assert_eq!(r.step(), Outcome::default(), "on to the wall");
    let wall = r.wall_asked();
    r.give_pass(&of_pair(&wall), Pass::Yes).reached("b", &syn);
    assert_eq!(r.asks(), []);
}

#[test]
fn a_connection_from_before_the_wall_waits_for_a_pass_or_is_cut() {
    for pass in [Pass::Yes, Pass::No] {
        let mut r = Rig::new(layout(), &policy(Action::Allow));
        let frame = A_B().udp(1000, 7, b"before");
        r.send("a", &frame).reached("b", &frame);
        r.walls = Some(Arc::new(Walls {
            definition: WALLS,
            clean: Vec::new(),
        }));
        r.apply(&policy(Action::Allow));
        let answer = A_B().back().udp(7, 1000, b"after");
        assert_eq!(r.send("b", &answer), Outcome::default());
        let ask = r.wall_asked();
        let out = r.give_pass(&of_pair(&ask), pass);
        if pass == Pass::Yes {
            out.reached("a", &answer);
        } else {
            assert_eq!(out.drops.get(R::Wall.name()), Some(&1), "{out:?}");
            assert_eq!(r.worker_values().conn_cut, 1);
        }
        r.check_conservation();
    }
}

#[test]
fn what_can_not_wait_passes_only_with_a_pass() {
    let mut r = rig();
    let all = Talk {
        dst_mac: crate::packet::Mac::BROADCAST,
        dst: "10.0.0.255",
        ..A_B()
    };
    let frame = all.udp(1000, 53, b"q");
    let out = r.send("a", &frame);
    assert_eq!(out.got.len(), 0, "{out:?}");
    assert_eq!(r.asks(), []);
    r.send("a", &A_B().udp(1, 1, b"x"));
    let ask = r.wall_asked();
    r.give_pass(&of_pair(&ask), Pass::Yes);
    r.send("a", &frame).reached("b", &frame);
}

#[test]
fn what_a_wall_refuses_again_and_again_is_suspicious() {
    let mut r = rig();
    r.send("a", &A_B().tcp((1, 80), "S", 1, 0, b""));
    let asked = r.wall_asked();
    r.give_pass(&of_pair(&asked), Pass::No);
    for _ in 0..10 {
        let o = r.send("a", &A_B().tcp((1, 80), "S", 1, 0, b""));
        assert_eq!(o.drops.keys().collect::<Vec<_>>(), [&"wall"]);
    }
    assert_eq!(r.suspicions(), [], "one service is one attempt");
    for dport in 81..90 {
        r.send("a", &A_B().tcp((1, dport), "S", 1, 0, b""));
    }
    let told = r.suspicions();
    let told: Vec<_> = told.iter().map(|e| (e.attachment, e.detector)).collect();
    let a = asked.src_attachment;
    assert_eq!(told[0], (a, Detector::Wall), "{told:?}");
}
