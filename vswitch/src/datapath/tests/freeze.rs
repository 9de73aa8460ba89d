//! Frozen connections: what their peers are told, and what both ends are told afterwards.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use etherparse::{PacketBuilder, TcpOptionElement};
use flowtable::{Endpoint, FlowKey, Side};

use super::rig::*;
use crate::datapath::freeze::{Errand, Outcome as Became, Phase, Record};
use crate::datapath::quarantine::{Kept, Quarantine};
use crate::datapath::snapshot::AttachmentId;
use crate::drop_reason::DropReason as R;
use crate::packet::segment::Timestamps;
use crate::packet::{self, Addr, Parsed, tcp_flag};
use crate::policy::model::{Action, Policy};

/// Attachments are numbered in the order of the layout.
const A: u32 = 101;
const B: u32 = 102;
const SECOND_NS: u64 = 1_000_000_000;
const ACK: u8 = tcp_flag::ACK;
const RESET: u8 = tcp_flag::RST | tcp_flag::ACK;

fn policy() -> Policy {
    Policy {
        rules: vec![rule("all", "any", "any", &["tcp", "udp"], Action::Allow)],
        ..Policy::default()
    }
}

/// `a`, whose connections are frozen, has opened one to `b`, sent up to 101 and acknowledged 501.
struct Net {
    r: Rig,
    records: Vec<(FlowKey, Arc<Record>)>,
}

fn key(protocol: u8, sport: u16) -> (FlowKey, Side) {
    let end = |addr: &str, port, attachment| Endpoint {
        addr: Addr::from(addr.parse::<std::net::IpAddr>().unwrap()),
        port,
        attachment,
    };
    let (a, b) = (end("10.0.0.1", sport, A), end("10.0.0.2", 80, B));
    FlowKey::new(0, protocol, &a, &b)
}

/// From a to b.
fn out(flags: &str, seq: u32, ack: u32, payload: &[u8]) -> Vec<u8> {
    talk(1, "10.0.0.1", 2, "10.0.0.2").tcp((1000, 80), flags, seq, ack, payload)
}

/// From b to a.
fn back(flags: &str, seq: u32, ack: u32, payload: &[u8]) -> Vec<u8> {
    talk(2, "10.0.0.2", 1, "10.0.0.1").tcp((80, 1000), flags, seq, ack, payload)
}

/// The same with timestamps.
fn stamped(from_a: bool, seq: u32, ack: u32, payload: &[u8], (value, echo): (u32, u32)) -> Vec<u8> {
    let (a, b) = (
        (mac(1).0, [10, 0, 0, 1], 1000),
        (mac(2).0, [10, 0, 0, 2], 80),
    );
    let (from, to) = if from_a { (a, b) } else { (b, a) };
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(from.0, to.0)
        .ipv4(from.1, to.1, 64)
        .tcp(from.2, to.2, seq, 64_000)
        .ack(ack)
        .options(&[TcpOptionElement::Timestamp(value, echo)])
        .unwrap()
        .write(&mut frame, payload)
        .unwrap();
    frame
}

impl Net {
    /// Frozen from now on: a connection, and datagrams.
    fn new() -> Self {
        Net::with(&[(6, 1000), (17, 1000)])
    }

    /// The same of these, by protocol and port.
    fn with(what: &[(u8, u16)]) -> Self {
        let one = |name, n, ip| port(name, vec![guest(name, n, &[ip], name)]);
        let layout = vec![one("a", 1, "10.0.0.1"), one("b", 2, "10.0.0.2")];
        let mut r = Rig::new(layout, &policy());
        for (from, to, f) in [
            ("a", "b", out("S", 100, 0, b"")),
            ("b", "a", back("SA", 500, 101, b"")),
            ("a", "b", out("A", 101, 501, b"")),
        ] {
            r.send(from, &f).reached(to, &f);
        }
        let udp = talk(1, "10.0.0.1", 2, "10.0.0.2").udp(1000, 80, b"x");
        r.send("a", &udp).reached("b", &udp);
        let records = what.iter().map(|(protocol, sport)| {
            let (key, _) = key(*protocol, *sport);
            (key, Arc::default())
        });
        let mut net = Net {
            r,
            records: records.collect(),
        };
        net.publish(Vec::new());
        net
    }

