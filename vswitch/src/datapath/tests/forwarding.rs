//! Connections: opened, answered, judged again, ended; neighbours, broadcast, VLANs, containers
//! inside a VM.

use super::rig::*;
use crate::drop_reason::DropReason as R;
use crate::event::ConnEventKind;
use crate::frame::{Csum, Gso, Offload};
use crate::packet::{Mac, Parsed, parse, tcp_flag};
use crate::policy::model::{Action, Limit, Policy};
use crate::sys::gate::Gate;

fn layout() -> Vec<RigPort> {
    vec![
        port(
            "web",
            vec![guest("web", 1, &["10.0.0.1", "fd00::1"], "web")],
        ),
        port("db", vec![guest("db", 2, &["10.0.0.2", "fd00::2"], "db")]),
        port(
            "app",
            vec![guest("app", 3, &["10.0.0.3", "fd00::3"], "app")],
        ),
        RigPort {
            uplink: true,
            ..port("up", vec![])
        },
    ]
}

fn policy() -> Policy {
    Policy {
        segments: vec![
            segment("web", "web"),
            segment("db", "db"),
            segment("app", "app"),
            outside(),
        ],
        rules: vec![
            rule(
                "web-to-db",
                "web",
                "db",
                &["tcp/5432", "udp/53", "icmp", "icmpv6"],
                Action::Allow,
            ),
            rule(
                "no-app",
                "web",
                "app",
                &["tcp/23", "udp/23"],
                Action::Reject,
            ),
            rule("never", "web", "app", &["tcp/24"], Action::Deny),
            rule("mdns", "web", "db", &["udp/5353"], Action::Allow),
            rule("out", "web", "outside", &["udp/5353"], Action::Allow),
        ],
        ..Policy::default()
    }
}

fn without(policy: &Policy, name: &str) -> Policy {
    let mut p = policy.clone();
    p.rules.retain(|r| r.name != name);
    p
}

const WEB_DB: fn() -> Talk = || talk(1, "10.0.0.1", 2, "10.0.0.2");

fn parsed(frame: &[u8]) -> Parsed {
    parse::parse(frame, u32::try_from(frame.len()).unwrap()).unwrap()
}

/// Opens a TCP connection web → db:5432 and returns the next sequence numbers.
fn connect(r: &mut Rig, sport: u16) -> (u32, u32) {
    let t = WEB_DB();
    let ports = (sport, 5432);
    let back = (5432, sport);
    for (from, frame) in [
        ("web", t.tcp(ports, "S", 100, 0, b"")),
        ("db", t.back().tcp(back, "SA", 500, 101, b"")),
        ("web", t.tcp(ports, "A", 101, 501, b"")),
    ] {
        let to = if from == "web" { "db" } else { "web" };
        r.send(from, &frame).reached(to, &frame);
    }
    (101, 501)
}

#[test]
fn a_connection_opens_carries_both_ways_and_closes() {
    let mut r = Rig::new(layout(), &policy());
    let (a, b) = connect(&mut r, 4000);
    let t = WEB_DB();
    let data = t.tcp((4000, 5432), "AP", a, b, b"select 1");
    r.send("web", &data).reached("db", &data);
    let answer = t.back().tcp((5432, 4000), "AP", b, a + 8, b"one");
    r.send("db", &answer).reached("web", &answer);
    assert_eq!(r.shared.table.len(), 1);
    let reset = t.back().tcp((5432, 4000), "RA", b + 3, a + 8, b"");
    r.send("db", &reset).reached("web", &reset);
    assert_eq!(r.worker_values().conn_closed, 1);
    // Were the reset lost, the next segment would reach db, which answers it with another.
    r.send("web", &data).reached("db", &data);
    r.pass_secs(15);
    assert_eq!(r.shared.table.len(), 0);
    assert_eq!(r.worker_values().conn_expired, 0);
    r.send("web", &data).dropped(R::TcpNotSyn);
}

