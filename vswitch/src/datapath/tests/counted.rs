//! Every counter there is moves for what it says: each reason to drop is provoked and asserted on, each event is seen, and no
//! number stays at zero. The lists are exhaustive by the compiler: whoever adds a reason, an event or a counter adds its case here.

use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;

use super::rig::*;
use crate::counters::{PortValues, WorkerValues};
use crate::datapath::quarantine::{Kept, Quarantine};
use crate::datapath::snapshot::AttachmentId;
use crate::drop_reason::DropReason as R;
use crate::event::ConnEventKind as Kind;
use crate::frame::{Csum, Gso, Offload};
use crate::packet::Mac;
use crate::policy::model::{Action, Ask, Limit, Otherwise, Policy, Rule};

const WEB_DB: fn() -> Talk = || talk(1, "10.0.0.1", 2, "10.0.0.2");
const WEB_DB6: fn() -> Talk = || talk(1, "fd00::1", 2, "fd00::2");

fn layout() -> Vec<RigPort> {
    vec![
        port(
            "web",
            vec![guest("web", 1, &["10.0.0.1", "fd00::1"], "web")],
        ),
        port("db", vec![guest("db", 2, &["10.0.0.2", "fd00::2"], "db")]),
        port("empty", vec![]),
        RigPort {
            uplink: true,
            ..port("up", vec![])
        },
    ]
}

fn without_uplink() -> Vec<RigPort> {
    let mut ports = layout();
    ports.pop();
    ports
}

/// Later than an answer may be: a second of deadline, and what the control thread gets beyond.
const LATE_NS: u64 = 7_000_000_000;

/// `web` may open anything to `db` but what another action is given for.
fn policy() -> Policy {
    let ask = Action::Ask(Ask::new(Otherwise::Deny));
    Policy {
        segments: vec![segment("web", "web"), segment("db", "db"), outside()],
        rules: vec![
            rule("deny", "web", "db", &["udp/1"], Action::Deny),
            rule("reject", "web", "db", &["udp/2"], Action::Reject),
            rule("decoy", "web", "db", &["udp/6"], Action::Decoy),
            rule("ask", "web", "db", &["udp/3", "udp/100-200", "tcp/3"], ask),
            Rule {
                limit: Some(Limit {
                    connections: Some(1),
                    bits: None,
                }),
                ..rule("limit", "web", "db", &["udp/4"], Action::Allow)
            },
            Rule {
                staged: true,
                ..rule("staged", "web", "db", &["udp/5"], Action::Deny)
            },
            rule("rest", "web", "db", &[], Action::Allow),
        ],
        ..Policy::default()
    }
}

fn rig() -> Rig {
    Rig::new(layout(), &policy())
}

/// A frame that would pass, with other bytes from `at` on.
fn changed(mut frame: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    frame
}

fn question() -> Vec<u8> {
    WEB_DB().udp(1000, 53, b"question")
}

fn question6() -> Vec<u8> {
    WEB_DB6().udp(1000, 53, b"question")
}

/// A question with these IPv6 extension headers before its UDP header (RFC 8200 section 4).
fn extended(first: u8, headers: &[u8]) -> Vec<u8> {
    let mut frame = question6();
    frame.splice(54..54, headers.iter().copied());
    let len = u16::try_from(frame.len() - 54).unwrap();
    changed(changed(frame, 18, &len.to_be_bytes()), 20, &[first])
}

/// An ARP request of `web` for `target` that says its sender is at `claimed` (RFC 826).
pub(super) fn arp(src_mac: u8, claimed: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let mut frame = [[0xff; 6], mac(src_mac).0].concat();
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend([&mac(src_mac).0[..], &claimed, &[0; 6], &target].concat());
    frame
}

/// A fragment of a datagram of `web`, from byte `offset` of its payload on.
fn fragment(id: u16, offset: u16, more: bool, payload: &[u8]) -> Vec<u8> {
    let field = (offset / 8) | (u16::from(more) << 13);
    let frame = changed(question(), 18, &id.to_be_bytes());
    let mut frame = changed(frame, 20, &field.to_be_bytes());
    frame.truncate(34);
    frame.extend(payload);
    let len = u16::try_from(frame.len() - 14).unwrap();
    let mut frame = changed(frame, 16, &len.to_be_bytes());
    let (ip, _) = etherparse::Ipv4Header::from_slice(&frame[14..34]).unwrap();
    frame[24..26].copy_from_slice(&ip.calc_header_checksum().to_be_bytes());
    frame
}

