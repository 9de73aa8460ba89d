//! Who was restarted from a trusted image opens again what it had open, without a new question; whoever believes that the old
//! connections go on is told that they do not. The guests are our own.

mod common;

use common::docker::{docker, good, keys};
use common::station::{Station, mac, port, workload};
use common::switch::{Switch, SwitchConfig};
use common::{Lab, wait_for};
use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
use serde_json::Value;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(20);

const RULES: &str = r#"
[[rule]]
name = "volume"
from = "any"
to = "any"
service = ["tcp/5432", "tcp/873"]
action = "ask"
otherwise = "deny"
deadline_ms = 60000
scope = "connection"
"#;

/// A switch with `web-1`, which is restarted like this, and `db-1`.
fn start<'a>(lab: &'a Lab, restart: &str) -> (Switch<'a>, [Station; 2]) {
    start_with(lab, restart, RULES)
}

/// The same with this policy.
fn start_with<'a>(lab: &'a Lab, restart: &str, policy: &str) -> (Switch<'a>, [Station; 2]) {
    let ports = [
        port(lab, "web-1", ""),
        workload("web-1", 1, "10.0.0.1", "stateless = true"),
        format!("[port.workload.restart]\n{restart}"),
        port(lab, "db-1", ""),
        workload("db-1", 2, "10.0.0.2", ""),
    ];
    let toml = format!(
        "policy = \"policy.toml\"\n[switch]\nconnections = 10000\n[ledger]\npath = \"{}\"\n",
        lab.path_str("ledger.db")
    );
    let switch = SwitchConfig::new(lab, "switch", &(toml + &ports.concat()), policy).start();
    let stations = ["web-1", "db-1"].map(|name| Station::attach(lab, name));
    switch.wait_ports_up(2);
    (switch, stations)
}

/// A segment of `web-1`, or to it: its port, the service, sequence and acknowledgement numbers, flags ("S", "SA", "A").
fn segment(
    to_web: bool,
    (sport, dport): (u16, u16),
    (seq, ack): (u32, u32),
    flags: &str,
) -> Vec<u8> {
    carrying(to_web, (sport, dport), (seq, ack), flags, b"")
}

/// The same with payload.
fn carrying(
    to_web: bool,
    (sport, dport): (u16, u16),
    (seq, ack): (u32, u32),
    flags: &str,
    payload: &[u8],
) -> Vec<u8> {
    let (web, db) = (
        (mac(1), [10, 0, 0, 1], sport),
        (mac(2), [10, 0, 0, 2], dport),
    );
    let (from, to) = if to_web { (db, web) } else { (web, db) };
    let packet = PacketBuilder::ethernet2(from.0, to.0).ipv4(from.1, to.1, 64);
    let mut packet = packet.tcp(from.2, to.2, seq, 1000);
    if flags.contains('S') {
        packet = packet.syn();
    }
    if flags.contains('A') {
        packet = packet.ack(ack);
    }
    let mut frame = Vec::new();
    packet
        .write(&mut frame, payload)
        .expect("a vector takes every frame");
    frame
}

fn questions(switch: &Switch<'_>, n: usize) -> Vec<Value> {
    wait_for(&format!("{n} questions"), LIMIT, || {
        let list = switch.cli_json(&["ask", "list"]);
        let list = list.as_array().expect("a list").clone();
        (list.len() == n).then_some(list)
    })
}

/// Opens a connection about which somebody is asked.
fn open(switch: &Switch<'_>, [web, db]: &mut [Station; 2], ports: (u16, u16)) {
    web.send(&segment(false, ports, (100, 0), "S"));
    let ask = questions(switch, 1).remove(0);
    switch.cli_ok(&["ask", "allow", ask["id"].as_str().expect("a text")]);
    db.recv(&segment(false, ports, (100, 0), "S"));
    shake(web, db, ports);
}

/// The rest of the handshake.
fn shake(web: &mut Station, db: &mut Station, ports: (u16, u16)) {
    db.send(&segment(true, ports, (500, 101), "SA"));
    web.recv(&segment(true, ports, (500, 101), "SA"));
    web.send(&segment(false, ports, (101, 501), "A"));
    db.recv(&segment(false, ports, (101, 501), "A"));
}

fn restart(switch: &Switch<'_>, args: &[&str]) -> Value {
    let args = [&["workload", "restart", "web-1", "--wait"], args].concat();
    let output = switch.cli(&[&args[..], &["--json"]].concat());
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"))
}

