//! The built-in rules alone: who was declared a DHCP server or router is heard and answered, and
//! nobody else is.

use super::rig::*;
use crate::drop_reason::DropReason as R;
use crate::packet::Mac;
use crate::policy::model::Policy;

/// A client, two that offer addresses and routes, and the outside.
fn layout() -> Vec<RigPort> {
    let server = |name, mac, ip| port(name, vec![guest(name, mac, &[ip, link_local(mac)], name)]);
    vec![
        port("client", vec![guest("client", 1, &["10.0.0.1"], "client")]),
        server("good", 8, "10.0.0.8"),
        server("rogue", 9, "10.0.0.9"),
        RigPort {
            uplink: true,
            ..port("up", vec![])
        },
    ]
}

const fn link_local(mac: u8) -> &'static str {
    match mac {
        8 => "fe80::5054:ff:fe00:8",
        _ => "fe80::5054:ff:fe00:9",
    }
}

/// No rules but the built-in ones.
fn rig(dhcp_servers: &[&str], routers: &[&str]) -> Rig {
    let addresses = |list: &[&str]| list.iter().map(|ip| ip.parse().unwrap()).collect();
    let mut policy = Policy::default();
    policy.infrastructure.dhcp_servers = addresses(dhcp_servers);
    policy.infrastructure.routers = addresses(routers);
    Rig::new(layout(), &policy)
}

fn broadcast(src_mac: u8, src: &'static str) -> Talk {
    Talk {
        dst_mac: Mac::BROADCAST,
        ..talk(src_mac, src, 0, "255.255.255.255")
    }
}

/// Everybody who got the frame, which nobody dropped.
#[track_caller]
fn receivers(out: &Outcome) -> Vec<&'static str> {
    assert_eq!(out.drops.len(), 0);
    out.got.keys().copied().collect()
}

#[test]
fn dhcp_is_between_clients_and_declared_servers() {
    let discover = broadcast(1, "0.0.0.0").udp(68, 67, b"discover");
    let offer = |mac, ip| broadcast(mac, ip).udp(67, 68, b"offer");

    let mut r = rig(&["10.0.0.8"], &[]);
    assert_eq!(receivers(&r.send("client", &discover)), ["good"]);
    let out = r.send("good", &offer(8, "10.0.0.8"));
    assert_eq!(receivers(&out), ["client", "rogue"]);
    // To the client alone, where it need not be answered by broadcast.
    let renewal = talk(1, "10.0.0.1", 8, "10.0.0.8").udp(68, 67, b"request");
    r.send("client", &renewal).reached("good", &renewal);
    for (from, frame) in [
        ("rogue", offer(9, "10.0.0.9")),
        (
            "rogue",
            talk(9, "10.0.0.9", 1, "10.0.0.1").udp(67, 68, b"offer"),
        ),
        ("up", offer(200, "198.51.100.1")),
        // Of a server nothing else is heard.
        ("good", broadcast(8, "10.0.0.8").udp(67, 53, b"")),
    ] {
        r.send(from, &frame).dropped(R::PolicyDefaultDeny);
    }

    let mut r = rig(&["198.51.100.1"], &[]);
    assert_eq!(receivers(&r.send("client", &discover)), ["up"]);
    let out = r.send("up", &offer(200, "198.51.100.1"));
    assert_eq!(receivers(&out), ["client", "good", "rogue"]);
    r.send("up", &offer(200, "198.51.100.2"))
        .dropped(R::PolicyDefaultDeny);

    rig(&[], &[])
        .send("client", &discover)
        .dropped(R::PolicyDefaultDeny);
}

#[test]
fn router_advertisements_are_of_declared_routers() {
    let group = |last, src_mac, src, dst| Talk {
        dst_mac: Mac([0x33, 0x33, 0, 0, 0, last]),
        ..talk(src_mac, src, 0, dst)
    };
    let advertises = |mac, src| group(1, mac, src, "ff02::1").icmp6(134, 64, &[0; 8]);
    let solicits = group(2, 1, "::", "ff02::2").icmp6(133, 0, &[]);

    let mut r = rig(&[], &[link_local(8)]);
    assert_eq!(receivers(&r.send("client", &solicits)), ["good"]);
    let out = r.send("good", &advertises(8, link_local(8)));
    assert_eq!(receivers(&out), ["client", "rogue"]);
    for (from, frame) in [
        ("rogue", advertises(9, link_local(9))),
        ("up", advertises(200, "fe80::99")),
    ] {
        r.send(from, &frame).dropped(R::PolicyDefaultDeny);
    }
    r.send("rogue", &advertises(9, link_local(8)))
        .dropped(R::SpoofedIp);

    let mut r = rig(&[], &["fe80::99"]);
    assert_eq!(receivers(&r.send("client", &solicits)), ["up"]);
    let out = r.send("up", &advertises(200, "fe80::99"));
    assert_eq!(receivers(&out), ["client", "good", "rogue"]);
    r.send("up", &advertises(200, "fe80::98"))
        .dropped(R::PolicyDefaultDeny);

    rig(&[], &[])
        .send("client", &solicits)
        .dropped(R::PolicyDefaultDeny);
}
