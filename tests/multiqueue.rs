//! Machines with several queue pairs: every pair carries frames, and the guest may change their number.

mod common;

use common::switch::SwitchConfig;
use common::vm::{Vm, VmConfig};
use common::{Lab, Need};

const POLICY: &str = r#"
[[rule]]
name = "all"
from = "any"
to = "any"
action = "allow"
"#;

/// A machine with two queue pairs and as many processors; the switch connects to it.
fn vm(lab: &Lab, name: &str, n: u8) -> Vm {
    let mac = format!("52:54:00:00:00:0{n}");
    let mut config = VmConfig::new(name, lab.path(format!("{name}.sock")), &mac);
    config.qemu_listens = true;
    config.queues = 2;
    config.start(lab)
}

fn port(lab: &Lab, name: &str, n: u8) -> String {
    format!(
        "[[port]]\nname = \"{name}\"\nkind = \"vhost-user\"\nmode = \"client\"\nsocket = \"{}\"\n\
         [[port.workload]]\nname = \"{name}\"\nmac = [\"52:54:00:00:00:0{n}\"]\nip = [\"10.0.0.{n}\"]\n",
        lab.path_str(format!("{name}.sock"))
    )
}

/// Frames by queue pair that the guest has sent (`tx`) or received (`rx`). A pair that is switched off is not listed.
fn frames(vm: &mut Vm, direction: &str) -> Vec<u64> {
    let text = vm.run_ok("ethtool -S eth0");
    let mut queues = Vec::new();
    for queue in 0..2 {
        let name = format!("{direction}_queue_{queue}_packets:");
        let line = text.lines().find_map(|l| l.trim().strip_prefix(&name));
        queues.extend(line.map(|n| n.trim().parse::<u64>().expect("a number")));
    }
    queues
}

#[test]
fn both_queue_pairs_of_a_machine_carry_frames() {
    let Some(lab) = Lab::open(&[Need::Vm]) else {
        return;
    };
    let (mut a, mut b) = (vm(&lab, "a", 1), vm(&lab, "b", 2));
    let head = "policy = \"policy.toml\"\n[switch]\nconnections = 10000\n";
    let toml = head.to_owned() + &port(&lab, "a", 1) + &port(&lab, "b", 2);
    let switch = SwitchConfig::new(&lab, "switch", &toml, POLICY).start();
    for (vm, n) in [(&mut a, 1), (&mut b, 2)] {
        vm.booted();
        vm.run_ok("ethtool -L eth0 combined 2");
        vm.address(&[&format!("10.0.0.{n}/24")]);
    }
    switch.wait_ports_up(2);
    // A processor sends by its own pair, and the switch keeps to the pair's number.
    let mut pings = |pair: usize| {
        let before = (frames(&mut a, "tx"), frames(&mut b, "rx"));
        a.run_ok(&format!("taskset {} ping -c 5 -W 10 10.0.0.2", 1 << pair));
        let after = (frames(&mut a, "tx"), frames(&mut b, "rx"));
        let sent = after.0[pair] - before.0[pair];
        let received = after.1[pair] - before.1[pair];
        assert!(
            sent >= 5 && received >= 5,
            "pair {pair}: {before:?}, {after:?}"
        );
    };
    pings(0);
    pings(1);

    for pairs in [1, 2] {
        b.run_ok(&format!("ethtool -L eth0 combined {pairs}"));
        for processor in [1, 2] {
            a.run_ok(&format!("taskset {processor} ping -c 3 -W 10 10.0.0.2"));
        }
        assert_eq!(frames(&mut b, "rx").len(), pairs);
    }
    switch.wait_conserved();
}
