//! Decoys, through the daemon and its command line: kernels and nmap that try what is not there, and what is recorded of them.

mod common;

use common::Need;
use common::container::{Container, LIMIT, conserves};
use common::netns::Netns;
use common::station::{Station, mac, port, workload};
use common::switch::{Switch, SwitchConfig};
use common::{Lab, wait_for};
use serde_json::Value;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

/// Bound on a scan.
const SCAN: std::time::Duration = std::time::Duration::from_secs(60);
/// What must be found nowhere afterwards.
const SECRET: &[u8] = b"correct horse battery staple";

/// `b` serves tcp/5000. Whoever tries anything else there meets a decoy.
const POLICY: &str = r#"
[[segment]]
name = "b"
names = ["b"]
[[rule]]
name = "serves"
from = "any"
to = "b"
service = "tcp/5000"
action = "allow"
[[rule]]
name = "lure"
from = "any"
to = "b"
action = "decoy"
"#;

/// Who was suspected of meeting decoys.
fn lured(switch: &Switch<'_>) -> Vec<String> {
    let list = switch.cli_json(&["suspicion", "list"]);
    let list = list.as_array().expect("a list").iter();
    let mut names: Vec<_> = list
        .filter(|s| s["detector"] == "decoy")
        .map(|s| s["workload"].as_str().expect("a name").to_owned())
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn wait_lured(switch: &Switch<'_>, who: &[&str]) {
    wait_for(&format!("{who:?} to be suspected"), LIMIT, || {
        (lured(switch) == who).then_some(())
    });
}

/// Says something on a connection, and waits for its end.
fn meet(mut stream: &TcpStream) {
    stream.set_read_timeout(Some(LIMIT)).expect("a socket can");
    stream.write_all(SECRET).expect("it is connected");
    let end = stream.read(&mut [0]).expect_err("nobody answers");
    assert_eq!(end.kind(), ErrorKind::ConnectionReset, "{end}");
}

#[test]
fn a_kernel_that_connects_to_a_decoy_is_found_and_its_receiver_sees_nothing() {
    let Some(lab) = Lab::open(&[Need::Netns]) else {
        return;
    };
    let host = Netns::new(&lab, "host");
    let a = Container::veth(&lab, &host, "a", 1);
    let b = Container::veth(&lab, &host, "b", 2);
    let c = Container::bare(&lab, "c", 3);
    let ledger = lab.path_str("ledger.db");
    let toml = format!(
        "policy = \"policy.toml\"\n[switch]\nconnections = 10000\n[ledger]\npath = \"{ledger}\"\n{}{}{}",
        a.veth_port(""),
        b.veth_port(""),
        c.tap_port("")
    );
    let mut switch = SwitchConfig::new(&lab, "switch", &toml, POLICY)
        .in_netns(&host)
        .start();
    switch.wait_ports_up(3);
    c.configure();
    // They are there, and would answer.
    let (real, unused) = (b.echo(5000), b.echo(22));
    let _open = a.connect((b.v4(), 5000), LIMIT).expect("it is allowed");
    wait_for("it to be accepted", LIMIT, || {
        (real.reached().0 == 1).then_some(())
    });
    assert_eq!(lured(&switch), [""; 0]);

    let before = switch.counter("b", "tx_pkts");
    for (from, to) in [(&a, b.v4()), (&a, b.v6()), (&c, b.v4()), (&c, b.v6())] {
        let stream = from.connect((to, 22), LIMIT).expect("a decoy answers");
        meet(&stream);
    }
    wait_lured(&switch, &["a", "c"]);
    // A datagram is evidence, too, and gets no answer.
    a.ask((b.v4(), 161), 100, common::container::ATTEMPT)
        .expect_err("nobody answers");
    assert_eq!(unused.reached(), (0, 0));
    assert_eq!(switch.counter("b", "tx_pkts"), before);
    // What is allowed is open, and nothing else.
    assert_eq!(switch.cli_json(&["conn", "list"])["total"], 1);

    let explain = ["explain", "--from", "a", "--to", "b", "--service", "tcp/22"];
    let said = switch.cli(&explain);
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    assert_eq!(said.status.code(), Some(1), "{text}");
    assert!(text.starts_with("decoy: rule lure"), "{text}");
    assert!(text.contains("answers TCP in its stead"), "{text}");
    // Nobody can be reached by a decoy.
    let reach = switch.cli_ok(&["reach", "a"]);
    assert!(reach.contains("serves"), "{reach}");
    assert!(!reach.contains("lure"), "{reach}");

    conserves(&switch);
    switch.process().signal("TERM");
    switch.process().wait(LIMIT);
    let show = ["ledger", "show", "--file", &ledger, "--kind", "decoy"];
    let records = switch.cli_json(&show);
    let records = records.as_array().expect("a list");
    let bytes = |who: &str, service: &str| -> Vec<u64> {
        let of = records.iter().filter(|r| {
            let body = &r["body"];
            (&r["workload"], &body["from"]) == (&who.into(), &who.into())
                && (&body["to"], &body["service"]) == (&"b".into(), &service.into())
                && body["rule"] == "lure"
        });
        let mut bytes: Vec<_> = of.filter_map(|r| r["body"]["bytes"].as_u64()).collect();
        bytes.sort_unstable();
        bytes
    };
    // Of each connection that it was made, and how much was offered first.
    let all = SECRET.len() as u64;
    for who in ["a", "c"] {
        assert_eq!(bytes(who, "tcp/22"), [0, 0, all, all], "{records:?}");
    }
    assert_eq!(bytes("a", "udp/161"), [100]);
    let text = fs::read(&ledger).expect("the ledger is there");
    let told = text.windows(SECRET.len()).any(|w| w == SECRET);
    assert!(!told, "payload was recorded");
    switch.cli_ok(&["ledger", "verify", "--file", &ledger]);
}

#[test]
fn nmap_takes_a_decoy_for_an_open_port() {
    let needs = [Need::Netns, Need::Program("nmap")];
    let Some(lab) = Lab::open(&needs) else { return };
    let host = Netns::new(&lab, "host");
    let [a, b] = [("a", 1), ("b", 2)].map(|(name, n)| Container::veth(&lab, &host, name, n));
    let toml = format!(
        "policy = \"policy.toml\"\n{}{}",
        a.veth_port(""),
        b.veth_port("")
    );
    let switch = SwitchConfig::new(&lab, "switch", &toml, POLICY)
        .in_netns(&host)
        .start();
    switch.wait_ports_up(2);
    let before = switch.counter("b", "tx_pkts");
    let nmap = |how: &str| {
        let shell = format!("nmap -n -Pn {how} -p 22,3389 10.0.0.2");
        let said = a.ns.run_ok(&shell, SCAN);
        for port in ["22/tcp   open", "3389/tcp open"] {
            assert!(said.contains(port), "{said}");
        }
    };
    // Half-open, it has no connection: only with the other way it has.
    nmap("-sS");
    assert_eq!(lured(&switch), [""; 0]);
    nmap("-sT");
    wait_lured(&switch, &["a"]);
    assert_eq!(switch.counter("b", "tx_pkts"), before);
    conserves(&switch);
}

/// Whoever meets a decoy is shut in.
const SHUTTING_IN: &str = r#"
[[response]]
name = "shut-in"
on = "decoy"
action = "quarantine"
share_percent = 100
"#;

/// A segment from workload `from` to `b`, as if sent by `as_whom`.
fn segment(from: u8, as_whom: u8, sport: u16, seq: u32, ack: Option<u32>) -> Vec<u8> {
    let mut frame = Vec::new();
    let tcp = etherparse::PacketBuilder::ethernet2(mac(from), mac(2))
        .ipv4([10, 0, 0, as_whom], [10, 0, 0, 2], 64)
        .tcp(sport, 22, seq, 1000);
    let tcp = match ack {
        Some(ack) => tcp.ack(ack),
        None => tcp.syn(),
    };
    tcp.write(&mut frame, &[]).expect("a vector takes it");
    frame
}

#[test]
fn who_meets_a_decoy_is_contained_and_nobody_else_for_him() {
    let Some(lab) = Lab::open(&[]) else { return };
    let ports = [
        port(&lab, "a", ""),
        workload("a", 1, "10.0.0.1", ""),
        port(&lab, "b", ""),
        workload("b", 2, "10.0.0.2", ""),
        port(&lab, "c", ""),
        workload("c", 3, "10.0.0.3", ""),
    ];
    let toml = format!("policy = \"policy.toml\"\n{}", ports.concat());
    let policy = [POLICY, SHUTTING_IN].concat();
    let switch = SwitchConfig::new(&lab, "switch", &toml, &policy).start();
    let [mut a, _b, mut c] = ["a", "b", "c"].map(|name| Station::attach(&lab, name));
    switch.wait_ports_up(3);

    // As `a`, from elsewhere: nobody is answered. By itself, and with a guess for the answer: it has met nobody.
    c.send(&segment(3, 1, 1000, 7, None));
    c.send(&segment(3, 3, 1000, 7, None));
    let answer = c.recv_any();
    let number = |frame: &[u8]| u32::from_be_bytes(frame[38..42].try_into().expect("four bytes"));
    assert_eq!(answer[47], 0x12, "SYN and ACK");
    c.send(&segment(3, 3, 1000, 8, Some(number(&answer))));
    wait_for("it to be dropped", LIMIT, || {
        (switch.dropped("tcp_not_syn") == 1).then_some(())
    });
    assert_eq!(switch.dropped("spoofed_ip"), 1);

    a.send(&segment(1, 1, 1000, 7, None));
    let answer = a.recv_any();
    a.send(&segment(
        1,
        1,
        1000,
        8,
        Some(number(&answer).wrapping_add(1)),
    ));
    wait_lured(&switch, &["a"]);
    let quarantined = wait_for("it to be shut in", LIMIT, || {
        let status = switch.cli_json(&["status"]);
        let quarantined = status["quarantined"].clone();
        (quarantined != Value::Array(Vec::new())).then_some(quarantined)
    });
    assert_eq!(quarantined, serde_json::json!(["a"]));
    switch.wait_conserved();
}
