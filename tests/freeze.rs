//! Frozen workloads: their peers are kernels, which must notice nothing but a closed window.

mod common;

use common::container::within;
use common::netns::Netns;
use common::sockets::{backoff, keep_alive, user_timeout};
use common::switch::{Switch, SwitchConfig};
use common::{Lab, Need, wait_for};
use serde_json::Value;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::Duration;

/// Bound on what must happen.
const LIMIT: Duration = Duration::from_secs(60);
const POLICY: &str = "[[rule]]\nname = \"all\"\nfrom = \"any\"\nto = \"any\"\nservice = \"tcp\"\naction = \"allow\"\n";
/// More than all buffers on the way hold.
const MUCH: usize = 8 << 20;

/// A guest, and a peer that serves.
struct Net<'a> {
    lab: &'a Lab,
    switch: Switch<'a>,
    guest: Netns,
    peer: Netns,
    listener: TcpListener,
}

fn tap(name: &str, n: u8, ns: &Netns) -> String {
    format!(
        "[[port]]\nname = \"{name}\"\nkind = \"tap\"\ninterface = \"eth0\"\nnetns = \"{}\"\n\
         [[port.workload]]\nname = \"{name}\"\nmac = [\"52:54:00:00:00:0{n}\"]\nip = [\"10.0.0.{n}\"]\n",
        ns.name()
    )
}

impl<'a> Net<'a> {
    fn start(lab: &'a Lab, host: &'a Netns, name: &str) -> Self {
        let [guest, peer] = ["guest", "peer"].map(|ns| Netns::new(lab, &format!("{name}-{ns}")));
        let toml = format!(
            "policy = \"policy.toml\"\n[switch]\nconnections = 10000\n[ledger]\npath = \"{}\"\n{}{}",
            lab.path_str("ledger.db"),
            tap("guest", 1, &guest),
            tap("peer", 2, &peer)
        );
        let switch = SwitchConfig::new(lab, "switch", &toml, POLICY)
            .in_netns(host)
            .start();
        for (ns, n) in [(&guest, 1), (&peer, 2)] {
            let mac = format!("52:54:00:00:00:0{n}");
            ns.address("eth0", &mac, &[&format!("10.0.0.{n}/24")]);
            ns.ip("link set eth0 up");
        }
        let listener = within(&peer, || TcpListener::bind(("10.0.0.2", 5432)));
        let listener = listener.expect("nobody else listens there");
        Net {
            lab,
            switch,
            guest,
            peer,
            listener,
        }
    }

    /// A connection that the guest has opened: its end, and the peer's.
    fn connect(&self) -> (TcpStream, TcpStream) {
        let ours = within(&self.guest, || TcpStream::connect(("10.0.0.2", 5432)));
        let (theirs, _) = self.listener.accept().expect("it was connected");
        let ours = ours.expect("the policy allows it");
        for stream in [&ours, &theirs] {
            stream
                .set_read_timeout(Some(LIMIT))
                .expect("a socket can be");
        }
        (ours, theirs)
    }

    fn workload(&self, args: &[&str]) -> String {
        self.switch.cli_ok(&[&["workload"], args].concat())
    }

    fn freeze(&self, max: &str) {
        let keep = ["quarantine", "guest", "--keep", "peer:tcp/5432"];
        self.workload(&keep);
        self.workload(&["freeze", "guest", "--max", max]);
    }

    fn shown(&self) -> Value {
        let shown = self.switch.cli_json(&["workload", "show", "guest"]);
        shown["quarantine"].clone()
    }

    /// Answers given for a connection, by the guest's port.
    fn answers(&self, stream: &TcpStream) -> u64 {
        kept(&self.shown(), stream)["answers"]
            .as_u64()
            .expect("a number")
    }

    /// Waits until this became of a connection when its guest was thawed.
    fn became(&self, stream: &TcpStream, outcome: &str) {
        wait_for(&format!("the outcome {outcome:?}"), LIMIT, || {
            let q = self.shown();
            let said = kept(&q, stream)["outcome"].as_str()?.to_owned();
            assert!(said.contains(outcome), "{said}");
            q["freeze"].is_null().then_some(())
        });
    }

