//! Decoys, over mem ports: what is answered, what is evidence, and what is neither.

use super::rig::*;
use crate::datapath::quarantine::Quarantine;
use crate::datapath::snapshot::AttachmentId;
use crate::drop_reason::DropReason as R;
use crate::event::{ConnEvent, ConnEventKind, Detector};
use crate::packet::{self, Parsed, tcp_flag};
use crate::policy::RuleId;
use crate::policy::model::{Action, Policy, Rule, Segment};

const A_B: fn() -> Talk = || talk(1, "10.0.0.1", 2, "10.0.0.2");
const A_B6: fn() -> Talk = || talk(1, "fd00::1", 2, "fd00::2");

const SYN_ACK: u8 = tcp_flag::SYN | tcp_flag::ACK;

fn layout() -> Vec<RigPort> {
    let inside = Guest {
        vlan: Some(20),
        ..guest("inside", 4, &["10.0.0.4"], "web")
    };
    vec![
        port("a", vec![guest("a", 1, &["10.0.0.1", "fd00::1"], "web")]),
        port("b", vec![guest("b", 2, &["10.0.0.2", "fd00::2"], "db")]),
        RigPort {
            guard_off: true,
            ..port("open", vec![guest("open", 3, &["10.0.0.3"], "web")])
        },
        port("vm", vec![inside]),
        RigPort {
            routes: vec!["10.9.0.0/16".parse().unwrap()],
            ..port("router", vec![guest("router", 5, &["10.0.0.5"], "web")])
        },
        RigPort {
            uplink: true,
            ..port("up", vec![])
        },
    ]
}

/// `b` has no service but udp/53; whoever tries another one meets a decoy.
fn policy() -> Policy {
    Policy {
        segments: vec![segment("db", "db"), outside()],
        rules: vec![
            rule("dns", "any", "db", &["udp/53"], Action::Allow),
            rule("lure", "any", "db", &[], Action::Decoy),
            rule("lure-outside", "outside", "db", &[], Action::Decoy),
        ],
        ..Policy::default()
    }
}

fn rig() -> Rig {
    Rig::new(layout(), &policy())
}

fn read(frame: &[u8]) -> Parsed {
    packet::parse(frame, u32::try_from(frame.len()).unwrap()).unwrap()
}

/// What `port` alone got, where one frame was dropped for a decoy: the one segment.
#[track_caller]
fn answered(out: &Outcome, port: &str) -> Parsed {
    assert_eq!(
        out.drops.iter().collect::<Vec<_>>(),
        [(&"policy_decoy", &1)]
    );
    assert_eq!(out.got.keys().collect::<Vec<_>>(), [&port]);
    read(out.one(port))
}

/// Has a SYN answered; what acknowledges the answer.
#[track_caller]
fn open(r: &mut Rig, from: &str, t: Talk, (sport, dport): (u16, u16), isn: u32) -> u32 {
    let out = r.send(from, &t.tcp((sport, dport), "S", isn, 0, b""));
    let told = answered(&out, from);
    assert_eq!((told.tcp.flags, told.tcp.ack), (SYN_ACK, isn + 1));
    assert_eq!((told.sport, told.dport), (dport, sport));
    told.tcp.seq.wrapping_add(1)
}

/// What came with each piece of evidence.
fn evidence(r: &mut Rig) -> Vec<ConnEvent> {
    let mut events = r.events();
    events.retain(|e| e.kind == ConnEventKind::Decoy);
    events
}

fn bytes(r: &mut Rig) -> Vec<u64> {
    evidence(r).iter().map(|e| e.original_bytes).collect()
}

/// Who was suspected of meeting decoys.
fn lured(r: &mut Rig) -> Vec<AttachmentId> {
    let told = r.suspicions().into_iter();
    let told = told.filter(|e| e.detector == Detector::Decoy);
    told.map(|e| AttachmentId(e.attachment)).collect()
}

#[test]
fn a_connection_is_answered_in_anothers_stead_and_is_evidence() {
    for t in [A_B(), A_B6()] {
        let mut r = rig();
        let a = r.attachment("a");
        let ack = open(&mut r, "a", t, (1000, 22), 100);
        assert_eq!(bytes(&mut r), [] as [u64; 0], "a SYN is none");
        assert_eq!(lured(&mut r), []);

        r.send("a", &t.tcp((1000, 22), "A", 101, ack, b""))
            .dropped(R::PolicyDecoy);
        let seen = evidence(&mut r);
        let [seen] = &*seen else { panic!("{seen:?}") };
        assert_eq!((seen.src_attachment, seen.original_bytes), (a.0, 0));
        assert_eq!(seen.dst_attachment, r.attachment("b").0);
        assert_eq!((seen.sport, seen.dport), (1000, 22));
        let rule = r.classifier().rule_name(RuleId(seen.rule)).to_owned();
        assert_eq!(rule, "lure");
        assert_eq!(lured(&mut r), [a]);

        let out = r.send("a", &t.tcp((1000, 22), "AP", 101, ack, b"let me in"));
        let told = answered(&out, "a");
        assert_eq!((told.tcp.flags, told.tcp.seq), (tcp_flag::RST, ack));
        assert_eq!(bytes(&mut r), [9]);
        // The same service again is no news to the detector.
        assert_eq!(lured(&mut r), []);
        // Who goes on all the same talks to nobody.
        r.send("a", &t.tcp((1000, 22), "AP", 110, ack, b"more"))
            .dropped(R::TcpNotSyn);
        assert_eq!(bytes(&mut r), [] as [u64; 0]);
        assert_eq!(r.shared.table.len(), 0);
    }
}

