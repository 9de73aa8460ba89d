//! Walls in a whole switch: mem ports, workers, the control thread and a ledger.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;

use super::*;
use crate::control::Switch;
use crate::control::api::{ExplainQuery, WallInfo};
use crate::control::recorder::Recorder;
use crate::control::state::{LedgerConfig, PortConfig, PortKind, WorkloadConfig};
use crate::packet::Mac;
use crate::policy::model::{Action, Per, Policy, Rule, Same, Sanitised, Segment, Wall};
use crate::port::mem::MemEnd;

/// Bound on what must happen.
const LIMIT: Duration = Duration::from_secs(20);

fn wait<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(start.elapsed() < LIMIT, "no {what} in {LIMIT:?}");
        std::thread::yield_now();
    }
}

/// Workloads: name, last byte of MAC and address, tags, volumes.
type Who = (
    &'static str,
    u8,
    &'static [&'static str],
    &'static [&'static str],
);

const PLAIN: &[Who] = &[
    ("trader", 1, &["in:trader"], &[]),
    ("buy", 2, &["in:buy"], &[]),
    ("sell", 3, &["in:sell"], &[]),
];

fn wall() -> Wall {
    Wall {
        name: "trading".into(),
        tenant: "default".into(),
        subjects: vec!["trader".into()],
        same: None,
        datasets: vec!["buy".into(), "sell".into()],
        conflicts: Vec::new(),
        per: Per::Ever,
    }
}

/// Everybody may talk to traders, and they to everybody; nobody else.
fn policy(wall: Wall) -> Policy {
    let segment = |name: &str| Segment {
        tags: vec![format!("in:{name}")],
        ..Segment::new(name)
    };
    Policy {
        segments: ["trader", "buy", "sell", "cache"].map(segment).to_vec(),
        rules: vec![
            Rule::new("out", &["trader"], &["any"], Action::Allow),
            Rule::new("in", &["any"], &["trader"], Action::Allow),
        ],
        walls: vec![wall],
        ..Policy::default()
    }
}

struct Net {
    switch: Switch,
    ends: HashMap<&'static str, MemEnd>,
    who: Vec<Who>,
    seq: u32,
    _dir: tempfile::TempDir,
}