#[test]
fn who_was_restarted_from_a_trusted_image_is_readmitted_as_often_as_it_was_connected() {
    let Some(lab) = Lab::open(&[]) else { return };
    let (socket, _) = docker(&lab, "docker.sock", good);
    let (switch, mut both) = start(&lab, &keys(&socket));
    for ports in [(1000, 5432), (1001, 5432), (1002, 873)] {
        open(&switch, &mut both, ports);
    }
    let told = restart(&switch, &["--evidence", "tcp/873"]);
    assert_eq!(
        (&told["trusted"], &told["readmitted"]),
        (&true.into(), &2.into()),
        "{told}"
    );
    let conns = switch.cli_json(&["conn", "list", "--workload", "web-1"]);
    let granted = conns["readmissions"].as_array().expect("a list");
    assert_eq!(granted.len(), 1, "{conns}");
    assert_eq!(
        (
            &granted[0]["to"],
            &granted[0]["service"],
            &granted[0]["left"]
        ),
        (&"db-1".into(), &"tcp/5432".into(), &2.into())
    );
    let explained = switch.cli(&[
        "explain",
        "--from",
        "web-1",
        "--to",
        "db-1",
        "--service",
        "tcp/5432",
    ]);
    let explained = String::from_utf8_lossy(&explained.stdout).into_owned();
    assert!(
        explained.contains("it is not asked about 2 more times"),
        "{explained}"
    );

    // The other end believes that the old connection goes on.
    let [web, db] = &mut both;
    db.send(&segment(true, (1000, 5432), (501, 101), "A"));
    let reset = db.recv_any();
    let packet = SlicedPacket::from_ethernet(&reset).expect("a frame");
    match packet.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            assert!(tcp.rst() && !tcp.ack(), "{tcp:?}");
            // Exactly what it expects next (RFC 5961 section 3).
            assert_eq!((tcp.source_port(), tcp.sequence_number()), (1000, 101));
        }
        other => panic!("{other:?}"),
    }

    for sport in [2000, 2001] {
        web.send(&segment(false, (sport, 5432), (100, 0), "S"));
        db.recv(&segment(false, (sport, 5432), (100, 0), "S"));
        shake(web, db, (sport, 5432));
    }
    questions(&switch, 0);
    // Handshakes are no data. What is acknowledged of it is, from when on is told.
    let data_ms = || switch.cli_json(&["workload", "restarts"])[0]["data_ms"].as_u64();
    assert_eq!(data_ms(), None);
    let hello = carrying(false, (2001, 5432), (101, 501), "A", b"hello");
    web.send(&hello);
    db.recv(&hello);
    let acknowledged = segment(true, (2001, 5432), (501, 106), "A");
    db.send(&acknowledged);
    web.recv(&acknowledged);
    let data_ms = wait_for("data to flow", LIMIT, data_ms);
    let took_ms = told["took_ms"].as_u64().expect("a number");
    assert!(data_ms >= took_ms, "{data_ms} < {took_ms}");
    // It was connected twice, and for the other service that was why it was restarted.
    web.send(&segment(false, (2002, 5432), (100, 0), "S"));
    web.send(&segment(false, (2003, 873), (100, 0), "S"));
    let asked = questions(&switch, 2);
    assert!(asked.iter().all(|ask| ask["from"] == "web-1"), "{asked:?}");
    wait_for("the records", LIMIT, || {
        let shown = switch.cli_json(&[
            "ledger",
            "show",
            "--file",
            &lab.path_str("ledger.db"),
            "--kind",
            "verdict",
        ]);
        let reason = |r: &&Value| {
            r["body"]["reason"]
                .as_str()
                .is_some_and(|why| why.starts_with("readmitted after restart"))
        };
        (shown.as_array()?.iter().filter(reason).count() == 2).then_some(())
    });
    switch.wait_conserved();
}

#[test]
fn nobody_is_readmitted_who_is_not_trusted_or_not_what_he_was() {
    let Some(lab) = Lab::open(&[]) else { return };
    let command = "driver = \"command\"\nargv = [\"/bin/true\"]\n";
    let (switch, mut both) = start(&lab, command);
    open(&switch, &mut both, (1000, 5432));
    let told = restart(&switch, &[]);
    assert_eq!(
        (&told["state"], &told["readmitted"]),
        (&"done".into(), &0.into()),
        "{told}"
    );
    both[0].send(&segment(false, (2000, 5432), (100, 0), "S"));
    questions(&switch, 1);

    // Trusted, but the rule is another one by then; and rules that deny, deny.
    for (change, asks) in [("otherwise = \"allow\"", true), ("", false)] {
        let lab = Lab::open(&[]).expect("it needs nothing");
        let (socket, _) = docker(&lab, "docker.sock", good);
        let (switch, mut both) = start(&lab, &keys(&socket));
        open(&switch, &mut both, (1000, 5432));
        assert_eq!(restart(&switch, &[])["readmitted"], 1);
        let policy = if asks {
            RULES.replace("otherwise = \"deny\"", change)
        } else {
            RULES
                .replace("action = \"ask\"", "action = \"deny\"")
                .replace(
                    "otherwise = \"deny\"\ndeadline_ms = 60000\nscope = \"connection\"",
                    "",
                )
        };
        switch.apply(&policy);
        both[0].send(&segment(false, (2000, 5432), (100, 0), "S"));
        if asks {
            questions(&switch, 1);
        } else {
            wait_for("it to be denied", LIMIT, || {
                (switch.dropped("policy_deny") > 0).then_some(())
            });
        }
    }
}