    fn publish(&mut self, errands: Vec<Arc<Errand>>) {
        let kept = self.records.iter().map(|(key_of, record)| {
            let ports = [key_of.low(), key_of.high()].map(|end| end.port);
            let sport = ports.into_iter().find(|port| *port != 80).unwrap();
            let (key, initiator) = key(key_of.proto(), sport);
            let kept = Kept {
                initiator,
                carried: Arc::default(),
                frozen: [None, Some(Arc::clone(record))],
            };
            (key, kept)
        });
        let held = HashSet::from([AttachmentId(A)]);
        let quarantine = Quarantine::new(held, kept.collect::<HashMap<_, _>>());
        self.r.quarantine = Some(Arc::new(quarantine.with_errands(errands)));
        self.r.apply(&policy());
    }

    /// The peer sends this: what it is answered. Nothing reaches the guest.
    #[track_caller]
    fn peer(&mut self, frame: &[u8], drops: &[(R, u64)]) -> Option<(Parsed, Option<Timestamps>)> {
        self.r.now_ns += SECOND_NS;
        let got = self.r.send("b", frame);
        let want = drops.iter().map(|(reason, n)| (reason.name(), *n));
        assert_eq!(got.drops, want.collect());
        assert!(!got.got.contains_key("a"), "{got:?}");
        got.got.get("b").map(|frames| {
            assert_eq!(frames.len(), 1);
            segment(&frames[0])
        })
    }

    /// Moves the connections on, and has both ends told. The worker looks at what it has to do for this long.
    fn thaw(&mut self, to: Phase, secs: u64) -> Outcome {
        for (_, record) in &self.records {
            record.advance(Phase::Frozen, to);
        }
        self.told(secs)
    }

    fn told(&mut self, secs: u64) -> Outcome {
        let errand = Arc::new(Errand::new(self.records.clone()));
        self.publish(vec![Arc::clone(&errand)]);
        assert_eq!(self.r.step(), Outcome::default(), "before all workers know");
        errand.go();
        let mut all = Outcome::default();
        for _ in 0..secs * 4 {
            let some = self.r.step();
            for (port, frames) in some.got {
                all.got.entry(port).or_default().extend(frames);
            }
            for (reason, n) in some.drops {
                *all.drops.entry(reason).or_default() += n;
            }
            self.r.now_ns += SECOND_NS / 4;
        }
        all
    }

    fn became(&self) -> Option<Became> {
        self.records[0].1.outcome()
    }
}

fn segment(frame: &[u8]) -> (Parsed, Option<Timestamps>) {
    let p = packet::parse(frame, u32::try_from(frame.len()).unwrap()).unwrap();
    (p, Timestamps::of(frame, &p))
}

/// The numbers of the frames that somebody got: flags, number, acknowledgement, window.
fn numbers(outcome: &Outcome, port: &str) -> Vec<(u8, u32, u32, u16)> {
    let frames = outcome.got.get(port).into_iter().flatten();
    let tcp = frames.map(|frame| segment(frame).0.tcp);
    tcp.map(|t| (t.flags, t.seq, t.ack, t.window)).collect()
}

#[test]
fn a_peer_that_waits_is_told_that_the_guest_lives_and_takes_nothing() {
    const DROPPED: &[(R, u64)] = &[(R::Frozen, 1)];
    // What it sends, what is dropped, and whether it is answered.
    for (frame, drops, is_answered) in [
        // Data: the first is put aside.
        (back("PA", 501, 101, b"data"), &[][..], true),
        (back("PA", 505, 101, b"data"), DROPPED, true),
        (back("FA", 501, 101, b""), &[], true),
        // A keep-alive probe, and one with a byte in it; a window probe.
        (back("A", 500, 101, b""), DROPPED, true),
        (back("A", 500, 101, b"x"), DROPPED, true),
        // What carries nothing is not answered, so two of us would not talk for ever.
        (back("A", 501, 101, b""), DROPPED, false),
        (back("R", 501, 0, b""), &[], false),
        // What is no part of the connection.
        (
            back("PA", 501, 102, b"data"),
            &[(R::TcpOutOfWindow, 1)],
            false,
        ),
        (
            back("PA", 501 + 64_001, 101, b"data"),
            &[(R::TcpOutOfWindow, 1)],
            false,
        ),
        (
            back("A", 500u32.wrapping_sub(140_000), 101, b""),
            &[(R::TcpOutOfWindow, 1)],
            false,
        ),
        (back("R", 900_000, 0, b""), &[(R::TcpOutOfWindow, 1)], false),
        (back("S", 501, 0, b""), &[(R::TcpBadState, 1)], false),
        (back("SA", 500, 101, b""), &[(R::TcpBadState, 1)], false),
        (
            talk(2, "10.0.0.2", 1, "10.0.0.1").udp(80, 1000, b"x"),
            DROPPED,
            false,
        ),
    ] {
        let mut net = Net::new();
        let answer = net.peer(&frame, drops);
        assert_eq!(answer.is_some(), is_answered, "{frame:x?}");
        let Some((p, stamps)) = answer else { continue };
        assert_eq!((p.src_mac, p.dst_mac), (mac(1), mac(2)));
        assert_eq!((p.sport, p.dport), (1000, 80));
        let t = p.tcp;
        assert_eq!((t.flags, t.seq, t.ack, t.window), (ACK, 101, 501, 0));
        assert_eq!(stamps, None);
        assert_eq!(net.records[0].1.counts(), (1, 1));
    }
}

