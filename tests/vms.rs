//! Virtual machines with Debian's stock kernel on the switch's vhost-user sockets: what they may do works with every offload, what
//! they may not is refused and counted, and either side survives the other's sudden death.

mod common;

use common::netns::Netns;
use common::process;
use common::switch::{Switch, SwitchConfig};
use common::vm::{Vm, VmConfig};
use common::{Lab, Need, wait_for};
use std::time::Duration;

/// Bound on one command in a guest. All of them take seconds when the machine is free.
const LIMIT: Duration = Duration::from_secs(90);

const POLICY: &str = r#"
[[segment]]
name = "all"
tags = ["test"]

[[rule]]
name = "open"
from = "all"
to = "all"
service = ["icmp", "icmpv6", "tcp/5201", "udp/5201", "tcp/7000"]
action = "allow"

[[rule]]
name = "closed"
from = "all"
to = "all"
service = "tcp/7001"
action = "reject"

[[rule]]
name = "forbidden"
from = "all"
to = "all"
service = "tcp/7002"
action = "deny"

[[rule]]
name = "asks"
from = "all"
to = "all"
service = ["tcp/7010", "tcp/7011"]
action = "ask"
otherwise = "deny"
deadline_ms = 60000

[[rule]]
name = "asks-in-vain"
from = "all"
to = "all"
service = "tcp/7012"
action = "ask"
otherwise = "allow"
deadline_ms = 200
"#;

/// The start of a `switch.toml`.
const HEAD: &str = "policy = \"policy.toml\"\n[switch]\nconnections = 10000\n";

/// A port named `name` for 10.0.0.`number`, fd00::`number`; `kind` holds the keys of its kind.
fn port(name: &str, number: u8, kind: &str) -> String {
    format!(
        r#"
[[port]]
name = "{name}"
{kind}
[[port.workload]]
name = "{name}"
mac = ["52:54:00:00:00:0{number}"]
ip = ["10.0.0.{number}", "fd00::{number}"]
tags = ["test"]
"#
    )
}

fn vhost_user(lab: &Lab, name: &str, mode: &str) -> String {
    format!(
        "kind = \"vhost-user\"\nsocket = \"{}\"\nmode = \"{mode}\"",
        lab.path_str(format!("{name}.sock"))
    )
}

/// The machine for a port of [`port`].
fn vm_config(lab: &Lab, name: &str, number: u8, qemu_listens: bool) -> VmConfig {
    let mut config = VmConfig::new(
        name,
        lab.path(format!("{name}.sock")),
        &format!("52:54:00:00:00:0{number}"),
    );
    config.qemu_listens = qemu_listens;
    config
}

/// Starts it.
fn vm(lab: &Lab, name: &str, number: u8, qemu_listens: bool) -> Vm {
    vm_config(lab, name, number, qemu_listens).start(lab)
}

/// Waits until a machine has booted, and gives it its addresses.
fn address(vm: &mut Vm, number: u8) {
    vm.booted();
    vm.address(&[
        &format!("10.0.0.{number}/24"),
        &format!("fd00::{number}/64"),
    ]);
}

/// Bytes and frames that `eth0` of a guest has sent and received, as the guest counts them.
fn traffic(vm: &mut Vm) -> [u64; 4] {
    let text = vm
        .run_ok("cd /sys/class/net/eth0/statistics && cat tx_bytes tx_packets rx_bytes rx_packets");
    let numbers: Vec<u64> = text
        .split_whitespace()
        .map(|number| number.parse().expect("the kernel counts in numbers"))
        .collect();
    numbers.try_into().expect("four counters")
}

/// Checks what the receiver of a UDP run told iperf3's sender: the datagrams reached it, and hardly one was lost.
fn received_datagrams(report: &str) {
    let report: serde_json::Value = serde_json::from_str(report).expect("iperf3 prints JSON");
    let (sent, received) = (&report["end"]["sum_sent"], &report["end"]["sum_received"]);
    let count = |end: &serde_json::Value, key: &str| {
        let n = end[key].as_u64();
        n.unwrap_or_else(|| panic!("no {key} in {report}"))
    };
    assert_eq!(received["sender"], false, "{report}");
    let (lost, packets) = (count(received, "lost_packets"), count(sent, "packets"));
    // 4 Mbit/s for a second, in datagrams of 1000 bytes. The last ones may still be on their way when it reports.
    assert!(packets >= 400, "{report}");
    assert!(lost * 10 <= packets, "{report}");
    assert!(
        count(received, "bytes") * 10 >= count(sent, "bytes") * 9,
        "{report}"
    );
}