#[test]
fn what_no_rule_allows_is_denied_and_leaves_no_entry() {
    let mut r = Rig::new(layout(), &policy());
    let t = WEB_DB();
    r.send("web", &t.tcp((4000, 80), "S", 1, 0, b""))
        .dropped(R::PolicyDefaultDeny);
    r.send("db", &t.back().tcp((5432, 80), "S", 1, 0, b""))
        .dropped(R::PolicyDefaultDeny);
    let app = talk(1, "10.0.0.1", 3, "10.0.0.3");
    r.send("web", &app.tcp((4000, 24), "S", 1, 0, b""))
        .dropped(R::PolicyDeny);
    r.send("web", &t.tcp((4000, 5432), "A", 1, 1, b""))
        .dropped(R::TcpNotSyn);
    r.send("web", &t.tcp((4000, 5432), "SF", 1, 1, b""))
        .dropped(R::BadTcpFlags);
    r.send("db", &t.back().ping(7, true))
        .dropped(R::ReplyWithoutRequest);
    assert_eq!(r.shared.table.len(), 0);
    let kinds: Vec<_> = r.events().iter().map(|e| e.reason).collect();
    assert_eq!(kinds.len(), 6);
}

#[test]
fn echo_needs_its_request() {
    let mut r = Rig::new(layout(), &policy());
    for t in [WEB_DB(), talk(1, "fd00::1", 2, "fd00::2")] {
        let ask = t.ping(7, false);
        r.send("web", &ask).reached("db", &ask);
        let answer = t.back().ping(7, true);
        r.send("db", &answer).reached("web", &answer);
        r.send("db", &t.back().ping(8, true))
            .dropped(R::ReplyWithoutRequest);
    }
}

/// The identifiers are each end's own: being asked is no permission to ask.
#[test]
fn who_was_asked_may_not_ask_with_the_same_identifier() {
    let mut r = Rig::new(layout(), &policy());
    for t in [WEB_DB(), talk(1, "fd00::1", 2, "fd00::2")] {
        for id in [7, 0] {
            let ask = t.ping(id, false);
            r.send("web", &ask).reached("db", &ask);
            r.send("db", &t.back().ping(id, false))
                .dropped(R::PolicyDefaultDeny);
            r.send("web", &t.ping(id, true))
                .dropped(R::ReplyWithoutRequest);
            let answer = t.back().ping(id, true);
            r.send("db", &answer).reached("web", &answer);
        }
    }
    // Where both may ask, there are two exchanges.
    let mut both = policy();
    both.rules
        .push(rule("back", "db", "web", &["icmp"], Action::Allow));
    r.apply(&both);
    let t = WEB_DB();
    for (from, to, f) in [
        ("web", "db", t.ping(9, false)),
        ("db", "web", t.back().ping(9, false)),
        ("web", "db", t.ping(9, true)),
        ("db", "web", t.back().ping(9, true)),
    ] {
        r.send(from, &f).reached(to, &f);
    }
}

#[test]
fn an_error_about_an_echo_belongs_to_it() {
    let mut r = Rig::new(layout(), &policy());
    let t = WEB_DB();
    let ask = t.ping(7, false);
    let error = t.back().unreachable(&ask);
    r.send("db", &error).dropped(R::IcmpUnrelated);
    r.send("web", &ask).reached("db", &ask);
    r.send("db", &error).reached("web", &error);
    let answer = t.back().ping(7, true);
    let error = t.unreachable(&answer);
    r.send("web", &error).reached("db", &error);
    // db never asked anything.
    r.send("web", &t.unreachable(&t.back().ping(7, false)))
        .dropped(R::IcmpUnrelated);
}

