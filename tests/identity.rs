//! Who sent it, and who may have it: frames that pretend, sent raw from inside containers and from the outside over real
//! interfaces. Each is dropped for its own reason, and nobody receives it.

mod common;

use common::container::{Drops, conserves, drops, within};
use common::netns::Netns;
use common::raw::RawSocket;
use common::switch::{Switch, SwitchConfig};
use common::{Lab, Need, wait_for};
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::time::Duration;
use vswitch::guest::{Guest, GuestConfig};

/// Bound on what must happen.
const LIMIT: Duration = Duration::from_secs(20);

type Mac = [u8; 6];
type Ip = [u8; 4];

const fn mac(last: u8) -> Mac {
    [0x52, 0x54, 0, 0, 0, last]
}

const fn ip(last: u8) -> Ip {
    [10, 0, 0, last]
}

/// The outside's, behind the uplink.
const OUTSIDE: (Mac, Ip) = (mac(0xee), [192, 0, 2, 1]);

/// UDP port that everybody may send to.
const OPEN: u16 = 5000;

/// Everybody may send to everybody on [`OPEN`]; on another port, only friends to each other.
const POLICY: &str = r#"
[[segment]]
name = "outside"
cidr = ["0.0.0.0/0"]
[[segment]]
name = "friends"
tags = ["friend"]
[[rule]]
name = "open"
from = ["any", "outside"]
to = ["any", "outside"]
service = ["udp/5000 from 5000"]
action = "allow"
[[rule]]
name = "friends"
from = "friends"
to = "friends"
service = ["udp/6000"]
action = "allow"
"#;

fn udp(macs: (Mac, Mac), ips: (Ip, Ip), ports: (u16, u16), text: &str) -> Vec<u8> {
    let mut frame = Vec::new();
    etherparse::PacketBuilder::ethernet2(macs.0, macs.1)
        .ipv4(ips.0, ips.1, 64)
        .udp(ports.0, ports.1)
        .write(&mut frame, text.as_bytes())
        .expect("a vector takes every frame");
    frame
}

/// An ARP reply by which `macs.0` claims `claimed`, with `text` in its padding.
fn arp_claim(macs: (Mac, Mac), claimed: Ip, told: Ip, text: &str) -> Vec<u8> {
    let mut frame = [macs.1, macs.0].concat();
    // EtherType; Ethernet, IPv4, address lengths, reply (RFC 826).
    frame.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 2]);
    frame.extend([&macs.0[..], &claimed, &macs.1, &told].concat());
    frame.extend(text.as_bytes());
    frame.resize(60, 0);
    frame
}

const fn ip6(last: u8) -> [u8; 16] {
    [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]
}

fn udp6(macs: (Mac, Mac), ips: ([u8; 16], [u8; 16]), ports: (u16, u16), text: &str) -> Vec<u8> {
    let mut frame = Vec::new();
    etherparse::PacketBuilder::ethernet2(macs.0, macs.1)
        .ipv6(ips.0, ips.1, 64)
        .udp(ports.0, ports.1)
        .write(&mut frame, text.as_bytes())
        .expect("a vector takes every frame");
    frame
}

/// A neighbour advertisement by which `macs.0` with address `own` claims `claimed`, with `text` in an option that nobody knows.
fn nd_claim(
    macs: (Mac, Mac),
    own: [u8; 16],
    claimed: [u8; 16],
    told: [u8; 16],
    text: &str,
) -> Vec<u8> {
    // The target, then option 2: its link-layer address (RFC 4861 section 4.6.1).
    let mut message = [&claimed[..], &[2, 1], &macs.0].concat();
    let units = (2 + text.len()).div_ceil(8);
    let end = message.len() + units * 8;
    // 253: for experiments (RFC 4727).
    message.extend([253, u8::try_from(units).expect("a short text")]);
    message.extend(text.as_bytes());
    message.resize(end, 0);
    let mut frame = Vec::new();
    etherparse::PacketBuilder::ethernet2(macs.0, macs.1)
        .ipv6(own, told, 255)
        // Neighbour advertisement with the flags solicited and override (RFC 4861 section 4.4).
        .icmpv6_raw(136, 0, [0x60, 0, 0, 0])
        .write(&mut frame, &message)
        .expect("a vector takes every frame");
    frame
}

