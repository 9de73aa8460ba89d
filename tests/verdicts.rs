//! What an operator is shown of a rule's decisions, through the daemon and its command line. The guests are our own, so nothing
//! here needs a privilege.

mod common;

use common::Lab;
use common::station::{Station, mac, port, udp, workload};
use common::switch::{Switch, SwitchConfig};
use serde_json::Value;

/// A switch with the workloads `a` and `b`, and these rules from the one to the other: name, UDP port, further lines.
fn start<'a>(lab: &'a Lab, rules: &[(&str, u16, &str)]) -> (Switch<'a>, [Station; 2]) {
    let ports = [
        port(lab, "a", ""),
        workload("a", 1, "10.0.0.1", ""),
        port(lab, "b", ""),
        workload("b", 2, "10.0.0.2", ""),
    ];
    let toml = "policy = \"policy.toml\"\n[switch]\nconnections = 10000\n".to_owned();
    let rule = |(name, dport, keys): &(&str, u16, &str)| {
        format!(
            "[[rule]]\nname = \"{name}\"\nfrom = \"any\"\nto = \"any\"\nservice = \"udp/{dport}\"\n{keys}\n"
        )
    };
    let policy: String = rules.iter().map(rule).collect();
    let switch = SwitchConfig::new(lab, "switch", &(toml + &ports.concat()), &policy).start();
    let stations = ["a", "b"].map(|name| Station::attach(lab, name));
    switch.wait_ports_up(2);
    (switch, stations)
}

/// A datagram from `a` to `b`.
fn datagram(sport: u16, dport: u16) -> Vec<u8> {
    let ips = ([10, 0, 0, 1], [10, 0, 0, 2]);
    udp((mac(1), mac(2)), ips, (sport, dport), b"judge me")
}

/// What `policy show` says of a rule: its hits, and whether it is staged.
fn hits(switch: &Switch<'_>, name: &str) -> (u64, bool) {
    let shown = switch.cli_json(&["policy", "show"]);
    let rules = shown["rules"].as_array().expect("a list");
    let rule = rules.iter().find(|r| r["name"] == name);
    let rule = rule.unwrap_or_else(|| panic!("no rule {name} in {shown}"));
    let hits = rule["hits"].as_u64().expect("a number");
    (hits, rule["staged"] == true)
}

#[test]
fn what_nobody_can_be_asked_is_answered_by_otherwise_and_counted() {
    let Some(lab) = Lab::open(&[]) else { return };
    let rules = [
        ("ask-in", 1, "action = \"ask\"\notherwise = \"allow\""),
        ("ask-out", 2, "action = \"ask\"\notherwise = \"deny\""),
        ("open", 3, "action = \"allow\""),
    ];
    let (switch, [mut a, mut b]) = start(&lab, &rules);
    // The frame after the denied one shows that it is not on its way.
    for dport in [1, 2, 3] {
        a.send(&datagram(1000, dport));
    }
    b.recv(&datagram(1000, 1));
    b.recv(&datagram(1000, 3));
    // Part of a connection, not a question.
    a.send(&datagram(1000, 1));
    b.recv(&datagram(1000, 1));

    for rule in ["ask-in", "ask-out", "open"] {
        assert_eq!(hits(&switch, rule), (1, false), "{rule}");
    }
    assert_eq!(switch.dropped("policy_ask_denied"), 1);
    let stats = switch.cli_json(&["stats"]);
    assert_eq!(stats["workers"][0]["counters"]["conn_asked"], 2, "{stats}");
    for (service, code, rule) in [("udp/1", 0, "ask-in"), ("udp/2", 1, "ask-out")] {
        let question = ["explain", "--from", "a", "--to", "b", "--service", service];
        let output = switch.cli(&question);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(code), "{said}");
        for what in [
            &format!("rule {rule} (tier application) says ask"),
            "there is no",
            "its `otherwise` holds",
        ] {
            assert!(said.contains(what), "{what} is not said: {said}");
        }
    }
    switch.wait_conserved();
}
