//! What a port may be besides a plain attachment, through the daemon and its command line: a capture that is replayed and
//! recorded, a trunk of VLANs, a router with networks behind it, and a tenant's own.
//!
//! The frames are sent and received by guests of our own, so none of this needs a privilege. That nothing else arrived is told by
//! an allowed frame sent after it: frames of one sender stay in order.

mod common;

use common::Lab;
use common::station::{Station, arp_request, mac, port, tagged, udp, workload};
use common::switch::{Switch, SwitchConfig};
use common::wait_for;
use std::path::Path;
use std::time::Duration;
use vswitch::sys::virtio::NetHdr;

/// Bound on what must happen.
const LIMIT: Duration = Duration::from_secs(20);

fn switch_toml(ports: &[String]) -> String {
    format!(
        "policy = \"policy.toml\"\n[switch]\nconnections = 10000\n{}",
        ports.concat()
    )
}

/// A `[[segment]]` table; `keys` are further lines of it.
fn segment(name: &str, keys: &str) -> String {
    format!("[[segment]]\nname = \"{name}\"\n{keys}\n")
}

/// A `[[rule]]` table.
fn rule(name: &str, from: &str, to: &str, service: &str, action: &str) -> String {
    format!(
        "[[rule]]\nname = \"{name}\"\nfrom = \"{from}\"\nto = \"{to}\"\nservice = \"{service}\"\naction = \"{action}\"\n"
    )
}

/// Does `f`, which makes the switch drop `n` more frames for `reason`, and waits for them.
fn drops(switch: &Switch<'_>, reason: &str, n: u64, f: impl FnOnce()) {
    let before = switch.dropped(reason);
    f();
    wait_for(&format!("{n} more {reason}"), LIMIT, || {
        (switch.dropped(reason) >= before + n).then_some(())
    });
    assert_eq!(switch.dropped(reason), before + n, "{reason}");
}

// --- pcap ---------------------------------------------------------------------------------------

/// A capture in the classic format (draft-ietf-opsawg-pcap, section 4): each frame with its length on the wire.
fn classic_pcap(frames: &[(Vec<u8>, usize)]) -> Vec<u8> {
    let mut out = Vec::new();
    let word = |out: &mut Vec<u8>, n: usize| {
        out.extend(u32::try_from(n).expect("a small number").to_le_bytes());
    };
    // Magic for microseconds, version 2.4, two reserved words, snapshot length, Ethernet.
    for n in [0xa1b2_c3d4, 2 | 4 << 16, 0, 0, 262_144, 1] {
        word(&mut out, n);
    }
    for (frame, on_the_wire) in frames {
        for n in [1_700_000_000, 0, frame.len(), *on_the_wire] {
            word(&mut out, n);
        }
        out.extend(frame);
    }
    out
}

/// The frames of a recording, read by its format's description (draft-ietf-opsawg-pcapng, sections 3.1 and 4): every block must
/// be whole, every frame complete, and taken from Ethernet.
fn pcapng_frames(path: &Path) -> Vec<Vec<u8>> {
    let bytes = std::fs::read(path).expect("the recording is there");
    let word = |at: usize| {
        let four = bytes.get(at..at + 4);
        let four = four.unwrap_or_else(|| panic!("the recording is cut off at byte {at}"));
        u32::from_le_bytes(four.try_into().expect("four bytes")) as usize
    };
    let mut frames = Vec::new();
    let (mut at, mut interfaces) = (0, 0);
    while at < bytes.len() {
        let (kind, len) = (word(at), word(at + 4));
        assert!(len >= 12 && len % 4 == 0, "a block of {len} bytes at {at}");
        assert_eq!(
            word(at + len - 4),
            len,
            "the block at {at} says its length twice"
        );
        match kind {
            // Section header: the byte order.
            0x0a0d_0d0a => assert_eq!((at, word(at + 8)), (0, 0x1a2b_3c4d)),
            // Interface description: the link type's two bytes, two reserved ones.
            1 => {
                assert_eq!(word(at + 8), 1, "Ethernet");
                interfaces += 1;
            }
            // Enhanced packet: interface, time stamp in two words, length captured and on the wire.
            6 => {
                assert!(word(at + 8) < interfaces, "an interface described before");
                let captured = word(at + 20);
                assert_eq!(captured, word(at + 24), "a frame is recorded whole");
                frames.push(bytes[at + 28..at + 28 + captured].to_vec());
            }
            other => panic!("a block of type {other} at {at}"),
        }
        at += len;
    }
    frames
}