fn holds(frame: &[u8], text: &str) -> bool {
    frame.windows(text.len()).any(|w| w == text.as_bytes())
}

/// A namespace that says nothing by itself: no IPv6, no addresses.
struct Mute {
    name: &'static str,
    mac: Mac,
    ip: Ip,
    socket: RawSocket,
    _ns: Netns,
}

impl Mute {
    fn new(lab: &Lab, host: &Netns, name: &'static str, mac: Mac, ip: Ip) -> Self {
        let ns = Netns::new(lab, name);
        silence(&ns);
        host.veth(&format!("vs-{name}"), &ns, "eth0");
        let socket = RawSocket::open(&ns, "eth0");
        Self {
            name,
            mac,
            ip,
            socket,
            _ns: ns,
        }
    }

    /// Its port, guarded unless `keys` say otherwise.
    fn port(&self, keys: &str, addresses: &str) -> String {
        let name = self.name;
        let [.., last] = self.mac;
        format!(
            "[[port]]\nname = \"{name}\"\nkind = \"af-xdp\"\ninterface = \"vs-{name}\"\n{keys}\n\
             [[port.workload]]\nname = \"{name}\"\nmac = [\"52:54:00:00:00:{last:02x}\"]\n{addresses}\n"
        )
    }

    /// An honest frame to `to`.
    fn honest(&self, to: &Mute, text: &str) -> Vec<u8> {
        udp((self.mac, to.mac), (self.ip, to.ip), (OPEN, OPEN), text)
    }

    /// Waits for a frame that holds `text`; the frames before it.
    fn recv_until(&self, text: &str) -> Vec<Vec<u8>> {
        let mut before = Vec::new();
        loop {
            let frame = self.socket.recv(LIMIT);
            let frame = frame.unwrap_or_else(|| panic!("{text:?} did not reach {}", self.name));
            if holds(&frame, text) {
                return before;
            }
            before.push(frame);
        }
    }
}

/// Without IPv6 the kernel sends nothing of its own.
fn silence(ns: &Netns) {
    within(ns, || {
        for which in ["all", "default"] {
            let path = format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6");
            // A kernel without IPv6 has no such file, and is silent.
            let _ = std::fs::write(path, "1");
        }
    });
}

/// `a`, `b` and `c` guarded; `d` unguarded, without declared addresses; the outside behind an uplink.
struct Site {
    host: Netns,
    members: [Mute; 5],
}

impl Site {
    fn new(lab: &Lab) -> Self {
        let host = Netns::new(lab, "host");
        silence(&host);
        let mute = |name, n| Mute::new(lab, &host, name, mac(n), ip(n));
        let members = [
            mute("a", 1),
            mute("b", 2),
            mute("c", 3),
            mute("d", 4),
            Mute::new(lab, &host, "up", OUTSIDE.0, OUTSIDE.1),
        ];
        Self { host, members }
    }

    fn start<'a>(&'a self, lab: &'a Lab) -> Switch<'a> {
        let [a, b, c, d, _] = &self.members;
        let guarded = |m: &Mute| {
            let [.., last] = m.ip;
            m.port(
                "",
                &format!("ip = [\"10.0.0.{last}\", \"fd00::{last}\"]\ntags = [\"friend\"]"),
            )
        };
        let uplink =
            "[[port]]\nname = \"up\"\nkind = \"af-xdp\"\ninterface = \"vs-up\"\nuplink = true\n";
        let ports = [
            "policy = \"policy.toml\"\n".to_owned(),
            guarded(a),
            guarded(b),
            guarded(c),
            d.port("guard = \"off\"", "tags = [\"friend\"]"),
            uplink.to_owned(),
        ];
        let switch = SwitchConfig::new(lab, "switch", &ports.concat(), POLICY)
            .in_netns(&self.host)
            .start();
        // The kernel may say only after a while that an interface has a carrier; a frame before that is lost.
        switch.wait_ports_up(5);
        switch
    }

