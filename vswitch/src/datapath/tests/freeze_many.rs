//! Frozen connections in numbers: ten thousand are held, and a hundred thousand are not.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, LazyLock};

use flowtable::{Endpoint, FlowKey, New, Side};

use super::rig::*;
use crate::datapath::conn::{self, Admission};
use crate::datapath::freeze::{Errand, Outcome as Became, Phase, Record};
use crate::datapath::quarantine::{Kept, Quarantine};
use crate::datapath::quota::GroupId;
use crate::datapath::snapshot::AttachmentId;
use crate::datapath::tcp::{self, Segment};
use crate::frame::Offload;
use crate::packet::{self, Addr, tcp_flag};
use crate::policy::RuleId;
use crate::policy::model::{Action, Policy};

/// What may be kept of one workload, and frozen of one peer (`control/quarantine`).
const KEPT: u16 = 256;
const PEERS: u8 = 10;
const GUESTS: u8 = 4 * PEERS;
/// Their connections come from here on.
const SPORT: u16 = 1000;
const SECOND_NS: u64 = 1_000_000_000;

fn policy() -> Policy {
    Policy {
        rules: vec![rule("all", "any", "any", &["tcp"], Action::Allow)],
        ..Policy::default()
    }
}

/// Names and addresses of guests.
static NUMBERED: LazyLock<Vec<[String; 2]>> = LazyLock::new(|| {
    let of = |n| [format!("guest-{n}"), format!("10.0.0.{n}")];
    (0..=u8::MAX).map(of).collect()
});

fn ip(n: u8) -> &'static str {
    &NUMBERED[usize::from(n)][1]
}

fn numbered(n: u8) -> Guest {
    guest(&NUMBERED[usize::from(n)][0], n, &[ip(n)], "x")
}

/// Attachments are numbered in the order of the layout, addresses too.
fn end(n: u8, port: u16) -> Endpoint {
    Endpoint {
        addr: Addr::from(ip(n).parse::<std::net::IpAddr>().unwrap()),
        port,
        attachment: 100 + u32::from(n),
    }
}

fn key(from: u8, to: u8, (sport, dport): (u16, u16)) -> (FlowKey, Side) {
    FlowKey::new(0, packet::proto::TCP, &end(from, sport), &end(to, dport))
}

/// Puts these into quarantine, with these connections frozen at the end that opened them.
fn freeze(
    r: &mut Rig,
    guests: impl Iterator<Item = u8>,
    all: &HashMap<FlowKey, (Side, Arc<Record>)>,
    errands: Vec<Arc<Errand>>,
) {
    let held = guests.map(|n| AttachmentId(end(n, 0).attachment));
    let kept = all.iter().map(|(key, (initiator, record))| {
        let kept = Kept {
            initiator: *initiator,
            carried: Arc::default(),
            frozen: [None, Some(Arc::clone(record))],
        };
        (*key, kept)
    });
    let quarantine = Quarantine::new(held.collect(), kept.collect());
    r.quarantine = Some(Arc::new(quarantine.with_errands(errands)));
    r.apply(&policy());
}

fn segments<'a>(frames: impl IntoIterator<Item = &'a Vec<u8>>) -> Vec<packet::Parsed> {
    let parse = |f: &Vec<u8>| packet::parse(f, u32::try_from(f.len()).unwrap()).unwrap();
    frames.into_iter().map(parse).collect()
}