#[test]
fn a_capture_is_replayed_through_the_policy_and_a_recording_is_whole() {
    let Some(lab) = Lab::open(&[]) else { return };
    let (a, b, c) = (mac(1), mac(2), mac(3));
    let (ip_a, ip_b, ip_c) = ([10, 0, 0, 1], [10, 0, 0, 2], [10, 0, 0, 3]);
    let from_a = |dport, text: &str| udp((a, b), (ip_a, ip_b), (1000, dport), text.as_bytes());
    let large = udp((a, b), (ip_a, ip_b), (1001, 53), &[7; 1472]);
    let whole = |frame: Vec<u8>| {
        let len = frame.len();
        (frame, len)
    };
    let replayed = [
        whole(from_a(53, "allowed")),
        whole(from_a(54, "denied by a rule")),
        whole(from_a(55, "denied by default")),
        whole(udp((c, b), (ip_c, ip_b), (1000, 53), b"a neighbour's MAC")),
        (from_a(53, "cut short by the capture"), 1000),
        whole(large.clone()),
    ];
    lab.file("in.pcap", classic_pcap(&replayed));
    let output = lab.path("out.pcapng");
    let ports = [
        format!(
            "[[port]]\nname = \"replay\"\nkind = \"pcap\"\ninput = \"{}\"\n",
            lab.path_str("in.pcap")
        ),
        workload("a", 1, "10.0.0.1", ""),
        format!(
            "[[port]]\nname = \"record\"\nkind = \"pcap\"\noutput = \"{}\"\n",
            output.display()
        ),
        workload("b", 2, "10.0.0.2", ""),
        port(&lab, "c", ""),
        workload("c", 3, "10.0.0.3", ""),
    ];
    let policy = [
        rule("named", "any", "any", "udp/54", "deny"),
        rule("open", "any", "any", "udp/53", "allow"),
        // Nobody answers here, so there is no handshake.
        segment("c", "names = [\"c\"]\nloose = true"),
        rule("bulk", "c", "any", "tcp/80", "allow"),
    ];
    let toml = switch_toml(&ports);
    let switch = SwitchConfig::new(&lab, "switch", &toml, &policy.concat()).start();

    wait_for("the capture to be replayed", LIMIT, || {
        (switch.counter("replay", "rx_pkts") == replayed.len() as u64).then_some(())
    });
    switch.wait_conserved();
    let reasons = [
        "policy_deny",
        "policy_default_deny",
        "declared_mac_moved",
        "port_rx_error",
    ];
    for reason in reasons {
        assert_eq!(switch.dropped(reason), 1, "{reason}");
    }
    let mut expected = vec![from_a(53, "allowed"), large];
    assert_eq!(pcapng_frames(&output), expected);

    // What a guest sends there is recorded too, as it is on a wire: with its checksum, and in segments.
    let mut c = Station::attach(&lab, "c");
    for n in 0..500_u16 {
        let payload = vec![n.to_le_bytes()[0]; usize::from(n) * 2];
        let frame = udp((mac(3), b), (ip_c, ip_b), (2000, 53), &payload);
        c.send(&frame);
        expected.push(frame);
    }
    wait_for("what was sent to be recorded", LIMIT, || {
        (switch.counter("record", "tx_pkts") == expected.len() as u64).then_some(())
    });
    assert!(pcapng_frames(&output) == expected, "the recording differs");

    // A frame of 5000 payload bytes that its sender leaves to be cut and summed, as drivers do.
    let payload: Vec<u8> = (0..5000_u32).map(|i| i.to_le_bytes()[0]).collect();
    let mut frame = Vec::new();
    etherparse::PacketBuilder::ethernet2(mac(3), b)
        .ipv4(ip_c, ip_b, 64)
        .tcp(3000, 80, 1, 64_000)
        .ack(1)
        .write(&mut frame, &payload)
        .expect("a vector takes every frame");
    let hdr = NetHdr {
        flags: NetHdr::F_NEEDS_CSUM,
        gso_type: NetHdr::GSO_TCPV4,
        hdr_len: 54,
        gso_size: 1000,
        // Where TCP begins, and its checksum in it.
        csum_start: 34,
        csum_offset: 16,
        num_buffers: 0,
    };
    c.send_with(hdr, &frame);
    wait_for("five segments", LIMIT, || {
        (switch.counter("record", "tx_pkts") == expected.len() as u64 + 5).then_some(())
    });
    let recorded = pcapng_frames(&output);
    for (n, frame) in recorded[expected.len()..].iter().enumerate() {
        let packet = etherparse::PacketHeaders::from_ethernet_slice(frame).expect("a packet");
        let (
            Some(etherparse::NetHeaders::Ipv4(ip, _)),
            Some(etherparse::TransportHeader::Tcp(tcp)),
        ) = (packet.net, packet.transport)
        else {
            panic!("segment {n} is no TCP over IPv4");
        };
        let part = &payload[n * 1000..][..1000];
        assert_eq!(packet.payload.slice(), part, "segment {n}");
        assert_eq!(usize::try_from(tcp.sequence_number), Ok(1 + n * 1000));
        assert_eq!(ip.header_checksum, ip.calc_header_checksum());
        let sum = tcp.calc_checksum_ipv4(&ip, part).expect("a short segment");
        assert_eq!(tcp.checksum, sum, "segment {n}");
    }
    switch.wait_conserved();
}

