//! The command line and the files it is given: large ones, ones that are too large, mistakes at their places in them, and
//! what a person sees meanwhile. Unprivileged, like `cli.rs`.

mod common;

use common::process::{self, Console};
use common::switch::{self, Switch, SwitchConfig};
use common::{Lab, Need, wait_for};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::net::UnixListener;
use std::process::Output;
use std::time::Duration;
use vswitch::guest::{Guest, GuestConfig};
use vswitch::sys::virtio::NetHdr;

/// Bound on whatever takes milliseconds, or seconds when it is large.
const LIMIT: Duration = Duration::from_secs(60);

fn port(lab: &Lab, name: &str, n: u8) -> String {
    format!(
        "[[port]]\nname = \"{name}\"\nkind = \"vhost-user\"\nqueues = 1\nsocket = \"{}\"\n\
         [[port.workload]]\nname = \"{name}\"\nmac = [\"52:54:00:00:00:0{n}\"]\nip = [\"10.0.0.{n}\"]\ntags = [\"{name}\"]\n",
        lab.path_str(format!("{name}.sock"))
    )
}

fn switch_toml(lab: &Lab) -> String {
    let head = "policy = \"policy.toml\"\n[switch]\nconnections = 10000\nmax_ports = 8\n\n";
    head.to_owned() + &port(lab, "web", 1) + &port(lab, "db", 2)
}

fn start(lab: &Lab) -> Switch<'_> {
    SwitchConfig::new(lab, "sw", &switch_toml(lab), "").start()
}

fn said(o: &Output) -> String {
    String::from_utf8_lossy(&o.stdout).into_owned() + &String::from_utf8_lossy(&o.stderr)
}

/// A rule for each of so many UDP ports from 1 on, each with an action of its own.
fn rules(count: u16, action: impl Fn(u16) -> &'static str) -> String {
    let mut policy = "[[segment]]\nname = \"web\"\ntags = [\"web\"]\n".to_owned();
    for n in 1..=count {
        let action = action(n);
        let _ = writeln!(
            policy,
            "[[rule]]\nname = \"r{n}\"\nfrom = \"web\"\nto = \"any\"\nservice = \"udp/{n}\"\naction = \"{action}\""
        );
    }
    policy
}

#[test]
fn a_policy_of_20000_rules_is_applied_and_enforced() {
    let Some(lab) = Lab::open(&[]) else { return };
    let s = start(&lab);
    let connect = |name: &str| {
        let path = lab.path(format!("{name}.sock"));
        Guest::connect(&path, GuestConfig::default()).expect("the port's guest")
    };
    let (mut web, mut db) = (connect("web"), connect("db"));
    s.wait_ports_up(2);
    let large = rules(20_000, |n| if n % 2 == 0 { "allow" } else { "deny" });
    let large = lab.file("large.toml", large);
    let large = large.to_str().expect("UTF-8");
    assert_eq!(s.cli(&["policy", "diff", large]).status.code(), Some(1));
    s.cli_ok(&["policy", "apply", large]);
    assert_eq!(s.cli_json(&["status"])["rules"], 20_000);
    s.cli_ok(&["policy", "diff", large]);
    // The last two rules, on the wire: what is denied goes first, so it would also arrive first.
    let frames = [19_999, 20_000].map(|dport| {
        let mut frame = Vec::new();
        etherparse::PacketBuilder::ethernet2([0x52, 0x54, 0, 0, 0, 1], [0x52, 0x54, 0, 0, 0, 2])
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .udp(4000, dport)
            .write(&mut frame, b"large")
            .expect("a vector takes it");
        frame
    });
    let queue = web.queue(0).expect("one pair");
    queue.send(&frames.each_ref().map(|f| (NetHdr::default(), f.as_slice())));
    let arrived = wait_for("a frame", LIMIT, || {
        let mut arrived = Vec::new();
        let queue = db.queue(0).expect("one pair");
        queue.recv(32, |_, frame| arrived.push(frame.to_vec()));
        (!arrived.is_empty()).then_some(arrived)
    });
    assert_eq!(arrived, [frames[1].clone()]);
    assert_eq!(s.dropped("policy_deny"), 1);
}

