//! Containers inside a virtual machine: two namespaces of one guest, each on a VLAN of its own, are two workloads. What passes
//! between them leaves the machine, is judged, and goes back in by the port it came from. With a trunk, each is in a network of its
//! own, as `docs/attach-qemu.md` has it; without one they share the port's.

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

/// One attempt to reach the echo service at `to` from a container of the guest.
fn reaches(vm: &mut Vm, container: &str, to: &str) -> bool {
    let done = vm.run(&format!(
        "echo hello | ip netns exec {container} nc -w 5 {to} 7000"
    ));
    done.code == 0 && done.output.trim() == "hello"
}

/// The same by the last number of an address in 10.0.0.0/24.
fn echo(vm: &mut Vm, container: &str, to: u8) -> bool {
    reaches(vm, container, &format!("10.0.0.{to}"))
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

/// The first fenced block of `language` under a heading of the page.
fn block(heading: &str, language: &str) -> &'static str {
    let page = include_str!("../docs/attach-qemu.md");
    page.split_once(&format!("\n## {heading}\n"))
        .map(|(_, rest)| rest.split("\n## ").next().unwrap_or(rest))
        .and_then(|section| section.split_once(&format!("\n```{language}\n")))
        .and_then(|(_, rest)| rest.split_once("\n```"))
        .map(|(block, _)| block)
        .unwrap_or_else(|| panic!("no {language} under \"{heading}\""))
}

/// The page's port and the page's commands: two containers with one MAC, each in a VLAN and a network of its own.
#[test]
fn containers_as_the_page_attaches_them() {
    let Some(lab) = Lab::open(&[Need::Vm, Need::Netns, Need::Program("busybox")]) else {
        return;
    };
    let heading = "Containers inside the guest";
    let (toml, commands) = (block(heading, "toml"), block(heading, "sh"));
    let its_socket = "/run/vswitch/web-1.sock";
    assert!(toml.contains(its_socket), "{toml}");
    let mut ports = toml.replace(its_socket, &lab.path_str("web-1.sock"));
    let host = Netns::new(&lab, "host");
    let outside = [("db", 10), ("store", 20)].map(|(name, vlan)| {
        let ns = Netns::new(&lab, name);
        let ip = format!("10.0.{vlan}.3");
        host.veth(&format!("vs-{name}"), &ns, "eth0");
        ns.address("eth0", "52:54:00:00:00:03", &[&format!("{ip}/24")]);
        ports += &format!(
            "\n[[port]]\nname = \"{name}\"\nkind = \"af-xdp\"\ninterface = \"vs-{name}\"\nvlan = {vlan}\n\
             [[port.workload]]\nname = \"{name}\"\nmac = [\"52:54:00:00:00:03\"]\nip = [\"{ip}\"]\n"
        );
        ns
    });
    let rules = |to_db: &str| {
        let segments = [
            ("front", "tags = [\"tier:front\"]"),
            ("cache", "tags = [\"tier:cache\"]"),
        ];
        let names = [("db", "names = [\"db\"]"), ("store", "names = [\"store\"]")];
        let mut policy = String::new();
        for (name, who) in segments.into_iter().chain(names) {
            policy += &format!("[[segment]]\nname = \"{name}\"\n{who}\n");
        }
        // Whoever could reach anybody by mistake would be let.
        for (n, (from, to, action)) in [("front", "db", to_db), ("any", "any", "allow")]
            .iter()
            .enumerate()
        {
            policy += &format!(
                "[[rule]]\nname = \"r{n}\"\nfrom = \"{from}\"\nto = \"{to}\"\nservice = \"tcp/7000\"\naction = \"{action}\"\n"
            );
        }
        policy
    };
    let mut machine = VmConfig::new("web-1", lab.path("web-1.sock"), "52:54:00:00:00:01");
    machine.qemu_listens = toml.contains("mode = \"client\"");
    let mut vm = machine.start(&lab);
    let config = format!("policy = \"policy.toml\"\n[switch]\nconnections = 10000\n{ports}");
    let switch = SwitchConfig::new(&lab, "switch", &config, &rules("allow"))
        .in_netns(&host)
        .start();
    let _echoes = outside.each_ref().map(|ns| {
        let echo = ns.spawn(&lab, "echo", "busybox nc -ll -p 7000 -e cat");
        ns.wait_listening(7000);
        echo
    });
    vm.booted();
    for command in commands.lines() {
        vm.run_ok(command);
        // The page shows one of the two.
        let other = command
            .replace("front", "cache")
            .replace(".10", ".20")
            .replace("id 10", "id 20");
        if other != command {
            vm.run_ok(&other);
        }
    }
    switch.wait_ports_up(3);

    // Each reaches its network's other workload, and is known as who the page says it is.
    assert!(reaches(&mut vm, "front", "10.0.10.3"));
    assert!(reaches(&mut vm, "cache", "10.0.20.3"));
    let live = switch.cli_json(&["conn", "list"]);
    for name in ["web-1-front", "web-1-cache"] {
        assert!(live.to_string().contains(name), "{live}");
    }

    // Neither reaches the other, nor the other's network, also when its kernel tries.
    for command in [
        "ip -n front route add 10.0.20.0/24 dev eth0.10",
        "ip -n cache route add 10.0.10.0/24 dev eth0.20",
    ] {
        vm.run_ok(command);
    }
    for (from, to) in [
        ("front", "10.0.20.1"),
        ("front", "10.0.20.3"),
        ("cache", "10.0.10.1"),
        ("cache", "10.0.10.3"),
    ] {
        let before = switch.dropped("unknown_neighbour");
        assert!(!reaches(&mut vm, from, to), "{from} reached {to}");
        assert!(
            switch.dropped("unknown_neighbour") > before,
            "{from} to {to}"
        );
    }

    // And a policy is about one of them alone.
    switch.apply(&rules("deny"));
    let before = switch.dropped("policy_deny");
    assert!(!reaches(&mut vm, "front", "10.0.10.3"));
    assert!(switch.dropped("policy_deny") > before);
    assert!(reaches(&mut vm, "cache", "10.0.20.3"));
    switch.wait_conserved();
}
