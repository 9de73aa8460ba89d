//! Containers inside a virtual machine: two namespaces of one guest, each on a VLAN of its own, are two workloads. What passes
//! between them leaves the machine, is judged, and goes back in by the port it came from.

mod common;

use common::netns::Netns;
use common::switch::SwitchConfig;
use common::vm::{Vm, VmConfig};
use common::{Lab, Need, wait_for};
use std::time::Duration;

/// Bound on whatever is waited for.
const LIMIT: Duration = Duration::from_secs(60);

/// Both containers may reach the third workload; whether the first may reach the second is the `action`.
fn policy(action: &str) -> String {
    format!(
        r#"
[[segment]]
name = "green"
names = ["green"]

[[segment]]
name = "blue"
names = ["blue"]

[[segment]]
name = "third"
names = ["third"]

[[rule]]
name = "to-third"
from = ["green", "blue"]
to = "third"
service = ["tcp/7000", "icmp"]
action = "allow"

[[rule]]
name = "green-to-blue"
from = "green"
to = "blue"
service = ["tcp/7000", "icmp"]
action = "{action}"
"#
    )
}

/// One attempt to reach the echo service at 10.0.0.`to` from a container of the guest.
fn echo(vm: &mut Vm, container: &str, to: u8) -> bool {
    let done = vm.run(&format!(
        "echo hello | ip netns exec {container} nc -w 5 10.0.0.{to} 7000"
    ));
    done.code == 0 && done.output.trim() == "hello"
}

#[test]
fn two_containers_of_one_machine_are_two_workloads() {
    let Some(lab) = Lab::open(&[Need::Vm, Need::Netns, Need::Program("busybox")]) else {
        return;
    };
    let (host, third) = (Netns::new(&lab, "host"), Netns::new(&lab, "third"));
    host.veth("veth-t", &third, "eth0");
    third.address("eth0", "52:54:00:00:00:03", &["10.0.0.3/24"]);
    let config = format!(
        r#"
policy = "policy.toml"
[switch]
connections = 10000

[[port]]
name = "vm"
kind = "vhost-user"
socket = "{socket}"
[[port.workload]]
name = "green"
vlan = 10
mac = ["52:54:00:00:00:11"]
ip = ["10.0.0.11"]
[[port.workload]]
name = "blue"
vlan = 20
mac = ["52:54:00:00:00:12"]
ip = ["10.0.0.12"]

[[port]]
name = "third"
kind = "af-xdp"
interface = "veth-t"
[[port.workload]]
name = "third"
mac = ["52:54:00:00:00:03"]
ip = ["10.0.0.3"]
"#,
        socket = lab.path_str("vm.sock")
    );
    let switch = SwitchConfig::new(&lab, "switch", &config, &policy("deny"))
        .in_netns(&host)
        .start();
    let mut vm = VmConfig::new("vm", lab.path("vm.sock"), "52:54:00:00:00:01").start(&lab);
    let _third = third.spawn(&lab, "third", "busybox nc -ll -p 7000 -e cat");
    third.wait_listening(7000);
    vm.booted();
    vm.run_ok("ip link set eth0 up");
    for (name, vlan, number) in [("green", 10, 11), ("blue", 20, 12)] {
        vm.vlan_container(name, vlan, &[&format!("10.0.0.{number}/24")]);
        vm.run_ok(&format!(
            "ip -n {name} link set eth0.{vlan} address 52:54:00:00:00:{number}"
        ));
        let _echo = vm.serve(Some(name), 7000, "nc -ll -p 7000 -e cat");
    }
    switch.wait_ports_up(2);
    let explain = |from: &str, to: &str| {
        let question = [
            "explain",
            "--from",
            from,
            "--to",
            to,
            "--service",
            "tcp/7000",
        ];
        switch.cli(&question).status.code()
    };

    // Each reaches the third, outside the machine, untagged there.
    for name in ["green", "blue"] {
        assert!(echo(&mut vm, name, 3), "{name} to third");
        vm.run_ok(&format!("ip netns exec {name} ping -c 2 -W 10 10.0.0.3"));
        assert_eq!(explain(name, "third"), Some(0));
    }

    // Neither reaches the other inside the same machine.
    assert!(!echo(&mut vm, "green", 12));
    assert!(switch.dropped("policy_deny") > 0);
    let before = switch.dropped("policy_default_deny");
    assert!(!echo(&mut vm, "blue", 11));
    assert!(switch.dropped("policy_default_deny") > before);
    assert_eq!(explain("green", "blue"), Some(1));
    // Nor does the third reach them.
    let opened = third.run("echo hello | busybox nc -w 3 10.0.0.11 7000", LIMIT);
    assert!(opened.stdout.is_empty(), "{opened:?}");

    // A policy that allows it: out of the machine, through the firewall, and back in. One way round only.
    switch.apply(&policy("allow"));
    let (rx, tx) = (
        switch.counter("vm", "rx_pkts"),
        switch.counter("vm", "tx_pkts"),
    );
    assert!(echo(&mut vm, "green", 12));
    vm.run_ok("ip netns exec green ping -c 2 -W 10 10.0.0.12");
    assert!(switch.counter("vm", "rx_pkts") > rx && switch.counter("vm", "tx_pkts") > tx);
    assert!(!echo(&mut vm, "blue", 11));
    assert_eq!(explain("green", "blue"), Some(0));
    assert_eq!(explain("blue", "green"), Some(1));

    // And back. What was established is cut too: its next line gets no answer.
    vm.run_ok("mkfifo /tmp/lines");
    let live =
        vm.start("(exec 3<> /tmp/lines; ip netns exec green nc 10.0.0.12 7000 <&3 > /tmp/answers)");
    vm.run_ok("echo one > /tmp/lines");
    vm.wait_ok("grep -q one /tmp/answers", LIMIT);
    let before = switch.dropped("policy_deny");
    switch.apply(&policy("deny"));
    vm.run_ok("echo two > /tmp/lines");
    wait_for("the established connection's next segment", LIMIT, || {
        (switch.dropped("policy_deny") > before).then_some(())
    });
    assert_ne!(vm.run("grep -q two /tmp/answers").code, 0);
    assert!(!echo(&mut vm, "green", 12));
    for name in ["green", "blue"] {
        assert!(echo(&mut vm, name, 3), "{name} to third");
    }
    vm.run_ok("killall nc");
    let _cut = vm.finish(live, LIMIT);
    switch.wait_conserved();
}