#[test]
fn answers_carry_the_timestamps_of_what_they_answer_and_are_few() {
    let mut net = Net::new();
    let (_, stamps) = net
        .peer(&stamped(false, 501, 101, b"data", (7000, 3000)), &[])
        .unwrap();
    assert_eq!(
        stamps,
        Some(Timestamps {
            value: 3000,
            echo: 7000
        })
    );
    // A burst is one answer.
    let frames: Vec<_> = (0..32).map(|n| back("A", 501 + n, 101, b"x")).collect();
    net.r.now_ns += SECOND_NS;
    let got = net.r.send_all("b", &frames, Default::default());
    assert_eq!(got.got["b"].len(), 1);
    assert_eq!(net.records[0].1.counts(), (2, 33));
    // What it goes by has not moved, whatever was sent: later answers are the same.
    let (p, _) = net
        .peer(&back("A", 500, 101, b""), &[(R::Frozen, 1)])
        .unwrap();
    assert_eq!((p.tcp.seq, p.tcp.ack), (101, 501));
}

#[test]
fn the_guest_may_say_its_last_words() {
    let mut net = Net::new();
    let last = out("PA", 101, 501, b"bye");
    net.r.send("a", &last).reached("b", &last);
    let (p, _) = net
        .peer(&back("A", 500, 104, b""), &[(R::Frozen, 1)])
        .unwrap();
    assert_eq!((p.tcp.seq, p.tcp.ack), (104, 501));
}

#[test]
fn who_goes_on_gets_what_matters_and_the_peer_its_window() {
    let data = back("PA", 501, 101, b"first");
    let newer = back("PA", 501, 101, b"first, once more");
    let behind = back("PA", 506, 101, b"second");
    let fin = back("FA", 501, 101, b"");
    let reset = back("RA", 501, 101, b"");
    let update = (ACK, 101, 501, 64_000);
    // What the peer sends, what of it the guest gets, what the peer is told then.
    for (sends, gets, told, became) in [
        (vec![], None, vec![], Became::Continues),
        (vec![&data], Some(&data), vec![update], Became::Continues),
        (
            vec![&data, &behind, &newer],
            Some(&newer),
            vec![update],
            Became::Continues,
        ),
        (vec![&behind], None, vec![update], Became::Continues),
        (vec![&fin], Some(&fin), vec![update], Became::Continues),
        (vec![&data, &reset], Some(&reset), vec![], Became::PeerReset),
        (vec![&reset, &data], Some(&reset), vec![], Became::PeerReset),
    ] {
        let mut net = Net::new();
        for frame in &sends {
            net.r.now_ns += SECOND_NS;
            net.r.send("b", frame);
        }
        let got = net.thaw(Phase::GoesOn, 1);
        assert_eq!(got.drops, Default::default(), "{sends:x?}");
        assert_eq!(got.got.get("a").and_then(|f| f.first()), gets, "{sends:x?}");
        assert_eq!(numbers(&got, "b"), told, "{sends:x?}");
        assert_eq!(net.became(), Some(became), "{sends:x?}");
        assert_eq!(net.records[0].1.phase(), Phase::Over);
        if became == Became::Continues && !sends.contains(&&fin) {
            // As ever, in both directions.
            let (there, back) = (out("PA", 101, 501, b"on"), back("PA", 501, 103, b"and on"));
            net.r.send("a", &there).reached("b", &there);
            net.r.send("b", &back).reached("a", &back);
        }
    }
}

