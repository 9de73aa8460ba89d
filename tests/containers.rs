//! Containers on the switch: network namespaces behind veth pairs (AF_XDP) and taps, with the kernel's default offloads, the
//! `vswitch` binary in a namespace of its own, and TCP and UDP over IPv4 and IPv6 with every byte compared.

mod common;

use common::container::{
    ATTEMPT, Container, LIMIT, Transfer, conserves, dropped, exchange, wait_dropped,
};
use common::netns::Netns;
use common::switch::{Switch, SwitchConfig};
use common::{Lab, Need, wait_for};
use std::io::ErrorKind;
use std::time::Duration;

/// Segments named like the containers `a`, `b` and `c`.
const SEGMENTS: &str = r#"
[[segment]]
name = "a"
tags = ["is:a"]
[[segment]]
name = "b"
tags = ["is:b"]
[[segment]]
name = "c"
tags = ["is:c"]
"#;

/// A `[[rule]]` table.
fn rule(name: &str, from: &str, to: &str, service: &str, action: &str) -> String {
    format!(
        "[[rule]]\nname = \"{name}\"\nfrom = \"{from}\"\nto = \"{to}\"\nservice = [{service}]\naction = \"{action}\"\n"
    )
}

fn policy(rules: &[String]) -> String {
    format!("{SEGMENTS}{}", rules.concat())
}

