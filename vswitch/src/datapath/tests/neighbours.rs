//! What hosts say about themselves on their link, ARP, neighbour discovery and MLD, carries no claim
//! that is not true and no payload.

use super::rig::*;
use crate::drop_reason::DropReason as R;
use crate::packet::Mac;
use crate::policy::model::{Action, Policy};

fn layout() -> Vec<RigPort> {
    vec![
        port(
            "web",
            vec![guest("web", 1, &["10.0.0.1", "fd00::1"], "web")],
        ),
        port("db", vec![guest("db", 2, &["10.0.0.2", "fd00::2"], "db")]),
        RigPort {
            uplink: true,
            ..port("up", vec![])
        },
    ]
}

/// Everybody may say everything: what is refused is refused for what it is.
fn policy() -> Policy {
    let all = |name, from, to| rule(name, from, to, &[], Action::Allow);
    Policy {
        segments: vec![segment("web", "web"), segment("db", "db"), outside()],
        rules: vec![
            all("web-db", "web", "db"),
            all("out", "any", "outside"),
            all("in", "outside", "any"),
        ],
        ..Policy::default()
    }
}

fn rig() -> Rig {
    Rig::new(layout(), &policy())
}

/// The group MAC of an IPv6 group whose last four bytes are these (RFC 2464 section 7).
fn group(last: [u8; 4]) -> Mac {
    let [a, b, c, d] = last;
    Mac([0x33, 0x33, a, b, c, d])
}

fn octets(ip: &str) -> [u8; 16] {
    ip.parse::<std::net::Ipv6Addr>().unwrap().octets()
}

/// Sent, refused by nobody, and received by nobody.
#[track_caller]
fn consumed(out: &Outcome) {
    assert_eq!(out, &Outcome::default());
}

#[test]
fn a_link_local_address_that_is_not_its_own_serves_neighbour_discovery_and_membership_only() {
    let mut r = rig();
    let foreign = |dst_mac, dst| Talk {
        dst_mac,
        ..talk(1, "fe80::77", 2, dst)
    };
    let to_db = foreign(mac(2), "fd00::2");
    let to_reports = foreign(group([0, 0, 0, 0x16]), "ff02::16");
    let to_routers = foreign(group([0, 0, 0, 2]), "ff02::2");
    r.send("web", &to_db.udp(1, 53, b"")).dropped(R::SpoofedIp);
    for kind in [130, 131, 132, 143] {
        consumed(&r.send("web", &to_reports.icmp6(kind, 0, &[0; 16])));
        r.send("web", &to_db.icmp6(kind, 0, &[0; 16]))
            .dropped(R::SpoofedIp);
    }
    for kind in [133, 134, 137, 138] {
        for t in [to_routers, to_db] {
            r.send("web", &t.icmp6(kind, 0, &[0; 32]))
                .dropped(R::SpoofedIp);
        }
    }
    let asks = to_db.icmp6(135, 0, &octets("fd00::2"));
    assert_eq!(r.send("web", &asks).one("web")[54], 136);
    consumed(&r.send("web", &to_db.icmp6(136, 0, &octets("fe80::77"))));

    // Its own address it may use for anything.
    let own = Talk {
        src: "fe80::5054:ff:fe00:1",
        ..to_routers
    };
    let f = own.icmp6(133, 0, &[]);
    assert_eq!(r.send("web", &f).one("up"), f);
    // Without an address yet, it may ask for routers: all of them, not one host.
    let nameless = |t| Talk { src: "::", ..t };
    let f = nameless(to_routers).icmp6(133, 0, &[]);
    assert_eq!(r.send("web", &f).one("up"), f);
    consumed(&r.send("web", &nameless(to_reports).icmp6(143, 0, &[0; 16])));
    for kind in [133, 143] {
        r.send("web", &nameless(to_db).icmp6(kind, 0, &[0; 16]))
            .dropped(R::SpoofedIp);
    }
}