/// The start of a datagram's first fragment: a UDP header that says its length.
const FIRST: [u8; 16] = [3, 232, 0, 53, 5, 200, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];

/// Opens a connection of `web` to tcp/5432 of `db`; the next byte of `web` is 101, of `db` 501.
fn connect(r: &mut Rig, sport: u16) {
    let t = WEB_DB();
    for (from, to, frame) in [
        ("web", "db", t.tcp((sport, 5432), "S", 100, 0, b"")),
        (
            "db",
            "web",
            t.back().tcp((5432, sport), "SA", 500, 101, b""),
        ),
        ("web", "db", t.tcp((sport, 5432), "A", 101, 501, b"")),
    ] {
        r.send(from, &frame).reached(to, &frame);
    }
}

/// A test elsewhere that asserts that this reason was counted: what only a port of that kind does.
struct AtAPort {
    file: &'static str,
    test: &'static str,
}

/// Makes the switch drop a frame for this reason, and for no other.
fn provoke(reason: R) -> Option<AtAPort> {
    let at = |file, test| Some(AtAPort { file, test });
    let (mut r, q) = (rig(), question());
    let (from, frame) = match reason {
        // What a mem port cannot do.
        R::BadDescriptor => return at("tests/vhost/hostile.rs", "breaks"),
        R::TxBadDescriptor | R::TxNotReady => {
            return at(
                "tests/vhost/hostile.rs",
                "a_bad_receive_ring_drops_and_counts",
            );
        }
        R::PortRxError => {
            return at(
                "src/port/pcap.rs",
                "incomplete_and_oversized_frames_are_counted_drops",
            );
        }
        R::TxError => return at("src/port/pcap.rs", "what_a_full_disk_refuses_is_counted"),
        R::TxQueueFull | R::TxTooBig => {
            return at(
                "src/port/mem.rs",
                "full_rings_and_long_frames_are_refused_and_counted",
            );
        }
        // A tag's first half and nothing behind it.
        R::Runt => ("web", changed(q[..14].to_vec(), 12, &[0x81, 0])),
        // A byte more than a tagged packet of the MTU has.
        R::Oversize => ("web", WEB_DB().udp(1000, 53, &[0; 1477])),
        R::BadOffload | R::TooManySegments => {
            let gso_size = if reason == R::BadOffload { 0 } else { 1 };
            let request = Offload {
                csum: Csum::Partial,
                gso: Gso::TcpV4,
                gso_size,
            };
            connect(&mut r, 1);
            let f = WEB_DB().tcp((1, 5432), "A", 101, 501, &[0; 200]);
            r.send_all("web", &[f], request).dropped(reason);
            return None;
        }
        R::BadIpv4 => ("web", changed(q, 24, &[0, 0])),
        // A payload longer than the frame.
        R::BadIpv6 => ("web", changed(question6(), 18, &[0xff, 0xff])),
        // Hop-by-hop options behind destination options.
        R::BadIpv6Extension => (
            "web",
            extended(60, &[0, 0, 1, 4, 0, 0, 0, 0, 17, 0, 1, 4, 0, 0, 0, 0]),
        ),
        // A datagram shorter than its header.
        R::BadL4 => ("web", changed(q, 38, &[0, 7])),
        R::BadTcpFlags => ("web", WEB_DB().tcp((1, 5432), "SF", 1, 0, b"")),
        // Hardware of an unknown kind.
        R::BadArp => (
            "web",
            changed(arp(1, [10, 0, 0, 1], [10, 0, 0, 2]), 14, &[0, 9]),
        ),
        // A neighbour solicitation that came through a router (RFC 4861 section 7.1.1).
        R::BadNd => {
            let mut f = Vec::new();
            let target = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
            etherparse::PacketBuilder::ethernet2(mac(1).0, mac(2).0)
                .ipv6(
                    [&target[..15], &[1]].concat().try_into().unwrap(),
                    target,
                    64,
                )
                .icmpv6_raw(135, 0, [0; 4])
                .write(&mut f, &target)
                .unwrap();
            ("web", f)
        }
        R::HeadersTooLong => {
            // 232 bytes of destination options, all padding.
            let mut options = vec![17, 28, 1, 228];
            options.resize(232, 0);
            ("web", extended(60, &options))
        }
        R::BadSourceAddress => ("web", changed(q, 6, &[1])),
        R::VlanNotAllowed => ("web", tagged(&q, 99)),
        R::SpoofedMac => ("web", talk(77, "10.0.0.1", 2, "10.0.0.2").udp(1, 53, b"")),
        R::SpoofedIp => ("web", talk(1, "10.0.0.2", 2, "10.0.0.2").udp(1, 53, b"")),
        R::SpoofedArp => ("web", arp(1, [10, 0, 0, 2], [10, 0, 0, 9])),
        R::SpoofedFromUplink => ("up", talk(1, "192.0.2.1", 2, "10.0.0.2").udp(1, 53, b"")),
        R::DeclaredMacMoved => ("db", q),
        R::UnknownDestination => {
            r = Rig::new(without_uplink(), &policy());
            ("web", talk(1, "10.0.0.1", 77, "10.0.0.2").udp(1, 53, b""))
        }
        R::DestinationMismatch => ("web", talk(1, "10.0.0.1", 2, "10.0.0.77").udp(1, 53, b"")),
        R::SamePort => ("web", talk(1, "10.0.0.1", 1, "10.0.0.1").udp(1, 53, b"")),
        R::ReservedMulticast => ("web", changed(q, 0, &[1, 0x80, 0xc2, 0, 0, 0])),
        R::FloodBudget => {
            r = Rig::new(without_uplink(), &policy());
            let storm = Talk {
                dst_mac: Mac::BROADCAST,
                dst: "10.0.0.255",
                ..WEB_DB()
            };
            let f = storm.udp(1, 53, b"");
            // Copies a second, one for each receiver: `empty` is none.
            for _ in 0..20_000 {
                assert_eq!(r.send("web", &f).drops.len(), 0);
            }
            ("web", f)
        }
        R::NoReceiver => {
            let mut alone = layout();
            alone.truncate(1);
            r = Rig::new(alone, &policy());
            ("web", changed(q, 0, &[0xff; 6]))
        }
        R::UnknownNeighbour => {
            r = Rig::new(without_uplink(), &policy());
            ("web", arp(1, [10, 0, 0, 1], [10, 0, 0, 9]))
        }
        R::PolicyDefaultDeny => ("db", WEB_DB().back().udp(1, 53, b"")),
        R::PolicyDeny => ("web", WEB_DB().udp(9, 1, b"")),
        R::PolicyReject => {
            let out = r.send("web", &WEB_DB().udp(9, 2, b""));
            assert_eq!(
                out.drops.into_iter().collect::<Vec<_>>(),
                [(reason.name(), 1)]
            );
            // Its sender is told, and nobody else.
            assert_eq!(out.got.into_keys().collect::<Vec<_>>(), ["web"]);
            return None;
        }
        R::PolicyDecoy => ("web", WEB_DB().udp(9, 6, b"")),
        R::PolicyAskDenied => {
            let asked = WEB_DB().udp(9, 3, b"");
            assert_eq!(r.send("web", &asked), Outcome::default());
            r.now_ns += LATE_NS;
            let out = r.step();
            assert_eq!(out.drops[reason.name()], 1);
            return None;
        }
        R::AskOverBudget => {
            // Of as many services as may be asked about at once, one more.
            for dport in 100..116 {
                assert_eq!(
                    r.send("web", &WEB_DB().udp(9, dport, b"")),
                    Outcome::default()
                );
            }
            ("web", WEB_DB().udp(9, 116, b""))
        }
        R::AskPending => {
            for _ in 0..3 {
                assert_eq!(r.send("web", &WEB_DB().udp(9, 3, b"")), Outcome::default());
            }
            ("web", WEB_DB().udp(9, 3, b""))
        }
        R::AskCancelled => {
            let syn = WEB_DB().tcp((9, 3), "S", 1, 0, b"");
            assert_eq!(r.send("web", &syn), Outcome::default());
            let out = r.send("web", &WEB_DB().tcp((9, 3), "R", 2, 0, b""));
            assert_eq!(out.drops[reason.name()], 1);
            return None;
        }
        R::Wall => {
            r.walls = Some(std::sync::Arc::new(crate::datapath::passes::Walls {
                definition: 1,
                clean: Vec::new(),
            }));
            r.apply(&policy());
            let walled = WEB_DB().udp(9, 4, b"");
            assert_eq!(r.send("web", &walled), Outcome::default());
            r.now_ns += LATE_NS;
            assert_eq!(r.step().drops[reason.name()], 1);
            return None;
        }
        R::Quarantined => {
            let held = std::collections::HashSet::from([AttachmentId(101)]);
            let quarantine = Quarantine::new(held, std::collections::HashMap::new());
            r.quarantine = Some(std::sync::Arc::new(quarantine));
            r.apply(&policy());
            ("web", changed(q, 0, &[0xff; 6]))
        }
        R::Frozen => {
            connect(&mut r, 7);
            let end = |addr: &str, port, attachment| flowtable::Endpoint {
                addr: addr.parse::<std::net::IpAddr>().unwrap().into(),
                port,
                attachment,
            };
            let ends = (end("10.0.0.1", 7, 101), end("10.0.0.2", 5432, 102));
            let (key, initiator) = flowtable::FlowKey::new(0, 6, &ends.0, &ends.1);
            let kept = Kept {
                initiator,
                carried: Default::default(),
                frozen: [None, Some(Default::default())],
            };
            let held = std::collections::HashSet::from([AttachmentId(101)]);
            let quarantine = Quarantine::new(held, std::collections::HashMap::from([(key, kept)]));
            r.quarantine = Some(std::sync::Arc::new(quarantine));
            r.apply(&policy());
            ("db", WEB_DB().back().tcp((5432, 7), "A", 501, 101, b""))
        }
        R::PolicyLimit => {
            let f = WEB_DB().udp(9, 4, b"");
            r.send("web", &f).reached("db", &f);
            ("web", WEB_DB().udp(10, 4, b""))
        }
        R::EtherTypeDenied => ("web", changed(q, 12, &[0x88, 0xb5])),
        R::UnknownSender => (
            "empty",
            talk(77, "10.0.0.77", 2, "10.0.0.2").udp(1, 53, b""),
        ),
        R::NoPolicy => {
            r.apply_without_policy();
            ("web", q)
        }
        R::TcpNotSyn => ("web", WEB_DB().tcp((1, 5432), "A", 1, 1, b"")),
        R::TcpOutOfWindow => {
            connect(&mut r, 1);
            ("web", WEB_DB().tcp((1, 5432), "A", 1 << 30, 501, b"x"))
        }
        // The end that was asked to open a connection acknowledges nothing before the other's SYN.
        R::TcpBadState => {
            connect(&mut r, 1);
            ("web", WEB_DB().tcp((1, 5432), "SA", 101, 501, b""))
        }
        R::TcpToGroup => (
            "web",
            changed(WEB_DB().tcp((1, 5432), "S", 1, 0, b""), 0, &[0xff; 6]),
        ),
        R::FragmentToGroup => (
            "web",
            changed(fragment(7, 8, false, &[0; 8]), 0, &[0xff; 6]),
        ),
        R::IcmpUnrelated => ("db", WEB_DB().back().unreachable(&q)),
        R::ReplyWithoutRequest => ("web", WEB_DB().ping(7, true)),
        R::ConnTableFull => {
            r = Rig::with_capacity(layout(), &policy(), 16);
            for sport in 1..=16 {
                r.send("web", &WEB_DB().udp(sport, 53, b"q"));
                // Answered: not half-open, so nothing may be evicted.
                r.send("db", &WEB_DB().back().udp(53, sport, b"a"));
            }
            ("web", q)
        }
        R::ConnQuota => {
            let mut ports = layout();
            ports[0].max_connections = Some(1);
            r = Rig::new(ports, &policy());
            connect(&mut r, 1);
            ("web", q)
        }
        R::FragmentWithoutFirst => ("web", fragment(7, 8, false, &[0; 8])),
        R::BadFragment => {
            let first = fragment(7, 0, true, &FIRST);
            r.send("web", &first).reached("db", &first);
            // It begins in the middle of the first one.
            ("web", fragment(7, 8, true, &[0; 16]))
        }
        R::FragmentTableFull => {
            // As many as one port may have under way.
            for id in 0..64 {
                let first = fragment(id, 0, true, &FIRST);
                r.send("web", &first).reached("db", &first);
            }
            ("web", fragment(64, 0, true, &FIRST))
        }
    };
    r.send(from, &frame).dropped(reason);
    None
}

