//! Nobody receives a frame that was not judged for him, and nobody speaks for another: each
//! attempt is refused with a reason of its own.

use super::rig::*;
use crate::datapath::l2::AGEING_TICKS;
use crate::drop_reason::DropReason as R;
use crate::frame::Offload;
use crate::packet::Mac;
use crate::policy::model::{Action, Policy};

fn layout() -> Vec<RigPort> {
    vec![
        port(
            "web",
            vec![guest("web", 1, &["10.0.0.1", "fd00::1"], "web")],
        ),
        port("db", vec![guest("db", 2, &["10.0.0.2", "fd00::2"], "db")]),
        port(
            "evil",
            vec![guest("evil", 3, &["10.0.0.3", "fd00::3"], "evil")],
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
            segment("evil", "evil"),
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
                "by-source",
                "web",
                "db",
                &["udp/60 from 1000"],
                Action::Allow,
            ),
            rule("web-out", "web", "outside", &["tcp", "udp"], Action::Allow),
            rule("in", "outside", "web", &["tcp/80", "udp/80"], Action::Allow),
        ],
        ..Policy::default()
    }
}

fn rig() -> Rig {
    Rig::new(layout(), &policy())
}

const WEB_DB: fn() -> Talk = || talk(1, "10.0.0.1", 2, "10.0.0.2");

#[test]
fn the_same_tuple_to_another_mac_is_another_connection() {
    let mut r = rig();
    let good = WEB_DB().udp(1000, 53, b"q");
    r.send("web", &good).reached("db", &good);
    // The established five-tuple, redirected to the evil port's MAC.
    let bad = Talk {
        dst_mac: mac(3),
        ..WEB_DB()
    }
    .udp(1000, 53, b"q");
    r.send("web", &bad).dropped(R::DestinationMismatch);
    // And to a foreign MAC, which would leave by the uplink.
    let bad = Talk {
        dst_mac: mac(99),
        ..WEB_DB()
    }
    .udp(1000, 53, b"q");
    r.send("web", &bad).dropped(R::DestinationMismatch);
    r.send("web", &good).reached("db", &good);
}

#[test]
fn a_reply_can_only_come_from_where_the_request_went() {
    let mut r = rig();
    let ask = WEB_DB().udp(1000, 53, b"q");
    r.send("web", &ask).reached("db", &ask);
    let answer = WEB_DB().back().udp(53, 1000, b"a");
    r.send("evil", &answer).dropped(R::DeclaredMacMoved);
    let own_mac = Talk {
        src_mac: 3,
        ..WEB_DB().back()
    }
    .udp(53, 1000, b"a");
    r.send("evil", &own_mac).dropped(R::SpoofedIp);
    r.send("db", &answer).reached("web", &answer);
}

#[test]
fn a_neighbours_mac_or_address_is_refused() {
    let mut r = rig();
    let talk3 = talk(3, "10.0.0.3", 2, "10.0.0.2");
    r.send(
        "evil",
        &Talk {
            src_mac: 1,
            ..talk3
        }
        .udp(1, 53, b""),
    )
    .dropped(R::DeclaredMacMoved);
    r.send(
        "evil",
        &Talk {
            src_mac: 77,
            ..talk3
        }
        .udp(1, 53, b""),
    )
    .dropped(R::SpoofedMac);
    r.send(
        "evil",
        &Talk {
            src: "10.0.0.1",
            ..talk3
        }
        .udp(1, 53, b""),
    )
    .dropped(R::SpoofedIp);
    r.send(
        "evil",
        &Talk {
            src: "192.0.2.9",
            ..talk3
        }
        .udp(1, 53, b""),
    )
    .dropped(R::SpoofedIp);
    let v6 = talk(3, "fd00::1", 2, "fd00::2");
    r.send("evil", &v6.udp(1, 53, b"")).dropped(R::SpoofedIp);
    r.send("evil", &talk3.udp(1, 53, b""))
        .dropped(R::PolicyDefaultDeny);
}