/// The switch needs no membership messages; a network that snoops does.
#[test]
fn membership_passes_between_workloads_and_declared_routers_only() {
    let mut ports = layout();
    ports.push(RigPort {
        routes: vec![crate::packet::Cidr {
            addr: "fd01::".parse().unwrap(),
            len: 16,
        }],
        ..port("router", vec![guest("router", 8, &["fd00::8"], "router")])
    });
    // Rules and no rules of the operator's: the same.
    let mut declared = Policy::default();
    let routers = ["fe80::99", "fd00::8"].map(|ip| ip.parse().unwrap());
    declared.infrastructure.routers = routers.to_vec();
    let mut r = Rig::new(ports, &declared);
    let to_group = |src_mac, src, dst| Talk {
        dst_mac: group([0, 0, 0, octets(dst)[15]]),
        ..talk(src_mac, src, 0, dst)
    };
    let own = "fe80::5054:ff:fe00:1";
    let report = to_group(1, own, "ff02::16").icmp6(143, 0, &[0; 16]);
    let out = r.send("web", &report);
    assert_eq!(out.got.keys().collect::<Vec<_>>(), [&"router", &"up"]);
    assert_eq!(out.one("up"), report);
    let query = to_group(200, "fe80::99", "ff02::1").icmp6(130, 0, &[0; 20]);
    let out = r.send("up", &query);
    assert_eq!(
        out.got.keys().collect::<Vec<_>>(),
        [&"db", &"router", &"web"]
    );
    let query = to_group(8, "fd00::8", "ff02::1").icmp6(130, 0, &[0; 20]);
    let out = r.send("router", &query);
    assert_eq!(out.got.keys().collect::<Vec<_>>(), [&"db", &"web"]);

    // Of anybody else's it does not hear: no query from a stranger or a workload, no report to a
    // neighbour or to another group, nothing of IGMP.
    for (from, frame) in [
        (
            "up",
            to_group(200, "fe80::98", "ff02::1").icmp6(130, 0, &[0; 20]),
        ),
        (
            "up",
            to_group(200, "::", "ff02::16").icmp6(143, 0, &[0; 16]),
        ),
        ("web", to_group(1, own, "ff02::1").icmp6(130, 0, &[0; 20])),
        ("web", to_group(1, "::", "ff02::16").icmp6(143, 0, &[0; 16])),
        (
            "web",
            to_group(1, "fe80::77", "ff02::16").icmp6(143, 0, &[0; 16]),
        ),
        ("web", igmp()),
    ] {
        consumed(&r.send(from, &frame));
    }
    assert!(r.events().is_empty());
    r.apply(&Policy::default());
    consumed(&r.send("web", &report));

    // A rule that says so refuses it like anything else.
    let mut denied = policy();
    denied.segments.push(segment("router", "router"));
    let to = &["icmpv6/143", "ip/2"];
    denied.rules = vec![
        rule("out", "web", "outside", to, Action::Deny),
        rule("over", "web", "router", to, Action::Allow),
    ];
    r.apply(&denied);
    r.send("web", &report).reached("router", &report);
    denied.rules.pop();
    r.apply(&denied);
    r.send("web", &report).dropped(R::PolicyDeny);
    r.send("web", &igmp()).dropped(R::PolicyDeny);
}

/// An IGMPv3 report of `web` (RFC 3376 section 4.2).
fn igmp() -> Vec<u8> {
    let mut out = Vec::new();
    etherparse::PacketBuilder::ethernet2(mac(1).0, [1, 0, 0x5e, 0, 0, 0x16])
        .ipv4([10, 0, 0, 1], [224, 0, 0, 22], 1)
        .write(
            &mut out,
            etherparse::IpNumber(2),
            &[0x22, 0, 0, 0, 0, 0, 0, 0],
        )
        .unwrap();
    out
}

/// An ARP message; `tail` stands behind it.
fn arp(
    op: u8,
    dst: Mac,
    sender: (u8, [u8; 4]),
    target: ([u8; 6], [u8; 4]),
    tail: &[u8],
) -> Vec<u8> {
    let mut f = [dst.0, mac(sender.0).0].concat();
    f.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, op]);
    f.extend([&mac(sender.0).0[..], &sender.1, &target.0, &target.1, tail].concat());
    f
}