// --- trunk --------------------------------------------------------------------------------------

#[test]
fn a_trunk_carries_its_vlans_tagged_and_keeps_them_apart() {
    let Some(lab) = Lab::open(&[]) else { return };
    // The same address in both VLANs would be one tenant's twice; the MAC may be the same.
    let (trunk, x, y, z) = (mac(1), mac(2), mac(3), mac(4));
    let (green, blue) = ([10, 0, 10, 1], [10, 0, 20, 1]);
    let (ip_x, ip_y, ip_z) = ([10, 0, 10, 2], [10, 0, 20, 2], [10, 0, 0, 2]);
    let ports = [
        port(&lab, "trunk", "trunk = [10, 20]"),
        workload("green", 1, "10.0.10.1", "vlan = 10"),
        workload("blue", 1, "10.0.20.1", "vlan = 20"),
        port(&lab, "x", "vlan = 10"),
        workload("x", 2, "10.0.10.2", ""),
        port(&lab, "y", "vlan = 20"),
        workload("y", 3, "10.0.20.2", ""),
        port(&lab, "z", ""),
        workload("z", 4, "10.0.0.2", ""),
        port(&lab, "other", "trunk = [10]"),
        workload("pale", 5, "10.0.10.5", "vlan = 10"),
    ];
    let policy = rule("open", "any", "any", "udp/53", "allow");
    let switch = SwitchConfig::new(&lab, "switch", &switch_toml(&ports), &policy).start();
    let [mut at_trunk, mut at_x, mut at_y, mut at_z, mut at_other] =
        ["trunk", "x", "y", "z", "other"].map(|name| Station::attach(&lab, name));
    switch.wait_ports_up(5);
    let ask = |to, ips, text: &str| udp((trunk, to), ips, (1000, 53), text.as_bytes());

    // Tagged at the trunk, untagged behind an access port; and the answers the other way.
    let to_x = ask(x, (green, ip_x), "green to x");
    at_trunk.send(&tagged(&to_x, 10));
    at_x.recv(&to_x);
    let answer = udp((x, trunk), (ip_x, green), (53, 1000), b"x to green");
    at_x.send(&answer);
    at_trunk.recv(&tagged(&answer, 10));
    let to_y = ask(y, (blue, ip_y), "blue to y");
    at_trunk.send(&tagged(&to_y, 20));
    at_y.recv(&to_y);
    let answer = udp((y, trunk), (ip_y, blue), (53, 1000), b"y to blue");
    at_y.send(&answer);
    at_trunk.recv(&tagged(&answer, 20));
    // From trunk to trunk the tag stays.
    let pale = mac(5);
    let to_pale = tagged(&ask(pale, (green, [10, 0, 10, 5]), "green to pale"), 10);
    at_trunk.send(&to_pale);
    at_other.recv(&to_pale);

    // One VLAN's stations do not exist in the other, nor for who is in neither.
    drops(&switch, "unknown_destination", 4, || {
        at_trunk.send(&tagged(&ask(y, (green, ip_y), "green to y"), 10));
        at_trunk.send(&tagged(&ask(z, (green, ip_z), "green to z"), 10));
        at_x.send(&udp((x, y), (ip_x, ip_y), (1000, 53), b"x to y"));
        at_z.send(&udp((z, x), (ip_z, ip_x), (1000, 53), b"z to x"));
    });
    drops(&switch, "unknown_neighbour", 2, || {
        at_trunk.send(&tagged(&arp_request((trunk, green), ip_y), 10));
        at_z.send(&arp_request((z, ip_z), ip_x));
    });
    // A workload's tag is part of who it is.
    drops(&switch, "spoofed_ip", 1, || {
        at_trunk.send(&tagged(&ask(y, (green, ip_y), "green as blue"), 20));
    });
    drops(&switch, "vlan_not_allowed", 3, || {
        at_trunk.send(&tagged(&to_x, 30));
        at_other.send(&tagged(
            &udp((pale, y), ([10, 0, 10, 5], ip_y), (1, 53), b""),
            20,
        ));
        at_x.send(&tagged(&udp((x, trunk), (ip_x, green), (1, 53), b""), 10));
    });
    drops(&switch, "unknown_sender", 1, || {
        at_trunk.send(&ask(z, (green, ip_z), "untagged"));
    });

    // A neighbour in the same VLAN is answered for, in it.
    at_trunk.send(&tagged(&arp_request((trunk, green), ip_x), 10));
    let answer = at_trunk.recv_any();
    let head = tagged(&[trunk, x, [8, 6, 0, 1, 8, 0]].concat(), 10);
    assert_eq!(answer[..head.len()], head);
    // Operation 2, and x at its MAC.
    assert_eq!(
        answer[head.len() + 2..][..12],
        [&[0, 2], &x[..], &ip_x].concat()
    );

    // Nothing of all that reached anybody.
    at_trunk.send(&tagged(&to_x, 10));
    at_x.recv(&to_x);
    at_trunk.send(&tagged(&to_y, 20));
    at_y.recv(&to_y);
    at_trunk.send(&to_pale);
    at_other.recv(&to_pale);
    assert_eq!(switch.counter("z", "tx_pkts"), 0);
    switch.wait_conserved();
}

