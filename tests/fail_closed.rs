//! The switch fails closed: when it is dead, a container reaches neither the host nor another container, and it forwards nothing
//! before a whole policy stands.

mod common;

use common::container::{ATTEMPT, Container, Echo, LIMIT, Transfer, conserves, wait_dropped};
use common::netns::Netns;
use common::switch::SwitchConfig;
use common::{Lab, Need, wait_for};
use std::net::{IpAddr, Ipv4Addr};

/// The host's address on the switch's end of `a`'s veth pair.
const HOST: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 254));
const HOST_MAC: &str = "52:54:00:00:00:fe";

const POLICY: &str = r#"
[[segment]]
name = "containers"
tags = ["is:a"]
[[segment]]
name = "servers"
tags = ["is:b"]
[[rule]]
name = "echo"
from = "containers"
to = "servers"
service = ["tcp/5000", "udp/5000"]
action = "allow"
"#;

/// Two mistakes, in different places.
const BROKEN: &str = r#"
[[rule]]
name = "echo"
from = "nobody"
to = "any"
service = ["tcp/99999"]
action = "allow"
"#;

/// Containers `a` and `b`, and a host that would answer both.
struct Site {
    host: Netns,
    a: Container,
    b: Container,
    at_host: Echo,
    at_b: Echo,
}

impl Site {
    fn new(lab: &Lab) -> Self {
        let host = Netns::new(lab, "host");
        let a = Container::veth(lab, &host, "a", 1);
        let b = Container::veth(lab, &host, "b", 2);
        host.address(&a.interface(), HOST_MAC, &[&format!("{HOST}/24")]);
        // Known neighbours: nothing that `a` sends waits for an answer to a question.
        for (to, mac) in [(HOST, HOST_MAC), (b.v4(), &b.mac()), (b.v6(), &b.mac())] {
            a.ns.ip(&format!(
                "neigh replace {to} lladdr {mac} dev eth0 nud permanent"
            ));
        }
        let (at_host, at_b) = (Echo::start(&host, 5000), b.echo(5000));
        Self {
            host,
            a,
            b,
            at_host,
            at_b,
        }
    }

    fn config<'a>(&'a self, lab: &'a Lab, policy: &str) -> SwitchConfig<'a> {
        let (a, b) = (self.a.veth_port(""), self.b.veth_port(""));
        let switch_toml = format!("policy = \"policy.toml\"\n{a}{b}");
        SwitchConfig::new(lab, "switch", &switch_toml, policy).in_netns(&self.host)
    }

    /// Whatever `a` sends now arrives nowhere.
    fn is_cut_off(&self, when: &str) {
        let before = (self.at_host.reached(), self.at_b.reached(), self.sent());
        for to in [HOST, self.b.v4(), self.b.v6()] {
            let tcp = self.a.connect((to, 5000), ATTEMPT);
            assert!(tcp.is_err(), "{when}: TCP to {to} is open");
            let udp = self.a.ask((to, 5000), 100, ATTEMPT);
            assert!(udp.is_err(), "{when}: UDP to {to} came back");
        }
        assert_eq!(
            (self.at_host.reached(), self.at_b.reached()),
            (before.0, before.1),
            "{when}: something arrived"
        );
        // Otherwise the above would be true of an interface that is down.
        assert!(self.sent() >= before.2 + 6, "{when}: nothing was sent");
    }

    /// Frames that have left `a`.
    fn sent(&self) -> u64 {
        let table = self.a.ns.run_ok("cat /proc/self/net/dev", LIMIT);
        let line = table.lines().find_map(|l| l.trim().strip_prefix("eth0:"));
        // Eight columns of what was received, then bytes and packets sent.
        let fields = line.map(str::split_whitespace);
        let sent = fields.and_then(|mut f| f.nth(9)?.parse().ok());
        sent.unwrap_or_else(|| panic!("no eth0 in {table}"))
    }