#[test]
fn rejected_means_the_sender_is_told() {
    let mut r = Rig::new(layout(), &policy());
    let t = talk(1, "10.0.0.1", 3, "10.0.0.3");
    let out = r.send("web", &t.tcp((4000, 23), "S", 41, 0, b""));
    assert_eq!(out.drops.keys().collect::<Vec<_>>(), [&"policy_reject"]);
    let reset = out.one("web");
    let p = parsed(reset);
    assert_eq!(
        (p.tcp.flags, p.tcp.ack),
        (tcp_flag::RST | tcp_flag::ACK, 42)
    );
    assert_eq!((p.sport, p.dport), (23, 4000));
    let out = r.send("web", &t.udp(4000, 23, b"x"));
    let p = out.one("web");
    let p = parsed(p);
    // Destination unreachable, communication administratively prohibited.
    assert_eq!((p.icmp_type, p.icmp_code), (3, 13));
}

#[test]
fn a_policy_change_reaches_established_connections() {
    let mut r = Rig::new(layout(), &policy());
    let (a, b) = connect(&mut r, 4000);
    let t = WEB_DB();
    let data = t.tcp((4000, 5432), "AP", a, b, b"x");
    let reply = t.back().tcp((5432, 4000), "A", b, a, b"");
    // A change that still allows it keeps it, and is judged in the original direction: nothing
    // allows db to open anything, and yet its reply passes.
    r.apply(&without(&policy(), "mdns"));
    r.send("db", &reply).reached("web", &reply);
    assert_eq!(r.worker_values().conn_stale, 1);
    r.send("web", &data).reached("db", &data);
    assert_eq!(r.worker_values().conn_stale, 1);
    // The rule goes: the next packet of either direction ends it.
    r.events();
    r.apply(&without(&policy(), "web-to-db"));
    r.send("db", &reply).dropped(R::PolicyDefaultDeny);
    assert_eq!(r.shared.table.len(), 0);
    assert!(r.events().iter().any(|e| e.kind == ConnEventKind::Cut));
    r.send("web", &data).dropped(R::TcpNotSyn);
    // And back again: mid-stream is not picked up.
    r.apply(&policy());
    r.send("web", &data).dropped(R::TcpNotSyn);
    connect(&mut r, 4001);
}

#[test]
fn icmp_errors_pass_only_for_a_connection() {
    let mut r = Rig::new(layout(), &policy());
    let t = WEB_DB();
    let ask = t.udp(1000, 53, b"question");
    let error = |quoted: &[u8]| t.back().unreachable(quoted);
    r.send("db", &error(&ask)).dropped(R::IcmpUnrelated);
    r.send("web", &ask).reached("db", &ask);
    let e = error(&ask);
    r.send("db", &e).reached("web", &e);
    r.send("db", &error(&t.udp(1001, 53, b"question")))
        .dropped(R::IcmpUnrelated);
}

#[test]
fn connections_expire() {
    let mut r = Rig::new(layout(), &policy());
    let ask = WEB_DB().udp(1000, 53, b"q");
    r.send("web", &ask).reached("db", &ask);
    r.pass_secs(25);
    assert_eq!(r.shared.table.len(), 1);
    r.pass_secs(10);
    assert_eq!(r.shared.table.len(), 0);
    assert_eq!(r.worker_values().conn_expired, 1);
    let answer = WEB_DB().back().udp(53, 1000, b"a");
    r.send("db", &answer).dropped(R::PolicyDefaultDeny);
}

#[test]
fn a_port_loses_its_own_half_open_connections_first() {
    let mut ports = layout();
    ports[0].max_connections = Some(10);
    let mut r = Rig::new(ports, &policy());
    connect(&mut r, 9000);
    for sport in 0..9 {
        let syn = WEB_DB().tcp((sport + 1, 5432), "S", 1, 0, b"");
        r.send("web", &syn).reached("db", &syn);
    }
    assert_eq!(r.open_connections("web"), 10);
    for sport in 100..130 {
        let syn = WEB_DB().tcp((sport, 5432), "S", 1, 0, b"");
        r.send("web", &syn).reached("db", &syn);
    }
    assert_eq!(r.worker_values().conn_evicted, 30);
    // The established one is still there.
    let data = WEB_DB().tcp((9000, 5432), "AP", 101, 501, b"x");
    r.send("web", &data).reached("db", &data);
}