    /// Timeouts of the peer's kernel so far: retransmissions, and probes of a closed window.
    fn timeouts(&self) -> u64 {
        let text = self.peer.run_ok("cat /proc/self/net/netstat", LIMIT);
        let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
        let (names, numbers) = (lines.next().expect("a head"), lines.next().expect("a line"));
        let mut all = names.split(' ').zip(numbers.split(' '));
        let found = all.find(|(name, _)| *name == "TCPTimeouts");
        found.expect("there is one").1.parse().expect("a number")
    }

    fn records(&self, kind: &str) -> Value {
        let file = self.lab.path_str("ledger.db");
        let args = ["ledger", "show", "--file", &file, "--kind", kind];
        self.switch.cli_json(&args)
    }
}

/// What is shown of a connection.
fn kept(quarantine: &Value, stream: &TcpStream) -> Value {
    let port = stream.local_addr().expect("it is bound").port();
    let all = quarantine["kept"].as_array().expect("a list");
    let is = |k: &&Value| {
        k["connection"]
            .as_str()
            .is_some_and(|c| c.contains(&format!(":{port} >")))
    };
    all.iter()
        .find(is)
        .unwrap_or_else(|| panic!("no {port}: {quarantine}"))
        .clone()
}

fn stream_of(len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (i ^ (i >> 8) ^ (i >> 16)).to_le_bytes()[0])
        .collect()
}

/// Sends all of it, from a thread of its own.
fn send(stream: &TcpStream) -> JoinHandle<std::io::Result<()>> {
    let mut stream = stream.try_clone().expect("a socket can be");
    std::thread::spawn(move || stream.write_all(&stream_of(MUCH)))
}

fn receive(mut stream: &TcpStream) {
    let mut bytes = vec![0; MUCH];
    stream.read_exact(&mut bytes).expect("all of it");
    assert!(bytes == stream_of(MUCH), "what came is not what was sent");
}

#[test]
fn a_peer_waits_for_a_frozen_guest_and_goes_on_at_once() {
    let Some(lab) = Lab::open(&[Need::Netns]) else {
        return;
    };
    let host = Netns::new(&lab, "wait-host");
    let net = Net::start(&lab, &host, "wait");
    // One that only listens, one that sends, one that waits for an answer, and one whose kernel would not wait.
    let (idle, idle_peer) = net.connect();
    let (bulk, bulk_peer) = net.connect();
    let (mut asks, mut asks_peer) = net.connect();
    let (impatient, mut impatient_peer) = net.connect();
    keep_alive(&idle_peer, 1, 3);
    user_timeout(&impatient_peer, 2000);
    let out = net.switch.cli(&["workload", "freeze", "guest"]);
    assert_eq!(out.status.code(), Some(2), "{out:?}");
    assert!(
        String::from_utf8_lossy(&out.stderr).contains("quarantine it first"),
        "{out:?}"
    );
    net.freeze("300");
    assert_eq!(net.shown()["freeze"]["state"], "frozen");
    for (args, what) in [
        (&["status"][..], "frozen       guest"),
        (&["workload", "list"], ", frozen"),
        (&["conn", "list"], "established (frozen)"),
    ] {
        let said = net.switch.cli_ok(args);
        assert!(
            said.contains(what),
            "{args:?}: {what:?} is not said: {said}"
        );
    }
    let port = bulk.local_addr().expect("it is bound").port().to_string();
    let ends = ["explain", "--from", "peer", "--to", "guest", "--service"];
    let service = format!("tcp/{port}");
    let output = net
        .switch
        .cli(&[&ends[..], &[&service, "--src-port", "5432"]].concat());
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.code() == Some(1) && said.contains("guest is frozen"),
        "{output:?}"
    );
    // No way out of it but the one.
    for args in [
        &["workload", "release", "guest"],
        &["workload", "quarantine", "guest"],
    ] {
        let output = net.switch.cli(args);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
    }

    let sending = send(&bulk_peer);
    asks_peer
        .write_all(b"are you there?")
        .expect("there is room");
    impatient_peer.write_all(b"now!").expect("there is room");
    // Longer than its keep-alive allows: three probes and more were answered.
    wait_for("answers to keep-alive probes", LIMIT, || {
        (net.answers(&idle) >= 6).then_some(())
    });
    // Linux counts the time that a window is closed.
    let error = wait_for("the impatient one to give up", LIMIT, || {
        impatient_peer.take_error().expect("it can be asked")
    });
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(idle_peer.take_error().expect("it can be asked").is_none());
    // The next timeout is seconds away.
    for peer in [&bulk_peer, &asks_peer] {
        wait_for("a long timeout", LIMIT, || {
            (backoff(peer) >= 4).then_some(())
        });
    }

    let before = net.timeouts();
    net.workload(&["thaw", "guest"]);
    receive(&bulk);
    sending.join().expect("no panic").expect("it was taken");
    let mut question = [0; 14];
    asks.read_exact(&mut question).expect("it comes");
    assert_eq!(&question, b"are you there?");
    for stream in [&bulk, &asks, &idle] {
        net.became(stream, "continues");
    }
    assert_eq!(net.timeouts(), before, "somebody had to wait for a timeout");
    // What its peer has given up without a word is over for the guest when it says something.
    let mut now = Vec::new();
    let error = (&impatient)
        .read_to_end(&mut now)
        .expect_err("it was reset");
    assert_eq!(
        (error.kind(), &*now),
        (ErrorKind::ConnectionReset, &b"now!"[..])
    );
    // And back.
    let sending = send(&idle);
    receive(&idle_peer);
    sending.join().expect("no panic").expect("it was taken");

    assert_eq!(net.records("freeze")[0]["body"]["connections"], 4);
    let thaw = net.records("thaw")[0]["body"]["outcomes"].to_string();
    assert!(thaw.contains("continues"), "{thaw}");
    net.workload(&["release", "guest"]);
    net.switch.wait_conserved();
}