#[test]
fn a_policy_that_is_too_long_is_refused_by_its_length() {
    let Some(lab) = Lab::open(&[]) else { return };
    let s = start(&lab);
    let file = lab.file(
        "long.toml",
        "# a comment of 64 bytes, again and again, to be far too long..\n".repeat(1 << 19),
    );
    let file = file.to_str().expect("UTF-8");
    for command in ["apply", "diff"] {
        let output = s.cli(&["policy", command, file]);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("longer than 32 MiB"), "{said}");
    }
}

#[test]
fn of_a_policy_full_of_mistakes_the_first_are_shown_and_the_switch_answers() {
    let Some(lab) = Lab::open(&[]) else { return };
    let s = start(&lab);
    let file = lab.file("wrong.toml", rules(20_000, |_| "alow"));
    let output = s.cli(&["policy", "apply", file.to_str().expect("UTF-8")]);
    let said = said(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.lines().count(), 1001, "{said}");
    assert!(said.contains("wrong.toml:9:10: error: \"alow\""), "{said}");
    assert!(said.contains("19000 more errors"), "{said}");
    s.cli_ok(&["status"]);
}

#[test]
fn mistakes_stand_at_their_place_in_the_file_that_was_named_or_changed() {
    let Some(lab) = Lab::open(&[]) else { return };
    let s = start(&lab);
    // A name and a MAC that the switch has already, each at its line.
    let two = port(&lab, "web", 3) + &port(&lab, "other", 2);
    let two = lab.file("two.toml", two);
    let output = s.cli(&["port", "add", "--file", two.to_str().expect("UTF-8")]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for place in [
        "two.toml:2:8: error: duplicate port",
        "two.toml:18:8: error: 52:54:00:00:00:02",
    ] {
        assert!(text.contains(place), "{place}: {text}");
    }
    // Changed files that the running switch cannot follow: [switch], and a port that is open.
    let refused = |changed: String, place: &str| {
        lab.file("sw/switch.toml", changed);
        wait_for(place, LIMIT, || {
            let refused = s.cli_json(&["status"])["refused"].to_string();
            refused.contains(place).then_some(())
        });
    };
    let toml = switch_toml(&lab);
    refused(
        toml.replace("10000", "20000"),
        "switch.toml:2:1: error: [switch] cannot change",
    );
    refused(
        toml.replacen("queues = 1", "queues = 2", 1),
        "switch.toml:6:1: error: its queues, MTU or mode cannot change",
    );
}

#[test]
fn a_person_who_waits_sees_that_something_happens() {
    let Some(lab) = Lab::open(&[Need::Program("script")]) else {
        return;
    };
    let socket = lab.path_str("slow.sock");
    let listener = UnixListener::bind(&socket).expect("a fresh path");
    let mut command = process::command("script");
    let asks = format!("{} --socket {socket} status", switch::binary().display());
    command.args(["-qefc", &asks, "/dev/null"]);
    let mut terminal = Console::spawn(&lab, "terminal", command);
    let (stream, _) = listener.accept().expect("the command connects");
    let mut stream = BufReader::new(stream);
    stream.read_line(&mut String::new()).expect("it asks");
    // No answer before the spinner is there.
    terminal.expect("the spinner", 0, LIMIT, |text| {
        text.contains("waiting for the daemon").then_some(())
    });
    let no = "{\"error\":{\"code\":\"refused\",\"errors\":[\"not now\"]}}\n";
    stream.get_mut().write_all(no.as_bytes()).expect("it reads");
    terminal.expect("the answer", 0, LIMIT, |text| {
        text.contains("vswitch: not now").then_some(())
    });
    assert_eq!(terminal.process().wait(LIMIT).code(), Some(1));
}