#[test]
fn quota_of_established_connections() {
    let mut ports = layout();
    ports[0].max_connections = Some(2);
    let mut r = Rig::new(ports, &policy());
    connect(&mut r, 1);
    connect(&mut r, 2);
    r.send("web", &WEB_DB().tcp((3, 5432), "S", 1, 0, b""))
        .dropped(R::ConnQuota);
}

/// What was attached anew keeps its connections, and whoever gets its number does not pay for them.
#[test]
fn a_quota_follows_its_port_to_another_number() {
    let mut ports = layout();
    for i in [0, 2] {
        ports[i].max_connections = Some(2);
    }
    let mut both = policy();
    both.rules
        .push(rule("app-to-db", "app", "db", &["udp/53"], Action::Allow));
    let mut r = Rig::new(ports, &both);
    connect(&mut r, 1);
    connect(&mut r, 2);
    r.renumber("web", 7);
    r.renumber("app", 0);
    r.apply(&both);
    let app = talk(3, "10.0.0.3", 2, "10.0.0.2");
    for sport in [1, 2] {
        let ask = app.udp(sport, 53, b"q");
        r.send("app", &ask).reached("db", &ask);
        let answer = app.back().udp(53, sport, b"a");
        r.send("db", &answer).reached("app", &answer);
    }
    r.send("app", &app.udp(3, 53, b"q")).dropped(R::ConnQuota);
    r.send("web", &WEB_DB().tcp((3, 5432), "S", 1, 0, b""))
        .dropped(R::ConnQuota);
    // When the old ones end, it is web that may open others.
    let reset = WEB_DB().tcp((1, 5432), "R", 101, 0, b"");
    r.send("web", &reset).reached("db", &reset);
    r.pass_secs(15);
    assert_eq!(
        (r.open_connections("web"), r.open_connections("app")),
        (1, 2)
    );
    connect(&mut r, 3);
}

#[test]
fn a_full_table_is_a_counted_drop() {
    let mut r = Rig::with_capacity(layout(), &policy(), 16);
    for sport in 1..=16 {
        r.send("web", &WEB_DB().udp(sport, 53, b"q"));
        // Answered: not half-open, so nothing may be evicted.
        r.send("db", &WEB_DB().back().udp(53, sport, b"a"));
    }
    let out = r.send("web", &WEB_DB().udp(999, 53, b"q"));
    out.dropped(R::ConnTableFull);
}

/// The sender's oldest half-open connection makes room, for its next try: this one's memory is free
/// when the worker has quiesced.
#[test]
fn in_a_full_table_a_port_loses_its_own_half_open_connections() {
    // One bucket has room for as many.
    let mut r = Rig::with_capacity(layout(), &policy(), 4);
    let t = WEB_DB();
    for sport in 1..=4 {
        let ask = t.udp(sport, 53, b"q");
        r.send("web", &ask).reached("db", &ask);
    }
    let answer = |sport| t.back().udp(53, sport, b"a");
    r.send("db", &answer(1)).reached("web", &answer(1));
    let next = t.udp(5, 53, b"q");
    r.send("web", &next).dropped(R::ConnTableFull);
    assert_eq!(r.worker_values().conn_evicted, 1);
    assert_eq!(r.open_connections("web"), 3);
    r.send("web", &next).reached("db", &next);
    assert_eq!(r.worker_values().conn_evicted, 1);
    for sport in [1, 3, 4, 5] {
        r.send("db", &answer(sport)).reached("web", &answer(sport));
    }
    r.send("db", &answer(2)).dropped(R::PolicyDefaultDeny);
}