#[test]
fn what_takes_too_long_is_reset_and_an_end_of_the_switch_too() {
    let Some(lab) = Lab::open(&[Need::Netns]) else {
        return;
    };
    let host = Netns::new(&lab, "late-host");
    let mut net = Net::start(&lab, &host, "late");
    let (late, mut late_peer) = net.connect();
    late_peer.write_all(b"x").expect("there is room");
    (&late).read_exact(&mut [0]).expect("it comes");
    net.freeze("1");
    let mut rest = Vec::new();
    let error = late_peer.read_to_end(&mut rest).expect_err("it is reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(net.shown()["freeze"]["state"], "too long");
    // The guest hears of it when it runs.
    assert!(late.take_error().expect("it can be asked").is_none());
    net.workload(&["thaw", "guest"]);
    let error = (&late).read_to_end(&mut rest).expect_err("it is reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    net.became(&late, "frozen for too long");
    net.workload(&["release", "guest"]);

    let (frozen, mut frozen_peer) = net.connect();
    net.freeze("300");
    net.switch.kill();
    net.switch.restart();
    for (ns, n) in [(&net.guest, 1), (&net.peer, 2)] {
        let mac = format!("52:54:00:00:00:0{n}");
        ns.address("eth0", &mac, &[&format!("10.0.0.{n}/24")]);
        ns.ip("link set eth0 up");
    }
    // Its interface is new; nobody would say where the guest is.
    let neighbour = "neighbour replace 10.0.0.1 lladdr 52:54:00:00:00:01 dev eth0";
    net.peer.ip(neighbour);
    let q = net.shown();
    assert!(q["freeze"].is_null() && q["kept"][0].is_null(), "{q}");
    assert!(
        q["note"]
            .as_str()
            .is_some_and(|n| n.contains("1 connections are reset")),
        "{q}"
    );
    frozen_peer.write_all(b"x").expect("there is room");
    let error = frozen_peer.read_to_end(&mut rest).expect_err("it is reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    drop(frozen);
    net.switch.wait_conserved();
}
