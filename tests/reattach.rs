//! A container that restarts, or comes after the switch, brings a new interface: its port takes it up by itself, and meanwhile
//! nothing else has to wait.

mod common;

use common::netns::Netns;
use common::switch::SwitchConfig;
use common::{Lab, Need, wait_for};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);

const POLICY: &str = r#"
[[rule]]
name = "all"
from = "any"
to = "any"
action = "allow"
"#;

fn port(name: &str, n: u8) -> String {
    format!(
        "[[port]]\nname = \"{name}\"\nkind = \"af-xdp\"\ninterface = \"{name}\"\n\
         [[port.workload]]\nname = \"{name}\"\nmac = [\"52:54:00:00:00:0{n}\"]\nip = [\"10.0.0.{n}\"]\n"
    )
}

/// One whose interface may come later.
fn optional(name: &str, n: u8) -> String {
    let workload = "[[port.workload]]";
    port(name, n).replace(workload, &format!("optional = true\n{workload}"))
}

#[test]
fn a_restarted_container_is_attached_again() {
    let Some(lab) = Lab::open(&[Need::Netns, Need::Program("busybox")]) else {
        return;
    };
    let ns = |name| Netns::new(&lab, name);
    let (host, one, two) = (ns("host"), ns("one"), ns("two"));
    host.veth("c1", &one, "eth0");
    host.veth("c2", &two, "eth0");
    one.address("eth0", "52:54:00:00:00:01", &["10.0.0.1/24"]);
    two.address("eth0", "52:54:00:00:00:02", &["10.0.0.2/24"]);
    let toml = "policy = \"policy.toml\"\n".to_owned() + &port("c1", 1) + &port("c2", 2);
    let s = SwitchConfig::new(&lab, "sw", &toml, POLICY)
        .in_netns(&host)
        .start();
    let ping = "busybox ping -c 1 -w 10 10.0.0.1";
    two.run_ok(ping, LIMIT);

    host.ip("link del c1");
    let up = |name: &str| {
        let ports = s.cli_json(&["port", "list"]);
        let ports = ports.as_array().expect("a list").clone();
        let port = ports.into_iter().find(|p| p["name"] == name);
        port.expect("it is configured")["up"] == true
    };
    wait_for("the port to notice", LIMIT, || (!up("c1")).then_some(()));
    // Changes do not wait for it.
    s.cli_ok(&["workload", "tag", "c2", "x:y"]);

    host.veth("c1", &one, "eth0");
    one.address("eth0", "52:54:00:00:00:01", &["10.0.0.1/24"]);
    wait_for("the new interface to be attached", LIMIT, || {
        up("c1").then_some(())
    });
    two.run_ok(ping, LIMIT);
    assert!(up("c2"), "the other port was not touched");
}

#[test]
fn a_container_may_come_after_the_switch() {
    let Some(lab) = Lab::open(&[Need::Netns, Need::Program("busybox")]) else {
        return;
    };
    let ns = |name| Netns::new(&lab, name);
    let (host, one, two, three) = (ns("host"), ns("one"), ns("two"), ns("three"));
    for (interface, n, ns) in [("c2", 2, &two), ("c3", 3, &three)] {
        host.veth(interface, ns, "eth0");
        let address = format!("10.0.0.{n}/24");
        ns.address("eth0", &format!("52:54:00:00:00:0{n}"), &[&address]);
    }
    let toml = "policy = \"policy.toml\"\n".to_owned()
        + &optional("c1", 1)
        + &optional("c2", 2)
        + &port("c3", 3);
    let mut s = SwitchConfig::new(&lab, "sw", &toml, POLICY)
        .in_netns(&host)
        .start();
    let said = s.process().log();
    assert!(
        said.contains("not there yet") && said.contains("c1"),
        "{said}"
    );
    let list = s.cli_ok(&["port", "list"]);
    let line = list.lines().find(|l| l.contains("c1"));
    assert!(line.is_some_and(|l| l.contains(" missing ")), "{list}");
    // Those who are there are served.
    let ping = "busybox ping -c 1 -w 10 10.0.0";
    two.run_ok(&format!("{ping}.3"), LIMIT);

    host.veth("c1", &one, "eth0");
    one.address("eth0", "52:54:00:00:00:01", &["10.0.0.1/24"]);
    s.wait_ports_up(3);
    two.run_ok(&format!("{ping}.1"), LIMIT);

    // Nor does a restart of the switch need all of them.
    host.ip("link del c2");
    s.restart();
    s.wait_ports_up(2);
    three.run_ok(&format!("{ping}.1"), LIMIT);
    // What is not optional must be there.
    let refused = s.cli(&["port", "add", "c4", "--kind", "af-xdp", "--at", "c4"]);
    assert_eq!(refused.status.code(), Some(1));
}

#[test]
fn a_tap_container_may_come_after_the_switch_and_restart() {
    let Some(lab) = Lab::open(&[Need::Netns, Need::Program("busybox")]) else {
        return;
    };
    let ns = |name| Netns::new(&lab, name);
    let (host, one, two, three) = (ns("host"), ns("one"), ns("two"), ns("three"));
    // A namespace by path: the link is made later.
    let later = lab.path_str("later");
    let tap = |name: &str, n: u8, netns: &str| {
        format!(
            "[[port]]\nname = \"{name}\"\nkind = \"tap\"\ninterface = \"eth0\"\nnetns = \"{netns}\"\noptional = true\n\
             [[port.workload]]\nname = \"{name}\"\nmac = [\"52:54:00:00:00:0{n}\"]\nip = [\"10.0.0.{n}\"]\n"
        )
    };
    let toml = "policy = \"policy.toml\"\n".to_owned() + &tap("t1", 1, &later);
    let s = SwitchConfig::new(&lab, "sw", &toml, POLICY)
        .in_netns(&host)
        .start();
    let list = s.cli_ok(&["port", "list"]);
    assert!(list.contains(" missing "), "{list}");
    std::os::unix::fs::symlink(one.path(), &later).expect("the lab's directory is writable");
    s.wait_ports_up(1);
    // What is not optional must be there.
    let never = tap("t3", 3, &lab.path_str("never")).replace("optional = true\n", "");
    let never = lab.file("never.toml", never);
    let refused = s.cli(&["port", "add", "--file", never.to_str().expect("UTF-8")]);
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("`optional = true`"), "{said}");
    // Another container's device may have the same name.
    let more = lab.file(
        "more.toml",
        tap("t2", 2, two.path().to_str().expect("UTF-8")),
    );
    s.cli_ok(&["port", "add", "--file", more.to_str().expect("UTF-8")]);
    s.wait_ports_up(2);
    one.address("eth0", "52:54:00:00:00:01", &["10.0.0.1/24"]);
    two.address("eth0", "52:54:00:00:00:02", &["10.0.0.2/24"]);
    let ping = "busybox ping -c 1 -w 10 10.0.0.1";
    two.run_ok(ping, LIMIT);

    // The container restarts: a new namespace under its name.
    std::fs::remove_file(&later).expect("it is ours");
    s.wait_ports_up(1);
    std::os::unix::fs::symlink(three.path(), &later).expect("the lab's directory is writable");
    s.wait_ports_up(2);
    three.address("eth0", "52:54:00:00:00:01", &["10.0.0.1/24"]);
    two.run_ok(ping, LIMIT);
}
