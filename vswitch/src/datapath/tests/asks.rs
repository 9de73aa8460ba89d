//! First packets that a rule asks about: what is held, what is asked, and what an answer does.

use super::rig::*;
use crate::datapath::hold::{FRAMES_PER_PORT, QUESTIONS_PER_PORT};
use crate::datapath::verdicts::{Answer, Topic};
use crate::drop_reason::DropReason as R;
use crate::event::{AskEvent, ConnEventKind};
use crate::frame::Offload;
use crate::policy::model::{Action, Ask, Otherwise, Policy, Record, Rule};
use crate::policy::{Judgement, RuleId, Verdict, Why};

const SECOND_NS: u64 = 1_000_000_000;
/// Later than an answer may be.
const LATE_NS: u64 = 7 * SECOND_NS;
const WEB_DB: fn() -> Talk = || talk(1, "10.0.0.1", 2, "10.0.0.2");

fn layout() -> Vec<RigPort> {
    vec![
        port(
            "web",
            vec![guest("web", 1, &["10.0.0.1", "fd00::1"], "web")],
        ),
        port("db", vec![guest("db", 2, &["10.0.0.2", "fd00::2"], "db")]),
        port("other", vec![guest("other", 3, &["10.0.0.3"], "web")]),
    ]
}

fn policy() -> Policy {
    let ask = Action::Ask(Ask::new(Otherwise::Allow));
    Policy {
        segments: vec![segment("web", "web"), segment("db", "db")],
        rules: vec![
            rule(
                "asks",
                "web",
                "db",
                &["tcp/5432", "udp/53", "udp/1000-2000", "icmp"],
                ask,
            ),
            rule("allows", "web", "db", &["udp/7"], Action::Allow),
        ],
        ..Policy::default()
    }
}

fn rig() -> Rig {
    Rig::new(layout(), &policy())
}

impl Rig {
    fn waits(&mut self, port: &str, frame: &[u8]) {
        assert_eq!(self.send(port, frame), Outcome::default());
    }

    fn asked(&mut self) -> AskEvent {
        let asks = self.asks();
        assert_eq!(asks.len(), 1, "{asks:?}");
        asks[0]
    }

    fn definition(&self, e: &AskEvent) -> u64 {
        let judgement = Judgement {
            verdict: Verdict::Allow,
            why: Why::Rule(RuleId(e.rule)),
            ask: true,
            ..Judgement::default()
        };
        self.classifier().asking(&judgement).unwrap().definition
    }

    fn yes(&self, e: &AskEvent) -> Answer {
        Answer {
            yes: true,
            once: false,
            keep: false,
            expires_ns: self.now_ns + 60 * SECOND_NS,
            definition: self.definition(e),
        }
    }

    /// For the connection that was asked about.
    fn give_once(&mut self, e: &AskEvent, answer: Answer) -> Outcome {
        let end = |addr, port, attachment| flowtable::Endpoint {
            addr,
            port,
            attachment,
        };
        let (conn, _) = flowtable::FlowKey::new(
            e.tenant,
            e.protocol,
            &end(e.src, e.sport, e.src_attachment),
            &end(e.dst, e.dport, e.dst_attachment),
        );
        let mut access = self.shared.verdicts.participant();
        assert!(self.shared.verdicts.give(&access, &conn, answer));
        access.offline();
        self.step()
    }

    fn give(&mut self, e: &AskEvent, answer: Answer) -> Outcome {
        let mut access = self.shared.verdicts.participant();
        assert!(
            self.shared
                .verdicts
                .give(&access, &Topic::of(e).key(), answer)
        );
        access.offline();
        self.step()
    }
}

