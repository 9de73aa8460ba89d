//! DPDK as guest: its own virtio driver (virtio-user) on the switch's vhost-user sockets, in every shape of ring that it can
//! negotiate. Every frame that arrives is intact and in order, none is invented, and the counters of both sides agree.

mod common;

use common::stream::{self, Flow};
use common::switch::{Switch, SwitchConfig};
use common::testpmd::{Guest, Testpmd};
use common::{Lab, Need};
use std::path::PathBuf;

/// Frames that each queue sends.
const FRAMES: u64 = 3000;

/// UDP to the ports that [`flows`] uses, and nothing else.
const POLICY: &str = r#"
[[segment]]
name = "guests"
tags = ["guest"]

[[rule]]
name = "streams"
from = "guests"
to = "guests"
service = ["udp/2100-2299"]
action = "allow"
"#;

/// Two ports, `a` and `b`.
fn switch_toml(lab: &Lab, mode: &str) -> String {
    let port = |name: &str, number: u8| {
        format!(
            r#"
[[port]]
name = "{name}"
kind = "vhost-user"
socket = "{socket}"
mode = "{mode}"
[[port.workload]]
name = "{name}"
mac = ["52:54:00:00:00:0{number}"]
ip = ["10.0.0.{number}"]
tags = ["guest"]
"#,
            socket = lab.path_str(format!("{name}.sock"))
        )
    };
    format!(
        "policy = \"policy.toml\"\n[switch]\nconnections = 10000\n{}{}",
        port("a", 1),
        port("b", 2)
    )
}

/// One flow for each queue from guest `from` to guest `to`; its destination port is `2000 + 100 * from + queue`.
fn flows(from: u8, to: u8, queues: usize) -> Vec<Flow> {
    (0..queues)
        .map(|queue| Flow {
            src_mac: [0x52, 0x54, 0, 0, 0, from],
            dst_mac: [0x52, 0x54, 0, 0, 0, to],
            src_ip: [10, 0, 0, from].into(),
            dst_ip: [10, 0, 0, to].into(),
            src_port: 1000,
            dst_port: 2000 + 100 * u16::from(from) + u16::try_from(queue).expect("few queues"),
            sizes: (60, 1514),
        })
        .collect()
}

/// The shape of a guest's rings.
#[derive(Debug, Clone, Copy)]
struct Shape {
    packed: bool,
    mergeable: bool,
    queues: usize,
    ring_len: u16,
    listens: bool,
}

/// What the switch has counted: frames of ports `a` and `b`, and what it dropped.
#[derive(Debug)]
struct Counts {
    rx: [u64; 2],
    tx: [u64; 2],
    dropped: u64,
    queue_full: u64,
}

impl Counts {
    fn read(switch: &Switch) -> Self {
        let stats = switch.cli_json(&["stats"]);
        let of = |port: &str, name: &str| {
            stats["ports"][port]["counters"][name]
                .as_u64()
                .unwrap_or_else(|| panic!("no {name} of {port}: {stats}"))
        };
        Self {
            rx: ["a", "b"].map(|port| of(port, "rx_pkts")),
            tx: ["a", "b"].map(|port| of(port, "tx_pkts")),
            dropped: stats["conservation"]["dropped"].as_u64().expect("a number"),
            queue_full: switch.dropped("tx_queue_full"),
        }
    }
}