#[test]
fn limits_and_staged_rules() {
    let mut p = policy();
    p.rules[0].limit = Some(Limit {
        connections: Some(2),
        bits: None,
    });
    let mut staged = rule("staged-deny", "web", "db", &["udp/53"], Action::Deny);
    staged.staged = true;
    p.rules.insert(0, staged);
    let mut r = Rig::new(layout(), &p);
    let mut refused = 0;
    for sport in 1..=10 {
        let out = r.send("web", &WEB_DB().udp(sport, 53, b"q"));
        refused += out.drops.get("policy_limit").copied().unwrap_or(0);
    }
    assert_eq!(refused, 8);
    let staged = r
        .events()
        .iter()
        .filter(|e| e.kind == ConnEventKind::Staged)
        .count();
    assert_eq!(staged, 10);
    // An established connection spends no limit.
    let again = WEB_DB().udp(1, 53, b"q");
    r.send("web", &again).reached("db", &again);
    assert!(r.classifier().rules().count() > 0);
}

#[test]
fn arp_is_answered_by_the_switch() {
    let mut r = Rig::new(layout(), &policy());
    let ask = |src: u8, spa: [u8; 4], tpa: [u8; 4], sha: u8| {
        let mut f = Mac::BROADCAST.0.to_vec();
        f.extend(mac(src).0);
        f.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        f.extend(mac(sha).0);
        f.extend(spa);
        f.extend([0; 6]);
        f.extend(tpa);
        f
    };
    let out = r.send("web", &ask(1, [10, 0, 0, 1], [10, 0, 0, 2], 1));
    let reply = out.one("web");
    assert_eq!(reply[..6], mac(1).0);
    assert_eq!(reply[20..22], [0, 2]);
    assert_eq!(reply[22..28], mac(2).0);
    assert_eq!(reply[28..32], [10, 0, 0, 2]);
    // Lies are refused.
    r.send("web", &ask(1, [10, 0, 0, 3], [10, 0, 0, 2], 1))
        .dropped(R::SpoofedArp);
    r.send("web", &ask(1, [10, 0, 0, 1], [10, 0, 0, 2], 2))
        .dropped(R::SpoofedArp);
    // Nobody local: the uplink is asked, and nobody else hears it.
    let far = ask(1, [10, 0, 0, 1], [10, 0, 0, 99], 1);
    r.send("web", &far).reached("up", &far);
    // The outside asks for a workload: answered. For itself: consumed.
    let out = r.send("up", &ask(200, [10, 0, 0, 250], [10, 0, 0, 1], 200));
    assert_eq!(out.one("up")[22..28], mac(1).0);
    let out = r.send("up", &ask(200, [10, 0, 0, 1], [10, 0, 0, 2], 200));
    out.dropped(R::SpoofedFromUplink);
    let mut no_uplink = layout();
    no_uplink.pop();
    let mut r = Rig::new(no_uplink, &policy());
    r.send("web", &far).dropped(R::UnknownNeighbour);
}

#[test]
fn broadcast_is_judged_for_each_receiver() {
    let mut r = Rig::new(layout(), &policy());
    let mdns = Talk {
        dst_mac: Mac([1, 0, 0x5e, 0, 0, 0xfb]),
        dst: "224.0.0.251",
        ..WEB_DB()
    };
    let f = mdns.udp(5353, 5353, b"hello");
    let out = r.send("web", &f);
    assert_eq!(out.got.keys().collect::<Vec<_>>(), [&"db", &"up"]);
    assert_eq!(out.drops.len(), 0);
    assert_eq!(r.totals().copies_pkts, 1);
    assert_eq!(r.shared.table.len(), 0);
    r.send(
        "db",
        &Talk {
            src_mac: 2,
            src: "10.0.0.2",
            ..mdns
        }
        .udp(5353, 5353, b""),
    )
    .dropped(R::PolicyDefaultDeny);
}

/// A group address is no way around the connection table, whatever a rule allows.
#[test]
fn what_belongs_to_a_connection_does_not_go_to_a_group() {
    let mut p = policy();
    p.rules = vec![rule("all", "any", "any", &[], Action::Allow)];
    let mut r = Rig::new(layout(), &p);
    for dst_mac in [Mac([0xff; 6]), Mac([1, 0, 0x5e, 0, 0, 1])] {
        let t = Talk {
            dst_mac,
            ..WEB_DB()
        };
        for flags in ["S", "A", "R"] {
            r.send("web", &t.tcp((4000, 5432), flags, 1, 1, b""))
                .dropped(R::TcpToGroup);
        }
        r.send("web", &t.ping(7, true))
            .dropped(R::ReplyWithoutRequest);
    }
    assert_eq!(r.shared.table.len(), 0);
}