/// Whoever scans is restarted.
const RESTARTING: &str = r#"
[[suspicion]]
name = "quick"
port-scan = { count = 10, within_s = 60 }
[[response]]
name = "anew"
on = "port-scan"
action = "restart"
"#;

/// What is granted.
fn granted(switch: &Switch<'_>) -> Vec<Value> {
    let conns = switch.cli_json(&["conn", "list"]);
    let granted = conns["readmissions"].as_array();
    granted.cloned().unwrap_or_default()
}

#[test]
fn a_suspect_earns_no_more_than_it_had_and_nothing_of_what_it_tried() {
    let Some(lab) = Lab::open(&[]) else { return };
    let (socket, _) = docker(&lab, "docker.sock", good);
    let policy = [RULES, RESTARTING].concat();
    let (switch, mut both) = start_with(&lab, &keys(&socket), &policy);
    for ports in [(1000, 5432), (1001, 873)] {
        open(&switch, &mut both, ports);
    }
    // It tries to get more of one service, in vain, and what it tries last is another one.
    let [web, db] = &mut both;
    web.send(&segment(false, (1002, 873), (100, 0), "S"));
    let ask = questions(&switch, 1).remove(0);
    switch.cli_ok(&["ask", "deny", ask["id"].as_str().expect("a text")]);
    questions(&switch, 0);
    let scan = |web: &mut Station| {
        for dport in 100..120 {
            web.send(&segment(false, (3000, dport), (100, 0), "S"));
        }
    };
    scan(web);
    let info = wait_for("the restart", LIMIT, || {
        let info = switch.cli_json(&["workload", "restarts"])[0].clone();
        (info["state"] == "done").then_some(info)
    });
    assert_eq!(
        (&info["by"], &info["trusted"], &info["readmitted"]),
        (&"response anew".into(), &true.into(), &1.into()),
        "{info}"
    );
    let grants = granted(&switch);
    assert_eq!(grants.len(), 1, "{grants:?}");
    assert_eq!(
        (&grants[0]["service"], &grants[0]["left"]),
        (&"tcp/5432".into(), &1.into())
    );

    // To do it again is no way to another one: it ends quarantined, and what was granted is void.
    scan(web);
    wait_for("it to be quarantined", LIMIT, || {
        let who = &switch.cli_json(&["status"])["quarantined"];
        (who[0] == "web-1").then_some(())
    });
    let none: [Value; 0] = [];
    assert_eq!(granted(&switch), none);
    switch.cli_ok(&["workload", "release", "web-1"]);
    web.send(&segment(false, (2000, 5432), (100, 0), "S"));
    let ask = questions(&switch, 1).remove(0);
    switch.cli_ok(&["ask", "allow", ask["id"].as_str().expect("a text")]);
    db.recv_until(&segment(false, (2000, 5432), (100, 0), "S"));
    let restarts = switch.cli_json(&["workload", "restarts"]);
    assert_eq!(restarts.as_array().map(Vec::len), Some(1), "{restarts}");
    switch.wait_conserved();
}

#[test]
fn whose_connections_are_the_evidence_is_readmitted_to_none() {
    // It may open these, and nobody answers.
    const OPEN: &str = "[[rule]]\nname = \"open\"\nfrom = \"any\"\nto = \"any\"\nservice = \"tcp/80\"\naction = \"allow\"\n";
    for (detector, count) in [("fan-out", 1), ("syn-flood", 3)] {
        let Some(lab) = Lab::open(&[]) else { return };
        let (socket, _) = docker(&lab, "docker.sock", good);
        let rules = [OPEN, RULES].concat();
        let (switch, mut both) = start_with(&lab, &keys(&socket), &rules);
        open(&switch, &mut both, (1000, 5432));
        let restarting = RESTARTING.replace(
            "port-scan = { count = 10",
            &format!("{detector} = {{ count = {count}"),
        );
        switch.apply(&[rules, restarting.replace("port-scan", detector)].concat());
        let [web, _db] = &mut both;
        for sport in 3000..3000 + count {
            web.send(&segment(false, (sport, 80), (100, 0), "S"));
        }
        let info = wait_for("the restart", LIMIT, || {
            let info = switch.cli_json(&["workload", "restarts"])[0].clone();
            (info["state"] == "done").then_some(info)
        });
        assert_eq!(
            (&info["by"], &info["trusted"], &info["readmitted"]),
            (&"response anew".into(), &true.into(), &0.into()),
            "{detector}: {info}"
        );
        let reason = info["reason"].as_str().expect("a text");
        assert!(reason.starts_with(detector), "{reason}");
        web.send(&segment(false, (2000, 5432), (100, 0), "S"));
        questions(&switch, 1);
    }
}