#[test]
fn a_databases_mac_on_another_port_changes_nothing() {
    let mut r = rig();
    // Even with the guard off, a declared MAC stays where it was declared.
    let mut open = layout();
    open[2].guard_off = true;
    let mut r2 = Rig::new(open, &policy());
    for r in [&mut r, &mut r2] {
        let moved = talk(2, "10.0.0.2", 1, "10.0.0.1").udp(53, 1000, b"");
        r.send("evil", &moved).dropped(R::DeclaredMacMoved);
        let claimed = talk(3, "10.0.0.2", 1, "10.0.0.1").udp(53, 1000, b"");
        r.send("evil", &claimed).dropped(R::SpoofedIp);
        let ask = WEB_DB().udp(1000, 53, b"q");
        r.send("web", &ask).reached("db", &ask);
    }
}

#[test]
fn an_uplink_frame_with_a_local_source_is_spoofed() {
    let mut r = rig();
    let ip = Talk {
        src_mac: 200,
        ..talk(200, "10.0.0.2", 1, "10.0.0.1")
    };
    r.send("up", &ip.udp(1, 80, b""))
        .dropped(R::SpoofedFromUplink);
    let by_mac = talk(2, "198.51.100.1", 1, "10.0.0.1");
    r.send("up", &by_mac.udp(1, 80, b""))
        .dropped(R::SpoofedFromUplink);
    let honest = talk(200, "198.51.100.1", 1, "10.0.0.1").udp(1, 80, b"");
    r.send("up", &honest).reached("web", &honest);
}

#[test]
fn the_outside_is_no_transit_network() {
    let mut r = rig();
    let through = talk(200, "198.51.100.1", 201, "203.0.113.1").udp(1, 80, b"");
    r.send("up", &through).dropped(R::UnknownDestination);
}

#[test]
fn an_unknown_destination_goes_to_the_uplink_only() {
    let mut r = rig();
    let out = talk(1, "10.0.0.1", 201, "203.0.113.1").udp(1, 443, b"");
    r.send("web", &out).reached("up", &out);
    let mut no_uplink = layout();
    no_uplink.pop();
    let mut r = Rig::new(no_uplink, &policy());
    r.send("web", &out).dropped(R::UnknownDestination);
}

#[test]
fn of_two_uplinks_the_one_a_station_was_seen_behind_is_chosen() {
    let mut ports = layout();
    ports.push(RigPort {
        uplink: true,
        ..port("up-2", vec![])
    });
    let mut r = Rig::new(ports, &policy());
    let mut sport = 0;
    let mut goes_by = |r: &mut Rig, station: u8, uplink: &str| {
        // Each time another connection: an open one stays with its uplink.
        sport += 1;
        let out = talk(1, "10.0.0.1", station, "198.51.100.1").udp(sport, 443, b"");
        r.send("web", &out).reached(uplink, &out);
    };
    let seen = talk(200, "198.51.100.1", 1, "10.0.0.1").udp(1, 80, b"");
    goes_by(&mut r, 200, "up");
    r.send("up-2", &seen).reached("web", &seen);
    goes_by(&mut r, 200, "up-2");
    goes_by(&mut r, 201, "up");
    r.send("up", &seen).reached("web", &seen);
    goes_by(&mut r, 200, "up");
    r.send("up-2", &seen).reached("web", &seen);
    assert_eq!(r.totals().macs_moved, 2);
    r.now_ns += (u64::from(AGEING_TICKS) + 1) * 1_000_000_000;
    goes_by(&mut r, 200, "up");
}

#[test]
fn a_port_without_workload_has_no_identity() {
    let mut ports = layout();
    ports.push(port("empty", vec![]));
    let mut r = Rig::new(ports, &policy());
    let any = talk(9, "10.0.0.9", 1, "10.0.0.1").udp(1, 80, b"");
    r.send("empty", &any).dropped(R::UnknownSender);
}

#[test]
fn only_declared_vlans_enter() {
    let mut r = rig();
    let f = tagged(&WEB_DB().udp(1, 53, b""), 5);
    r.send("web", &f).dropped(R::VlanNotAllowed);
    // Tag 0 is only a priority.
    let plain = WEB_DB().udp(1, 53, b"");
    r.send("web", &tagged(&plain, 0)).reached("db", &plain);
}

