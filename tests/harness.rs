//! Does the harness itself work? These tests run what the others stand on against DPDK's vhost back-end instead of the switch:
//! when one of these fails, look at the machine; when only others fail, look at the switch.

mod common;

use common::netns::Netns;
use common::stream::{self, Flow};
use common::testpmd::{Guest, Testpmd};
use common::vm::VmConfig;
use common::{Lab, Need};
use std::path::PathBuf;
use std::time::Duration;

#[test]
fn two_guests_reach_each_other_through_a_foreign_backend() {
    let Some(lab) = Lab::open(&[Need::Vm, Need::Testpmd]) else {
        return;
    };
    let (one, two) = (lab.path("one.sock"), lab.path("two.sock"));
    let start = |name, socket, mac| {
        let mut config = VmConfig::new(name, socket, mac);
        config.qemu_listens = true;
        config.start(&lab)
    };
    let mut a = start("a", &one, "52:54:00:00:00:01");
    let mut b = start("b", &two, "52:54:00:00:00:02");
    let backend = Testpmd::backend_connecting(&lab, [&one, &two], 1);
    a.booted();
    b.booted();
    a.address(&["10.0.0.1/24", "fd00::1/64"]);
    b.address(&["10.0.0.2/24", "fd00::2/64"]);

    a.run_ok("ping -c 2 -W 5 10.0.0.2");
    a.run_ok("ping -c 2 -W 5 fd00::2");

    let _server = b.serve(None, 5201, "iperf3 -s");
    let report = a.run_ok("iperf3 -c 10.0.0.2 -n 8M -J");
    let report: serde_json::Value = serde_json::from_str(&report).expect("iperf3 -J prints JSON");
    // The receiver reports before the last bytes are in.
    assert!(
        report["end"]["sum_received"]["bytes"].as_u64() > Some(4 << 20),
        "{report}"
    );

    // Two containers in one guest, each with its peer across.
    for vlan in [10, 20] {
        let name = format!("c{vlan}");
        a.vlan_container(&name, vlan, &[&format!("10.0.{vlan}.1/24")]);
        b.vlan_container(&name, vlan, &[&format!("10.0.{vlan}.2/24")]);
        a.run_ok(&format!(
            "ip netns exec {name} ping -c 2 -W 5 10.0.{vlan}.2"
        ));
    }
    let server = b.serve(Some("c10"), 7000, "nc -l -p 7000 -e cat");
    let echo = a.run_ok("echo hello | ip netns exec c10 nc -w 5 10.0.10.2 7000");
    assert_eq!(echo.trim(), "hello");
    assert_eq!(b.finish(server, Duration::from_secs(20)).code, 0);

    // A back-end that dies and comes back finds the guests where they were.
    drop(backend);
    let lost = a.start("ping -c 1 -W 1 10.0.0.2");
    assert_ne!(a.finish(lost, Duration::from_secs(20)).code, 0);
    let _backend = Testpmd::backend_connecting(&lab, [&one, &two], 1);
    a.wait_ok("ping -c 1 -W 1 10.0.0.2", Duration::from_secs(30));

    // Exit codes come through, and commands overlap.
    let slow = a.start("sleep 1; exit 3");
    assert_eq!(a.run("exit 7").code, 7);
    assert_eq!(a.finish(slow, Duration::from_secs(60)).code, 3);
}

#[test]
fn namespaces_reach_each_other_over_a_veth_pair() {
    let Some(lab) = Lab::open(&[Need::Netns, Need::Program("iperf3")]) else {
        return;
    };
    let (a, b) = (Netns::new(&lab, "a"), Netns::new(&lab, "b"));
    a.veth("eth0", &b, "eth0");
    a.address("eth0", "52:54:00:00:00:01", &["10.0.0.1/24", "fd00::1/64"]);
    b.address("eth0", "52:54:00:00:00:02", &["10.0.0.2/24", "fd00::2/64"]);
    let _server = b.iperf3_server(&lab, 5201);
    for peer in ["10.0.0.2", "fd00::2"] {
        a.run_ok(&format!("iperf3 -c {peer} -n 8M"), Duration::from_secs(30));
    }
    let stranger = a.run("iperf3 -c 10.0.0.3 -n 8M", Duration::from_secs(30));
    assert!(!stranger.status.success());
}

#[test]
fn testpmd_guests_exchange_checked_streams_through_a_foreign_backend() {
    let Some(lab) = Lab::open(&[Need::Testpmd]) else {
        return;
    };
    for (queues, packed, mergeable, ring_len) in [(1, false, true, 256), (2, true, false, 1024)] {
        let case = format!("{queues}-{packed}-{mergeable}-{ring_len}");
        let sockets = [
            lab.path(format!("{case}a.sock")),
            lab.path(format!("{case}b.sock")),
        ];
        let backend = Testpmd::backend(&lab, [&sockets[0], &sockets[1]], queues);
        let streams = [flows(1, 2, queues), flows(2, 1, queues)];
        let guests: Vec<Guest> = (0..2)
            .map(|i| {
                let sends: Vec<PathBuf> = (0..queues)
                    .map(|queue| {
                        let path = lab.path(format!("{case}-{i}-{queue}.pcap"));
                        stream::write_pcap(&path, &streams[i][queue..=queue], 5000);
                        path
                    })
                    .collect();
                let mut guest = Guest::new(
                    &format!("{case}-{i}"),
                    &sockets[i],
                    &format!("52:54:00:00:00:0{}", i + 1),
                    sends,
                );
                (guest.packed, guest.mergeable, guest.ring_len) = (packed, mergeable, ring_len);
                guest
            })
            .collect();
        let mut testpmd = Testpmd::guests(&lab, &guests);
        testpmd.forward();
        let stats = testpmd.wait_quiet(guests.len());
        testpmd.quit();
        backend.quit();
        for (i, guest) in guests.iter().enumerate() {
            let counts = stream::check_pcaps(&guest.received(&lab), &streams[1 - i])
                .unwrap_or_else(|e| panic!("{case}: {e}"));
            println!("{case} guest {i}: {counts:?} arrived; {:?}", stats[i]);
            assert!(
                counts.iter().all(|&count| count > 2500),
                "{case}: {counts:?}"
            );
        }
    }
}

/// One flow for each queue from guest `from` to guest `to`.
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