#[test]
fn who_closes_is_reset_and_a_reset_is_not_answered() {
    let mut r = rig();
    let ack = open(&mut r, "a", A_B(), (1000, 22), 100);
    let out = r.send("a", &A_B().tcp((1000, 22), "FA", 101, ack, b""));
    assert_eq!(answered(&out, "a").tcp.flags, tcp_flag::RST);
    assert_eq!(bytes(&mut r), [0]);
    for flags in ["R", "RA"] {
        r.send("a", &A_B().tcp((1000, 22), flags, 101, ack, b""))
            .dropped(R::TcpNotSyn);
    }
    assert_eq!(bytes(&mut r), [] as [u64; 0]);
    // By then nobody knows the answer any more.
    r.pass_secs(200);
    r.send("a", &A_B().tcp((1000, 22), "A", 101, ack, b""))
        .dropped(R::TcpNotSyn);
    assert_eq!(bytes(&mut r), [] as [u64; 0]);
}

#[test]
fn what_did_not_see_the_answer_is_no_evidence() {
    let mut r = rig();
    let ack = open(&mut r, "a", A_B(), (1000, 22), 100);
    for (ports, seq, ack) in [
        ((1000, 22), 101, ack.wrapping_add(1)),
        ((1000, 22), 101, 1),
        ((1000, 22), 102, ack),
        ((1001, 22), 101, ack),
        ((1000, 23), 101, ack),
    ] {
        r.send("a", &A_B().tcp(ports, "AP", seq, ack, b"blind"))
            .dropped(R::TcpNotSyn);
    }
    // Nor is the right one from another workload: the cookie is for `a`.
    let open = talk(3, "10.0.0.3", 2, "10.0.0.2");
    r.send("open", &open.tcp((1000, 22), "A", 101, ack, b""))
        .dropped(R::TcpNotSyn);
    assert_eq!(bytes(&mut r), [] as [u64; 0]);
    assert_eq!(lured(&mut r), []);
}

#[test]
fn a_flood_gets_an_answer_for_each_frame_and_leaves_nothing_behind() {
    let mut r = rig();
    let syns: Vec<_> = (0..3000u16)
        .map(|n| A_B().tcp((10_000 + n, 22), "S", 7, 0, b""))
        .collect();
    let mut answers = 0;
    for burst in syns.chunks(32) {
        let out = r.send_all("a", burst, Default::default());
        assert_eq!(out.drops["policy_decoy"], burst.len() as u64);
        assert_eq!(out.got.keys().collect::<Vec<_>>(), [&"a"]);
        answers += out.got["a"].len();
        assert!(out.got["a"].iter().all(|told| told.len() <= burst[0].len()));
    }
    assert_eq!(answers, syns.len());
    assert_eq!(r.shared.table.len(), 0);
    let told: Vec<_> = r.suspicions().iter().map(|e| e.detector).collect();
    assert_eq!(told, [Detector::DeniedRate]);
}

#[test]
fn many_services_that_answer_are_a_port_scan_all_the_same() {
    let mut r = rig();
    for dport in 1..=30 {
        open(&mut r, "a", A_B(), (1000, dport), 100);
    }
    let told: Vec<_> = r.suspicions().iter().map(|e| e.detector).collect();
    assert_eq!(told, [Detector::PortScan]);
}

#[test]
fn other_protocols_are_evidence_at_once_and_get_no_answer() {
    let mut r = rig();
    let a = r.attachment("a");
    r.send("a", &A_B().udp(5000, 161, b"public"))
        .dropped(R::PolicyDecoy);
    assert_eq!(bytes(&mut r), [6]);
    assert_eq!(lured(&mut r), [a]);
    r.send("a", &A_B().ping(7, false)).dropped(R::PolicyDecoy);
    assert_eq!(bytes(&mut r).len(), 1);
    // An answer that comes too late is nobody's attempt.
    r.send("a", &A_B().udp(53, 40_000, b"late"))
        .dropped(R::PolicyDecoy);
    assert_eq!(bytes(&mut r), [] as [u64; 0]);
    let allowed = A_B().udp(5000, 53, b"who is");
    r.send("a", &allowed).reached("b", &allowed);
}