#[test]
fn a_second_tag_never_becomes_the_first() {
    let mut r = rig();
    let twice = |frame: &[u8]| tagged(&tagged(frame, 5), 0);
    let unicast = WEB_DB().udp(1, 53, b"");
    let mut group = unicast.clone();
    group[..6].copy_from_slice(&[1, 0, 0x5e, 0, 0, 0xfb]);
    let mut request = Mac::BROADCAST.0.to_vec();
    request.extend(mac(1).0);
    request.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    request.extend(mac(1).0);
    request.extend([10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 77]);
    for frame in [unicast, group, request] {
        let out = r.send("web", &frame);
        assert_eq!(out.drops, Default::default());
        r.send("web", &twice(&frame)).dropped(R::VlanNotAllowed);
    }
}

#[test]
fn a_router_may_send_for_its_networks_but_not_for_a_workload() {
    let mut ports = layout();
    let (addr, len) = ("192.0.2.0".parse().unwrap(), 24);
    ports[0].routes = vec![crate::packet::Cidr { addr, len }];
    let (addr, len) = ("10.0.0.0".parse().unwrap(), 8);
    ports[0].routes.push(crate::packet::Cidr { addr, len });
    let mut r = Rig::new(ports, &policy());
    let routed = Talk {
        src: "192.0.2.77",
        ..WEB_DB()
    }
    .udp(1, 53, b"");
    r.send("web", &routed).reached("db", &routed);
    let stolen = Talk {
        src: "10.0.0.3",
        ..WEB_DB()
    }
    .udp(1, 53, b"");
    r.send("web", &stolen).dropped(R::SpoofedIp);
}

#[test]
fn link_local_protocols_stay_on_their_link() {
    let mut r = rig();
    let f = Talk {
        dst_mac: Mac([1, 0x80, 0xc2, 0, 0, 0]),
        ..WEB_DB()
    }
    .udp(1, 53, b"");
    r.send("web", &f).dropped(R::ReservedMulticast);
}

#[test]
fn a_frame_to_oneself_goes_nowhere() {
    let mut r = rig();
    let f = talk(1, "10.0.0.1", 1, "10.0.0.1").udp(1, 53, b"");
    r.send("web", &f).dropped(R::SamePort);
}

/// Frames of a burst come in trains between the same ends, and what was found out about the first of them is used
/// for those behind it: each must fare as it does alone.
#[test]
fn a_frame_of_a_train_fares_as_it_does_alone() {
    let good = WEB_DB().udp(1000, 53, b"q");
    let nameless = Talk {
        src: "0.0.0.0",
        ..WEB_DB()
    };
    let v6 = talk(1, "fd00::1", 2, "fd00::2");
    let local = |t| Talk {
        src: "fe80::77",
        ..t
    };
    let bases = [
        good.clone(),
        v6.udp(1000, 53, b"q"),
        // From addresses that are good for some packets only.
        nameless.udp(68, 67, b"discover"),
        local(v6).icmp6(136, 0, &[0; 16]),
        local(v6).icmp6(135, 0, &[0; 16]),
        tagged(&good, 0),
    ];
    let [first, later] = fragments(&WEB_DB().udp(1000, 53, &[7; 64]), 99);
    let frames = [
        good.clone(),
        WEB_DB().udp(1001, 53, b"q"),
        WEB_DB().udp(1001, 53, b"q"),
        WEB_DB().udp(1000, 54, b"denied"),
        WEB_DB().udp(1001, 54, b"denied"),
        WEB_DB().udp(1000, 60, b"from the port it may come from"),
        WEB_DB().udp(1001, 60, b"denied"),
        WEB_DB().back().udp(53, 1000, b"from the wrong port"),
        talk(1, "10.0.0.9", 2, "10.0.0.2").udp(1000, 53, b"q"),
        talk(9, "10.0.0.1", 2, "10.0.0.2").udp(1000, 53, b"q"),
        talk(1, "10.0.0.1", 3, "10.0.0.2").udp(1000, 53, b"q"),
        talk(1, "10.0.0.1", 2, "10.0.0.3").udp(1000, 53, b"q"),
        talk(1, "10.0.0.1", 1, "10.0.0.1").udp(1000, 53, b"q"),
        nameless.udp(68, 67, b"discover"),
        nameless.udp(1000, 53, b"q"),
        WEB_DB().ping(5, false),
        WEB_DB().unreachable(&WEB_DB().back().udp(53, 1000, b"q")),
        first,
        later,
        tagged(&good, 0),
        tagged(&good, 7),
        tagged(&tagged(&good, 7), 0),
        v6.udp(1000, 53, b"q"),
        v6.icmp6(135, 0, &[0; 16]),
        v6.icmp6(128, 0, &[0; 16]),
        local(v6).udp(1000, 53, b"q"),
        local(v6).icmp6(128, 0, &[0; 16]),
    ];
    for base in &bases {
        for frame in &frames {
            let mut alone = rig();
            let mut expected = alone.send("web", base);
            let then = alone.send("web", frame);
            for (port, got) in then.got {
                expected.got.entry(port).or_default().extend(got);
            }
            for (reason, n) in then.drops {
                *expected.drops.entry(reason).or_default() += n;
            }
            let both = [base.clone(), frame.clone()];
            let out = rig().send_all("web", &both, Offload::default());
            assert_eq!(out, expected, "{base:02x?} before {frame:02x?}");
        }
    }
}