impl Net {
    fn new(who: &[Who], policy: Policy, workers: usize) -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let ledger = LedgerConfig {
            path: dir.path().join("ledger.db"),
            ..LedgerConfig::default()
        };
        let mut builder = Switch::builder()
            .connections(1000)
            .ledger(ledger)
            .policy(policy);
        if workers > 1 {
            builder = builder.workers(0..workers);
        }
        for (name, n, tags, volumes) in who {
            let mut port = PortConfig::new(name, PortKind::Mem);
            port.workloads.push(WorkloadConfig {
                name: (*name).to_owned(),
                mac: vec![Mac([2, 0, 0, 0, 0, *n])],
                ip: vec![[10, 0, 0, *n].into()],
                tags: tags.iter().map(|t| (*t).to_owned()).collect(),
                volumes: volumes.iter().map(|v| (*v).to_owned()).collect(),
                ..WorkloadConfig::default()
            });
            builder = builder.port(port);
        }
        let switch = builder.spawn().unwrap_or_else(|e| panic!("{e}"));
        let ends = who.iter().map(|w| (w.0, switch.mem_port(w.0).unwrap()));
        Net {
            ends: ends.collect(),
            switch,
            who: who.to_vec(),
            seq: 0,
            _dir: dir,
        }
    }

    fn n(&self, name: &str) -> u8 {
        self.who.iter().find(|w| w.0 == name).unwrap().1
    }

    fn ip(&self, from: &str, to: &str) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
        let (a, b) = (self.n(from), self.n(to));
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, a], [2, 0, 0, 0, 0, b]).ipv4(
            [10, 0, 0, a],
            [10, 0, 0, b],
            64,
        )
    }

    fn udp(&mut self, from: &str, to: &str) -> Vec<u8> {
        self.seq += 1;
        let mut frame = Vec::new();
        let payload = self.seq.to_be_bytes();
        self.ip(from, to)
            .udp(1000, 7)
            .write(&mut frame, &payload)
            .unwrap();
        frame
    }

    fn tcp(&self, from: &str, to: &str, ports: (u16, u16), flags: &str, payload: &[u8]) -> Vec<u8> {
        // Both begin at 100; after the handshake the next is 101.
        let seq = if flags.contains('S') { 100 } else { 101 };
        let mut b = self.ip(from, to).tcp(ports.0, ports.1, seq, 64_000);
        for flag in flags.chars() {
            b = match flag {
                'S' => b.syn(),
                'R' => b.rst(),
                _ => b.ack(101),
            };
        }
        let mut frame = Vec::new();
        b.write(&mut frame, payload).unwrap();
        frame
    }

    fn send(&mut self, from: &str, frame: &[u8]) {
        self.ends.get_mut(from).unwrap().send(frame).unwrap();
    }

    fn gets(&mut self, who: &str, frame: &[u8]) {
        let end = self.ends.get_mut(who).unwrap();
        let mut bytes = Vec::new();
        wait(&format!("frame at {who}"), || {
            while end.recv(&mut bytes).is_some() {
                if bytes == frame {
                    return Some(());
                }
            }
            None
        });
    }

    fn walled(&self) -> u64 {
        let drops = self.switch.drops().unwrap();
        drops.iter().find(|d| d.reason == "wall").unwrap().total
    }

    /// A datagram gets there.
    fn reaches(&mut self, from: &str, to: &str) {
        let frame = self.udp(from, to);
        self.send(from, &frame);
        self.gets(to, &frame);
    }

    /// A wall keeps it from getting there.
    fn is_kept(&mut self, from: &str, to: &str) {
        let before = self.walled();
        let frame = self.udp(from, to);
        self.send(from, &frame);
        wait(&format!("wall between {from} and {to}"), || {
            (self.walled() > before).then_some(())
        });
    }

    /// Opens a connection that says nothing.
    fn handshake(&mut self, from: &str, to: &str, sport: u16) {
        let (there, back) = ((sport, 80), (80, sport));
        for (from, to, ports, flags) in [
            (from, to, there, "S"),
            (to, from, back, "SA"),
            (from, to, there, "A"),
        ] {
            let frame = self.tcp(from, to, ports, flags, b"");
            self.send(from, &frame);
            self.gets(to, &frame);
        }
    }

    fn walls(&self) -> Vec<WallInfo> {
        self.switch.call(|c| c.wall_infos()).unwrap()
    }

    /// Who is bound to what, and how firmly.
    fn bound(&self) -> Vec<(String, String, bool)> {
        let walls = self.walls().into_iter();
        let bindings = walls.flat_map(|w| w.bindings);
        bindings.map(|b| (b.subject, b.side, b.committed)).collect()
    }

    fn waits_for(&self, bound: &[(&str, &str, bool)]) {
        let want: Vec<_> = bound
            .iter()
            .map(|(who, side, firm)| ((*who).to_owned(), (*side).to_owned(), *firm))
            .collect();
        let start = Instant::now();
        while self.bound() != want {
            assert!(
                start.elapsed() < LIMIT,
                "{:?} and not {want:?}",
                self.bound()
            );
        }
    }
}

#[test]
fn who_has_read_one_side_never_reaches_the_other() {
    let mut net = Net::new(PLAIN, policy(wall()), 1);
    assert_eq!(net.bound(), []);
    net.reaches("trader", "buy");
    net.waits_for(&[("workload trader", "buy", true)]);
    net.is_kept("trader", "sell");
    net.is_kept("sell", "trader");
    net.reaches("buy", "trader");
    let asked = |to: &str| ExplainQuery {
        from: "trader".into(),
        to: to.into(),
        service: "udp/7".into(),
        src_port: None,
    };
    let said = net.switch.explain(asked("sell")).unwrap();
    assert_eq!(said.verdict, "deny");
    assert!(
        said.why
            .contains("wall trading stands between: workload trader would carry both buy and sell"),
        "{}",
        said.why
    );
    assert_eq!(net.switch.explain(asked("buy")).unwrap().verdict, "allow");
    let seen = net
        .switch
        .call(|c| c.wall_explain("trader"))
        .unwrap()
        .unwrap();
    assert_eq!(
        (&seen[0].carries[..], &seen[0].kept_from[..]),
        (&["buy".to_owned()][..], &["sell".to_owned()][..])
    );
    // Two people may agree to free him; live connections bind at once, and there is one.
    let free =
        |c: &mut Control| c.unbind("trading", &Key::Workload("trader".into()), ("bob", "moved"));
    net.switch.call(free).unwrap();
    net.waits_for(&[("workload trader", "buy", true)]);
}