const WEB: (u8, [u8; 4]) = (1, [10, 0, 0, 1]);
const GATEWAY: (u8, [u8; 4]) = (200, [10, 0, 0, 254]);
const FAR: [u8; 4] = [10, 0, 0, 99];

/// The options of a message about `mac`: source (1) or target (2) link-layer address.
fn lladdr(option: u8, last: u8) -> Vec<u8> {
    [&[option, 1][..], &mac(last).0].concat()
}

#[test]
fn what_is_forwarded_of_arp_is_what_it_says_and_nothing_more() {
    let mut r = rig();
    for dst in [Mac::BROADCAST, mac(200)] {
        let plain = arp(1, dst, WEB, ([0; 6], FAR), b"");
        assert_eq!(r.send("web", &plain).one("up"), plain);
        for tail in [&[0; 18][..], &[7; 18], &[7; 1400]] {
            let loaded = arp(1, dst, WEB, (*b"secret", FAR), tail);
            assert_eq!(r.send("web", &loaded).one("up"), plain);
        }
    }
    // Any other group is a word, too.
    let group = Mac([1, 2, 3, 4, 5, 6]);
    let to_all = arp(1, Mac::BROADCAST, WEB, ([0; 6], FAR), b"");
    let to_group = arp(1, group, WEB, ([0; 6], FAR), b"");
    assert_eq!(r.send("web", &to_group).one("up"), to_all);
    // The way in.
    let plain = arp(2, mac(1), GATEWAY, (mac(1).0, WEB.1), b"");
    let loaded = arp(2, mac(1), GATEWAY, (*b"secret", WEB.1), &[7; 1400]);
    assert_eq!(r.send("up", &loaded).one("web"), plain);
}

#[test]
fn what_is_forwarded_of_neighbour_discovery_is_what_it_says_and_nothing_more() {
    let mut r = rig();
    let far = octets("fd00::99");
    let nonce = [14, 1, 1, 2, 3, 4, 5, 6];
    let to_group = Talk {
        dst_mac: group([0xff, 0, 0, 0x99]),
        ..talk(1, "fd00::1", 0, "ff02::1:ff00:99")
    };
    let asks = [&far[..], &lladdr(1, 1)].concat();
    let plain = to_group.icmp6(135, 0, &asks);
    assert_eq!(r.send("web", &plain).one("up"), plain);
    // Another option, reserved bits, a flow label, Ethernet padding, another group.
    let mut label = plain.clone();
    label[15..18].copy_from_slice(b"\x01\x02\x03");
    let mut padded = plain.clone();
    padded.extend([7; 1400]);
    let elsewhere = Talk {
        dst_mac: group(*b"word"),
        dst: "ff02::6:7:8",
        ..to_group
    };
    for loaded in [
        to_group.icmp6(135, 0, &[&asks[..], &nonce].concat()),
        to_group.icmp6(135, 0xff, &asks),
        elsewhere.icmp6(135, 0, &asks),
        label,
        padded,
    ] {
        assert_eq!(r.send("web", &loaded).one("up"), plain);
    }
    // To one host: for the target, or it is no question for it.
    let to_one = Talk {
        dst_mac: mac(200),
        dst: "fd00::99",
        ..to_group
    };
    let plain = to_one.icmp6(135, 0, &asks);
    let astray = Talk {
        dst: "fd00::abcd",
        ..to_one
    };
    for t in [to_one, astray] {
        assert_eq!(r.send("web", &t.icmp6(135, 0, &asks)).one("up"), plain);
    }
    // The way in.
    let answers = [&far[..], &lladdr(2, 200)].concat();
    let back = talk(200, "fd00::99", 1, "fd00::1");
    let plain = back.icmp6(136, 0xe0, &answers);
    let loaded = back.icmp6(136, 0xff, &[&answers[..], &nonce].concat());
    assert_eq!(r.send("up", &loaded).one("web"), plain);
}