    /// `from` sends `frame`, which holds `text`. It is dropped for `reason`, nothing else is, and nobody receives it.
    fn refuses(&self, switch: &Switch<'_>, from: &Mute, frame: &[u8], text: &str, reason: &str) {
        let before = drops(switch);
        from.socket.send(frame);
        let key = (from.name.to_owned(), reason.to_owned());
        let mut expected = before.clone();
        *expected.entry(key.clone()).or_default() += 1;
        let mut now = Drops::new();
        let counted = common::poll(LIMIT, || {
            now = drops(switch);
            (now != before).then_some(())
        });
        assert!(counted.is_some(), "{text}: nothing was dropped");
        assert_eq!(now, expected, "{text}");
        // What the switch had sent on would be ahead of what it is given now.
        self.nobody_received(from, text);
        assert_eq!(
            drops(switch),
            expected,
            "{text}: honest frames were dropped"
        );
    }

    /// Sends an honest frame to everybody else, and sees that nothing with `text` is ahead of it.
    fn nobody_received(&self, sender: &Mute, text: &str) {
        let last = format!("after {text}");
        // `a` sends, and `b` to `a`: guarded, and allowed to reach everybody.
        let [a, b, ..] = &self.members;
        for to in &self.members {
            let from = if to.name == a.name { b } else { a };
            from.socket.send(&from.honest(to, &last));
            let before = to.recv_until(&last);
            // A packet socket also sees what others send on its interface, but not what it sends itself.
            let leaked = before.iter().any(|f| holds(f, text));
            assert!(!leaked, "{}'s {text} reached {}", sender.name, to.name);
        }
    }
}

#[test]
fn whoever_pretends_is_dropped_for_what_he_pretends() {
    let Some(lab) = Lab::open(&[Need::Netns]) else {
        return;
    };
    let site = Site::new(&lab);
    let switch = site.start(&lab);
    let [a, b, _, d, up] = &site.members;
    site.nobody_received(a, "the first");
    let to_b = |from: Mac, address: Ip, text: &str| {
        udp((from, b.mac), (address, b.ip), (OPEN, OPEN), text)
    };
    let refuses =
        |from, frame: Vec<u8>, text, reason| site.refuses(&switch, from, &frame, text, reason);

    let text = "a neighbour's MAC";
    refuses(a, to_b(mac(3), a.ip, text), text, "declared_mac_moved");
    let text = "a neighbour's MAC and address";
    refuses(a, to_b(mac(3), ip(3), text), text, "declared_mac_moved");
    let text = "nobody's MAC";
    refuses(a, to_b(mac(0x77), a.ip, text), text, "spoofed_mac");
    let text = "a neighbour's address";
    refuses(a, to_b(a.mac, ip(3), text), text, "spoofed_ip");
    let text = "an outside address";
    refuses(a, to_b(a.mac, OUTSIDE.1, text), text, "spoofed_ip");
    let text = "a claim by ARP";
    let claim = arp_claim((a.mac, b.mac), ip(3), b.ip, text);
    refuses(a, claim, text, "spoofed_arp");
    let text = "a neighbour's IPv6 address";
    let frame = udp6((a.mac, b.mac), (ip6(3), ip6(2)), (OPEN, OPEN), text);
    refuses(a, frame, text, "spoofed_ip");
    let text = "a claim by neighbour discovery";
    let claim = nd_claim((a.mac, b.mac), ip6(1), ip6(3), ip6(2), text);
    refuses(a, claim, text, "spoofed_arp");
    let text = "a VLAN that is not the port's";
    let mut frame = to_b(a.mac, a.ip, text);
    // IEEE 802.1Q: VLAN 10.
    frame.splice(12..12, [0x81, 0, 0, 10]);
    refuses(a, frame, text, "vlan_not_allowed");

    // Without a guard a port may use whatever nobody else has declared.
    let text = "a database's MAC at another port";
    refuses(d, to_b(mac(3), ip(9), text), text, "declared_mac_moved");
    let text = "a declared address at another port";
    refuses(d, to_b(d.mac, ip(3), text), text, "spoofed_ip");

    let text = "a local MAC from outside";
    refuses(
        up,
        to_b(mac(3), OUTSIDE.1, text),
        text,
        "spoofed_from_uplink",
    );
    let text = "a local address from outside";
    refuses(up, to_b(up.mac, ip(3), text), text, "spoofed_from_uplink");
    let text = "a local IPv6 address from outside";
    let frame = udp6((up.mac, b.mac), (ip6(3), ip6(2)), (OPEN, OPEN), text);
    refuses(up, frame, text, "spoofed_from_uplink");
    conserves(&switch);
}