#[test]
fn a_connection_waits_for_its_answer_and_loses_nothing() {
    let mut r = rig();
    let syn = WEB_DB().tcp((1000, 5432), "S", 1, 0, b"");
    r.waits("web", &syn);
    let ask = r.asked();
    assert_eq!((ask.sport, ask.dport, ask.protocol), (1000, 5432, 6));
    assert_eq!(
        (ask.src.to_string(), ask.dst.to_string()),
        ("10.0.0.1".into(), "10.0.0.2".into())
    );
    assert_eq!(r.shared.table.len(), 0);
    let yes = r.yes(&ask);
    r.give(&ask, yes).reached("db", &syn);
    r.check_conservation();
    let answer = WEB_DB().back().tcp((5432, 1000), "SA", 9, 2, b"");
    r.send("db", &answer).reached("web", &answer);
    // The next connection needs no question.
    let next = WEB_DB().tcp((1001, 5432), "S", 1, 0, b"");
    r.send("web", &next).reached("db", &next);
    assert_eq!(r.asks(), []);
    // Another workload's, and the other service's, do.
    r.waits(
        "other",
        &talk(3, "10.0.0.3", 2, "10.0.0.2").tcp((1000, 5432), "S", 1, 0, b""),
    );
    r.waits("web", &WEB_DB().udp(1000, 53, b"q"));
    assert_eq!(r.asks().len(), 2);
}

#[test]
fn a_no_is_told_and_sticks() {
    let mut r = rig();
    let syn = WEB_DB().tcp((1000, 5432), "S", 1, 0, b"");
    r.waits("web", &syn);
    let ask = r.asked();
    let no = Answer {
        yes: false,
        ..r.yes(&ask)
    };
    let refused = |out: Outcome| {
        assert_eq!(
            out.drops.get(R::PolicyAskDenied.name()),
            Some(&1),
            "{out:?}"
        );
        assert_eq!(out.got.keys().collect::<Vec<_>>(), [&"web"], "a reset");
    };
    refused(r.give(&ask, no));
    refused(r.send("web", &syn));
    assert_eq!(r.asks(), []);
    let told = r.events();
    assert!(
        told.iter()
            .all(|e| e.kind == ConnEventKind::Deny && e.rule == ask.rule),
        "{told:?}"
    );
    assert_eq!(told.len(), 2);
    // Its time over, the question is open again.
    r.now_ns += 61 * SECOND_NS;
    r.waits("web", &syn);
    assert_eq!(r.asks().len(), 1);
}

#[test]
fn one_question_for_all_that_want_the_same() {
    let mut r = rig();
    let syns: Vec<_> = (0..5)
        .map(|i| WEB_DB().tcp((1000 + i, 5432), "S", 1, 0, b""))
        .collect();
    let out = r.send_all("web", &syns, Offload::default());
    assert_eq!(out, Outcome::default());
    // Retransmitted: the newest one stays.
    let again: Vec<_> = (0..5)
        .map(|i| WEB_DB().tcp((1000 + i, 5432), "S", 2, 0, b""))
        .collect();
    let out = r.send_all("web", &again, Offload::default());
    assert_eq!(out.drops[R::AskPending.name()], 5);
    let ask = r.asked();
    let yes = r.yes(&ask);
    let out = r.give(&ask, yes);
    assert_eq!(out.got["db"], again);
    assert_eq!(r.worker_values().conn_asked, 1);
}

#[test]
fn the_first_datagrams_come_in_their_order_ahead_of_later_ones() {
    let mut r = rig();
    let datagrams: Vec<_> = (0..5u8)
        .map(|i| WEB_DB().udp(1000, 53, &[i; 700]))
        .collect();
    let out = r.send_all("web", &datagrams, Offload::default());
    assert_eq!(out.drops[R::AskPending.name()], 2);
    let ask = r.asked();
    let yes = r.yes(&ask);
    let mut access = r.shared.verdicts.participant();
    r.shared.verdicts.give(&access, &Topic::of(&ask).key(), yes);
    access.offline();
    // The answer is there, and before the worker looks another one comes.
    let out = r.send("web", &datagrams[4]);
    assert_eq!(out.got["db"], [&datagrams[..3], &datagrams[4..]].concat());
}