#[test]
fn ten_thousand_are_held_and_go_on() {
    let ports = ["g0", "g1", "g2", "g3"].into_iter().zip(0..);
    let mut layout: Vec<_> = ports
        .map(|(name, at)| {
            let guests = (1..=PEERS).map(|n| numbered(at * PEERS + n));
            RigPort {
                max_connections: Some(4096),
                ..port(name, guests.collect())
            }
        })
        .collect();
    let peers = GUESTS + 1..=GUESTS + PEERS;
    layout.push(port("peers", peers.map(numbered).collect()));
    let mut r = Rig::with_capacity(layout, &policy(), 1 << 15);
    // The port of a guest, and the peer that all its connections are with.
    let at = |n: u8| ["g0", "g1", "g2", "g3"][usize::from((n - 1) / PEERS)];
    let peer = |n: u8| GUESTS + 1 + (n - 1) % PEERS;
    let there = |n: u8| talk(n, ip(n), peer(n), ip(peer(n)));
    let sports = SPORT..SPORT + KEPT;

    let mut all = HashMap::new();
    for n in 1..=GUESTS {
        let (t, b) = (there(n), there(n).back());
        let of = |frame: &dyn Fn(u16) -> Vec<u8>| sports.clone().map(frame).collect::<Vec<_>>();
        for (from, to, frames) in [
            (at(n), "peers", of(&|s| t.tcp((s, 80), "S", 100, 0, b""))),
            ("peers", at(n), of(&|s| b.tcp((80, s), "SA", 500, 101, b""))),
            (at(n), "peers", of(&|s| t.tcp((s, 80), "A", 101, 501, b""))),
        ] {
            assert_eq!(
                r.send_all(from, &frames, Offload::default()).got[to],
                frames
            );
        }
        for sport in sports.clone() {
            let (key, initiator) = key(n, peer(n), (sport, 80));
            all.insert(key, (initiator, Arc::default()));
        }
    }
    assert_eq!(all.len(), 10_240);
    freeze(&mut r, 1..=GUESTS, &all, Vec::new());

    // Their peers have something to say, and then ask every now and then whether anybody is there.
    let data = |n: u8, sport: u16| there(n).back().tcp((80, sport), "PA", 501, 101, b"data");
    for round in 0..3 {
        for n in 1..=GUESTS {
            let frames: Vec<_> = sports
                .clone()
                .map(|sport| match round {
                    0 => data(n, sport),
                    _ => there(n).back().tcp((80, sport), "A", 500, 101, b""),
                })
                .collect();
            let got = r.send_all("peers", &frames, Offload::default());
            let answers = segments(&got.got["peers"]);
            assert_eq!(answers.len(), frames.len());
            for p in &answers {
                let t = p.tcp;
                assert_eq!((p.src_mac, t.seq, t.ack, t.window), (mac(n), 101, 501, 0));
            }
            assert!(!got.got.contains_key(at(n)), "it is paused");
        }
        r.now_ns += 300 * SECOND_NS;
        r.step();
    }
    assert_eq!(r.shared.table.len(), all.len());

    // They all go on at once, each guest with what was put aside, and each peer with a window.
    let errand = |n: u8| {
        let of = all.iter().filter(|(key, _)| {
            let mut ends = [key.low(), key.high()].into_iter();
            ends.any(|e| e.attachment == end(n, 0).attachment)
        });
        let records = of.map(|(key, (_, record))| (*key, Arc::clone(record)));
        Arc::new(Errand::new(records.collect()))
    };
    let errands: Vec<_> = (1..=GUESTS).map(errand).collect();
    for (_, record) in all.values() {
        assert!(record.advance(Phase::Frozen, Phase::GoesOn));
    }
    freeze(&mut r, 1..=GUESTS, &all, errands.clone());
    errands.iter().for_each(|errand| errand.go());
    let mut got = Outcome::default();
    // Sixteen a millisecond, and one of these ends each errand.
    let steps = all.len().div_ceil(16) + 2 * errands.len();
    for _ in 0..steps {
        let some = r.step();
        assert_eq!(some.drops, Default::default());
        for (port, frames) in some.got {
            got.got.entry(port).or_default().extend(frames);
        }
        r.now_ns += 1_000_000;
    }
    assert!(errands.iter().all(|errand| errand.is_done()));
    let mut outcomes = all.values().map(|(_, record)| record.outcome());
    assert!(outcomes.all(|outcome| outcome == Some(Became::Continues)));
    let guests = (1..=GUESTS).flat_map(|n| sports.clone().map(move |sport| (n, sport)));
    let want: HashSet<_> = guests.map(|(n, sport)| data(n, sport)).collect();
    let reached = got.got.iter().filter(|(port, _)| **port != "peers");
    let reached: Vec<_> = reached.flat_map(|(_, frames)| frames.clone()).collect();
    assert_eq!(reached.len(), want.len());
    assert_eq!(HashSet::from_iter(reached), want);
    let windows = segments(&got.got["peers"]);
    assert_eq!(windows.len(), want.len());
    assert!(windows.iter().all(|p| p.tcp.window == 64_000));
}

#[test]
fn nobody_who_thaws_waits_for_another_ones_guest() {
    let guests = vec![numbered(1), numbered(2)];
    let layout = vec![port("guests", guests), port("peer", vec![numbered(3)])];
    let mut r = Rig::new(layout, &policy());
    let mut all = HashMap::new();
    for n in [1, 2] {
        let (t, b) = (talk(n, ip(n), 3, ip(3)), talk(3, ip(3), n, ip(n)));
        for (from, to, f) in [
            ("guests", "peer", t.tcp((SPORT, 80), "S", 100, 0, b"")),
            ("peer", "guests", b.tcp((80, SPORT), "SA", 500, 101, b"")),
            ("guests", "peer", t.tcp((SPORT, 80), "A", 101, 501, b"")),
        ] {
            r.send(from, &f).reached(to, &f);
        }
        let (key, initiator) = key(n, 3, (SPORT, 80));
        all.insert(key, (initiator, Arc::<Record>::default()));
    }
    freeze(&mut r, 1..=2, &all, Vec::new());
    // One went back to a snapshot, and does not say what it remembers.
    let errands = [(1, Phase::Compared), (2, Phase::GoesOn)].map(|(n, to)| {
        let (key, _) = key(n, 3, (SPORT, 80));
        let record = Arc::clone(&all[&key].1);
        record.advance(Phase::Frozen, to);
        Arc::new(Errand::new(vec![(key, record)]))
    });
    freeze(&mut r, 1..=2, &all, errands.to_vec());
    errands.iter().for_each(|errand| errand.go());
    for _ in 0..10 {
        r.step();
        r.now_ns += 1_000_000;
    }
    assert_eq!(
        errands.each_ref().map(|errand| errand.is_done()),
        [false, true]
    );
    for _ in 0..40 {
        r.now_ns += SECOND_NS;
        r.step();
    }
    assert!(errands[0].is_done(), "it has had its time");
}