/// `echo hello` through the echo service on 10.0.0.`to`, in one attempt.
fn echo(vm: &mut Vm, to: u8) -> bool {
    let answer = vm.run(&format!("echo hello | nc -w 15 10.0.0.{to} 7000"));
    answer.code == 0 && answer.output.trim() == "hello"
}

/// Two machines; QEMU listens and the switch connects.
fn pair(lab: &Lab) -> (Switch<'_>, Vm, Vm) {
    let config = format!(
        "{HEAD}{}{}",
        port("a", 1, &vhost_user(lab, "a", "client")),
        port("b", 2, &vhost_user(lab, "b", "client"))
    );
    let (mut a, mut b) = (vm(lab, "a", 1, true), vm(lab, "b", 2, true));
    let switch = SwitchConfig::new(lab, "switch", &config, POLICY).start();
    address(&mut a, 1);
    address(&mut b, 2);
    switch.wait_ports_up(2);
    (switch, a, b)
}

#[test]
fn two_machines_talk_with_offloads_and_policy_between_them() {
    let Some(lab) = Lab::open(&[Need::Vm]) else {
        return;
    };
    let (switch, mut a, mut b) = pair(&lab);

    for peer in ["10.0.0.2", "fd00::2"] {
        a.run_ok(&format!("ping -c 3 -W 10 {peer}"));
    }
    for vm in [&mut a, &mut b] {
        let features = vm.run_ok("ethtool -k eth0");
        for feature in [
            "tx-checksumming",
            "rx-checksumming",
            "tcp-segmentation-offload",
            "tx-tcp6-segmentation",
        ] {
            assert!(features.contains(&format!("{feature}: on")), "{features}");
        }
    }

    // What is sent in large frames arrives in large frames: nothing on the way cuts them.
    let _server = b.serve(None, 5201, "iperf3 -s");
    for peer in ["10.0.0.2", "fd00::2"] {
        let (sent, received) = (traffic(&mut a), traffic(&mut b));
        let report = a.run_ok(&format!("iperf3 -c {peer} -n 16M -J"));
        let report: serde_json::Value = serde_json::from_str(&report).expect("iperf3 prints JSON");
        // The receiver reports before the last bytes are in.
        let bytes = report["end"]["sum_received"]["bytes"].as_u64();
        assert!(bytes > Some(12 << 20), "{report}");
        let (tx, rx) = (traffic(&mut a), traffic(&mut b));
        let tx_size = (tx[0] - sent[0]) / (tx[1] - sent[1]);
        let rx_size = (rx[2] - received[2]) / (rx[3] - received[3]);
        println!("{peer}: {tx_size} bytes a frame sent, {rx_size} received");
        assert!(tx_size > 4000 && rx_size > 4000, "{tx_size}, {rx_size}");
    }
    for port in ["a", "b"] {
        assert_eq!(switch.counter(port, "extra_segments_pkts"), 0);
    }
    for peer in ["10.0.0.2", "fd00::2"] {
        let report = a.run_ok(&format!("iperf3 -c {peer} -u -b 4M -l 1000 -t 1 -J"));
        received_datagrams(&report);
    }
    a.run_ok("iperf3 -c 10.0.0.2 -R -n 4M");

    // And the bytes are the same ones. (The receiving `nc` must not end its half first: the other would then send no more.)
    let sum =
        a.run_ok("head -c 8000000 /dev/urandom > /tmp/sent; md5sum < /tmp/sent; wc -c < /tmp/sent");
    let receiver = b.serve(None, 7000, "nc -l -p 7000 -e dd of=/tmp/received");
    a.run_ok("nc -w 15 10.0.0.2 7000 < /tmp/sent");
    assert_eq!(b.finish(receiver, LIMIT).code, 0);
    assert_eq!(
        b.run_ok("md5sum < /tmp/received; wc -c < /tmp/received"),
        sum
    );

    // Somebody listens on these, so whoever refuses is not b.
    let refusals = [
        (7001, "policy_reject"),
        (7002, "policy_deny"),
        (7003, "policy_default_deny"),
    ];
    for (tcp_port, reason) in refusals {
        let _listener = b.serve(None, tcp_port, &format!("nc -ll -p {tcp_port} -e cat"));
        let before = switch.dropped(reason);
        let attempt = a.run(&format!("echo hello | nc -w 3 10.0.0.2 {tcp_port}"));
        assert_ne!(attempt.code, 0, "{tcp_port}");
        // Only a rejection is answered.
        assert_eq!(
            attempt.output.contains("refused"),
            reason == "policy_reject",
            "{tcp_port}: {}",
            attempt.output
        );
        assert!(switch.dropped(reason) > before, "{tcp_port}: {reason}");
        let service = format!("tcp/{tcp_port}");
        let explained = switch.cli(&["explain", "--from", "a", "--to", "b", "--service", &service]);
        assert_eq!(explained.status.code(), Some(1), "{explained:?}");
    }
    switch.wait_conserved();
}