/// With the guard off a port may say anything, but not that it is somebody else.
#[test]
fn nobody_claims_what_is_anothers() {
    let mut open = layout();
    open[0].guard_off = true;
    for (mut r, guarded) in [(rig(), true), (Rig::new(open, &policy()), false)] {
        let says = |op, sender| arp(op, Mac::BROADCAST, sender, ([0; 6], FAR), b"");
        // The database's address, then its MAC; asked by and answered.
        for op in [1, 2] {
            r.send("web", &says(op, (1, [10, 0, 0, 2])))
                .dropped(R::SpoofedArp);
            let mut mac_of_db = says(op, WEB);
            mac_of_db[22..28].copy_from_slice(&mac(2).0);
            r.send("web", &mac_of_db).dropped(R::SpoofedArp);
        }
        let of = |src, dst| Talk {
            dst_mac: mac(200),
            ..talk(1, src, 0, dst)
        };
        let asks = |mac| [&octets("fd00::99")[..], &lladdr(1, mac)].concat();
        let answers = |target, mac| [&octets(target)[..], &lladdr(2, mac)].concat();
        let db = ["fd00::2", "fe80::5054:ff:fe00:2"];
        for addr in db {
            let t = of(addr, "fd00::99");
            r.send("web", &t.icmp6(135, 0, &asks(1)))
                .dropped(R::SpoofedIp);
            r.send("web", &t.udp(1, 53, b"")).dropped(R::SpoofedIp);
            let t = of("fd00::1", "fd00::99");
            r.send("web", &t.icmp6(136, 0x20, &answers(addr, 1)))
                .dropped(R::SpoofedArp);
            // Nor from outside.
            let t = talk(200, "fd00::99", 1, "fd00::1");
            r.send("up", &t.icmp6(136, 0x20, &answers(addr, 200)))
                .dropped(R::SpoofedFromUplink);
            let t = talk(200, addr, 1, "fd00::1");
            r.send("up", &t.udp(1, 53, b""))
                .dropped(R::SpoofedFromUplink);
        }
        let t = of("fd00::1", "fd00::99");
        r.send("web", &t.icmp6(135, 0, &asks(2)))
            .dropped(R::SpoofedArp);
        r.send("web", &t.icmp6(136, 0x20, &answers("fd00::1", 2)))
            .dropped(R::SpoofedArp);

        // What nobody has.
        let undeclared = says(1, (1, [10, 0, 0, 77]));
        let out = r.send("web", &undeclared);
        if guarded {
            out.dropped(R::SpoofedArp);
        } else {
            assert_eq!(out.one("up"), undeclared);
        }
    }
}

#[test]
fn the_address_made_of_a_mac_is_answered_for() {
    let mut r = rig();
    let t = Talk {
        dst_mac: group([0xff, 0, 0, 2]),
        ..talk(1, "fd00::1", 0, "ff02::1:ff00:2")
    };
    let target = octets("fe80::5054:ff:fe00:2");
    let body = [&target[..], &lladdr(1, 1)].concat();
    let out = r.send("web", &t.icmp6(135, 0, &body));
    let expect = talk(2, "fe80::5054:ff:fe00:2", 1, "fd00::1");
    let body = [&target[..], &lladdr(2, 2)].concat();
    assert_eq!(out.one("web"), expect.icmp6(136, 0x60, &body));
}

/// As broadcast frames do, questions for the outside spend of the sender's budget.
#[test]
fn a_storm_of_questions_costs_its_sender() {
    let mut ports = layout();
    ports.push(RigPort {
        uplink: true,
        ..port("up2", vec![])
    });
    let mut r = Rig::new(ports, &policy());
    let asks = |last| arp(1, Mac::BROADCAST, WEB, ([0; 6], [10, 0, 0, last]), b"");
    // Two uplinks: two copies each.
    for _ in 0..10_000 {
        assert_eq!(r.send("web", &asks(99)).got.len(), 2);
    }
    r.send("web", &asks(99)).dropped(R::FloodBudget);
    // The switch's own answers go on, and a neighbour has his own budget.
    assert_eq!(r.send("web", &asks(2)).got.len(), 1);
    let of_db = arp(1, Mac::BROADCAST, (2, [10, 0, 0, 2]), ([0; 6], FAR), b"");
    assert_eq!(r.send("db", &of_db).got.len(), 2);
    r.now_ns += 1_000_000_000;
    assert_eq!(r.send("web", &asks(99)).got.len(), 2);
}