#[test]
fn a_connection_is_between_two_attachments_not_two_addresses() {
    let Some(lab) = Lab::open(&[Need::Netns]) else {
        return;
    };
    let site = Site::new(&lab);
    let switch = site.start(&lab);
    let [a, b, c, d, up] = &site.members;

    // Established, both ways: with `b`, and with an address of which only `d` is known to take frames.
    let (there, back) = ((1234, 6000), (6000, 1234));
    let undeclared = ip(99);
    for (to, address) in [(b, b.ip), (d, undeclared)] {
        a.socket
            .send(&udp((a.mac, to.mac), (a.ip, address), there, "there"));
        to.recv_until("there");
        to.socket
            .send(&udp((to.mac, a.mac), (address, a.ip), back, "and back"));
        a.recv_until("and back");
    }

    // The same five-tuples to other MACs: an address that its owner alone may be sent, and one that anybody outside may have,
    // where the connection's verdict is not the outside's.
    for (to, text) in [
        (c, "the same tuple to c"),
        (d, "the same tuple to d"),
        (up, "the same tuple to the outside"),
    ] {
        let frame = udp((a.mac, to.mac), (a.ip, b.ip), there, text);
        site.refuses(&switch, a, &frame, text, "destination_mismatch");
    }
    let text = "the other tuple to c";
    let frame = udp((a.mac, c.mac), (a.ip, undeclared), there, text);
    site.refuses(&switch, a, &frame, text, "destination_mismatch");
    let text = "the other tuple to the outside";
    let frame = udp((a.mac, up.mac), (a.ip, undeclared), there, text);
    site.refuses(&switch, a, &frame, text, "policy_default_deny");
    // As if they were replies, from others.
    let text = "the reply of b from d";
    let frame = udp((d.mac, a.mac), (b.ip, a.ip), back, text);
    site.refuses(&switch, d, &frame, text, "spoofed_ip");
    let text = "the reply of d from outside";
    let frame = udp((up.mac, a.mac), (undeclared, a.ip), back, text);
    site.refuses(&switch, up, &frame, text, "policy_default_deny");

    // The connections themselves are as they were.
    for (to, address) in [(b, b.ip), (d, undeclared)] {
        a.socket
            .send(&udp((a.mac, to.mac), (a.ip, address), there, "once more"));
        to.recv_until("once more");
    }
    conserves(&switch);
}

#[test]
fn a_second_connection_to_a_guests_socket_is_refused() {
    // The machine is not needed, but its turn: a process of the switch runs.
    let Some(lab) = Lab::open(&[]) else { return };
    let socket = lab.path("v.sock");
    let switch_toml = format!(
        "policy = \"policy.toml\"\n[[port]]\nname = \"v\"\nkind = \"vhost-user\"\nsocket = \"{}\"\n\
         [[port.workload]]\nname = \"v\"\nmac = [\"52:54:00:00:00:01\"]\n",
        socket.display()
    );
    let switch = SwitchConfig::new(&lab, "switch", &switch_toml, "").start();
    let port = || switch.cli_json(&["port", "list"])[0].clone();
    let guest = Guest::connect(&socket, GuestConfig::default()).expect("the first is let in");
    wait_for("the guest", LIMIT, || (port()["up"] == true).then_some(()));
    assert_eq!(port()["refused_connections"], 0);

    for n in 1..=2 {
        let mut second = UnixStream::connect(&socket).expect("the socket listens");
        second
            .set_read_timeout(Some(LIMIT))
            .expect("a socket can be");
        let heard = second.read(&mut [0; 16]).expect("an end, not silence");
        assert_eq!(heard, 0, "the second is spoken to");
        assert_eq!(port()["refused_connections"], n);
    }
    assert!(guest.is_connected());
    assert_eq!(port()["up"], true);
    // Only the first one's end makes room.
    drop(guest);
    wait_for("room for the next", LIMIT, || {
        Guest::connect(&socket, GuestConfig::default()).ok()
    });
}