#[test]
fn nobody_overtakes_who_waits_when_several_are_answered_at_once() {
    let mut r = rig();
    let other = || talk(3, "10.0.0.3", 2, "10.0.0.2");
    let datagram = |talk: Talk, n: u8| talk.udp(1000, 53, &[n; 32]);
    r.waits("web", &datagram(WEB_DB(), 0));
    r.waits("other", &datagram(other(), 1));
    let mut access = r.shared.verdicts.participant();
    for ask in r.asks() {
        let yes = r.yes(&ask);
        r.shared.verdicts.give(&access, &Topic::of(&ask).key(), yes);
    }
    access.offline();
    // Both have their answers, and before the worker looks more comes from both.
    r.leave("other", &datagram(other(), 3));
    let out = r.send("web", &datagram(WEB_DB(), 2));
    let ours: Vec<_> = out.got["db"].iter().map(|f| f[42]).collect();
    let order = |n| ours.iter().position(|found| *found == n).unwrap();
    assert_eq!(ours.len(), 4, "{ours:?}");
    assert!(order(0) < order(2) && order(1) < order(3), "{ours:?}");
    r.check_conservation();
}

#[test]
fn an_answer_for_one_connection_leaves_the_others_asking() {
    let mut r = rig();
    let syn = |sport| WEB_DB().tcp((sport, 5432), "S", 1, 0, b"");
    let out = r.send_all("web", &[syn(1000), syn(1001)], Offload::default());
    assert_eq!(out, Outcome::default());
    let ask = r.asked();
    let once = Answer {
        once: true,
        ..r.yes(&ask)
    };
    r.give_once(&ask, once).reached("db", &syn(1000));
    assert_eq!(r.asked().sport, 1001);
    // It was good for that one, once.
    let reset = WEB_DB().tcp((1000, 5432), "R", 2, 0, b"");
    r.send("web", &reset).reached("db", &reset);
    let out = r.send("web", &syn(1000));
    assert_eq!(out.got.len(), 0, "{out:?}");
}

#[test]
fn what_nobody_answers_is_denied_however_the_control_thread_fares() {
    let mut r = rig();
    r.waits("web", &WEB_DB().tcp((1000, 5432), "S", 1, 0, b""));
    r.now_ns += SECOND_NS;
    assert_eq!(r.step(), Outcome::default());
    r.now_ns += LATE_NS;
    r.step().dropped(R::PolicyAskDenied);
    r.check_conservation();
    // It may be asked again.
    r.waits("web", &WEB_DB().tcp((1000, 5432), "S", 1, 0, b""));
    assert_eq!(r.asks().len(), 2);
}

#[test]
fn nobody_takes_a_neighbours_room() {
    let mut r = rig();
    for i in 0..1000u16 {
        let out = r.send("web", &WEB_DB().udp(1, 1000 + i, b""));
        let over = usize::from(i) >= QUESTIONS_PER_PORT;
        assert_eq!(
            out.drops.get(R::AskOverBudget.name()),
            over.then_some(&1),
            "{i}"
        );
    }
    // Of one service, as many connections as frames are kept.
    let mut r2 = rig();
    for i in 0..100u16 {
        let out = r2.send("web", &WEB_DB().tcp((1000 + i, 5432), "S", 1, 0, b""));
        let over = usize::from(i) >= FRAMES_PER_PORT;
        assert_eq!(
            out.drops.get(R::AskOverBudget.name()),
            over.then_some(&1),
            "{i}"
        );
    }
    assert_eq!(r2.asks().len(), 1);
    for r in [&mut r, &mut r2] {
        let neighbours = talk(3, "10.0.0.3", 2, "10.0.0.2").tcp((1000, 5432), "S", 1, 0, b"");
        r.waits("other", &neighbours);
        let ask = r.asks().pop().unwrap();
        let yes = r.yes(&ask);
        r.give(&ask, yes).reached("db", &neighbours);
        // What needs no answer is not touched by it.
        let free = WEB_DB().udp(1, 7, b"");
        r.send("web", &free).reached("db", &free);
    }
}