#[test]
fn a_database_that_served_one_side_refuses_the_other() {
    // The subject is the data, its clients are the sides.
    for (first, second) in [("buy", "sell"), ("sell", "buy")] {
        let mut net = Net::new(PLAIN, policy(wall()), 1);
        net.reaches(first, "trader");
        net.is_kept(second, "trader");
        net.is_kept("trader", second);
        net.reaches("trader", first);
    }
}

#[test]
fn a_handshake_without_payload_binds_nobody() {
    let mut net = Net::new(PLAIN, policy(wall()), 1);
    net.handshake("trader", "buy", 5000);
    assert_eq!(
        net.bound(),
        [("workload trader".into(), "buy".into(), false)]
    );
    // As long as it may, the other side waits outside.
    net.is_kept("trader", "sell");
    let reset = net.tcp("trader", "buy", (5000, 80), "RA", b"");
    net.send("trader", &reset);
    net.waits_for(&[]);
    // Refused at once.
    let syn = net.tcp("trader", "buy", (5001, 80), "S", b"");
    net.send("trader", &syn);
    net.gets("buy", &syn);
    let mut refused = Vec::new();
    let answer = net.ip("buy", "trader").tcp(80, 5001, 0, 0);
    answer.rst().ack(101).write(&mut refused, b"").unwrap();
    net.send("buy", &refused);
    net.waits_for(&[]);
    // The first payload counts, of either side.
    net.handshake("trader", "sell", 5002);
    let data = net.tcp("sell", "trader", (80, 5002), "A", b"price");
    net.send("sell", &data);
    net.gets("trader", &data);
    net.waits_for(&[("workload trader", "sell", true)]);
    net.is_kept("trader", "buy");
}

#[test]
fn replicas_share_their_side_and_so_do_clones_of_a_volume() {
    let who: &[Who] = &[
        ("t1", 1, &["in:trader", "desk:a"], &["v1"]),
        ("t2", 4, &["in:trader", "desk:a"], &[]),
        ("t3", 5, &["in:trader", "desk:b"], &["v1"]),
        ("buy", 2, &["in:buy"], &[]),
        ("sell", 3, &["in:sell"], &[]),
    ];
    let same = |same: &str| Wall {
        same: Some(same.parse::<Same>().unwrap()),
        ..wall()
    };
    let mut net = Net::new(who, policy(same("tag:desk")), 1);
    net.reaches("t1", "buy");
    net.is_kept("t2", "sell");
    net.reaches("t3", "sell");
    net.is_kept("t3", "buy");
    net.waits_for(&[("tag desk:a", "buy", true), ("tag desk:b", "sell", true)]);
    let mut net = Net::new(who, policy(same("volume")), 1);
    net.reaches("t1", "buy");
    net.is_kept("t3", "sell");
    net.reaches("t2", "sell");
    net.waits_for(&[("workload t2", "sell", true), ("volume v1", "buy", true)]);
}

const SHARED: &[Who] = &[
    ("t1", 1, &["in:trader"], &[]),
    ("t2", 4, &["in:trader"], &[]),
    ("cache", 5, &["in:cache"], &[]),
    ("buy", 2, &["in:buy"], &[]),
    ("sell", 3, &["in:sell"], &[]),
];

#[test]
fn what_a_bound_subject_tells_a_shared_cache_nobody_of_the_other_side_reads_there() {
    let mut net = Net::new(SHARED, policy(wall()), 1);
    net.reaches("t1", "buy");
    net.reaches("t1", "cache");
    net.reaches("t2", "sell");
    net.is_kept("t2", "cache");
    net.waits_for(&[
        ("workload cache", "buy", true),
        ("workload t1", "buy", true),
        ("workload t2", "sell", true),
    ]);
    // Over a live connection, what comes later goes on, too.
    let mut net = Net::new(SHARED, policy(wall()), 1);
    net.reaches("t1", "cache");
    net.reaches("t2", "cache");
    assert_eq!(net.bound(), []);
    net.reaches("t1", "buy");
    net.waits_for(&[
        ("workload cache", "buy", true),
        ("workload t1", "buy", true),
        ("workload t2", "buy", true),
    ]);
    net.is_kept("t2", "sell");
    net.reaches("t2", "buy");
    // Unless it is sanitised.
    let mut p = policy(wall());
    p.sanitised.push(Sanitised {
        tenant: "default".into(),
        segment: "cache".into(),
        service: vec!["udp/7".parse().unwrap()],
        reason: "names only".into(),
        owner: "ann".into(),
        expires: "2999-12-31".parse().unwrap(),
    });
    let mut net = Net::new(SHARED, p, 1);
    net.reaches("t1", "buy");
    net.reaches("t2", "sell");
    net.reaches("t1", "cache");
    net.reaches("t2", "cache");
    net.waits_for(&[("workload t1", "buy", true), ("workload t2", "sell", true)]);
}

