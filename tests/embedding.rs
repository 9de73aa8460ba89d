//! The switch as a value in a program.

use std::time::{Duration, Instant};

use vswitch::control::api::ExplainQuery;
use vswitch::control::state::{PortConfig, PortKind, WorkloadConfig};
use vswitch::control::{ApplyError, Switch, SwitchError};
use vswitch::packet::Mac;
use vswitch::policy::model::{Action, Policy, Rule, Segment};
use vswitch::port::mem::MemEnd;

/// Bound on whatever takes microseconds when it works.
const LIMIT: Duration = Duration::from_secs(30);

fn mac(n: u8) -> [u8; 6] {
    [0x52, 0x54, 0, 0, 0, n]
}

fn port(name: &str, n: u8) -> PortConfig {
    let mut port = PortConfig::new(name, PortKind::Mem);
    port.workloads.push(WorkloadConfig {
        name: name.to_owned(),
        mac: vec![Mac(mac(n))],
        ip: vec![[10, 0, 0, n].into()],
        ..WorkloadConfig::default()
    });
    port
}

fn policy(action: Action) -> Policy {
    Policy {
        rules: vec![Rule::new("all", &["any"], &["any"], action)],
        ..Policy::default()
    }
}

fn datagram(from: u8, to: u8) -> Vec<u8> {
    let mut frame = Vec::new();
    etherparse::PacketBuilder::ethernet2(mac(from), mac(to))
        .ipv4([10, 0, 0, from], [10, 0, 0, to], 64)
        .udp(1000, 2000)
        .write(&mut frame, b"hello")
        .expect("a vector takes it");
    frame
}

fn receive(end: &mut MemEnd) -> Vec<u8> {
    let mut frame = Vec::new();
    let got = end
        .recv_timeout(&mut frame, LIMIT)
        .expect("it can be waited for");
    assert!(got.is_some(), "no frame came");
    frame
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < LIMIT, "{what}");
        std::thread::yield_now();
    }
}

fn drops(switch: &Switch, reason: &str) -> u64 {
    let drops = switch.drops().expect("it runs");
    let found = drops.iter().find(|d| d.reason == reason);
    found.expect("a reason there is").total
}

#[test]
fn frames_pass_when_policy_says_so_and_every_one_is_counted() {
    let switch = Switch::builder()
        .connections(100)
        .max_ports(4)
        .port(port("a", 1))
        .port(port("b", 2))
        .policy(policy(Action::Allow))
        .spawn()
        .expect("nothing in the way");
    let mut a = switch.mem_port("a").expect("the first to take it");
    let mut b = switch.mem_port("b").expect("the first to take it");
    assert!(switch.mem_port("a").is_none(), "an end is taken once");
    assert!(switch.mem_port("x").is_none());
    a.send(&datagram(1, 2)).expect("room");
    assert_eq!(receive(&mut b), datagram(1, 2));
    let conns = switch.connections(10).expect("it runs");
    assert_eq!(conns.total, 1);
    let conn = &conns.connections[0];
    assert_eq!(
        (conn.from.as_str(), conn.to.as_str(), conn.rule.as_str()),
        ("a", "b", "all")
    );

    // Denied from now on: the live connection, too.
    let applied = switch.apply_policy(policy(Action::Deny)).expect("valid");
    let query = ExplainQuery {
        from: "a".into(),
        to: "b".into(),
        service: "udp/2000".into(),
        src_port: Some(1000),
    };
    let explained = switch.explain(query.clone()).expect("both exist");
    assert_eq!(explained.verdict, "deny");
    assert_eq!(explained.generation, applied.generation);
    a.send(&datagram(1, 2)).expect("room");
    until("the frame is dropped", || {
        drops(&switch, "policy_deny") == 1
    });
    assert_eq!(b.waiting(), 0);
    assert_eq!(switch.explain(query).expect("both exist").live.len(), 0);
    assert_eq!(switch.connections(10).expect("it runs").total, 0);

    let sum = switch.stats().expect("it runs").conservation;
    assert_eq!((sum.rx, sum.tx, sum.dropped, sum.difference), (2, 1, 1, 0));
    switch.shutdown();
    assert!(a.send(&datagram(1, 2)).is_err(), "the port is closed");
}

#[test]
fn ports_come_and_go_while_it_runs() {
    let switch = Switch::builder()
        .connections(100)
        .max_ports(3)
        .port(port("a", 1))
        .policy(policy(Action::Allow))
        .spawn()
        .expect("nothing in the way");
    let mut a = switch.mem_port("a").expect("the first to take it");
    a.send(&datagram(1, 2)).expect("room");
    until("nobody there", || {
        drops(&switch, "unknown_destination") == 1
    });
    // More often than there are numbers for ports: they are used again.
    for round in 0..5 {
        switch.add_port(port("b", 2)).expect("room for it");
        let mut b = switch.mem_port("b").expect("a new port has a new end");
        a.send(&datagram(1, 2)).expect("room");
        assert_eq!(receive(&mut b), datagram(1, 2), "round {round}");
        let b_stats = switch.stats().expect("it runs").ports["b"].clone();
        assert_eq!(b_stats.counters["tx_pkts"], 1, "a new port counts from 0");
        switch.remove_port("b").expect("it is there");
    }
    let bad = switch
        .add_port(port("a", 9))
        .expect_err("the name is taken");
    assert!(
        matches!(bad, SwitchError::Apply(ApplyError::PortExists(_))),
        "{bad}"
    );
    let bad = switch.add_port(port("c", 1)).expect_err("the MAC is taken");
    assert!(bad.to_string().contains("52:54:00:00:00:01"), "{bad}");
    assert_eq!(switch.ports().expect("it runs").len(), 1);
}