/// The text of a function of a test file, up to the next line that closes a block at its depth.
fn function<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let at = text.find(&format!("fn {name}("))?;
    let line = text[..at].rfind('\n')? + 1;
    let end = format!("\n{}}}\n", &text[line..at]);
    text[at..].split_once(&end).map(|(body, _)| body)
}

#[test]
fn every_reason_is_provoked_and_counted() {
    for &reason in R::ALL {
        println!("{reason:?}");
        let Some(AtAPort { file, test }) = provoke(reason) else {
            continue;
        };
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        let text = fs::read_to_string(&path).unwrap();
        let body = function(&text, test).unwrap_or_else(|| panic!("no {test} in {file}"));
        let count = format!("drops.get(DropReason::{reason:?})");
        // The line itself, or the variable that it gives the count to.
        let compared = body.lines().any(|l| {
            let variable = l
                .trim()
                .strip_prefix("let ")
                .and_then(|l| l.split(' ').next());
            let asserts = |what: &str| {
                let lines = body.lines().filter(|l| l.trim().starts_with("assert"));
                lines.clone().any(|l| l.contains(what))
            };
            l.contains(&count) && (l.trim().starts_with("assert") || variable.is_some_and(asserts))
        });
        assert!(compared, "{test} in {file} does not assert on {reason:?}");
    }
}