#[test]
fn what_the_guest_had_sent_need_not_be_sent_again() {
    let mut net = Net::new();
    let last = out("PA", 101, 501, b"last");
    net.r.send("a", &last).reached("b", &last);
    let got = back("A", 501, 105, b"");
    assert!(net.peer(&got, &[]).is_none(), "it is put aside");
    net.r.send("b", &back("A", 501, 105, b""));
    assert_eq!(net.thaw(Phase::GoesOn, 1).one("a"), got);
}

#[test]
fn who_went_back_goes_on_if_nothing_is_lost() {
    let data = || back("PA", 501, 101, b"data");
    let differs = |seq, ack| Became::Differs {
        says: (seq, ack),
        recorded: (101, 501, 501),
    };
    // What the guest says when it is asked, whether the peer gets it, and what becomes of the connection.
    for (says, passes, became) in [
        (out("A", 101, 501, b""), true, Became::Continues),
        (out("PA", 101, 501, b"new"), true, Became::Continues),
        (out("A", 90, 501, b""), false, differs(90, 501)),
        (out("A", 101, 490, b""), false, differs(101, 490)),
        (out("A", 103, 501, b""), false, differs(103, 501)),
        (out("R", 101, 0, b""), false, Became::NoSuch),
        (
            out("PA", 90, 490, b"old words, other words"),
            false,
            Became::Silent,
        ),
        (out("A", 100, 501, b""), false, Became::Silent),
        (out("S", 7, 0, b""), false, Became::Silent),
    ] {
        let mut net = Net::new();
        net.peer(&data(), &[]).unwrap();
        let asked = net.thaw(Phase::Compared, 1);
        // In the peer's name, with a number that any memory of it answers.
        let (p, _) = segment(asked.one("a"));
        assert_eq!(
            (p.src_mac, p.dst_mac, p.sport, p.dport),
            (mac(2), mac(1), 80, 1000)
        );
        assert_eq!((p.tcp.flags, p.tcp.ack), (ACK, 101));
        assert_eq!(p.tcp.seq, 501u32.wrapping_sub(1 << 30));
        assert!(!asked.got.contains_key("b"));
        // Meanwhile the peer hears nothing.
        let got = net.r.send("b", &data());
        assert_eq!(got.drops, std::collections::BTreeMap::from([("frozen", 1)]));
        assert!(!got.got.contains_key("b"), "{got:?}");
        let said = net.r.send("a", &says);
        let mut after = Outcome::default();
        for _ in 0..40 {
            net.r.now_ns += SECOND_NS;
            let more = net.r.step();
            for (port, frames) in more.got {
                after.got.entry(port).or_default().extend(frames);
            }
        }
        assert_eq!(net.became(), Some(became), "{says:x?}");
        let to_peer = numbers(&said, "b").into_iter().chain(numbers(&after, "b"));
        let to_peer: Vec<_> = to_peer.collect();
        let table = net.r.shared.table.participant();
        let is_there = table.lookup(&key(6, 1000).0).is_some();
        assert_eq!(is_there, passes, "{says:x?}");
        if passes {
            assert_eq!(said.got["b"], std::slice::from_ref(&says));
            assert!(after.got["a"].contains(&data()));
        } else {
            // Both ends are reset, exactly where they are, and nothing else reached the peer.
            assert_eq!(to_peer, [(RESET, 101, 501, 0)], "{says:x?}");
            let last = numbers(&after, "a").pop().unwrap();
            let (seq, ack) = match became {
                Became::Differs { says, .. } => says,
                _ => (101, 501),
            };
            assert_eq!(last, (RESET, ack, seq, 0), "{says:x?}");
        }
    }
}

#[test]
fn who_went_back_behind_what_the_peer_has_seen_of_its_clock_is_reset() {
    for (value, became) in [(3000, Became::Continues), (2999, Became::Clock)] {
        let mut net = Net::new();
        net.peer(
            &stamped(false, 500, 101, b"", (7000, 3000)),
            &[(R::Frozen, 1)],
        )
        .unwrap();
        let asked = net.thaw(Phase::Compared, 1);
        let (_, stamps) = segment(asked.one("a"));
        assert_eq!(
            stamps,
            Some(Timestamps {
                value: 7000,
                echo: 3000
            })
        );
        net.r
            .send("a", &stamped(true, 101, 501, b"", (value, 7000)));
        net.r.now_ns += SECOND_NS;
        net.r.step();
        assert_eq!(net.became(), Some(became));
    }
}