// --- routes -------------------------------------------------------------------------------------

/// What is behind a router is the router's: `a` and `r` are judged, whatever address is behind `r`.
#[test]
fn a_router_speaks_for_its_routes_and_for_nothing_else() {
    let Some(lab) = Lab::open(&[]) else { return };
    let (a, r, b) = (mac(1), mac(2), mac(3));
    let (ip_a, ip_r, ip_b) = ([10, 0, 0, 1], [10, 0, 0, 2], [10, 9, 0, 3]);
    let (branch, beyond) = ([10, 9, 1, 1], [10, 8, 1, 1]);
    // `b` has an address in the middle of what the router may route.
    let ports = [
        port(&lab, "a", ""),
        workload("a", 1, "10.0.0.1", ""),
        port(&lab, "r", "routes = [\"10.9.0.0/16\"]"),
        workload("r", 2, "10.0.0.2", ""),
        port(&lab, "b", ""),
        workload("b", 3, "10.9.0.3", ""),
    ];
    let policy = [
        segment("a", "names = [\"a\"]"),
        segment("r", "names = [\"r\"]"),
        segment("b", "names = [\"b\"]"),
        segment("branch", "cidr = [\"10.9.0.0/16\"]"),
        rule("there", "a", "r", "udp/53", "allow"),
        rule("back", "r", "a", "udp/80", "allow"),
        rule("to-b", "a", "b", "udp/53", "allow"),
        // An address that no uplink carries is no outside.
        rule("by-address", "a", "branch", "udp/99", "allow"),
    ];
    let toml = switch_toml(&ports);
    let switch = SwitchConfig::new(&lab, "switch", &toml, &policy.concat()).start();
    let [mut at_a, mut at_r, mut at_b] = ["a", "r", "b"].map(|name| Station::attach(&lab, name));
    switch.wait_ports_up(3);
    let send = |ips, dport, text: &str| udp((a, r), ips, (1000, dport), text.as_bytes());
    let back = |ips, sport, dport, text: &str| udp((r, a), ips, (sport, dport), text.as_bytes());

    // Through the router to its network, the answer, and a connection from there; and the same with the router itself.
    let mut allowed = Vec::new();
    for address in [branch, ip_r] {
        let there = send((ip_a, address), 53, "there");
        at_a.send(&there);
        at_r.recv(&there);
        let answer = back((address, ip_a), 53, 1000, "the answer");
        at_r.send(&answer);
        at_a.recv(&answer);
        let opened = back((address, ip_a), 1000, 80, "opened from there");
        at_r.send(&opened);
        at_a.recv(&opened);
        allowed.push((there, opened));
    }
    drops(&switch, "policy_default_deny", 2, || {
        at_a.send(&send((ip_a, branch), 99, "by an address"));
        at_r.send(&back((branch, ip_a), 1000, 99, "back by an address"));
    });

    // Beyond the routes there is nothing; a workload's address is its own wherever it lies.
    drops(&switch, "destination_mismatch", 2, || {
        at_a.send(&send((ip_a, beyond), 53, "beyond"));
        at_a.send(&send((ip_a, ip_b), 53, "to b, by the router"));
    });
    drops(&switch, "spoofed_ip", 3, || {
        at_r.send(&back((beyond, ip_a), 1000, 80, "from beyond"));
        at_r.send(&back((ip_b, ip_a), 1000, 80, "as b"));
        // Who is no router sends from no network.
        at_b.send(&udp((b, a), (branch, ip_a), (1000, 80), b"b as the branch"));
    });
    let to_b = udp((a, b), (ip_a, ip_b), (1000, 53), b"to b");
    at_a.send(&to_b);
    at_b.recv(&to_b);

    for (there, opened) in &allowed {
        at_a.send(there);
        at_r.recv(there);
        at_r.send(opened);
        at_a.recv(opened);
    }
    switch.wait_conserved();
}