    /// Whether an XDP program is on `a`'s interface.
    fn has_program(&self) -> bool {
        let link = self.host.ip(&format!("link show {}", self.a.interface()));
        link.contains("prog/xdp")
    }
}

#[test]
fn a_dead_switch_hands_nobody_to_the_host() {
    let Some(lab) = Lab::open(&[Need::Netns]) else {
        return;
    };
    let site = Site::new(&lab);
    let (a, b) = (&site.a, &site.b);
    let mut switch = site.config(&lab, POLICY).start();
    switch.wait_ports_up(2);
    a.talk((b.v4(), 5000), 1 << 20);
    // Alive, it does not hand frames to the host either: nobody of the switch's has that MAC.
    a.connect((HOST, 5000), ATTEMPT).expect_err("no way out");
    wait_dropped(&switch, "a", "unknown_destination", 0);
    assert_eq!(site.at_host.reached(), (0, 0));

    // Killed under traffic.
    let transfer = Transfer::start(a, (b.v4(), 5000));
    transfer.moves_on();
    switch.kill();
    site.is_cut_off("killed");
    drop(transfer);

    switch.restart();
    switch.wait_ports_up(2);
    a.talk((b.v4(), 5000), 1 << 20);
    a.talk((b.v6(), 5000), 1 << 20);
    conserves(&switch);

    // Ended in order: no different.
    switch.process().signal("TERM");
    assert_eq!(switch.process().wait(LIMIT).code(), Some(0));
    site.is_cut_off("ended");

    // Back with a policy that cannot stand: it refuses to start, with every error, and nothing opens.
    drop(switch);
    let mut switch = site.config(&lab, BROKEN).spawn();
    assert_eq!(switch.process().wait(LIMIT).code(), Some(1));
    let said = switch.process().log();
    for error in ["policy.toml:4:", "nobody", "policy.toml:6:", "99999"] {
        assert!(said.contains(error), "no {error:?} in: {said}");
    }
    site.is_cut_off("refused to start");
    drop(switch);

    let switch = site.config(&lab, POLICY).start();
    switch.wait_ports_up(2);
    a.talk((b.v4(), 5000), 1 << 20);
    // Removing a port on purpose gives its interface back to the host, and takes the container off the switch. (That the host
    // answers now also shows that only the switch kept it from answering before.)
    assert!(site.has_program());
    switch.cli_ok(&["port", "del", "a"]);
    let ports = switch.cli_json(&["port", "list"]);
    let names: Vec<_> = ports.as_array().expect("a list").iter().collect();
    assert!(names.len() == 1 && names[0]["name"] == "b", "{ports}");
    wait_for("the program to go", LIMIT, || {
        (!site.has_program()).then_some(())
    });
    a.talk((HOST, 5000), 1 << 20);
    a.connect((b.v4(), 5000), ATTEMPT).expect_err("gone");
    conserves(&switch);
}

#[test]
fn nothing_is_forwarded_before_a_whole_policy_stands() {
    let Some(lab) = Lab::open(&[Need::Netns]) else {
        return;
    };
    let site = Site::new(&lab);
    // Refused from the start, it has not touched the interfaces at all.
    let mut switch = site.config(&lab, BROKEN).spawn();
    assert_eq!(switch.process().wait(LIMIT).code(), Some(1));
    assert!(!site.has_program());
    drop(switch);

    // No rules is a whole policy: it denies everything.
    let switch = site.config(&lab, "").start();
    site.is_cut_off("without rules");
    wait_dropped(&switch, "a", "policy_default_deny", 3);
    // What cannot stand does not replace it.
    let broken = lab.file("broken.toml", BROKEN);
    let broken = broken.to_str().expect("the lab's directory is UTF-8");
    let refused = switch.cli(&["policy", "apply", broken]);
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("nobody") && said.contains("99999"), "{said}");
    site.is_cut_off("after a refused policy");

    switch.apply(POLICY);
    for to in [site.b.v4(), site.b.v6()] {
        site.a.talk((to, 5000), 1 << 20);
    }
    conserves(&switch);
}