#[test]
fn rules_that_change_meanwhile_are_those_that_decide() {
    let allow = |r: &mut Rule| r.action = Action::Allow;
    let deny = |r: &mut Rule| r.action = Action::Deny;
    let syn = WEB_DB().tcp((1000, 5432), "S", 1, 0, b"");
    let changed = |change: &dyn Fn(&mut Rule)| {
        let mut r = rig();
        r.waits("web", &syn);
        let mut p = policy();
        change(&mut p.rules[0]);
        r.apply(&p);
        let out = r.step();
        r.check_conservation();
        (r, out)
    };
    changed(&allow).1.reached("db", &syn);
    changed(&deny).1.dropped(R::PolicyDeny);
    let (mut r, out) = changed(&|rule| rule.log = true);
    assert_eq!(out, Outcome::default());
    let asks = r.asks();
    assert_eq!(asks.len(), 2, "asked anew");
    // An answer to the rule as it was is none.
    let old = Answer {
        definition: r.yes(&asks[0]).definition ^ 1,
        ..r.yes(&asks[1])
    };
    assert_eq!(r.give(&asks[1], old), Outcome::default());
    let yes = r.yes(&asks[1]);
    r.give(&asks[1], yes).reached("db", &syn);
}

#[test]
fn a_connection_goes_on_while_its_yes_stands() {
    let mut r = rig();
    let request = WEB_DB().udp(1000, 53, b"q");
    let answer = WEB_DB().back().udp(53, 1000, b"a");
    r.waits("web", &request);
    let ask = r.asked();
    let yes = r.yes(&ask);
    r.give(&ask, yes).reached("db", &request);
    // Other rules change: it is judged again, and nobody is asked.
    let mut p = policy();
    p.rules
        .push(rule("more", "web", "db", &["tcp/9"], Action::Allow));
    r.apply(&p);
    r.send("db", &answer).reached("web", &answer);
    r.apply(&policy());
    r.send("web", &request).reached("db", &request);
    assert_eq!(r.asks(), []);
    // Its answer taken back, it ends with the next change.
    let mut access = r.shared.verdicts.participant();
    r.shared.verdicts.take_back(&access, &Topic::of(&ask).key());
    access.offline();
    r.send("web", &request).reached("db", &request);
    r.apply(&p);
    let out = r.send("db", &answer);
    assert_eq!(out.drops.len(), 1, "{out:?}");
    assert_eq!(r.worker_values().conn_cut, 1);
}

#[test]
fn a_client_that_gives_up_is_not_waited_for() {
    let mut r = rig();
    r.waits("web", &WEB_DB().tcp((1000, 5432), "S", 1, 0, b""));
    let out = r.send("web", &WEB_DB().tcp((1000, 5432), "R", 2, 0, b""));
    assert_eq!(out.drops[R::AskCancelled.name()], 1);
    assert_eq!(out.drops[R::TcpNotSyn.name()], 1);
    let asks = r.asks();
    assert_eq!(
        asks.iter().map(|a| a.cancelled).collect::<Vec<_>>(),
        [false, true]
    );
    let yes = r.yes(&asks[0]);
    assert_eq!(r.give(&asks[0], yes), Outcome::default(), "nothing waits");
}

#[test]
fn frames_of_a_port_that_is_another_one_now_are_not_sent() {
    let mut r = rig();
    r.waits("web", &WEB_DB().tcp((1000, 5432), "S", 1, 0, b""));
    let ask = r.asked();
    r.renumber("web", 9);
    r.apply(&policy());
    let yes = r.yes(&ask);
    r.give(&ask, yes).dropped(R::AskCancelled);
    r.check_conservation();
}