#[test]
fn a_machine_is_answered_as_whoever_was_asked_says() {
    let Some(lab) = Lab::open(&[Need::Vm]) else {
        return;
    };
    let (switch, mut a, mut b) = pair(&lab);
    let _echoes =
        [7010, 7011, 7012].map(|port| b.serve(None, port, &format!("nc -ll -p {port} -e cat")));
    let mut attempt = |port: u16, answer: Option<&str>| {
        let pending = a.start(&format!("echo hello | nc -w 60 10.0.0.2 {port}"));
        if let Some(answer) = answer {
            let id = wait_for("the question", LIMIT, || {
                let list = switch.cli_json(&["ask", "list"]);
                let ask = list.get(0)?;
                assert_eq!((&ask["from"], &ask["to"]), (&"a".into(), &"b".into()));
                assert_eq!(
                    (&ask["rule"], &ask["dport"]),
                    (&"asks".into(), &port.into())
                );
                Some(ask["id"].as_str()?.to_owned())
            });
            switch.cli_json(&["ask", answer, &id]);
        }
        a.finish(pending, LIMIT)
    };
    let denied = attempt(7010, Some("deny"));
    assert_ne!(denied.code, 0, "{denied:?}");
    assert!(denied.output.contains("refused"), "{denied:?}");
    // A yes is for whoever comes later, too.
    for answer in [Some("allow"), None] {
        let allowed = attempt(7011, answer);
        assert_eq!((allowed.code, allowed.output.trim()), (0, "hello"));
    }
    let late = attempt(7012, None);
    assert_eq!((late.code, late.output.trim()), (0, "hello"));
    switch.wait_conserved();
}

#[test]
fn machines_carry_on_when_the_switch_is_killed_and_when_one_of_them_is() {
    let Some(lab) = Lab::open(&[Need::Vm]) else {
        return;
    };
    let (mut switch, mut a, mut b) = pair(&lab);
    let boots = [&mut a, &mut b].map(|vm| vm.run_ok("cat /proc/sys/kernel/random/boot_id"));
    let _bulk = b.serve(None, 5201, "iperf3 -s");
    let _echo = b.serve(None, 7000, "nc -ll -p 7000 -e cat");
    assert!(echo(&mut a, 2));

    // Killed in the middle of a transfer.
    let transfer = a.start("iperf3 -c 10.0.0.2 -t 600");
    wait_for("the transfer to run", LIMIT, || {
        (switch.counter("a", "rx_pkts") > 500).then_some(())
    });
    switch.kill();
    switch.restart();
    switch.wait_ports_up(2);
    assert!(echo(&mut a, 2), "a new connection, in one attempt");
    // The old connection is not in the new table: in its middle it is refused.
    wait_for("the old connection to be refused", LIMIT, || {
        (switch.dropped("tcp_not_syn") > 0).then_some(())
    });
    let after = [&mut a, &mut b].map(|vm| vm.run_ok("cat /proc/sys/kernel/random/boot_id"));
    assert_eq!(boots, after, "no machine was booted again");
    a.run_ok("killall -9 iperf3");
    assert_ne!(a.finish(transfer, LIMIT).code, 0);

    // A machine that dies, and another in its place.
    b.kill();
    wait_for("the port to lose its guest", LIMIT, || {
        (switch.cli_json(&["status"])["ports_up"] == 1).then_some(())
    });
    assert_ne!(a.run("ping -c 1 -W 1 10.0.0.2").code, 0);
    let mut b = vm(&lab, "b", 2, true);
    address(&mut b, 2);
    switch.wait_ports_up(2);
    let _echo = b.serve(None, 7000, "nc -ll -p 7000 -e cat");
    assert!(echo(&mut a, 2));
    switch.wait_conserved();
}

