//! A manager answers the questions of `ask` rules, through the daemon and its command line. The guests are our own.

mod common;

use common::station::{Station, mac, port, udp, workload};
use common::switch::{Switch, SwitchConfig};
use common::{Lab, wait_for};
use serde_json::Value;
use std::time::Duration;

/// Bound on what must happen.
const LIMIT: Duration = Duration::from_secs(20);

/// One rule that asks about everything.
const POLICY: &str = "[[segment]]\nname = \"web\"\ntags = [\"tier:web\"]\n\n[[rule]]\nname = \"asks\"\nfrom = \"any\"\nto = \"any\"\n\
                      action = \"ask\"\notherwise = \"deny\"\ndeadline_ms = 60000\nttl_s = 600\n";

/// What the rules below say: 1 yes, 2 no, 3 only once, all else nothing.
const RULES: &str = r#"
@id("first") @ttl("60")
permit(principal in Segment::"web", action == Action::"connect", resource == Workload::"b")
when { context.service has port && context.service.port == 1 };

@id("second")
forbid(principal, action, resource) when { context.service has port && context.service.port == 2 };

@id("third") @scope("connection")
permit(principal, action, resource)
when { context.service has port && context.service.port == 3 && context.rule == "asks" };
"#;

/// A switch with the workloads `a` and `b` and this `[manager]` table.
fn start<'a>(lab: &'a Lab, manager: &str) -> (Switch<'a>, [Station; 2]) {
    let ports = [
        port(lab, "a", ""),
        workload("a", 1, "10.0.0.1", "tags = [\"tier:web\"]"),
        port(lab, "b", ""),
        workload("b", 2, "10.0.0.2", ""),
    ];
    let toml = format!(
        "policy = \"policy.toml\"\n[switch]\nconnections = 10000\n[ledger]\npath = \"{}\"\n[manager]\n{manager}\n{}",
        lab.path_str("ledger.db"),
        ports.concat()
    );
    let switch = SwitchConfig::new(lab, "switch", &toml, POLICY).start();
    let stations = ["a", "b"].map(|name| Station::attach(lab, name));
    switch.wait_ports_up(2);
    (switch, stations)
}

/// A datagram from `a` to `b`.
fn datagram(sport: u16, dport: u16) -> Vec<u8> {
    let ips = ([10, 0, 0, 1], [10, 0, 0, 2]);
    udp((mac(1), mac(2)), ips, (sport, dport), b"judge me")
}

/// The ledger's records of a kind, when there are so many.
fn recorded(switch: &Switch<'_>, lab: &Lab, kind: &str, n: usize) -> Vec<Value> {
    wait_for("the records", LIMIT, || {
        let file = lab.path_str("ledger.db");
        let all = switch.cli_json(&["ledger", "show", "--file", &file, "--kind", kind]);
        let all = all.as_array().expect("a list").clone();
        (all.len() >= n).then_some(all)
    })
}

fn waiting(switch: &Switch<'_>, n: usize) -> Vec<Value> {
    wait_for("the questions", LIMIT, || {
        let list = switch.cli_json(&["ask", "list"]);
        let list = list.as_array().expect("a list").clone();
        (list.len() == n).then_some(list)
    })
}

#[test]
fn rules_answer_and_leave_the_rest_to_people() {
    let Some(lab) = Lab::open(&[]) else { return };
    lab.file("rules.cedar", RULES);
    let rules = format!("rules = \"{}\"", lab.path_str("rules.cedar"));
    let (switch, [mut a, mut b]) = start(&lab, &rules);

    a.send(&datagram(1000, 1));
    b.recv(&datagram(1000, 1));
    a.send(&datagram(1000, 2));
    wait_for("the denial", LIMIT, || {
        (switch.dropped("policy_ask_denied") == 1).then_some(())
    });
    // Each connection by itself.
    for sport in [1000, 1001] {
        a.send(&datagram(sport, 3));
        b.recv(&datagram(sport, 3));
    }
    a.send(&datagram(1000, 4));
    assert_eq!(waiting(&switch, 1)[0]["service"], "udp/4");

    let verdicts = recorded(&switch, &lab, "verdict", 4);
    let said: Vec<_> = verdicts
        .iter()
        .map(|r| {
            let of = |key: &str| r["body"][key].as_str().expect("text").to_owned();
            assert_eq!(r["who"], "manager");
            (
                of("verdict"),
                of("reason"),
                of("scope"),
                r["body"]["ttl_s"].clone(),
            )
        })
        .collect();
    let want = |verdict: &str, reason: &str, scope: &str, ttl_s: u32| {
        let texts = [verdict, reason, scope].map(str::to_owned);
        let [verdict, reason, scope] = texts;
        (verdict, reason, scope, Value::from(ttl_s))
    };
    assert_eq!(
        said,
        [
            want("allow", "permit first", "service", 60),
            want("deny", "forbid second", "service", 600),
            want("allow", "permit third", "connection", 600),
            want("allow", "permit third", "connection", 600),
        ]
    );
    let status = switch.cli_json(&["status"]);
    let counts = ["rules", "asked", "answered", "undecided", "late"];
    let counts = counts.map(|key| status["manager"][key].as_u64());
    assert_eq!(counts, [3, 5, 4, 1, 0].map(Some), "{status}");

    // New rules answer what waits.
    lab.file(
        "rules.cedar",
        "@id(\"all\") permit(principal, action, resource);",
    );
    b.recv(&datagram(1000, 4));
    let applied = recorded(&switch, &lab, "policy_applied", 2);
    let changes = applied.last().expect("one")["body"]["changes"].to_string();
    assert!(changes.contains("rules.cedar (SHA-256 "), "{changes}");

    // Wrong ones change nothing, and are said with their place.
    lab.file(
        "rules.cedar",
        "permit(principal, action, resource)\nwhen { context.our == 3 };",
    );
    let refused = wait_for("it to be refused", LIMIT, || {
        let status = switch.cli_json(&["status"]);
        status["refused"][0].as_str().map(str::to_owned)
    });
    assert!(refused.contains("rules.cedar:2:"), "{refused}");
    a.send(&datagram(1000, 5));
    b.recv(&datagram(1000, 5));
    let check = switch.cli(&["check", &lab.path_str("switch/switch.toml")]);
    let said = String::from_utf8_lossy(&check.stderr).into_owned();
    assert_eq!(check.status.code(), Some(1), "{said}");
    assert!(said.contains("rules.cedar:2:"), "{said}");
    switch.wait_conserved();
}

#[test]
fn the_schema_is_printed() {
    let Some(lab) = Lab::open(&[]) else { return };
    let (switch, _) = start(
        &lab,
        &format!("rules = \"{}\"", {
            lab.file("empty.cedar", "// Nobody.\n");
            lab.path_str("empty.cedar")
        }),
    );
    let schema = switch.cli_ok(&["manager", "schema"]);
    assert!(schema.contains("action connect appliesTo"), "{schema}");
}