/// Everything between `a` and `b` on the port of their echo services.
fn a_and_b() -> String {
    rule("a-b", "a", "b", r#""tcp/5000", "udp/5000""#, "allow")
        + &rule("b-a", "b", "a", r#""tcp/5000", "udp/5000""#, "allow")
}

fn switch_toml(ports: &[String]) -> String {
    format!("policy = \"policy.toml\"\n{}", ports.concat())
}

/// The namespace that the switch runs in, and `a` and `b` on veth pairs.
fn pair(lab: &Lab) -> (Netns, Container, Container) {
    let host = Netns::new(lab, "host");
    let a = Container::veth(lab, &host, "a", 1);
    let b = Container::veth(lab, &host, "b", 2);
    (host, a, b)
}

fn generation(switch: &Switch<'_>) -> u64 {
    let status = switch.cli_json(&["status"]);
    status["generation"].as_u64().expect("a generation")
}

/// Whether the files, as they are now, are refused.
fn refused(switch: &Switch<'_>) -> bool {
    let status = switch.cli_json(&["status"]);
    !status["refused"].as_array().expect("a list").is_empty()
}

#[test]
fn containers_reach_what_the_policy_allows_and_nothing_else() {
    let Some(lab) = Lab::open(&[Need::Netns]) else {
        return;
    };
    let (host, a, b) = pair(&lab);
    let c = Container::veth(&lab, &host, "c", 3);
    let rules = [
        a_and_b(),
        rule("denied", "a", "c", r#""tcp/6000", "udp/6000""#, "deny"),
        rule("rejected", "a", "c", r#""tcp/7000", "udp/7000""#, "reject"),
    ];
    let ports = [a.veth_port(""), b.veth_port(""), c.veth_port("")];
    let switch = SwitchConfig::new(&lab, "switch", &switch_toml(&ports), &policy(&rules))
        .in_netns(&host)
        .start();
    switch.wait_ports_up(3);

    let (at_a, at_b) = (a.echo(5000), b.echo(5000));
    for (from, to) in [(&a, b.v4()), (&a, b.v6()), (&b, a.v4()), (&b, a.v6())] {
        from.talk((to, 5000), 3 << 20);
    }
    assert_eq!((at_a.reached(), at_b.reached()), ((2, 2), (2, 2)));

    // Listeners are there: only the switch stands between.
    let at_c = [c.echo(5000), c.echo(6000), c.echo(7000)];
    for (port, reason) in [(5000, "policy_default_deny"), (6000, "policy_deny")] {
        for to in [c.v4(), c.v6()] {
            let before = dropped(&switch, "a", reason);
            let e = a.connect((to, port), ATTEMPT).expect_err("it is denied");
            assert_eq!(e.kind(), ErrorKind::TimedOut, "{to} {port}: {e}");
            wait_dropped(&switch, "a", reason, before);
            let before = dropped(&switch, "a", reason);
            let e = a.ask((to, port), 100, ATTEMPT).expect_err("it is denied");
            assert_eq!(e.kind(), ErrorKind::WouldBlock, "{to} {port}: {e}");
            wait_dropped(&switch, "a", reason, before);
        }
    }
    // Rejected is told at once: these would take until their limit otherwise, and end with another kind.
    for to in [c.v4(), c.v6()] {
        let before = dropped(&switch, "a", "policy_reject");
        let e = a.connect((to, 7000), LIMIT).expect_err("it is rejected");
        assert_eq!(e.kind(), ErrorKind::ConnectionRefused, "{to}: {e}");
        let e = a.ask((to, 7000), 100, LIMIT).expect_err("it is rejected");
        // "Administratively prohibited", as Linux reports it to a socket: EHOSTUNREACH for IPv4, EACCES for IPv6.
        let told = [ErrorKind::HostUnreachable, ErrorKind::PermissionDenied];
        assert!(told.contains(&e.kind()), "{to}: {e}");
        wait_dropped(&switch, "a", "policy_reject", before + 1);
    }
    for echo in &at_c {
        assert_eq!(echo.reached(), (0, 0), "something came through to c");
    }

    for (to, service, code) in [
        ("b", "tcp/5000", 0),
        ("c", "tcp/6000", 1),
        ("c", "udp/7000", 1),
    ] {
        let args = ["explain", "--from", "a", "--to", to, "--service", service];
        assert_eq!(switch.cli(&args).status.code(), Some(code), "{args:?}");
    }
    conserves(&switch);
}

#[test]
fn a_running_transfer_survives_every_policy_that_allows_it_and_no_other() {
    let Some(lab) = Lab::open(&[Need::Netns]) else {
        return;
    };
    let (host, a, b) = pair(&lab);
    let ports = [a.veth_port(""), b.veth_port("")];
    let first = policy(&[a_and_b()]);
    let switch = SwitchConfig::new(&lab, "switch", &switch_toml(&ports), &first)
        .in_netns(&host)
        .start();
    switch.wait_ports_up(2);
    let file = switch.dir().join("policy.toml");
    let _echo = b.echo(5000);
    let transfer = Transfer::start(&a, (b.v4(), 5000));
    transfer.moves_on();

    // By command: other rules around it, its own under another name and in another place.
    let other = rule("other", "a", "b", r#""tcp/1000-2000""#, "deny");
    switch.apply(&policy(&[
        other.clone(),
        rule("renamed", "a", "b", r#""tcp/5000""#, "allow"),
    ]));
    transfer.moves_on();

    // By file: broken in two places, it is refused whole.
    let before = generation(&switch);
    let broken = rule("a-b", "a", "nobody", r#""tcp/99999""#, "allow");
    std::fs::write(&file, policy(&[broken])).expect("the lab is writable");
    wait_for("the broken file to be refused", LIMIT, || {
        refused(&switch).then_some(())
    });
    let status = switch.cli_json(&["status"]);
    let errors = status["refused"].to_string();
    assert!(
        errors.contains("nobody") && errors.contains("99999"),
        "{errors}"
    );
    assert_eq!(generation(&switch), before);
    transfer.moves_on();

    // Replaced by a good one, as editors do.
    let next = switch.dir().join("policy.toml.new");
    std::fs::write(&next, policy(&[a_and_b(), other])).expect("the lab is writable");
    std::fs::rename(&next, &file).expect("the lab is writable");
    wait_for("the good file to be taken", LIMIT, || {
        (!refused(&switch) && generation(&switch) > before).then_some(())
    });
    transfer.moves_on();
    let has = |name: &str| {
        let view = switch.cli_json(&["policy", "show"]);
        let rules = view["rules"].as_array().expect("a list").clone();
        rules.iter().any(|r| r["name"] == name)
    };
    assert!(has("other") && !has("renamed"));

    // Without its rule it is cut: the first frame of either end is denied by policy, what it sends
    // again and again opens no connection, and nothing arrives.
    std::fs::write(&file, policy(&[])).expect("the lab is writable");
    let cut = |n: u64| {
        let denied = || dropped(&switch, "a", "tcp_not_syn");
        wait_for("the transfer to be cut", LIMIT, || {
            (denied() >= n).then(denied)
        })
    };
    cut(1);
    // What was on its way when the first was dropped has arrived when the next was.
    let denied = cut(2);
    let stopped_at = transfer.received();
    cut(denied + 1);
    assert_eq!(transfer.received(), stopped_at, "it goes on");
    assert_eq!(switch.dropped("policy_default_deny"), 1);
    let e = a.connect((b.v4(), 5000), ATTEMPT).expect_err("denied");
    assert_eq!(e.kind(), ErrorKind::TimedOut, "{e}");

    // And with it, new connections pass again.
    std::fs::write(&file, &first).expect("the lab is writable");
    wait_for("the rule to be back", LIMIT, || {
        a.connect((b.v4(), 5000), ATTEMPT).ok()
    });
    drop(transfer);
    conserves(&switch);
}

#[test]
fn a_policy_on_probation_is_reverted_and_connections_are_judged_again() {
    let Some(lab) = Lab::open(&[Need::Netns]) else {
        return;
    };
    let (host, a, b) = pair(&lab);
    let ports = [a.veth_port(""), b.veth_port("")];
    let closed = rule("b-a", "b", "a", r#""tcp/5000""#, "allow");
    let switch = SwitchConfig::new(&lab, "switch", &switch_toml(&ports), &policy(&[closed]))
        .in_netns(&host)
        .start();
    switch.wait_ports_up(2);
    let trial = lab.file("trial.toml", policy(&[a_and_b()]));
    let trial = trial.to_str().expect("the lab's directory is UTF-8");
    let (_at_a, _at_b) = (a.echo(5000), b.echo(5000));
    let stays = Transfer::start(&b, (a.v6(), 5000));
    a.connect((b.v6(), 5000), ATTEMPT).expect_err("denied");

    switch.cli_ok(&["policy", "apply", trial, "--confirm", "3s"]);
    let waits = |switch: &Switch<'_>| !switch.cli_json(&["status"])["confirm_s"].is_null();
    assert!(waits(&switch));
    let goes = Transfer::start(&a, (b.v6(), 5000));
    goes.moves_on();
    wait_for("the policy to be reverted", LIMIT, || {
        (!waits(&switch)).then_some(())
    });
    // The connection that the trial let in is judged by what came back; the other was allowed all along.
    wait_dropped(&switch, "a", "tcp_not_syn", 1);
    a.connect((b.v6(), 5000), ATTEMPT).expect_err("denied");
    stays.moves_on();
    drop(goes);

    switch.cli_ok(&["policy", "apply", trial, "--confirm", "1h"]);
    switch.cli_ok(&["policy", "confirm"]);
    assert!(!waits(&switch));
    a.talk((b.v6(), 5000), 1 << 20);
    stays.moves_on();
    drop(stays);
    assert!(!switch.cli(&["policy", "confirm"]).status.success());
    conserves(&switch);
}

#[test]
fn several_queues_and_jumbo_frames() {
    let Some(lab) = Lab::open(&[Need::Netns]) else {
        return;
    };
    let host = Netns::new(&lab, "host");
    let a = Container::veth_wide(&lab, &host, "a", 1, 2, 9000);
    let b = Container::veth_wide(&lab, &host, "b", 2, 2, 9000);
    let ports = [a.veth_port("mtu = 9000"), b.veth_port("mtu = 9000")];
    let switch = SwitchConfig::new(&lab, "switch", &switch_toml(&ports), &policy(&[a_and_b()]))
        .in_netns(&host)
        .start();
    switch.wait_ports_up(2);
    let _echo = b.echo(5000);
    for to in [b.v4(), b.v6()] {
        // 8952 bytes of IPv6 payload fill the MTU; for IPv4 20 bytes are left.
        a.ask((to, 5000), 8952, LIMIT)
            .expect("a jumbo frame passes");
    }
    // Flows spread over the queues by their hash.
    std::thread::scope(|s| {
        for i in 0..8 {
            let (a, to) = (&a, if i % 2 == 0 { b.v4() } else { b.v6() });
            s.spawn(move || {
                let stream = a.connect((to, 5000), LIMIT).expect("it is allowed");
                exchange(&stream, 2 << 20).unwrap_or_else(|e| panic!("connection {i}: {e}"));
            });
        }
    });
    let stats = switch.cli_json(&["stats"]);
    let rx = |key: &str| {
        let count = stats["ports"]["a"]["counters"][key].as_u64();
        count.unwrap_or_else(|| panic!("no {key} in {stats}"))
    };
    // Large frames arrive whole: otherwise the mean would be far below 1500 bytes, since half of all are bare ACKs.
    let mean = rx("rx_bytes") / rx("rx_pkts");
    assert!(mean > 2000, "{mean} bytes are the mean frame");
    conserves(&switch);
}

#[test]
fn a_tap_container_and_a_veth_container_exchange_bulk() {
    let Some(lab) = Lab::open(&[Need::Netns, Need::Program("iperf3")]) else {
        return;
    };
    let host = Netns::new(&lab, "host");
    let a = Container::bare(&lab, "a", 1);
    let b = Container::veth(&lab, &host, "b", 2);
    let iperf3 = rule("iperf3", "a", "b", r#""tcp/5201""#, "allow");
    let ports = [a.tap_port(""), b.veth_port("")];
    let switch = SwitchConfig::new(
        &lab,
        "switch",
        &switch_toml(&ports),
        &policy(&[a_and_b(), iperf3]),
    )
    .in_netns(&host)
    .start();
    // The device came with the switch, and with the workload's MAC.
    a.configure();
    switch.wait_ports_up(2);
    let (_at_a, _at_b) = (a.echo(5000), b.echo(5000));
    for (from, to) in [(&a, b.v4()), (&a, b.v6()), (&b, a.v4()), (&b, a.v6())] {
        from.talk((to, 5000), 8 << 20);
    }
    let segments = |switch: &Switch<'_>| {
        let stats = switch.cli_json(&["stats"]);
        stats["conservation"]["extra_segments"].as_u64()
    };
    assert!(segments(&switch) > Some(0), "no frame was segmented");

    let _server = b.ns.iperf3_server(&lab, 5201);
    for way in ["", "-R"] {
        let report = a.ns.run_ok(
            &format!("iperf3 -c {} {way} -n 64M -J", b.v4()),
            Duration::from_secs(60),
        );
        let report: serde_json::Value = serde_json::from_str(&report).expect("iperf3 -J is JSON");
        // The receiver reports before the last bytes are in.
        let bytes = report["end"]["sum_received"]["bytes"].as_u64();
        assert!(bytes > Some(48 << 20), "{report}");
    }
    conserves(&switch);
}
