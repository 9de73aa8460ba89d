//! Quarantine through the daemon and its command line. The guests are our own, so nothing here needs a privilege.

mod common;

use common::station::{Mac, Station, mac, port, workload};
use common::switch::{Switch, SwitchConfig};
use common::{Lab, wait_for};
use serde_json::Value;
use std::time::Duration;

/// Bound on what must happen.
const LIMIT: Duration = Duration::from_secs(20);

const POLICY: &str = "[[rule]]\nname = \"all\"\nfrom = \"any\"\nto = \"any\"\nservice = \"tcp\"\naction = \"allow\"\n";

/// Workloads; the n-th has the address 10.0.0.n and the MAC that ends in n.
const WHO: [&str; 3] = ["suspect", "volume", "other"];

struct Net<'a> {
    lab: &'a Lab,
    switch: Switch<'a>,
    stations: Vec<Station>,
}

/// A TCP connection of the suspect, from a port of its own to tcp/80 of somebody, and the numbers of both ends.
#[derive(Clone, Copy)]
struct Conn {
    to: usize,
    sport: u16,
    seqs: [u32; 2],
}

impl Conn {
    /// A segment, from the suspect or back.
    fn segment(&self, back: bool, flags: &str, payload: &[u8]) -> Vec<u8> {
        let n = |at: usize| u8::try_from(at + 1).expect("few");
        let mut ends: [(Mac, [u8; 4], u16, u32); 2] = [
            (mac(1), [10, 0, 0, 1], self.sport, self.seqs[0]),
            (mac(n(self.to)), [10, 0, 0, n(self.to)], 80, self.seqs[1]),
        ];
        if back {
            ends.reverse();
        }
        let [from, to] = ends;
        let mut segment = etherparse::PacketBuilder::ethernet2(from.0, to.0)
            .ipv4(from.1, to.1, 64)
            .tcp(from.2, to.2, from.3, 60_000);
        for flag in flags.chars() {
            segment = match flag {
                'S' => segment.syn(),
                'A' => segment.ack(to.3),
                'P' => segment.psh(),
                other => panic!("no flag {other}"),
            };
        }
        let mut frame = Vec::new();
        segment
            .write(&mut frame, payload)
            .expect("a vector takes every frame");
        frame
    }

    /// What `conn list` shows of it.
    fn name(&self) -> String {
        let to = WHO[self.to];
        let (sport, n) = (self.sport, self.to + 1);
        format!("tcp suspect 10.0.0.1:{sport} > {to} 10.0.0.{n}:80")
    }
}

impl<'a> Net<'a> {
    fn start(lab: &'a Lab, ledger: bool) -> Self {
        let mut toml = "policy = \"policy.toml\"\n[switch]\nconnections = 10000\n".to_owned();
        if ledger {
            toml += &format!("[ledger]\npath = \"{}\"\n", lab.path_str("ledger.db"));
        }
        for (name, n) in WHO.iter().zip(1..) {
            toml += &port(lab, name, "");
            toml += &workload(name, n, &format!("10.0.0.{n}"), "");
        }
        let switch = SwitchConfig::new(lab, "switch", &toml, POLICY).start();
        let mut net = Net {
            lab,
            switch,
            stations: Vec::new(),
        };
        net.attach();
        net
    }

    fn attach(&mut self) {
        self.stations.clear();
        let stations = WHO.iter().map(|name| Station::attach(self.lab, name));
        self.stations = stations.collect();
        self.switch.wait_ports_up(3);
    }

    fn pass(&mut self, conn: &Conn, back: bool, flags: &str, payload: &[u8]) {
        let frame = conn.segment(back, flags, payload);
        let (from, to) = if back { (conn.to, 0) } else { (0, conn.to) };
        self.stations[from].send(&frame);
        self.stations[to].recv_until(&frame);
    }

    /// Payload in both directions.
    fn talks(&mut self, conn: &mut Conn) {
        for back in [false, true] {
            self.pass(conn, back, "PA", b"payload");
            conn.seqs[usize::from(back)] += 7;
        }
    }

    /// A segment is dropped, and its sender is told by a reset.
    fn is_refused(&mut self, conn: &Conn, back: bool, flags: &str) {
        let before = self.switch.dropped("quarantined");
        let from = if back { conn.to } else { 0 };
        self.stations[from].send(&conn.segment(back, flags, b""));
        wait_for("the refusal", LIMIT, || {
            (self.switch.dropped("quarantined") > before).then_some(())
        });
        let told = self.stations[from].recv_any();
        assert_eq!(told[47] & 4, 4, "no reset: {told:x?}");
    }

    fn open(&mut self, to: usize, sport: u16) -> Conn {
        let mut conn = Conn {
            to,
            sport,
            seqs: [100, 500],
        };
        self.pass(&conn, false, "S", b"");
        conn.seqs[0] += 1;
        self.pass(&conn, true, "SA", b"");
        conn.seqs[1] += 1;
        self.pass(&conn, false, "A", b"");
        conn
    }

    fn shown(&self) -> Value {
        let list = self.switch.cli_json(&["workload", "show", "suspect"]);
        list["quarantine"].clone()
    }
}