#[test]
fn every_number_moves() {
    let mut p = policy();
    let web_out = rule("out", "web", "outside", &["udp/5353"], Action::Allow);
    p.rules.insert(0, web_out);
    let mut ports = layout();
    ports[0].max_connections = Some(2);
    ports.push(RigPort {
        uplink: true,
        ..port("up-2", vec![])
    });
    let mut r = Rig::new(ports, &p);
    r.shared.profile.store(true, Ordering::Relaxed);
    let q = question();
    let bytes = q.len() as u64;

    r.send("web", &q).reached("db", &q);
    let first = r.totals();
    assert_eq!((first.rx_pkts, first.rx_bytes), (1, bytes));
    assert_eq!((first.tx_pkts, first.tx_bytes), (1, bytes));
    r.send("web", &q).reached("db", &q);
    r.apply(&p);
    r.send("web", &q).reached("db", &q);

    // Answered by the switch; a flood to three; a frame cut in three; a station at one uplink, then at the other.
    r.send("web", &arp(1, [10, 0, 0, 1], [10, 0, 0, 2]))
        .one("web");
    let all = Talk {
        dst_mac: Mac([1, 0, 0x5e, 0, 0, 0xfb]),
        dst: "224.0.0.251",
        ..WEB_DB()
    };
    let flood = r.send("web", &all.udp(5353, 5353, b""));
    assert_eq!(flood.got.len(), 3);
    connect(&mut r, 1);
    let request = Offload {
        csum: Csum::Partial,
        gso: Gso::TcpV4,
        gso_size: 100,
    };
    let long = WEB_DB().tcp((1, 5432), "A", 101, 501, &[0; 300]);
    assert_eq!(r.send_all("web", &[long], request).got["db"].len(), 3);
    for uplink in ["up", "up-2"] {
        let station = talk(200, "198.51.100.1", 1, "10.0.0.1").udp(1, 53, b"");
        r.send(uplink, &station).dropped(R::PolicyDefaultDeny);
    }
    let PortValues {
        rx_pkts,
        rx_bytes,
        tx_pkts,
        tx_bytes,
        originated_pkts,
        copies_pkts,
        extra_segments_pkts,
        consumed_pkts,
        held_pkts,
        unheld_pkts,
        macs_moved,
    } = r.totals();
    assert_eq!((rx_pkts, tx_pkts), (11, 13));
    assert!(tx_bytes > rx_bytes && rx_bytes > first.rx_bytes);
    assert_eq!((originated_pkts, consumed_pkts), (1, 1));
    assert_eq!((held_pkts, unheld_pkts), (0, 0));
    assert_eq!((copies_pkts, extra_segments_pkts), (2, 2));
    assert_eq!(macs_moved, 1);

    // The port's third connection takes the place of the half-open first one; one ends, one is cut, one is forgotten.
    let third = WEB_DB().udp(2000, 53, b"");
    r.send("web", &third).reached("db", &third);
    let reset = WEB_DB().tcp((1, 5432), "R", 401, 0, b"");
    r.send("web", &reset).reached("db", &reset);
    p.rules.retain(|r| r.name != "rest");
    r.apply(&p);
    r.send("web", &third).dropped(R::PolicyDefaultDeny);
    let allowed = WEB_DB().udp(2000, 5, b"");
    p.rules.push(rule("rest", "web", "db", &[], Action::Allow));
    r.apply(&p);
    r.send("web", &allowed).reached("db", &allowed);
    let asked = WEB_DB().udp(2000, 3, b"");
    assert_eq!(r.send("web", &asked), Outcome::default());
    r.pass_secs(40);
    let WorkerValues {
        conn_hit,
        conn_miss,
        conn_stale,
        conn_asked,
        conn_insert,
        conn_expired,
        conn_cut,
        conn_closed,
        conn_evicted,
        // Nobody does as much here: `suspicion` has who does.
        suspicions: _,
        busy_iterations,
        busy_cycles,
        // A worker that is stepped by hand never blocks: `tests/cli.rs` sees it.
        blocked: _,
        step_rx_cycles,
        step_parse_cycles,
        step_locate_cycles,
        step_lookup_cycles,
        step_track_cycles,
        step_tx_cycles,
        step_complete_cycles,
    } = r.worker_values();
    let steps = [
        step_rx_cycles,
        step_parse_cycles,
        step_locate_cycles,
        step_lookup_cycles,
        step_track_cycles,
        step_tx_cycles,
        step_complete_cycles,
    ];
    assert!(steps.iter().all(|n| *n > 0), "{steps:?}");
    assert!(steps.iter().sum::<u64>() < busy_cycles, "{steps:?}");
    // The two from outside miss, too.
    assert_eq!((conn_insert, conn_miss, conn_asked), (4, 7, 1));
    // The second question; of TCP all but the SYN.
    assert_eq!(conn_hit, 5);
    assert_eq!(conn_stale, 2);
    assert_eq!((conn_evicted, conn_closed), (1, 1));
    assert_eq!((conn_cut, conn_expired), (1, 1));
    assert!(busy_iterations > 0 && busy_cycles > busy_iterations);
}