#[test]
fn who_opened_a_hundred_thousand_connections_cannot_pin_them() {
    const ALL: u32 = 100_000;
    let layout = ["suspect", "db"].into_iter().zip(1..);
    let layout = layout.map(|(name, n)| RigPort {
        max_connections: Some(ALL),
        ..port(name, vec![numbered(n)])
    });
    let mut r = Rig::with_capacity(layout.collect(), &policy(), 1 << 17);
    let ports = (0..ALL).map(|n| {
        let port = |n: u32| u16::try_from(n).unwrap();
        (SPORT + port(n / 4), 80 + port(n % 4))
    });
    // It is frozen with as many as it may keep.
    let frozen: Vec<_> = ports.clone().take(KEPT.into()).collect();
    let (t, b) = (talk(1, ip(1), 2, ip(2)), talk(2, ip(2), 1, ip(1)));
    for (sport, dport) in frozen.iter().copied() {
        for (from, to, f) in [
            ("suspect", "db", t.tcp((sport, dport), "S", 100, 0, b"")),
            ("db", "suspect", b.tcp((dport, sport), "SA", 500, 101, b"")),
            ("suspect", "db", t.tcp((sport, dport), "A", 101, 501, b"")),
        ] {
            r.send(from, &f).reached(to, &f);
        }
    }
    // The others are there without the frames that opened them, which would take long.
    let snapshot = r.shared.snapshots.current();
    let suspect = snapshot.by_attachment(AttachmentId(end(1, 0).attachment));
    let middle = Segment {
        tcp: packet::Tcp {
            flags: tcp_flag::ACK,
            ..packet::Parsed::EMPTY.tcp
        },
        payload_len: 0,
    };
    let admission = Admission {
        rule: RuleId(0),
        limited: false,
        logged: false,
        group: GroupId::NONE,
    };
    let mut table = r.shared.table.participant();
    for ports in ports.clone().skip(KEPT.into()) {
        let (key, initiator) = key(1, 2, ports);
        let new = New {
            initiator,
            word: conn::word(r.shared.snapshots.generation()),
            tick: u32::try_from(r.now_ns / SECOND_NS).unwrap(),
            user: conn::new_words(admission, 0),
            far: Some(tcp::start(&middle)),
        };
        assert!(r.shared.quotas.take(&snapshot, suspect.unwrap()));
        assert!(!table.insert_or_get(&key, new).unwrap().existed);
    }
    table.offline();
    drop(snapshot);
    assert_eq!(r.open_connections("suspect"), u64::from(ALL));

    let all = frozen.iter().map(|ports| {
        let (key, initiator) = key(1, 2, *ports);
        (key, (initiator, Arc::default()))
    });
    freeze(&mut r, 1..=1, &all.collect(), Vec::new());
    let probe = |(sport, dport): (u16, u16)| b.tcp((dport, sport), "A", 500, 101, b"");
    let probes = |ports: &[(u16, u16)]| ports.iter().copied().map(probe).collect::<Vec<_>>();
    let told = |r: &mut Rig, ports: &[(u16, u16)]| {
        let got = r.send_all("db", &probes(ports), Offload::default());
        assert!(!got.got.contains_key("suspect"));
        segments(&got.got["db"])
    };
    // Whatever else the database has of it is reset as soon as it looks.
    let rest: Vec<_> = ports.skip(KEPT.into()).step_by(100).collect();
    for some in rest.chunks(512) {
        let resets = told(&mut r, some);
        assert_eq!(resets.len(), some.len());
        assert!(resets.iter().all(|p| p.tcp.flags & tcp_flag::RST != 0));
    }
    let answers = told(&mut r, &frozen);
    assert_eq!(answers.len(), frozen.len());
    assert!(answers.iter().all(|p| p.tcp.flags == tcp_flag::ACK));
    // And what it does not look at is forgotten here.
    r.pass_secs(5);
    assert_eq!(r.shared.table.len(), frozen.len());
    assert_eq!(r.open_connections("suspect"), u64::from(KEPT));
}