/// Both guests send to each other at once, in one shape.
fn exchange(lab: &Lab, switch: &Switch, shape: Shape) {
    let case = format!("{shape:?}");
    let before = Counts::read(switch);
    let streams = [flows(1, 2, shape.queues), flows(2, 1, shape.queues)];
    let guests: Vec<Guest> = ["a", "b"]
        .iter()
        .zip(1..)
        .zip(&streams)
        .map(|((name, number), stream)| {
            let sends: Vec<PathBuf> = stream
                .iter()
                .map(|flow| {
                    let path = lab.path(format!("{}-sent.pcap", flow.dst_port));
                    // The same flow sends the same frames in every shape.
                    if !path.exists() {
                        stream::write_pcap(&path, std::slice::from_ref(flow), FRAMES);
                    }
                    path
                })
                .collect();
            let mac = format!("52:54:00:00:00:0{number}");
            Guest {
                packed: shape.packed,
                mergeable: shape.mergeable,
                ring_len: shape.ring_len,
                listens: shape.listens,
                ..Guest::new(name, lab.path(format!("{name}.sock")), &mac, sends)
            }
        })
        .collect();
    let mut testpmd = Testpmd::guests(lab, &guests);
    switch.wait_ports_up(2);
    testpmd.forward();
    let stats = testpmd.wait_quiet(guests.len());
    testpmd.quit();
    switch.wait_conserved();
    let after = Counts::read(switch);

    for (i, guest) in guests.iter().enumerate() {
        let counts = stream::check_pcaps(&guest.received(lab), &streams[1 - i])
            .unwrap_or_else(|e| panic!("{case}: {e}"));
        println!("{case} guest {i}: {counts:?} arrived; {:?}", stats[i]);
        // A guest that is slower than the other loses frames to full rings; most must arrive all the same.
        assert!(
            counts.iter().all(|&count| count > FRAMES / 2),
            "{case}: {counts:?}"
        );
        // Both sides of a ring agree on what went through it, and the captures hold nothing but the streams.
        assert_eq!(
            after.rx[i] - before.rx[i],
            stats[i].tx_pkts,
            "{case}: frames from guest {i}"
        );
        assert_eq!(
            after.tx[i] - before.tx[i],
            stats[i].rx_pkts,
            "{case}: frames to guest {i}"
        );
        assert_eq!(
            counts.iter().sum::<u64>(),
            stats[i].rx_pkts,
            "{case}: frames to guest {i} that are no stream's"
        );
    }
    assert_eq!(
        after.dropped - before.dropped,
        after.queue_full - before.queue_full,
        "{case}: only full rings drop: {}",
        switch.cli_ok(&["drops"])
    );
}

/// Packed or not, mergeable or not, one and two queue pairs, 256 and 1024 entries: sixteen guests one after another on the same
/// two sockets, so each also finds a port that another one has left.
#[test]
fn testpmd_guests_of_every_shape_exchange_streams() {
    let Some(lab) = Lab::open(&[Need::Testpmd]) else {
        return;
    };
    let config = switch_toml(&lab, "server");
    let switch = SwitchConfig::new(&lab, "switch", &config, POLICY).start();
    for case in 0..16 {
        let shape = Shape {
            packed: case & 1 != 0,
            mergeable: case & 2 != 0,
            queues: 1 + usize::from(case & 4 != 0),
            ring_len: if case & 8 != 0 { 1024 } else { 256 },
            listens: false,
        };
        exchange(&lab, &switch, shape);
    }
}

/// DPDK listens and the switch connects, again after the guest's end.
#[test]
fn testpmd_guests_may_listen() {
    let Some(lab) = Lab::open(&[Need::Testpmd]) else {
        return;
    };
    let config = switch_toml(&lab, "client");
    let switch = SwitchConfig::new(&lab, "switch", &config, POLICY).start();
    for packed in [false, true] {
        let shape = Shape {
            packed,
            mergeable: true,
            queues: 1,
            ring_len: 256,
            listens: true,
        };
        exchange(&lab, &switch, shape);
    }
}

/// What policy does not allow reaches nobody, whatever the sender's driver does, and is counted frame by frame.
#[test]
fn what_no_rule_allows_does_not_arrive() {
    let Some(lab) = Lab::open(&[Need::Testpmd]) else {
        return;
    };
    let config = switch_toml(&lab, "server");
    let switch = SwitchConfig::new(&lab, "switch", &config, POLICY).start();
    let mut forbidden = flows(1, 2, 1).remove(0);
    forbidden.dst_port = 2300;
    let mut spoofed = flows(2, 1, 1).remove(0);
    spoofed.src_ip = [10, 0, 0, 9].into();
    let mut guests = Vec::new();
    for (name, flow) in [("a", &forbidden), ("b", &spoofed)] {
        let sent = lab.path(format!("{name}-sent.pcap"));
        stream::write_pcap(&sent, std::slice::from_ref(flow), FRAMES);
        let mac = flow.src_mac.map(|byte| format!("{byte:02x}")).join(":");
        guests.push(Guest::new(
            name,
            lab.path(format!("{name}.sock")),
            &mac,
            vec![sent],
        ));
    }
    let mut testpmd = Testpmd::guests(&lab, &guests);
    switch.wait_ports_up(2);
    testpmd.forward();
    let stats = testpmd.wait_quiet(guests.len());
    testpmd.quit();
    switch.wait_conserved();
    assert!(stats.iter().all(|s| s.rx_pkts == 0), "{stats:?}");
    assert_eq!(switch.dropped("policy_default_deny"), stats[0].tx_pkts);
    assert_eq!(switch.dropped("spoofed_ip"), stats[1].tx_pkts);
    assert!(stats.iter().all(|s| s.tx_pkts > FRAMES / 2), "{stats:?}");
    assert_eq!(switch.cli_json(&["conn", "list"])["total"], 0);
}