/// QEMU does not know how far a packed ring is when its back-end has gone, and replays where it was long ago.
#[test]
fn machines_with_packed_rings_carry_on_however_the_switch_ends() {
    let Some(lab) = Lab::open(&[Need::Vm]) else {
        return;
    };
    let config = format!(
        "{HEAD}{}{}",
        port("a", 1, &vhost_user(&lab, "a", "client")),
        port("b", 2, &vhost_user(&lab, "b", "server"))
    );
    let mut switch = SwitchConfig::new(&lab, "switch", &config, POLICY).start();
    let start = |name: &str, number, qemu_listens, device: &str| {
        let mut config = vm_config(&lab, name, number, qemu_listens);
        config.packed = true;
        config.device = device.to_owned();
        config.start(&lab)
    };
    // The first one is not told that its link is down, and goes on sending. The second one's large frames take chains of several descriptors.
    let mut a = start("a", 1, true, "status=off");
    let mut b = start("b", 2, false, "indirect_desc=off");
    address(&mut a, 1);
    address(&mut b, 2);
    switch.wait_ports_up(2);
    for vm in [&mut a, &mut b] {
        // VIRTIO_F_RING_PACKED is bit 34.
        let features = vm.run_ok("cat /sys/class/net/eth0/device/features");
        assert_eq!(features.as_bytes().get(34), Some(&b'1'), "{features}");
    }
    let boots = [&mut a, &mut b].map(|vm| vm.run_ok("cat /proc/sys/kernel/random/boot_id"));
    let _echo_a = a.serve(None, 7000, "nc -ll -p 7000 -e cat");
    let _echo_b = b.serve(None, 7000, "nc -ll -p 7000 -e cat");

    // The second kind of traffic fills the ring while nobody serves it.
    for (round, traffic) in ["", "-u -b 0 -l 1000", "-u -b 0 -l 1000", "-R", "-u -b 0 -R"]
        .into_iter()
        .enumerate()
    {
        let server = b.serve(None, 5201, "iperf3 -s");
        let transfer = a.start(&format!("iperf3 -c 10.0.0.2 -t 600 {traffic}"));
        let before = switch.counter("a", "rx_pkts") + switch.counter("b", "rx_pkts");
        wait_for("the transfer to run", LIMIT, || {
            let now = switch.counter("a", "rx_pkts") + switch.counter("b", "rx_pkts");
            (now > before + 500).then_some(())
        });
        if round == 1 {
            switch.process().signal("TERM");
            assert!(switch.process().wait(LIMIT).success());
        } else {
            switch.kill();
        }
        switch.restart();
        switch.wait_ports_up(2);
        assert!(
            echo(&mut a, 2),
            "round {round}: a new connection, in one attempt"
        );
        assert!(echo(&mut b, 1), "round {round}");
        for (vm, iperf3) in [(&mut a, transfer), (&mut b, server)] {
            vm.run_ok("killall -9 iperf3");
            assert_ne!(vm.finish(iperf3, LIMIT).code, 0);
        }
    }

    // An idle switch has asked for kicks. QEMU hears those that nobody serves, and throws away what looks available at its base
    // of long ago.
    for round in 0..3 {
        assert!(echo(&mut a, 2));
        switch.kill();
        a.run("ping -c 300 -i 0.002 -W 1 -q 10.0.0.2");
        switch.restart();
        switch.wait_ports_up(2);
        assert!(echo(&mut a, 2), "round {round}");
        assert!(echo(&mut b, 1), "round {round}");
    }

    // Rings made anew while nobody serves them, at the same place in memory or not.
    switch.kill();
    let again =
        "cd /sys/bus/virtio/drivers/virtio_net && echo virtio0 > unbind && echo virtio0 > bind";
    a.run_ok(again);
    address(&mut a, 1);
    switch.restart();
    switch.wait_ports_up(2);
    assert!(echo(&mut a, 2));

    let after = [&mut a, &mut b].map(|vm| vm.run_ok("cat /proc/sys/kernel/random/boot_id"));
    assert_eq!(boots, after, "no machine was booted again");
    switch.wait_conserved();
}