#[test]
fn every_event_is_reported() {
    let mut p = policy();
    for rule in &mut p.rules {
        rule.log = rule.action == Action::Allow;
    }
    let mut ports = layout();
    ports[0].max_connections = Some(2);
    let mut r = Rig::new(ports, &p);
    r.send("web", &WEB_DB().udp(9, 1, b"denied"));
    r.send("web", &WEB_DB().udp(9, 2, b"rejected"));
    r.send("web", &WEB_DB().udp(9, 6, b"lured"));
    for sport in 1..=3 {
        // Allowed, the last one in the first one's place; and a staged rule would have denied them.
        r.send("web", &WEB_DB().udp(sport, 5, b""));
    }
    r.pass_secs(40);
    connect(&mut r, 1);
    r.send("web", &WEB_DB().tcp((1, 5432), "R", 101, 0, b""));
    connect(&mut r, 2);
    p.rules.retain(|r| r.name != "rest");
    r.apply(&p);
    r.send("web", &WEB_DB().tcp((2, 5432), "A", 101, 501, b"cut"));

    let seen = r.events();
    // Each kind leads to the next one, and none can be left out.
    let next = |kind| match kind {
        // The decoy's, too; and that of what was cut.
        Kind::Allow => Some((Kind::Deny, 3)),
        Kind::Deny => Some((Kind::Reject, 1)),
        Kind::Reject => Some((Kind::Decoy, 1)),
        Kind::Decoy => Some((Kind::Staged, 3)),
        Kind::Staged => Some((Kind::Cut, 1)),
        Kind::Cut => Some((Kind::Close, 1)),
        Kind::Close => Some((Kind::Expire, 2)),
        Kind::Expire => Some((Kind::Evict, 1)),
        Kind::Evict => None,
    };
    let mut wanted = Some((Kind::Allow, 5));
    while let Some((kind, count)) = wanted {
        let found = seen.iter().filter(|e| e.kind == kind).count();
        assert_eq!(found, count, "{kind:?} in {seen:?}");
        wanted = next(kind);
    }
}