// --- tenants ------------------------------------------------------------------------------------

#[test]
fn tenants_with_the_same_names_and_addresses_do_not_meet() {
    let Some(lab) = Lab::open(&[]) else { return };
    let (a, b, other) = (mac(1), mac(2), mac(9));
    let ips = ([10, 0, 0, 1], [10, 0, 0, 2]);
    let at = |tenant: &str, name: &str, last, ip| {
        port(
            &lab,
            &format!("{tenant}-{name}"),
            &format!("tenant = \"{tenant}\""),
        ) + &workload(name, last, ip, "tags = [\"all\"]")
    };
    // Everything is the same, but that blue has one more.
    let ports = [
        at("red", "a", 1, "10.0.0.1"),
        at("red", "b", 2, "10.0.0.2"),
        at("blue", "a", 1, "10.0.0.1"),
        at("blue", "b", 2, "10.0.0.2"),
        at("blue", "c", 9, "10.0.0.9"),
    ];
    let of = |tenant: &str, table: String| format!("{table}tenant = \"{tenant}\"\n");
    let policy = [
        "[[tenant]]\nname = \"red\"\n[[tenant]]\nname = \"blue\"\n".to_owned(),
        of("red", segment("all", "tags = [\"all\"]")),
        of("blue", segment("all", "tags = [\"all\"]")),
        of("red", rule("open", "all", "all", "udp/5000", "allow")),
        of("blue", rule("open", "all", "all", "udp/6000", "allow")),
        // A foreign tenant's alone opens nothing. Both together would, but no frame gets there.
        of("red", rule("out", "all", "blue/all", "udp/7000", "allow")),
        of("red", rule("there", "all", "blue/all", "udp/7500", "allow")),
        of("blue", rule("in", "red/all", "all", "udp/7500", "allow")),
    ];
    let toml = switch_toml(&ports);
    let switch = SwitchConfig::new(&lab, "switch", &toml, &policy.concat()).start();
    let [mut red_a, mut red_b, mut blue_a, mut blue_b, mut blue_c] =
        ["red-a", "red-b", "blue-a", "blue-b", "blue-c"].map(|name| Station::attach(&lab, name));
    switch.wait_ports_up(5);
    let frame = |dport, text: &str| udp((a, b), ips, (1000, dport), text.as_bytes());

    // The same five-tuple between the same MACs: allowed by the one tenant, denied by the other, also once it is established.
    let (red, blue) = (frame(5000, "of red"), frame(6000, "of blue"));
    for round in 0..2 {
        red_a.send(&red);
        red_b.recv(&red);
        blue_a.send(&blue);
        blue_b.recv(&blue);
        drops(&switch, "policy_default_deny", 2, || {
            red_a.send(&frame(6000, &format!("blue's service in red, {round}")));
            blue_a.send(&frame(5000, &format!("red's service in blue, {round}")));
        });
        // As a reply it belongs to its own tenant's connection only.
        let reply = |sport| udp((b, a), (ips.1, ips.0), (sport, 1000), b"reply");
        red_b.send(&reply(5000));
        red_a.recv(&reply(5000));
        drops(&switch, "policy_default_deny", 1, || {
            blue_b.send(&reply(5000));
        });
        blue_b.send(&reply(6000));
        blue_a.recv(&reply(6000));
    }

    // Whoever is in one tenant only does not exist in the other.
    drops(&switch, "unknown_destination", 3, || {
        for dport in [5000, 7000, 7500] {
            red_a.send(&udp(
                (a, other),
                (ips.0, [10, 0, 0, 9]),
                (1000, dport),
                b"to c",
            ));
        }
    });
    drops(&switch, "unknown_neighbour", 1, || {
        red_a.send(&arp_request((a, ips.0), [10, 0, 0, 9]));
    });
    // Nor are its addresses taken: in red this is nobody's, not somebody else's.
    drops(&switch, "spoofed_mac", 1, || {
        red_a.send(&udp(
            (other, b),
            ([10, 0, 0, 9], ips.1),
            (1000, 5000),
            b"as c",
        ));
    });
    drops(&switch, "declared_mac_moved", 1, || {
        blue_a.send(&udp(
            (other, b),
            ([10, 0, 0, 9], ips.1),
            (1000, 6000),
            b"as c",
        ));
    });

    // And nobody else has seen anything.
    red_a.send(&red);
    red_b.recv(&red);
    blue_a.send(&blue);
    blue_b.recv(&blue);
    let to_c = udp((a, other), (ips.0, [10, 0, 0, 9]), (1000, 6000), b"to c");
    blue_a.send(&to_c);
    blue_c.recv(&to_c);
    let back = udp((b, a), (ips.1, ips.0), (5000, 1000), b"the last");
    red_b.send(&back);
    red_a.recv(&back);
    let back = udp((b, a), (ips.1, ips.0), (6000, 1000), b"the last");
    blue_b.send(&back);
    blue_a.recv(&back);

    // The command line tells them apart by their tenant.
    let explain = |from, to, service| {
        let question = ["explain", "--from", from, "--to", to, "--service", service];
        switch.cli(&question).status.code()
    };
    assert_eq!(explain("red/a", "red/b", "udp/5000"), Some(0));
    assert_eq!(explain("red/a", "red/b", "udp/6000"), Some(1));
    assert_eq!(explain("blue/a", "blue/b", "udp/6000"), Some(0));
    for service in ["udp/7000", "udp/7500"] {
        assert_eq!(explain("red/a", "blue/c", service), Some(1));
    }
    assert_eq!(explain("a", "b", "udp/5000"), Some(2), "whose?");
    for (name, total) in [
        ("red/a", 1),
        ("red/b", 1),
        ("blue/a", 2),
        ("blue/b", 1),
        ("c", 1),
    ] {
        let list = switch.cli_json(&["conn", "list", "--workload", name]);
        assert_eq!(list["total"], total, "{name}: {list}");
    }
    for args in [
        &["conn", "list", "--workload", "a"][..],
        &["watch", "--workload", "a"],
        &["workload", "tag", "a", "x"],
    ] {
        let asked = switch.cli(args);
        let said = String::from_utf8_lossy(&asked.stderr);
        assert_eq!(asked.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.contains("a can be red/a or blue/a"), "{said}");
    }
    let list = switch.cli_ok(&["workload", "list"]);
    let rows = list.lines().map(|l| l.split_whitespace().take(3).collect());
    let rows: Vec<Vec<_>> = rows.collect();
    for row in [["a", "red", "red-a"], ["a", "blue", "blue-a"]] {
        assert!(rows.iter().any(|r| *r == row), "{row:?} in {list}");
    }
    let live = switch.cli_json(&["conn", "list", "--workload", "red/a"]);
    let live = &live["connections"][0];
    assert_eq!(
        (&live["from"], &live["to"]),
        (&"red/a".into(), &"red/b".into())
    );
    let live = switch.cli_json(&["conn", "list"]);
    let rules: Vec<_> = live["connections"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|c| c["rule"].as_str())
        .collect();
    for rule in ["red/open", "blue/open"] {
        assert!(rules.contains(&rule), "{rules:?}");
    }

    // Whoever watches the one sees nothing of the other.
    let mut watch = switch.watch(&["--workload", "red/a"]);
    let denied = |who: &mut Station, dport| {
        drops(&switch, "policy_default_deny", 1, || {
            who.send(&frame(dport, "watched"));
        });
    };
    wait_for("it to watch", LIMIT, || {
        assert!(watch.ended().is_none(), "{}", watch.log());
        denied(&mut blue_a, 1);
        denied(&mut red_a, 1);
        watch.log().contains("\"dport\":1,").then_some(())
    });
    denied(&mut blue_a, 2);
    denied(&mut red_a, 2);
    let log = wait_for("the last event", LIMIT, || {
        let log = watch.log();
        (log.contains("\"dport\":2,") && log.ends_with('\n')).then_some(log)
    });
    for line in log.lines() {
        let event: serde_json::Value = serde_json::from_str(line).expect("JSON");
        assert_eq!(
            (&event["from"], &event["to"]),
            (&"red/a".into(), &"red/b".into())
        );
    }
    switch.wait_conserved();
}