#[test]
fn a_new_wall_knows_what_is_connected() {
    let mut open = policy(wall());
    open.walls.clear();
    let mut net = Net::new(SHARED, open, 1);
    for (from, to) in [("t1", "buy"), ("t1", "sell"), ("t2", "buy")] {
        net.reaches(from, to);
    }
    let mut walled = policy(wall());
    walled
        .rules
        .push(Rule::new("more", &["cache"], &["cache"], Action::Allow));
    net.switch.apply_policy(walled).unwrap();
    // All of them are linked, and so all of them lose both.
    net.is_kept("t1", "buy");
    net.is_kept("t1", "sell");
    net.is_kept("t2", "sell");
    let seen = net.switch.call(|c| c.wall_explain("t1")).unwrap().unwrap();
    assert_eq!(seen[0].kept_from, ["buy", "sell"]);
}

#[test]
fn stages_of_a_transaction_share_nothing_until_it_ends() {
    let per = Wall {
        per: Per::Transaction,
        ..wall()
    };
    let mut net = Net::new(SHARED, policy(per), 1);
    net.reaches("buy", "t1");
    net.reaches("sell", "t2");
    assert_eq!(net.bound(), [], "no transaction, no binding");
    let begin = |c: &mut Control, name: &str| {
        c.transaction_begin(name, "trading", &["buy".into(), "sell".into()])
    };
    net.switch.call(move |c| begin(c, "tx-1")).unwrap().unwrap();
    assert!(net.switch.call(move |c| begin(c, "tx-1")).unwrap().is_err());
    // What was connected before is part of it.
    net.waits_for(&[("workload t1", "buy", true), ("workload t2", "sell", true)]);
    net.is_kept("sell", "t1");
    net.is_kept("t2", "buy");
    net.reaches("buy", "t1");
    net.switch
        .call(|c| c.transaction_end("tx-1"))
        .unwrap()
        .unwrap();
    assert_eq!(net.bound(), []);
    net.reaches("sell", "t1");
    net.reaches("t2", "buy");
    let ended = net.switch.call(|c| c.transaction_end("tx-1")).unwrap();
    assert!(ended.is_err());
    // Both are connected to both: both lose both, as long as the next one lasts.
    net.switch.call(move |c| begin(c, "tx-2")).unwrap().unwrap();
    net.is_kept("sell", "t1");
    net.is_kept("buy", "t1");
}

#[test]
fn what_cannot_be_recorded_is_denied() {
    let mut net = Net::new(PLAIN, policy(wall()), 1);
    net.switch.call(|c| c.recorder = Recorder::none()).unwrap();
    net.is_kept("trader", "buy");
    net.waits_for(&[]);
}

#[test]
fn of_two_first_connections_one_wins() {
    const ROUNDS: u64 = 10_000;
    let mut net = Net::new(PLAIN, policy(wall()), 2);
    let mut bytes = Vec::new();
    for round in 1..=ROUNDS {
        let [a, b] = ["buy", "sell"].map(|from| net.udp(from, "trader"));
        net.send("buy", &a);
        net.send("sell", &b);
        let trader = net.ends.get_mut("trader").unwrap();
        let mut got = 0;
        wait("winner", || {
            got += u64::from(trader.recv(&mut bytes).is_some());
            (got > 0).then_some(())
        });
        wait("loser", || (net.walled() == round).then_some(()));
        let trader = net.ends.get_mut("trader").unwrap();
        assert!(
            trader.recv(&mut bytes).is_none(),
            "both won in round {round}"
        );
        // As it was before.
        net.switch
            .call(|c| {
                let mut table = c.shared.table.participant();
                table.sweep(usize::MAX, |conn| {
                    c.shared.quotas.remove(&table, conn);
                    false
                });
                while table.has_removed() {
                    table.quiesce();
                }
                table.offline();
                c.unbind("trading", &Key::Workload("trader".into()), ("bob", "test"));
            })
            .unwrap();
        for end in net.ends.values_mut() {
            while end.recv(&mut bytes).is_some() {}
        }
    }
}