/// A later fragment has no ports: what a rule says about them must not be guessed, whichever way.
#[test]
fn no_fragment_goes_to_a_group() {
    let mut p = policy();
    p.rules = vec![
        rule("not-mdns", "web", "db", &["udp/5353"], Action::Deny),
        rule("udp", "web", "db", &["udp"], Action::Allow),
    ];
    let mut r = Rig::new(layout(), &p);
    for dst_mac in [Mac::BROADCAST, Mac([1, 0, 0x5e, 0, 0, 0xfb])] {
        let group = Talk {
            dst_mac,
            dst: "224.0.0.251",
            ..WEB_DB()
        };
        for dport in [53, 5353] {
            for piece in fragments(&group.udp(1000, dport, &[0; 24]), 7) {
                r.send("web", &piece).dropped(R::FragmentToGroup);
            }
        }
        let whole = group.udp(1000, 53, &[0; 24]);
        r.send("web", &whole).reached("db", &whole);
    }
}

#[test]
fn other_ethertypes_are_denied_by_name() {
    let mut p = policy();
    p.rules.push(rule(
        "lldpish",
        "web",
        "db",
        &["ether/0x88b5"],
        Action::Allow,
    ));
    let mut r = Rig::new(layout(), &p);
    let frame = |t: [u8; 2]| {
        let mut f = mac(2).0.to_vec();
        f.extend(mac(1).0);
        f.extend(t);
        f.extend([0; 46]);
        f
    };
    let f = frame([0x88, 0xb5]);
    r.send("web", &f).reached("db", &f);
    r.send("web", &frame([0x88, 0xb6]))
        .dropped(R::EtherTypeDenied);
}

#[test]
fn containers_in_one_vm_are_told_apart_by_vlan() {
    let inside = |name, m, ip: &'static str, tag, vlan| Guest {
        vlan: Some(vlan),
        ..guest(name, m, &[ip], tag)
    };
    let ports = vec![
        port(
            "vm",
            vec![
                inside("c1", 1, "10.0.0.1", "web", 10),
                inside("c2", 2, "10.0.0.2", "db", 20),
            ],
        ),
        port("third", vec![guest("third", 3, &["10.0.0.3"], "app")]),
    ];
    let mut p = policy();
    p.rules = vec![rule("c1-third", "web", "app", &["udp/53"], Action::Allow)];
    let mut r = Rig::new(ports, &p);
    let to_third = talk(1, "10.0.0.1", 3, "10.0.0.3").udp(1, 53, b"x");
    r.send("vm", &tagged(&to_third, 10))
        .reached("third", &to_third);
    let back = talk(3, "10.0.0.3", 1, "10.0.0.1").udp(53, 1, b"y");
    r.send("third", &back).reached("vm", &tagged(&back, 10));
    // Denied to each other although both live in the same VM.
    let across = talk(1, "10.0.0.1", 2, "10.0.0.2").udp(1, 53, b"x");
    r.send("vm", &tagged(&across, 10))
        .dropped(R::PolicyDefaultDeny);
    // The right MAC under the wrong tag, or no tag, is nobody.
    r.send("vm", &tagged(&to_third, 20))
        .dropped(R::DeclaredMacMoved);
    r.send("vm", &to_third).dropped(R::DeclaredMacMoved);
    // Allowed, it comes out of the VM and goes back in under the other tag.
    p.rules
        .push(rule("c1-c2", "web", "db", &["udp/53"], Action::Allow));
    r.apply(&p);
    r.send("vm", &tagged(&across, 10))
        .reached("vm", &tagged(&across, 20));
}