/// First packets of one burst are judged beside each other: each must fare as it does alone.
#[test]
fn first_packets_of_a_burst_fare_as_they_do_alone() {
    let from_web = [
        WEB_DB().udp(1000, 53, b"q"),
        WEB_DB().udp(1000, 54, b"denied"),
        WEB_DB().tcp((1000, 5432), "S", 1, 0, b""),
        WEB_DB().tcp((1001, 5432), "A", 1, 1, b"no connection"),
        WEB_DB().tcp((1002, 5433), "S", 1, 0, b"denied"),
        WEB_DB().ping(1, false),
        WEB_DB().ping(2, true),
        talk(1, "fd00::1", 2, "fd00::2").udp(1000, 53, b"q"),
        talk(1, "10.0.0.1", 3, "10.0.0.3").udp(1000, 53, b"denied"),
        talk(1, "10.0.0.1", 200, "192.0.2.1").udp(1000, 9, b"out"),
        talk(1, "fd00::1", 200, "2001:db8::1").tcp((1000, 9), "S", 1, 0, b""),
    ];
    let outside = |src| talk(200, src, 1, "10.0.0.1");
    let from_up = [
        outside("192.0.2.1").udp(1000, 80, b"in"),
        outside("192.0.2.2").udp(1000, 81, b"denied"),
        outside("198.51.100.3").tcp((1000, 80), "S", 1, 0, b""),
        outside("198.51.100.3").tcp((1000, 22), "S", 1, 0, b"denied"),
        talk(200, "2001:db8::1", 1, "fd00::1").udp(1000, 80, b"in"),
        talk(200, "192.0.2.1", 2, "10.0.0.2").udp(1000, 80, b"denied"),
    ];
    for (port, frames) in [("web", &from_web[..]), ("up", &from_up[..])] {
        let mut alone = rig();
        let mut expected = Outcome::default();
        for frame in frames {
            let out = alone.send(port, frame);
            for (port, got) in out.got {
                expected.got.entry(port).or_default().extend(got);
            }
            for (reason, n) in out.drops {
                *expected.drops.entry(reason).or_default() += n;
            }
        }
        assert!(!expected.got.is_empty() && !expected.drops.is_empty());
        let mut together = rig();
        let out = together.send_all(port, frames, Offload::default());
        assert_eq!(out, expected, "from {port}");
        let opened = |r: &Rig| r.worker_values().conn_insert;
        assert_eq!(opened(&together), opened(&alone));
    }
}