#[test]
fn a_tag_and_ipv6_wait_as_well() {
    let mut r = rig();
    let ask6 = talk(1, "fd00::1", 2, "fd00::2").udp(1000, 53, &[1; 1200]);
    r.waits("web", &ask6);
    let ask = r.asked();
    let yes = r.yes(&ask);
    r.give(&ask, yes).reached("db", &ask6);
}

/// It makes no connection that could wait.
#[test]
fn a_broadcast_that_is_asked_about_is_denied_and_told() {
    let mut r = rig();
    let all = Talk {
        dst_mac: crate::packet::Mac::BROADCAST,
        dst: "10.0.0.255",
        ..WEB_DB()
    };
    let frame = all.udp(1000, 53, b"q");
    let out = r.send("web", &frame);
    assert_eq!(out.got.len(), 0, "{out:?}");
    assert_eq!(r.asks(), []);
    let told = r.events();
    let of_the_rule = |e: &&crate::event::ConnEvent| e.reason == Some(R::PolicyAskDenied);
    assert_eq!(told.iter().filter(of_the_rule).count(), 1, "{told:?}");
    // With a standing yes it passes.
    r.waits("web", &WEB_DB().udp(1000, 53, b"q"));
    let ask = r.asked();
    let yes = r.yes(&ask);
    r.give(&ask, yes);
    r.send("web", &frame).reached("db", &frame);
}

#[test]
fn what_must_be_recorded_waits_for_its_own_record_and_is_denied_where_there_is_none() {
    let mut p = policy();
    for (service, record) in [("udp/1", Record::New), ("udp/2", Record::Strict)] {
        let mut rule = rule(
            &service.replace('/', "-"),
            "web",
            "db",
            &[service],
            Action::Allow,
        );
        rule.require_record = record;
        p.rules.push(rule);
    }
    let mut r = Rig::new(layout(), &p);
    let records = std::sync::Arc::clone(r.shared.verdicts.records());
    let set = |yes| records.store(yes, std::sync::atomic::Ordering::Relaxed);
    // It is told, too.
    let denied = |out: &Outcome| assert_eq!(out.drops[R::PolicyAskDenied.name()], 1, "{out:?}");
    let datagram = |sport, dport| WEB_DB().udp(sport, dport, b"");
    denied(&r.send("web", &datagram(1000, 1)));
    assert_eq!(r.asks(), []);

    set(true);
    let waiting = [datagram(1000, 1), datagram(1001, 1), datagram(1000, 2)];
    for frame in &waiting {
        r.waits("web", frame);
    }
    let asks = r.asks();
    let sports: Vec<_> = asks.iter().map(|e| (e.sport, e.dport)).collect();
    assert_eq!(sports, [(1000, 1), (1001, 1), (1000, 2)], "each for itself");
    for (ask, frame) in asks.iter().zip(&waiting) {
        let once = Answer {
            once: true,
            expires_ns: r.now_ns + 5 * SECOND_NS,
            ..r.yes(ask)
        };
        r.give_once(ask, once).reached("db", frame);
    }
    // They go on, also when rules change and the record's time is over.
    r.now_ns += 20 * SECOND_NS;
    p.rules
        .push(rule("more", "web", "db", &["tcp/9"], Action::Allow));
    r.apply(&p);
    for frame in &waiting {
        r.send("web", frame).reached("db", frame);
    }
    // Nothing can be recorded: nothing new, and of the strict rule nothing at all.
    set(false);
    p.rules.pop();
    r.apply(&p);
    for frame in waiting.iter().take(2) {
        r.send("web", frame).reached("db", frame);
    }
    denied(&r.send("web", &datagram(1000, 2)));
    denied(&r.send("web", &datagram(1002, 1)));
    assert_eq!(r.asks(), []);
    r.check_conservation();
}