#[test]
fn vlans_are_domains_of_their_own() {
    let mut ports = layout();
    ports[0].vlan = 10;
    ports[1].trunk = vec![10];
    ports[1].guests[0].vlan = Some(10);
    let mut r = Rig::new(ports, &policy());
    let f = WEB_DB().udp(1000, 53, b"q");
    // Access on one side, tagged on the other.
    r.send("web", &f).reached("db", &tagged(&f, 10));
    // app lives in the untagged domain: out of reach at layer 2, before any policy.
    let app = talk(1, "10.0.0.1", 3, "10.0.0.3").udp(1, 23, b"");
    r.send("web", &app).dropped(R::UnknownDestination);
    // A second tag stays behind the first.
    let inner = tagged(&f, 7);
    r.send("web", &tagged(&inner, 0))
        .reached("db", &tagged(&inner, 10));
    let back = tagged(&WEB_DB().back().udp(53, 1000, b"a"), 7);
    r.send("db", &tagged(&back, 10)).dropped(R::VlanNotAllowed);
}

#[test]
fn an_offload_request_that_does_not_fit_is_refused() {
    let mut r = Rig::new(layout(), &policy());
    let f = WEB_DB().udp(1000, 53, &[0; 100]);
    let lie = Offload {
        csum: Csum::Partial,
        gso: Gso::TcpV4,
        gso_size: 20,
    };
    r.send_all("web", &[f], lie).dropped(R::BadOffload);
}

#[test]
fn a_whole_burst_keeps_its_order() {
    let mut r = Rig::new(layout(), &policy());
    let frames: Vec<_> = (0..100u8)
        .map(|i| WEB_DB().udp(1000, 53, &[i; 40]))
        .collect();
    let out = r.send_all("web", &frames, Offload::default());
    assert_eq!(out.got["db"], frames);
    assert_eq!(r.shared.table.len(), 1);
    assert_eq!(r.worker_values().conn_insert, 1);
}

#[test]
fn nothing_is_forwarded_before_a_policy_stands() {
    let mut r = Rig::new(layout(), &Policy::default());
    let f = WEB_DB().udp(1000, 53, b"q");
    r.send("web", &f).dropped(R::PolicyDefaultDeny);
    r.apply_without_policy();
    r.send("web", &f).dropped(R::NoPolicy);
}

#[test]
fn a_storm_costs_its_sender() {
    let mut alone = layout();
    alone.truncate(1);
    let all = Talk {
        dst_mac: Mac::BROADCAST,
        dst: "10.0.0.255",
        ..WEB_DB()
    };
    let f = all.udp(5353, 5353, b"");
    Rig::new(alone, &policy())
        .send("web", &f)
        .dropped(R::NoReceiver);

    let mut r = Rig::new(layout(), &policy());
    // Two receivers each: 20 000 copies are spent after 10 000 frames.
    for _ in 0..10_000 {
        assert_eq!(r.send("web", &f).drops.len(), 0);
    }
    r.send("web", &f).dropped(R::FloodBudget);
    // A second later there is budget again.
    r.now_ns += 1_000_000_000;
    assert_eq!(r.send("web", &f).got.len(), 2);
}

/// A worker that finds the control thread in a queue drops what it has for it: whoever changes rules goes into none, and is done
/// while a worker is in all of them. (If it waited for one, this would not end.)
#[test]
fn a_change_of_rules_keeps_no_worker_out_of_a_queue() {
    let mut r = Rig::new(layout(), &policy());
    let ports = r.ports.clone();
    let receiving: Vec<_> = ports
        .iter()
        .flat_map(|p| &p.rxqs)
        .map(Gate::enter)
        .collect();
    let sending: Vec<_> = ports
        .iter()
        .flat_map(|p| &p.txqs)
        .map(Gate::enter)
        .collect();
    assert!(receiving.iter().all(Option::is_some) && sending.iter().all(Option::is_some));
    r.apply(&without(&policy(), "web-to-db"));
    drop((receiving, sending));
    let frame = talk(1, "10.0.0.1", 2, "10.0.0.2").udp(1000, 53, b"");
    r.send("web", &frame).dropped(R::PolicyDefaultDeny);
}