#[test]
fn only_a_workload_at_its_own_address_is_answered_or_guilty() {
    let mut r = rig();
    for (from, mac, src) in [
        ("up", 77, "198.51.100.1"),
        ("open", 3, "10.0.0.99"),
        ("router", 5, "10.9.1.1"),
    ] {
        let t = talk(mac, src, 2, "10.0.0.2");
        for frame in [t.tcp((1000, 22), "S", 1, 0, b""), t.udp(5000, 161, b"x")] {
            r.send(from, &frame).dropped(R::PolicyDecoy);
        }
        assert_eq!(bytes(&mut r), [] as [u64; 0], "{from}");
        assert_eq!(lured(&mut r), [], "{from}");
    }
    // They are, at the one that is declared.
    for (from, mac, src) in [("open", 3, "10.0.0.3"), ("router", 5, "10.0.0.5")] {
        open(&mut r, from, talk(mac, src, 2, "10.0.0.2"), (1, 22), 1);
    }
    // And a container inside a VM by its tag.
    let t = talk(4, "10.0.0.4", 2, "10.0.0.2");
    let syn = t.tcp((1000, 22), "S", 1, 0, b"");
    let out = r.send("vm", &tagged(&syn, 20));
    let told = out.one("vm");
    assert_eq!(told[12..16], [0x81, 0, 0, 20]);
    let plain = [&told[..12], &told[16..]].concat();
    assert_eq!(read(&plain).tcp.flags, SYN_ACK);
}

#[test]
fn fragments_get_no_answer() {
    let mut r = rig();
    let ack = open(&mut r, "a", A_B(), (1000, 22), 100);
    let first = |mut frame: Vec<u8>| {
        // More of it follows (RFC 791); the header's checksum is made anew.
        frame[20] = 0x20;
        let (ip, _) = etherparse::Ipv4Header::from_slice(&frame[14..34]).unwrap();
        frame[24..26].copy_from_slice(&ip.calc_header_checksum().to_be_bytes());
        frame
    };
    let (syn, data) = (
        first(A_B().tcp((1000, 22), "S", 1, 0, &[0; 4])),
        first(A_B().tcp((1000, 22), "AP", 101, ack, &[0; 4])),
    );
    r.send("a", &syn).dropped(R::PolicyDecoy);
    r.send("a", &data).dropped(R::TcpNotSyn);
    assert_eq!(bytes(&mut r), [] as [u64; 0]);
}

#[test]
fn a_staged_decoy_is_only_reported() {
    let staged = Policy {
        rules: vec![
            Rule {
                staged: true,
                ..rule("lure", "any", "db", &[], Action::Decoy)
            },
            rule("all", "any", "db", &[], Action::Allow),
        ],
        ..policy()
    };
    let mut r = Rig::new(layout(), &staged);
    let syn = A_B().tcp((1000, 22), "S", 100, 0, b"");
    r.send("a", &syn).reached("b", &syn);
    let kinds: Vec<_> = r.events().iter().map(|e| e.kind).collect();
    assert_eq!(kinds, [ConnEventKind::Staged]);
}

#[test]
fn what_a_new_decoy_ends_is_reset_and_no_evidence() {
    let allowed = Policy {
        rules: vec![rule("all", "any", "db", &[], Action::Allow)],
        ..policy()
    };
    let mut r = Rig::new(layout(), &allowed);
    let t = A_B();
    for (from, frame) in [
        ("a", t.tcp((1000, 22), "S", 100, 0, b"")),
        ("b", t.back().tcp((22, 1000), "SA", 500, 101, b"")),
        ("a", t.tcp((1000, 22), "A", 101, 501, b"")),
    ] {
        assert_eq!(r.send(from, &frame).drops.len(), 0);
    }
    r.apply(&policy());
    let out = r.send("a", &t.tcp((1000, 22), "AP", 101, 501, b"on"));
    assert_eq!(answered(&out, "a").tcp.flags, tcp_flag::RST);
    assert_eq!(bytes(&mut r), [] as [u64; 0]);
    assert_eq!(lured(&mut r), []);
    assert_eq!(r.worker_values().conn_cut, 1);
    // Then there is a decoy like any other.
    open(&mut r, "a", t, (1000, 22), 300);
}

#[test]
fn a_stream_that_may_be_picked_up_is_no_evidence() {
    let loose = Policy {
        segments: vec![
            Segment {
                loose: true,
                ..segment("db", "db")
            },
            outside(),
        ],
        ..policy()
    };
    let mut r = Rig::new(layout(), &loose);
    r.send("a", &A_B().tcp((1000, 22), "A", 101, 501, b""))
        .dropped(R::PolicyDecoy);
    assert_eq!(bytes(&mut r), [] as [u64; 0]);
    assert_eq!(lured(&mut r), []);
}

#[test]
fn quarantine_comes_first() {
    let mut r = rig();
    let held = std::collections::HashSet::from([r.attachment("a")]);
    let quarantine = Quarantine::new(held, std::collections::HashMap::new());
    r.quarantine = Some(std::sync::Arc::new(quarantine));
    r.apply(&policy());
    let out = r.send("a", &A_B().tcp((1000, 22), "S", 100, 0, b""));
    assert_eq!(out.drops.keys().collect::<Vec<_>>(), [&"quarantined"]);
    assert_eq!(read(out.one("a")).tcp.flags & tcp_flag::RST, tcp_flag::RST);
    assert_eq!(bytes(&mut r), [] as [u64; 0]);
}