/// A machine that connects to the switch, and a container behind a veth pair: their offloads differ, the switch translates.
#[test]
fn a_machine_and_a_container_exchange_tcp_and_the_machine_may_die() {
    let Some(lab) = Lab::open(&[
        Need::Vm,
        Need::Netns,
        Need::Program("iperf3"),
        Need::Program("busybox"),
    ]) else {
        return;
    };
    let (host, container) = (Netns::new(&lab, "host"), Netns::new(&lab, "container"));
    host.veth("veth-c", &container, "eth0");
    container.address("eth0", "52:54:00:00:00:02", &["10.0.0.2/24", "fd00::2/64"]);
    let config = format!(
        "{HEAD}{}{}",
        port("vm", 1, &vhost_user(&lab, "vm", "server")),
        port("container", 2, "kind = \"af-xdp\"\ninterface = \"veth-c\"")
    );
    let mut switch = SwitchConfig::new(&lab, "switch", &config, POLICY)
        .in_netns(&host)
        .start();
    let mut guest = vm(&lab, "vm", 1, false);
    address(&mut guest, 1);
    switch.wait_ports_up(2);

    for peer in ["10.0.0.2", "fd00::2"] {
        guest.run_ok(&format!("ping -c 2 -W 10 {peer}"));
    }
    // From the machine in large frames, which the container must get as small ones.
    let server = container.iperf3_server(&lab, 5201);
    for peer in ["10.0.0.2", "fd00::2"] {
        let before = traffic(&mut guest);
        guest.run_ok(&format!("iperf3 -c {peer} -n 8M"));
        let after = traffic(&mut guest);
        let size = (after[0] - before[0]) / (after[1] - before[1]);
        assert!(size > 4000, "{size} bytes a frame sent to {peer}");
    }
    let segments = switch.counter("vm", "extra_segments_pkts")
        + switch.counter("container", "extra_segments_pkts");
    assert!(segments > 1000, "{segments}");
    for peer in ["10.0.0.2", "fd00::2"] {
        let report = guest.run_ok(&format!("iperf3 -c {peer} -u -b 4M -l 1000 -t 1 -J"));
        received_datagrams(&report);
    }
    drop(server);

    // The same bytes, both ways, the second connection opened by the container.
    let sum = guest
        .run_ok("head -c 4000000 /dev/urandom > /tmp/sent; md5sum < /tmp/sent; wc -c < /tmp/sent");
    let there = lab.path_str("there");
    let receiver = container.spawn(
        &lab,
        "receiver",
        &format!("busybox nc -l -p 7000 -e busybox dd of={there}"),
    );
    container.wait_listening(7000);
    guest.run_ok("nc -w 15 10.0.0.2 7000 < /tmp/sent");
    wait_done(receiver);
    let there_sum = container.run_ok(&format!("md5sum < {there}; wc -c < {there}"), LIMIT);
    assert_eq!(there_sum.trim(), sum.trim());
    let back = guest.serve(None, 7000, "nc -l -p 7000 -e dd of=/tmp/back");
    container.run_ok(&format!("busybox nc -w 15 10.0.0.1 7000 < {there}"), LIMIT);
    assert_eq!(guest.finish(back, LIMIT).code, 0);
    assert_eq!(
        guest.run_ok("md5sum < /tmp/back; wc -c < /tmp/back").trim(),
        sum.trim()
    );
    let _server = guest.serve(None, 5201, "iperf3 -s");
    for peer in ["10.0.0.1", "fd00::1"] {
        container.run_ok(&format!("iperf3 -c {peer} -n 8M"), LIMIT);
    }

    // The machine dies; the next one connects to the same socket.
    guest.kill();
    wait_for("the port to lose its guest", LIMIT, || {
        (switch.cli_json(&["status"])["ports_up"] == 1).then_some(())
    });
    let mut guest = vm(&lab, "vm", 1, false);
    address(&mut guest, 1);
    switch.wait_ports_up(2);
    let _echo = guest.serve(None, 7000, "nc -ll -p 7000 -e cat");
    let ask = "echo hello | busybox nc -w 15 10.0.0.1 7000";
    assert_eq!(container.run_ok(ask, LIMIT).trim(), "hello");
    switch.wait_conserved();

    // So does the switch; both go on where they are.
    let boot = guest.run_ok("cat /proc/sys/kernel/random/boot_id");
    switch.kill();
    let lost = container.run(ask, LIMIT);
    assert_ne!(String::from_utf8_lossy(&lost.stdout).trim(), "hello");
    switch.restart();
    switch.wait_ports_up(2);
    assert_eq!(container.run_ok(ask, LIMIT).trim(), "hello");
    assert_eq!(
        guest.run_ok("cat /proc/sys/kernel/random/boot_id"),
        boot,
        "the machine was not booted again"
    );
}

/// Waits for a server that serves once.
fn wait_done(mut server: process::Process) {
    assert!(server.wait(LIMIT).success(), "{}", server.log());
}