#[test]
fn a_suspect_keeps_its_volume_and_nothing_else_whatever_happens_to_the_switch() {
    let Some(lab) = Lab::open(&[]) else { return };
    let mut net = Net::start(&lab, true);
    let mut watch = net.switch.watch(&["--kind", "quarantine,release,cut"]);
    wait_for("somebody to watch", LIMIT, || {
        // It connects in its own time: whoever comes too late sees nothing.
        net.switch.cli_ok(&["workload", "quarantine", "other"]);
        net.switch.cli_ok(&["workload", "release", "other"]);
        watch.log().contains("\"release\"").then_some(())
    });
    let mut volume = net.open(1, 1000);
    let mut rest = net.open(2, 1001);
    net.talks(&mut volume);
    net.talks(&mut rest);

    // What is not there cannot be kept, and then nothing is done.
    let output = net.switch.cli(&[
        "workload",
        "quarantine",
        "suspect",
        "--keep",
        "volume:tcp/81",
    ]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert_eq!(net.shown(), Value::Null);
    net.talks(&mut rest);

    let said = net.switch.cli_ok(&[
        "workload",
        "quarantine",
        "suspect",
        "--keep",
        "volume:tcp/80",
        "--reason",
        "scans",
    ]);
    assert!(
        said.contains("1 live connection cut, 1 kept") && said.contains(&volume.name()),
        "{said}"
    );
    net.talks(&mut volume);
    net.is_refused(&rest, false, "PA");
    net.is_refused(&rest, true, "PA");
    let mut fresh = rest;
    fresh.sport = 1002;
    net.is_refused(&fresh, false, "S");
    let q = net.shown();
    assert_eq!(
        (&q["reason"], &q["recorded"]),
        (&"scans".into(), &true.into())
    );
    let kept = &q["kept"][0];
    assert_eq!(kept["connection"], volume.name());
    for key in ["original_pkts", "reply_pkts"] {
        assert_eq!(kept[key], 1, "{kept}");
    }
    // It is shown wherever somebody looks.
    for (args, what) in [
        (&["status"][..], "quarantine   suspect"),
        (&["workload", "list"], "since 20"),
        (&["workload", "show", "suspect"], "scans"),
        (&["conn", "list"], "established (kept)"),
    ] {
        let said = net.switch.cli_ok(args);
        assert!(
            said.contains(what),
            "{args:?}: {what:?} is not said: {said}"
        );
    }
    let explain = |net: &Net<'_>, sport: &str| {
        let ends = ["explain", "--from", "suspect", "--to", "volume"];
        let what = ["--service", "tcp/80", "--src-port", sport];
        let output = net.switch.cli(&[&ends[..], &what].concat());
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code(), said)
    };
    let (code, said) = explain(&net, "1000");
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("it is kept"), "{said}");
    let (code, said) = explain(&net, "1");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("suspect is in quarantine: scans"), "{said}");
    let log = wait_for("it to be told", LIMIT, || {
        let log = watch.log();
        (log.contains("scans") && log.contains("\"cut\"")).then_some(log)
    });
    assert!(watch.ended().is_none(), "{log}");

    // The switch dies, and knows. What it kept is picked up, by exactly its segments, and nothing else is.
    net.switch.kill();
    net.switch.restart();
    net.attach();
    assert_eq!(net.shown()["kept"][0]["state"], "awaited");
    net.is_refused(&rest, false, "PA");
    net.is_refused(&volume, false, "S");
    net.talks(&mut volume);
    net.is_refused(&fresh, false, "S");
    assert_eq!(net.shown()["kept"][0]["state"], "live");

    // A policy may end it; a reload or a tag changes nothing.
    net.switch.cli_ok(&["reload"]);
    net.switch.cli_ok(&["workload", "tag", "suspect", "a:b"]);
    net.talks(&mut volume);

    let said = net
        .switch
        .cli_ok(&["workload", "release", "suspect", "--reason", "clean"]);
    assert!(
        said.contains("2 packets") && said.contains("is released"),
        "{said}"
    );
    net.talks(&mut volume);
    let mut again = net.open(2, 1003);
    net.talks(&mut again);
    let ledger = lab.path_str("ledger.db");
    let records = |kind: &str| {
        let show = ["ledger", "show", "--file", &ledger, "--kind", kind];
        let of = ["--workload", "suspect"];
        net.switch.cli_json(&[&show[..], &of].concat())
    };
    let put = records("quarantine");
    assert_eq!(
        (&put[0]["workload"], &put[0]["body"]["keep"][0]),
        (&"suspect".into(), &volume.name().into())
    );
    let out = records("release");
    assert_eq!(out[0]["body"]["reason"], "clean");
    let carried = out[0]["body"]["kept"][0].as_str().expect("text");
    assert!(carried.starts_with(&volume.name()), "{carried}");

    // Released is released, also for the next run.
    net.switch.kill();
    net.switch.restart();
    net.attach();
    assert_eq!(net.shown(), Value::Null);
    net.open(2, 1004);
    net.switch.cli_ok(&["ledger", "verify", "--file", &ledger]);
    net.switch.wait_conserved();
}

#[test]
fn without_a_ledger_it_says_that_it_will_not_last() {
    let Some(lab) = Lab::open(&[]) else { return };
    let mut net = Net::start(&lab, false);
    let said = net.switch.cli_ok(&["workload", "quarantine", "suspect"]);
    assert!(
        said.contains("it ends with the daemon: there is no ledger"),
        "{said}"
    );
    let fresh = Conn {
        to: 1,
        sport: 1000,
        seqs: [1, 0],
    };
    net.is_refused(&fresh, false, "S");
    net.switch.cli_ok(&["workload", "release", "suspect"]);
    net.open(1, 1001);
}