#[test]
fn what_takes_too_long_ends_for_the_peer_now_and_for_the_guest_when_it_runs() {
    let mut net = Net::new();
    net.peer(&back("PA", 501, 101, b"data"), &[]).unwrap();
    for (_, record) in &net.records {
        record.conclude(Phase::Frozen, Phase::Late, Became::Late);
    }
    let got = net.told(1);
    assert_eq!(numbers(&got, "b"), [(RESET, 101, 501, 0)]);
    assert!(!got.got.contains_key("a"), "{got:?}");
    assert_eq!(
        got.drops,
        std::collections::BTreeMap::from([("frozen", 1)]),
        "what was put aside"
    );
    assert_eq!(net.records[0].1.phase(), Phase::Owes);
    for (_, record) in &net.records {
        record.advance(Phase::Owes, Phase::Owed);
    }
    let got = net.told(1);
    assert_eq!(numbers(&got, "a"), [(RESET, 501, 101, 0)]);
    assert!(!got.got.contains_key("b"), "{got:?}");
    assert_eq!(net.became(), Some(Became::Late));
}

#[test]
fn a_guest_that_may_have_received_more_than_it_acknowledged_is_reset_at_both() {
    let mut net = Net::new();
    // Delivered before it was frozen, and never acknowledged.
    net.r.quarantine = None;
    net.r.apply(&policy());
    let data = back("PA", 501, 101, b"data");
    net.r.send("b", &data).reached("a", &data);
    net.publish(Vec::new());
    let (p, _) = net.peer(&back("PA", 501, 101, b"data"), &[]).unwrap();
    assert_eq!(
        p.tcp.ack, 501,
        "no byte that the guest has not acknowledged"
    );
    let got = net.thaw(Phase::Ends, 1);
    let resets: Vec<_> = numbers(&got, "a").iter().map(|n| (n.0, n.1)).collect();
    assert_eq!(resets, [(RESET, 501), (RESET, 505)]);
}

#[test]
fn a_frozen_connection_does_not_expire() {
    let mut net = Net::new();
    // An unanswered datagram is remembered for half a minute, a FIN for two.
    let fin = out("FA", 101, 501, b"");
    net.r.send("a", &fin).reached("b", &fin);
    net.r.pass_secs(300);
    assert_eq!(net.r.shared.table.len(), 2);
    net.thaw(Phase::GoesOn, 1);
    net.r.pass_secs(300);
    assert_eq!(net.r.shared.table.len(), 0);
}

#[test]
fn what_was_put_aside_is_dropped_with_a_connection_that_is_gone() {
    let mut net = Net::new();
    net.peer(&back("PA", 501, 101, b"data"), &[]).unwrap();
    // Policy cuts it.
    net.r.apply(&Policy::default());
    net.r.send("a", &out("PA", 101, 501, b"x"));
    for (_, record) in &net.records {
        record.advance(Phase::Frozen, Phase::GoesOn);
    }
    let got = net.told(1);
    assert_eq!(got.drops, std::collections::BTreeMap::from([("frozen", 1)]));
    assert_eq!(net.became(), Some(Became::Gone));
}

#[test]
fn what_was_put_aside_of_each_connection_reaches_the_guest() {
    let ports = 1000..1040u16;
    let all: Vec<_> = ports.clone().map(|port| (6, port)).collect();
    let mut net = Net::with(&all);
    net.r.quarantine = None;
    net.r.apply(&policy());
    let (t, b) = (
        talk(1, "10.0.0.1", 2, "10.0.0.2"),
        talk(2, "10.0.0.2", 1, "10.0.0.1"),
    );
    for port in ports.clone().skip(1) {
        for (from, to, f) in [
            ("a", "b", t.tcp((port, 80), "S", 100, 0, b"")),
            ("b", "a", b.tcp((80, port), "SA", 500, 101, b"")),
            ("a", "b", t.tcp((port, 80), "A", 101, 501, b"")),
        ] {
            net.r.send(from, &f).reached(to, &f);
        }
    }
    net.publish(Vec::new());
    let data = |port| b.tcp((80, port), "PA", 501, 101, b"data");
    for port in ports.clone() {
        net.peer(&data(port), &[]).unwrap();
    }
    let got = net.thaw(Phase::GoesOn, 1);
    assert_eq!(got.drops, Default::default());
    let want: HashSet<_> = ports.map(data).collect();
    assert_eq!(got.got["a"].iter().cloned().collect::<HashSet<_>>(), want);
    assert_eq!(got.got["b"].len(), want.len(), "a window for each");
}