#[test]
fn two_switches_in_one_process_know_nothing_of_each_other() {
    let build = || {
        Switch::builder()
            .connections(100)
            .max_ports(4)
            .port(port("a", 1))
            .port(port("b", 2))
            .policy(policy(Action::Allow))
            .spawn()
            .expect("nothing in the way")
    };
    let (one, two) = (build(), build());
    let mut a = one.mem_port("a").expect("the first to take it");
    let mut b = one.mem_port("b").expect("the first to take it");
    a.send(&datagram(1, 2)).expect("room");
    receive(&mut b);
    assert_eq!(two.stats().expect("it runs").conservation.rx, 0);
    drop(one);
    assert_eq!(two.status().expect("it runs").ports, 2);
}

#[test]
fn what_cannot_start_says_why_and_leaves_nothing() {
    let no_core = Switch::builder().connections(10).workers([9999]).spawn();
    let error = no_core.expect_err("no such core");
    assert!(error.to_string().contains("9999"), "{error}");
    let invalid = Switch::builder()
        .connections(10)
        .port(port("a", 1))
        .port(port("a", 2))
        .spawn();
    let error = invalid.expect_err("a name twice");
    assert!(
        matches!(error, SwitchError::Apply(ApplyError::Invalid(_))),
        "{error}"
    );
    let dir = tempfile::tempdir().expect("a directory");
    let api = dir.path().join("api.sock");
    let first = Switch::builder()
        .connections(10)
        .api(&api)
        .spawn()
        .expect("free");
    let second = Switch::builder().connections(10).api(&api).spawn();
    let error = second.expect_err("taken");
    assert!(error.to_string().contains("already running"), "{error}");
    first.shutdown();
    Switch::builder()
        .connections(10)
        .api(&api)
        .spawn()
        .expect("free again");
}

/// A UDP datagram of one of many flows, with a number in it.
fn numbered(from: u8, to: u8, flow: u16, number: u32) -> Vec<u8> {
    let reply = from > to;
    let (sport, dport) = if reply { (53, flow) } else { (flow, 53) };
    let mut frame = Vec::new();
    etherparse::PacketBuilder::ethernet2(mac(from), mac(to))
        .ipv4([10, 0, 0, from], [10, 0, 0, to], 64)
        .udp(sport, dport)
        .write(&mut frame, &number.to_be_bytes())
        .expect("a vector takes it");
    frame
}

#[test]
fn two_workers_carry_the_two_directions_of_one_connection() {
    const FLOWS: u16 = 50;
    const ROUNDS: u32 = 200;
    // Only a may open; b's frames pass as replies on connections the other worker made, while
    // changes of policy have both workers judge them again.
    let dns = |name: &str| Policy {
        segments: ["a", "b"]
            .map(|n| Segment {
                names: vec![n.to_owned()],
                ..Segment::new(n)
            })
            .to_vec(),
        rules: vec![Rule {
            service: vec!["udp/53".parse().expect("a service")],
            ..Rule::new(name, &["a"], &["b"], Action::Allow)
        }],
        ..Policy::default()
    };
    let mut cores = vswitch::sys::affinity::allowed_cores().expect("the kernel says");
    cores.truncate(2);
    let switch = Switch::builder()
        .workers(cores)
        .connections(1000)
        .max_ports(4)
        .port(port("a", 1))
        .port(port("b", 2))
        .policy(dns("first"))
        .spawn()
        .expect("nothing in the way");
    let mut ends = ["a", "b"].map(|n| switch.mem_port(n).expect("the first to take it"));
    let [a, b] = &mut ends;
    for round in 0..ROUNDS {
        if round % 20 == 0 {
            switch
                .apply_policy(dns(&format!("round-{round}")))
                .expect("valid");
        }
        for flow in 1..=FLOWS {
            a.send(&numbered(1, 2, flow, round)).expect("room");
        }
        for flow in 1..=FLOWS {
            assert_eq!(receive(b), numbered(1, 2, flow, round), "in order");
        }
        for flow in 1..=FLOWS {
            b.send(&numbered(2, 1, flow, round)).expect("room");
        }
        for flow in 1..=FLOWS {
            assert_eq!(receive(a), numbered(2, 1, flow, round), "in order");
        }
    }
    let conns = switch.connections(1000).expect("it runs");
    assert_eq!(conns.total, usize::from(FLOWS));
    let sum = switch.stats().expect("it runs").conservation;
    let sent = u64::from(ROUNDS) * u64::from(FLOWS) * 2;
    assert_eq!(
        (sum.rx, sum.tx, sum.dropped, sum.difference),
        (sent, sent, 0, 0)
    );
}
