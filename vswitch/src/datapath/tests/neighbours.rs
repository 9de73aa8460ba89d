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
